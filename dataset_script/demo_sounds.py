"""Synthetic recordings with the names of the sounds in them: what AudioSet is to the teachers of the report."""

import csv
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from datasets.utils import tqdm

from dataset_script.demo import write_wav
from dataset_script.files import atomic_path, made_once
from dataset_script.splits import CITIES, SCENES
from dataset_script.synthesis import apply_device, make_place, make_response, render_sounds


DEMO_SOUNDS = "demo_sounds"
"""Name of the recordings in the arguments of the commands."""

SOUNDS_VERSION = 1
"""Increased when the audio changes, so that cached recordings are made again."""

TRAIN_RECORDINGS, TEST_RECORDINGS = 1_800, 200
"""Recordings of one second to learn from, and to test on."""

PRESENCE = 0.8
"""Probability that a recording has a sound of its scene."""

LABEL_FILES = {"train": "train.csv", "test": "test.csv"}
"""Lists of the sounds of each recording, in the format of AudioSet's lists."""

CARD = """\
---
pretty_name: Synthetic sounds
license: cc0-1.0
task_categories:
- audio-classification
tags:
- audio-tagging
- synthetic
size_categories:
- 1K<n<10K
---

# Synthetic sounds

> These recordings are **synthetic**. They were generated from a seed for trying out code; results on them say nothing
> about real recordings.

Recordings of one second (44.1 kHz, 24 bit, mono) of the sounds that occur in the scenes of the demo corpus, at other
locations and by other devices, a new one for each recording. `train.csv` and `test.csv` list the sounds of each
recording. The scenes themselves are not labelled.

Generated with seed {seed} (version {version}).
"""


def demo_sounds(cache_dir: Path, seed: int = 0) -> Path:
    """Return the folder of the cached recordings, which are made if they do not exist.

    Args:
        cache_dir (`Path`): Folder of cached corpora.
        seed (`int`, *optional*, defaults to 0): As for [`make_demo_sounds`].
    """
    out = cache_dir / f"{DEMO_SOUNDS}-{SOUNDS_VERSION}-{seed}"
    return made_once(out, lambda: make_demo_sounds(out, seed))


def make_demo_sounds(
    out: str | os.PathLike, seed: int = 0, train: int = TRAIN_RECORDINGS, test: int = TEST_RECORDINGS
) -> None:
    """Write recordings of sounds, and the lists of what is heard in them.

    Args:
        out (`str` or `os.PathLike`): Output folder, which must not exist. It appears once it is complete.
        seed (`int`, *optional*, defaults to 0): Seed of all random choices. The same seed gives identical files.
        train (`int`, *optional*, defaults to 1800): Recordings to learn from.
        test (`int`, *optional*, defaults to 200): Recordings to test on.
    """
    with atomic_path(Path(out)) as part:
        (part / "audio").mkdir(parents=True)
        # NumPy releases the interpreter lock, so threads use all cores.
        with ThreadPoolExecutor() as pool:
            names = pool.map(lambda number: _write_recording(part, number, seed), range(train + test))
            rows = list(tqdm(names, total=train + test, unit=" recordings", desc="Generating sounds"))
        for split, chosen in (("train", rows[:train]), ("test", rows[train:])):
            with (part / LABEL_FILES[split]).open("w", encoding="utf-8", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows(chosen)
        (part / "README.md").write_text(CARD.format(seed=seed, version=SOUNDS_VERSION), encoding="utf-8")


def _write_recording(root: Path, number: int, seed: int) -> tuple[str, str]:
    """Write a recording and return its file and its sounds, separated by commas."""
    rng = np.random.default_rng([seed, 6, number])
    scene = SCENES[number % len(SCENES)]
    city = int(rng.integers(len(CITIES)))
    place = make_place(np.random.default_rng([seed, 3, city]), rng)
    sound, heard = render_sounds(scene, place, rng, 1, PRESENCE)
    response = make_response(rng, rng.uniform(1, 9), rng.uniform(50, 350), rng.uniform(5_500, 16_000))
    sound = apply_device(sound, response, rng.uniform(0, 1.5), rng.uniform(-75, -55), rng)
    name = f"audio/{number:05}.wav"
    write_wav(root / name, sound)
    return name, ",".join(heard)

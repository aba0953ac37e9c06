"""The demo corpus: synthetic scenes in the layout of TAU Urban Acoustic Scenes 2022 Mobile."""

import io
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import soundfile
from datasets.utils import tqdm
from filelock import FileLock
from huggingface_hub import metadata_load

from dataset_script.clips import SAMPLE_RATE
from dataset_script.errors import InputError
from dataset_script.files import atomic_path
from dataset_script.splits import CITIES, DEVICES, PERCENTAGES, SCENES
from dataset_script.synthesis import apply_device, make_place, make_response, render_scene


DEMO_VERSION = 1
"""Counts changes of the sound, so that a corpus in the cache is made again."""

TRAIN_SEGMENTS = 20
"""Segments of each scene for training; every tenth has two clips, the others one."""

TEST_SEGMENTS = 9
"""Segments of each scene for testing, one clip from each device."""

TRAIN_DEVICES = ("a", "a", "b", "a", "c", "a", "s1", "a", "s2", "s3")
"""Devices of successive training segments; `s4`, `s5`, `s6` are left for the test split."""

DEVICE_CHARACTER = {
    "b": (2.5, 60, 15_000, 0.0, -70),
    "c": (3.0, 90, 14_000, 0.0, -65),
    "s1": (4.0, 80, 14_000, 0.5, -70),
    "s2": (4.0, 110, 12_000, 0.5, -65),
    "s3": (4.5, 140, 11_000, 1.0, -65),
    "s4": (7.0, 200, 8_000, 1.0, -60),
    "s5": (7.0, 300, 6_500, 1.5, -60),
    "s6": (8.0, 250, 9_000, 1.5, -55),
}
"""Spread of the frequency response (dB) and its cut-offs (Hz), drive into soft clipping, noise (dB below the peak)."""

IMPULSE_RESPONSES = 24
"""Responses of further devices, for augmentation; none of them is in the corpus."""

CARD = """\
---
pretty_name: Synthetic acoustic scenes
license: cc0-1.0
task_categories:
- audio-classification
tags:
- acoustic-scene-classification
- synthetic
size_categories:
- n<1K
---

# Synthetic acoustic scenes

> These clips are **synthetic**. They were generated from a seed to try code out; results on them say nothing about
> real recordings.

Ten scenes of textures, events and rhythms, at locations of ten cities that differ in pitch, pace, colour and
reverberation, recorded by nine devices of which `s4`, `s5` and `s6` occur in the test split only. Names, tables and
audio format (one second, 44.1 kHz, 24 bit, mono) are those of TAU Urban Acoustic Scenes 2022 Mobile, with the training
subsets of DCASE 2024 Task 1. `impulse_responses/` holds the responses of further devices, for augmentation.

Made by `python -m dataset_script.make_demo` with the seed {seed} (version {version}).
"""


Device = tuple[np.ndarray, float, float]
"""Impulse response, drive into soft clipping and noise level of a device; see `apply_device`."""


@dataclass
class Segment:
    """A segment of the corpus: where, when and by what it was recorded."""

    split: str
    scene: str
    city: str
    location: int
    number: int
    device: str
    clips: int

    @property
    def filenames(self) -> list[str]:
        """The file names of its clips."""
        stem = f"audio/{self.scene}-{self.city}-{self.location}-{self.number}"
        return [f"{stem}-{sub}-{self.device}.wav" for sub in range(self.clips)]


def plan_segments(seed: int) -> list[Segment]:
    """All segments, those for training first, each scene in the order in which the subsets take them."""
    rng = np.random.default_rng([seed, 0])
    segments: list[Segment] = []
    for split, count in (("train", TRAIN_SEGMENTS), ("test", TEST_SEGMENTS)):
        for scene_index, scene in enumerate(SCENES):
            cities = rng.permutation(np.arange(count) % len(CITIES))
            for index in range(count):
                devices = TRAIN_DEVICES if split == "train" else DEVICES
                device = devices[(index + scene_index) % len(devices)]
                # Locations of the two splits are apart, in TAU too.
                location = 20 * scene_index + index + (1_000 if split == "test" else 0)
                clips = 2 if index % 10 == 9 else 1
                number = len(segments)
                segments.append(Segment(split, scene, CITIES[cities[index]], location, number, device, clips))
    return segments


def make_devices(seed: int) -> dict[str, Device]:
    """Response, drive and noise of each device but `a`, which records the sound as it is; see `apply_device`."""
    return {
        name: (make_response(np.random.default_rng([seed, 1, index]), *character[:3]), *character[3:])
        for index, (name, character) in enumerate(DEVICE_CHARACTER.items())
    }


def make_demo(out: str | os.PathLike, seed: int = 0) -> None:
    """Write the demo corpus.

    Args:
        out: Folder, which must be empty or absent; it appears only when the corpus is complete.
        seed: Decides everything that is drawn; the same seed gives the same bytes. Not negative.

    Raises:
        FileExistsError: The folder holds something.
        InputError: The seed is negative.
    """
    if seed < 0:
        raise InputError(f"The seed is {seed}: give one that is not negative.")
    out = Path(out)
    if out.is_dir() and any(out.iterdir()):
        raise FileExistsError(f"{out} is not empty: give a new folder for the demo corpus.")
    with atomic_path(out) as part:
        _write_corpus(part, seed)


def _write_corpus(root: Path, seed: int) -> None:
    (root / "audio").mkdir(parents=True)
    segments = plan_segments(seed)
    devices = make_devices(seed)
    # NumPy computes without the interpreter lock, so threads keep all cores busy.
    with ThreadPoolExecutor() as pool, tqdm(total=len(segments), unit=" segments", desc="Making scenes") as progress:
        for _ in pool.map(lambda segment: _write_segment(root, segment, devices, seed), segments):
            progress.update()
    _write_tables(root, segments)
    (root / "impulse_responses").mkdir()
    for index in range(IMPULSE_RESPONSES):
        rng = np.random.default_rng([seed, 2, index])
        response = make_response(rng, rng.uniform(2, 9), rng.uniform(50, 350), rng.uniform(5_500, 16_000))
        _write_wav(root / "impulse_responses" / f"synthetic-{index:02d}.wav", 0.5 * response)
    (root / "README.md").write_text(synthetic_card(seed), encoding="utf-8")


def demo_corpus(cache_dir: Path, seed: int = 0) -> Path:
    """The demo corpus in a cache folder, made if it is not there."""
    out = cache_dir / f"demo-{DEMO_VERSION}-{seed}"
    cache_dir.mkdir(parents=True, exist_ok=True)
    with FileLock(out.with_suffix(".lock")):
        if not out.is_dir():
            make_demo(out, seed)
    return out


def synthetic_card(seed: int = 0) -> str:
    """The card of the demo corpus."""
    return CARD.format(seed=seed, version=DEMO_VERSION)


def has_synthetic_card(root: Path) -> bool:
    """Whether the card of a corpus folder calls it synthetic."""
    card = root / "README.md"
    return card.is_file() and "synthetic" in (metadata_load(card) or {}).get("tags", [])


def _write_segment(root: Path, segment: Segment, devices: dict[str, Device], seed: int) -> None:
    scene, city = SCENES.index(segment.scene), CITIES.index(segment.city)
    place = make_place(
        np.random.default_rng([seed, 3, city]), np.random.default_rng([seed, 4, city, segment.location])
    )
    rng = np.random.default_rng([seed, 5, scene, segment.number])
    sound = render_scene(segment.scene, place, rng, segment.clips)
    if segment.device in devices:
        sound = apply_device(sound, *devices[segment.device], rng)
    for filename, clip in zip(segment.filenames, np.split(sound, segment.clips), strict=True):
        _write_wav(root / filename, clip)


def _write_wav(path: Path, samples: np.ndarray) -> None:
    # Rounded here rather than by the library, whose rounding may change.
    codes = np.rint(samples * (2**23 - 1)).astype(np.int32) << 8
    # In memory first: the library hides the cause of an error on the disk.
    wav = io.BytesIO()
    soundfile.write(wav, codes, SAMPLE_RATE, format="WAV", subtype="PCM_24")
    path.write_bytes(wav.getvalue())


def _write_tables(root: Path, segments: list[Segment]) -> None:
    columns = ["filename", "scene_label", "identifier", "source_label", "split", "rank"]
    ranks: dict[tuple[str, str], int] = {}
    rows = []
    for segment in segments:
        key = (segment.split, segment.scene)
        ranks[key] = ranks.get(key, -1) + 1
        place = f"{segment.city}-{segment.location}"
        rows += [(name, segment.scene, place, segment.device, *key[:1], ranks[key]) for name in segment.filenames]
    clips = pd.DataFrame(rows, columns=columns)

    def write(path: str, table: pd.DataFrame, width: int) -> None:
        (root / path).parent.mkdir(exist_ok=True)
        table[columns[:width]].to_csv(root / path, sep="\t", index=False, lineterminator="\n")

    train, test = clips[clips["split"] == "train"], clips[clips["split"] == "test"]
    write("meta.csv", clips, 4)
    write("evaluation_setup/fold1_train.csv", train, 2)
    write("evaluation_setup/fold1_evaluate.csv", test, 2)
    write("evaluation_setup/fold1_test.csv", test, 1)
    for percent in PERCENTAGES:
        write(f"split_setup/split{percent}.csv", train[train["rank"] < TRAIN_SEGMENTS * percent / 100], 2)
    write("split_setup/test.csv", test, 2)

"""A small BEATs, small corpora, and command lines of pre-training and tagging."""

import csv
import functools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from safetensors.torch import load_file

from benchmarks.shards import FileHandler, FileServer


TINY = (
    "num_mel_bins=32,num_hidden_layers=2,hidden_size=32,embedding_size=32,num_attention_heads=2,intermediate_size=32,"
    "num_conv_pos_embeddings=4,num_conv_pos_embedding_groups=2,num_predictor_layers=1,num_estimator_layers=1,"
    "codebook_size=16,codebook_dim=8,layerdrop=0.0,hidden_dropout=0.0,attention_dropout=0.0,embedding_dropout=0.0,"
    "classifier_dropout=0.0"
)
"""Overrides of BEATs' configuration for a network without dropout that trains in a second."""

RECORDINGS = {
    "a.wav": (8_000, 16_000),
    "b/c.flac": (44_100, 100_000),
    "b/d.ogg": (22_050, 20_000),
    "e.wav": (16_000, 900),
}
"""Rate in Hz and number of samples of recordings without labels; the last one is shorter than a patch."""

TONES = {"/m/low": 300, "/m/mid": 1100, "/m/high": 3500, "/m/top": 6500}
"""Labels of the tagged corpus, and the frequency in Hz of the tone in a clip with that label."""

COMMON = {
    "config_overrides": TINY,
    "segment_seconds": "0.5",
    "max_steps": "6",
    "warmup_steps": "2",
    "save_steps": "2",
    "logging_steps": "2",
    "use_cpu": "True",
    "disable_tqdm": "True",
    "report_to": "none",
    "log_level": "warning",
}


def pretraining_command(folder, dataset, *options) -> list[str]:
    """Arguments of train/pretrain_teacher.py; `options` are names, each followed by its value."""
    own = {"recipe": "demo_pretrain_iter1", "dataset": str(dataset), "output_dir": str(folder), "batch_size": "4"}
    return _command(COMMON | own, options)


def tokenizer_options(teacher) -> tuple[str, ...]:
    """Options of the recipe whose tokenizer learns from `teacher` and starts from its encoder."""
    folder = str(teacher)
    return ("recipe", "demo_pretrain_tokenizer", "teacher_name_or_path", folder, "model_name_or_path", folder)


def tagging_command(corpus, folder, *options) -> list[str]:
    """Arguments of train/finetune_audioset.py for a corpus of [`write_tagged_corpus`]."""
    return _command(
        {
            **COMMON,
            "recipe": "audioset20k",
            "dataset": str(corpus / "audio"),
            "labels": str(corpus / "train.csv"),
            "test_labels": str(corpus / "test.csv"),
            "class_names": str(corpus / "classes.csv"),
            "output_dir": str(folder),
            "batch_size": "12",
            "gradient_accumulation_steps": "1",
            "learning_rate": "3e-3",
            "dataloader_num_workers": "0",
            "bf16": "False",
        },
        options,
    )


def _command(defaults, options) -> list[str]:
    values = defaults | dict(zip(options[::2], options[1::2], strict=True))
    return [text for name, value in values.items() for text in (f"--{name}", value)]


def write_tagged_corpus(folder: Path, clips: int) -> None:
    """Clips with one to three tones in noise, and lists of labels like AudioSet's: three quarters to train on."""
    rng = np.random.default_rng(0)
    (folder / "audio").mkdir(parents=True)
    lines = []
    for clip in range(clips):
        labels = sorted(rng.choice(list(TONES), size=rng.integers(1, 4), replace=False))
        seconds = rng.choice([0.4, 0.5, 0.7])
        time = np.arange(int(16_000 * seconds)) / 16_000
        sound = sum(np.sin(2 * np.pi * TONES[label] * time + rng.uniform(0, 6)) for label in labels)
        soundfile.write(folder / "audio" / f"Y{clip:03d}.wav", 0.1 * sound + 0.02 * rng.normal(size=len(time)), 16_000)
        lines.append(f'{clip:03d}, 30.000, 40.000, "{",".join(labels)}"\n')
    head = "# Segments\n# num_ytids=0\n# YTID, start_seconds, end_seconds, positive_labels\n"
    (folder / "train.csv").write_text(head + "".join(lines[clips // 4 :]) + 'gone, 0.000, 10.000, "/m/low"\n')
    (folder / "test.csv").write_text(head + "".join(lines[: clips // 4]))
    names = "".join(f"{index},{label},Tone {hertz}\n" for index, (label, hertz) in enumerate(TONES.items()))
    (folder / "classes.csv").write_text("index,mid,display_name\n" + names)


def read_list(path: Path) -> list[tuple[str, list[str]]]:
    """Names and labels in a list of [`write_tagged_corpus`], read independently of the code under test."""
    with path.open() as stream:
        rows = [row for row in csv.reader(stream, skipinitialspace=True) if not row[0].startswith("#")]
    return [(row[0], row[-1].split(",")) for row in rows]


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def assert_equal_weights(folder, other) -> None:
    one, two = weights(folder), weights(other)
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.equal(value, two[name]), name


@dataclass
class Call:
    """A call of a method: the object, the arguments, the result, and the mode of the object if it is a network."""

    owner: Any
    args: tuple
    kwargs: dict[str, Any]
    result: Any
    training: bool | None


def record_calls(monkeypatch, owner: type, method: str) -> list[Call]:
    """Record the calls of a method of a class from now on."""
    original = getattr(owner, method)
    calls = []

    @functools.wraps(original)
    def recording(self, *args, **kwargs):
        training = getattr(self, "training", None)
        result = original(self, *args, **kwargs)
        calls.append(Call(self, args, kwargs, result, training))
        return result

    monkeypatch.setattr(owner, method, recording)
    return calls


@contextmanager
def serve(folder: Path, handler: type[FileHandler] = FileHandler) -> Iterator[str]:
    """Serve a folder from this process, and return the address."""
    with FileServer(folder, handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.url
        server.shutdown()

import json
import sys

import numpy as np
import pytest
import soundfile
import torch

from benchmarks.pretraining_miniature import load_esc10, main, new_classifier
from modeling_beats import BeatsModel


@pytest.fixture
def recordings(tmp_path):
    """Folder of two classes with three folds each, laid out like ESC-10."""
    for number, name in enumerate(("dog", "rain")):
        (tmp_path / "audio" / name).mkdir(parents=True)
        for fold in (1, 2, 3):
            for take in "AB":
                noise = np.random.default_rng([number, fold]).normal(size=16_000) / 10
                soundfile.write(tmp_path / "audio" / name / f"{fold}-{number}0{fold}-{take}.ogg", noise, 16_000)
    return tmp_path / "audio"


def test_last_fold_is_held_out(recordings, tmp_path):
    splits, unlabelled = load_esc10(recordings, tmp_path / "work")
    assert [(name, len(clips), labels.tolist()) for name, (clips, labels) in splits.items()] == [
        ("train", 8, [0] * 4 + [1] * 4),
        ("test", 4, [0, 0, 1, 1]),
    ]
    assert splits["test"][0].shape == (4, 80_000)
    assert {path.name[0] for path in (tmp_path / "work" / "unlabelled").iterdir()} == {"1", "2"}
    assert unlabelled == str(tmp_path / "work" / "unlabelled")


def test_whole_comparison(recordings, tmp_path, monkeypatch):
    """Pre-train and evaluate both networks; the random one shares no weights with the pre-trained one."""
    folder = tmp_path / "work"
    options = ["--audio", str(recordings), "--work_dir", str(folder), "--seeds", "3", "--steps", "1", "--frozen_only"]
    monkeypatch.setattr(sys, "argv", ["miniature", *options])
    main()
    results = json.loads((folder / "results.json").read_text())
    assert results["clips"] == {"train": 8, "test": 4}
    assert [(row["seed"], row["start"]) for row in results["runs"]] == [(3, "random"), (3, "demo_pretrain_iter1")]
    assert results["stages"][0]["demo_pretrain_iter1"]["last"]["codebook_usage"] > 0
    trained = BeatsModel.from_pretrained(folder / "seed3" / "demo_pretrain_iter1").state_dict()
    for from_random in (False, True):
        model = new_classifier(folder / "seed3" / "demo_pretrain_iter1", from_random, 2, seed=3)
        same = [
            torch.equal(value, trained[name]) for name, value in model.beats.state_dict().items() if value.ndim > 1
        ]
        assert not any(same) if from_random else all(same)

"""The commands of evaluation on noise: which clips they score, and against which training split."""

import json

import datasets
import numpy as np
import pytest

from dataset_script import write_logits
from tests.train.helpers import make_extractor, make_model, make_scenes
from train import evaluate_logits, run_eval
from train.evaluation import runs
from train.evaluation.inference import compute_logits
from train.evaluation.scoring import score_logits


@pytest.fixture(scope="module")
def scenes():
    """Only the test split has the device s4; only the training split has the device a."""
    scenes = make_scenes(90)
    devices = np.asarray(scenes["device"])
    train, test = np.flatnonzero(devices[:45] != 2), 45 + np.flatnonzero(devices[45:] != 0)
    return datasets.DatasetDict(train=scenes.select(train), test=scenes.select(test))


def test_a_model_is_scored_on_the_split(scenes, tmp_path, monkeypatch):
    model, extractor = make_model().eval(), make_extractor()
    noise = np.random.default_rng(0)
    waveforms = {
        split: (1000 * noise.normal(size=(len(clips), 4000))).astype("int16") for split, clips in scenes.items()
    }

    def cached(clips, sampling_rate, cache_dir):
        assert sampling_rate == 4000
        return next(waveforms[split] for split, of_split in scenes.items() if of_split is clips)

    monkeypatch.setattr(runs, "load_clips", lambda args: (scenes, model, extractor))
    monkeypatch.setattr(runs, "load_config", lambda *args: model.config)
    monkeypatch.setattr(runs, "cache_waveforms", cached)
    for split, unseen in (("test", ["s4"]), ("train", [])):
        output = tmp_path / split
        command = [
            "--model_name_or_path",
            str(tmp_path),
            "--output_dir",
            str(output),
            "--split",
            split,
            "--bootstrap",
            "50",
        ]
        results = run_eval.main([*command, "--use_cpu"])
        logits = compute_logits(model, extractor, waveforms[split])
        assert results["metrics"] == score_logits(logits, scenes[split], unseen, 50)
        assert results["unseen_devices"] == unseen
        assert json.loads((output / "results.json").read_text())["metrics"] == results["metrics"]
        assert "unseen" in results["metrics"]["device_groups"] or split == "train"


def test_logits_are_averaged_over_the_models(scenes, tmp_path, monkeypatch):
    """Their rows are found by file name."""
    test = scenes["test"]
    rng = np.random.default_rng(0)
    members = rng.normal(size=(3, len(test), 3)) * [[[1]], [[2]], [[3]]]
    names = test.features["label"].names
    for number, values in enumerate(members):
        order = rng.permutation(len(test))
        filenames = [test["filename"][row] for row in order]
        write_logits(
            tmp_path / f"m{number}", filenames, values[order], teacher=f"t{number}", revision="0", label_names=names
        )
    monkeypatch.setattr(runs, "load_scenes", lambda *args, **kwargs: scenes)
    folders = [str(tmp_path / f"m{number}") for number in range(3)]
    command = ["--logits", *folders, "--output_dir", str(tmp_path / "out"), "--bootstrap", "50"]
    results = evaluate_logits.main(command)
    expected = score_logits(members.mean(axis=0), test, ["s4"], 50)
    assert results["metrics"]["confusion_matrix"] == expected["confusion_matrix"]
    assert results["metrics"]["log_loss"] == pytest.approx(expected["log_loss"], rel=1e-5)
    assert results["metrics"]["confidence_intervals"] == expected["confidence_intervals"]
    assert results["unseen_devices"] == ["s4"]
    assert [member["teacher"] for member in results["members"]] == ["t0", "t1", "t2"]

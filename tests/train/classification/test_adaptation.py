"""Adaptation to recording devices: which clips and layers are trained, and what is reported."""

import logging
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.train.classification.test_training import with_audio
from tests.train.helpers import make_dataset, make_extractor, make_model
from train.classification import adaptation
from train.classification.arguments import AdaptationArguments
from train.classification.training_arguments import SceneTrainingArguments
from train.common.arguments import CorpusArguments
from train.common.models import load_classifier
from train.evaluation.inference import compute_logits


@pytest.fixture(scope="module")
def scenes():
    """Training clips of the devices a and b, and test clips of s4 as well."""
    dataset = make_dataset(60)
    seen = [row for row, device in enumerate(dataset.scenes["device"]) if device != 2]
    splits = {"train": dataset.subset(seen), "test": make_dataset(24, seed=1)}
    return datasets.DatasetDict({split: with_audio(clips) for split, clips in splits.items()})


@pytest.fixture(scope="module")
def student(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "student"
    make_model().save_pretrained(folder)
    make_extractor().save_pretrained(folder)
    return folder


@pytest.fixture
def adapt(tmp_path, scenes, student, monkeypatch):
    """Function that adapts the student; returns its output folder and the results."""
    monkeypatch.setattr(adaptation, "load_splits", lambda data_args, logits=None: scenes)

    def adapt(name="adapted", model=student, trainable="all", min_clips=2, **arguments):
        settings = {"batch_size": 8, "num_train_epochs": 2, "schedule": "constant", "use_cpu": True}
        output = tmp_path / name
        args = SceneTrainingArguments(output_dir=str(output), report_to="none", **settings | arguments)
        adaptation_args = AdaptationArguments(str(model), trainable=trainable, min_clips=min_clips)
        corpus_args = CorpusArguments("mine", cache_dir=str(tmp_path / "cache"))
        return output, adaptation.adapt_devices("adapt_devices", adaptation_args, corpus_args, args)

    return adapt


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def rows_of(scenes, split, device):
    return [row for row, index in enumerate(scenes[split]["device"]) if "ab"[index : index + 1] == device]


def test_each_device_learns_its_own_clips(adapt, scenes, student, monkeypatch):
    trained_on = {}

    class Trainer(adaptation.DistillationTrainer):
        def __init__(self, model, args, feature_extractor, clips):
            super().__init__(model, args, feature_extractor, clips)
            start = weights(student)
            assert all(torch.equal(value, start[name]) for name, value in model.state_dict().items())
            trained_on[Path(args.output_dir).name] = list(clips.scenes["filename"])

    monkeypatch.setattr(adaptation, "DistillationTrainer", Trainer)
    output, results = adapt()
    filenames = scenes["train"]["filename"]
    assert trained_on == {device: [filenames[row] for row in rows_of(scenes, "train", device)] for device in "ab"}
    assert results["device_models"] == {device: len(clips) for device, clips in trained_on.items()}
    assert weights(output).keys() == weights(student).keys()
    assert all(torch.equal(value, weights(student)[name]) for name, value in weights(output).items())
    assert not torch.equal(*(weights(output / "devices" / device)["classifier.weight"] for device in "ab"))


def test_distillation_stays_on(adapt, scenes, monkeypatch):
    """The logits are in a column of the clips, as `load_splits` returns them."""
    logits = np.random.default_rng(0).normal(size=(len(scenes["train"]), 3)).astype(np.float32)
    taught = scenes["train"].add_column("teacher_logits_t", logits.tolist())
    monkeypatch.setattr(adaptation, "load_splits", lambda *arguments: {**scenes, "train": taught})
    batches = {}

    def stop(device, adaptation_args, args, clips):
        batches[device] = clips.__getitems__([0, 1])["teacher_logits"]
        if device == "b":
            raise KeyboardInterrupt

    monkeypatch.setattr(adaptation, "adapt_to_device", stop)
    with pytest.raises(KeyboardInterrupt):
        adapt(trainable="classifier")
    for device, batch in batches.items():
        np.testing.assert_array_equal(batch, logits[rows_of(scenes, "train", device)[:2]])


def test_results_are_those_of_the_models_on_disk(adapt, scenes, tmp_path):
    output, results = adapt()
    waveforms = adaptation.cache_waveforms(scenes["test"], 4000, str(tmp_path / "cache"))
    labels = np.asarray(scenes["test"]["label"])
    general, adapted = results["metrics"], results["metrics_with_device_models"]
    for device in "ab":
        rows = rows_of(scenes, "test", device)
        for folder, metrics in ((output, general), (output / "devices" / device, adapted)):
            logits = compute_logits(*load_classifier(str(folder)), np.asarray(waveforms[rows]))
            assert metrics["device_wise"][device]["accuracy"] == (logits.argmax(1) == labels[rows]).mean()
    assert general["device_wise"]["s4"] == adapted["device_wise"]["s4"]
    assert general["device_groups"]["unseen"] == adapted["device_groups"]["unseen"]
    assert general["device_wise"]["b"]["log_loss"] != adapted["device_wise"]["b"]["log_loss"]
    table = (output / "results.md").read_text()
    assert f"| device a | {results['device_models']['a']} | " in table
    assert "| device s4 |  | " in table


@pytest.mark.parametrize("trainable", ["all", "norms", "classifier"])
def test_only_the_chosen_layers_change(adapt, student, trainable):
    output, _ = adapt(trainable=trainable, num_train_epochs=1)
    before, after = weights(student), weights(output / "devices" / "b")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    norms = {name for name in before if ".normalization." in name}
    classifier = {name for name in before if name.startswith("classifier.")}
    assert changed == {"all": set(before), "norms": norms, "classifier": classifier}[trainable]


def test_interrupted_run_resumes_to_the_same_weights(adapt, monkeypatch, caplog):
    whole, expected = adapt("whole")
    original = adaptation.adapt_to_device

    def interrupted(device, *arguments):
        if device == "b":
            raise KeyboardInterrupt
        return original(device, *arguments)

    monkeypatch.setattr(adaptation, "adapt_to_device", interrupted)
    with pytest.raises(KeyboardInterrupt):
        adapt("again")
    finished = []
    monkeypatch.setattr(adaptation, "adapt_to_device", lambda *a: finished.append(a[0]) or original(*a))
    output, results = adapt("again")
    assert finished == ["b"], "the device a was finished"
    assert results["metrics_with_device_models"] == expected["metrics_with_device_models"]
    for device in "ab":
        same = weights(whole / "devices" / device)
        assert all(torch.equal(value, same[name]) for name, value in weights(output / "devices" / device).items())
    caplog.set_level(logging.INFO)
    assert adapt("again")[1]["metrics"] == results["metrics"]
    assert "already finished" in caplog.text and finished == ["b"]


def test_devices_with_few_clips_keep_the_general_model(adapt, scenes, caplog):
    caplog.set_level(logging.INFO)
    fewer, more = sorted("ab", key=lambda device: len(rows_of(scenes, "train", device)))
    enough = len(rows_of(scenes, "train", more))
    assert len(rows_of(scenes, "train", fewer)) < enough, "the clips should be unequally distributed"
    output, results = adapt(min_clips=enough)
    assert [path.name for path in (output / "devices").iterdir()] == list(results["device_models"]) == [more]
    assert f"These devices keep the general model: {fewer}." in caplog.text
    general, adapted = results["metrics"], results["metrics_with_device_models"]
    assert general["device_wise"][fewer] == adapted["device_wise"][fewer]


def test_wrong_input_is_reported_before_training(adapt, student, scenes, monkeypatch, tmp_path):
    monkeypatch.setattr(adaptation, "DistillationTrainer", lambda *a: pytest.fail("training started"))
    with pytest.raises(ValueError, match=r"No recording device has 1000 training clips .*lower --min_clips"):
        adapt(min_clips=1000)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        adapt(model=tmp_path / "missing")
    with pytest.raises(ValueError, match="model_name_or_path is missing"):
        adapt(model="")
    with pytest.raises(ValueError, match="min_clips is 1: choose at least 2"):
        adapt(min_clips=1)
    general, extractor = load_classifier(str(student))
    general.config.quantization_config = object()
    monkeypatch.setattr(adaptation, "load_classifier", lambda *a, **k: (general, extractor))
    with pytest.raises(ValueError, match="is an INT8 model, which cannot be trained"):
        adapt()
    single = scenes["train"].select(rows_of(scenes, "train", "a"))
    monkeypatch.setattr(adaptation, "load_splits", lambda *a: {**scenes, "train": single})
    with pytest.raises(ValueError, match=r"a single recording device \(a\)"):
        adapt()

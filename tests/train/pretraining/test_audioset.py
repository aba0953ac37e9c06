"""Fine-tuning from the command's point of view: what is trained and tested on, resuming, processes, cost."""

import json
import shutil
import signal

import numpy as np
import pytest
import soundfile
import torch
from torch.nn import functional as F

from modeling_beats import BeatsFeatureExtractor, BeatsForAudioClassification, BeatsModel
from tests.train.common.test_resumable import kill_at, run_until_killed
from tests.train.helpers import run_two_processes
from tests.train.pretraining.helpers import (
    TINY,
    TONES,
    assert_equal_weights,
    read_list,
    record_calls,
    tagging_command,
    weights,
)
from train.common.augmentations import SoftMixup, SpecAugment
from train.common.models import new_teacher
from train.common.resumable import derived_seed
from train.finetune_audioset import main as finetune_audioset
from train.pretraining.labels import class_indices, load_tagged
from train.pretraining.tagging import TaggedCrops, TaggingTrainer, tagging_metrics
from train.pretraining.trainers import CropTrainer


EXTRACTOR = BeatsFeatureExtractor(feature_size=32)


@pytest.fixture(scope="module")
def trained(corpus, start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    options = ("model_name_or_path", start, "max_steps", "150", "warmup_steps", "15", "save_steps", "150")
    return folder, finetune_audioset(tagging_command(corpus, folder, *options))


class TestOutput:
    def test_learns_the_labels(self, trained):
        """The mean average precision is far above chance."""
        folder, results = trained
        metrics = results["metrics"]
        assert metrics["map"] > 0.95 > 0.7 > metrics["chance"]
        assert list(metrics["average_precision"]) == [f"Tone {hertz}" for hertz in TONES.values()]
        assert json.loads((folder / "results.json").read_text()) == results
        assert results["training_clips"] == 120 and metrics["clips"] == 40
        model = BeatsForAudioClassification.from_pretrained(folder)
        assert model.config.problem_type == "multi_label_classification"
        assert model.config.id2label == {index: f"Tone {hertz}" for index, hertz in enumerate(TONES.values())}

    def test_starts_a_teacher_of_scenes(self, trained):
        """The encoder is kept, the classifier is new, and a clip has one label again."""
        torch.manual_seed(0)
        teacher, extractor = new_teacher(["airport", "bus", "park"], str(trained[0]))
        encoder = BeatsModel.from_pretrained(trained[0])
        for name, value in encoder.state_dict().items():
            assert torch.equal(teacher.beats.state_dict()[name], value), name
        assert teacher.classifier.weight.shape == (3, 32)
        assert teacher.config.problem_type == "single_label_classification"
        assert extractor.feature_size == 32


class TestTraining:
    def test_first_loss_is_that_of_the_start(self, corpus, start, tmp_path):
        """Without augmentation it is the binary cross-entropy of the first batch over all clips and classes."""
        options = ("model_name_or_path", start, "max_steps", "1", "spec_augment_size", "0", "mixup_alpha", "0")
        options += ("batch_size", "120", "learning_rate", "0", "logging_steps", "1")
        results = finetune_audioset(tagging_command(corpus, tmp_path / "run", *options))
        state = json.loads((tmp_path / "run" / "checkpoint-1" / "trainer_state.json").read_text())
        assert results["arguments"]["mixup_alpha"] == 0
        model = BeatsForAudioClassification.from_pretrained(tmp_path / "run")
        files, labels = load_tagged(str(corpus / "audio"), str(corpus / "train.csv"))
        dataset = TaggedCrops(files, class_indices(labels, list(TONES)), 4, 0.5, 16_000, seed=42)
        rows = [dataset[0, row] for row in range(120)]
        waveform = torch.from_numpy(np.stack([np.resize(row["waveform"], 8000) for row in rows])) / 2**15
        logits = model(EXTRACTOR.fbank(waveform)).logits.double()
        targets = torch.from_numpy(np.stack([row["labels"] for row in rows])).double()
        expected = -(targets * logits.sigmoid().log() + (1 - targets) * (-logits).sigmoid().log()).mean()
        assert state["log_history"][0]["loss"] == pytest.approx(expected.item(), abs=1e-4)

    def test_features_are_masked_and_mixed_with_their_labels(self, corpus, start, tmp_path, monkeypatch):
        """SpecAugment comes first, then mixup; both are drawn anew in each step."""
        losses = record_calls(monkeypatch, TaggingTrainer, "compute_loss")
        forward = record_calls(monkeypatch, BeatsForAudioClassification, "forward")
        options = ("model_name_or_path", start, "max_steps", "2", "spec_augment_size", "0.3", "mixup_alpha", "0.5")
        finetune_audioset(tagging_command(corpus, tmp_path / "run", *options))
        for step, (loss, call) in enumerate(zip(losses, forward[:2], strict=True)):
            inputs = loss.args[1]
            clean = EXTRACTOR.fbank(inputs["waveform"] / 2**15)
            generator = torch.Generator().manual_seed(derived_seed(42, step, 0))
            features, mix = SoftMixup(0.5)(SpecAugment(0.3)(clean, generator), generator)
            labels = mix(inputs["labels"])
            assert call.training
            torch.testing.assert_close(call.args[0], features)
            torch.testing.assert_close(call.kwargs["labels"], labels)
            assert not torch.equal(labels, inputs["labels"])
            torch.testing.assert_close(loss.result, F.binary_cross_entropy_with_logits(call.result.logits, labels))

    @pytest.mark.parametrize(("balanced", "low", "high"), [("True", 0.3, 0.7), ("False", 0.05, 0.05)])
    def test_balanced_draws_rare_classes_more_often(self, balanced, low, high, corpus, start, tmp_path, monkeypatch):
        """One of twenty clips has a class of its own."""
        losses = record_calls(monkeypatch, TaggingTrainer, "compute_loss")
        lines = [f"{clip:03d},/m/low\n" for clip in range(40, 59)]
        (tmp_path / "list.csv").write_text("".join([*lines, "059,/m/high\n"]))
        options = ("model_name_or_path", start, "labels", str(tmp_path / "list.csv"), "balanced", balanced)
        options += ("max_steps", "10", "batch_size", "20")
        finetune_audioset(tagging_command(corpus, tmp_path / "run", *options))
        labels = torch.cat([loss.args[1]["labels"] for loss in losses])
        assert len(labels) == 200
        assert low - 1e-6 <= labels[:, 2].mean().item() <= high + 1e-6


def test_metrics_are_those_of_clean_clips_and_the_saved_weights(corpus, start, tmp_path, monkeypatch):
    """Despite augmentation and dropout in training; the clips are the first seconds of the files in the test list."""
    forward = record_calls(monkeypatch, BeatsForAudioClassification, "forward")
    options = ("model_name_or_path", start, "spec_augment_size", "0.5", "mixup_alpha", "0.5", "max_steps", "3")
    options += ("config_overrides", f"{TINY},hidden_dropout=0.5,classifier_dropout=0.5")
    results = finetune_audioset(tagging_command(corpus, tmp_path / "run", *options))
    assert all(call.training for call in forward[:3])
    rows = read_list(corpus / "test.csv")
    waveforms = [soundfile.read(corpus / "audio" / f"Y{name}.wav", dtype="int16")[0] for name, _ in rows]
    waveform = torch.from_numpy(np.stack([np.resize(samples[:8000], 8000) for samples in waveforms]))
    features = EXTRACTOR.fbank(waveform / 2**15)
    tested = torch.cat([call.kwargs["input_values"] for call in forward[3:]])
    torch.testing.assert_close(tested, features)
    with torch.no_grad():
        logits = BeatsForAudioClassification.from_pretrained(tmp_path / "run")(features).logits
    torch.testing.assert_close(torch.cat([call.result.logits for call in forward[3:-1]]), logits)
    targets = np.array([[label in own for label in TONES] for _, own in rows], dtype=np.float32)
    expected = tagging_metrics(logits.numpy(), targets, [f"Tone {hertz}" for hertz in TONES.values()])
    assert results["metrics"] == expected


def test_killed_run_resumes_to_the_same_weights(corpus, start, short_run, tmp_path, monkeypatch):
    command = tagging_command(corpus, tmp_path / "run", "model_name_or_path", start)
    with monkeypatch.context() as patch:
        kill_at(patch, CropTrainer, "training_step", 3)
        assert run_until_killed(finetune_audioset, command) == signal.SIGKILL
    assert run_until_killed(finetune_audioset, command) == 0
    assert_equal_weights(tmp_path / "run", short_run[0])
    assert finetune_audioset(command)["metrics"] == short_run[1]["metrics"]


@pytest.mark.slow
def test_two_processes_equal_one(corpus, start, tmp_path):
    """Also with an odd batch; mixup and SpecAugment are drawn for the whole batch.

    With plain gradient descent rounding errors stay small, and wrongly scaled gradients show.
    """
    options = ("model_name_or_path", start, "max_steps", "3", "batch_size", "7", "balanced", "True")
    options += ("optim", "sgd", "learning_rate", "0.1", "max_grad_norm", "0")
    one = finetune_audioset(tagging_command(corpus, tmp_path / "one", *options))
    run_two_processes("train/finetune_audioset.py", *tagging_command(corpus, tmp_path / "two", *options))
    first, second = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, value in first.items():
        torch.testing.assert_close(
            second[name], value, rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )
    two = json.loads((tmp_path / "two" / "results.json").read_text())
    assert two["metrics"]["map"] == pytest.approx(one["metrics"]["map"], abs=1e-3)


def test_cost_is_measured_before_anything_is_written(corpus, tmp_path, capsys):
    """Also before there is a model to start from."""
    options = ("model_name_or_path", "no/such", "max_steps", "50000", "gradient_accumulation_steps", "5")
    cost = finetune_audioset([*tagging_command(corpus, tmp_path / "run", *options), "--dry_run"])
    assert (cost["steps"], cost["crops_per_step"]) == (50_000, 60)
    seconds = 60 / cost["crops_per_second"] + cost["optimizer_seconds"]
    assert cost["days"] == pytest.approx(50_000 * seconds / 86_400)
    assert cost["read_per_second"] > 0
    assert "50,000 steps of 60 crops of 0.5 s" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


class TestFaults:
    """They are named before training."""

    @pytest.mark.parametrize(
        ("content", "error", "message"),
        [
            ("000\n", ValueError, "has no label for '000'"),
            ('000,0,1," "\n', ValueError, "has no label for '000'"),
            ("file,split,labels\n000,test\n", ValueError, "has no label for '000'"),
            ("other,rain\n", FileNotFoundError, "contains none of the 1 files"),
            ("", FileNotFoundError, "lists no files"),
            ("000,/m/none\n", ValueError, "not among the 4 classes to train, such as '/m/none'"),
        ],
    )
    def test_wrong_lists(self, corpus, start, tmp_path, content, error, message):
        (tmp_path / "list.csv").write_text(content)
        options = ("model_name_or_path", start, "test_labels", str(tmp_path / "list.csv"))
        with pytest.raises(error, match=message):
            finetune_audioset(tagging_command(corpus, tmp_path / "run", *options))
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("part", ["train", "test"])
    def test_damaged_clips(self, part, corpus, start, tmp_path):
        shutil.copytree(corpus, tmp_path / "corpus")
        name = "159" if part == "train" else "000"
        (tmp_path / "corpus" / "audio" / f"Y{name}.wav").write_bytes(b"no sound")
        with pytest.raises(ValueError, match=rf"Y{name}\.wav cannot be decoded .* remove it"):
            finetune_audioset(tagging_command(tmp_path / "corpus", tmp_path / "run", "model_name_or_path", start))
        assert not (tmp_path / "run").exists()

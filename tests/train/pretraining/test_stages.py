"""Stages of pre-training: what they leave, how they resume, what they cost, and models that do not fit."""

import json
import re
import shutil
import signal

import numpy as np
import pytest
import soundfile
import torch

from modeling_beats import (
    BeatsFeatureExtractor,
    BeatsForAudioClassification,
    BeatsForTokenizerTraining,
    BeatsModel,
    BeatsRandomProjectionTokenizer,
    BeatsTokenizerModel,
)
from modeling_beats.convert_beats import convert
from tests.modeling_beats.helpers import load_case
from tests.train.common.test_resumable import kill_at, run_until_killed
from tests.train.helpers import run_two_processes
from tests.train.pretraining.helpers import (
    TINY,
    assert_equal_weights,
    pretraining_command,
    record_calls,
    tokenizer_options,
    weights,
)
from train.common.models import override
from train.pretrain_teacher import main as pretrain_teacher
from train.pretraining.cost import duration
from train.pretraining.trainers import PretrainingTrainer


class TestStages:
    def test_first_iteration(self, first_iteration):
        folder, results = first_iteration
        metrics = results["figures"]
        assert {"loss", "masked_accuracy", "codebook_usage", "perplexity", "largest_share"} <= metrics.keys()
        assert metrics["step"] == 6
        projection = BeatsRandomProjectionTokenizer.from_pretrained(folder / "tokenizer")
        assert projection.quantizer.codebook.shape == (16, 8)
        model = BeatsModel.from_pretrained(folder)
        saved = weights(folder)
        assert torch.equal(
            model.encoder.layers[1].feed_forward.fc1.weight, saved["beats.encoder.layers.1.feed_forward.fc1.weight"]
        )
        assert BeatsForAudioClassification.from_pretrained(folder, num_labels=10).config.num_mel_bins == 32

    def test_tokenizer(self, tokenizer):
        folder, results = tokenizer
        assert {"similarity", "commitment_loss", "codebook_usage"} <= results["figures"].keys()
        saved = BeatsTokenizerModel.from_pretrained(folder)
        assert saved.quantizer.initialized
        assert saved.quantizer.cluster_size.sum() > 0

    def test_second_iteration(self, audio, tokenizer, tmp_path):
        options = ("recipe", "demo_pretrain_iter2", "tokenizer_name_or_path", str(tokenizer[0]), "max_steps", "2")
        results = pretrain_teacher(pretraining_command(tmp_path / "run", audio, *options))
        assert results["figures"]["step"] == 2
        assert not (tmp_path / "run" / "tokenizer").exists()

    def test_classifier_as_teacher(self, audio, first_iteration, tmp_path):
        """The estimator learns the classes of a fine-tuned teacher."""
        BeatsForAudioClassification.from_pretrained(first_iteration[0], num_labels=3).save_pretrained(
            tmp_path / "teacher"
        )
        BeatsFeatureExtractor(feature_size=32).save_pretrained(tmp_path / "teacher")
        options = (*tokenizer_options(tmp_path / "teacher"), "max_steps", "1")
        pretrain_teacher(pretraining_command(tmp_path / "run", audio, *options))
        assert BeatsForTokenizerTraining.from_pretrained(tmp_path / "run").estimator.output.out_features == 3

    def test_continues_from_an_encoder(self, audio, first_iteration, tmp_path):
        options = ("model_name_or_path", str(first_iteration[0]), "max_steps", "1", "learning_rate", "0.0")
        pretrain_teacher(pretraining_command(tmp_path / "run", audio, *options))
        assert_equal_weights(tmp_path / "run", first_iteration[0])

    def test_continues_with_another_tokenizer(self, audio, first_iteration, tmp_path):
        """Which has fewer codes: the encoder is kept, and the head is new."""
        config = override(BeatsModel.from_pretrained(first_iteration[0]).config, "codebook_size=5")
        BeatsRandomProjectionTokenizer(config).save_pretrained(tmp_path / "tokenizer")
        options = ("model_name_or_path", str(first_iteration[0]), "max_steps", "1", "learning_rate", "0.0")
        options += ("tokenizer_name_or_path", str(tmp_path / "tokenizer"))
        pretrain_teacher(pretraining_command(tmp_path / "run", audio, *options))
        before, after = weights(first_iteration[0]), weights(tmp_path / "run")
        assert len(after["label_head.weight"]) == 5
        assert all(torch.equal(after[name], value) for name, value in before.items() if name.startswith("beats."))

    def test_continues_from_public_checkpoints(self, shared, audio, tmp_path):
        """The recipe for scenes, from a model and a tokenizer as the original implementation saves them."""
        for name, case in (("encoder", "case_a_public_like"), ("tokenizer", "tokenizer_a")):
            model = convert(load_case(shared, case)[1])
            model.save_pretrained(tmp_path / name)
            BeatsFeatureExtractor(feature_size=model.config.num_mel_bins).save_pretrained(tmp_path / name)
        options = ("recipe", "pretrain_scenes", "model_name_or_path", str(tmp_path / "encoder"), "max_steps", "1")
        options += ("tokenizer_name_or_path", str(tmp_path / "tokenizer"), "learning_rate", "0.0", "bf16", "False")
        options += ("config_overrides", "num_predictor_layers=1")
        options += ("gradient_accumulation_steps", "1", "dataloader_num_workers", "0")
        pretrain_teacher(pretraining_command(tmp_path / "run", audio, *options))
        before, after = weights(tmp_path / "encoder"), weights(tmp_path / "run")
        for name, value in before.items():
            assert torch.equal(after[f"beats.{name}"], value), name
        assert len(after["label_head.weight"]) == convert(load_case(shared, "tokenizer_a")[1]).config.codebook_size


class TestResume:
    @pytest.mark.parametrize("stage", ["model", "tokenizer"])
    def test_killed_run_resumes_to_the_same_weights(
        self, stage, audio, first_iteration, tokenizer, tmp_path, monkeypatch
    ):
        expected, options = first_iteration[0], ()
        if stage == "tokenizer":
            expected = tokenizer[0]
            options = (*tokenizer_options(first_iteration[0]), "max_steps", "4")
        command = pretraining_command(tmp_path / "run", audio, *options)
        with monkeypatch.context() as patch:
            kill_at(patch, PretrainingTrainer, "training_step", 3)
            assert run_until_killed(pretrain_teacher, command) == signal.SIGKILL
        assert run_until_killed(pretrain_teacher, command) == 0
        assert_equal_weights(tmp_path / "run", expected)

    def test_random_projection_is_that_of_the_start(self, audio, tmp_path, monkeypatch):
        """A resumed run takes it from its folder: the seed may draw another one in another version of torch."""
        command = pretraining_command(tmp_path / "run", audio)
        with monkeypatch.context() as patch:
            kill_at(patch, PretrainingTrainer, "training_step", 3)
            assert run_until_killed(pretrain_teacher, command) == signal.SIGKILL
        saved = BeatsRandomProjectionTokenizer.from_pretrained(tmp_path / "run" / "tokenizer")
        other = BeatsRandomProjectionTokenizer(saved.config)
        assert not torch.equal(other.quantizer.projection, saved.quantizer.projection)
        other.save_pretrained(tmp_path / "run" / "tokenizer")
        steps = record_calls(monkeypatch, PretrainingTrainer, "training_step")
        pretrain_teacher(command)
        assert len(steps) == 4  # the third and later ones
        for tensors in (steps[0].owner.target_model.state_dict(), weights(tmp_path / "run" / "tokenizer")):
            assert all(torch.equal(tensors[name], value) for name, value in other.state_dict().items())

    def test_stream(self, stream, tmp_path, monkeypatch):
        monkeypatch.setattr("train.common.sources.datasets.load_dataset", lambda *_, **__: stream)
        options = ("streaming", "True", "gradient_accumulation_steps", "2")
        pretrain_teacher(pretraining_command(tmp_path / "one", "some/stream", *options))
        command = pretraining_command(tmp_path / "two", "some/stream", *options)
        with monkeypatch.context() as patch:
            kill_at(patch, PretrainingTrainer, "training_step", 5)
            assert run_until_killed(pretrain_teacher, command) == signal.SIGKILL
        assert run_until_killed(pretrain_teacher, command) == 0
        assert_equal_weights(tmp_path / "one", tmp_path / "two")

    def test_finished_run_is_left_alone(self, audio, first_iteration, monkeypatch):
        monkeypatch.setattr(PretrainingTrainer, "training_step", None)
        assert pretrain_teacher(pretraining_command(first_iteration[0], audio)) == first_iteration[1]


def test_two_processes_equal_one(audio, first_iteration, tmp_path):
    """Both stages, with crops of unequal length, so that the processes have unequal numbers of patches.

    With plain gradient descent rounding errors stay small, and wrongly scaled gradients show.
    """
    common = ["max_steps", "3", "batch_size", "5", "optim", "sgd", "learning_rate", "0.1", "max_grad_norm", "0"]
    stages = {"model": common, "tokenizer": [*common, *tokenizer_options(first_iteration[0])]}
    for stage, options in stages.items():
        pretrain_teacher(pretraining_command(tmp_path / "one" / stage, audio, *options))
    jobs = [
        json.dumps(pretraining_command(tmp_path / "two" / stage, audio, *options)) for stage, options in stages.items()
    ]
    run_two_processes("-m", "tests.train.pretraining_job", *jobs)
    for stage in stages:
        one, two = weights(tmp_path / "one" / stage), weights(tmp_path / "two" / stage)
        for name, value in one.items():
            torch.testing.assert_close(
                two[name], value, rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
            )


class TestCost:
    @pytest.mark.parametrize(
        ("days", "words"), [(0.5, "12.00 hours"), (2, "2.0 days"), (999.94, "999.9 days"), (45_761.5, "125 years")]
    )
    def test_duration(self, days, words):
        assert duration(days) == words

    def test_full_recipe_needs_no_audio(self, capsys, monkeypatch, tmp_path):
        """The paper's schedule, with a network small enough for tests."""
        options = ["--recipe", "pretrain_iter1", "--dry_run"]
        monkeypatch.chdir(tmp_path)
        cost = pretrain_teacher([*options, "--config_overrides", TINY, "--report_to", "none"])
        report = capsys.readouterr().out
        assert "400,000 steps of 560 crops of 10 s (5,600 s of audio per step" in report
        assert cost["steps"] == 400_000
        seconds = 560 / cost["crops_per_second"] + cost["optimizer_seconds"]
        assert cost["days"] == pytest.approx(400_000 * seconds / 86_400)
        assert f"Cost        {duration(cost['days'])}" in report
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("recipe", "model_class"),
        [
            ("pretrain_tokenizer", BeatsModel),
            ("pretrain_iter2", BeatsTokenizerModel),
            ("pretrain_scenes", BeatsTokenizerModel),
        ],
    )
    def test_later_stages_need_no_models_either(self, recipe, model_class, monkeypatch, tmp_path):
        """Random weights replace the output of earlier stages, without which the run itself refuses to start.

        Nor is the audio loaded that a recipe names.
        """
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("train.common.sources.load_scenes", None)
        targets = []
        monkeypatch.setattr(
            "train.pretraining.stages.print_cost", lambda trainer: targets.append(trainer.target_model)
        )
        options = ["--recipe", recipe, "--config_overrides", TINY, "--report_to", "none"]
        pretrain_teacher([*options, "--dry_run"])
        assert [type(model) for model in targets] == [model_class]
        assert targets[0].config.hidden_size == 32
        soundfile.write(tmp_path / "x.wav", np.zeros(16_000), 16_000)
        with pytest.raises(
            FileNotFoundError, match=r"does not exist: (run the command that creates it first|create it with)"
        ):
            pretrain_teacher([*options, "--dataset", str(tmp_path)])
        assert [path.name for path in tmp_path.iterdir()] == ["x.wav"]

    def test_reading_is_measured_too(self, audio, tmp_path, capsys):
        cost = pretrain_teacher([*pretraining_command(tmp_path / "run", audio), "--dry_run", "True"])
        assert cost["read_per_second"] > 0
        report = capsys.readouterr().out
        needed = int(re.search(r"per worker: --dataloader_num_workers (\d+) keeps up", report).group(1))
        assert needed - 1 < cost["crops_per_second"] / cost["read_per_second"] <= needed
        assert f"{24 * cost['days']:.2f} hours" in report
        assert not (tmp_path / "run").exists()


def test_wrong_models(audio, first_iteration, tokenizer, tmp_path):
    def refuse(error, message, *options):
        with pytest.raises(error, match=message):
            pretrain_teacher(pretraining_command(tmp_path / "run", audio, *options))
        assert not (tmp_path / "run").exists()

    model = str(first_iteration[0])
    refuse(ValueError, "is a BeatsForPreTraining: use a tokenizer", "tokenizer_name_or_path", model)
    options = ("tokenizer_name_or_path", str(tokenizer[0]), "config_overrides", "num_mel_bins=64")
    refuse(ValueError, "has num_mel_bins=32, but the model to train has num_mel_bins=64", *options)
    options = ("model_name_or_path", model, "config_overrides", "hidden_size=64")
    refuse(ValueError, "no weights that fit", *options)
    refuse(ValueError, "num_attention_heads is", "config_overrides", "hidden_size=17")
    refuse(ValueError, "config_overrides is 'hidden=16'", "config_overrides", "hidden=16")
    for folder, fault in (("damaged", "incomplete metadata"), ("unfinished", "no file named model.safetensors")):
        shutil.copytree(model, tmp_path / folder, ignore=shutil.ignore_patterns("checkpoint-*"))
        if folder == "damaged":
            content = (tmp_path / folder / "model.safetensors").read_bytes()
            (tmp_path / folder / "model.safetensors").write_bytes(content[: len(content) // 2])
        else:
            (tmp_path / folder / "model.safetensors").unlink()
        for options in (("model_name_or_path", str(tmp_path / folder)), tokenizer_options(tmp_path / folder)):
            refuse(ValueError, rf"{folder} cannot be loaded \(.*{fault}.*: finish the run", *options)
    options = ("stage", "tokenizer", "teacher_name_or_path", str(first_iteration[0] / "tokenizer"))
    refuse(ValueError, r"tokenizer has no weights that fit \d+ parameters of a BeatsModel", *options)
    torch.save({}, tmp_path / "BEATs.pt")
    for option in ("model_name_or_path", "tokenizer_name_or_path"):
        refuse(
            ValueError, r"BEATs\.pt is a file, not a model folder: .*convert_beats", option, str(tmp_path / "BEATs.pt")
        )
    refuse(FileNotFoundError, "no/such is not a folder", "dataset", "no/such")
    refuse(FileNotFoundError, "model", "tokenizer_name_or_path", str(tmp_path))

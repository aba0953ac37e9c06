"""Recipes of the paper, and arguments that are refused before anything is written."""

import pytest

from tests.train.pretraining.helpers import pretraining_command, tagging_command
from train.common.recipes import FOLDER, load_recipe
from train.finetune_audioset import main as finetune_audioset
from train.pretrain_teacher import main as pretrain_teacher


class TestRecipes:
    def test_pretraining(self):
        for name in ("pretrain_iter1", "pretrain_iter2", "pretrain_tokenizer"):
            recipe = load_recipe(name)
            assert (recipe["warmup_steps"], recipe["lr_scheduler_type"]) == (32_000, "linear")
            assert (recipe["adam_beta1"], recipe["adam_beta2"], recipe["weight_decay"]) == (0.9, 0.98, 0.01)
            seconds = recipe["segment_seconds"] * recipe["batch_size"] * recipe["gradient_accumulation_steps"]
            assert recipe["max_steps"] == 400_000
            assert seconds == (1400 if name == "pretrain_tokenizer" else 5600)
            assert recipe["learning_rate"] == (5e-5 if name == "pretrain_tokenizer" else 5e-4)
        first, tokenizer, second = map(load_recipe, ("pretrain_iter1", "pretrain_tokenizer", "pretrain_iter2"))
        assert tokenizer["teacher_name_or_path"] == first["output_dir"]
        assert second["tokenizer_name_or_path"] == tokenizer["output_dir"]
        assert len(list(FOLDER.glob("*pretrain*.yaml"))) == 7

    def test_audioset(self):
        for name, clips, steps, rate in (("audioset2m", 1000, 50_000, 1e-4), ("audioset20k", 80, 80_000, 3e-5)):
            recipe = load_recipe(name)
            assert recipe["batch_size"] * recipe["gradient_accumulation_steps"] == clips
            assert (recipe["max_steps"], recipe["warmup_steps"]) == (steps, steps // 10)
            assert recipe["learning_rate"] == rate
            assert recipe["model_name_or_path"] == load_recipe("pretrain_iter2")["output_dir"]
            assert recipe.get("balanced", False) == (name == "audioset2m")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("max_steps", "0"), "max_steps is 0"),
        (("segment_seconds", "0.1"), "segment_seconds is 0.1"),
        (("save_total_limit", "1"), "save_total_limit is 1"),
        (("stage", "tokenizer"), "Stage tokenizer needs a teacher"),
        (("teacher_name_or_path", "x"), "teacher_name_or_path has no effect on stage model"),
        (
            ("stage", "tokenizer", "teacher_name_or_path", "x", "tokenizer_name_or_path", "x"),
            "tokenizer_name_or_path has no effect on stage tokenizer",
        ),
        (("config_overrides", "mask_ratio=1.5"), "mask_ratio is 1.5"),
        (("streaming", "True"), "needs no streaming"),
        (("dataset", ""), "There is no audio: set --dataset"),
        (("per_device_eval_batch_size", "4"), "per_device_eval_batch_size has no effect here: leave it out"),
    ],
)
def test_pretraining(audio, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        pretrain_teacher(pretraining_command(tmp_path / "run", audio, *options))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (("test_labels", "none.csv"), FileNotFoundError, "The list of labels none.csv does not exist"),
        (("class_names", "none.csv"), FileNotFoundError, "The list of classes none.csv does not exist"),
        (("dataset", "no/such"), FileNotFoundError, "no/such is not a folder"),
        (("dataset", ""), ValueError, "There is no audio: set --dataset"),
        (("model_name_or_path", "no/such"), FileNotFoundError, "no/such"),
        (("mixup_alpha", "-1"), ValueError, "alpha of Soft Mixup is -1.0"),
        (("spec_augment_size", "2"), ValueError, "size of SpecAugment is 2.0"),
    ],
)
def test_tagging(corpus, start, tmp_path, options, error, message):
    with pytest.raises(error, match=message):
        finetune_audioset(tagging_command(corpus, tmp_path / "run", "model_name_or_path", start, *options))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("option", "value", "advice"),
    [
        ("num_train_epochs", "3", "use max_steps"),
        ("per_device_train_batch_size", "5", "use batch_size"),
        ("data_seed", "1", "use seed"),
        ("save_strategy", "epoch", "use save_steps"),
        ("logging_strategy", "no", "use logging_steps"),
        ("eval_strategy", "steps", "leave it out"),
        ("dataloader_drop_last", "True", "leave it out"),
        ("dataloader_prefetch_factor", "4", "use dataloader_num_workers"),
        ("remove_unused_columns", "False", "leave it out"),
        ("resume_from_checkpoint", "x", "leave it out"),
        ("ignore_data_skip", "True", "leave it out"),
    ],
)
def test_arguments_without_effect(audio, corpus, tmp_path, option, value, advice):
    with pytest.raises(ValueError, match=rf"^{option} has no effect here: {advice}"):
        pretrain_teacher(pretraining_command(tmp_path / "run", audio, option, value))
    with pytest.raises(ValueError, match=rf"^{option} has no effect here: {advice}"):
        finetune_audioset(tagging_command(corpus, tmp_path / "run", option, value, "model_name_or_path", "me/start"))
    assert not (tmp_path / "run").exists()

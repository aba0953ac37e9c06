"""The pretrained models of the default job, which are trained when they are missing."""

import json
from types import SimpleNamespace

import pytest

from dataset_script import demo_sounds as sounds
from modeling_beats import BeatsConfig
from train.common import availability
from train.common.recipes import FOLDER, load_recipe
from train.finetune_teacher import main as finetune_teacher
from train.pretraining import demo


TINY = "num_mel_bins=16,num_hidden_layers=1,hidden_size=32,embedding_size=32,num_attention_heads=2,codebook_size=16"


@pytest.fixture
def quick(tmp_path, monkeypatch):
    """Recipes of two steps, on seventy recordings, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    arguments = demo.recipe_arguments

    def two_steps(types, recipe, dataset, **settings):
        settings |= {"max_steps": 2, "batch_size": 4, "warmup_steps": 0}
        if recipe == "demo_encoder":
            settings["config_overrides"] = f"{TINY},num_conv_pos_embeddings=8,num_conv_pos_embedding_groups=2"
        return arguments(types, recipe, dataset, **settings)

    monkeypatch.setattr(demo, "recipe_arguments", two_steps)
    real = sounds.make_demo_sounds
    monkeypatch.setattr(sounds, "make_demo_sounds", lambda out, seed: real(out, seed, train=60, test=10))
    return [
        "--use_cpu",
        "True",
        "--disable_tqdm",
        "True",
        "--report_to",
        "none",
        "--cache_dir",
        str(tmp_path / "cache"),
    ]


def test_models_of_the_default_job_are_the_outputs_of_their_recipes():
    for path in availability.DEMO_MODELS:
        recipe = load_recipe(path.removeprefix("outputs/"))
        assert recipe["output_dir"] == path and recipe["dataset"] == sounds.DEMO_SOUNDS
    teacher = load_recipe("demo_teacher")["model_name_or_path"]
    assert teacher == "outputs/demo_tagger" and teacher in availability.DEMO_MODELS
    starts = {load_recipe(path.stem).get("model_name_or_path") for path in FOLDER.glob("*.yaml")}
    assert starts & set(availability.DEMO_MODELS) == set(availability.DEMO_MODELS)


def test_a_teacher_trains_what_it_starts_from_once(quick, demo_corpus, tmp_path, caplog):
    caplog.set_level("INFO", "train")
    command = ["--dataset", "demo5", "--data_dir", str(demo_corpus), "--num_train_epochs", "1", *quick]
    finetune_teacher([*command, "--output_dir", "first"])
    trained = [record.args for record in caplog.records if "is trained first" in record.msg]
    assert trained == [("outputs/demo_encoder", "demo_encoder"), ("outputs/demo_tagger", "demo_tagger")]
    results = json.loads((tmp_path / "outputs/demo_tagger/results.json").read_text())
    assert results["arguments"]["model_name_or_path"] == "outputs/demo_encoder"
    config = BeatsConfig.from_pretrained("first")
    assert (config.num_mel_bins, config.hidden_size, config.num_labels) == (16, 32, 10)
    extractor = json.loads((tmp_path / "first/preprocessor_config.json").read_text())
    assert (extractor["mean"], extractor["std"]) == (19.8, 2.46)
    caplog.clear()
    finetune_teacher([*command, "--output_dir", "second"])
    assert "is trained first" not in caplog.text


def test_other_models_are_left_alone(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in ("run_stage", "finetune_tagger"):
        monkeypatch.setattr(demo, name, lambda *arguments: pytest.fail("trained"))
    for path in (None, "outputs/pretrain_iter2", "outputs/other/demo_tagger", "me/demo_tagger"):
        demo.create_demo_model(path, SimpleNamespace(cache_dir=None), SimpleNamespace())
    finished = tmp_path / "outputs/demo_tagger"
    finished.mkdir(parents=True)
    (finished / "results.json").write_text("{}")
    demo.create_demo_model("outputs/demo_tagger", SimpleNamespace(cache_dir=None), SimpleNamespace())

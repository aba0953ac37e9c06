"""The model of ten kinds of real sound that comes with the project."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from transformers import pipeline

import modeling_tfsepnet
from model_cards.space import app
from model_cards.space.examples import write_examples


FOLDER = Path(app.__file__).parents[1] / "esc10"


@pytest.fixture(scope="module")
def held_out(shared):
    """Recordings of the fold that the model was not trained on."""
    return sorted((shared / "real" / "esc10").rglob("3-*.ogg"))


def test_it_is_small_and_its_code_is_the_packages():
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files if not path.is_symlink()) < 1_000_000
    package = Path(modeling_tfsepnet.__file__).parent
    code = [path for path in files if path.suffix == ".py"]
    assert code and all(path.resolve() == package / path.name for path in code)


@pytest.mark.parametrize("folder", [FOLDER, FOLDER / "int8"])
def test_it_knows_recordings_that_it_has_not_heard(folder, held_out):
    """A recording has several seconds, whose logits are averaged: more are right than single seconds."""
    classify = pipeline("audio-classification", model=str(folder))
    right = [classify(str(path))[0]["label"] == path.parent.name for path in held_out]
    assert len(right) == 80
    low, _ = json.loads((FOLDER / "results.json").read_text())["metrics"]["confidence_intervals"]["accuracy"]
    assert sum(right) / len(right) > low


@pytest.mark.parametrize("folder", [FOLDER, FOLDER / "int8"])
def test_it_answers_offline_in_a_clean_process(folder, held_out):
    code = "import sys; from transformers import pipeline\n"
    code += "classify = pipeline('audio-classification', model=sys.argv[1], trust_remote_code=True)\n"
    code += "print(classify(sys.argv[2])[0]['label'])"
    path = next(path for path in held_out if path.parent.name == "rain")
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code, str(folder), str(path)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert result.stdout.split()[-1] == "rain"


def test_the_page_starts_with_it():
    assert list(app.load_models([])) == ["float", "INT8"]


def test_it_knows_the_examples_of_the_page(tmp_path):
    classify = pipeline("audio-classification", model=str(FOLDER))
    for path in (*write_examples(tmp_path), FOLDER.parent / "space" / "rain.ogg"):
        assert classify(str(path))[0]["label"].replace("_", " ") == path.stem

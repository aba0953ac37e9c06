"""The command that adapts a student to recording devices, from the demo corpus to the Hub and back."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
from safetensors.torch import load_file
from transformers import pipeline

from dataset_script import load_scenes, write_logits
from model_cards.device_models import device_models
from model_cards.generator import write_card
from model_cards.push import published_files
from tests.clean_process import run_in_clean_process
from tests.hub_server import hub_environment, hub_server
from tests.model_cards.helpers import make_student
from train.adapt_devices import main as adapt_devices


LOADED = """
from transformers import AutoModelForAudioClassification, pipeline
classifier = pipeline("audio-classification", model="user/scenes", trust_remote_code=True)
own = AutoModelForAudioClassification.from_pretrained("user/scenes", subfolder="devices/a", trust_remote_code=True)
report({
    **{str(device): classifier(WAV, top_k=None, device_id=device) for device in (None, "a", "s4")},
    "sum": own.classifier.weight.sum().item(),
})
"""


@pytest.fixture(scope="module")
def data(demo_corpus, demo_cache):
    return ["--dataset", "demo10", "--data_dir", str(demo_corpus), "--cache_dir", str(demo_cache)]


@pytest.fixture(scope="module")
def logits(tmp_path_factory, demo_corpus, demo_cache):
    filenames = load_scenes("demo10", demo_corpus, cache_dir=demo_cache)["train"]["filename"]
    folder = tmp_path_factory.mktemp("logits") / "random"
    values = np.random.default_rng(0).normal(size=(len(filenames), 10))
    write_logits(folder, filenames, values, teacher="random", revision="0")
    return folder


@pytest.fixture(scope="module")
def adapted(data, logits, tmp_path_factory):
    """The output folder of the command, and its results."""
    folder = tmp_path_factory.mktemp("adapted")
    student = make_student(folder / "student")
    command = ["--model_name_or_path", str(student), "--teachers", str(logits), "--min_clips", "3", *data]
    command += ["--num_train_epochs", "1", "--batch_size", "10", "--learning_rate", "0.01", "--report_to", "none"]
    results = adapt_devices(
        [*command, "--use_cpu", "True", "--disable_tqdm", "True", "--output_dir", str(folder / "out")]
    )
    return folder / "out", results


def test_results_card_and_published_files(adapted):
    output, results = adapted
    assert json.loads((output / "results.json").read_text())["device_models"] == results["device_models"]
    assert list(device_models(output)) == list(results["device_models"]), "all of them should be finished"
    assert results["arguments"]["teachers"] and results["general"]["recipe"] == "s2"
    card = write_card(output).text
    clips, accuracy = results["device_models"]["a"], results["metrics_with_device_models"]["device_wise"]["a"]
    assert f"| device a | {clips} | " in card and f"{100 * accuracy['accuracy']:.1f} %" in card
    assert 'classifier("clip.wav", device_id="a")' in card
    assert "Recipe `s2`" in card, "how the general model was trained"
    assert "--learning_rate" in card or "`learning_rate`" in card, "and how the others were"
    names = set(published_files(output))
    for device in results["device_models"]:
        own = {name for name in names if name.startswith(f"devices/{device}/")}
        assert {Path(name).name for name in own} == {"config.json", "model.safetensors", "preprocessor_config.json"}


@pytest.mark.slow
def test_from_the_hub(adapted, tmp_path):
    output, _ = adapted
    wav = tmp_path / "clip.wav"
    soundfile.write(wav, np.random.default_rng(0).normal(scale=0.1, size=32_000), 32_000, subtype="PCM_24")
    with hub_server() as hub:
        environment = hub_environment(hub, tmp_path / "home")
        command = [sys.executable, "-m", "model_cards.push", str(output), "user/scenes"]
        pushed = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert pushed.returncode == 0, pushed.stderr
        clean = tmp_path / "clean"
        clean.mkdir()
        online = {**hub_environment(hub, clean / "home"), "HF_HUB_OFFLINE": "0", "PATH": ""}
        code = f"WAV = {str(wav)!r}\n{LOADED}"
        online_scores = run_in_clean_process(code, clean, **online)
    general = pipeline("audio-classification", model=str(output))(str(wav), top_k=None)
    own = pipeline("audio-classification", model=str(output / "devices" / "a"))(str(wav), top_k=None)
    assert len({path.stat().st_mode for path in output.glob("*.*") if path.is_file()}) == 1, (
        "readable by the same users"
    )
    weight = load_file(output / "devices" / "a" / "model.safetensors")["classifier.weight"]
    assert own != general
    assert online_scores == {"None": general, "a": own, "s4": general, "sum": weight.sum().item()}

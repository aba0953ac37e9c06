"""From the demo corpus to a model that comes back from the Hub: what `train` leaves is what `model_cards` needs."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from transformers import pipeline

from dataset_script import decode_clip, load_scenes
from tests.clean_process import run_in_clean_process
from tests.hub_server import hub_environment, hub_server
from train.distill import main as distill


NETWORK = "base_channels=8,num_mel_bins=64"
QUICK = ["--use_cpu", "True", "--report_to", "none", "--disable_tqdm", "True", "--num_train_epochs", "1"]

SYSTEMS = ("vanilla", "s1")

PUSH = """
import json, sys
from model_cards.push import push_model
for system, (folder, other) in json.loads(sys.argv[1]).items():
    push_model(folder, f"user/{system}", results=[other])
"""

LOADED = """
import numpy as np
import torch
from transformers import pipeline
classifier = pipeline("audio-classification", model="user/s1", trust_remote_code=True)
clip = np.load(CLIP)
inputs = classifier.feature_extractor(clip, sampling_rate=44_100, return_tensors="pt")
with torch.no_grad():
    report(classifier.model(**inputs).logits.tolist())
"""


@pytest.mark.slow
def test_two_systems_on_two_subsets(tmp_path):
    """Trained by the scripts, pushed with one card each, and the same logits come back in a clean process."""
    for system in SYSTEMS:
        for dataset in ("demo5", "demo10"):
            command = ["--recipe", system, "--dataset", dataset, "--cache_dir", str(tmp_path / "cache"), *QUICK]
            command += ["--config_overrides", NETWORK, "--batch_size", "10"]
            teachers = ["--teachers", str(tmp_path / "vanilla-demo10")] if system == "s1" else []
            distill([*command, *teachers, "--output_dir", str(tmp_path / f"{system}-{dataset}")])

    clip, rate = decode_clip(load_scenes("demo5", cache_dir=tmp_path / "cache")["test"][3]["audio"])
    np.save(tmp_path / "clip.npy", clip)
    classifier = pipeline("audio-classification", model=str(tmp_path / "s1-demo10"))
    inputs = classifier.feature_extractor(clip, sampling_rate=rate, return_tensors="pt")
    with torch.no_grad():
        logits = classifier.model(**inputs).logits.tolist()

    with hub_server() as hub:
        folders = {
            system: [str(tmp_path / f"{system}-{subset}") for subset in ("demo10", "demo5")] for system in SYSTEMS
        }
        environment = hub_environment(hub, tmp_path / "home")
        subprocess.run([sys.executable, "-c", PUSH, json.dumps(folders)], env=environment, check=True)
        files = {system: hub.files("models", f"user/{system}") for system in SYSTEMS}
        environment = {**hub_environment(hub, tmp_path / "clean-home"), "HF_HUB_OFFLINE": "0", "PATH": ""}
        (tmp_path / "clean").mkdir()
        back = run_in_clean_process(
            f"CLIP = {str(tmp_path / 'clip.npy')!r}\n{LOADED}", tmp_path / "clean", **environment
        )
    assert back == logits

    for system, pushed in files.items():
        card = ModelCard(pushed["README.md"].decode())
        stated = {
            (result.dataset_config, result.metric_name[:5]): result.metric_value for result in card.data.eval_results
        }
        for dataset in ("demo5", "demo10"):
            metrics = json.loads((tmp_path / f"{system}-{dataset}" / "results.json").read_text())["metrics"]
            assert stated[dataset, "Macro"] == round(metrics["macro_accuracy"], 4)
        for name, content in pushed.items():
            assert str(tmp_path).encode() not in content, f"{name} of {system} tells where it was made"

import json
import re
import runpy
import shutil
import subprocess
import sys

import datasets
import numpy as np
import pytest
import soundfile
from transformers import pipeline

from modeling_tfsepnet import TFSepNetFeatureExtractor
from tests.train.helpers import REPOSITORY, make_model


EXAMPLES = REPOSITORY / "examples"
ESC10 = REPOSITORY / "model_cards" / "esc10"
RATE = 32_000


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Run an example in this process, with caches of its own, and return what it prints."""

    def run(name, *arguments):
        monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


def make_recording(seed=0, seconds=1.0, rate=RATE, channels=1):
    rng = np.random.default_rng(seed)
    tone = np.sin(2 * np.pi * 300 * (seed + 1) * np.arange(round(seconds * rate)) / rate)
    return 0.1 * tone[:, None] + rng.normal(0, 0.02, (len(tone), channels))


@pytest.fixture
def recordings(tmp_path):
    """Recordings of two classes of one's own."""
    for split, count in (("train", 4), ("test", 1)):
        for seed, label in enumerate(("kettle", "tram")):
            folder = tmp_path / "recordings" / split / label
            folder.mkdir(parents=True)
            for index in range(count):
                soundfile.write(folder / f"{index}.wav", make_recording(seed), RATE)
    return tmp_path / "recordings"


@pytest.fixture
def start(tmp_path):
    """A small student of three other classes."""
    model = make_model(num_mel_bins=64, num_frames=64)
    model.save_pretrained(tmp_path / "start")
    TFSepNetFeatureExtractor(feature_size=64).save_pretrained(tmp_path / "start")
    return tmp_path / "start"


def test_pipeline_and_onnxruntime_agree(run, tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed")
    recording = tmp_path / "recording.flac"
    soundfile.write(recording, make_recording(seconds=2.5, rate=44_100, channels=2), 44_100)
    printed = run("classify.py", recording, "--model", ESC10, "--output_dir", tmp_path / "out")
    assert re.findall(r"pipeline +(\S+) to +(\S+) s", printed) == [
        ("0.00", "1.00"),
        ("1.00", "2.00"),
        ("1.50", "2.50"),
    ]
    assert "onnxruntime  3 windows" in printed
    # Float32 sums in another order; the scores are at most 1.
    assert float(re.search(r"difference of a score: (\S+)", printed)[1]) < 1e-4


def test_javascript_agrees_with_the_pipeline(tmp_path):
    pytest.importorskip("onnx", reason="onnx is not installed")
    if shutil.which("node") is None:
        pytest.skip("Node.js is not installed")
    if not (EXAMPLES / "node_modules" / "onnxruntime-web").is_dir():
        pytest.skip("onnxruntime-web is not installed: npm install --prefix examples")
    from train.deployment.onnx_model import export_onnx

    classify = pipeline("audio-classification", str(ESC10))
    export_onnx(classify.model, tmp_path / "m.onnx", feature_extractor=classify.feature_extractor, waveform=True)
    for subtype, seconds, channels in (("PCM_16", 2.5, 2), ("PCM_24", 0.3, 1), ("FLOAT", 1.01, 1)):
        recording = tmp_path / f"{subtype}.wav"
        soundfile.write(recording, make_recording(3, seconds, channels=channels), RATE, subtype=subtype)
        command = ["node", EXAMPLES / "classify.mjs", tmp_path / "m.onnx", ESC10, recording]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        found = {entry["label"]: entry["score"] for entry in json.loads(done.stdout)}
        expected = {entry["label"]: entry["score"] for entry in classify(str(recording), top_k=None)}
        assert found == pytest.approx(expected, abs=1e-4)  # float32 sums in another order


def test_finetuned_model_distils_into_a_smaller_one(run, recordings, start, tmp_path):
    mine, small = tmp_path / "mine", tmp_path / "small"
    one_epoch = ("--dataset", recordings, "--num_train_epochs", "1")
    printed = run("finetune_own_recordings.py", *one_epoch, "--model", start, "--output_dir", mine)
    assert re.search(r"^accuracy: [01]\.\d{3}$", printed, re.MULTILINE)
    assert re.search(r"\.wav: (kettle|tram) 0\.\d{3}$", printed, re.MULTILINE)

    printed = run("distill_in_a_few_lines.py", *one_epoch, "--teacher", mine, "--output_dir", small)
    assert re.search(r"^macro accuracy: [01]\.\d{3}$", printed, re.MULTILINE)
    classify = pipeline("audio-classification", str(small))
    assert set(classify.model.config.id2label.values()) == {"kettle", "tram"}
    assert classify.model.num_parameters() < 50_000

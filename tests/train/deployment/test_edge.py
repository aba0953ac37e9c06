"""What is exported for devices is complete: its tables alone reproduce the model's features and golden vectors."""

import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification

from model_cards.complexity import layer_activations, peak_activations
from model_cards.students import STUDENTS
from modeling_tfsepnet import TFSepNetConfig
from tests.train.helpers import REPOSITORY


onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from train.deployment import edge  # noqa: E402
from train.deployment.edge import export_edge  # noqa: E402
from train.deployment.edge_tables import live_values  # noqa: E402
from train.deployment.onnx_model import export_onnx  # noqa: E402


SMALL = {"tfsepnet": {"base_channels": 8, "num_mel_bins": 64}, "cpmobile": {"num_mel_bins": 64}}
ESC10 = REPOSITORY / "model_cards" / "esc10"
RAIN = REPOSITORY / "model_cards" / "space" / "rain.ogg"


def make_student(kind: str):
    torch.manual_seed(0)
    student = STUDENTS[kind]
    model = student.model(student.config(num_labels=3, **SMALL[kind])).eval()
    return model, student.feature_extractor(feature_size=64)


@pytest.fixture(params=list(SMALL))
def exported(request, tmp_path, monkeypatch):
    """Folder of a small student, without the slow conversion to LiteRT."""
    monkeypatch.setattr(edge, "litert_obstacle", lambda int8: "not written: this is a test")
    export_edge(*make_student(request.param), tmp_path / request.param, [str(RAIN)])
    return tmp_path / request.param


def front_end(waveform: np.ndarray, settings: dict, tables) -> np.ndarray:
    """The steps of the README, in NumPy and float64."""
    y = waveform / 32768.0
    if settings["preemphasis"] is not None:
        y = y[1:] - settings["preemphasis"] * y[:-1]
    y = np.pad(y, settings["win_length"] // 2, mode="reflect")
    starts = settings["hop_length"] * np.arange(settings["frames"])
    frames = np.stack([y[start : start + settings["win_length"]] for start in starts]) * tables["window"]
    power = np.abs(np.fft.rfft(frames, settings["n_fft"])) ** 2
    energies, position = [], 0
    for first, count in zip(tables["mel_first"], tables["mel_count"], strict=True):
        energies.append(power[:, first : first + count] @ tables["mel_weights"][position : position + count])
        position += count
    assert position == len(tables["mel_weights"])
    return (np.log(np.stack(energies) + settings["mel_floor"]) - settings["mean"]) / settings["std"]


def test_tables_alone_reproduce_the_golden_features(exported):
    content = json.loads((exported / "edge.json").read_text())
    golden, tables = np.load(exported / "golden.npz"), np.load(exported / "front_end.npz")
    assert content["golden"]["vectors"] == ["noise", "sweep", "silence", "rain.ogg"]
    assert golden["waveform"].dtype == np.int16 and golden["waveform"].shape == (4, 32_000)
    for name, waveform, log_mel in zip(
        content["golden"]["vectors"], golden["waveform"], golden["log_mel"], strict=True
    ):
        own = front_end(waveform, content["front_end"], tables)
        # Measured: 5e-6, and 3e-4 beside the tone of the sweep; the Fourier transform of the model is in float32.
        atol = content["golden"]["log_mel_tolerance"] if name == "sweep" else 1e-4
        np.testing.assert_allclose(own[None], log_mel, atol=atol, rtol=0)


def test_c_headers_reproduce_them_too(exported, tmp_path):
    compiler = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)
    if compiler is None:
        pytest.skip("there is no C compiler")
    program = tmp_path / "front_end"
    source = Path(__file__).with_name("front_end.c")
    warnings = ["-std=c99", "-Wall", "-Wno-unused-const-variable", "-Wno-unused-variable"]
    subprocess.run([compiler, "-O2", *warnings, f"-I{exported}", source, "-o", program, "-lm"], check=True)
    printed = subprocess.run([program], capture_output=True, text=True, check=True).stdout
    log_mel = np.load(exported / "golden.npz")["log_mel"][0, 0]
    np.testing.assert_allclose(np.fromstring(printed, sep="\n").reshape(log_mel.T.shape).T, log_mel, atol=1e-4, rtol=0)


def test_networks_have_a_fixed_shape_and_the_golden_logits(exported):
    content, golden = json.loads((exported / "edge.json").read_text()), np.load(exported / "golden.npz")
    inputs = {"network.onnx": golden["log_mel"], "network_waveform.onnx": golden["waveform"] / np.float32(32768)}
    shapes = {"network.onnx": "log_mel", "network_waveform.onnx": "waveform"}
    assert content["largest_differences_of_logits"].keys() == inputs.keys()
    for name, values in inputs.items():
        session = onnxruntime.InferenceSession(str(exported / name), providers=["CPUExecutionProvider"])
        (given,), (output,) = session.get_inputs(), session.get_outputs()
        assert given.shape == content["shapes"][shapes[name]] and output.shape == [1, 3]
        for row, logits in zip(values, golden["logits"], strict=True):
            found = session.run(None, {given.name: row[None]})[0][0]
            np.testing.assert_allclose(found, logits, atol=content["golden"]["logits_tolerance"], rtol=0)
        with pytest.raises(Exception, match="dimension"):
            session.run(None, {given.name: values[:2]})


@pytest.mark.parametrize("folder", [ESC10, ESC10 / "int8"])
def test_model_of_real_sounds(folder, tmp_path, monkeypatch):
    """Its golden logits are those of transformers, and its INT8 weights the stored integers."""
    monkeypatch.setattr(edge, "litert_obstacle", lambda int8: "not written: this is a test")
    model = AutoModelForAudioClassification.from_pretrained(folder)
    extractor = AutoFeatureExtractor.from_pretrained(folder)
    content = export_edge(model.eval(), extractor, tmp_path, [str(RAIN)])
    golden, weights = np.load(tmp_path / "golden.npz"), np.load(tmp_path / "weights.npz")
    inputs = extractor(golden["waveform"][-1], sampling_rate=32_000, return_tensors="pt")
    with torch.no_grad():
        logits = model(**inputs).logits
    torch.testing.assert_close(torch.from_numpy(golden["logits"][-1:]), logits, atol=1e-4, rtol=0)
    assert content["labels"][int(golden["logits"][-1].argmax())] == "rain"

    assert sum(array.size for name, array in weights.items() if name.endswith((".weight", ".bias"))) == 124_138
    layer = content["layers"][1]
    assert (layer["name"], layer["groups"], layer["stride"]) == ("tfsepnet.stem.1", 32, [2, 2])
    if folder == ESC10:
        assert max(content["largest_differences_of_logits"].values()) < content["golden"]["logits_tolerance"]
        return
    assert content["number_format"] == "INT8" and weights["tfsepnet.stem.1.weight"].dtype == np.int8
    stored = model.state_dict()
    assert all(np.array_equal(array, stored[name].numpy()) for name, array in weights.items())


@pytest.mark.parametrize("config", [{}, {"base_channels": 8, "num_mel_bins": 64}])
def test_memory_has_a_closed_form(config, tmp_path):
    """In the residual norm of the stem, `x`, `x * x`, the mean of each band and channel, and that of each band."""
    config = TFSepNetConfig(**config)
    model = STUDENTS["tfsepnet"].model(config).eval()
    width, bands, frames = config.base_channels, config.num_mel_bins, config.num_frames
    squares = 2 * width * (bands // 4) * (frames // 4)
    expected = 2 * squares + 2 * width * (bands // 4) + bands // 4
    assert live_values(export_onnx(model, tmp_path / "network.onnx", clips=1)) == ("AveragePool_15", expected)
    layers = layer_activations(config)
    assert peak_activations(config) == layers["tfsepnet.stem.1.convolution"] == 2 * squares


@pytest.mark.parametrize("kind", list(SMALL))
def test_litert_computes_the_same(kind, tmp_path):
    """In a process of its own, as LiteRT Torch changes torch for all that runs after it."""
    if importlib.util.find_spec("litert_torch") is None:
        pytest.skip("LiteRT Torch is not installed: make test-edge")
    for part in make_student(kind):
        part.save_pretrained(tmp_path / "student")
    command = [sys.executable, "-m", "train.edge_export", "--model_name_or_path", tmp_path / "student"]
    subprocess.run([*command, "--output_dir", tmp_path / "edge"], cwd=REPOSITORY, check=True)
    content = json.loads((tmp_path / "edge" / "edge.json").read_text())
    assert content["network.tflite"] == "written" and (tmp_path / "edge" / "network.tflite").stat().st_size > 10_000
    assert content["largest_differences_of_logits"]["network.tflite"] < content["golden"]["logits_tolerance"]


def test_missing_package_is_named(monkeypatch):
    monkeypatch.setattr(edge.importlib.util, "find_spec", lambda name: None)
    assert edge.litert_obstacle(int8=False).endswith("LiteRT Torch is missing: pip install -e '.[edge]'")
    assert "INT8" in edge.litert_obstacle(int8=True)

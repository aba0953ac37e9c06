"""ONNX files give what torch gives, and hold the integers."""

import numpy as np
import pytest
import torch

from train.calibration import fold
from train.quantization import agreement, run


onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

from train.onnx_export import as_float, export_onnx  # noqa: E402


def logits(path, windows: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"input_values": windows.unsqueeze(1).numpy()})[0])


def test_float_file(small, windows, tmp_path):
    exported = export_onnx(small, tmp_path / "float.onnx")
    torch.testing.assert_close(logits(tmp_path / "float.onnx", windows), run(fold(small), windows), rtol=0, atol=1e-4)
    assert {entry.key for entry in exported.metadata_props} >= {"form", "labels", "input"}


def test_integer_weights_give_the_floats_they_stand_for(quantized, windows, tmp_path):
    model, _, _ = quantized
    exported = export_onnx(model, tmp_path / "weights.onnx", form="weights")
    int8 = {name: module for name, module in model.named_modules() if type(module).__name__ == "TFSepNetInt8Conv"}
    expected = run(as_float(model, int8), windows)
    torch.testing.assert_close(logits(tmp_path / "weights.onnx", windows), expected, rtol=0, atol=1e-4)
    integers = {tensor.name: tensor for tensor in exported.graph.initializer if tensor.name.endswith(".integers")}
    assert len(integers) == len(int8) == 43
    for name, layer in int8.items():
        stored = onnx.numpy_helper.to_array(integers[f"model.{name}.weight.integers"])
        assert np.array_equal(stored.astype(int) - 128, layer.weight.numpy())


def test_rounded_activations_do_not_saturate(quantized, windows, tmp_path):
    """Values at a tie may round either way, so logits agree to the noise of rounding (15 dB if a kernel saturates)."""
    model, _, _ = quantized
    export_onnx(model, tmp_path / "qdq.onnx")
    assert agreement(run(model, windows), logits(tmp_path / "qdq.onnx", windows))["sqnr_db"] > 30

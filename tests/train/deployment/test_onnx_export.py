"""ONNX files compute what torch computes, contain the integers, and describe themselves."""

import json

import numpy as np
import pytest
import soundfile
import soxr
import torch
from transformers import ASTConfig, ASTForAudioClassification

from dataset_script import SCENES
from modeling_tfsepnet import (
    TFSepNetConfig,
    TFSepNetFeatureExtractor,
    TFSepNetForAudioClassification,
    TFSepNetInt8Conv,
)
from modeling_tfsepnet.convert_tfsepnet import convert_state_dict, load_checkpoint
from modeling_tfsepnet.quantization_tfsepnet import replace_convolutions
from train.deployment.comparison import agreement, window_logits
from train.deployment.quantizer import assemble, rounded_integers
from train.deployment.rounding import FoldedConv, folded_convolutions, round_weights


onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from onnx import helper, numpy_helper  # noqa: E402

from train.deployment.onnx_graph import GraphBuilder, add_front_end  # noqa: E402
from train.deployment.onnx_model import OPSET, export_onnx  # noqa: E402


SMALL = {"base_channels": 16, "num_mel_bins": 64, "num_frames": 32}
EXTRACTOR = TFSepNetFeatureExtractor(feature_size=64, hop_length=1000)
"""Whose windows fit the small network."""


def evaluate(path, values: torch.Tensor, **options: str) -> torch.Tensor:
    settings = onnxruntime.SessionOptions()
    for name, value in options.items():
        settings.add_session_config_entry(f"session.{name}", value)
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return torch.from_numpy(session.run(None, {given.name: values.numpy()})[0])


def logits(path, windows: torch.Tensor, **options: str) -> torch.Tensor:
    return evaluate(path, windows.unsqueeze(1), **options)


def integers(exported, kind: str) -> np.ndarray:
    """All integers of a kind, sorted, as the order of channels is the graph's business."""
    return np.sort(
        np.concatenate(
            [
                numpy_helper.to_array(tensor).ravel().astype(int)
                for tensor in exported.graph.initializer
                if tensor.name.endswith(kind)
            ]
        )
    )


def test_float_file(small, windows, tmp_path):
    exported = export_onnx(small, tmp_path / "float.onnx")
    torch.testing.assert_close(
        logits(tmp_path / "float.onnx", windows), window_logits(small, windows), rtol=0, atol=1e-4
    )
    metadata = {entry.key: entry.value for entry in exported.metadata_props}
    assert json.loads(metadata["labels"]) == list(reversed(SCENES))
    assert metadata["form"] == "float"
    assert metadata["input"] == "log-mel, float32, (clips, 1, 64 mel bands, 32 frames)"


@pytest.mark.parametrize(
    "options",
    [
        {"base_channels": 8},
        {"depth": 16, "kernel_size": 5},
        {"num_labels": 3},
        {"residual_norm_scale": -0.5},
        {"num_mel_bins": 61, "num_frames": 31},
    ],
)
def test_other_networks(windows, tmp_path, options):
    torch.manual_seed(0)
    config = TFSepNetConfig(**{**SMALL, **options})
    model = TFSepNetForAudioClassification(config)
    windows = windows[:, : config.num_mel_bins, : config.num_frames]
    with torch.no_grad():
        model.train()(windows.unsqueeze(1))
    export_onnx(model, tmp_path / "float.onnx")
    expected = window_logits(model.eval(), windows)
    torch.testing.assert_close(logits(tmp_path / "float.onnx", windows), expected, rtol=0, atol=1e-4)


def test_silence_has_no_variance_below_zero(small, tmp_path):
    export_onnx(small, tmp_path / "float.onnx")
    silence = torch.full((2, 64, 32), -1.4025851)
    torch.testing.assert_close(
        logits(tmp_path / "float.onnx", silence), window_logits(small, silence), rtol=0, atol=1e-3
    )


def test_integer_weights_give_the_floats_they_stand_for(int8, windows, tmp_path):
    exported = export_onnx(int8, tmp_path / "weights.onnx", form="weights")
    layers = [module for module in int8.modules() if isinstance(module, TFSepNetInt8Conv)]
    assert np.array_equal(integers(exported, ".weight"), np.sort(np.concatenate([m.weight.flatten() for m in layers])))
    assert np.array_equal(integers(exported, ".bias"), np.sort(np.concatenate([m.bias for m in layers])))
    floats = window_logits(fold_of(int8), windows)
    torch.testing.assert_close(logits(tmp_path / "weights.onnx", windows), floats, rtol=0, atol=1e-4)


@torch.no_grad()
def fold_of(model):
    """The float network that an INT8 model's integers stand for; it rounds no activations."""
    folded = TFSepNetForAudioClassification(TFSepNetConfig(**SMALL)).eval()
    replace_convolutions(folded, FoldedConv)
    for name, layer in folded_convolutions(folded).items():
        source = model.get_submodule(name)
        layer.weight.copy_(source.weight * source.weight_scale.detach().view(-1, 1, 1, 1))
        layer.bias.copy_(source.bias * source.bias_scale)
        layer.smoothing = source.smoothing
    return folded


@pytest.mark.parametrize("options", [{}, {"disable_quant_qdq": "1"}])
def test_rounded_activations_do_not_saturate(int8, windows, tmp_path, options):
    """Values at a tie may round either way, so logits agree to the noise of rounding (15 dB if a kernel saturates)."""
    exported = export_onnx(int8, tmp_path / "qdq.onnx")
    assert agreement(window_logits(int8, windows), logits(tmp_path / "qdq.onnx", windows, **options))["sqnr_db"] > 30
    layers = [module for module in int8.modules() if isinstance(module, TFSepNetInt8Conv)]
    stored = np.sort(np.concatenate([module.weight.flatten() for module in layers]).astype(int))
    assert np.array_equal(integers(exported, ".weight") - 128, stored)
    (grid,) = (entry.value for entry in exported.metadata_props if entry.key == "input_quantization")
    stem = int8.tfsepnet.stem[0]
    assert json.loads(grid)["scale"] == float(stem.input_scale)
    assert json.loads(grid)["zero_point"] == int(stem.input_zero_point)


def test_16_bit_activations(prepared, windows, tmp_path):
    """Rounding to 16 bits hides what the order of sums changes."""
    wide = round_weights(prepared[0], windows, activation_bits=16)
    model = assemble(wide, rounded_integers(wide))
    exported = export_onnx(model, tmp_path / "qdq.onnx")
    result = agreement(window_logits(model, windows), logits(tmp_path / "qdq.onnx", windows))
    assert result["sqnr_db"] > 60
    zero_points = {t.data_type for t in exported.graph.initializer if t.name.endswith("input_zero_point")}
    assert zero_points == {onnx.TensorProto.INT16}
    (grid,) = (entry.value for entry in exported.metadata_props if entry.key == "input_quantization")
    assert json.loads(grid) == {"dtype": "int16", "scale": float(model.tfsepnet.stem[0].input_scale), "zero_point": 0}


@pytest.mark.parametrize(
    "extractor",
    [TFSepNetFeatureExtractor(), EXTRACTOR, TFSepNetFeatureExtractor(n_fft=2048, win_length=2048, hop_length=400)],
    ids=["default", "small", "other transform"],
)
def test_front_end(extractor, tmp_path):
    graph = GraphBuilder()
    output = add_front_end(graph, extractor, "waveform")
    values = {
        name: helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("waveform", ["clips", 32_000]), (output, None))
    }
    model = helper.make_model(
        helper.make_graph(graph.nodes, "front_end", [values["waveform"]], [values[output]], graph.constants),
        opset_imports=[helper.make_opsetid("", OPSET)],
    )
    onnx.save(model, tmp_path / "front_end.onnx")
    generator = torch.Generator().manual_seed(0)
    time = torch.arange(32_000) / 32_000
    waveform = torch.stack(
        [
            0.1 * torch.randn(32_000, generator=generator),
            0.5 * torch.sin(2 * torch.pi * 3000 * time),
            torch.zeros(32_000),
            torch.where(torch.arange(32_000) == 31_999, 1.0, 0.0),
        ]
    )
    got = evaluate(tmp_path / "front_end.onnx", waveform)
    torch.testing.assert_close(got.transpose(2, 3), extractor.features(waveform), rtol=0, atol=1e-3)


def test_from_waveforms(int8, small, tmp_path):
    waveform = 0.1 * torch.randn(3, 32_000, generator=torch.Generator().manual_seed(0))
    windows = EXTRACTOR.log_mel(waveform)
    exported = export_onnx(small, tmp_path / "float.onnx", feature_extractor=EXTRACTOR, waveform=True)
    torch.testing.assert_close(
        evaluate(tmp_path / "float.onnx", waveform), window_logits(small, windows), rtol=0, atol=1e-3
    )
    metadata = {entry.key: entry.value for entry in exported.metadata_props}
    assert metadata["sampling_rate"] == "32000"
    assert json.loads(metadata["front_end"])["hop_length"] == 1000
    assert metadata["input"] == "waveform, float32, (clips, 32000 samples), mono, full scale [-1, 1]"
    export_onnx(int8, tmp_path / "qdq.onnx", feature_extractor=EXTRACTOR, waveform=True)
    assert agreement(window_logits(int8, windows), evaluate(tmp_path / "qdq.onnx", waveform))["sqnr_db"] > 25


def test_the_trained_network_on_real_clips(shared, tmp_path):
    real = shared / "real"
    model = convert_state_dict(load_checkpoint(real / "tfsepnet64_trained.safetensors")).eval()
    extractor = TFSepNetFeatureExtractor()
    clips = []
    for path in sorted((real / "esc10").glob("*/1-*.ogg"))[::10]:
        audio, rate = soundfile.read(path, dtype="float32", frames=44_100)
        clips.append(torch.from_numpy(soxr.resample(audio, rate, 32_000, quality="HQ")[:32_000]))
    waveform = torch.stack(clips)
    export_onnx(model, tmp_path / "float.onnx", feature_extractor=extractor, waveform=True)
    expected = window_logits(model, extractor.log_mel(waveform))
    torch.testing.assert_close(evaluate(tmp_path / "float.onnx", waveform), expected, rtol=0, atol=1e-3)


def test_a_file_is_written_whole_or_not_at_all(small, tmp_path, monkeypatch):
    (tmp_path / "x.onnx").write_text("the one before")

    def save(exported, path):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(onnx, "save", save)
    with pytest.raises(OSError, match="No space"):
        export_onnx(small, tmp_path / "x.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["x.onnx"]
    assert (tmp_path / "x.onnx").read_text() == "the one before"


def test_refuses_what_it_cannot_export(small, tmp_path):
    other = ASTForAudioClassification(ASTConfig(num_hidden_layers=1, hidden_size=12))
    with pytest.raises(ValueError, match="is not a TF-SepNet"):
        export_onnx(other, tmp_path / "x.onnx")
    with pytest.raises(ValueError, match="pass feature_extractor"):
        export_onnx(small, tmp_path / "x.onnx", waveform=True)
    odd = TFSepNetFeatureExtractor(feature_size=64, hop_length=1000, win_length=3000)
    with pytest.raises(ValueError, match="multiples of 128 and 64"):
        export_onnx(small, tmp_path / "x.onnx", feature_extractor=odd, waveform=True)
    with pytest.raises(ValueError, match="64 bands and 64 frames"):
        fitting_bands = TFSepNetFeatureExtractor(feature_size=64)
        export_onnx(small, tmp_path / "x.onnx", feature_extractor=fitting_bands, waveform=True)
    assert not (tmp_path / "x.onnx").exists()

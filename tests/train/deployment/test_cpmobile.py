"""INT8 and ONNX forms of CP-Mobile, the second student."""

import copy
import json

import numpy as np
import pytest
import torch
from transformers import AutoModelForAudioClassification

from dataset_script import SCENES
from dataset_script.errors import InputError
from model_cards.complexity import measure_model
from modeling_cpmobile import (
    CPMobileConfig,
    CPMobileFeatureExtractor,
    CPMobileForAudioClassification,
    CPMobileInt8Conv,
)
from modeling_tfsepnet import TFSepNetFeatureExtractor
from tests.clean_process import run_in_clean_process
from train.deployment.comparison import agreement, layer_sqnr, window_logits
from train.deployment.finetuning import finetune
from train.deployment.quantizer import INCConfig, INCQuantizer, assemble, new_int8_network, rounded_integers
from train.deployment.rounding import equalize, fold, folded_convolutions, round_weights


pytestmark = pytest.mark.processor


def float_model(**config):
    torch.manual_seed(0)
    settings = {"base_channels": 8, "num_mel_bins": 64, "num_frames": 33, "id2label": dict(enumerate(SCENES))}
    model = CPMobileForAudioClassification(CPMobileConfig(**settings | config)).train()
    with torch.no_grad():
        for module in model.modules():
            if hasattr(module, "gamma"):
                module.gamma.fill_(0.5)
        for _ in range(20):
            model(2.5 * torch.randn(8, 1, 64, 33) - 4)
    return model.eval()


@pytest.fixture(scope="module")
def small():
    return float_model()


@pytest.fixture(scope="module")
def windows():
    return 2.5 * torch.randn(48, 64, 33, generator=torch.Generator().manual_seed(1)) - 4


@pytest.fixture(scope="module")
def prepared(small, windows):
    folded = fold(small)
    equalize(folded, windows)
    return folded, round_weights(folded, windows)


@pytest.fixture(scope="module")
def int8(prepared):
    _, rounded = prepared
    return assemble(rounded, rounded_integers(rounded))


@pytest.fixture(scope="module")
def quantized(small, windows, tmp_path_factory):
    """An INT8 model and its folder, with the activation ranges of Neural Compressor."""
    pytest.importorskip(
        "neural_compressor.torch.quantization", reason="needs neural-compressor[pt]", exc_type=ImportError
    )
    folder = tmp_path_factory.mktemp("int8") / "model"
    labels = window_logits(small, windows).argmax(1).numpy()
    quantizer = INCQuantizer(copy.deepcopy(small), CPMobileFeatureExtractor(feature_size=64, hop_length=1000))
    dataset = {"input_values": windows.unsqueeze(1), "labels": labels}
    return quantizer.quantize(INCConfig(tolerable_loss=0.3), dataset, folder), folder


class TestRounding:
    def test_folding_and_equalization_keep_the_logits(self, small, prepared, windows):
        expected = window_logits(small, windows)
        for network in (fold(small), prepared[0]):
            assert len(folded_convolutions(network)) == 21
            torch.testing.assert_close(window_logits(network, windows), expected, atol=1e-4, rtol=1e-4)

    def test_equalization_balances_the_inputs_of_projections(self, small, prepared, windows):
        """The largest input of each channel is as large as its largest weight."""
        folded = prepared[0]
        layer = folded.get_submodule("cpmobile.stages.0.0.projection")
        inputs = []
        hook = layer.register_forward_pre_hook(lambda module, values: inputs.append(values[0]))
        window_logits(folded, windows)
        hook.remove()
        largest = torch.cat(inputs).amax((0, 2, 3))
        weights = layer.weight.abs().amax((0, 2, 3))
        used = largest > 1e-2 * largest.max()
        # Ranges are measured on evenly spaced positions, which may miss the largest value.
        torch.testing.assert_close(largest[used] / weights[used], torch.ones(int(used.sum())), atol=0.5, rtol=0)

    def test_int8_is_close_to_float(self, prepared, int8, windows):
        result = agreement(window_logits(prepared[0], windows), window_logits(int8, windows))
        assert result["sqnr_db"] > 20
        decibels = layer_sqnr(prepared[0], int8, windows[:8])
        assert list(decibels) == list(folded_convolutions(prepared[0])) and min(decibels.values()) > 20

    def test_fine_tuning_keeps_the_grids(self, prepared, windows):
        folded, rounded = prepared[0], copy.deepcopy(prepared[1])
        before = agreement(window_logits(folded, windows), window_logits(rounded, windows))["sqnr_db"]
        finetune(rounded, folded, windows.split(8), 2)
        after = agreement(window_logits(folded, windows), window_logits(rounded, windows))["sqnr_db"]
        assert after > before - 3
        for layer in folded_convolutions(rounded).values():
            steps = layer.weight / layer.weight_scale.view(-1, 1, 1, 1)
            torch.testing.assert_close(steps, steps.round(), atol=1e-3, rtol=0)

    def test_size_and_cost_of_the_full_network(self):
        complexity = measure_model(new_int8_network(CPMobileConfig()))
        # 58,440 weights of one byte and 1,354 biases of two
        assert complexity.parameter_bytes == 58_440 + 2 * 1_354
        assert (complexity.parameters, complexity.macs) == (61_148, 29_419_156)


class TestQuantizer:
    def test_reloads_as_it_was(self, quantized, small, windows):
        model, folder = quantized
        loaded = AutoModelForAudioClassification.from_pretrained(folder)
        assert sum(isinstance(module, CPMobileInt8Conv) for module in loaded.modules()) == 21
        expected = window_logits(model, windows)
        torch.testing.assert_close(window_logits(loaded, windows), expected, atol=1e-5, rtol=0)
        assert agreement(window_logits(small, windows), expected)["sqnr_db"] > 15
        assert (
            json.loads((folder / "config.json").read_text())["quantization_config"]["quant_method"] == "cpmobile_int8"
        )

    def test_runs_in_a_clean_process(self, quantized, windows, tmp_path):
        model, folder = quantized
        torch.save(windows[:4].unsqueeze(1), tmp_path / "inputs.pt")
        code = f"""
import torch
from transformers import AutoModelForAudioClassification, pipeline

model = AutoModelForAudioClassification.from_pretrained({str(folder)!r}, trust_remote_code=True)
answer = pipeline("audio-classification", model={str(folder)!r}, trust_remote_code=True)(torch.zeros(32000).numpy())
report([model(torch.load("inputs.pt")).logits.tolist(), len(answer)])
"""
        logits, answers = run_in_clean_process(code, tmp_path, blocked=("neural_compressor", "torchaudio"))
        torch.testing.assert_close(torch.tensor(logits), window_logits(model, windows[:4]), atol=1e-5, rtol=0)
        assert answers == 10

    def test_refuses_the_front_end_of_another_student(self, small):
        with pytest.raises(InputError, match="TFSepNetFeatureExtractor is not a CPMobileFeatureExtractor"):
            INCQuantizer(small, TFSepNetFeatureExtractor())


class TestONNX:
    @pytest.fixture(autouse=True)
    def packages(self):
        self.onnx = pytest.importorskip("onnx")
        self.runtime = pytest.importorskip("onnxruntime")

    def evaluate(self, path, values):
        session = self.runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (given,) = session.get_inputs()
        return torch.from_numpy(session.run(None, {given.name: values.numpy()})[0])

    def export(self, model, path, *arguments):
        from train.deployment.onnx_model import export_onnx

        return export_onnx(model, path, *arguments)

    @pytest.mark.parametrize(
        "settings",
        [{}, {"global_response_norm": True, "strides": [[1, 1], [2, 2], [1, 1], [2, 1], [1, 2], [1, 1]]}],
        ids=["2024", "2023"],
    )
    def test_float_file(self, windows, tmp_path, settings):
        model = float_model(**settings)
        exported = self.export(model, tmp_path / "float.onnx")
        expected = window_logits(model, windows)
        logits = self.evaluate(tmp_path / "float.onnx", windows.unsqueeze(1))
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)
        metadata = {entry.key: entry.value for entry in exported.metadata_props}
        assert json.loads(metadata["labels"]) == list(SCENES)

    @pytest.mark.parametrize("form", ["qdq", "weights"])
    def test_int8_file(self, int8, prepared, windows, tmp_path, form):
        self.export(int8, tmp_path / "int8.onnx", form)
        logits = self.evaluate(tmp_path / "int8.onnx", windows.unsqueeze(1))
        expected = window_logits(int8 if form == "qdq" else prepared[0], windows)
        assert agreement(expected, logits)["sqnr_db"] > 20

    def test_from_waveforms(self, small, tmp_path):
        extractor = CPMobileFeatureExtractor(feature_size=64, hop_length=1000)
        self.export(small, tmp_path / "waveform.onnx", "qdq", extractor, True)
        noise = np.random.default_rng(0).normal(scale=0.1, size=(3, 32_000))
        tone = np.sin(2 * np.pi * 440 * np.arange(32_000) / 32_000)[None]
        waveform = torch.tensor(np.concatenate([noise, tone, np.zeros((1, 32_000))]), dtype=torch.float32)
        expected = window_logits(small, extractor.log_mel(waveform))
        torch.testing.assert_close(self.evaluate(tmp_path / "waveform.onnx", waveform), expected, atol=1e-2, rtol=0)

    def test_front_end_of_the_baseline(self, tmp_path):
        from train.deployment.onnx_graph import GraphBuilder, add_front_end

        graph = GraphBuilder()
        name = add_front_end(graph, CPMobileFeatureExtractor(), "waveform")
        helper, kind = self.onnx.helper, self.onnx.TensorProto.FLOAT
        content = helper.make_graph(
            graph.nodes,
            "front end",
            [helper.make_tensor_value_info("waveform", kind, ["clips", 32_000])],
            [helper.make_tensor_value_info(name, kind, ["clips", 1, 65, 256])],
            graph.constants,
        )
        model = helper.make_model(content, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
        self.onnx.save(model, tmp_path / "front_end.onnx")
        waveform = torch.tensor(np.random.default_rng(0).normal(scale=0.1, size=(2, 32_000)), dtype=torch.float32)
        log_mel = self.evaluate(tmp_path / "front_end.onnx", waveform).squeeze(1).transpose(1, 2)
        torch.testing.assert_close(log_mel, CPMobileFeatureExtractor().log_mel(waveform), atol=1e-3, rtol=0)

"""A small TF-SepNet and its INT8 forms, created once for all tests of this folder."""

import copy

import pytest
import torch

from dataset_script import SCENES
from modeling_tfsepnet import TFSepNetConfig, TFSepNetFeatureExtractor, TFSepNetForAudioClassification
from train.deployment import quantizer as quantization
from train.deployment.comparison import accuracy, window_logits
from train.deployment.quantizer import INCConfig, INCQuantizer, assemble, rounded_integers
from train.deployment.rounding import equalize, fold, round_weights


def float_model(**kwargs) -> TFSepNetForAudioClassification:
    """A network whose batch norms have statistics, as after training."""
    torch.manual_seed(0)
    model = TFSepNetForAudioClassification(TFSepNetConfig(**kwargs)).train()
    with torch.no_grad():
        for _ in range(20):
            model(torch.randn(8, 1, model.config.num_mel_bins, model.config.num_frames))
    return model.eval()


@pytest.fixture(scope="session")
def small() -> TFSepNetForAudioClassification:
    """Its labels are not in alphabetical order, as those of other corpora."""
    labels = dict(enumerate(reversed(SCENES)))
    return float_model(base_channels=16, num_mel_bins=64, num_frames=32, id2label=labels)


@pytest.fixture(scope="session")
def windows() -> torch.Tensor:
    return torch.randn(48, 64, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="session")
def prepared(small, windows):
    """The float network, folded and equalized, and its rounded form; not to be modified."""
    folded = fold(small)
    equalize(folded, windows)
    return folded, round_weights(folded, windows)


@pytest.fixture(scope="session")
def int8(prepared) -> TFSepNetForAudioClassification:
    """An INT8 model with the ranges of the preparation, without Neural Compressor."""
    _, rounded = prepared
    return assemble(rounded, rounded_integers(rounded))


def replace_tuning(monkeypatch) -> list[dict]:
    """Use the ranges of the preparation instead of those of Neural Compressor, and record the arguments of tuning."""
    calls = []

    def tune(rounded, windows, labels, float_logits, metric, config):
        model = assemble(rounded, rounded_integers(rounded))
        calls.append({"rounded": rounded, "windows": windows, "labels": labels, "config": config})
        return model, {"act_algo": "kl", "act_sym": False}

    monkeypatch.setattr(quantization, "tune", tune)
    return calls


@pytest.fixture(scope="session")
def quantized(small, windows, tmp_path_factory):
    """An INT8 model, its folder, the graph that Neural Compressor chose, and the logits that its tuning evaluated."""
    pytest.importorskip(
        "neural_compressor.torch.quantization", reason="needs neural-compressor[pt]", exc_type=ImportError
    )
    folder = tmp_path_factory.mktemp("int8") / "model"
    graphs, evaluated = [], []
    read_graph = quantization.read_graph

    def remember(graph, activation_bits):
        graphs.append(graph)
        return read_graph(graph, activation_bits)

    def metric(logits, labels):
        evaluated.append(torch.from_numpy(logits))
        return accuracy(logits, labels)

    labels = window_logits(small, windows).argmax(1).numpy()
    quantizer = INCQuantizer(copy.deepcopy(small), TFSepNetFeatureExtractor(feature_size=64))
    dataset = {"input_values": windows.unsqueeze(1), "labels": labels}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantization, "read_graph", remember)
        config = INCConfig(activation_bits=8, tolerable_loss=0.2)
        model = quantizer.quantize(config, dataset, folder, metric)
    return model, folder, graphs[-1], evaluated

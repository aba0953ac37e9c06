"""A small TF-SepNet and its INT8 form, made once for all tests of this folder."""

import pytest
import torch

from modeling_tfsepnet import TFSepNetConfig, TFSepNetFeatureExtractor, TFSepNetForAudioClassification
from train.deployment import quantizer as quantization
from train.deployment.quantizer import INCConfig, INCQuantizer, run


def float_model(**kwargs) -> TFSepNetForAudioClassification:
    """A network whose batch norms have statistics, as after training."""
    torch.manual_seed(0)
    model = TFSepNetForAudioClassification(TFSepNetConfig(**kwargs)).train()
    with torch.no_grad():
        for _ in range(20):
            model(torch.randn(8, 1, model.config.num_mel_bins, model.config.num_frames))
    return model.eval()


@pytest.fixture(scope="module")
def small() -> TFSepNetForAudioClassification:
    return float_model(base_channels=16, num_mel_bins=64, num_frames=32)


@pytest.fixture(scope="module")
def windows() -> torch.Tensor:
    return torch.randn(48, 64, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def quantized(small, windows, tmp_path_factory):
    """An INT8 model, its folder, the graph that Neural Compressor chose, and the logits that its tuning evaluated."""
    pytest.importorskip(
        "neural_compressor.torch.quantization", reason="needs neural-compressor[pt]", exc_type=ImportError
    )
    folder = tmp_path_factory.mktemp("int8") / "model"
    graphs, evaluated = [], []
    assemble = quantization.assemble

    def remember(rounded, graph):
        graphs.append(graph)
        return assemble(rounded, graph)

    def metric(logits, labels):
        evaluated.append(torch.from_numpy(logits))
        return quantization.accuracy(logits, labels)

    labels = run(small, windows).argmax(1).numpy()
    quantizer = INCQuantizer(small, TFSepNetFeatureExtractor(feature_size=64))
    dataset = {"input_values": windows.unsqueeze(1), "labels": labels}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantization, "assemble", remember)
        model = quantizer.quantize(INCConfig(tolerable_loss=0.2), dataset, folder, metric)
    return model, folder, graphs[-1], evaluated

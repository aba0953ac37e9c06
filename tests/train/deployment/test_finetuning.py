"""Quantization-aware fine-tuning: integers stay integers, gradients pass them, and the float network is approached."""

import copy

import torch

from modeling_tfsepnet import TFSepNetFeatureExtractor
from tests.train.deployment.conftest import replace_tuning
from train.deployment import finetuning
from train.deployment.comparison import sqnr, window_logits
from train.deployment.finetuning import Grid, finetune
from train.deployment.quantizer import INCConfig, INCQuantizer
from train.deployment.rounding import folded_convolutions


def test_grid_rounds_and_lets_gradients_pass():
    grid = Grid(torch.tensor(0.5), 3)
    integers = torch.tensor([-7.0, -1.4, 0.2, 2.6], requires_grad=True)
    values = grid(integers)
    assert values.tolist() == [-1.5, -0.5, 0.0, 1.5]
    values.sum().backward()
    assert integers.grad.tolist() == [0.0, 0.5, 0.5, 0.5]  # none beyond the limit
    assert torch.equal(grid(grid.right_inverse(values)), values)


def test_finetuning_recovers_from_shifted_weights(prepared, windows, monkeypatch):
    monkeypatch.setattr(finetuning, "LEARNING_RATE", 0.1)  # weights are steps away, not fractions of one
    monkeypatch.setattr(finetuning, "BIAS_LEARNING_RATE", 2.0)
    folded, rounded = copy.deepcopy(prepared)
    generator = torch.Generator().manual_seed(0)
    for layer in folded_convolutions(rounded).values():
        shifts = torch.randint(-4, 5, layer.weight.shape, generator=generator)
        integers = (layer.weight / layer.weight_scale.view(-1, 1, 1, 1) + shifts).clamp(-127, 127)
        layer.weight.copy_(integers.round() * layer.weight_scale.view(-1, 1, 1, 1))
    expected = window_logits(folded, windows)
    before = sqnr(expected, window_logits(rounded, windows))
    start = folded_convolutions(copy.deepcopy(rounded))
    finetune(rounded, folded, windows.split(8), epochs=10)
    assert sqnr(expected, window_logits(rounded, windows)) > before + 3
    unchanged = [
        name for name, layer in folded_convolutions(rounded).items() if torch.equal(layer.weight, start[name].weight)
    ]
    assert len(unchanged) < 3  # a path may be silent behind its ReLUs
    for name, layer in folded_convolutions(rounded).items():
        assert not layer.weight.requires_grad
        assert torch.equal(layer.weight_scale, start[name].weight_scale)
        integers = (layer.weight / layer.weight_scale.view(-1, 1, 1, 1)).round()
        assert integers.abs().max() <= 127
        assert torch.equal(layer.weight, integers * layer.weight_scale.view(-1, 1, 1, 1))
        integers = (layer.bias / layer.bias_scale).round()
        assert integers.abs().max() <= 32767
        assert torch.equal(layer.bias, integers * layer.bias_scale)


def test_quantizer_finetunes_before_it_quantizes(small, windows, monkeypatch):
    replace_tuning(monkeypatch)
    monkeypatch.setattr(finetuning, "LEARNING_RATE", 0.2)  # a few steps move some weights
    labels = window_logits(small, windows).argmax(1).numpy()
    quantizer = INCQuantizer(small, TFSepNetFeatureExtractor(feature_size=64))
    dataset = {"input_values": windows.unsqueeze(1), "labels": labels}
    plain, tuned = (quantizer.quantize(INCConfig(tolerable_loss=0.3, qat_epochs=epochs), dataset) for epochs in (0, 1))
    weights = [model.tfsepnet.stem[1].weight for model in (plain, tuned)]
    assert all(weight.dtype == torch.int8 for weight in weights)
    assert 0 < (weights[0].int() - weights[1].int()).abs().max() < 10

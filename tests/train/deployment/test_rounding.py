"""Preparation for INT8: what each step must achieve, by itself and in the network."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from modeling_tfsepnet.quantization_tfsepnet import make_int8
from train.deployment.comparison import sqnr, window_logits
from train.deployment.rounding import (
    FoldedConv,
    best_range,
    equalize,
    fit_layer,
    fold,
    folded_convolutions,
    round_one_by_one,
    round_weights,
    wide_range,
)


pytestmark = pytest.mark.processor


def identity_layers(scale: float, zero_point: int, bits: int) -> dict[str, nn.Module]:
    """Layers of one channel that return their rounded input."""
    convolution = nn.Conv2d(1, 1, 1)
    nn.init.ones_(convolution.weight)
    nn.init.zeros_(convolution.bias)
    folded = FoldedConv(convolution, smooth=False, centred=False)
    folded.activation_bits = bits
    folded.input_scale, folded.input_zero_point = scale, zero_point
    int8 = make_int8(convolution, smooth=False, centred=False, activation_bits=bits)
    int8.weight.fill_(1)
    int8.input_scale.fill_(scale)
    int8.input_zero_point.fill_(zero_point)
    return {"float": folded, "int8": int8}


@pytest.mark.parametrize("kind", ["float", "int8"])
def test_inputs_are_rounded_to_the_nearest_of_256_codes(kind):
    scale, zero_point = 0.5, 3
    inputs = torch.linspace(-10, 150, 4001)  # beyond both ends of the range
    rounded = identity_layers(scale, zero_point, 8)[kind](inputs.view(1, 1, -1, 1)).flatten().detach().numpy()
    codes = np.arange(256)
    nearest = np.abs(inputs.numpy()[:, None] - (codes - zero_point) * scale).min(axis=1)
    np.testing.assert_allclose(np.abs(inputs.numpy() - rounded), nearest, atol=1e-5)
    assert set(np.round(rounded / scale).astype(int) + zero_point) == set(codes)


@pytest.mark.parametrize("kind", ["float", "int8"])
def test_inputs_are_rounded_to_16_bits(kind):
    scale, _ = wide_range(2.0)
    assert scale == pytest.approx(4 / 32767)  # twice the range of the calibration
    inputs = torch.tensor([0.0, 0.4, 0.6, -1.0, 4e4, -4e4]) * scale
    rounded = identity_layers(scale, 0, 16)[kind](inputs.view(1, 1, 1, -1)).flatten() / scale
    torch.testing.assert_close(rounded.detach(), torch.tensor([0.0, 0, 1, -1, 32767, -32768]), atol=1e-2, rtol=0)


def test_the_best_range_clips_rare_large_values():
    values = torch.empty(100_000).exponential_(generator=torch.Generator().manual_seed(0)).pow(1.5) - 0.5
    low, high = float(values.min()), float(values.max())

    def error(scale: float, zero_point: int) -> float:
        rounded = (((values / scale).round() + zero_point).clamp(0, 255) - zero_point) * scale
        return float((rounded - values).square().mean())

    candidates = []
    for end in np.linspace(0.3, 1, 200) * high:
        scale = (end - low) / 255
        candidates.append(error(scale, round(-low / scale)))
    found = error(*best_range(values))
    assert found == pytest.approx(min(candidates), rel=0.02)
    assert found < 0.85 * candidates[-1]  # the range from minimum to maximum


def test_the_best_range_of_even_values_is_their_range():
    scale, zero_point = best_range(torch.linspace(-1, 3, 10_001))
    assert scale == pytest.approx(4 / 255, rel=0.03) and zero_point == round(1 / scale)
    assert best_range(torch.linspace(1, 3, 10_001)) == (pytest.approx(3 / 255, rel=0.03), 0)  # zero is always included


def test_folding_keeps_the_logits(small, windows):
    torch.testing.assert_close(
        window_logits(fold(small), windows), window_logits(small, windows), rtol=1e-4, atol=1e-4
    )


@pytest.fixture(scope="module")
def equalized(small, windows):
    """The network before and after, and windows so small that every input value is used."""
    before = fold(small)
    after = copy.deepcopy(before)
    equalize(after, windows[:, :32])
    return before, after, windows[:, :32]


def layer_inputs(network, windows) -> dict[str, torch.Tensor]:
    """Input of every layer, (channels, values)."""
    found = {}
    for name, layer in folded_convolutions(network).items():

        def listen(hidden_state, offset, name=name):
            found[name] = hidden_state.transpose(0, 1).flatten(1)

        layer.listener = listen
    network(windows.unsqueeze(1))
    for layer in folded_convolutions(network).values():
        layer.listener = None
    return found


class TestEqualization:
    def test_logits_stay(self, equalized):
        before, after, windows = equalized
        torch.testing.assert_close(window_logits(after, windows), window_logits(before, windows), rtol=1e-3, atol=1e-3)

    def test_smoothing_takes_the_root_of_the_differences_between_channels(self, equalized):
        before, after, windows = equalized
        before_values, after_values = layer_inputs(before, windows), layer_inputs(after, windows)
        smoothed = [name for name, layer in folded_convolutions(after).items() if layer.smoothing is not None]
        assert len(smoothed) > 20
        for name in smoothed:
            steps = torch.tensor([best_range(channel)[0] for channel in before_values[name]])
            steps_after = torch.tensor([best_range(channel)[0] for channel in after_values[name]])
            audible = steps > 1e-3 * steps.max()
            ratio = (steps_after / steps.sqrt())[audible]
            assert ratio.std() / ratio.mean() < 0.02, name

    def test_inputs_of_the_second_convolution_have_equal_ranges(self, equalized):
        _, after, windows = equalized
        largest = layer_inputs(after, windows)["tfsepnet.stem.1"].amax(dim=1)
        torch.testing.assert_close(largest, torch.ones_like(largest), rtol=1e-3, atol=1e-3)

    def test_inputs_and_weights_of_pointwise_convolutions_share_the_range(self, equalized):
        before, after, windows = equalized
        before_values, after_values = layer_inputs(before, windows), layer_inputs(after, windows)
        for name, layer in folded_convolutions(after).items():
            if name.endswith("pointwise"):
                audible = before_values[name].amax(dim=1) > 1e-3 * before_values[name].max()
                largest, weights = after_values[name].amax(dim=1), layer.weight.abs().amax(dim=(0, 2, 3))
                torch.testing.assert_close(largest[audible], weights[audible], rtol=1e-3, atol=1e-3)


def test_weights_and_biases_are_on_their_grids(prepared):
    _, rounded = prepared
    for layer in folded_convolutions(rounded).values():
        integers = layer.weight / layer.weight_scale.view(-1, 1, 1, 1)
        assert (integers - integers.round()).abs().max() < 1e-3
        assert integers.abs().max() <= 127.001
        integers = layer.bias / layer.bias_scale
        assert (integers - integers.round()).abs().max() < 2e-2
        assert integers.abs().max() <= 32767.1


def test_every_output_channel_uses_the_range_of_its_integers(prepared):
    """A step for the whole tensor would leave a few small integers to channels with small weights."""
    _, rounded = prepared
    for layer in folded_convolutions(rounded).values():
        assert (layer.weight.abs().amax(dim=(1, 2, 3)) / layer.weight_scale).min() > 90


def correlated_inputs() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(1, 64, 2000, generator=generator, dtype=torch.float64)
    return inputs + 3 * torch.randn(1, 1, 2000, generator=generator, dtype=torch.float64)


def test_spreading_errors_beats_rounding_to_nearest():
    inputs = correlated_inputs()
    weight = torch.randn(1, 32, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    rounded, scale = round_one_by_one(weight, inputs @ inputs.transpose(1, 2) / 2000)
    nearest = (weight / scale).round() * scale
    error, error_nearest = ((values - weight) @ inputs for values in (rounded, nearest))
    assert error.square().mean() < 0.5 * error_nearest.square().mean()


def test_fitted_layers_spread_their_errors():
    inputs = correlated_inputs()
    reference = FoldedConv(nn.Conv2d(64, 32, 1), smooth=False, centred=False)
    layer = copy.deepcopy(reference)
    with torch.no_grad():
        fit_layer(layer, reference, inputs, inputs)
    weight = reference.weight.flatten(1).double()
    scale = layer.weight_scale.double().view(-1, 1)
    nearest = (weight / scale).round() * scale
    error, error_nearest = ((values - weight) @ inputs[0] for values in (layer.weight.flatten(1).double(), nearest))
    assert error.std() < 0.7 * error_nearest.std()


@pytest.mark.parametrize("groups", [1, 4])
def test_biases_correct_the_mean(groups):
    """Rounded inputs with another mean, and rounded weights, leave the mean of every output as it is in float."""
    generator = torch.Generator().manual_seed(0)
    reference = FoldedConv(nn.Conv2d(8, 12, 1, groups=groups), smooth=False, centred=False)
    layer = copy.deepcopy(reference)
    expected = torch.randn(groups, 8 // groups, 500, generator=generator) + 2
    inputs = (expected / 0.3).round() * 0.3 + 0.1
    with torch.no_grad():
        fit_layer(layer, reference, inputs, expected)

    def mean_outputs(layer: FoldedConv, patches: torch.Tensor) -> torch.Tensor:
        outputs = layer.weight.view(groups, -1, 8 // groups).double() @ patches.double()
        return outputs.mean(dim=2).flatten() + layer.bias.double()

    error = mean_outputs(layer, inputs) - mean_outputs(reference, expected)
    assert error.abs().max() < 0.51 * layer.bias_scale


def test_rounding_beats_the_nearest_weights_in_the_network(prepared, windows):
    folded, rounded = prepared
    nearest = copy.deepcopy(rounded)
    references = folded_convolutions(folded)
    for name, layer in folded_convolutions(nearest).items():
        step = references[name].weight.abs().amax(dim=(1, 2, 3), keepdim=True) / 127
        layer.weight.copy_((references[name].weight / step).round() * step)
        layer.bias.copy_(references[name].bias)
    expected = window_logits(folded, windows)
    decibels, decibels_nearest = (sqnr(expected, window_logits(network, windows)) for network in (rounded, nearest))
    assert decibels > decibels_nearest + 3


def test_inputs_are_rounded_by_the_best_range(prepared, windows):
    folded, rounded = prepared
    layer = folded_convolutions(rounded)["tfsepnet.stem.0"]
    assert (layer.input_scale, layer.input_zero_point) == pytest.approx(best_range(windows), rel=0.1)
    assert all(layer.input_scale is not None for layer in folded_convolutions(rounded).values())
    assert all(layer.input_scale is None for layer in folded_convolutions(folded).values())


def test_16_bits_keep_what_8_bits_lose(prepared, windows):
    folded, rounded = prepared
    wide = round_weights(folded, windows, activation_bits=16)
    expected = window_logits(folded, windows)
    decibels, decibels_wide = (sqnr(expected, window_logits(network, windows)) for network in (rounded, wide))
    assert decibels_wide > decibels + 6
    steps = {name: layer.input_scale for name, layer in folded_convolutions(wide).items()}
    reached = {name: float(values.abs().max()) for name, values in layer_inputs(folded, windows).items()}
    name = "tfsepnet.stem.0"  # sampled at all positions or nearly so
    assert steps[name] * 32767 == pytest.approx(2 * reached[name], rel=0.1)


def test_the_float_network_is_not_modified(small, windows):
    folded = fold(small)
    before = window_logits(folded, windows)
    round_weights(folded, windows[:4])
    assert torch.equal(window_logits(folded, windows), before)

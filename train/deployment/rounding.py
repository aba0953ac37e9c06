"""Preparation of a student for INT8: fold, equalize, and round such that its outputs stay the same.

Post-training static quantization rounds the input and the weights of every convolution. Three steps before the
quantizer runs determine how much accuracy that costs. They need some unlabelled clips and no gradients:

1. [`fold`] merges the batch norms into the convolutions.
2. [`equalize`] moves factors between channels where that changes nothing in float (Nagel et al., *Data-Free
   Quantization through Weight Equalization and Bias Correction*, ICCV 2019). The inputs of depthwise convolutions, and
   of convolutions that follow a residual norm, get a factor per channel (Xiao et al., *SmoothQuant*, ICML 2023), so
   that one range fits all channels of a layer.
3. [`round_weights`] goes through the layers in order. It fits the weights of each layer to the outputs of the float
   network, given inputs that are already rounded, and rounds them one input at a time, such that the remaining weights
   compensate for the error (Frantar et al., *GPTQ*, ICLR 2023). The biases correct the remaining shift of the mean.
"""

import copy
import math
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import TypeAlias

import torch
from torch import Tensor, nn

from model_cards.students import StudentModel
from modeling_tfsepnet.quantization_tfsepnet import ACTIVATION_RANGES
from train.deployment.int8 import INT8_FORMS


WINDOWS_PER_BATCH = 16

SAMPLES_PER_WINDOW = 64
"""Positions of a feature map that weights are fitted to; the others hardly differ."""

DAMPING = 0.05
"""How strongly fitted weights are held at the float weights, relative to the mean square of the inputs."""

HEADROOM = 2.0
"""How far 16-bit ranges reach, relative to the largest value of the calibration: louder sound is not clipped, and the
bit that this takes does not matter."""

MAX_WEIGHT = 127
MAX_BIAS = 32767

Listener: TypeAlias = Callable[[Tensor, Tensor | None], None]
"""Called with the input of a layer before rounding, and with the offset that was subtracted from it."""


class FoldedConv(nn.Module):
    """Float convolution with its batch norm folded in, which rounds its input once `input_scale` is set.

    Attributes:
        weight (`nn.Parameter` of shape `(out, in / groups, kernel, kernel)`): Weights, multiplied by `smoothing`.
        bias (`nn.Parameter` of shape `(out,)`): Biases.
        smoothing (`torch.Tensor` of shape `(in,)` or `None`): Divisor of each input channel.
        weight_scale (`torch.Tensor` of shape `(out,)`): Step of the rounded weights; 1 before they are rounded.
        bias_scale (`torch.Tensor` of shape `()`): Step of the rounded biases; 1 before they are rounded.
        activation_bits (`int`): Bits of the rounded input, 8 or 16.
        input_scale (`float` or `None`): Step of the rounded input; `None` leaves the input as it is.
        input_zero_point (`int`): Integer for an input of zero.
        listener (`Callable` or `None`): Called with the input, see `Listener`.
    """

    weight: nn.Parameter
    bias: nn.Parameter
    smoothing: Tensor | None
    weight_scale: Tensor
    bias_scale: Tensor

    def __init__(self, unit: nn.Module, smooth: bool, centred: bool) -> None:
        super().__init__()
        if isinstance(unit, nn.Conv2d):
            convolution, weight, bias = unit, unit.weight, unit.bias
        else:
            assert isinstance(unit.convolution, nn.Conv2d) and isinstance(unit.normalization, nn.BatchNorm2d)
            convolution, norm = unit.convolution, unit.normalization
            assert norm.running_mean is not None and norm.running_var is not None
            scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
            weight, bias = convolution.weight * scale.view(-1, 1, 1, 1), norm.bias - norm.running_mean * scale
        assert isinstance(convolution.padding, tuple) and bias is not None
        self.relu = bool(getattr(unit, "activation", convolution is not unit))
        self.centred = centred
        self.stride, self.padding, self.groups = convolution.stride, convolution.padding, convolution.groups
        self.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
        self.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
        self.register_buffer("smoothing", torch.ones(convolution.in_channels) if smooth else None)
        self.weight_scale = torch.ones(len(bias))
        self.bias_scale = torch.ones(())
        self.activation_bits = 8
        self.input_scale: float | None = None
        self.input_zero_point = 0
        self.listener: Listener | None = None

    def forward(self, hidden_state: Tensor) -> Tensor:
        """Map (batch, in_channels, frequency, time) to (batch, out_channels, frequency, time)."""
        offset = None
        if self.centred:
            offset = hidden_state.amin(dim=(1, 3), keepdim=True)
            hidden_state = hidden_state - offset
        if self.smoothing is not None:
            hidden_state = hidden_state * self.smoothing.reciprocal().view(1, -1, 1, 1)
        if self.listener is not None:
            self.listener(hidden_state, offset)
        hidden_state = self.round_input(hidden_state)
        output = nn.functional.conv2d(
            hidden_state, self.weight, self.bias, self.stride, self.padding, (1, 1), self.groups
        )
        if offset is not None:
            assert self.smoothing is not None  # centred layers are smoothed too
            gain = self.weight.flatten(1) @ self.smoothing.reciprocal()
            output = torch.addcmul(output, offset, gain.view(1, -1, 1, 1))
        return output.relu_() if self.relu else output

    def round_input(self, hidden_state: Tensor) -> Tensor:
        """Round to the nearest value that an integer can represent; gradients pass within the range."""
        if self.input_scale is None:
            return hidden_state
        limits = ACTIVATION_RANGES[self.activation_bits]
        return torch.fake_quantize_per_tensor_affine(hidden_state, self.input_scale, self.input_zero_point, *limits)


def fold(model: StudentModel) -> StudentModel:
    """Return a float copy of `model` on the CPU with [`FoldedConv`] layers, which computes the same logits."""
    folded = copy.deepcopy(model).eval().to("cpu", torch.float32)
    INT8_FORMS[folded.config.model_type].replace_convolutions(folded, FoldedConv)
    return folded


def folded_convolutions(folded: nn.Module) -> dict[str, FoldedConv]:
    """Return the convolutions of a folded network by name, in the order of computation."""
    return {name: module for name, module in folded.named_modules() if isinstance(module, FoldedConv)}


@torch.no_grad()
def equalize(folded: StudentModel, windows: Tensor) -> None:
    """Balance the ranges of the channels in place; the logits stay the same.

    Args:
        folded (`StudentModel`): A network from [`fold`].
        windows (`torch.Tensor` of shape `(windows, mel_bins, frames)`): Log-mel of unlabelled clips.
    """
    convolutions = folded_convolutions(folded)
    values = _input_values(folded, windows)
    for name, layer in convolutions.items():
        if layer.smoothing is not None:
            factors = _raise_silent(torch.tensor([best_range(channel)[0] for channel in values[name]])).sqrt()
            layer.smoothing.copy_(factors / factors.max())
            factors = layer.smoothing.view(layer.groups, -1)
            by_output = factors.repeat_interleave(layer.weight.shape[0] // layer.groups, dim=0)
            layer.weight.mul_(by_output[..., None, None])
    # The two of the stem, and every depthwise convolution with the pointwise one after it.
    pairs = [pair for pair in pairwise(convolutions) if pair[0].endswith(("stem.0", "depthwise"))]
    for first_name, second_name in pairs:
        first, second = convolutions[first_name], convolutions[second_name]
        largest = _raise_silent(values[second_name].amax(dim=1))
        if second.groups == 1:
            weights = second.weight.abs().amax(dim=(0, 2, 3)).clamp(min=1e-5)
            factors = (largest / weights).sqrt()
            second.weight.mul_(factors.view(1, -1, 1, 1))
        else:
            factors = largest
            copies = second.weight.shape[0] // second.groups
            second.weight.mul_(factors.repeat_interleave(copies).view(-1, 1, 1, 1))
        first.weight.div_(factors.view(-1, 1, 1, 1))
        first.bias.div_(factors)


def _input_values(folded: StudentModel, windows: Tensor) -> dict[str, Tensor]:
    """Return input values of every layer, evenly spaced over each window, of shape `(channels, values)`."""
    convolutions = folded_convolutions(folded)
    samples: dict[str, list[Tensor]] = {name: [] for name in convolutions}
    for name, layer in convolutions.items():

        def listen(hidden_state: Tensor, offset: Tensor | None, name: str = name) -> None:
            values = hidden_state.flatten(2)
            chosen = torch.linspace(0, values.shape[2] - 1, min(values.shape[2], 256)).long()
            samples[name].append(values[..., chosen])

        layer.listener = listen
    for batch in windows.split(WINDOWS_PER_BATCH):
        folded(batch.unsqueeze(1))
    for layer in convolutions.values():
        layer.listener = None
    return {name: torch.cat(batches).transpose(0, 1).flatten(1) for name, batches in samples.items()}


def _raise_silent(ranges: Tensor) -> Tensor:
    """Return ranges of channels, with those of silent channels raised to a thousandth of the largest."""
    return ranges.clamp(min=max(1e-3 * float(ranges.max()), 1e-6))


def best_range(values: Tensor) -> tuple[float, int]:
    """Search for the 8-bit range that rounds values with the least mean square error.

    Args:
        values (`torch.Tensor`): Values to round.

    Returns:
        `tuple[float, int]`: The step and the zero point of the range.
    """
    values = values.flatten()
    values = values[:: max(1, len(values) // 200_000)]
    low, high = values.min().clamp(max=0), values.max().clamp(min=0)
    best_error, best = math.inf, (1.0, 0)
    for fraction in torch.linspace(1, 0.3, 36):
        scale = ((high * fraction - low) / 255).clamp(min=1e-8)
        zero_point = (-low / scale).round()
        rounded = (((values / scale).round() + zero_point).clamp(0, 255) - zero_point) * scale
        error = float((rounded - values).square_().mean())
        if error < best_error:
            best_error, best = error, (float(scale), int(zero_point))
    return best


def wide_range(largest: float) -> tuple[float, int]:
    """Return the step and the zero point of a 16-bit range, from the largest magnitude of the calibration."""
    return max(HEADROOM * largest / ACTIVATION_RANGES[16][1], 1e-8), 0


@torch.no_grad()
def round_weights(folded: StudentModel, windows: Tensor, activation_bits: int = 8) -> StudentModel:
    """Round the weights to 8-bit grids and the biases to 16-bit grids.

    Args:
        folded (`StudentModel`): A network from [`fold`], equalized.
        windows (`torch.Tensor` of shape `(windows, mel_bins, frames)`): Log-mel of unlabelled clips.
        activation_bits (`int`, *optional*, defaults to 8): Bits of the inputs of the layers, 8 or 16.

    Returns:
        `StudentModel`: A rounded copy, which also rounds the inputs of its layers.
    """
    rounded = copy.deepcopy(folded)
    floats, targets = folded_convolutions(folded), folded_convolutions(rounded)
    hidden_float = hidden_rounded = windows.unsqueeze(1).contiguous(memory_format=torch.channels_last)
    for prefix, part_float, part_rounded in _network_parts(folded, rounded):
        for name in (name for name in targets if f"{name}.".startswith(f"{prefix}.")):
            layer, reference = targets[name], floats[name]
            inputs, contributions = _sample_inputs(part_rounded, layer, hidden_rounded)
            layer.activation_bits = activation_bits
            layer.input_scale, layer.input_zero_point = (
                best_range(inputs) if activation_bits == 8 else wide_range(float(inputs.abs().max()))
            )
            inputs = layer.round_input(inputs) + contributions
            expected, contributions = _sample_inputs(part_float, reference, hidden_float)
            fit_layer(layer, reference, inputs, expected + contributions)
        if part_float is not folded.classifier:
            hidden_float = torch.cat([part_float(batch) for batch in hidden_float.split(WINDOWS_PER_BATCH)])
            hidden_rounded = torch.cat([part_rounded(batch) for batch in hidden_rounded.split(WINDOWS_PER_BATCH)])
    return rounded


def _network_parts(folded: StudentModel, rounded: StudentModel) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """Yield the consecutive parts of both networks, with the prefix of the names of their layers."""
    base = folded.base_model_prefix
    stages = (f"stages.{index}" for index, _ in folded.get_submodule(f"{base}.stages").named_children())
    for part in (*(f"{base}.{name}" for name in ("stem", *stages)), "classifier"):
        yield part, folded.get_submodule(part), rounded.get_submodule(part)


class _ReachedError(Exception):
    """Ends a forward pass at the layer whose input was wanted."""


def _sample_inputs(part: nn.Module, layer: FoldedConv, hidden_states: Tensor) -> tuple[Tensor, Tensor]:
    """Sample input patches of `layer`, and the contribution of the subtracted offset.

    Args:
        part (`nn.Module`): The part of the network that contains `layer`.
        layer ([`FoldedConv`]): The layer.
        hidden_states (`torch.Tensor` of shape `(windows, channels, frequency, time)`): Input of `part`.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: The patches, and what [`finish_output`] adds to them, both of shape
        `(groups, taps, samples)`. A tap is one value of a patch. The contribution is zero unless the layer is centred.
    """
    sampled: list[Tensor] = []
    contributions: list[Tensor] = []
    kernel = layer.weight.shape[2:]

    def listen(hidden_state: Tensor, offset: Tensor | None) -> None:
        patches = nn.functional.unfold(hidden_state, kernel, padding=layer.padding, stride=layer.stride)
        patches = patches.view(len(hidden_state), layer.groups, -1, patches.shape[2])
        contribution = torch.zeros(len(hidden_state), 1, 1, patches.shape[3])
        if offset is not None:
            assert layer.smoothing is not None  # centred layers are smoothed too
            contribution = offset.expand(-1, 1, -1, hidden_state.shape[3]).reshape(contribution.shape)
            contribution = contribution * layer.smoothing.reciprocal().view(1, 1, -1, 1)
        generator = torch.Generator().manual_seed(len(sampled))
        chosen = torch.randperm(patches.shape[3], generator=generator)[:SAMPLES_PER_WINDOW]
        sampled.append(patches[..., chosen])
        contributions.append(contribution[..., chosen])
        raise _ReachedError

    layer.listener = listen
    scale, layer.input_scale = layer.input_scale, None
    for batch in hidden_states.split(WINDOWS_PER_BATCH):
        try:
            part(batch)
        except _ReachedError:
            continue
    layer.listener, layer.input_scale = None, scale
    patches, offsets = (torch.cat(values).permute(1, 2, 0, 3).flatten(2) for values in (sampled, contributions))
    return patches, offsets


def fit_layer(layer: FoldedConv, reference: FoldedConv, inputs: Tensor, expected: Tensor) -> None:
    """Set the weights and biases of a layer to integers times steps, such that it reproduces the float layer.

    Args:
        layer ([`FoldedConv`]): The layer to set.
        reference ([`FoldedConv`]): The float layer.
        inputs (`torch.Tensor` of shape `(groups, taps, samples)`): Rounded input patches of `layer`.
        expected (`torch.Tensor` of shape `(groups, taps, samples)`): The same patches in the float network.
    """
    groups = layer.groups
    weight = reference.weight.view(groups, -1, inputs.shape[1]).double()
    inputs, target = inputs.double(), weight @ expected.double()
    input_mean, target_mean = inputs.mean(dim=2), target.mean(dim=2)
    inputs, target = inputs - input_mean.unsqueeze(2), target - target_mean.unsqueeze(2)
    samples = inputs.shape[2]
    moment = inputs @ inputs.transpose(1, 2) / samples
    ridge = DAMPING * moment.diagonal(dim1=1, dim2=2).mean(dim=1).clamp(min=1e-9)
    damped_moment = moment + ridge.view(-1, 1, 1) * torch.eye(moment.shape[1], dtype=torch.float64)
    residual = target @ inputs.transpose(1, 2) / samples - weight @ moment
    weight = weight + torch.linalg.solve(damped_moment, residual.transpose(1, 2)).transpose(1, 2)
    weight, scale = round_one_by_one(weight, damped_moment)

    shift = target_mean - (weight @ input_mean.unsqueeze(2)).squeeze(2)
    bias = reference.bias.double() + shift.flatten()
    # A quantizer recovers exactly these steps in float32 from the span of the integers, half of which is 127.5.
    layer.weight_scale = scale.flatten().float() * 127.5 / 127.5
    integers = (weight / scale).round().view(reference.weight.shape)
    # Multiplied in float32, as wherever the integers are loaded.
    layer.weight.copy_(integers.float() * layer.weight_scale.view(-1, 1, 1, 1))
    layer.bias_scale = (bias.abs().max() / MAX_BIAS).clamp(min=1e-12).float()
    layer.bias.copy_((bias / layer.bias_scale.double()).round().float() * layer.bias_scale)


def round_one_by_one(weight: Tensor, moment: Tensor) -> tuple[Tensor, Tensor]:
    """Round weights to 8 bits, one tap after the other; the error of each is spread over the taps that follow.

    Short kernels try several steps and keep the best one: the few values of a depthwise kernel often lie close to some
    grid by chance.

    Args:
        weight (`torch.Tensor` of shape `(groups, out, taps)`): Float weights.
        moment (`torch.Tensor` of shape `(groups, taps, taps)`): Second moment of the inputs.

    Returns:
        `tuple[torch.Tensor, torch.Tensor]`: The rounded weights, and their steps of shape `(groups, out, 1)`.
    """
    spread = torch.linalg.cholesky(torch.linalg.inv(moment), upper=True)
    largest = weight.abs().amax(dim=2, keepdim=True).clamp(min=1e-12)
    taps = weight.shape[2]
    best_error = torch.full(weight.shape[:2], torch.inf, dtype=torch.float64)
    best, best_scale = torch.zeros_like(weight), torch.ones_like(largest)
    for stretch in torch.linspace(0.9, 1.3, 41) if taps <= 9 else (torch.ones(()),):
        scale = (largest / MAX_WEIGHT * stretch).float().double()
        rest, rounded = weight.clone(), torch.zeros_like(weight)
        for tap in range(taps):
            column = rest[:, :, tap : tap + 1]
            rounded[:, :, tap : tap + 1] = (column / scale).round().clamp(-MAX_WEIGHT, MAX_WEIGHT) * scale
            error = (column - rounded[:, :, tap : tap + 1]) / spread[:, tap : tap + 1, tap : tap + 1]
            rest[:, :, tap:] -= error * spread[:, tap : tap + 1, tap:]
        difference = rounded - weight
        error = ((difference @ moment) * difference).sum(dim=2)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best = torch.where(better.unsqueeze(2), rounded, best)
        best_scale = torch.where(better.unsqueeze(2), scale, best_scale)
    return best, best_scale

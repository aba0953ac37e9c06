"""TF-SepNet without gradients on a CPU: the numbers of the network, in an order that a CPU likes.

The modules of [`TFSepNetModel`] say what the network computes. Here

- batch norms are folded into the convolutions before them;
- a shuffle moves no channel: the activations stay where they are, and the weights of the layers that follow are
  permuted instead. Residual norms and poolings do not depend on the order of channels;
- the two depthwise convolutions of a block, along frequency and along time, are one with a square kernel that is zero
  outside of its middle column or row. Every pass over the activations is contiguous, and corrections are added in
  place.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def channels_last(rows: Tensor) -> Tensor:
    """View (batch, frequency, time, channels) as (batch, channels, frequency, time)."""
    return rows.permute(0, 3, 1, 2)


class Rounding(NamedTuple):
    """Rounding of the input of an INT8 layer, to `clamp(round(x * factor), low, high)`.

    Attributes:
        factor, low, high (`Tensor` of shape `(in_channels,)`): Reciprocal of the step, and the limits.
        centred (`bool`): Whether the minimum of each window and frequency bin is subtracted before, see
            [`TFSepNetInt8Conv`].
    """

    factor: Tensor
    low: Tensor
    high: Tensor
    centred: bool = False

    def __call__(self, rows: Tensor) -> Tensor:
        """Round rows (batch, frequency, time, channels)."""
        return (rows * self.factor).round_().clamp_(self.low, self.high)

    def map(self, function: Callable[[Tensor], Tensor]) -> "Rounding":
        """Return the rounding of channels that `function` selects."""
        return Rounding(function(self.factor), function(self.low), function(self.high), self.centred)


class Layer(NamedTuple):
    """A convolution, with the rounding of its input if it is an INT8 layer.

    Attributes:
        weight (`Tensor`): Kernels of a convolution, or the matrix of a pointwise one.
        bias (`Tensor` of shape `(out_channels,)`): Biases.
        rounding (`Rounding` or `None`): Rounding of the input.
        relu (`bool`): Whether a ReLU follows.
    """

    weight: Tensor
    bias: Tensor
    rounding: Rounding | None = None
    relu: bool = True

    def pointwise(self, rows: Tensor) -> Tensor:
        """Apply the layer, a matrix, to rows (batch, frequency, time, in_channels)."""
        if self.rounding is None:
            output = F.linear(rows, self.weight, self.bias)
        elif not self.rounding.centred:
            output = F.linear(self.rounding(rows), self.weight, self.bias)
        else:
            level = rows.amin(dim=(2, 3), keepdim=True)
            output = F.linear(self.rounding(rows - level), self.weight, self.bias)
            output.addcmul_(level, self.weight @ self.rounding.factor)
        return output.relu_() if self.relu else output

    def convolve(self, rows: Tensor, stride: int | tuple[int, ...] = 1) -> Tensor:
        """Apply the layer, whose kernels see one channel each, to rows (batch, frequency, time, in_channels)."""
        rows = rows if self.rounding is None else self.rounding(rows)
        padding = [size // 2 for size in self.weight.shape[2:]]
        output = F.conv2d(channels_last(rows), self.weight, self.bias, stride, padding, groups=rows.shape[3])
        return (output.relu_() if self.relu else output).permute(0, 2, 3, 1)


class Block(NamedTuple):
    """Layers of a block: the transition if there is one, both depthwise convolutions as one, the pointwise ones."""

    transition: Layer | None
    depthwise: Layer
    frequency: Layer
    time: Layer

    def __call__(self, rows: Tensor) -> Tensor:
        """Map rows (batch, frequency, time, channels), which are changed, to those of the next block."""
        if self.transition is not None:
            rows = self.transition.pointwise(rows)
        hidden = self.depthwise.convolve(rows)
        frequency = hidden.sum(dim=1, keepdim=True).div_(hidden.shape[1])
        time = hidden.sum(dim=2, keepdim=True).div_(hidden.shape[2])
        return rows.add_(self.frequency.pointwise(frequency)).add_(self.time.pointwise(time))


class Stage(NamedTuple):
    """Layers of a stage.

    Attributes:
        pooled (`bool`): Whether it begins with a max-pooling.
        blocks (`list[Block]`): Its blocks.
        positions (`Tensor` of shape `(channels,)`): Where each channel of its output is.
    """

    pooled: bool
    blocks: list[Block]
    positions: Tensor


class Encoder(NamedTuple):
    """Layers of a network.

    Attributes:
        first (`Layer`): First convolution of the stem.
        second (`list[Layer]`): Second one, in parts of one output for each input, for which CPUs have fast kernels.
        positions (`Tensor` of shape `(channels,)`): Where each channel of the stem's output is.
        stages (`list[Stage]`): The stages.
    """

    first: Layer
    second: list[Layer]
    positions: Tensor
    stages: list[Stage]

    def stem(self, windows: Tensor) -> Tensor:
        """Map log-mel windows (windows, mel_bins, frames) to rows (windows, frequency, time, channels)."""
        rows = self.first.convolve(windows.unsqueeze(3), 2)
        return torch.cat([layer.convolve(rows, 2) for layer in self.second], dim=3)


def keep_freed_blocks() -> None:
    """Let the C library of Linux keep up to 64 MiB of freed memory, instead of returning it to the system.

    Getting it back for every few windows would take as long as the network. The limit of glibc is twice the largest
    block that was mapped and freed, up to 32 MiB: such a block, of which no page is touched, is enough.
    """
    torch.empty(2**25 - 2**14, dtype=torch.uint8)


def arrange(network: Any) -> Encoder | None:
    """Arrange the weights of a [`TFSepNetModel`], float or INT8; None if it has other layers."""
    keep_freed_blocks()
    all_blocks = [block for stage in network.stages for block in stage.blocks]
    paths = [path for block in all_blocks for path in (block.frequency_path, block.time_path)]
    units = [*network.stem[:2], *(unit for path in paths for unit in (path.depthwise, path.pointwise))]
    units += [block.transition for block in all_blocks if not isinstance(block.transition, nn.Identity)]
    if not all(hasattr(unit, "layer") for unit in units):
        return None
    first, stem = network.stem[0].layer(), network.stem[1].layer()
    copies = len(stem.bias) // len(first.bias)
    second = [stem._replace(weight=stem.weight[i::copies], bias=stem.bias[i::copies]) for i in range(copies)]
    positions = torch.arange(len(stem.bias)).view(copies, -1).t().flatten()
    encoder = Encoder(first, second, positions, [])
    for stage in network.stages:
        blocks = []
        for block in stage.blocks:
            transition = None
            if not isinstance(block.transition, nn.Identity):
                transition = permute_inputs(block.transition.layer(), positions.argsort())
                positions = torch.arange(len(transition.bias))
            positions = positions[torch.arange(len(positions)).view(2, -1).t().flatten()]
            frequency, time = positions.chunk(2)
            blocks.append(
                Block(
                    transition,
                    cross(block.frequency_path.depthwise.layer(), block.time_path.depthwise.layer(), positions),
                    spread(block.frequency_path.pointwise.layer(), frequency, len(positions)),
                    spread(block.time_path.pointwise.layer(), time, len(positions)),
                )
            )
        encoder.stages.append(Stage(not isinstance(stage.pooling, nn.Identity), blocks, positions))
    return encoder


def permute_inputs(layer: Layer, order: Tensor) -> Layer:
    """Return a pointwise layer whose input has the channels in another order."""
    rounding = None if layer.rounding is None else layer.rounding.map(lambda values: values[order])
    return Layer(layer.weight.flatten(1)[:, order], layer.bias, rounding)


def cross(frequency: Layer, time: Layer, positions: Tensor) -> Layer:
    """Join the depthwise convolutions of both paths, whose channels are at `positions`."""
    order = positions.argsort()

    def join(first: Tensor, second: Tensor) -> Tensor:
        return torch.cat([first, second])[order]

    margin = frequency.weight.shape[2] // 2
    weight = join(F.pad(frequency.weight, (margin, margin)), F.pad(time.weight, (0, 0, margin, margin)))
    a, b = frequency.rounding, time.rounding
    rounding = None
    if a is not None and b is not None:
        rounding = Rounding(join(a.factor, b.factor), join(a.low, b.low), join(a.high, b.high))
    return Layer(weight, join(frequency.bias, time.bias), rounding)


def spread(layer: Layer, positions: Tensor, channels: int) -> Layer:
    """Let a pointwise layer of some channels, which are at `positions`, map all channels; the others become zero."""
    weight, bias = layer.weight.new_zeros(channels, channels), layer.bias.new_zeros(channels)
    weight[positions[:, None], positions] = layer.weight.flatten(1)
    bias[positions] = layer.bias
    rounding = layer.rounding
    if rounding is not None:
        rounding = rounding.map(lambda values: values.new_ones(channels).index_copy_(0, positions, values))
    return Layer(weight, bias, rounding)


def encode(encoder: Encoder, normalize: nn.Module, windows: Tensor, every_stage: bool) -> list[Tensor]:
    """Encode log-mel windows with arranged weights.

    Args:
        encoder (`Encoder`): The weights.
        normalize (`TFSepNetResidualNorm`): The residual norm.
        windows (`Tensor` of shape `(windows, mel_bins, frames)`): Log-mel energies.
        every_stage (`bool`): Whether to return the output of the stem and of every stage, or only the last one.

    Returns:
        `list[Tensor]`: The outputs, each of shape `(windows, channels, frequency, time)`.
    """
    state = normalize(channels_last(encoder.stem(windows)))
    states = [state[:, encoder.positions]] if every_stage else []
    for stage in encoder.stages:
        rows = (F.max_pool2d(state, 2) if stage.pooled else state).permute(0, 2, 3, 1)
        del state  # so that its memory is used again while it is in the cache
        for block in stage.blocks:
            rows = block(rows)
        state = normalize(channels_last(rows))
        if every_stage or stage is encoder.stages[-1]:
            states.append(state[:, stage.positions])
    return states


def same_values(tensors: list[Tensor], others: list[Tensor]) -> bool:
    """Return whether all tensors have the same values and types; NaN differs from itself."""
    same_types = [tensor.dtype for tensor in tensors] == [tensor.dtype for tensor in others]
    return same_types and all(map(torch.equal, tensors, others))

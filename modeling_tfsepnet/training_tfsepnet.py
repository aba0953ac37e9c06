"""Operations of TF-SepNet in training on a CPU, which keep a third less for the backward pass than autograd does.

The backward pass computes the output of a ReLU again, from the input of the normalisation before it and in chunks that
fit into the cache. A residual norm keeps its output instead of its input, because the next layer keeps the former too.
Of the input of a pooling only the shape is needed. The gradient of a strided convolution is that of convolutions
without stride, for which there are faster kernels. Values and gradients are those of autograd, but gradients have none
themselves.
"""

import functools
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight

from .inference_tfsepnet import channels_last


# Values of a chunk, which is to fit into the cache.
CHUNK_SIZE = 2**20

# For each stride, the phases along one axis of the input of a convolution with three weights, by their first position,
# and the weights that reach them, from the first output to the last. Padding adds an output before that of phase 1.
PHASES = {1: [(0, [2, 1, 0])], 2: [(0, [1]), (1, [2, 0])]}


def keeps_less(hidden_state: Tensor, compiled: bool = False) -> bool:
    """Return whether an operation is for a tensor: with gradients, on a CPU, and not transformed by torch.

    Args:
        hidden_state (`Tensor`): Input of the operation.
        compiled (`bool`, *optional*, defaults to `False`): Whether the operation is for compilers too.
    """
    return (
        hidden_state.device.type == "cpu"
        and torch.is_grad_enabled()
        and (compiled or not torch.compiler.is_compiling())
        and not torch.compiler.is_exporting()
        and not torch._C._are_functorch_transforms_active()
    )


def can_fuse(norm: nn.Module, hidden_state: Tensor) -> bool:
    """Return whether [`NormReLU`] can compute a normalisation and the ReLU after it."""
    return (
        type(norm) is nn.BatchNorm2d
        and norm.training
        and norm.affine
        and norm.num_batches_tracked is not None
        and norm.momentum is not None
        and hidden_state.numel() > norm.num_features  # of single values the layer says what is wrong
    )


def chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Split tensors of the same number of clips into chunks of a few clips, or of all for a compiler."""
    clips = max(1, CHUNK_SIZE // max(1, tensors[0][:1].numel()))
    if torch.compiler.is_compiling():
        clips = len(tensors[0])
    return zip(*(tensor.split(clips) for tensor in tensors), strict=True)


def convolve_copies(
    hidden_state: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stride: int | tuple[int, ...],
    padding: str | int | tuple[int, ...],
) -> Tensor:
    """Convolve with several kernels for each channel, by one depthwise convolution for each kernel of a channel.

    Args:
        hidden_state (`Tensor` of shape `(batch, channels, frequency, time)`): Input.
        weight (`Tensor` of shape `(channels * copies, 1, height, width)`): Kernels; those of a channel are adjacent.
        bias (`Tensor` of shape `(channels * copies,)` or `None`): Biases.
        stride (`int` or `tuple[int, int]`): Stride.
        padding (`str`, `int` or `tuple[int, int]`): Padding.
    """
    channels = hidden_state.shape[1]
    copies = len(weight) // channels
    outputs = [
        F.conv2d(
            hidden_state,
            weight[copy::copies],
            None if bias is None else bias[copy::copies],
            stride,
            padding,
            groups=channels,
        ).permute(0, 2, 3, 1)
        for copy in range(copies)
    ]
    return channels_last(torch.stack(outputs, dim=4).flatten(3))


class StridedConv(torch.autograd.Function):
    """Depthwise convolution with kernels of 3 x 3, one or several for each channel, padding 1, and stride 1 or 2.

    The gradient of the input is computed for each phase of the input by itself: it is a convolution, without stride,
    of the gradient of the output with those weights that reach the phase. The outputs of a channel are placed side by
    side along time, so that one kernel sums over them. With stride 2 along both axes, this takes half of the time of
    torch's kernels in float32, and a thirtieth in bfloat16.
    """

    @staticmethod
    def forward(ctx: Any, hidden_state: Tensor, weight: Tensor, stride: tuple[int, int]) -> Tensor:
        """Convolve a tensor (batch, channels, frequency, time) with kernels (channels * copies, 1, 3, 3)."""
        ctx.save_for_backward(hidden_state, weight)
        ctx.stride = stride
        return convolve_copies(hidden_state, weight, None, stride, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the input and the kernels."""
        hidden_state, weight = ctx.saved_tensors
        channels = hidden_state.shape[1]
        kernels = weight.view(channels, -1, 3, 3)
        copies = kernels.shape[1]
        together = 1 if torch.compiler.is_compiling() else copies  # compilers fail at this stride if sizes are unknown
        result = torch.empty_like(hidden_state, memory_format=torch.channels_last)
        weight_gradient = torch.zeros_like(kernels, dtype=torch.promote_types(weight.dtype, torch.float32))
        for chunk, part, out in chunks(hidden_state, gradient, result):
            by_copy = part.permute(0, 2, 3, 1).unflatten(3, (channels, copies))
            for copy in range(copies):
                weight_gradient[:, copy] += conv2d_weight(
                    chunk, (channels, 1, 3, 3), channels_last(by_copy[..., copy]), ctx.stride, 1, 1, channels
                )[:, 0]
            side_by_side = [
                channels_last(some.transpose(3, 4).flatten(2, 3)) for some in by_copy.split(together, dim=4)
            ]
            for (frequency, rows), (time, columns) in itertools.product(*(PHASES[stride] for stride in ctx.stride)):
                kernel = kernels[:, :, rows][..., columns].permute(0, 2, 3, 1)
                padding = len(rows) // 2, together * (len(columns) // 2)
                parts = [
                    torch.convolution(
                        outputs,
                        some.flatten(2).unsqueeze(1),
                        None,
                        (1, together),
                        padding,
                        (1, 1),
                        False,
                        (0, 0),
                        channels,
                    )
                    for outputs, some in zip(side_by_side, kernel.split(together, dim=3), strict=True)
                ]
                phase = functools.reduce(torch.add, parts)
                place = out[:, :, frequency :: ctx.stride[0], time :: ctx.stride[1]]
                height, width = place.shape[2:]
                place.copy_(phase[:, :, frequency : frequency + height, time : time + width])
        return result, weight_gradient.to(weight.dtype).view_as(weight), None


class NormReLU(torch.autograd.Function):
    """Batch normalisation by the statistics of the batch, followed by a ReLU."""

    @staticmethod
    def forward(ctx: Any, hidden_state: Tensor, weight: Tensor, bias: Tensor, norm: nn.BatchNorm2d) -> Tensor:
        """Normalise a tensor (batch, channels, frequency, time) and update the running statistics of `norm`."""
        assert norm.num_batches_tracked is not None and norm.momentum is not None
        norm.num_batches_tracked.add_(1)
        output, mean, inverse_std = torch.native_batch_norm(
            hidden_state, weight, bias, norm.running_mean, norm.running_var, True, norm.momentum, norm.eps
        )
        ctx.save_for_backward(hidden_state, weight, bias, mean, inverse_std)
        ctx.eps = norm.eps
        return output.relu_()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the input, the weight and the bias."""
        hidden_state, weight, bias, mean, inverse_std = ctx.saved_tensors
        scale, shift = weight.to(mean.dtype), bias.to(mean.dtype)
        variance = inverse_std.pow(-2) - ctx.eps
        masked = torch.empty_like(hidden_state)
        for chunk, part, result in chunks(hidden_state, gradient, masked):
            output, _, _ = torch.native_batch_norm(chunk, scale, shift, mean, variance, False, 0.0, ctx.eps)
            torch.ops.aten.threshold_backward.grad_input(part, output, 0, grad_input=result)
        gradients = torch.ops.aten.native_batch_norm_backward(
            masked, hidden_state, weight, None, None, mean, inverse_std, True, ctx.eps, [True, True, True]
        )
        return *gradients, None


class ResidualNorm(torch.autograd.Function):
    """Layer normalisation, with the same gain for all values of a row, plus `scale` times its input.

    With a negative scale the output may not determine the input.
    """

    @staticmethod
    def forward(ctx: Any, rows: Tensor, gain: Tensor, scale: float, eps: float) -> Tensor:
        """Normalise rows (batch, frequency, values); `gain` has the shape (values,)."""
        output, mean, inverse_std = torch.native_layer_norm(rows, gain.shape, gain, None, eps)
        output.add_(rows, alpha=scale)
        ctx.save_for_backward(output, gain, mean, inverse_std)
        ctx.scale = scale
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradient of the rows."""
        output, gain, means, inverse_stds = ctx.saved_tensors
        result = torch.empty_like(output)
        for chunk, part, out, mean, inverse_std in chunks(output, gradient, result, means, inverse_stds):
            slope = inverse_std * gain[0]
            total = slope + ctx.scale
            rows = torch.addcmul(mean * slope / total, chunk.to(mean.dtype), total.reciprocal()).to(chunk.dtype)
            normalised, _, _ = torch.ops.aten.native_layer_norm_backward(
                part, rows, gain.shape, mean, inverse_std, gain, None, [True, False, False]
            )
            torch.add(normalised, part, alpha=ctx.scale, out=out)
        return result, None, None, None


class MaxPool(torch.autograd.Function):
    """Max-pooling by two along both axes."""

    @staticmethod
    def forward(ctx: Any, hidden_state: Tensor) -> Tensor:
        """Pool a tensor (batch, channels, frequency, time)."""
        output, positions = torch.ops.aten.max_pool2d_with_indices(hidden_state, [2, 2])
        ctx.save_for_backward(positions)
        ctx.shape = hidden_state.shape
        return output

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Return the gradient of the input."""
        (positions,) = ctx.saved_tensors
        # Of the input, the operator looks at the shape and the memory format only.
        result = torch.empty(ctx.shape, dtype=gradient.dtype, memory_format=torch.channels_last)
        return torch.ops.aten.max_pool2d_with_indices_backward.grad_input(
            gradient, result, [2, 2], [2, 2], [0, 0], [1, 1], False, positions, grad_input=result
        )

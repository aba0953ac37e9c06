"""The gradient of CP-Mobile's strided depthwise convolutions on a CPU, by kernels that are faster than torch's."""

import itertools
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight


# For each stride, the phases along one axis of the input of a convolution with three weights, by their first position,
# and the weights that reach them, from the first output to the last. Padding adds an output before that of phase 1.
PHASES = {1: [(0, [2, 1, 0])], 2: [(0, [1]), (1, [2, 0])]}


def is_differentiated_by_phases(hidden_state: Tensor) -> bool:
    """Return whether [`StridedConv`] is for a tensor: with gradients, on a CPU, and not transformed by torch."""
    return (
        hidden_state.device.type == "cpu"
        and torch.is_grad_enabled()
        and not torch.compiler.is_exporting()
        and not torch._C._are_functorch_transforms_active()
    )


class StridedConv(torch.autograd.Function):
    """Depthwise convolution with kernels of 3 x 3, padding 1, and stride 1 or 2.

    The gradient of the input is computed for each phase of the input by itself: it is a convolution, without stride,
    of the gradient of the output with those weights that reach the phase. In bfloat16, torch's kernels take many times
    as long. Gradients are those of autograd, but have none themselves.
    """

    @staticmethod
    def forward(ctx: Any, hidden_state: Tensor, weight: Tensor, stride: tuple[int, int]) -> Tensor:
        """Convolve a tensor (batch, channels, frequency, time) with kernels (channels, 1, 3, 3)."""
        ctx.save_for_backward(hidden_state, weight)
        ctx.stride = stride
        return F.conv2d(hidden_state, weight, None, stride, 1, groups=len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        """Return the gradients of the input and the kernels."""
        hidden_state, weight = ctx.saved_tensors
        channels = len(weight)
        weight_gradient = conv2d_weight(hidden_state, weight.shape, gradient, ctx.stride, 1, 1, channels)
        result = torch.empty_like(hidden_state, memory_format=torch.channels_last)
        for (frequency, rows), (time, columns) in itertools.product(*(PHASES[stride] for stride in ctx.stride)):
            kernel = weight[:, :, rows][..., columns]
            padding = len(rows) // 2, len(columns) // 2
            phase = torch.convolution(gradient, kernel, None, (1, 1), padding, (1, 1), False, (0, 0), channels)
            place = result[:, :, frequency :: ctx.stride[0], time :: ctx.stride[1]]
            height, width = place.shape[2:]
            place.copy_(phase[:, :, frequency : frequency + height, time : time + width])
        return result, weight_gradient, None

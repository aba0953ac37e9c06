"""Operations of TF-SepNet in training on a CPU, which keep a third less for the backward pass than autograd does.

The backward pass computes the output of a ReLU again, from the input of the normalisation before it and in chunks that
fit into the cache. A residual norm keeps its output instead of its input, because the next layer keeps the former too.
Of the input of a pooling only the shape is needed. Values and gradients are those of autograd, but gradients have none
themselves.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


# Values of a chunk, which is to fit into the cache.
CHUNK_SIZE = 2**20


def keeps_less(hidden_state: Tensor) -> bool:
    """Return whether these operations are for a tensor: with gradients, on a CPU, and not transformed by torch."""
    return (
        hidden_state.device.type == "cpu"
        and torch.is_grad_enabled()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
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
    """Split tensors of the same number of clips into chunks of a few clips."""
    clips = max(1, CHUNK_SIZE // max(1, tensors[0][:1].numel()))
    return zip(*(tensor.split(clips) for tensor in tensors), strict=True)


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
        slope = (weight * inverse_std).view(-1, 1, 1)
        shift = bias.view(-1, 1, 1) - mean.view(-1, 1, 1) * slope
        masked = torch.empty_like(hidden_state)
        for chunk, part, result in chunks(hidden_state, gradient, masked):
            torch.addcmul(shift, chunk, slope, out=result)
            torch.ops.aten.threshold_backward.grad_input(part, result, 0, grad_input=result)
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
            rows = torch.addcmul(mean * slope / (slope + ctx.scale), chunk, (slope + ctx.scale).reciprocal())
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

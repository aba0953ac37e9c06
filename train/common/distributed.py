"""Training on several processes that computes the same as training on one.

Each process loads the whole ("global") batch and runs the network on its own slice of it. Three operations depend on
the other rows: Freq-MixStyle and Soft Mixup (so features are gathered), dropout (so masks are drawn for the global
batch and sliced), and batch normalisation (so statistics are summed over the processes). Each process computes the
loss of the global batch, whose gradient flows through its own rows only.
"""

from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm


class BatchRows:
    """The rows of the global batch that this process computes: a contiguous slice.

    The slices of the processes differ in size by at most one row. If the batch has fewer rows than there are
    processes, some have none: these compute the first row, because layers need input, and ignore the output.

    Args:
        num_processes (`int`): Number of processes.
        process_index (`int`): Index of this process.

    Attributes:
        total (`int`): Rows of the global batch.
        count (`int`): Rows of this process.
        slice (`slice`): The rows that this process computes; those of `count`, or the first one if that is 0.
    """

    def __init__(self, num_processes: int, process_index: int):
        self.num_processes = num_processes
        self.process_index = process_index
        self.resize(0)

    def resize(self, total: int) -> None:
        """Set the number of rows of the global batch to `total`."""
        self.total = total
        bounds = [total * index // self.num_processes for index in range(self.num_processes + 1)]
        self._counts = [stop - start for start, stop in pairwise(bounds)]
        self.count = self._counts[self.process_index]
        start = bounds[self.process_index] if self.count else 0
        self.slice = slice(start, start + max(self.count, 1))

    def gather(self, x: Tensor) -> Tensor:
        """Concatenate the rows of all processes; the gradient flows to the rows of this process only.

        Args:
            x (`torch.Tensor` of shape `(rows, ...)`): Values of the rows `slice` of this process.

        Returns:
            `torch.Tensor` of shape `(total, ...)`: Values of the global batch.
        """
        if self.num_processes == 1:
            return x
        x = x[: self.count]
        padded = x.new_zeros(max(self._counts), *x.shape[1:])
        padded[: self.count] = x.detach()
        parts = [torch.empty_like(padded) for _ in self._counts]
        dist.all_gather(parts, padded)
        parts = [part[:count] for part, count in zip(parts, self._counts, strict=True)]
        parts[self.process_index] = x
        return torch.cat(parts)


def synchronize_layers(model: nn.Module, rows: BatchRows) -> None:
    """Replace batch normalisation and dropout in a model, in place, by layers that act on the global batch.

    The state dict stays the same.

    Args:
        model (`nn.Module`): The model.
        rows (`BatchRows`): Rows of the batch that the model computes.
    """
    for module in model.modules():
        for name, child in module.named_children():
            if isinstance(child, _BatchNorm):
                setattr(module, name, SynchronizedBatchNorm(child, rows))
            elif type(child) is nn.Dropout:
                setattr(module, name, SynchronizedDropout(child.p, rows))


class SynchronizedDropout(nn.Dropout):
    """Element-wise dropout whose mask is drawn for the global batch and sliced to the rows of this process.

    torch's random generator must have the same state in all processes. On one process the masks are those of torch.

    Args:
        p (`float`): Probability that an element is set to zero.
        rows (`BatchRows`): Rows of the input, resized by the caller for each batch.
    """

    def __init__(self, p: float, rows: BatchRows):
        super().__init__(p)
        self.rows = rows

    def forward(self, x: Tensor) -> Tensor:
        """Drop elements of `x`, of shape `(rows, ...)`, in training."""
        if not self.training or self.p == 0:
            return x
        # torch fills its mask in the memory order of the input, so the global mask gets the input's strides.
        mask = torch.empty_strided((self.rows.total, *x.shape[1:]), x.stride(), dtype=x.dtype, device=x.device)
        return x * mask.bernoulli_(1 - self.p).div_(1 - self.p)[self.rows.slice]


class SynchronizedBatchNorm(_BatchNorm):
    """Batch normalisation over the rows of all processes, on CPU and CUDA; `torch.nn.SyncBatchNorm` needs CUDA.

    In evaluation it is ordinary batch normalisation.

    Args:
        module (`_BatchNorm`): Layer to replace; its settings, parameters and buffers are used.
        rows (`BatchRows`): Rows of the input, resized by the caller for each batch.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, module: _BatchNorm, rows: BatchRows):
        super().__init__(module.num_features, module.eps, module.momentum)
        self._parameters, self._buffers = module._parameters, module._buffers
        self.rows = rows

    def _check_input_dim(self, x: Tensor) -> None:
        pass  # any number of axes, of which the second one is the channels

    def forward(self, x: Tensor) -> Tensor:
        """Normalise `x` of shape `(rows, channels, ...)`."""
        if not self.training:
            return super().forward(x)
        output, mean, variance, count = _SynchronizedNormalization.apply(
            x, self.weight, self.bias, self.eps, self.rows.count
        )
        with torch.no_grad():
            self.num_batches_tracked += 1
            momentum = 1 / self.num_batches_tracked.item() if self.momentum is None else self.momentum
            self.running_mean.lerp_(mean.to(self.running_mean.dtype), momentum)
            self.running_var.lerp_((variance * count / (count - 1)).to(self.running_var.dtype), momentum)
        return output


class _SynchronizedNormalization(torch.autograd.Function):
    """Normalisation by statistics of all processes; the backward pass sums two moments of the gradient over them."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, eps: float, num_rows: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        axes, shape = [0, *range(2, x.ndim)], [1, -1, *[1] * (x.ndim - 2)]
        counted = x[:num_rows].to(torch.promote_types(x.dtype, torch.float32))
        count = counted.new_tensor([counted.numel() / x.shape[1]])
        # Two passes instead of a sum of squares, which is inexact if the mean is much larger than the deviation.
        total = _sum_over_processes(torch.cat([count, counted.sum(axes)]))
        count, mean = total[0], total[1:] / total[0]
        variance = _sum_over_processes((counted - mean.view(shape)).square().sum(axes)) / count
        ctx.save_for_backward(x, weight, mean, (variance + eps).rsqrt(), count)
        ctx.num_rows = num_rows
        ctx.mark_non_differentiable(mean, variance, count)
        output = F.batch_norm(x, mean, variance, weight, bias, training=False, eps=eps)
        return output, mean, variance, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor, Tensor, Tensor, None, None]:
        x, weight, mean, inverse_std, count = ctx.saved_tensors
        axes, shape = [0, *range(2, x.ndim)], [1, -1, *[1] * (x.ndim - 2)]
        normalised = (x.to(mean.dtype) - mean.view(shape)) * inverse_std.view(shape)
        gradient = gradient.to(mean.dtype)
        bias_gradient = gradient.sum(axes)
        weight_gradient = (gradient * normalised).sum(axes)
        first, second = _sum_over_processes(torch.stack([bias_gradient, weight_gradient])) / count
        input_gradient = gradient - first.view(shape) - normalised * second.view(shape)
        input_gradient = input_gradient * (weight * inverse_std).view(shape)
        if not ctx.num_rows:
            input_gradient.zero_()
        return input_gradient.to(x.dtype), weight_gradient, bias_gradient, None, None


def _sum_over_processes(x: Tensor) -> Tensor:
    if dist.is_available() and dist.is_initialized():
        dist.all_reduce(x)
    return x

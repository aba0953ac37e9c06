"""Parameters and multiply-accumulate operations, counted as DCASE Task 1 counts them."""

from typing import NamedTuple

import torch
from torch import nn

from .configuration_tfsepnet import TFSepNetConfig
from .modeling_tfsepnet import TFSepNetForAudioClassification


MAX_PARAMETER_BYTES = 128_000
"""Limit of DCASE 2024 Task 1 for all parameters, in bytes."""

MAX_MACS = 30_000_000
"""Limit of DCASE 2024 Task 1 for one clip of one second, in multiply-accumulate operations."""


class Complexity(NamedTuple):
    """Parameters of a network, and its multiply-accumulate operations for one window."""

    parameters: int
    macs: int


def count_complexity(
    network: TFSepNetConfig | TFSepNetForAudioClassification,
    num_mel_bins: int | None = None,
    num_frames: int | None = None,
) -> Complexity:
    """Count the parameters of a TF-SepNet and its multiply-accumulate operations for one window.

    The rule is that of the challenge (torchinfo's): a convolution costs its output positions times its parameters,
    its bias included; a batch norm costs its affine parameters, whatever its positions; everything else is free. The
    network runs on the meta device, so no weights are needed.

    Args:
        network ([`TFSepNetConfig`] or [`TFSepNetForAudioClassification`]): A configuration or a model.
        num_mel_bins (`int`, *optional*): Mel bands of the input; defaults to those of the configuration.
        num_frames (`int`, *optional*): Frames of the input; defaults to those of the configuration.

    Example:
    ```python
    >>> from modeling_tfsepnet import TFSepNetConfig
    >>> from modeling_tfsepnet.complexity import count_complexity

    >>> count_complexity(TFSepNetConfig())
    Complexity(parameters=126858, macs=29419648)
    ```
    """
    config = network if isinstance(network, TFSepNetConfig) else network.config
    macs = 0

    def count(module: nn.Module, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        nonlocal macs
        positions = output[0, 0].numel() if isinstance(module, nn.Conv2d) else 1
        macs += positions * sum(parameter.numel() for parameter in module.parameters())

    with torch.device("meta"):
        model = TFSepNetForAudioClassification(config).train()  # in eval mode the batch norms are folded away
        for module in model.modules():
            if isinstance(module, (nn.Conv2d, nn.BatchNorm2d)):
                module.register_forward_hook(count)
        # Two clips, since batch norms refuse to take statistics of a single value.
        model(torch.empty(2, 1, num_mel_bins or config.num_mel_bins, num_frames or config.num_frames))
    return Complexity(parameters=model.num_parameters(), macs=macs)


__all__ = ["MAX_MACS", "MAX_PARAMETER_BYTES", "Complexity", "count_complexity"]

"""Quantization-aware fine-tuning: integers of a TF-SepNet that go on learning from its float form."""

from collections.abc import Iterable

import torch
from torch import nn
from torch.nn.utils.parametrize import register_parametrization, remove_parametrizations
from tqdm.auto import tqdm

from modeling_tfsepnet import TFSepNetForAudioClassification
from train.classification.losses import DistillationLoss
from train.deployment.rounding import layers


LEARNING_RATE = 0.02
"""Of Adam at the beginning, in steps of the weights' grids; it falls to zero linearly."""

BIAS_LEARNING_RATE = 0.4
"""The same in steps of the biases' grids, which are finer."""


class Grid(nn.Module):
    """Parametrization by integers times `step`; gradients pass the rounding (Bengio et al., arXiv 1308.3432, 2013).

    Args:
        step (`torch.Tensor`): Of the grid; broadcast against the parameter.
        limit (`int`): Largest magnitude of the integers.
    """

    def __init__(self, step: torch.Tensor, limit: int) -> None:
        super().__init__()
        self.register_buffer("step", step)
        self.limit = limit

    def forward(self, integers: torch.Tensor) -> torch.Tensor:
        """Values that the nearest integers stand for, of the same shape."""
        return torch.fake_quantize_per_tensor_affine(integers, 1.0, 0, -self.limit, self.limit) * self.step

    def right_inverse(self, values: torch.Tensor) -> torch.Tensor:
        """Integers of values on the grid."""
        return values / self.step


def finetune(
    rounded: TFSepNetForAudioClassification,
    folded: TFSepNetForAudioClassification,
    batches: Iterable[torch.Tensor],
    epochs: int,
) -> None:
    """Distil the float network into the rounded one, in place, over weights and biases that stay on their grids.

    The divergence is that of equation 5 of the report, whose teacher is the float network here; it needs no labels.

    Args:
        rounded ([`TFSepNetForAudioClassification`]): From [`~train.deployment.rounding.round_weights`].
        folded ([`TFSepNetForAudioClassification`]): From [`~train.deployment.rounding.fold`].
        batches (`Iterable` of tensors `(clips, mel_bins, frames)`): An epoch of log-mel windows, each time it is
            iterated over.
        epochs (`int`): How often.
    """
    grids = {"weight": 127, "bias": 32767}
    integers: dict[str, list[nn.Parameter]] = {name: [] for name in grids}
    for layer in layers(rounded).values():
        for name, limit in grids.items():
            step = layer.weight_scale.view(-1, 1, 1, 1) if name == "weight" else layer.bias_scale
            register_parametrization(layer, name, Grid(step, limit))
            integers[name].append(layer.parametrizations[name].original.requires_grad_())
    optimizer = torch.optim.Adam(
        [
            {"params": integers["weight"], "lr": LEARNING_RATE},
            {"params": integers["bias"], "lr": BIAS_LEARNING_RATE},
        ]
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / (epochs * len(batches)))
    loss_function = DistillationLoss()
    for epoch in range(epochs):
        for windows in tqdm(batches, desc=f"Fine-tuning, epoch {epoch + 1} of {epochs}", unit=" batches", leave=False):
            inputs = windows.unsqueeze(1)
            with torch.no_grad():
                wanted = folded(inputs).logits
            loss = loss_function.kd_loss(rounded(inputs).logits, wanted)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    for layer in layers(rounded).values():
        for name in grids:
            remove_parametrizations(layer, name)
            getattr(layer, name).requires_grad_(False)

"""Quantization-aware fine-tuning: distil a float student into its rounded form."""

from collections.abc import Sequence

import torch
from datasets.utils import tqdm
from torch import Tensor, nn
from torch.nn.utils.parametrize import register_parametrization, remove_parametrizations
from torch.utils.data import DataLoader

from model_cards.students import StudentModel
from train.classification.losses import DistillationLoss
from train.deployment.rounding import MAX_BIAS, MAX_WEIGHT, folded_convolutions


LEARNING_RATE = 0.02
"""Initial learning rate of Adam for the weights, in steps of their grids; it decays linearly to zero."""

BIAS_LEARNING_RATE = 0.4
"""Initial learning rate of Adam for the biases, in steps of their grids, which are finer."""


class Grid(nn.Module):
    """Parametrization of a tensor as integers times a step, with straight-through gradients.

    See Bengio et al., *Estimating or Propagating Gradients Through Stochastic Neurons*, arXiv 1308.3432, 2013.

    Args:
        step (`torch.Tensor`): Step of the grid, broadcast against the parameter.
        limit (`int`): Largest magnitude of the integers.
    """

    step: Tensor

    def __init__(self, step: Tensor, limit: int) -> None:
        super().__init__()
        self.register_buffer("step", step)
        self.limit = limit

    def forward(self, integers: Tensor) -> Tensor:
        """Round to the nearest integers and return the values that they represent, of the same shape."""
        return torch.fake_quantize_per_tensor_affine(integers, 1.0, 0, -self.limit, self.limit) * self.step

    def right_inverse(self, values: Tensor) -> Tensor:
        """Return the integers of values on the grid."""
        return values / self.step


def finetune(
    rounded: StudentModel,
    folded: StudentModel,
    batches: Sequence[Tensor] | DataLoader[Tensor],
    epochs: int,
) -> None:
    """Distil the float network into the rounded one in place; weights and biases stay on their grids.

    The loss is the divergence of the report's equation 5 with the float network as the teacher, so no labels are
    needed.

    Args:
        rounded (`StudentModel`): A network from [`~train.deployment.rounding.round_weights`].
        folded (`StudentModel`): The float network that it was rounded from.
        batches (`Sequence` or `DataLoader` of tensors of shape `(windows, mel_bins, frames)`): Log-mel windows of an
            epoch; every epoch iterates over it anew.
        epochs (`int`): Number of epochs.
    """
    weights, biases = [], []
    for layer in folded_convolutions(rounded).values():
        weights.append(_put_on_grid(layer, "weight", layer.weight_scale.view(-1, 1, 1, 1), MAX_WEIGHT))
        biases.append(_put_on_grid(layer, "bias", layer.bias_scale, MAX_BIAS))
    optimizer = torch.optim.Adam(
        [{"params": weights, "lr": LEARNING_RATE}, {"params": biases, "lr": BIAS_LEARNING_RATE}]
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / (epochs * len(batches)))
    loss_function = DistillationLoss()
    for epoch in range(epochs):
        for windows in tqdm(batches, desc=f"Fine-tuning, epoch {epoch + 1} of {epochs}", unit=" batches", leave=False):
            inputs = windows.unsqueeze(1)
            with torch.no_grad():
                teacher_logits = folded(inputs).logits
            loss = loss_function.kd_loss(rounded(inputs).logits, teacher_logits)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    for layer in folded_convolutions(rounded).values():
        for name in ("weight", "bias"):
            remove_parametrizations(layer, name)
            getattr(layer, name).requires_grad_(False)


def _put_on_grid(layer: nn.Module, name: str, step: Tensor, limit: int) -> Tensor:
    """Parametrize a parameter of a layer by a [`Grid`], and return the trainable integers."""
    register_parametrization(layer, name, Grid(step, limit))
    return layer.get_parameter(f"parametrizations.{name}.original").requires_grad_()

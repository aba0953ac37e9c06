"""Comparison of INT8 networks with the float networks that they were made from."""

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias, TypedDict

import numpy as np
import torch
from torch import Tensor, nn

from model_cards.students import StudentModel
from train.deployment.rounding import folded_convolutions


Metric: TypeAlias = Callable[[np.ndarray, np.ndarray], float]
"""Takes logits of shape `(clips, classes)` and labels of shape `(clips,)`; larger is better."""

RESAMPLES = 1000
"""Resamples of the calibration clips for the uncertainty of a loss."""

CONFIDENCE = 0.95
"""How certain it has to be that the loss is not tolerable."""

WINDOWS_PER_BATCH = 8


class Calibration(TypedDict):
    """Comparison of the INT8 network with the float network on the calibration clips.

    `smallest_loss` is the relative loss of the metric that 95 % of the resamples of the clips exceed. A loss is only
    called intolerable if this is larger than the tolerable loss, as a clip more or less says nothing.
    """

    float: float
    int8: float
    smallest_loss: float
    tolerable: bool
    agreement: float
    sqnr_db: float


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the fraction of clips whose largest logit is that of their label."""
    return float((logits.argmax(axis=1) == labels).mean())


@torch.no_grad()
def window_logits(model: nn.Module, windows: Tensor) -> Tensor:
    """Compute logits of shape `(windows, classes)` of log-mel windows of shape `(windows, mel_bins, frames)`."""
    outputs = [model(batch.unsqueeze(1)) for batch in windows.split(WINDOWS_PER_BATCH)]
    return torch.cat([output if isinstance(output, Tensor) else output.logits for output in outputs])


def compare(
    float_logits: Tensor, int8_logits: Tensor, labels: np.ndarray, metric: Metric, tolerable_loss: float
) -> Calibration:
    """Compare an INT8 network with the float network, and judge the loss of the metric against its uncertainty.

    Args:
        float_logits (`torch.Tensor` of shape `(clips, classes)`): Logits of the float network.
        int8_logits (`torch.Tensor` of shape `(clips, classes)`): Logits of the INT8 network for the same clips.
        labels (`np.ndarray` of shape `(clips,)`): Their labels.
        metric (`Callable`): The metric.
        tolerable_loss (`float`): Largest relative loss of the metric.
    """
    before, after = float_logits.numpy(), int8_logits.numpy()
    rng, losses = np.random.default_rng(0), []
    for _ in range(RESAMPLES):
        drawn = rng.integers(len(labels), size=len(labels))
        reference = metric(before[drawn], labels[drawn])
        if reference > 0:
            losses.append(1 - metric(after[drawn], labels[drawn]) / reference)
    smallest = float(np.quantile(losses, 1 - CONFIDENCE)) if losses else 0.0
    return {
        "float": metric(before, labels),
        "int8": metric(after, labels),
        "smallest_loss": smallest,
        "tolerable": smallest <= tolerable_loss,
        **agreement(float_logits, int8_logits),  # type: ignore[typeddict-item]  # mypy does not know its keys
    }


def describe_loss(calibration: Mapping[str, Any], tolerable_loss: float) -> str:
    """Return a sentence about a loss that is not tolerable, with advice."""
    return (
        f"INT8 lowers the metric on the calibration clips from {calibration['float']:.4f} to "
        f"{calibration['int8']:.4f}, with {CONFIDENCE:.0%} certainty by more than "
        f"{calibration['smallest_loss']:.1%}, which exceeds the tolerable loss of {tolerable_loss:.1%} "
        f"({calibration['agreement']:.1%} equal decisions, {calibration['sqnr_db']:.1f} dB). Keep the float model, "
        "use activation_bits 16 or more calibration clips, or raise tolerable_loss."
    )


def agreement(reference: Tensor, logits: Tensor) -> dict[str, float]:
    """Compare logits with those of a reference.

    Args:
        reference (`torch.Tensor` of shape `(clips, classes)`): Logits of the reference.
        logits (`torch.Tensor` of shape `(clips, classes)`): Logits to compare.

    Returns:
        `dict[str, float]`: The fraction of equal decisions as `agreement`, and the signal-to-quantization-noise ratio
        of the logits in dB as `sqnr_db`.
    """
    return {
        "agreement": float((reference.argmax(1) == logits.argmax(1)).double().mean()),
        "sqnr_db": sqnr(reference, logits),
    }


def sqnr(reference: Tensor, values: Tensor) -> float:
    """Return the signal-to-quantization-noise ratio in dB."""
    noise = (reference - values).double().square().sum().clamp(min=1e-30)
    return float(10 * torch.log10(reference.double().square().sum() / noise))


@torch.no_grad()
def layer_sqnr(folded: StudentModel, model: StudentModel, windows: Tensor) -> dict[str, float]:
    """Measure the cost of each layer: the SQNR of the logits in dB if only that layer is INT8.

    Args:
        folded (`StudentModel`): The float network, folded and equalized as `model`.
        model (`StudentModel`): Its INT8 form.
        windows (`torch.Tensor` of shape `(windows, mel_bins, frames)`): Log-mel of some clips.

    Returns:
        `dict[str, float]`: The SQNR by the name of the layer.
    """
    expected, decibels = window_logits(folded, windows), {}
    for name, layer in folded_convolutions(folded).items():
        folded.set_submodule(name, model.get_submodule(name))
        decibels[name] = sqnr(expected, window_logits(folded, windows))
        folded.set_submodule(name, layer)
    return decibels

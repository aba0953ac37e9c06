"""How good teachers are, looked at before they teach and beside their student."""

import logging
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np
from scipy.special import softmax

from train.classification.data import LOGITS_PREFIX
from train.evaluation.metrics import scene_metrics


logger = logging.getLogger(__name__)

SATURATED = 0.99
"""Mean confidence above which the logits of a teacher say hardly more than labels."""

BINS = 15
"""Bins of the calibration error."""


def describe_teacher(
    name: str, clips: datasets.Dataset, temperature: float, test: datasets.Dataset | None = None
) -> dict[str, Any]:
    """Measure a teacher on the clips that it teaches, log it, and warn of logits that cannot be right.

    Args:
        name (`str`): Suffix of its column of logits.
        clips (`datasets.Dataset`): Column `label`, and the column of logits.
        temperature (`float`): Divisor of the logits in distillation.
        test (`datasets.Dataset`, *optional*): The test clips, which may have logits, too.

    Returns:
        `dict`: `name`; `training_accuracy`, `log_loss` and `calibration_error` on the clips that it teaches;
        `confidence`, its mean largest probability at the temperature; and `macro_accuracy` on the test clips, None if
        they have no logits.
    """
    labels, logits = np.asarray(clips["label"][:]), _logits(clips, name)
    assert logits is not None
    metrics, right = scene_metrics(logits, labels), logits.argmax(axis=1) == labels
    description: dict[str, Any] = {
        "name": name,
        "training_accuracy": metrics["accuracy"],
        "log_loss": metrics["log_loss"],
        "calibration_error": calibration_error(highest_probability(logits), right),
        "confidence": float(highest_probability(logits, temperature).mean()),
        "macro_accuracy": None if test is None else _macro_accuracy(test, name),
    }
    logger.info(
        "Teacher %s: %.1f %% of the training clips right, mean confidence %.2f at temperature %g, calibration error "
        "%.2f.",
        name,
        100 * description["training_accuracy"],
        description["confidence"],
        temperature,
        description["calibration_error"],
    )
    if description["training_accuracy"] < 1.5 / logits.shape[1]:
        logger.warning(
            "The teacher %s is hardly better than chance on the clips it teaches: check the order of its classes and "
            "the sign of its logits.",
            name,
        )
    elif description["confidence"] > SATURATED:
        logger.warning(
            "The teacher %s is so confident at temperature %g that its logits say hardly more than labels: raise "
            "--temperature, or check the scale of its logits.",
            name,
            temperature,
        )
    return description


def compare_with_student(teachers: Sequence[dict[str, Any]], macro_accuracy: float) -> None:
    """Warn of teachers that are worse than their student on the test clips.

    Args:
        teachers (`Sequence[dict]`): As returned by [`describe_teacher`].
        macro_accuracy (`float`): That of the student.
    """
    for teacher in teachers:
        if teacher["macro_accuracy"] is not None and teacher["macro_accuracy"] < macro_accuracy:
            logger.warning(
                "The teacher %s (%.1f %% macro accuracy) is worse than the student (%.1f %%) on the test split: do "
                "not expect that it makes the student better.",
                teacher["name"],
                100 * teacher["macro_accuracy"],
                100 * macro_accuracy,
            )


def highest_probability(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Return the largest probability of each clip.

    Args:
        logits (`np.ndarray` of shape `(clips, classes)`): The logits.
        temperature (`float`, *optional*, defaults to 1.0): Their divisor.
    """
    return softmax(logits / temperature, axis=1).max(axis=1)


def calibration_error(highest: np.ndarray, right: np.ndarray) -> float:
    """Compute the expected calibration error: the mean gap between confidence and accuracy over bins of confidence.

    Source: Guo et al., "On Calibration of Modern Neural Networks", 2017, equation 3.

    Args:
        highest (`np.ndarray` of shape `(clips,)`): Largest probability of each clip.
        right (`np.ndarray` of shape `(clips,)`): Whether the class with that probability is right.
    """
    bins = np.minimum((highest * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, weights=right.astype(float) - highest, minlength=BINS)
    return float(np.abs(gaps).sum() / len(highest))


def _macro_accuracy(clips: datasets.Dataset, name: str) -> float | None:
    logits = _logits(clips, name)
    if logits is None:
        return None
    return scene_metrics(logits, clips["label"][:])["macro_accuracy"]


def _logits(clips: datasets.Dataset, name: str) -> np.ndarray | None:
    column = clips.with_format(None)[LOGITS_PREFIX + name][:]
    return None if column[0] is None else np.asarray(column, dtype=np.float64)

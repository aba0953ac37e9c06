"""How good teachers are, looked at before they teach and beside their student."""

import logging
from collections.abc import Sequence
from typing import Any

import datasets
import numpy as np

from train.classification.data import LOGITS_PREFIX


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
    probabilities = _softmax(logits)
    right = logits.argmax(axis=1) == labels
    description: dict[str, Any] = {
        "name": name,
        "training_accuracy": float(right.mean()),
        "log_loss": float(-np.log(probabilities[np.arange(len(labels)), labels].clip(1e-12)).mean()),
        "calibration_error": calibration_error(probabilities.max(axis=1), right),
        "confidence": float(_softmax(logits / temperature).max(axis=1).mean()),
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


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Compute the expected calibration error: the mean gap between confidence and accuracy over bins of confidence.

    Source: Guo et al., "On Calibration of Modern Neural Networks", 2017, equation 3.

    Args:
        confidence (`np.ndarray` of shape `(clips,)`): Largest probability of each clip.
        right (`np.ndarray` of shape `(clips,)`): Whether the class with that probability is right.
    """
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    gaps = np.bincount(bins, weights=right.astype(float) - confidence, minlength=BINS)
    return float(np.abs(gaps).sum() / len(confidence))


def _macro_accuracy(clips: datasets.Dataset, name: str) -> float | None:
    logits = _logits(clips, name)
    if logits is None:
        return None
    labels = np.asarray(clips["label"][:])
    right = logits.argmax(axis=1) == labels
    return float(np.mean([right[labels == label].mean() for label in np.unique(labels)]))


def _logits(clips: datasets.Dataset, name: str) -> np.ndarray | None:
    column = clips.with_format(None)[LOGITS_PREFIX + name][:]
    return None if column[0] is None else np.asarray(column, dtype=np.float64)


def _softmax(logits: np.ndarray) -> np.ndarray:
    return np.exp(logits - np.logaddexp.reduce(logits, axis=1)[:, None])

"""Accuracy of acoustic scene classifiers, as the DCASE challenge reports it, with confidence intervals.

[`SceneClassification`] is an `evaluate.Metric`: instantiate it, or `evaluate.load("train/metrics.py")`. This file
needs nothing else of the project, so a copy of it in a folder of its own (`scenes/scenes.py`) is loaded by
`evaluate.load("scenes")`. No download is involved. [`scene_metrics`] is the same as a plain function of arrays.
"""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np


UNSEEN_DEVICES = ("s4", "s5", "s6")
"""Devices that occur only in TAU's test split."""

_DESCRIPTION = """\
Accuracy, macro-averaged accuracy (the mean of the classes' accuracies: the ranking measure of DCASE Task 1) and log
loss of an acoustic scene classifier, also by class, recording device, group of devices and city, with the confusion
matrix and, on request, bootstrap confidence intervals.
"""
_KWARGS_DESCRIPTION = """
Args:
    predictions (array of shape (clips, classes)): Logits (or log-probabilities).
    references (array of shape (clips,)): Index of each clip's class.
    labels (list of str, optional): Names of the classes, in the order of the logits. Default "0", "1", ...
    devices (list of str, optional): Recording device of each clip.
    cities (list of str, optional): City of each clip.
    unseen_devices (list of str, optional): Devices that training did not have. Default s4, s5 and s6.
    bootstrap (int, optional): Number of resamples of the confidence intervals; 0, the default, leaves them out.
    clusters (array, optional): Clips with an equal value are resampled together, such as the clips of one location,
        which resemble each other. Default: every clip on its own.
    seed (int, optional): Seed of the resampling. Default 0.

Returns:
    clips: Number of clips.
    accuracy, macro_accuracy, log_loss: Shares from 0 to 1, and nats. The macro average is over classes that occur.
    class_wise, device_wise, city_wise: For each name {clips, accuracy, log_loss}; None for a class that has no clip.
    device_groups: The same for "seen" and "unseen" devices, as far as they occur.
    confusion_matrix: Row of the true class, column of the predicted one, in clips.
    confidence_intervals: 95 % intervals [low, high] of accuracy and macro_accuracy.
"""


class SceneClassification(evaluate.Metric):
    """`evaluate.Metric` around [`scene_metrics`]; arguments and results are described there.

    Example:
        >>> metric = SceneClassification()
        >>> result = metric.compute(predictions=np.eye(3)[[0, 1, 1, 1]], references=[0, 1, 1, 2])
        >>> result["accuracy"], round(result["macro_accuracy"], 3), result["confusion_matrix"]
        (0.75, 0.667, [[1, 0, 0], [0, 2, 0], [0, 1, 0]])
    """

    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation="",
            inputs_description=_KWARGS_DESCRIPTION,
            features=datasets.Features(
                {
                    "predictions": datasets.Sequence(datasets.Value("float64")),
                    "references": datasets.Value("int64"),
                }
            ),
        )

    def _compute(self, predictions: Any, references: Any, **kwargs: Any) -> dict[str, Any]:
        return scene_metrics(predictions, references, **kwargs)


def scene_metrics(
    predictions: Any,
    references: Any,
    labels: Sequence[str] | None = None,
    devices: Sequence[str] | None = None,
    cities: Sequence[str] | None = None,
    unseen_devices: Sequence[str] = UNSEEN_DEVICES,
    bootstrap: int = 0,
    clusters: Any = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Return every figure of a scene classifier on a set of clips, ready for JSON.

    Args:
        predictions (array of shape `(clips, classes)`): Logits.
        references (array of shape `(clips,)`): Index of each clip's class.
        labels (`Sequence[str]`, *optional*): Names of the classes; defaults to their indices.
        devices (`Sequence[str]`, *optional*): Device of each clip; adds `device_wise` and `device_groups`.
        cities (`Sequence[str]`, *optional*): City of each clip; adds `city_wise`.
        unseen_devices (`Sequence[str]`, *optional*, defaults to TAU's s4, s5 and s6): Devices absent from training.
        bootstrap (`int`, *optional*, defaults to 0): Resamples behind `confidence_intervals`; 0 leaves them out.
        clusters (array of shape `(clips,)`, *optional*): What is resampled as a whole; defaults to single clips.
        seed (`int`, *optional*, defaults to 0): Seed of the resampling.

    Raises:
        ValueError: If shapes disagree, there is no clip, a logit is not finite, a class index has no logit, or
            `bootstrap` is negative.
    """
    try:
        logits = np.asarray(predictions, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError("predictions are no array of numbers: give logits of shape (clips, classes).") from None
    truth = np.asarray(references)
    if bootstrap < 0:
        raise ValueError(f"bootstrap is {bootstrap}: give the number of resamples, or 0 for none.")
    _check(logits, truth, labels=labels, devices=devices, cities=cities, clusters=clusters)
    num_classes = logits.shape[1]
    names = [str(index) for index in range(num_classes)] if labels is None else list(labels)
    correct = logits.argmax(1) == truth
    losses = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(logits)), truth]

    def figures(chosen: np.ndarray) -> dict[str, Any] | None:
        if not chosen.any():
            return None
        return {
            "clips": int(chosen.sum()),
            "accuracy": float(correct[chosen].mean()),
            "log_loss": float(losses[chosen].mean()),
        }

    def by_name(groups: Sequence[str]) -> dict[str, Any]:
        groups = np.asarray(groups)
        return {str(name): figures(groups == name) for name in np.unique(groups)}

    class_wise = {name: figures(truth == index) for index, name in enumerate(names)}
    result = {
        **figures(np.ones(len(truth), dtype=bool)),
        "macro_accuracy": float(np.mean([of_class["accuracy"] for of_class in class_wise.values() if of_class])),
        "class_wise": class_wise,
    }
    if devices is not None:
        unseen = np.isin(devices, list(unseen_devices))
        groups = {"seen": figures(~unseen), "unseen": figures(unseen)}
        result["device_wise"] = by_name(devices)
        result["device_groups"] = {name: group for name, group in groups.items() if group is not None}
    if cities is not None:
        result["city_wise"] = by_name(cities)
    confusion = np.bincount(truth * num_classes + logits.argmax(1), minlength=num_classes**2)
    result["confusion_matrix"] = confusion.reshape(num_classes, num_classes).tolist()
    if bootstrap:
        result["confidence_intervals"] = _bootstrap_intervals(correct, truth, num_classes, bootstrap, clusters, seed)
    return result


def _bootstrap_intervals(
    correct: np.ndarray, truth: np.ndarray, num_classes: int, resamples: int, clusters: Any, seed: int
) -> dict[str, list[float]]:
    """Return 95 % percentile intervals, resampling whole clusters with replacement.

    An accuracy depends on a resample only through the counts of correct clips and of clips, per class; so each cluster
    is reduced to these counts once, and a resample is a weighted sum of them.
    """
    cluster = np.arange(len(truth)) if clusters is None else np.unique(clusters, return_inverse=True)[1].ravel()
    num_clusters = cluster.max() + 1
    counts = np.zeros((num_clusters, 2, num_classes))
    np.add.at(counts, (cluster, 0, truth), correct)
    np.add.at(counts, (cluster, 1, truth), 1)
    counts = counts.reshape(num_clusters, -1)
    rng = np.random.default_rng(seed)
    accuracy, macro_accuracy = np.empty(resamples), np.empty(resamples)
    for resample in range(resamples):
        weights = np.bincount(rng.integers(num_clusters, size=num_clusters), minlength=num_clusters)
        hits, clips = (weights @ counts).reshape(2, num_classes)
        accuracy[resample] = hits.sum() / clips.sum()
        macro_accuracy[resample] = (hits[clips > 0] / clips[clips > 0]).mean()
    return {
        "accuracy": np.quantile(accuracy, [0.025, 0.975]).tolist(),
        "macro_accuracy": np.quantile(macro_accuracy, [0.025, 0.975]).tolist(),
    }


def _check(logits: np.ndarray, truth: np.ndarray, labels: Sequence[str] | None, **per_clip: Any) -> None:
    if logits.ndim != 2 or not logits.size:
        raise ValueError(
            f"predictions have shape {logits.shape}: give logits of shape (clips, classes), at least one."
        )
    for name, values in {"references": truth, **per_clip}.items():
        if values is not None and np.shape(values) != (len(logits),):
            raise ValueError(f"{name} have shape {np.shape(values)}: give one value for each of {len(logits)} clips.")
    if not np.isfinite(logits).all():
        clip = int(np.flatnonzero(~np.isfinite(logits).all(1))[0])
        raise ValueError(f"predictions of clip {clip} hold NaN or infinity: check the model that made them.")
    if not np.issubdtype(truth.dtype, np.integer) or truth.min() < 0 or truth.max() >= logits.shape[1]:
        raise ValueError(f"references must be class indices from 0 to {logits.shape[1] - 1}, one for each logit.")
    if labels is not None and len(labels) != logits.shape[1]:
        raise ValueError(f"labels name {len(labels)} classes, but the predictions have {logits.shape[1]} columns.")

"""Accuracy of acoustic scene classifiers, as the DCASE challenge reports it, with confidence intervals.

[`SceneClassification`] is an `evaluate.Metric`: instantiate it, or use `evaluate.load("train/evaluation/metrics.py")`.
This file imports nothing else of the project, so `evaluate.load("scenes")` loads a copy at `scenes/scenes.py`, without
a download. [`scene_metrics`] is the same as a function of arrays.
"""

from collections.abc import Sequence
from typing import Any

import datasets
import evaluate
import numpy as np


UNSEEN_DEVICES = ("s4", "s5", "s6")
"""Devices that only occur in TAU's test split."""

_DESCRIPTION = """\
Accuracy, macro-averaged accuracy (the mean of the classes' accuracies, by which DCASE Task 1 ranks) and log loss of an
acoustic scene classifier, also by class, recording device, group of devices and city, with the confusion matrix and
optional bootstrap confidence intervals.
"""
_KWARGS_DESCRIPTION = """
Args:
    predictions (array of shape (clips, classes)): Logits (or log-probabilities).
    references (array of shape (clips,)): Index of each clip's class.
    labels (list of str, optional): Names of the classes, in the order of the logits. Default "0", "1", ...
    devices (list of str, optional): Recording device of each clip.
    cities (list of str, optional): City of each clip.
    unseen_devices (list of str, optional): Devices that are not in the training data. Default s4, s5 and s6.
    bootstrap (int, optional): Number of resamples for the confidence intervals; 0, the default, omits them.
    clusters (array, optional): Clips with equal values are resampled together, such as the clips of one location,
        which resemble each other. Default: each clip by itself.
    seed (int, optional): Seed of the resampling. Default 0.

Returns:
    clips: Number of clips.
    accuracy, macro_accuracy: Fractions from 0 to 1. The macro average is over the classes that occur.
    log_loss: Cross-entropy in nats.
    class_wise, device_wise, city_wise: {clips, accuracy, log_loss} by name; None for a class without clips.
    device_groups: The same for "seen" and "unseen" devices, if they occur.
    confusion_matrix: Numbers of clips by true class (row) and predicted class (column).
    confidence_intervals: 95 % intervals [low, high] of accuracy and macro_accuracy.
"""


class SceneClassification(evaluate.Metric):
    """`evaluate.Metric` of [`scene_metrics`], with the same arguments and results.

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
    """Compute all metrics of a scene classifier on a set of clips.

    Args:
        predictions (array of shape `(clips, classes)`): Logits.
        references (array of shape `(clips,)`): Index of each clip's class.
        labels (`Sequence[str]`, *optional*): Names of the classes; defaults to their indices.
        devices (`Sequence[str]`, *optional*): Device of each clip; adds `device_wise` and `device_groups`.
        cities (`Sequence[str]`, *optional*): City of each clip; adds `city_wise`.
        unseen_devices (`Sequence[str]`, *optional*, defaults to TAU's s4, s5 and s6): Devices that are not in the
            training data.
        bootstrap (`int`, *optional*, defaults to 0): Number of resamples for `confidence_intervals`; 0 omits them.
        clusters (array of shape `(clips,)`, *optional*): Clips with equal values are resampled together; defaults to
            each clip by itself.
        seed (`int`, *optional*, defaults to 0): Seed of the resampling.

    Returns:
        `dict[str, Any]`: The metrics as described for [`SceneClassification`], of types that JSON can store.

    Raises:
        ValueError: If shapes disagree, there is no clip, a logit is not finite, a class index has no logit, or
            `bootstrap` is negative.
    """
    try:
        logits = np.asarray(predictions, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError("predictions is not an array of numbers: use logits of shape (clips, classes).") from None
    truth = np.asarray(references)
    if bootstrap < 0:
        raise ValueError(f"bootstrap is {bootstrap}: choose the number of resamples, or 0 for none.")
    _check(logits, truth, labels=labels, devices=devices, cities=cities, clusters=clusters)
    num_classes = logits.shape[1]
    names = [str(index) for index in range(num_classes)] if labels is None else list(labels)
    correct = logits.argmax(1) == truth
    losses = np.logaddexp.reduce(logits, axis=1) - logits[np.arange(len(logits)), truth]

    def scores(chosen: np.ndarray) -> dict[str, Any]:
        return {
            "clips": int(chosen.sum()),
            "accuracy": float(correct[chosen].mean()),
            "log_loss": float(losses[chosen].mean()),
        }

    def by_name(groups: Sequence[str]) -> dict[str, Any]:
        values = np.asarray(groups)
        return {str(name): scores(values == name) for name in np.unique(values)}

    class_wise = {name: scores(truth == index) if (truth == index).any() else None for index, name in enumerate(names)}
    result = {
        **scores(np.ones(len(truth), dtype=bool)),
        "macro_accuracy": float(np.mean([of_class["accuracy"] for of_class in class_wise.values() if of_class])),
        "class_wise": class_wise,
    }
    if devices is not None:
        unseen = np.isin(devices, list(unseen_devices))
        result["device_wise"] = by_name(devices)
        result["device_groups"] = by_name(np.where(unseen, "unseen", "seen").tolist())
    if cities is not None:
        result["city_wise"] = by_name(cities)
    confusion = np.bincount(truth * num_classes + logits.argmax(1), minlength=num_classes**2)
    result["confusion_matrix"] = confusion.reshape(num_classes, num_classes).tolist()
    if bootstrap:
        result["confidence_intervals"] = _bootstrap_intervals(correct, truth, num_classes, bootstrap, clusters, seed)
    return result


def macro_accuracy_difference(
    predictions: Any, others: Any, references: Any, clusters: Any = None, bootstrap: int = 1000, seed: int = 0
) -> dict[str, Any]:
    """Compare two classifiers on the same clips: pairing them leaves out how hard the clips are for both.

    Args:
        predictions (array of shape `(clips, classes)`): Logits of the first classifier.
        others (array of shape `(clips, classes)`): Logits of the second one.
        references (array of shape `(clips,)`): Index of each clip's class.
        clusters (array of shape `(clips,)`, *optional*): As for [`scene_metrics`], like the following.
        bootstrap (`int`, *optional*, defaults to 1000): Number of resamples for the confidence interval.
        seed (`int`, *optional*, defaults to 0): Seed of the resampling.

    Returns:
        `dict[str, Any]`: `difference`, the macro accuracy of the first classifier minus that of the second one, and
        its 95 % `confidence_interval`.
    """
    truth = np.asarray(references)
    first, second = ((np.asarray(logits).argmax(1) == truth).astype(float) for logits in (predictions, others))
    gain, num_classes = first - second, np.shape(predictions)[1]
    # An accuracy is a mean over clips, so the interval of a mean of differences is that of the difference.
    interval = _bootstrap_intervals(gain, truth, num_classes, bootstrap, clusters, seed)["macro_accuracy"]
    difference = float(np.mean([gain[truth == index].mean() for index in np.unique(truth)]))
    return {"difference": difference, "confidence_interval": interval}


def _bootstrap_intervals(
    correct: np.ndarray, truth: np.ndarray, num_classes: int, resamples: int, clusters: Any, seed: int
) -> dict[str, list[float]]:
    """Return 95 % percentile intervals, resampling whole clusters with replacement.

    Accuracies only depend on the numbers of clips and of correct clips per class. Each cluster is reduced to these
    counts once, and a resample is a weighted sum of them.
    """
    cluster = np.arange(len(truth)) if clusters is None else np.unique(clusters, return_inverse=True)[1].ravel()
    num_clusters = cluster.max() + 1
    cells = cluster * num_classes + truth
    hits, clips = (
        np.bincount(cells, weights, minlength=num_clusters * num_classes).reshape(num_clusters, num_classes)
        for weights in (correct, None)
    )
    rng = np.random.default_rng(seed)
    accuracy, macro_accuracy = np.empty(resamples), np.empty(resamples)
    for resample in range(resamples):
        weights = np.bincount(rng.integers(num_clusters, size=num_clusters), minlength=num_clusters)
        hits_drawn, clips_drawn = weights @ hits, weights @ clips
        accuracy[resample] = hits_drawn.sum() / clips_drawn.sum()
        macro_accuracy[resample] = (hits_drawn[clips_drawn > 0] / clips_drawn[clips_drawn > 0]).mean()
    return {
        "accuracy": np.quantile(accuracy, [0.025, 0.975]).tolist(),
        "macro_accuracy": np.quantile(macro_accuracy, [0.025, 0.975]).tolist(),
    }


def _check(logits: np.ndarray, truth: np.ndarray, labels: Sequence[str] | None, **per_clip: Any) -> None:
    if logits.ndim != 2 or not logits.size:
        raise ValueError(
            f"predictions has shape {logits.shape}: use logits of shape (clips, classes), of at least one clip."
        )
    for name, values in {"references": truth, **per_clip}.items():
        if values is not None and np.shape(values) != (len(logits),):
            raise ValueError(f"{name} has shape {np.shape(values)}: use one value for each of {len(logits)} clips.")
    if not np.isfinite(logits).all():
        clip = int(np.flatnonzero(~np.isfinite(logits).all(1))[0])
        raise ValueError(f"predictions of clip {clip} contain NaN or infinity: check the model that made them.")
    if not np.issubdtype(truth.dtype, np.integer) or truth.min() < 0 or truth.max() >= logits.shape[1]:
        raise ValueError(f"references must be class indices from 0 to {logits.shape[1] - 1}.")
    if labels is not None and len(labels) != logits.shape[1]:
        raise ValueError(f"labels names {len(labels)} classes, but predictions has {logits.shape[1]} columns.")

"""Metrics of a classifier on scenes, and the files they are written to."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from transformers import PreTrainedModel
from transformers.feature_extraction_utils import FeatureExtractionMixin

from model_cards.plots import plot_confusion_matrix, plot_groups
from model_cards.results import RESULTS_FILE, provenance
from model_cards.tables import confusion_table, results_table
from train.common.runs import write_json
from train.evaluation.inference import compute_logits
from train.evaluation.metrics import scene_metrics


def evaluate_classifier(
    model: PreTrainedModel,
    feature_extractor: FeatureExtractionMixin,
    clips: datasets.Dataset,
    waveforms: np.ndarray,
    unseen_devices: Sequence[str],
    batch_size: int = 256,
    bootstrap: int = 1000,
) -> dict[str, Any]:
    """Return the metrics of [`~train.evaluation.metrics.scene_metrics`] for a model; all processes must call this.

    The confidence intervals resample whole recording locations, whose clips resemble each other.

    Args:
        model (`PreTrainedModel`): With the classes of `clips`.
        feature_extractor (`FeatureExtractionMixin`): Of the model.
        clips (`datasets.Dataset`): Columns `label`, `device`, `city` and `location`.
        waveforms (`np.ndarray` of shape `(clips, samples)`, int16): Of these clips, at the feature extractor's rate.
        unseen_devices (`Sequence[str]`): Devices that are not in the training clips.
        batch_size (`int`, *optional*, defaults to 256): Clips per forward pass.
        bootstrap (`int`, *optional*, defaults to 1000): Resamples behind the confidence intervals.
    """
    logits = compute_logits(model.eval(), feature_extractor, waveforms, batch_size)
    return score_logits(logits, clips, unseen_devices, bootstrap)


def score_logits(
    logits: np.ndarray, clips: datasets.Dataset, unseen_devices: Sequence[str], bootstrap: int
) -> dict[str, Any]:
    """Return [`~train.evaluation.metrics.scene_metrics`] of logits `(clips, classes)` in the clips' order."""
    features = clips.features
    devices, cities = ([features[name].names[index] for index in clips[name]] for name in ("device", "city"))
    return scene_metrics(
        logits,
        clips["label"],
        labels=features["label"].names,
        devices=devices,
        cities=cities,
        unseen_devices=unseen_devices,
        bootstrap=bootstrap,
        clusters=[f"{city}-{location}" for city, location in zip(cities, clips["location"], strict=True)],
    )


def unseen_devices(train: Any, test: Any) -> list[str]:
    """Return the devices of the clips in `test` that no clip in `train` was recorded by."""
    names = test.features["device"].names
    return [names[index] for index in sorted(set(test["device"]) - set(train["device"]))]


def write_results(folder: str | Path, results: dict[str, Any]) -> None:
    """Write results as JSON, table and pictures; the JSON is last, so where it is the rest is too.

    Args:
        folder (`str` or `Path`): Where they go.
        results (`dict`): `metrics` of [`evaluate_classifier`], `unseen_devices`, and whatever describes the run.
    """
    folder = Path(folder)
    metrics = results["metrics"]
    labels = list(metrics["class_wise"])
    plot_confusion_matrix(metrics["confusion_matrix"], labels, folder / "confusion_matrix")
    plot_groups(metrics["class_wise"], folder / "classes")
    plot_groups(metrics["device_wise"], folder / "devices", results["unseen_devices"])
    tables = f"{results_table(results)}\n{confusion_table(metrics['confusion_matrix'], labels)}"
    (folder / "results.md").write_text(tables, encoding="utf-8")
    write_json(folder / RESULTS_FILE, {**results, "provenance": provenance()})

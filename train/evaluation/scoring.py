"""Metrics of a classifier on scenes, and the files that they are written to."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from transformers import PreTrainedModel

from dataset_script.errors import InputError
from dataset_script.files import write_json
from model_cards.evidence import plot_title
from model_cards.plots import plot_comparison, plot_results
from model_cards.results import RESULTS_FILE, RunResults, provenance
from model_cards.tables import comparison_rows, confusion_table, results_table
from train.common.features import AnyFeatureExtractor
from train.evaluation.inference import WaveformRows, compute_logits
from train.evaluation.metrics import macro_accuracy_difference, scene_metrics


def evaluate_classifier(
    model: PreTrainedModel,
    feature_extractor: AnyFeatureExtractor,
    clips: datasets.Dataset,
    waveforms: WaveformRows,
    unseen_devices: Sequence[str],
    batch_size: int = 256,
    bootstrap: int = 1000,
) -> dict[str, Any]:
    """Evaluate a model on clips; all processes must call this.

    Args:
        model (`PreTrainedModel`): The model, with the classes of `clips`.
        feature_extractor (`FeatureExtractionMixin` or `WaveformFeatures`): Feature extractor of the model.
        clips (`datasets.Dataset`): Columns `label`, `device`, `city` and `location`.
        waveforms (`np.ndarray` of shape `(clips, samples)`, int16): The clips, at the rate of the feature extractor.
        unseen_devices (`Sequence[str]`): Devices that are not in the training clips.
        batch_size (`int`, *optional*, defaults to 256): Clips per forward pass.
        bootstrap (`int`, *optional*, defaults to 1000): Number of resamples for the confidence intervals.

    Returns:
        `dict[str, Any]`: The metrics, as returned by [`score_logits`].
    """
    logits = compute_logits(model.eval(), feature_extractor, waveforms, batch_size)
    return score_logits(logits, clips, unseen_devices, bootstrap)


def score_logits(
    logits: np.ndarray, clips: datasets.Dataset, unseen_devices: Sequence[str], bootstrap: int = 1000
) -> dict[str, Any]:
    """Compute the metrics of logits.

    The confidence intervals resample whole recording locations, whose clips resemble each other.

    Args:
        logits (`np.ndarray` of shape `(clips, classes)`): Logits in the order of the clips.
        clips (`datasets.Dataset`): Columns `label`, `device`, `city` and `location`.
        unseen_devices (`Sequence[str]`): Devices that are not in the training clips.
        bootstrap (`int`, *optional*, defaults to 1000): Number of resamples for the confidence intervals; 0 omits
            them.

    Returns:
        `dict[str, Any]`: The metrics, as returned by [`~train.evaluation.metrics.scene_metrics`].

    Raises:
        InputError: If a logit is not finite.
    """
    finite = np.isfinite(logits).all(axis=1)
    if not finite.all():
        raise InputError(
            f"The logits of {(~finite).sum()} of {len(logits)} clips are not finite: train the model again, or choose "
            "another one."
        )
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
        clusters=recording_locations(clips),
    )


def compare_logits(logits: np.ndarray, others: np.ndarray, clips: datasets.Dataset) -> dict[str, Any]:
    """Compare two models on the same clips.

    Args:
        logits (`np.ndarray` of shape `(clips, classes)`): Logits of a model.
        others (`np.ndarray` of shape `(clips, classes)`): Logits of the model that it is compared with.
        clips (`datasets.Dataset`): As for [`score_logits`].

    Returns:
        `dict[str, Any]`: `macro_accuracy` and `confidence_intervals` of the other model, and `difference`, as returned
        by [`~train.evaluation.metrics.macro_accuracy_difference`].
    """
    metrics = score_logits(others, clips, ())
    difference = macro_accuracy_difference(logits, others, clips["label"], recording_locations(clips))
    return {name: metrics[name] for name in ("macro_accuracy", "confidence_intervals")} | {"difference": difference}


def recording_locations(clips: datasets.Dataset) -> list[str]:
    """Return the location of each clip, whose number is unique within a city only."""
    names = clips.features["city"].names
    return [f"{names[city]}-{location}" for city, location in zip(clips["city"], clips["location"], strict=True)]


def unseen_devices(train: datasets.Dataset, test: datasets.Dataset) -> list[str]:
    """Return the devices of the clips in `test` that are not in `train`."""
    names = test.features["device"].names
    return [names[index] for index in sorted(set(test["device"]) - set(train["device"]))]


def write_results(folder: str | Path, results: dict[str, Any]) -> None:
    """Write results as JSON, tables and plots; the JSON is written last, so if it exists all files do.

    Args:
        folder (`str` or `Path`): Output folder.
        results (`dict`): Results with `metrics`, `unseen_devices` and the description of the run.
    """
    folder = Path(folder)
    metrics = results["metrics"]
    labels = list(metrics["class_wise"])
    title = plot_title(folder.resolve().name, RunResults(folder / RESULTS_FILE, results))
    plot_results(metrics, folder, title, results["unseen_devices"])
    tables = f"{results_table(results)}\n{confusion_table(metrics['confusion_matrix'], labels)}"
    (folder / "results.md").write_text(tables, encoding="utf-8")
    if "labels_alone" in results:
        plot_comparison(comparison_rows(results), folder / "comparison", title)
    write_json(folder / RESULTS_FILE, {**results, "provenance": provenance()})

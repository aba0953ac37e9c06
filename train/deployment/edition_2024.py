"""Files of a submission to DCASE 2024 Task 1: predictions on the evaluation set, weights and metadata."""

import json
import logging
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import torch

from dataset_script import SCENES, cache_waveforms
from dataset_script.errors import InputError
from dataset_script.files import atomic_path
from dataset_script.splits import PERCENTAGES, subset_percentage
from train.common.features import input_rate
from train.common.models import load_classifier
from train.deployment.challenge import (
    SubmittedModel,
    complexity_sentence,
    development_results,
    merge,
    read_model,
    read_weights,
    submission_block,
    system_block,
    write_yaml,
)
from train.evaluation.inference import compute_logits


logger = logging.getLogger(__name__)

EVALUATION_CLIPS = 135_730
"""Number of clips in the evaluation set of DCASE 2024 Task 1."""

DEVICE_GROUPS = {"real": ("a", "b", "c"), "seen": ("s1", "s2", "s3"), "unseen": ("s4", "s5", "s6")}
"""Groups of devices in the baseline's `info.json`."""


def read_models(folders: Sequence[str]) -> dict[int, SubmittedModel]:
    """Read the results of the models of a submission, and check that they may be submitted.

    Args:
        folders (`Sequence[str]`): Model folders with results.

    Returns:
        `dict[int, SubmittedModel]`: The models by the percentage of the training clips, smallest first.

    Raises:
        FileNotFoundError: If a folder is incomplete.
        InputError: If a model exceeds a limit of the challenge, or two models are of the same subset.
    """
    models: dict[int, SubmittedModel] = {}
    for folder in folders:
        model = read_model(folder)
        subset = subset_percentage(model.results.dataset)
        if subset in models:
            raise InputError(
                f"{models[subset].folder} and {folder} both use {subset} %: choose one model for each subset."
            )
        models[subset] = model
    return dict(sorted(models.items()))


def check_subsets(subsets: Iterable[int]) -> None:
    """Raise `InputError` unless there is a model for each training subset."""
    if missing := sorted(set(PERCENTAGES) - set(subsets)):
        raise InputError(
            f"There is no model of the {' %, '.join(map(str, missing))} % subset: pass five models to --models, one "
            "for each of 5, 10, 25, 50 and 100 %."
        )


def metadata(
    label: str, models: Mapping[int, SubmittedModel], about: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Build the content of the metadata file from the results of the models.

    Args:
        label (`str`): Label of the submission.
        models (`Mapping[int, SubmittedModel]`): Models from [`read_models`].
        about (`Mapping`, *optional*): Values that are added to the content or replace those there.

    Returns:
        `dict[str, Any]`: The content; missing values are `TODO`.
    """
    system = system_block(models.values())
    system["description"] |= {"split_adaptations": "learning rate", "system_adaptations": "None"}
    content = {
        "submission": submission_block(label),
        "system": system,
        "results": {
            "development_dataset": {
                f"split_{subset}": development_results(model.results.metrics) for subset, model in models.items()
            }
        },
    }
    return merge(content, about or {})


def write_submission(
    output_dir: str | Path,
    label: str,
    models: Mapping[int, SubmittedModel],
    content: Mapping[str, Any],
    clips: datasets.Dataset,
    cache_dir: str | None = None,
    batch_size: int = 256,
    trust_remote_code: bool = False,
) -> None:
    """Predict the evaluation set with every model, and write predictions, metadata, their ZIP file, and weights.

    Args:
        output_dir (`str` or `Path`): Output folder.
        label (`str`): Label of the submission.
        models (`Mapping[int, SubmittedModel]`): Models from [`read_models`].
        content (`Mapping`): Metadata from [`metadata`].
        clips (`datasets.Dataset`): The evaluation set.
        cache_dir (`str`, *optional*): Folder of resampled clips.
        batch_size (`int`, *optional*, defaults to 256): Clips per forward pass.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Whether to run the models' own code.

    Raises:
        FileNotFoundError, InputError: If a model cannot be loaded, or has other classes.
        OSError: If the output folder is not writable.
    """
    if len(clips) != EVALUATION_CLIPS:
        logger.warning(
            "The evaluation set has %s clips, but this folder has %s: the challenge would reject the predictions.",
            f"{EVALUATION_CLIPS:,}",
            f"{len(clips):,}",
        )
    if any(model.results.synthetic for model in models.values()):
        logger.warning("The models were trained and tested on synthetic clips: their results are not results on TAU.")
    folder = Path(output_dir)
    files = []
    for subset, submitted in models.items():
        files.append(folder / f"{label}.output.split_{subset}.csv")
        model, feature_extractor = load_classifier(submitted.folder, SCENES, trust_remote_code)
        waveforms = cache_waveforms(clips, input_rate(feature_extractor), cache_dir)
        logits = compute_logits(model, feature_extractor, waveforms, batch_size)
        write_predictions(files[-1], list(clips["filename"]), logits)
        write_weights(folder / f"split_{subset}", submitted)
        logger.info("split_%s: %s", subset, complexity_sentence(submitted.complexity))
    files.append(folder / f"{label}.meta.yaml")
    write_yaml(files[-1], content)
    archive = folder / f"{label}.zip"
    with atomic_path(archive) as part, zipfile.ZipFile(part, "w", zipfile.ZIP_DEFLATED) as stream:
        for file in files:
            stream.write(file, f"task1/{label}/{file.name}")
    logger.info("Wrote %s. Add the technical report as PDF; the weights in split_* are not part of it.", archive)


def write_predictions(path: Path, filenames: list[str], logits: np.ndarray) -> None:
    """Write predictions in the challenge's format: tab-separated rows of file name, label and all probabilities.

    Args:
        path (`Path`): CSV file to write.
        filenames (`list[str]`): Files of the clips; their folders are omitted.
        logits (`np.ndarray` of shape `(clips, 10)`): Logits in the official order of the scenes.
    """
    probabilities = torch.from_numpy(logits).double().softmax(dim=1).numpy()
    table = pd.DataFrame(probabilities, columns=list(SCENES))
    table.insert(0, "filename", [Path(name).name for name in filenames])
    table.insert(1, "scene_label", [SCENES[index] for index in logits.argmax(axis=1)])
    with atomic_path(path) as part:
        table.to_csv(part, sep="\t", index=False, float_format="%.8f")


def write_weights(folder: Path, model: SubmittedModel) -> None:
    """Write the weights of a model and its results as the challenge's baseline does.

    Args:
        folder (`Path`): Gets `model_state_dict.pt`, with the tensors as they are stored, and `info.json`.
        model (`SubmittedModel`): The model.
    """
    with atomic_path(folder / "model_state_dict.pt") as part:
        torch.save(read_weights(model.folder), part)
    info = {
        "MACs": model.complexity.macs,
        "Params": model.complexity.parameters,
        "Params_bytes": model.complexity.parameter_bytes,
        "test": [{f"test/{name}": value for name, value in baseline_metrics(model.results.metrics).items()}],
    }
    with atomic_path(folder / "info.json") as part:
        part.write_text(json.dumps(info, indent=2), encoding="utf-8")


def baseline_metrics(metrics: Mapping[str, Any]) -> dict[str, float]:
    """Return metrics with the names of the challenge's baseline, overall and by device, group of devices and scene.

    Args:
        metrics (`Mapping`): As of [`~train.evaluation.metrics.scene_metrics`].
    """
    named = {"acc": metrics["accuracy"], "loss": metrics["log_loss"], "macro_avg_acc": metrics["macro_accuracy"]}
    devices = metrics["device_wise"]
    for name, scores in (*devices.items(), *metrics["class_wise"].items()):
        if scores:
            named[f"acc.{name}"], named[f"loss.{name}"] = scores["accuracy"], scores["log_loss"]
            named[f"cnt.{name}"] = scores["clips"]
    for group, members in DEVICE_GROUPS.items():
        found = [devices[name] for name in members if name in devices]
        if found:
            clips = sum(scores["clips"] for scores in found)
            named[f"acc.{group}"] = sum(scores["accuracy"] * scores["clips"] for scores in found) / clips
            named[f"lloss.{group}"] = sum(scores["log_loss"] * scores["clips"] for scores in found) / clips
            named[f"count.{group}"] = clips
    return named

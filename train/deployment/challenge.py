"""Submission files of DCASE 2024 Task 1."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import torch
import yaml

from dataset_script import SCENES, cache_waveforms
from dataset_script.errors import InputError
from dataset_script.files import atomic_path
from dataset_script.splits import subset_percentage
from model_cards.complexity import check_limits, measure_folder
from model_cards.results import RunResults, float_results, load_results
from train.common.models import load_classifier
from train.evaluation.inference import compute_logits


logger = logging.getLogger(__name__)

EVALUATION_CLIPS = 135_730
"""Clips of the evaluation set of DCASE 2024 Task 1."""

TODO = "TODO"


@dataclass(frozen=True)
class SubmittedModel:
    """A model of a submission.

    Attributes:
        folder (`str`): Model folder.
        results (`RunResults`): Of the model as it is submitted.
        training (`RunResults`): Of the run that trained it: for an INT8 model, those of its float model.
    """

    folder: str
    results: RunResults
    training: RunResults


def read_models(folders: Sequence[str]) -> dict[int, SubmittedModel]:
    """Return the models by the percentage of the training clips, smallest first.

    Args:
        folders (`Sequence[str]`): Model folders with their results.

    Raises:
        FileNotFoundError: If a folder is incomplete.
        InputError: If a model exceeds a limit, or two are of the same subset.
    """
    models: dict[int, SubmittedModel] = {}
    for folder in folders:
        advice = "submit its INT8 form, made with train/quantize.py, or a smaller network"
        check_limits(measure_folder(folder), folder, as_stored=True, advice=advice)
        results = load_results(folder)
        subset = subset_percentage(results.dataset)
        if subset in models:
            raise InputError(
                f"{models[subset].folder} and {folder} are both of {subset} %: give one model for each subset."
            )
        models[subset] = SubmittedModel(folder, results, float_results(results) or results)
    return dict(sorted(models.items()))


def read_about(path: str | None) -> dict[str, Any]:
    """Return the content of the file of `--about`, or nothing without one.

    Raises:
        FileNotFoundError, InputError: If there is no such file, or it is no YAML mapping.
    """
    if path is None:
        return {}
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path}: give a YAML file with --about, or leave it out.")
    try:
        about = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(about, dict):
        raise InputError(f"{path} has to be a mapping, such as submission: {{name: My system}}.")
    return about


def write_predictions(path: Path, filenames: list[str], logits: np.ndarray) -> None:
    """Write predictions in the challenge's format: tab-separated, a row a clip, with the label and all probabilities.

    Args:
        path (`Path`): The CSV file.
        filenames (`list[str]`): Clips; folders are left out.
        logits (`np.ndarray` of shape `(clips, 10)`): Of the scenes in their official order.
    """
    probabilities = torch.from_numpy(logits).double().softmax(dim=1).numpy()
    table = pd.DataFrame(probabilities, columns=list(SCENES))
    table.insert(0, "filename", [Path(name).name for name in filenames])
    table.insert(1, "scene_label", [SCENES[index] for index in logits.argmax(axis=1)])
    with atomic_path(path) as part:
        table.to_csv(part, sep="\t", index=False, float_format="%.8f")


def metadata(
    label: str, models: Mapping[int, SubmittedModel], about: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the content of the metadata file, filled from the runs.

    Args:
        label (`str`): Of the submission.
        models (`Mapping`): As of [`read_models`].
        about (`Mapping`, *optional*): Values that replace or complete those found here, block by block.
    """
    smallest = next(iter(models.values()))
    complexity = measure_folder(smallest.folder)
    arguments = smallest.training.arguments
    augmentation = {
        "mixup_alpha": "mixup",
        "freq_mixstyle_p": "freq-mixstyle",
        "impulse_response_p": "device impulse response",
    }
    used = [name for argument, name in augmentation.items() if arguments.get(argument)]
    teachers = smallest.training.teachers
    reduction = [
        *(["knowledge distillation"] if teachers else []),
        *(["precision_8 quantization"] if complexity.number_format == "INT8" else []),
    ]
    content = {
        "submission": {
            "label": label,
            "name": TODO,
            "abbreviation": label.split("_")[0][:10],
            "authors": [
                {
                    "lastname": label.split("_")[0],
                    "firstname": TODO,
                    "email": TODO,
                    "corresponding": True,
                    "affiliation": {"institute": TODO, "location": TODO},
                }
            ],
        },
        "system": {
            "description": {
                "input_sampling_rate": "32kHz",
                "acoustic_features": "log-mel energies",
                "data_augmentation": ", ".join(used) or TODO,
                "machine_learning_method": "CNN",
                "external_data_usage": "pre-trained model" if teachers else TODO,
                "complexity_management": ", ".join(reduction) or TODO,
                "pipeline": "training with teachers' logits, quantization" if teachers else TODO,
                "framework": "pytorch",
                "split_adaptations": "learning rate",
                "system_adaptations": "None",
            },
            "complexity": {
                "total_model_size": complexity.parameter_bytes,
                "total_parameters": complexity.parameters,
                "macs": complexity.macs,
            },
            "external_datasets": {"BEATs": {"url": "https://github.com/microsoft/unilm/tree/master/beats"}}
            if teachers
            else None,
            "source_code": TODO,
        },
        "results": {
            "development_dataset": {
                f"split_{subset}": development_results(model.results.metrics) for subset, model in models.items()
            }
        },
    }
    return merged(content, about or {})


def development_results(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the block of the metadata with the results of a subset: accuracies in percent and log losses."""

    def figures(group: Mapping[str, Any]) -> dict[str, float]:
        return {"accuracy": round(100 * group["accuracy"], 2), "logloss": round(group["log_loss"], 3)}

    return {
        # Overall is the ranking measure, the mean of the classes' accuracies.
        "overall": {"accuracy": round(100 * metrics["macro_accuracy"], 2), "logloss": round(metrics["log_loss"], 3)},
        "class_wise": {name: figures(group) for name, group in metrics["class_wise"].items() if group},
        "device_wise": {name: figures(group) for name, group in metrics["device_wise"].items()},
    }


def merged(content: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `content` with `changes`, where mappings are merged and all else is replaced."""
    result = dict(content)
    for name, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(result.get(name), Mapping)
        result[name] = merged(result[name], value) if both else value
    return result


def open_points(content: Any, path: str = "") -> list[str]:
    """Return where in the metadata something is still marked `TODO`."""
    if isinstance(content, Mapping):
        return [point for name, value in content.items() for point in open_points(value, f"{path}.{name}".strip("."))]
    if isinstance(content, list):
        return [point for index, value in enumerate(content) for point in open_points(value, f"{path}[{index}]")]
    return [path] if content == TODO else []


def write_submission(
    output_dir: str | Path,
    label: str,
    models: Mapping[int, SubmittedModel],
    about: Mapping[str, Any],
    clips: datasets.Dataset,
    cache_dir: str | None = None,
    batch_size: int = 256,
    trust_remote_code: bool = False,
) -> None:
    """Write the predictions of every model, and the metadata.

    Args:
        output_dir (`str` or `Path`): Where the files go.
        label (`str`): Of the submission.
        models (`Mapping`): As of [`read_models`].
        about (`Mapping`): As of [`read_about`].
        clips (`datasets.Dataset`): The evaluation set.
        cache_dir (`str`, *optional*): Where resampled clips are kept.
        batch_size (`int`, *optional*, defaults to 256): Clips per forward pass.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Whether code that comes with a model may run.
    """
    if len(clips) != EVALUATION_CLIPS:
        logger.warning(
            "The evaluation set has %s clips, but this folder has %s: the challenge would not accept the files.",
            f"{EVALUATION_CLIPS:,}",
            f"{len(clips):,}",
        )
    if any(model.results.synthetic for model in models.values()):
        logger.warning("The models were trained and tested on synthetic clips: their results are not those of TAU.")
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for subset, submitted in models.items():
        path = folder / f"{label}.output.split_{subset}.csv"
        model, feature_extractor = load_classifier(submitted.folder, SCENES, trust_remote_code)
        waveforms = cache_waveforms(clips, feature_extractor.sampling_rate, cache_dir)
        logits = compute_logits(model, feature_extractor, waveforms, batch_size)
        write_predictions(path, list(clips["filename"]), logits)
        logger.info("Wrote %s.", path)
    content = metadata(label, models, about)
    path = folder / f"{label}.meta.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    logger.info("Wrote %s; to be filled in by hand: %s.", path, ", ".join(open_points(content)) or "nothing")

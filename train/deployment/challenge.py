"""Submission files for DCASE 2024 Task 1."""

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
from train.common.features import input_rate
from train.common.models import load_classifier
from train.deployment.checks import check_writable
from train.evaluation.inference import compute_logits


logger = logging.getLogger(__name__)

EVALUATION_CLIPS = 135_730
"""Number of clips in the evaluation set of DCASE 2024 Task 1."""

TODO = "TODO"
"""Marks the values of the metadata that have to be filled in by hand."""


@dataclass(frozen=True)
class SubmittedModel:
    """A model of a submission.

    Attributes:
        folder (`str`): Model folder.
        results (`RunResults`): Results of the submitted model.
        training (`RunResults`): Results of the run that trained it: for an INT8 model, those of its float model.
    """

    folder: str
    results: RunResults
    training: RunResults


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
        advice = "submit its INT8 form, made with train/quantize.py, or a smaller network"
        check_limits(measure_folder(folder), folder, as_stored=True, advice=advice)
        results = load_results(folder)
        subset = subset_percentage(results.dataset)
        if subset in models:
            raise InputError(
                f"{models[subset].folder} and {folder} both use {subset} %: choose one model for each subset."
            )
        models[subset] = SubmittedModel(folder, results, float_results(results) or results)
    return dict(sorted(models.items()))


def read_about(path: str | None) -> dict[str, Any]:
    """Read the metadata in a YAML file.

    Args:
        path (`str`, *optional*): The file.

    Returns:
        `dict[str, Any]`: Its content, empty without a file.

    Raises:
        FileNotFoundError: If the file does not exist.
        InputError: If it is not a YAML mapping.
    """
    if path is None:
        return {}
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path}: pass a YAML file to --about, or leave it out.")
    try:
        about = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise InputError(f"{path} is not valid YAML ({' '.join(str(error).split())}): fix it.") from None
    if not isinstance(about, dict):
        raise InputError(f"{path} is not a mapping: write entries such as submission: {{name: My system}}.")
    return about


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
                f"split_{subset}": _development_results(model.results.metrics) for subset, model in models.items()
            }
        },
    }
    return _merge(content, about or {})


def _development_results(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return the results of a subset for the metadata: accuracies in percent, and log losses."""

    def scores(group: Mapping[str, Any], accuracy: str = "accuracy") -> dict[str, float]:
        return {"accuracy": round(100 * group[accuracy], 2), "logloss": round(group["log_loss"], 3)}

    return {
        "overall": scores(metrics, "macro_accuracy"),  # by which the challenge ranks
        "class_wise": {name: scores(group) for name, group in metrics["class_wise"].items() if group},
        "device_wise": {name: scores(group) for name, group in metrics["device_wise"].items()},
    }


def _merge(content: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `content` with `changes`; mappings are merged, other values replaced."""
    result = dict(content)
    for name, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(result.get(name), Mapping)
        result[name] = _merge(result[name], value) if both else value
    return result


def find_todos(content: Any, path: str = "") -> list[str]:
    """Return the paths of the metadata whose value is `TODO`."""
    if isinstance(content, Mapping):
        return [todo for name, value in content.items() for todo in find_todos(value, f"{path}.{name}".strip("."))]
    if isinstance(content, list):
        return [todo for index, value in enumerate(content) for todo in find_todos(value, f"{path}[{index}]")]
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
    """Predict the evaluation set with every model, and write the predictions and the metadata.

    Args:
        output_dir (`str` or `Path`): Output folder.
        label (`str`): Label of the submission.
        models (`Mapping[int, SubmittedModel]`): Models from [`read_models`].
        about (`Mapping`): Metadata from [`read_about`].
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
    check_writable(folder, "--output_dir")
    for subset, submitted in models.items():
        path = folder / f"{label}.output.split_{subset}.csv"
        model, feature_extractor = load_classifier(submitted.folder, SCENES, trust_remote_code)
        waveforms = cache_waveforms(clips, input_rate(feature_extractor), cache_dir)
        logits = compute_logits(model, feature_extractor, waveforms, batch_size)
        write_predictions(path, list(clips["filename"]), logits)
        logger.info("Wrote %s.", path)
    content = metadata(label, models, about)
    path = folder / f"{label}.meta.yaml"
    with atomic_path(path) as part:
        part.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    logger.info("Wrote %s; fill in by hand: %s.", path, ", ".join(find_todos(content)) or "nothing")

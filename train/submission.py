"""Submission files of DCASE 2024 Task 1: predictions on the evaluation set, and the system's metadata.

    python train/submission.py --label Cai_XJTLU_task1_1 --data_dir EVALUATION_SET --output_dir outputs/submission \
        --models outputs/s2-split5-int8/model outputs/s2-split10-int8/model outputs/s2-split25-int8/model \
        outputs/s2-split50-int8/model outputs/s2-split100-int8/model

writes `<label>.output.split_<percentage>.csv` for each model and `<label>.meta.yaml`. Every model comes with its
`results.json`, which tells the subset that it was trained on and fills the metadata. What no file can tell, such as
the authors, is given as a YAML file with `--about`; what is missing stays marked `TODO`.
"""

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import yaml

from dataset_script import SCENES, cache_waveforms, load_scenes
from model_cards.complexity import check_limits, measure_model
from model_cards.results import float_results, load_results, percentage
from modeling_tfsepnet.complexity import MAX_PARAMETER_BYTES
from train.models import load_classifier
from train.predict_logits import compute_logits
from train.recipes import ScriptParser
from train.runs import configure_logging, run_script


logger = logging.getLogger(__name__)

EVALUATION_CLIPS = 135_730
"""Clips of the evaluation set of DCASE 2024 Task 1."""

TODO = "TODO"


@dataclass
class SubmissionArguments:
    """Which models are submitted, and as what."""

    models: list[str] = field(metadata={"help": "Student folders, one for each training subset, with results.json."})
    label: str = field(metadata={"help": "Label of the submission: <LastName>_<Institute>_task1_<1 to 4>."})
    data_dir: str = field(metadata={"help": "Folder of the evaluation set."})
    output_dir: str = field(metadata={"help": "Where the files go."})
    about: str | None = field(default=None, metadata={"help": "YAML file whose values go into the metadata."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where resampled clips are kept."})
    batch_size: int = field(default=256, metadata={"help": "Clips of a forward pass."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Allow code that comes with a model to run."})

    def __post_init__(self):
        if not re.fullmatch(r"[^\W_]+_[^\W_]+_task1_[1-4]", self.label):
            raise ValueError(
                f"label is {self.label!r}, but has to be <LastName>_<Institute>_task1_<1 to 4>, such as "
                "Cai_XJTLU_task1_1."
            )


def read_models(models: list[str]) -> dict[int, tuple[str, dict[str, Any]]]:
    """Return each model's folder and results, by the percentage of the training clips; smallest first.

    Raises:
        FileNotFoundError: If a folder is incomplete.
        ValueError: If a model exceeds a limit, or two are of the same subset.
    """
    chosen: dict[int, tuple[str, dict[str, Any]]] = {}
    for folder in models:
        complexity = measure_model(folder)
        check_limits(complexity, folder)
        if complexity.parameter_bytes > MAX_PARAMETER_BYTES:
            raise ValueError(
                f"{folder} takes {complexity.parameter_bytes:,} bytes as {complexity.number_format}, over the limit "
                f"of {MAX_PARAMETER_BYTES:,}: submit its INT8 form, made with train/quantize.py."
            )
        results = load_results(folder)
        if "float" in results and (trained := float_results(folder)) is not None:  # which knows how it was trained
            results = {**load_results(trained), **results}
        subset = percentage(results["dataset"])
        if subset in chosen:
            raise ValueError(f"{chosen[subset][0]} and {folder} are both of {subset} %: give one model for a subset.")
        chosen[subset] = (folder, results)
    return dict(sorted(chosen.items()))


def read_about(path: str | None) -> dict[str, Any]:
    """Return the content of the file of `--about`, or nothing without one.

    Raises:
        FileNotFoundError, ValueError: If there is no such file, or it is no YAML mapping.
    """
    if path is None:
        return {}
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no file {path}: give a YAML file with --about, or leave it out.")
    try:
        about = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(about, dict):
        raise ValueError(f"{path} has to be a mapping, such as submission: {{name: My system}}.")
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
    part = path.with_suffix(".part")
    table.to_csv(part, sep="\t", index=False, float_format="%.8f")
    os.replace(part, path)


def metadata(
    label: str, models: Mapping[int, tuple[str, dict[str, Any]]], about: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Return the content of the metadata file, filled from the runs.

    Args:
        label (`str`): Of the submission.
        models (`Mapping`): As of [`read_models`].
        about (`Mapping`, *optional*): Values that replace or complete those found here, block by block.
    """
    folder, results = next(iter(models.values()))
    complexity = measure_model(folder)
    arguments = results.get("arguments", {})
    augmentation = {
        "mixup_alpha": "mixup",
        "freq_mixstyle_p": "freq-mixstyle",
        "impulse_response_p": "device impulse response",
    }
    used = [name for argument, name in augmentation.items() if arguments.get(argument)]
    teachers = results.get("teachers")
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
                f"split_{subset}": development_results(results["metrics"]) for subset, (_, results) in models.items()
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


def main() -> None:
    """Write the files that the command line asks for."""
    (args,) = ScriptParser(SubmissionArguments).parse()
    configure_logging()
    models = read_models(args.models)
    about = read_about(args.about)
    clips = load_scenes("evaluation", args.data_dir, cache_dir=args.cache_dir)["test"]
    if len(clips) != EVALUATION_CLIPS:
        logger.warning(
            "The evaluation set has %s clips, but this folder has %s: the challenge would not accept the files.",
            f"{EVALUATION_CLIPS:,}",
            f"{len(clips):,}",
        )
    if any(results["synthetic"] for _, results in models.values()):
        logger.warning("The models were trained and tested on synthetic clips: their results are not those of TAU.")
    folder = Path(args.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    for subset, (model_dir, _) in models.items():
        path = folder / f"{args.label}.output.split_{subset}.csv"
        model, feature_extractor = load_classifier(model_dir, SCENES, args.trust_remote_code)
        waveforms = cache_waveforms(clips, feature_extractor.sampling_rate, args.cache_dir)
        logits = compute_logits(model, feature_extractor, waveforms, args.batch_size)
        write_predictions(path, list(clips["filename"]), logits)
        logger.info("%s is written.", path)
    content = metadata(args.label, models, about)
    path = folder / f"{args.label}.meta.yaml"
    path.write_text(yaml.safe_dump(content, sort_keys=False, allow_unicode=True), encoding="utf-8")
    logger.info("%s is written; to be filled in by hand: %s.", path, ", ".join(open_points(content)) or "nothing")


if __name__ == "__main__":
    run_script(main)

"""What submissions to DCASE Task 1 have in common in all editions: models, limits and metadata."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from safetensors.torch import load_file
from torch import Tensor

from dataset_script.errors import InputError
from dataset_script.files import atomic_path
from model_cards.complexity import ModelComplexity, check_limits, measure_folder, weight_files
from model_cards.results import RunResults, float_results, load_results
from train.deployment.external_data import TODO, external_resources, usage


AUGMENTATIONS = {
    "mixup_alpha": "mixup",
    "freq_mixstyle_p": "freq-mixstyle",
    "impulse_response_p": "device impulse response",
    "spec_augment_size": "SpecAugment",
}
"""Arguments of a training run that are not zero if it used an augmentation, and what the metadata calls it."""

ADVICE = "submit its INT8 form, made with train/quantize.py, or a smaller network"
"""How to fix a model that exceeds a limit."""


@dataclass(frozen=True)
class SubmittedModel:
    """A model of a submission.

    Attributes:
        folder (`str`): Model folder.
        results (`RunResults`): Results of the submitted model.
        training (`RunResults`): Results of the run that trained it: for a converted model, those of its float model.
        complexity ([`~model_cards.complexity.ModelComplexity`]): Size and cost, as stored.
    """

    folder: str
    results: RunResults
    training: RunResults
    complexity: ModelComplexity


def read_model(folder: str) -> SubmittedModel:
    """Read the results of a model, and check that it may be submitted.

    Args:
        folder (`str`): Model folder with results.

    Raises:
        FileNotFoundError: If the folder is incomplete.
        InputError: If the model exceeds a limit of the challenge, or its results are invalid.
    """
    complexity = measure_folder(folder)
    check_limits(complexity, folder, as_stored=True, advice=ADVICE)
    results = load_results(folder)
    return SubmittedModel(folder, results, float_results(results) or results, complexity)


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


def submission_block(label: str) -> dict[str, Any]:
    """Return the block `submission` of the metadata.

    Args:
        label (`str`): Label of the submission.
    """
    author = label.split("_")[0]
    return {
        "label": label,
        "name": TODO,
        "abbreviation": author[:10],
        "authors": [
            {
                "lastname": author,
                "firstname": TODO,
                "email": TODO,
                "corresponding": True,
                "affiliation": {"institute": TODO, "location": TODO},
            }
        ],
    }


def system_block(models: Iterable[SubmittedModel]) -> dict[str, Any]:
    """Return the block `system` of the metadata.

    Args:
        models (`Iterable[SubmittedModel]`): The models; the first one is described, the external data is that of all.

    Returns:
        `dict[str, Any]`: `description`, without what differs between editions; `complexity`, with what the challenge's
        script prints if that is something else; `external_datasets` and `source_code`.
    """
    models = list(models)
    first, runs = models[0], [model.training for model in models]
    augmentations = [name for argument, name in AUGMENTATIONS.items() if first.training.arguments.get(argument)]
    precision = {"INT8": "precision_8 quantization", "float16": "precision_16"}.get(first.complexity.number_format)
    reduction = [*(["knowledge distillation"] if first.training.teachers else []), *([precision] if precision else [])]
    steps = ["training with teachers' logits" if first.training.teachers else "training"]
    steps += ["quantization"] if first.complexity.number_format == "INT8" else []
    return {
        "description": {
            "input_sampling_rate": "32kHz",
            "acoustic_features": "log-mel energies",
            "data_augmentation": ", ".join(augmentations) or "None",
            "machine_learning_method": "CNN",
            "external_data_usage": usage(runs),
            "complexity_management": ", ".join(reduction) or "None",
            "pipeline": ", ".join(steps),
            "framework": "pytorch",
        },
        "complexity": complexity_block(max((model.complexity for model in models), key=lambda c: c.parameter_bytes)),
        "external_datasets": external_resources(runs) or None,
        "source_code": None,
    }


def complexity_block(complexity: ModelComplexity) -> dict[str, Any]:
    """Return the complexity of a model for the metadata.

    Args:
        complexity ([`~model_cards.complexity.ModelComplexity`]): Of the model.
    """
    block: dict[str, Any] = {
        "total_model_size": complexity.parameter_bytes,
        "total_parameters": complexity.parameters,
        "macs": complexity.macs,
    }
    if reason := difference_reason(complexity):
        block["printed_by_official_script"] = {
            "bytes": complexity.official_bytes,
            "macs": complexity.official_macs,
            "reason": reason,
        }
    return block


def difference_reason(complexity: ModelComplexity) -> str | None:
    """Return why the challenge's script prints other numbers than those of a model, or None if it does not."""
    if (complexity.official_bytes, complexity.official_macs) == (complexity.parameter_bytes, complexity.macs):
        return None
    return (
        "The script only sees modules and model.parameters(), which in an INT8 model are the scales of the weights. "
        "Its integers are buffers."
    )


def complexity_sentence(complexity: ModelComplexity) -> str:
    """Return what is stored and executed, and what the challenge's script prints.

    Args:
        complexity ([`~model_cards.complexity.ModelComplexity`]): Of the model.
    """
    counts = f"{complexity.parameter_bytes:,} bytes of parameters and {complexity.macs:,} MACs"
    reason = difference_reason(complexity)
    if reason is None:
        return f"{counts}, as the challenge's script prints."
    return (
        f"{counts}. The challenge's script prints {complexity.official_bytes:,} bytes and "
        f"{complexity.official_macs:,} MACs: {reason[0].lower()}{reason[1:]}"
    )


def development_results(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """Return results on the development dataset for the metadata: accuracies in percent, and log losses.

    Args:
        metrics (`Mapping`): As of [`~train.evaluation.metrics.scene_metrics`].
    """

    def scores(group: Mapping[str, Any], accuracy: str = "accuracy") -> dict[str, float]:
        return {"accuracy": round(100 * group[accuracy], 2), "logloss": round(group["log_loss"], 3)}

    return {
        "overall": scores(metrics, "macro_accuracy"),  # by which the challenge ranks
        "class_wise": {name: scores(group) for name, group in metrics["class_wise"].items() if group},
        "device_wise": {name: scores(group) for name, group in metrics["device_wise"].items()},
    }


def merge(content: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return `content` with `changes`; mappings are merged, other values replaced."""
    result = dict(content)
    for name, value in changes.items():
        both = isinstance(value, Mapping) and isinstance(result.get(name), Mapping)
        result[name] = merge(result[name], value) if both else value
    return result


def find_todos(content: Any, path: str = "") -> list[str]:
    """Return the paths of the metadata whose value is `TODO`."""
    if isinstance(content, Mapping):
        return [todo for name, value in content.items() for todo in find_todos(value, f"{path}.{name}".strip("."))]
    if isinstance(content, list):
        return [todo for index, value in enumerate(content) for todo in find_todos(value, f"{path}[{index}]")]
    return [path] if content == TODO else []


def check_finished(content: Mapping[str, Any]) -> None:
    """Raise `InputError` if a value of the metadata is missing."""
    if todos := find_todos(content):
        raise InputError(
            f"The metadata lacks {', '.join(todos)}: write a file with --write_about FILE, fill it in, and pass it to "
            "--about."
        )


def write_template(path: str | Path, content: Mapping[str, Any]) -> None:
    """Write a YAML file with the values of the metadata that have to be filled in, for `--about`.

    Args:
        path (`str` or `Path`): The file.
        content (`Mapping`): The metadata. A list is written as a whole.

    Raises:
        FileExistsError: If the file exists.
    """
    if Path(path).exists():
        raise FileExistsError(f"{path} exists: pass it to --about, or choose another file.")

    def unfinished(block: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: unfinished(value) if isinstance(value, Mapping) else value
            for name, value in block.items()
            if find_todos(value)
        }

    write_yaml(Path(path), unfinished(content))


def read_weights(folder: str) -> dict[str, Tensor]:
    """Return the tensors of a model folder, as they are stored."""
    return {name: tensor for file in weight_files(folder) for name, tensor in load_file(file).items()}


def write_yaml(path: Path, content: Mapping[str, Any]) -> None:
    """Write a YAML file."""
    with atomic_path(path) as part:
        part.write_text(yaml.safe_dump(dict(content), sort_keys=False, allow_unicode=True), encoding="utf-8")

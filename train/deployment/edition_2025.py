"""The inference package of a submission to DCASE 2025 Task 1, and its metadata."""

import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pandas as pd
import soundfile
import torch
from torch import Tensor

from dataset_script import SCENES, cache_waveforms
from dataset_script.errors import InputError
from dataset_script.files import atomic_path, write_json
from dataset_script.splits import subset_percentage
from model_cards.complexity import ModelComplexity, check_limits, measure_folder, read_config, weight_files
from train.common.features import input_rate
from train.common.models import load_classifier
from train.common.waveforms import RowSelection
from train.deployment.challenge import (
    ADVICE,
    SubmittedModel,
    complexity_block,
    complexity_sentence,
    development_results,
    difference_reason,
    merge,
    read_model,
    read_weights,
    submission_block,
    system_block,
    write_yaml,
)
from train.deployment.external_data import TODO
from train.evaluation.inference import compute_logits
from train.evaluation.scoring import score_logits, unseen_devices


logger = logging.getLogger(__name__)

TEMPLATES = Path(__file__).parent / "package_2025"

SUBSET = 25
"""Percentage of the training clips that models of this edition are trained on."""

DEVICE_IDS = ("a", "b", "c", *(f"s{number}" for number in range(1, 11)))
"""Devices that the challenge's script counts complexity for."""

CONFIGURATIONS = ("config.json", "preprocessor_config.json")


def read_system(folders: Sequence[str], device_models: Sequence[str]) -> tuple[SubmittedModel, dict[str, str]]:
    """Read the general model of a system, and check that it and the models of devices may be submitted.

    Args:
        folders (`Sequence[str]`): Model folder of the general model, with results.
        device_models (`Sequence[str]`): Models of devices, as `"a=FOLDER"`.

    Returns:
        `tuple`: The general model, and the folder of each device that has its own.

    Raises:
        FileNotFoundError: If a folder is incomplete.
        InputError: If there is not one general model, of the 25 % subset; a device is named twice; a limit is
            exceeded; or a model of a device has other code or features than the general one.
    """
    if len(folders) != 1:
        raise InputError(f"--models has {len(folders)} folders: pass the general model; others go to --device_models.")
    (general,) = folders
    model = read_model(general)
    if subset_percentage(model.results.dataset) != SUBSET:
        raise InputError(
            f"{general} was trained on {model.results.dataset}: the 2025 edition allows only the {SUBSET} % subset."
        )
    by_device: dict[str, str] = {}
    for entry in device_models:
        device, equals, folder = entry.partition("=")
        if not re.fullmatch(r"[A-Za-z0-9]+", device) or not equals or not folder:
            raise InputError(f"--device_models has {entry!r}: write <device id>=<folder>, such as a=outputs/device_a.")
        if device in by_device:
            raise InputError(f"--device_models names the device {device} twice: choose one model.")
        by_device[device] = folder
    for folder in by_device.values():
        check_limits(measure_folder(folder), folder, as_stored=True, advice=ADVICE)
    code = read_code(general)
    features = (Path(general) / CONFIGURATIONS[1]).read_bytes()
    for folder in by_device.values():
        if read_code(folder) != code or (Path(folder) / CONFIGURATIONS[1]).read_bytes() != features:
            raise InputError(
                f"{folder} has other code or another preprocessor_config.json than {general}: adapt it from that "
                "model, with the same version of this project."
            )
    return model, by_device


def read_code(folder: str) -> dict[str, bytes]:
    """Return the Python files of a model folder by name; raise `InputError` if it cannot be loaded with them."""
    if "auto_map" not in read_config(folder) or not (code := sorted(Path(folder).glob("*.py"))):
        raise InputError(f"{folder} does not contain the code of its model: write it with a command of train/.")
    return {path.name: path.read_bytes() for path in code}


def evaluate_system(
    general: str,
    device_models: Mapping[str, str],
    scenes: datasets.DatasetDict,
    cache_dir: str | None = None,
    batch_size: int = 256,
    trust_remote_code: bool = False,
) -> dict[str, Any]:
    """Evaluate the models of devices on the test clips of these devices, and the general model on all others.

    Args:
        general (`str`): Folder of the general model.
        device_models (`Mapping[str, str]`): Folders of the models of devices.
        scenes (`datasets.DatasetDict`): The development dataset.
        cache_dir (`str`, *optional*): Folder of resampled clips.
        batch_size (`int`, *optional*, defaults to 256): Clips per forward pass.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Whether to run the models' own code.

    Returns:
        `dict[str, Any]`: The metrics, as of [`~train.evaluation.metrics.scene_metrics`].
    """
    clips = scenes["test"]
    devices = [clips.features["device"].names[index] for index in clips["device"]]
    logits = np.empty((len(clips), len(SCENES)), dtype=np.float32)
    folders = np.array([device_models.get(device, general) for device in devices])
    for folder in np.unique(folders):
        rows = np.flatnonzero(folders == folder)
        model, feature_extractor = load_classifier(str(folder), SCENES, trust_remote_code)
        waveforms = RowSelection(cache_waveforms(clips, input_rate(feature_extractor), cache_dir), rows)
        logits[rows] = compute_logits(model, feature_extractor, waveforms, batch_size)
    return score_logits(logits, clips, unseen_devices(scenes["train"], clips), bootstrap=0)


def metadata(
    label: str,
    model: SubmittedModel,
    device_models: Mapping[str, str],
    device_metrics: Mapping[str, Any] | None,
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Build the content of the metadata file.

    Args:
        label (`str`): Label of the submission.
        model (`SubmittedModel`): The general model.
        device_models (`Mapping[str, str]`): Folders of the models of devices.
        device_metrics (`Mapping`, *optional*): Metrics from [`evaluate_system`], if there are models of devices.
        about (`Mapping`, *optional*): Values that are added to the content or replace those there.

    Returns:
        `dict[str, Any]`: The content; missing values are `TODO`.
    """
    system = system_block([model])
    system["description"] |= {
        "device_information": "per-device models" if device_models else "None",
        "num_models_at_inference": 1 + len(device_models),
        "model_weight_sharing": weight_sharing(model.folder, device_models),
    }
    counted = [model.complexity, *map(measure_folder, device_models.values())]
    system["complexity"] = complexity_block(max(counted, key=lambda complexity: complexity.parameter_bytes))
    system["inference_code"] = TODO
    content = {
        "submission": submission_block(label),
        "system": system,
        "results": {
            "development_dataset": {
                "device_specific": development_results(device_metrics) if device_metrics else None,
                "general": development_results(model.results.metrics),
            }
        },
    }
    return merge(content, about or {})


def weight_sharing(general: str, device_models: Mapping[str, str]) -> str:
    """Return how many weights the models of devices share with the general model, in the challenge's words."""
    if not device_models:
        return "fully shared"

    def parameters(folder: str) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in read_weights(folder).items() if name.endswith((".weight", ".bias"))}

    own = parameters(general)
    equal = [
        name in own and torch.equal(own[name], tensor)
        for folder in device_models.values()
        for name, tensor in parameters(folder).items()
    ]
    return "fully shared" if all(equal) else "partially shared" if any(equal) else "fully device-specific"


def complexity_by_device(general: ModelComplexity, device_models: Mapping[str, str]) -> dict[str, Any]:
    """Return complexity as the challenge's script writes it, and beside it what is stored and executed.

    Args:
        general ([`~model_cards.complexity.ModelComplexity`]): Of the general model.
        device_models (`Mapping[str, str]`): Folders of the models of devices.
    """
    own = {device: measure_folder(folder) for device, folder in device_models.items()}
    counted = {device: own.get(device, general) for device in DEVICE_IDS}
    printed = {
        device: {"MACs": complexity.official_macs, "Params": complexity.official_bytes}
        for device, complexity in counted.items()
    }
    stored = {
        device: {"MACs": complexity.macs, "Params": complexity.parameter_bytes}
        for device, complexity in counted.items()
    }
    return {
        **_with_maximum(printed),
        "stored": _with_maximum(stored),
        "reason": next(filter(None, map(difference_reason, counted.values())), None),
    }


def _with_maximum(per_device: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    largest = {f"max_{key}": max(counts[key] for counts in per_device.values()) for key in ("MACs", "Params")}
    return {"per_device": per_device, **largest}


def write_package(
    output_dir: str | Path,
    label: str,
    model: SubmittedModel,
    device_models: Mapping[str, str],
    content: Mapping[str, Any],
    clips: datasets.Dataset,
) -> None:
    """Write an installable inference package with a system, or add a system to the package that is there.

    Args:
        output_dir (`str` or `Path`): Folder of the package's `setup.py`.
        label (`str`): Label of the submission: the package's name and the number of the system.
        model (`SubmittedModel`): The general model.
        device_models (`Mapping[str, str]`): Folders of the models of devices.
        content (`Mapping`): Metadata from [`metadata`].
        clips (`datasets.Dataset`): The development-test clips.
    """
    if model.results.synthetic:
        logger.warning("The model was trained and tested on synthetic clips: its results are not results on TAU.")
    name, _, number = label.rpartition("_")
    system, root = f"system_{number}", Path(output_dir)
    package = root / name
    for file in ("setup.py", "requirements.txt", "README.md"):
        text = (TEMPLATES / file).read_text(encoding="utf-8").replace("$package", name)
        _write_text(root / file, text)
    _write_text(package / "__init__.py", f'"""Systems of {name}, one for each module."""\n')
    _write_text(package / "models" / "__init__.py", '"""Code of the models of each system."""\n')
    _write_text(package / f"{label}.py", (TEMPLATES / "inference.py").read_text(encoding="utf-8"))
    _replace(package / "models" / system)
    _write_text(package / "models" / system / "__init__.py", f'"""Code of the models of {label}."""\n')
    for file, source in read_code(model.folder).items():
        (package / "models" / system / file).write_bytes(source)
    _replace(package / "ckpts" / system)
    folders = {"general": model.folder} | {f"device_{device}": folder for device, folder in device_models.items()}
    for part, folder in folders.items():
        target = package / "ckpts" / system / part
        target.mkdir(parents=True)
        for path in (*(Path(folder) / file for file in CONFIGURATIONS), *weight_files(folder)):
            shutil.copyfile(path, target / path.name)
    write_resources(package / "resources", clips)
    counts = complexity_by_device(model.complexity, device_models)
    write_json(root / f"{label}.complexity.json", counts)
    write_yaml(root / f"{label}.meta.yaml", content)
    for part, folder in folders.items():
        logger.info("%s: %s", part, complexity_sentence(measure_folder(folder)))
    logger.info("Wrote the package %s and its metadata to %s.", name, root)


def write_resources(folder: Path, clips: datasets.Dataset) -> None:
    """Write the files that the challenge's scripts read from a package.

    Args:
        folder (`Path`): Gets `dummy.wav`, a second of noise at 44.1 kHz and 24 bits, and `test.csv`.
        clips (`datasets.Dataset`): The development-test clips.
    """
    labels = clips.features["label"].names
    table = pd.DataFrame({"filename": clips["filename"], "scene_label": [labels[index] for index in clips["label"]]})
    with atomic_path(folder / "test.csv") as part:
        table.to_csv(part, sep="\t", index=False)
    noise = np.random.default_rng(0).normal(scale=0.1, size=44_100).clip(-1, 1)
    with atomic_path(folder / "dummy.wav") as part:
        soundfile.write(part, noise, 44_100, subtype="PCM_24", format="WAV")


def _write_text(path: Path, text: str) -> None:
    with atomic_path(path) as part:
        part.write_text(text, encoding="utf-8")


def _replace(folder: Path) -> None:
    """Create an empty folder in place of an earlier one of the same system."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)

"""Results files: read, checked, and told by what corpus they are of. Cards and tables state nothing else."""

import json
import platform
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

import numpy as np
import yaml

from dataset_script.errors import InputError


def provenance() -> dict[str, Any]:
    """Return what it takes to get a result again: command, commit and versions."""
    commit = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"],
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=False,
    )
    script = "/".join(Path(sys.argv[0]).resolve().parts[-2:])  # as seen from the project
    packages = ("torch", "transformers", "datasets", "accelerate", "numpy", "soxr")
    return {
        "command": shlex.join(["python", script, *sys.argv[1:]]),
        "commit": commit.stdout.strip() or None,
        "versions": {"python": platform.python_version(), **{package: version(package) for package in packages}},
    }


RESULTS_FILE = "results.json"

RUN_FILE = "run.json"
"""What makes the run in a folder what it is; written before its results."""

TAU_TEST_CLIPS = {
    "airport": 2960,
    "bus": 2970,
    "metro": 2970,
    "metro_station": 2970,
    "park": 2970,
    "public_square": 2970,
    "shopping_mall": 2970,
    "street_pedestrian": 2970,
    "street_traffic": 2970,
    "tram": 2960,
}
"""Clips of each class in the test split of TAU Urban Acoustic Scenes 2022 Mobile, by which its results are known."""

TAU_TRAINING_CLIPS = {"split5": 6_980, "split10": 13_960, "split25": 34_900, "split50": 69_800, "split100": 139_620}
"""Clips of the training subsets of DCASE 2024 Task 1."""


@dataclass(frozen=True)
class Corpus:
    """What a model was trained and tested on.

    Attributes:
        name: As cards name it.
        hub_type: Identifier of the dataset in a `model-index`.
        license: Identifier of its licence, as the Hub lists them, or a name.
        license_link: Where the licence is.
        kind: "tau", "synthetic" or "other".
    """

    name: str
    hub_type: str
    license: str
    license_link: str
    kind: str


TAU = Corpus(
    "TAU Urban Acoustic Scenes 2022 Mobile, development",
    "tau-urban-acoustic-scenes-2022-mobile-development",
    "tau-non-commercial",
    "https://zenodo.org/records/6337421",
    "tau",
)
SYNTHETIC = Corpus(
    "Synthetic acoustic scenes",
    "synthetic-acoustic-scenes",
    "cc0-1.0",
    "https://creativecommons.org/publicdomain/zero/1.0/",
    "synthetic",
)


def load_results(source: str | Path) -> dict[str, Any]:
    """Read a results file and check that its figures agree with its confusion matrix.

    Args:
        source (`str` or `Path`): As for [`results_path`].

    Returns:
        The results, without paths of this machine, as [`portable`] gives them; of an INT8 model also where the file
        has those of its float counterpart beside them.

    Raises:
        FileNotFoundError: If there is none.
        InputError: If it is no results file of a test split, its figures contradict each other, or it is not of the
            run in its folder.
    """
    path = results_path(source)
    results = portable(read_json(path))
    arguments = results.get("arguments", {})
    run = read_json(path.with_name(RUN_FILE)) if arguments and path.with_name(RUN_FILE).is_file() else {}
    for name, value in run.items():
        if _last_parts(arguments.get(name)) != _last_parts(value):
            raise InputError(
                f"{path} is of another run than its folder: {name} is {arguments.get(name)!r} in it, but {value!r} in "
                f"{RUN_FILE}: evaluate the model again."
            )
    try:
        if "int8" in results:  # of train/quantize.py, which also has those of the float model
            results = {"unseen_devices": [], "complexity": {}, **results, "metrics": results["int8"]}
        metrics = results["metrics"]
        confusion = np.asarray(metrics["confusion_matrix"], dtype=float)
        clips = confusion.sum(axis=1)
        accuracy, macro = metrics["accuracy"], metrics["macro_accuracy"]
        split, _ = results["split"], (results["dataset"], results["synthetic"], results["provenance"]["command"])
        labels = list(metrics["class_wise"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is no results file ({type(error).__name__}: {error}): make it with a script of train/."
        ) from None
    if split != "test":
        raise InputError(f"{path} has results on the split {split!r}: only those on the test split say something.")
    hits = np.diag(confusion)
    expected = {
        "clips": clips.sum(),
        "accuracy": hits.sum() / clips.sum(),
        "macro_accuracy": (hits[clips > 0] / clips[clips > 0]).mean(),
    }
    given = {"clips": metrics["clips"], "accuracy": accuracy, "macro_accuracy": macro}
    for label, count, hit in zip(labels, clips, hits, strict=True):
        figures = metrics["class_wise"][label]
        expected[f"accuracy of {label}"] = hit / count if count else 0
        given[f"accuracy of {label}"] = figures["accuracy"] if figures else 0
    for name, value in expected.items():
        if abs(value - given[name]) > 1e-6:
            raise InputError(
                f"{path} was edited: its {name} is {given[name]}, but its confusion matrix gives {value:.6g}: "
                "evaluate the model again."
            )
    return results


def read_json(path: Path) -> dict[str, Any]:
    """Read a results file as it is.

    Raises:
        FileNotFoundError: If there is none.
        InputError: If it is damaged.
    """
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no results file {path}: finish the run, or evaluate the model with train/run_eval.py."
        )
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}): delete it and repeat the command that made it.") from None
    if not isinstance(results, dict):
        raise InputError(f"{path} is no results file: make it with a script of train/.")
    return results


def portable(content: Any) -> Any:
    """Return the content of a results file with each path of this machine shortened to its last part.

    Paths within the working directory, names of recipes and ids on the Hub stay as they are: what is published tells
    how a model was made, but nothing of where its files were.

    Example:

        >>> portable({"command": "python train/distill.py --data_dir /home/jane/TAU", "teachers": ["outputs/ssl"]})
        {'command': 'python train/distill.py --data_dir TAU', 'teachers': ['outputs/ssl']}
    """
    if isinstance(content, dict):
        return {
            name: shlex.join(map(_portable_word, shlex.split(str(value)))) if name == "command" else portable(value)
            for name, value in content.items()
        }
    if isinstance(content, list):
        return [portable(value) for value in content]
    return _portable_word(content) if isinstance(content, str) else content


def _last_parts(value: Any) -> Any:
    """Return a value with what [`portable`] leaves of any path, wherever it was called."""
    if isinstance(value, list):
        return [_last_parts(item) for item in value]
    return PureWindowsPath(value).name if isinstance(value, str) else value


def _portable_word(word: str) -> str:
    """Return a path, or an argument `--name=path`, without the folders that are not the project's."""
    option, equals, path = word.rpartition("=") if word.startswith("--") else ("", "", word)
    if Path(path).is_relative_to(Path.cwd()):
        path = str(Path(path).relative_to(Path.cwd()))
    leaves = path.startswith("~") or ".." in PurePath(path).parts or Path(path).is_absolute()
    if leaves or PureWindowsPath(path).is_absolute():
        path = PureWindowsPath(path).name  # which takes both kinds of slash
    return option + equals + path


def results_path(source: str | Path) -> Path:
    """Return the results file of a run.

    Args:
        source (`str` or `Path`): The file, the folder that it is in, or the folder `model` in that one, where
            train/quantize.py puts the INT8 model.
    """
    source = Path(source)
    if not source.is_dir():
        return source
    beside = source.resolve().parent / RESULTS_FILE
    is_quantized = source.resolve().name == "model" and beside.is_file() and "int8" in read_json(beside)
    return beside if is_quantized else source / RESULTS_FILE


def float_results(source: str | Path) -> Path | None:
    """Return the results file of the float model that an INT8 model was made from, on the same data, if it is here.

    Args:
        source (`str` or `Path`): Results of train/quantize.py, as for [`results_path`].
    """
    results = read_json(results_path(source))
    if "model" not in results:
        return None
    path = results_path(results["model"])
    return path if path.is_file() and read_json(path).get("dataset") == results["dataset"] else None


def identify_corpus(
    results: dict[str, Any], dataset_name: str | None = None, dataset_license: str | None = None
) -> Corpus:
    """Return the corpus that results are of, or refuse those that pass for results on another one.

    Results on TAU are known by the published numbers of clips. Other recordings in the layout of TAU have to be named.

    Args:
        results (`dict`): As of [`load_results`].
        dataset_name (`str`, *optional*): Name of recordings that are not TAU.
        dataset_license (`str`, *optional*): Their licence, such as `"cc-by-4.0"`.

    Raises:
        InputError: If clips of the demo corpus or other recordings would pass for TAU.
    """
    config, metrics = results["dataset"], results["metrics"]
    if results["synthetic"]:
        if not config.startswith("demo"):
            raise InputError(
                f"The results are called those of {config}, a subset of TAU, but the clips are synthetic: evaluate on "
                f"--dataset {config.replace('split100', 'demo').replace('split', 'demo')} instead."
            )
        if dataset_name is not None:
            raise InputError(f"The clips are synthetic: results on them cannot be called those of {dataset_name!r}.")
        return SYNTHETIC
    clips = {name: figures["clips"] if figures else 0 for name, figures in metrics["class_wise"].items()}
    held_out = results.get("arguments", {}).get("validation_fraction", 0)
    of_training = results.get("training_clips", TAU_TRAINING_CLIPS.get(config, 0))
    if clips == TAU_TEST_CLIPS and (of_training == TAU_TRAINING_CLIPS.get(config) or held_out):
        if dataset_name is not None:
            raise InputError(
                f"The clips are those of TAU: results on them cannot be called those of {dataset_name!r}."
            )
        return TAU
    if dataset_name is not None and re.search(r"\btau", dataset_name, re.IGNORECASE):
        raise InputError(
            f"The {metrics['clips']:,} test clips are not the 29,680 of TAU: their results cannot be called those of "
            f"{dataset_name!r}."
        )
    if dataset_name is None or dataset_license is None:
        raise InputError(
            f"The results are called those of {config}, but their {metrics['clips']:,} test clips are neither the "
            "29,680 of TAU nor synthetic: say what they are with --dataset_name and --dataset_license of python -m "
            "model_cards.push."
        )
    slug = re.sub(r"[^a-z0-9]+", "-", dataset_name.lower()).strip("-")
    return Corpus(dataset_name, slug, dataset_license, "README.md#training-data-and-licence", "other")


def percentage(dataset: str) -> int:
    """Return the share of the training clips in a configuration's name, in percent: 25 of "split25", 100 of "demo"."""
    digits = re.fullmatch(r"(?:demo|split)(\d+)", dataset)
    return int(digits[1]) if digits else 100


def configuration(dataset: str) -> str:
    """Return the name under which a card has a configuration of the data, which may be a folder or an id."""
    return re.sub(r"[^\w.]+", "-", dataset).strip("-.")


def published() -> dict[str, Any]:
    """Return the published figures (percent) with their sources, of `published/dcase2024_task1.yaml`."""
    path = Path(__file__).with_name("published") / "dcase2024_task1.yaml"
    return yaml.safe_load(path.read_text(encoding="utf-8"))


PUBLISHED_ROWS = {
    "ssl_star": ("teachers", "BEATs (SSL)*"),
    "ssl": ("teachers", "BEATs (SSL)"),
    "ssl_sl": ("teachers", "BEATs (SSL+SL)"),
    "ensemble5": ("teachers", "5 Ensemble"),
    "ensemble10": ("teachers", "10 Ensemble"),
    "vanilla": ("student", "Vanilla"),
    "s1": ("student", "S1"),
    "s2": ("student", "S2"),
    "s3": ("student", "S3"),
}
"""Table and row of the report in which a recipe's accuracies are published."""


def published_row(recipe: str) -> dict[int, float] | None:
    """Return the published accuracies of a recipe's system, in percent, by the subset's percentage; None without."""
    if recipe not in PUBLISHED_ROWS:
        return None
    table, system = PUBLISHED_ROWS[recipe]
    (row,) = (row for row in published()[table]["rows"] if row["system"] == system)
    return {percentage: row[percentage] for percentage in published()["splits"]}

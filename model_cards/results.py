"""Results files: read once, checked, and handed to all that states them. Cards and tables state nothing else."""

import json
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

import numpy as np

from dataset_script.errors import InputError


RESULTS_FILE = "results.json"

SECRET_ARGUMENT = re.compile(r"--\S*(token|secret|password|api_key)\S*", re.IGNORECASE)
SECRET = re.compile(r"\bhf_\w+")
"""What is never recorded: values of arguments with these names, and tokens of the Hub anywhere."""

RUN_FILE = "run.json"
"""What identifies the run in a folder; written before its results."""

CONVERTED_FORMATS = {"int8": "INT8", "float16": "float16"}
"""Entries with the metrics of a converted model, in the results of train/quantize.py and train/half_precision.py, and
what its number format is called."""


@dataclass(frozen=True)
class RunResults:
    """The results of a run, or of the conversion of its model to another number format.

    Attributes:
        path (`Path`): The results file.
        content (`dict`): Its content, without local paths, as [`portable`] makes it. The results of a converted model
            have its metrics under `metrics` too.
        float_model (`str` or `None`): The model that a converted model was made from, as the file has it.
    """

    path: Path
    content: dict[str, Any]
    float_model: str | None = None

    @property
    def converted_format(self) -> str | None:
        """Number format of a converted model, "INT8" or "float16"; None for any other model."""
        entry = _converted_entry(self.content)
        return None if entry is None else CONVERTED_FORMATS[entry]

    @property
    def is_encoder(self) -> bool:
        """Whether these are results of train/pretrain_teacher.py or train/finetune_audioset.py."""
        return "figures" in self.content or "map" in self.content.get("metrics", {})

    @property
    def dataset(self) -> str:
        """Configuration of the data, such as "split25"."""
        return str(self.content["dataset"])

    @property
    def synthetic(self) -> bool:
        """Whether the clips are those of the demo corpus."""
        return bool(self.content["synthetic"])

    @property
    def metrics(self) -> dict[str, Any]:
        """As of [`~train.evaluation.metrics.scene_metrics`]."""
        metrics: dict[str, Any] = self.content["metrics"]
        return metrics

    @property
    def unseen_devices(self) -> list[str]:
        """Devices of the test clips that are not in the training clips."""
        return list(self.content.get("unseen_devices", []))

    @property
    def complexity(self) -> dict[str, int]:
        """As of [`~model_cards.complexity.ModelComplexity.as_results`]; empty if it was not counted."""
        return dict(self.content.get("complexity", {}))

    @property
    def recipe(self) -> str | None:
        """Name of the recipe that the model was trained by, if the file has it."""
        return self.content.get("recipe")

    @property
    def arguments(self) -> dict[str, Any]:
        """Arguments of the training run; empty if the file has none."""
        return dict(self.content.get("arguments", {}))

    @property
    def teachers(self) -> list[str]:
        """Teachers of a student."""
        return list(self.content.get("teachers", []))

    @property
    def teacher_names(self) -> list[str]:
        """What the teachers of a student are called in their logits, or else where they are."""
        return [teacher["teacher"] for teacher in self.content.get("teacher_quality", [])] or self.teachers

    @property
    def unlabelled(self) -> dict[str, Any] | None:
        """Sound without labels that a student learned from: its sources and numbers of clips."""
        return self.content.get("unlabelled")

    @property
    def selection(self) -> str | None:
        """How the epoch was chosen."""
        return self.content.get("selection")

    @property
    def training_clips(self) -> int | None:
        """Number of clips that the model was trained on."""
        return self.content.get("training_clips")

    @property
    def provenance(self) -> dict[str, Any]:
        """As of [`provenance`]."""
        return dict(self.content["provenance"])


def find_results(source: str | Path) -> RunResults | None:
    """Read a results file, without checking it; None if there is none.

    Args:
        source (`str` or `Path`): The file, the folder that it is in, or the folder `model` in that one, where
            train/quantize.py and train/half_precision.py put the converted model.

    Raises:
        InputError: If the file is damaged.
    """
    source = Path(source)
    path, content = source, None
    if source.is_dir():
        path, beside = source / RESULTS_FILE, source.resolve().parent / RESULTS_FILE
        if source.resolve().name == "model" and beside.is_file() and _converted_entry(found := read_json(beside)):
            path, content = beside, found
    if content is None and not path.is_file():
        return None
    content = read_json(path) if content is None else content
    shared = portable(content)
    if (entry := _converted_entry(content)) is not None:
        shared = {**shared, "metrics": shared[entry]}
    return RunResults(path, shared, content.get("model"))


def read_results(source: str | Path) -> RunResults:
    """Read a results file, without checking it.

    Args:
        source (`str` or `Path`): As for [`find_results`].

    Raises:
        FileNotFoundError: If there is no results file.
        InputError: If the file is damaged.
    """
    results = find_results(source)
    if results is None:
        path = Path(source) / RESULTS_FILE if Path(source).is_dir() else source
        raise FileNotFoundError(
            f"There is no results file {path}: finish the run, or evaluate the model with train/run_eval.py."
        )
    return results


def load_results(source: str | Path) -> RunResults:
    """Read a results file and check it, see [`check_results`].

    Args:
        source (`str` or `Path`): As for [`find_results`].

    Raises:
        FileNotFoundError: If there is no results file.
        InputError: If the file is damaged, or as [`check_results`].
    """
    results = read_results(source)
    check_results(results)
    return results


def check_results(results: RunResults) -> None:
    """Check that results are of a test split and of the run in their folder, and agree with their confusion matrix.

    Args:
        results (`RunResults`): Of a scene classifier.

    Raises:
        InputError: If something is missing, was edited, or is of another run or split.
    """
    path = results.path
    run_file = path.with_name(RUN_FILE)
    run = read_json(run_file) if results.arguments and run_file.is_file() else {}
    for name, value in run.items():
        stated = results.arguments.get(name)
        if _last_parts(stated) != _last_parts(value):
            raise InputError(
                f"{path} is of another run than its folder: {name} is {stated!r} in it, but {value!r} in {RUN_FILE}: "
                "evaluate the model again."
            )
    try:
        metrics = results.metrics
        confusion = np.asarray(metrics["confusion_matrix"], dtype=float)
        clips = confusion.sum(axis=1)
        stated = {name: metrics[name] for name in ("clips", "accuracy", "macro_accuracy")}
        split, _ = results.content["split"], (results.dataset, results.synthetic, results.provenance["command"])
        class_wise = dict(metrics["class_wise"])
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path} is not a results file ({type(error).__name__}: {error}): make it with a command of train/."
        ) from None
    if split != "test":
        raise InputError(f"{path} has results on the split {split!r}: use results on the test split.")
    hits = np.diag(confusion)
    expected = {
        "clips": clips.sum(),
        "accuracy": hits.sum() / clips.sum(),
        "macro_accuracy": (hits[clips > 0] / clips[clips > 0]).mean(),
    }
    for (label, scores), count, hit in zip(class_wise.items(), clips, hits, strict=True):
        expected[f"accuracy of {label}"] = hit / count if count else 0
        stated[f"accuracy of {label}"] = scores["accuracy"] if scores else 0
    for name, value in expected.items():
        if abs(value - stated[name]) > 1e-6:
            raise InputError(
                f"{path} was edited: its {name} is {stated[name]}, but its confusion matrix says {value:.6g}: "
                "evaluate the model again."
            )


def _converted_entry(content: dict[str, Any]) -> str | None:
    """Return the name of the entry with the metrics of a converted model, or None in the results of any other."""
    return next((name for name in CONVERTED_FORMATS if name in content), None)


def float_results(results: RunResults) -> RunResults | None:
    """Return the results of the float model that a converted one was made from, on the same data, if they are here."""
    if results.converted_format is None or results.float_model is None:
        return None
    found = find_results(results.float_model)
    return found if found is not None and found.content.get("dataset") == results.dataset else None


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of a run as it is.

    Raises:
        FileNotFoundError: If there is no such file.
        InputError: If it is damaged.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} is damaged ({error}): delete it and repeat the command that made it.") from None
    if not isinstance(content, dict):
        raise InputError(f"{path} is not a results file: make it with a command of train/.")
    return content


def provenance() -> dict[str, Any]:
    """Return what is needed to get a result again: command, commit and versions."""
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
        "command": shlex.join(["python", script, *_without_secrets(sys.argv[1:])]),
        "commit": commit.stdout.strip() or None,
        "versions": {"python": platform.python_version(), **{package: version(package) for package in packages}},
    }


def _without_secrets(arguments: Sequence[str]) -> list[str]:
    """Return a command line with the values of tokens, keys and passwords replaced by stars."""
    shown: list[str] = []
    for argument in arguments:
        name, equals, _ = argument.partition("=")
        if equals and SECRET_ARGUMENT.fullmatch(name):
            argument = f"{name}=***"
        elif shown and SECRET_ARGUMENT.fullmatch(shown[-1]) and not argument.startswith("--"):
            argument = "***"
        shown.append(SECRET.sub("***", argument))
    return shown


def portable(content: Any) -> Any:
    """Return the content of a results file with each local path shortened to its last part.

    Paths within the working directory, names of recipes and ids on the Hub stay as they are: cards record how a model
    was made and never contain local paths.

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
    outside = path.startswith("~") or ".." in PurePath(path).parts or Path(path).is_absolute()
    if outside or PureWindowsPath(path).is_absolute():
        path = PureWindowsPath(path).name  # which takes both kinds of slash
    return option + equals + path


def configuration(dataset: str) -> str:
    """Return the name under which a card has a configuration of the data, which may be a folder or an id."""
    return re.sub(r"[^\w.]+", "-", dataset).strip("-.")

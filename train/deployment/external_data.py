"""External data behind the models of a submission, from the results of their runs and of their teachers'."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from dataset_script.errors import InputError
from model_cards.results import RunResults, find_results
from train.common.augmentations import read_impulse_responses
from train.common.recipes import is_recipe, load_recipe


TODO = "TODO"
"""Marks the values of the metadata that have to be filled in by hand."""

OWN_DATA = re.compile(r"(split|demo)\d*|full")
"""Configurations of the challenge's own dataset and of the demo corpus, which are not external."""

Resource = dict[str, Any]
"""An external dataset or model: `name`, `url` and `total_audio_length`, in minutes."""


def external_resources(runs: Iterable[RunResults]) -> list[Resource]:
    """Return the external datasets and pre-trained models that runs used, each once.

    Args:
        runs (`Iterable[RunResults]`): Results of the training of students.
    """
    found: dict[str, Resource] = {}
    for run in runs:
        for resource in (*_of_teachers(run), *_of_impulse_responses(run), *_of_unlabelled_sound(run)):
            found.setdefault(resource["name"], resource)
    return list(found.values())


def usage(runs: Iterable[RunResults]) -> str:
    """Return how runs used external data, in the challenge's words."""
    runs = list(runs)
    ways = {
        "pre-trained model": any(list(_of_teachers(run)) for run in runs),
        "directly": any([*_of_impulse_responses(run), *_of_unlabelled_sound(run)] for run in runs),
    }
    return ", ".join(way for way, used in ways.items() if used) or "None"


def _of_teachers(run: RunResults) -> Iterator[Resource]:
    described = run.content.get("teacher_quality") or [{"source": teacher} for teacher in run.teachers]
    for teacher in described:
        # A folder of logits names the model that predicted them.
        names = [name for name in (teacher["source"], teacher.get("teacher")) if name]
        name = next((name for name in names if _arguments(name, run.dataset) is not None), names[-1])
        yield from _of_model(name, run.dataset)


def _of_model(name: str, dataset: str) -> Iterator[Resource]:
    """Yield the pre-trained model behind a teacher, which may be fine-tuned several times, and its training data."""
    arguments = _arguments(name, dataset)
    if arguments is not None:
        if arguments.get("model_name_or_path") is not None:  # otherwise it started from random weights
            yield from _of_model(arguments["model_name_or_path"], dataset)
        data = str(arguments.get("dataset", dataset))
        if data != dataset and not OWN_DATA.fullmatch(data):
            yield {"name": Path(data).name, "url": TODO, "total_audio_length": TODO}
        return
    known = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
    for entry in known:
        if entry["match"] in name.lower():
            yield from entry["resources"]
            return
    on_hub = re.fullmatch(r"(?!checkpoints/|outputs/)[\w.-]+/[\w.-]+", name) and not Path(name).exists()
    yield {"name": name, "url": f"https://huggingface.co/{name}" if on_hub else TODO, "total_audio_length": None}
    yield {"name": f"Training data of {name}", "url": TODO, "total_audio_length": TODO}


def _arguments(name: str, dataset: str) -> dict[str, Any] | None:
    """Return the arguments of the run behind a model of this project; None for any other model."""
    if is_recipe(name):
        try:
            return load_recipe(name, dataset)
        except (InputError, FileNotFoundError):  # another project's recipe of the same name
            return None
    results = find_results(name) if Path(name).is_dir() else None
    return results.arguments or None if results is not None else None


def _of_impulse_responses(run: RunResults) -> Iterator[Resource]:
    if not run.arguments.get("impulse_response_p"):
        return
    folder = Path(run.arguments.get("impulse_responses") or "MicIRP")
    if run.synthetic and folder.name == "impulse_responses":
        return  # they are a part of the demo corpus
    seconds = [len(response) / rate for response, rate in read_impulse_responses(folder)] if folder.is_dir() else []
    minutes = round(sum(seconds) / 60, 2) if seconds else None
    if "micirp" in folder.name.lower():
        yield {"name": "MicIRP", "url": "http://micirp.blogspot.com", "total_audio_length": minutes}
    else:
        yield {"name": folder.name, "url": TODO, "total_audio_length": minutes}


def _of_unlabelled_sound(run: RunResults) -> Iterator[Resource]:
    sound = run.unlabelled or {"sources": []}
    sources = [source for source in sound["sources"] if not OWN_DATA.fullmatch(source)]
    for source in sources:
        on_hub = re.fullmatch(r"([\w.-]+/[\w.-]+)(:.*)?", source) if not Path(source).exists() else None
        yield {
            "name": Path(source).name,
            "url": f"https://huggingface.co/datasets/{on_hub[1]}" if on_hub else TODO,
            "total_audio_length": round(sound["clips"] / 60, 1) if len(sound["sources"]) == 1 else TODO,
        }

"""Output folders of the commands, and the runs that they contain."""

import json
import logging
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainingArguments

from dataset_script.files import PART_SUFFIX, write_json
from model_cards.results import RESULTS_FILE, RUN_FILE, read_json
from train.common.process import main_process_first


logger = logging.getLogger(__name__)

OUTCOME_ARGUMENTS = {
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "bf16",
    "fp16",
    "gradient_accumulation_steps",
    "learning_rate",
    "max_grad_norm",
    "max_steps",
    "num_train_epochs",
    "optim",
    "seed",
    "weight_decay",
}
"""The arguments of `TrainingArguments` that change the final weights."""


def describe_run(recipe: str, *arguments: Any) -> dict[str, Any]:
    """Return the arguments that determine the outcome of a run, for [`run_or_load`].

    The other arguments of `TrainingArguments` concern logging, hardware and the like.

    Args:
        recipe (`str`): Name of the recipe.
        arguments: Dataclasses of the command's arguments.

    Returns:
        `dict`: The recipe's name and the arguments by name.
    """
    irrelevant = {field.name for field in fields(TrainingArguments)} - OUTCOME_ARGUMENTS
    irrelevant |= {"cache_dir", "trust_remote_code"}
    values = {name: value for instance in arguments for name, value in vars(instance).items()}
    names = {field.name for instance in arguments for field in fields(instance)} - irrelevant
    return {"recipe": recipe, **{name: values[name] for name in sorted(names)}}


def run_or_load(folder: str | Path, run: Mapping[str, Any], work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Start or resume a run, or load its results if it is finished; all processes must call this.

    Args:
        folder (`str` or `Path`): Output folder.
        run (`Mapping`): Identity of the run, as for [`claim_output_folder`].
        work (`Callable[[], dict]`): Starts or resumes the run, writes `results.json` last, and returns its content.

    Returns:
        `dict`: The content of `results.json`.

    Raises:
        FileExistsError, InputError, OSError: As [`claim_output_folder`].
    """
    claim_output_folder(folder, run)
    results = finished_results(folder)
    if results is None:
        return work()
    logger.info("The run in %s is already finished.", folder)
    return results


def claim_output_folder(folder: str | Path, run: Mapping[str, Any]) -> None:
    """Record in `run.json` that a folder belongs to a run, or check that it does; all processes must call this.

    Args:
        folder (`str` or `Path`): Output folder, created if it does not exist.
        run (`Mapping`): Identity of the run: the arguments that determine its outcome.

    Raises:
        FileExistsError: If the folder contains another run or other files.
        InputError: If `run.json` is damaged.
        OSError: If the folder is not writable.
    """
    folder = Path(folder)
    run = json.loads(json.dumps(run))
    state = PartialState()
    state.wait_for_everyone()
    if (folder / RUN_FILE).is_file():
        other = read_json(folder / RUN_FILE)
        changed = [name for name in {**other, **run} if other.get(name) != run.get(name)]
        if changed:
            name = changed[0]
            raise FileExistsError(
                f"{folder} contains another run ({name} is {other.get(name)!r} there and {run.get(name)!r} here): "
                "choose another --output_dir, or delete the folder."
            )
    elif folder.exists() and (
        not folder.is_dir() or any(path.name != RUN_FILE + PART_SUFFIX for path in folder.iterdir())
    ):
        raise FileExistsError(f"{folder} exists and contains no run: choose another --output_dir, or empty it.")
    state.wait_for_everyone()
    with main_process_first():
        if not (folder / RUN_FILE).is_file():
            try:
                write_json(folder / RUN_FILE, run)
            except OSError as error:
                reason = error.strerror
                raise OSError(f"{folder} is not writable ({reason}): choose another --output_dir.") from None
    state.wait_for_everyone()


def finished_results(folder: str | Path) -> dict[str, Any] | None:
    """Load the results of the run in `folder`, or return None if it is not finished.

    Raises:
        InputError: If the file is damaged.
    """
    path = Path(folder) / RESULTS_FILE
    return read_json(path) if path.is_file() else None

"""Output folders of the commands, and the runs that they contain."""

import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from transformers import TrainingArguments

from dataset_script.errors import InputError
from dataset_script.files import PART_SUFFIX, write_json
from model_cards.results import RESULTS_FILE, RUN_FILE, read_json
from train.common.checkpoints import find_checkpoints
from train.common.process import main_process_first


logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"
"""File in an output folder that is locked while a command is at work there."""

OUTCOME_ARGUMENTS = {
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "gradient_accumulation_steps",
    "learning_rate",
    "max_grad_norm",
    "max_steps",
    "num_train_epochs",
    "optim",
    "seed",
    "warmup_steps",
    "weight_decay",
}
"""The arguments of `TrainingArguments` that change the final weights, beyond what hardware and precision do."""


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


def run_or_load(
    folder: str | Path,
    run: Mapping[str, Any],
    work: Callable[[], dict[str, Any]],
    model: str | None = "model.safetensors",
) -> dict[str, Any]:
    """Start or resume a run, or load its results if it is finished; all processes must call this.

    Args:
        folder (`str` or `Path`): Output folder.
        run (`Mapping`): Identity of the run, as for [`claim_output_folder`].
        work (`Callable[[], dict]`): Starts or resumes the run, writes `results.json` last, and returns its content.
        model (`str`, *optional*, defaults to `"model.safetensors"`): A file in the folder without which the run is not
            finished.

    Returns:
        `dict`: The content of `results.json`.

    Raises:
        FileExistsError, InputError, OSError: As [`claim_output_folder`].
    """
    with hold_output_folder(folder, run):
        results = finished_results(folder)
        if results is not None and model is not None and not _is_whole(Path(folder) / model):
            logger.warning(
                "%s has results but no whole %s: the run is repeated from its last checkpoint.", folder, model
            )
            results = None
        if results is None:
            results = work()
            claim_output_folder(folder, run)  # writes run.json again if somebody removed it
        else:
            logger.info("The run in %s is already finished.", folder)
    return results


def _is_whole(path: Path) -> bool:
    """Return whether a file exists, and, if it contains weights, whether it has the length that its header says."""
    if path.suffix != ".safetensors" or not path.is_file():
        return path.is_file()
    try:
        with safe_open(path, "pt"):
            return True
    except SafetensorError:
        return False


@contextmanager
def hold_output_folder(folder: str | Path, run: Mapping[str, Any]) -> Iterator[None]:
    """Claim a folder for a run and lock it while the body runs; all processes must call this.

    Args:
        folder (`str` or `Path`): Output folder.
        run (`Mapping`): Identity of the run.

    Raises:
        FileExistsError, OSError: As [`claim_output_folder`] and [`lock_folder`].
    """
    check_identity(folder, run)  # so that nothing is written into a folder of somebody else
    with lock_folder(folder):
        claim_output_folder(folder, run)
        yield


def claim_output_folder(folder: str | Path, run: Mapping[str, Any]) -> None:
    """Record in `run.json` that a folder belongs to a run, or check that it does; all processes must call this.

    A damaged or missing `run.json` is written again: from the copy in a checkpoint it is known whose run it is.

    Args:
        folder (`str` or `Path`): Output folder, created if it does not exist.
        run (`Mapping`): Identity of the run: the arguments that determine its outcome.

    Raises:
        FileExistsError: If the folder contains another run or other files.
        OSError: If the folder is not writable.
    """
    state = PartialState()
    state.wait_for_everyone()
    check_identity(folder, run)
    state.wait_for_everyone()
    with main_process_first():
        path = Path(folder) / RUN_FILE
        if _read_identity(path) != json.loads(json.dumps(run)):
            with _unwritable_errors(folder):
                write_json(path, run)
    state.wait_for_everyone()


def check_identity(folder: str | Path, run: Mapping[str, Any]) -> None:
    """Raise an error if a folder contains another run or other files.

    Args:
        folder (`str` or `Path`): Output folder, which need not exist.
        run (`Mapping`): Identity of the run.

    Raises:
        FileExistsError: If the folder contains another run or other files.
    """
    folder, run = Path(folder), json.loads(json.dumps(run))
    if not folder.exists():
        return
    checkpoints = [path / RUN_FILE for path in reversed(find_checkpoints(folder))]
    identities = (_read_identity(path) for path in (folder / RUN_FILE, *checkpoints))
    other = next((identity for identity in identities if identity is not None), None)
    ours = {LOCK_FILE, RUN_FILE, RUN_FILE + PART_SUFFIX}
    if folder.is_dir() and all(path.name in ours for path in folder.iterdir()):
        return  # a run that was stopped before it made anything
    if other is None:
        # A damaged identity without checkpoints is that of a run that had not come far.
        if not (folder / RUN_FILE).is_file():
            raise FileExistsError(f"{folder} exists and contains no run: choose another --output_dir, or empty it.")
        return
    changed = [name for name in {**other, **run} if other.get(name) != run.get(name)]
    if changed:
        name = changed[0]
        raise FileExistsError(
            f"{folder} contains another run ({name} is {other.get(name)!r} there and {run.get(name)!r} here): choose "
            "another --output_dir, or delete the folder."
        )


@contextmanager
def lock_folder(folder: str | Path) -> Iterator[None]:
    """Keep other commands out of a folder while the body runs; all processes must call this.

    The operating system releases the lock when the main process ends, however it ends; a launcher that is gone does
    not release it.

    Args:
        folder (`str` or `Path`): The folder, created if it does not exist.

    Raises:
        FileExistsError: If another command is at work in the folder.
        OSError: If the folder is not writable.
    """
    state = PartialState()
    lock = FileLock(Path(folder) / LOCK_FILE)
    fault: list[OSError | None] = [None]
    if state.is_main_process:
        try:
            with _unwritable_errors(folder):
                Path(folder).mkdir(parents=True, exist_ok=True)
                lock.acquire(timeout=0)
        except Timeout:
            fault = [FileExistsError(f"Another command is at work in {folder}: wait until it ends, or stop it.")]
        except OSError as error:
            fault = [error]
    if state.num_processes > 1:
        fault = broadcast_object_list(fault)
    if fault[0] is not None:
        raise fault[0]
    try:
        yield
    finally:
        lock.release()


@contextmanager
def _unwritable_errors(folder: str | Path) -> Iterator[None]:
    try:
        yield
    except Timeout:
        raise
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise OSError(f"{folder} is not writable ({reason}): choose another --output_dir.") from None


def _read_identity(path: Path) -> dict[str, Any] | None:
    """Return the content of a `run.json`; None if it is missing or damaged."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None


def finished_results(folder: str | Path) -> dict[str, Any] | None:
    """Load the results of the run in `folder`, or return None if it is not finished.

    Args:
        folder (`str` or `Path`): Output folder.

    Raises:
        InputError: If the file is damaged.
    """
    path = Path(folder) / RESULTS_FILE
    if not path.is_file():
        return None
    results = read_json(path)
    if "provenance" not in results:
        raise InputError(f"{path} is not complete: delete it, and run the same command to write it again.")
    return results

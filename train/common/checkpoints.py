"""Checkpoints of runs: when they are complete, and which of them a run resumes from."""

import json
import logging
import shutil
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list

from dataset_script.checksums import file_checksum
from dataset_script.files import make_durable, write_json


logger = logging.getLogger(__name__)

COMPLETE = "complete"
"""File that is written last into a checkpoint: the size and checksum of every other file, by its name."""


def complete_checkpoint(checkpoint: str | Path, run_file: Path) -> None:
    """Flush the files of a checkpoint to the disk, and then record that they are complete.

    The identity of the run is copied into the checkpoint, so that it survives if the one in the output folder is lost.

    Args:
        checkpoint (`str` or `Path`): Folder of the checkpoint.
        run_file (`Path`): The identity of the run.

    Raises:
        OSError: If the disk is full.
    """
    checkpoint = Path(checkpoint)
    if run_file.is_file():
        shutil.copy(run_file, checkpoint)
    files = sorted(path for path in checkpoint.rglob("*") if path.is_file() and path.name != COMPLETE)
    for path in files:
        make_durable(path)
    content = {path.relative_to(checkpoint).as_posix(): [path.stat().st_size, file_checksum(path)] for path in files}
    write_json(checkpoint / COMPLETE, content)


def checkpoint_fault(checkpoint: Path) -> str | None:
    """Return why a run cannot resume from a checkpoint, or None if it can.

    Args:
        checkpoint (`Path`): Folder of the checkpoint.
    """
    if not (checkpoint / COMPLETE).is_file():
        return "the run was interrupted while writing it"
    try:
        content = json.loads((checkpoint / COMPLETE).read_text(encoding="utf-8"))
        for name, (size, checksum) in content.items():
            path = checkpoint / name
            if not path.is_file():
                return f"{name} is missing"
            if path.stat().st_size != size or file_checksum(path) != checksum:
                return f"{name} is damaged"
    except (ValueError, TypeError, AttributeError):
        return f"{COMPLETE} is damaged"
    return None


def find_checkpoints(folder: str | Path) -> list[Path]:
    """Return the checkpoints of a run, oldest first.

    Args:
        folder (`str` or `Path`): Output folder of the run.
    """
    return sorted(
        (path for path in Path(folder).glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()),
        key=lambda path: int(path.name.removeprefix("checkpoint-")),
    )


def last_complete_checkpoint(folder: str | Path) -> str | None:
    """Find the newest complete checkpoint of a run and delete newer ones; all processes must call this.

    Checkpoints that were interrupted or damaged are named in a warning; the one before them is used.

    Args:
        folder (`str` or `Path`): Output folder of the run.

    Returns:
        `str`: The checkpoint's folder, or None if there is no complete checkpoint.
    """
    state = PartialState()
    found: list[str | None] = [None]
    if state.is_main_process:
        for path in reversed(find_checkpoints(folder)):
            fault = checkpoint_fault(path)
            if fault is None:
                found = [str(path)]
                break
            logger.warning("Deleting the checkpoint %s: %s.", path, fault)
            shutil.rmtree(path)
    return broadcast_object_list(found)[0] if state.num_processes > 1 else found[0]

"""Checkpoints of runs."""

import logging
import shutil
from pathlib import Path

from accelerate import PartialState


logger = logging.getLogger(__name__)

COMPLETE = "complete"
"""Empty file that is written last into a checkpoint; a checkpoint without it is incomplete."""


def last_complete_checkpoint(folder: str | Path) -> str | None:
    """Find the newest complete checkpoint of a run and delete incomplete ones; all processes must call this.

    Args:
        folder (`str` or `Path`): Output folder of the run.

    Returns:
        `str`: The checkpoint's folder, or None if there is no complete checkpoint.
    """
    state = PartialState()
    checkpoints = sorted(
        (path for path in Path(folder).glob("checkpoint-*") if path.name.removeprefix("checkpoint-").isdigit()),
        key=lambda path: int(path.name.removeprefix("checkpoint-")),
    )
    complete = [path for path in checkpoints if (path / COMPLETE).is_file()]
    state.wait_for_everyone()
    if state.is_main_process:
        for path in set(checkpoints) - set(complete):
            logger.warning("Deleting the incomplete checkpoint %s: the run was interrupted while writing it.", path)
            shutil.rmtree(path)
    state.wait_for_everyone()
    return str(complete[-1]) if complete else None

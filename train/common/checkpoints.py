"""Checkpoints of runs: which of them are complete, and which one a run resumes from."""

import logging
import shutil
from pathlib import Path

from accelerate import PartialState


logger = logging.getLogger(__name__)

COMPLETE = "complete"
"""Empty file that is written last into a checkpoint: a checkpoint without it was interrupted."""


def last_complete_checkpoint(folder: str | Path) -> str | None:
    """Return the newest complete checkpoint in `folder`, after deleting those that were interrupted.

    All processes must call this. None means that the run starts from its beginning.

    Args:
        folder (`str` or `Path`): Output folder of the run.
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
            logger.warning("Deleting %s: the run was interrupted while it was being written.", path)
            shutil.rmtree(path)
    state.wait_for_everyone()
    return str(complete[-1]) if complete else None

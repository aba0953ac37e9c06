"""The process of a command: threads, memory, logging, order among processes, and how errors end it."""

import ctypes
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from accelerate import PartialState

from dataset_script.errors import InputError


logger = logging.getLogger(__name__)

# Parameters of glibc's mallopt, from malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3


def keep_freed_memory() -> bool:
    """Make glibc reuse freed memory of any size instead of returning it to the system.

    By default large blocks are mapped from the system and unmapped again, so every activation of a training step is
    zeroed and mapped anew, page by page, which takes about half of the time. The process keeps its peak memory
    instead. Set `MALLOC_MMAP_THRESHOLD_` (glibc's own variable) to choose the threshold yourself; nothing is changed
    then.

    Returns:
        `bool`: Whether the allocator was changed: only with glibc, and only if the environment variable is not set.
    """
    if not sys.platform.startswith("linux") or "MALLOC_MMAP_THRESHOLD_" in os.environ:
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    largest = 2**31 - 1
    return bool(mallopt(M_MMAP_THRESHOLD, 2**30) and mallopt(M_TRIM_THRESHOLD, largest))


def use_all_cores() -> None:
    """Use all cores if the only limit is the single thread that `accelerate launch` sets by default.

    Two or more threads per process (`--num_cpu_threads_per_process`) are respected, and so is `OMP_NUM_THREADS`
    without the launcher. Several processes on a machine share its cores.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ
    if launched and os.environ.get("OMP_NUM_THREADS") == "1":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


@contextmanager
def main_process_first() -> Iterator[None]:
    """Run the body on the main process first, then on the others.

    Unlike accelerate's version, the others also continue when the main one fails, so all raise the same error instead
    of waiting forever.
    """
    state = PartialState()
    if not state.is_main_process:
        state.wait_for_everyone()
    try:
        yield
    finally:
        if state.is_main_process:
            state.wait_for_everyone()


def configure_logging(log_level: str = "info") -> None:
    """Show the messages of this project on the main process, and only warnings of the libraries.

    Args:
        log_level (`str`, *optional*, defaults to `"info"`): As for `TrainingArguments`; `"passive"` is `"info"`.
    """
    level = logging.INFO if log_level == "passive" else log_level.upper()
    logging.basicConfig(format="%(message)s")
    for name in ("train", "dataset_script", "model_cards", "__main__"):
        logging.getLogger(name).setLevel(level if _is_main_process() else logging.WARNING)
    transformers.utils.logging.disable_progress_bar()  # of reading and writing model files


def run_command(main: Callable[[], Any]) -> None:
    """Run the `main` of a command.

    Errors that the user can fix ([`~dataset_script.errors.InputError`], and `OSError`: files, disk, network) and
    Ctrl-C end it with one line, without a traceback (shown at log level debug). Any other error is a bug and keeps its
    traceback.
    """
    keep_freed_memory()
    use_all_cores()
    try:
        main()
    except (InputError, OSError) as error:
        logger.debug("Traceback of the error:", exc_info=True)
        sys.exit(f"Error: {_sentence(error)}" if _is_main_process() else 1)
    except KeyboardInterrupt:
        sys.exit("Interrupted: run the same command to resume." if _is_main_process() else 1)


def _sentence(error: Exception) -> str:
    """Return an error's message; one of the system without its number, and with the file it is about."""
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}."
    return str(error)


def _is_main_process() -> bool:
    # Known before the processes are connected, which may never happen.
    return os.environ.get("RANK", "0") == "0"

"""The process of a command: threads, memory, logging, synchronization and errors.

torch and its companions take seconds to import; each function imports what it needs, so that a wrong argument is
reported before.
"""

import ctypes
import errno
import logging
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dataset_script.errors import InputError


logger = logging.getLogger(__name__)

# Parameters of glibc's mallopt, from malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3


def keep_freed_memory() -> bool:
    """Make glibc reuse freed memory of any size instead of returning it to the system.

    By default glibc maps each large block and unmaps it when it is freed, so the kernel zeroes and maps all
    activations again in each training step, which takes about half of the time. With this setting the process keeps
    its peak memory instead. If `MALLOC_MMAP_THRESHOLD_` (glibc's own variable) is set, nothing is changed.

    Returns:
        `bool`: Whether the allocator was changed.
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
    """Use all cores if the only thread limit is `accelerate launch`'s default of one.

    Explicit limits are respected: two or more threads per process (`--num_cpu_threads_per_process`), and
    `OMP_NUM_THREADS` without the launcher. The processes of a machine share its cores.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ
    if launched and os.environ.get("OMP_NUM_THREADS") == "1":
        import torch

        torch.set_num_threads(max(1, usable_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def processor_name() -> str:
    """Return the name of the processor, as the system has it."""
    described = Path("/proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.+)$", described.read_text(), re.MULTILINE) if described.is_file() else []
    return names[0] if names else platform.processor() or platform.machine()


FIXES = {
    errno.EACCES: ", change its permissions or choose another place",
    errno.EDQUOT: ", free some space and run the same command again",
    errno.ENAMETOOLONG: ", choose a shorter name",
    errno.ENOSPC: ", free some space and run the same command again",
    errno.EROFS: ", choose another place",
}
"""What to do about an error of the system, by its number."""


@contextmanager
def main_process_first() -> Iterator[None]:
    """Run the body on the main process first, then on the others.

    Unlike accelerate's version, the other processes also continue when the main one fails, so all raise the same error
    instead of hanging.
    """
    from accelerate import PartialState

    state = PartialState()
    if not state.is_main_process:
        state.wait_for_everyone()
    try:
        yield
    finally:
        if state.is_main_process:
            state.wait_for_everyone()


def configure_logging(log_level: str = "info", disable_tqdm: bool | None = False) -> None:
    """Show this project's messages on the main process, and only warnings of libraries; use all cores.

    Args:
        log_level (`str`, *optional*, defaults to `"info"`): As for `TrainingArguments`; `"passive"` means `"info"`.
        disable_tqdm (`bool`, *optional*, defaults to `False`): Whether to show no progress bars; only the main process
            shows any.
    """
    import datasets
    import transformers

    use_all_cores()
    level = logging.INFO if log_level == "passive" else log_level.upper()
    logging.basicConfig(format="%(message)s")
    for name in ("train", "dataset_script", "model_cards", "__main__"):
        logging.getLogger(name).setLevel(level if _is_main_process() else logging.WARNING)
    transformers.utils.logging.disable_progress_bar()  # for model files
    if disable_tqdm or not _is_main_process():
        datasets.disable_progress_bars()


def run_command(main: Callable[[], Any]) -> None:
    """Run the `main` of a command and exit with a one-line message on errors that the user can fix.

    These are [`~dataset_script.errors.InputError`], `OSError` (files, disk, network), packages that an argument needs
    and that are missing, and Ctrl-C; their traceback is shown at log level debug only. Any other error is a bug and
    keeps its traceback.

    Args:
        main (`Callable`): The command, without arguments.
    """
    keep_freed_memory()
    try:
        main()
        _leave_process_group()
    except (ImportError, InputError, OSError) as error:
        logger.debug("Traceback of the error:", exc_info=True)
        sys.exit(f"Error: {_sentence(error)}" if _is_main_process() else 1)
    except KeyboardInterrupt:
        sys.exit("Interrupted: run the same command to resume." if _is_main_process() else 1)


def _leave_process_group() -> None:
    """Destroy the process group, whose threads would abort a process that ends before them."""
    if "torch" in sys.modules:
        import torch.distributed as dist

        if dist.is_available() and dist.is_initialized():
            dist.destroy_process_group()


def _sentence(error: Exception) -> str:
    """Return the message of an error; for errors of the system the file and the reason, without the number."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"The package {error.name} is missing: pip install {error.name}"
    if isinstance(error, OSError) and error.strerror and error.filename:
        return f"{error.filename}: {error.strerror}{FIXES.get(error.errno or 0, '')}."
    return str(error)


def _is_main_process() -> bool:
    # The environment variable is set before the processes are connected, and even if they never are.
    return os.environ.get("RANK", "0") == "0"

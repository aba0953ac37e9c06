"""Settings of the process that make long jobs on a CPU faster and change no result."""

import ctypes
import logging
import os
import sys

import torch


logger = logging.getLogger(__name__)

# Parameters of glibc's mallopt, from malloc.h.
M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3


def keep_freed_memory() -> bool:
    """Makes glibc reuse freed memory of any size instead of returning it to the system.

    By default large blocks come from the system and go back to it; every activation of a training step is then zeroed
    and mapped anew, page by page, which takes about half of the time. The process keeps its peak memory instead. Set
    `MALLOC_MMAP_THRESHOLD_` (glibc's own variable) to choose the threshold yourself: then nothing is changed here.

    Returns:
        Whether the allocator was set: only with glibc, and not where the environment variable is.
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
    """Gives torch the cores of the machine, shared among its processes, where only `accelerate launch` said otherwise.

    The launcher allows one thread a process unless it is told `--num_cpu_threads_per_process`, which leaves the other
    cores idle; 2 and more are taken as they are. Without the launcher `OMP_NUM_THREADS` is heeded as always.
    """
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ
    if launched and os.environ.get("OMP_NUM_THREADS") == "1":
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        torch.set_num_threads(max(1, cores // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))

"""Settings of the process that make long jobs on a CPU faster and change no result."""

import ctypes
import logging
import os
import sys


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

"""Interleaved timing, peak memory and the machine's own rates."""

import ctypes
import gc
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


def time_interleaved(callables: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Times callables in turns, so that a slow spell of the machine hits all of them.

    Each is called once beforehand: compilers and caches warm up outside the measurement.

    Args:
        callables: Name of an implementation, and what to call.
        repeats: Rounds; in each, every callable is called once.

    Returns:
        Seconds of every call, by name.
    """
    for call in callables.values():
        call()
    seconds: dict[str, list[float]] = {name: [] for name in callables}
    for _ in range(repeats):
        for name, call in callables.items():
            gc.collect()
            start = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def median_ratio(ours: list[float], other: list[float]) -> float:
    """How many times faster `ours` is: the median over rounds of the ratio within a round."""
    return statistics.median(b / a for a, b in zip(ours, other, strict=True))


def peak_memory(call: Callable[[], object]) -> int | None:
    """Bytes by which a call raises the process's resident memory at its peak, or None where Linux does not tell."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    try:
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(
            0
        )  # memory that earlier calls left with the allocator would hide this one
        reset.write_text("5")
        before = _resident(status, "VmRSS")
        call()
        return max(0, _resident(status, "VmHWM") - before)
    except OSError:
        return None


def _resident(status: Path, field: str) -> int:
    line = next(line for line in status.read_text().splitlines() if line.startswith(field))
    return 1024 * int(line.split()[1])


class TrafficCounter(TorchDispatchMode):
    """Sums the bytes that operators read and write, as if no cache were between them; views are free."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        output = func(*args, **(kwargs or {}))
        if not func.is_view and "empty" not in func.name():
            tensors = [leaf for leaf in tree_leaves((args, kwargs, output)) if isinstance(leaf, torch.Tensor)]
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return output


def count_work(call: Callable[[], object]) -> tuple[int, int]:
    """Floating point operations (of matrix products and convolutions) and bytes moved by one call, run eagerly."""
    with FlopCounterMode(display=False) as flops, TrafficCounter() as traffic:
        call()
    return flops.get_total_flops(), traffic.bytes


def machine_rates() -> dict[str, float]:
    """The machine's measured copy bandwidth (bytes/s, read and written) and float32 matrix rate (operations/s)."""
    source = torch.randn(32 * 2**20)
    target = torch.empty_like(source)
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    seconds = time_interleaved({"copy": lambda: target.copy_(source), "matmul": lambda: torch.mm(a, b)}, 7)
    return {
        "bandwidth": 2 * source.numel() * source.element_size() / min(seconds["copy"]),
        "matrix_rate": 2 * 1024**3 / min(seconds["matmul"]),
    }

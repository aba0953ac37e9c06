"""Interleaved timing, peak memory, and the rates of the machine."""

import ctypes
import gc
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch._ops import OpOverload
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode


def time_interleaved(callables: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Time callables in turn, so that a slow phase of the machine affects all of them.

    Each is called once beforehand, so that compilers and caches warm up outside the measurement.

    Args:
        callables (`Mapping[str, Callable]`): Callable of each implementation, by name.
        repeats (`int`): Number of rounds; each round calls every callable once.

    Returns:
        `dict[str, list[float]]`: Seconds of every call, by name.
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
    """Return how many times faster `ours` is: the median over the rounds of the ratio within a round."""
    return statistics.median(b / a for a, b in zip(ours, other, strict=True))


def peak_memory(call: Callable[[], object]) -> int | None:
    """Return the bytes by which a call raises the peak resident memory of the process, `None` if not on Linux."""
    status, reset = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    try:
        gc.collect()
        # Memory that the allocator kept from earlier calls would hide this one.
        ctypes.CDLL("libc.so.6").malloc_trim(0)
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
    """Counter of the bytes that operators read and write, as if there were no cache; views are free."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(
        self, func: OpOverload, types: tuple[type, ...], args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> object:
        output = func(*args, **(kwargs or {}))
        if not func.is_view and "empty" not in func.name():
            tensors = [leaf for leaf in tree_leaves((args, kwargs, output)) if isinstance(leaf, torch.Tensor)]
            self.bytes += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return output


def count_work(call: Callable[[], object]) -> tuple[int, int]:
    """Return the floating-point operations (matrix products and convolutions) and bytes moved by one eager call."""
    with FlopCounterMode(display=False) as flops, TrafficCounter() as traffic:
        call()
    return flops.get_total_flops(), traffic.bytes


def machine_rates() -> dict[str, float]:
    """Measure the copy bandwidth (bytes/s, read plus written) and the float32 matrix rate (operations/s)."""
    source = torch.randn(32 * 2**20)
    target = torch.empty_like(source)
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    seconds = time_interleaved({"copy": lambda: target.copy_(source), "matmul": lambda: torch.mm(a, b)}, 7)
    return {
        "bandwidth": 2 * source.numel() * source.element_size() / min(seconds["copy"]),
        "matrix_rate": 2 * 1024**3 / min(seconds["matmul"]),
    }

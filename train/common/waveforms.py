"""Waveforms that are not one array in memory: rows of another one, shards, and other rates."""

from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import soxr
import torch

from dataset_script.waveforms import FULL_SCALE, to_int16


ROWS_PER_COPY = 1024


class RowSelection:
    """Selected rows of waveforms, which are read when they are indexed.

    Args:
        waveforms (`np.ndarray`, `torch.Tensor` or `RowSelection` of shape `(rows, samples)`): The waveforms.
        rows (`Sequence[int]` or `np.ndarray`): Indices of the selected rows.
    """

    def __init__(self, waveforms: "Waveforms", rows: Sequence[int] | np.ndarray):
        self.waveforms = waveforms
        self.rows = np.asarray(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int | slice | list[int] | np.ndarray) -> np.ndarray | torch.Tensor:
        return self.waveforms[self.rows[index]]


class Shards:
    """Waveforms in several arrays, which are read when they are indexed.

    Args:
        arrays (`Sequence[np.ndarray]` of shape `(rows, samples)`, int16): The arrays, such as memory maps.
    """

    def __init__(self, arrays: Sequence[np.ndarray]):
        self.arrays = arrays
        self.ends = np.cumsum([len(array) for array in arrays])

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: int | slice | list[int] | np.ndarray) -> np.ndarray:
        if isinstance(index, int):
            return self[[index]][0]
        rows = np.arange(*index.indices(len(self))) if isinstance(index, slice) else np.asarray(index, dtype=np.int64)
        shards = np.searchsorted(self.ends, rows, side="right")
        waveforms = np.empty((len(rows), self.arrays[0].shape[1]), np.int16)
        for shard in np.unique(shards):
            array, selected = self.arrays[shard], shards == shard
            waveforms[selected] = array[rows[selected] - self.ends[shard] + len(array)]
        return waveforms


class Resampled:
    """Waveforms at another rate, computed when they are indexed.

    Args:
        waveforms (`Shards` of shape `(rows, samples)`, int16): The waveforms.
        sampling_rate (`int`): Their rate in Hz.
        wanted_rate (`int`): Rate of the result (soxr, quality HQ).
    """

    def __init__(self, waveforms: Shards, sampling_rate: int, wanted_rate: int):
        self.waveforms = waveforms
        self.rates = (sampling_rate, wanted_rate)

    def __len__(self) -> int:
        return len(self.waveforms)

    def __getitem__(self, index: int | slice | list[int] | np.ndarray) -> np.ndarray:
        waveforms = self.waveforms[index]
        if self.rates[0] == self.rates[1]:
            return waveforms
        return to_int16(soxr.resample(waveforms.T / FULL_SCALE, *self.rates, quality="HQ").T)


Waveforms: TypeAlias = np.ndarray | torch.Tensor | RowSelection | Shards | Resampled


def moved(waveforms: Waveforms, device: torch.device) -> torch.Tensor:
    """Copy waveforms to a device, a block at a time.

    Args:
        waveforms (`np.ndarray`, `torch.Tensor`, `RowSelection` or `Shards` of shape `(rows, samples)`, int16): The
            waveforms.
        device (`torch.device`): The device.
    """
    if isinstance(waveforms, torch.Tensor):
        return waveforms.to(device)
    copy = torch.empty((len(waveforms), len(waveforms[0])), dtype=torch.int16, device=device)
    for start in range(0, len(copy), ROWS_PER_COPY):
        rows = slice(start, start + ROWS_PER_COPY)
        copy[rows] = torch.from_numpy(np.array(waveforms[rows]))
    return copy

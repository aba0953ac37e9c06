"""Seeds and orders that depend only on the run and the position in it."""

from collections.abc import Iterator

import numpy as np
import torch
from torch.utils.data import Sampler


class EpochShuffle(Sampler[int]):
    """Sampler of all rows in a random order that depends only on the seed and the epoch.

    Args:
        num_rows (`int`): Number of rows.
        seed (`int`): Seed of the run.
    """

    def __init__(self, num_rows: int, seed: int):
        self.num_rows = num_rows
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_rows

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(derived_seed(self.seed, self.epoch))
        return iter(torch.randperm(self.num_rows, generator=generator).tolist())


def derived_seed(*numbers: int) -> int:
    """Return a 63-bit seed that depends on all `numbers`, such as the run's seed, the step and the micro-step."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)

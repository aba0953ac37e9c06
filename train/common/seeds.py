"""Seeds and orders that depend only on the run and the position in it."""

import itertools
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


class MixedShuffle(EpochShuffle):
    """Sampler of batches from two groups of rows: an epoch has all of the first group, and as many of the second.

    Every batch, including a short last one, has the same fraction of both, up to rounding. The second group is passed
    through in random orders of its own, over the ends of epochs, so that all of its rows are used equally often.

    Args:
        num_rows (`int`): Rows of the first group, from 0.
        num_others (`int`): Rows of the second group, which follow.
        batch_size (`int`): Rows of a batch.
        others_per_batch (`int`): Rows of the second group among them, less than `batch_size`.
        seed (`int`): Seed of the run.
    """

    def __init__(self, num_rows: int, num_others: int, batch_size: int, others_per_batch: int, seed: int):
        super().__init__(num_rows, seed)
        self.num_others = num_others
        self.per_batch = (batch_size - others_per_batch, others_per_batch)
        own, others = self.per_batch
        full, rest = divmod(num_rows, own)
        self.others_per_epoch = full * others + round(rest * others / own)

    def __len__(self) -> int:
        return self.num_rows + self.others_per_epoch

    def __iter__(self) -> Iterator[int]:
        own, others = self.per_batch
        rows, drawn = list(super().__iter__()), self._others()
        for start in range(0, self.num_rows, own):
            batch = rows[start : start + own]
            yield from batch
            yield from itertools.islice(drawn, round(len(batch) * others / own))

    def _others(self) -> Iterator[int]:
        done, position = divmod(self.epoch * self.others_per_epoch, self.num_others)
        for number in itertools.count(done):
            generator = torch.Generator().manual_seed(derived_seed(self.seed, number, self.num_rows))
            order = torch.randperm(self.num_others, generator=generator)[position if number == done else 0 :]
            yield from (order + self.num_rows).tolist()


def derived_seed(*numbers: int) -> int:
    """Return a 63-bit seed that depends on all `numbers`, such as the run's seed, the step and the micro-step."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)

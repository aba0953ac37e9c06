"""Crops of recordings, and the batches that training draws from them."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import datasets
import numpy as np
import torch
from datasets.distributed import split_dataset_by_node
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset, Sampler, get_worker_info

from dataset_script.errors import InputError
from modeling_beats import BeatsFeatureExtractor
from train.common.distributed import BatchRows
from train.common.seeds import derived_seed
from train.common.sources import durations, encoded_audio, read_crop


SHUFFLE_BUFFER = 1000
"""Clips of a stream that a process draws the next one from, over all of its workers."""


class Crops(Dataset[dict[str, np.ndarray]]):
    """Crops of recordings that can be read in any order.

    A recording in a folder has one row for each whole crop that fits into it, and at least one, so that long
    recordings are used evenly. An entry of a dataset has one row, because its length is unknown until it is read. Each
    epoch has other crops: a crop starts at a random position within its row's part of the recording.

    An item is read by `(epoch, row)` and is a dictionary with `waveform` of shape `(samples,)`, int16.

    Args:
        source (`list[Path]` or `datasets.Dataset`): As returned by [`~train.common.sources.load_unlabelled`].
        seconds (`float`): Length of a crop; shorter recordings are used whole.
        sampling_rate (`int`): Rate of the crops in Hz.
        seed (`int`): Seed of the positions.

    Raises:
        InputError: If a file of the folder, or the first entry of the dataset, cannot be read.
    """

    weights: Tensor | None = None
    """How often each row is drawn, relative to the others; None for each row once per epoch."""

    def __init__(self, source: list[Path] | datasets.Dataset, seconds: float, sampling_rate: int, seed: int):
        self.source = source
        self.seconds = seconds
        self.sampling_rate = sampling_rate
        self.seed = seed
        if isinstance(source, list):
            self.num_parts = np.maximum(1, np.floor(np.array(durations(source)) / seconds + 1e-6)).astype(np.int64)
        else:
            self.num_parts = np.ones(len(source), dtype=np.int64)
        self.recordings = np.repeat(np.arange(len(source)), self.num_parts)
        first_rows = np.cumsum(self.num_parts) - self.num_parts
        self.parts = np.arange(len(self.recordings)) - np.repeat(first_rows, self.num_parts)
        self[0, 0]  # fails early if nothing can be read

    def __len__(self) -> int:
        return len(self.recordings)

    def __getitem__(self, index: tuple[int, int]) -> dict[str, np.ndarray]:
        epoch, row = index
        recording = int(self.recordings[row])
        offset = np.random.default_rng(derived_seed(self.seed, epoch, row)).random()
        position = (self.parts[row] + offset) / self.num_parts[recording]
        return {
            "waveform": read_crop(encoded_audio(self.source, recording), self.seconds, self.sampling_rate, position)
        }


class StreamedCrops(IterableDataset[dict[str, np.ndarray]]):
    """Endless stream of crops: in each pass over the source one of each clip, at a random position.

    Every pass is shuffled anew, through a buffer. If the shards divide evenly, each process reads its own; otherwise
    every process reads the whole stream and keeps every n-th clip. Each worker of a process reads its own shards, and
    passes over them again and again.

    A resumed run continues where it stopped if it has as many processes and workers as before. For that it reads the
    first pass to count its clips, and the pass where it stopped up to there, without decoding them.

    Args:
        source (`datasets.IterableDataset`): As returned by [`~train.common.sources.load_unlabelled`].
        seconds (`float`): Length of a crop; shorter clips are used whole.
        sampling_rate (`int`): Rate of the crops in Hz.
        seed (`int`): Seed of order and positions.
        num_processes (`int`, *optional*, defaults to 1): Number of processes.
        process_index (`int`, *optional*, defaults to 0): Index of this process.
        first (`int`, *optional*, defaults to 0): Crops of this process to skip when a run is resumed.
        batch_size (`int`, *optional*, defaults to 1): Crops in a batch of this process. Workers take turns with them.
    """

    def __init__(
        self,
        source: datasets.IterableDataset,
        seconds: float,
        sampling_rate: int,
        seed: int,
        num_processes: int = 1,
        process_index: int = 0,
        first: int = 0,
        batch_size: int = 1,
    ):
        if source.num_shards % num_processes == 0:
            source = source.shard(num_processes, process_index)
        else:
            source = split_dataset_by_node(source, process_index, num_processes)
        self.source = source
        self.seconds = seconds
        self.sampling_rate = sampling_rate
        self.seed = seed
        self.process_index = process_index
        self.first = first
        self.batch_size = batch_size

    def usable_workers(self, workers: int) -> int:
        """Return the largest number of workers, up to `workers`, that divides the shards of this process evenly."""
        return max((n for n in range(1, workers + 1) if self.source.num_shards % n == 0), default=0)

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info else (0, 1)
        # The loader starts with its first worker, but a resumed run with the one whose turn it was.
        batches = self.first // self.batch_size
        worker = (worker + batches) % workers
        first = (batches - worker + workers - 1) // workers * self.batch_size
        source = self.source.shard(workers, worker)
        source = source.shuffle(seed=derived_seed(self.seed, worker), buffer_size=SHUFFLE_BUFFER // workers)
        passed, epoch = 0, 0
        while True:
            source.set_epoch(epoch)
            before = passed
            for row in source.iter(batch_size=1):  # which, unlike the source itself, does not divide it among workers
                passed += 1
                if passed > first:
                    seed = derived_seed(self.seed, self.process_index, worker, passed)
                    position = np.random.default_rng(seed).random()
                    crop = read_crop(row["audio"][0], self.seconds, self.sampling_rate, position)
                    yield {"waveform": crop}
            length = passed - before
            if length == 0:
                raise InputError("The stream has no audio for this process: use fewer processes or more clips.")
            skipped = max(first - passed, 0) // length
            passed += skipped * length
            epoch += 1 + skipped


class CropBatches(Sampler[list[tuple[int, int]]]):
    """Batches of `(epoch, row)` for a whole run; each process gets its own rows of every batch.

    Each epoch visits the rows in a new order and drops those that do not fill a batch. With weights it draws as many
    rows with replacement instead.

    Args:
        num_rows (`int`): Rows of the dataset.
        batch_size (`int`): Rows of a batch over all processes, or all rows if there are fewer.
        num_batches (`int`): Batches of the run.
        seed (`int`): Seed of the run.
        rows (`BatchRows`): The rows of a batch that belong to this process.
        weights (`torch.Tensor` of shape `(num_rows,)`, *optional*): How often a row is drawn, relative to the others.
    """

    def __init__(
        self,
        num_rows: int,
        batch_size: int,
        num_batches: int,
        seed: int,
        rows: BatchRows,
        weights: Tensor | None = None,
    ):
        self.num_rows = num_rows
        self.batch_size = min(batch_size, num_rows)
        self.num_batches = num_batches
        self.seed = seed
        rows.resize(self.batch_size)
        self.rows = rows
        self.weights = weights

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        batches_per_epoch = self.num_rows // self.batch_size
        for batch in range(self.num_batches):
            epoch, index = divmod(batch, batches_per_epoch)
            if index == 0:
                generator = torch.Generator().manual_seed(derived_seed(self.seed, epoch))
                if self.weights is None:
                    order = torch.randperm(self.num_rows, generator=generator).tolist()
                else:
                    order = torch.multinomial(self.weights, self.num_rows, True, generator=generator).tolist()
            rows = order[index * self.batch_size : (index + 1) * self.batch_size]
            yield [(epoch, row) for row in rows[self.rows.slice]]


class CropCollator:
    """Stack crops, padded to the longest of the batch.

    Args:
        feature_extractor (`BeatsFeatureExtractor`): Counts the frames of a crop.
        min_samples (`int`): Crops with fewer samples are repeated to this length.

    Returns:
        `dict[str, torch.Tensor]`: `waveform` of shape `(batch, samples)`, int16; `num_frames` of shape `(batch,)`, the
        frames of each crop, if the lengths differ; and `labels` of shape `(batch, num_classes)`, if the crops have
        them.
    """

    def __init__(self, feature_extractor: BeatsFeatureExtractor, min_samples: int):
        self.feature_extractor = feature_extractor
        self.min_samples = min_samples

    def __call__(self, rows: Sequence[dict[str, np.ndarray]]) -> dict[str, Tensor]:
        """Stack `rows` of a dataset of crops."""
        crops = [np.resize(row["waveform"], max(len(row["waveform"]), self.min_samples)) for row in rows]
        lengths = [len(crop) for crop in crops]
        tensors = [torch.from_numpy(crop) for crop in crops]
        batch = {"waveform": torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)}
        if len(set(lengths)) > 1:
            batch["num_frames"] = torch.tensor([self.feature_extractor.num_frames(length) for length in lengths])
        if "labels" in rows[0]:
            batch["labels"] = torch.from_numpy(np.stack([row["labels"] for row in rows]))
        return batch

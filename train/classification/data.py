"""Clips for the trainer: waveforms of a memory map, labels, devices and the mean logits of the teachers."""

from collections.abc import Sequence
from dataclasses import dataclass

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset

from dataset_script.errors import InputError
from train.common.seeds import EpochShuffle, MixedShuffle
from train.common.waveforms import RowSelection, Waveforms, moved


LOGITS_PREFIX = "teacher_logits_"
NO_LABEL = -100
UNKNOWN_DEVICE = -1


class SceneDataset(Dataset):
    """Clips of one split, read in batches, with everything but the audio in memory.

    Args:
        scenes (`datasets.Dataset`): Columns `filename`, `label`, `device`, `city`, `location`, and one
            `teacher_logits_*` for each teacher, of which the mean is taken.
        waveforms (`np.ndarray`, `torch.Tensor` or `RowSelection` of shape `(rows, samples)`, int16): The clips, in
            the order of `scenes`.
        with_teachers (`bool`, *optional*, defaults to `True`): Whether batches have `teacher_logits`, if `scenes` has.

    Indexing with a list of rows returns a dictionary of:

    - `waveform` (`torch.ShortTensor` of shape `(batch_size, samples)`): 16-bit samples, which take half the bandwidth
      to the training device; [`~train.classification.trainer.DistillationTrainer`] scales them there.
    - `labels`, `device` (`torch.LongTensor` of shape `(batch_size,)`)
    - `teacher_logits` (`torch.FloatTensor` of shape `(batch_size, num_labels)`), if there are teachers

    Raises:
        ValueError: If the numbers of clips and waveforms differ.
    """

    def __init__(self, scenes: datasets.Dataset, waveforms: Waveforms, with_teachers: bool = True):
        if len(scenes) != len(waveforms):
            raise ValueError(f"There are {len(scenes)} clips but {len(waveforms)} waveforms.")
        self.scenes = scenes.with_format(None)
        self.waveforms = waveforms
        self.columns = {name: np.asarray(self.scenes[name]) for name in ("label", "device")}
        teachers = [name for name in scenes.column_names if name.startswith(LOGITS_PREFIX)]
        if teachers and with_teachers:
            logits = [np.asarray(self.scenes[name], dtype=np.float32) for name in teachers]
            self.columns["teacher_logits"] = np.mean(logits, axis=0)

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitems__(self, rows: list[int]) -> dict[str, torch.Tensor]:
        columns = {name: torch.from_numpy(values[rows]) for name, values in self.columns.items()}
        return {"waveform": torch.as_tensor(self.waveforms[rows]), "labels": columns.pop("label"), **columns}

    def move_waveforms(self, device: torch.device) -> None:
        """Copy all waveforms to a device; batches are then read from there."""
        self.waveforms = moved(self.waveforms, device)

    def sampler(self, batch_size: int, seed: int) -> EpochShuffle:
        """Return a sampler of all clips in a random order."""
        return EpochShuffle(len(self), seed)

    def subset(self, rows: Sequence[int], with_teachers: bool = True) -> "SceneDataset":
        """Select clips, without copying their waveforms.

        Args:
            rows (`Sequence[int]`): The clips, in their new order.
            with_teachers (`bool`, *optional*, defaults to `True`): As for the class.

        Returns:
            `SceneDataset`: The selected clips.
        """
        return SceneDataset(self.scenes.select(rows), RowSelection(self.waveforms, rows), with_teachers)


@dataclass
class UnlabelledBatches:
    """Clips without labels that teachers have heard, and their part in batches.

    Args:
        waveforms (`RowSelection` or `Shards` of shape `(clips, samples)`, int16): The clips.
        teacher_logits (`np.ndarray` of shape `(clips, num_labels)`, float32): Mean of the teachers' logits.
        per_batch (`int`): Clips without labels in a batch.
        device (`int`, *optional*, defaults to `UNKNOWN_DEVICE`): Their recording device.
    """

    waveforms: Waveforms
    teacher_logits: np.ndarray
    per_batch: int
    device: int = UNKNOWN_DEVICE


class MixedDataset(Dataset):
    """Labelled clips, followed by clips without labels.

    Indexing with a list of rows returns what [`SceneDataset`] does, with the label `NO_LABEL` for clips without one.

    Args:
        labelled (`SceneDataset`): Labelled clips with teacher logits.
        unlabelled (`UnlabelledBatches`): Clips without labels.
    """

    def __init__(self, labelled: SceneDataset, unlabelled: UnlabelledBatches):
        self.labelled = labelled
        self.unlabelled = unlabelled

    def __len__(self) -> int:
        return len(self.labelled) + len(self.unlabelled.waveforms)

    def __getitems__(self, rows: list[int]) -> dict[str, torch.Tensor]:
        first = len(self.labelled)
        batch = self.labelled.__getitems__([row for row in rows if row < first])
        others = [row - first for row in rows if row >= first]
        added = {
            "waveform": torch.as_tensor(self.unlabelled.waveforms[others]),
            "labels": torch.full((len(others),), NO_LABEL),
            "device": torch.full((len(others),), self.unlabelled.device),
            "teacher_logits": torch.from_numpy(self.unlabelled.teacher_logits[others]),
        }
        return {name: torch.cat([values, added[name]]) for name, values in batch.items()}

    def move_waveforms(self, device: torch.device) -> None:
        """Copy all waveforms to a device; batches are then read from there."""
        self.labelled.move_waveforms(device)
        self.unlabelled.waveforms = moved(self.unlabelled.waveforms, device)

    def sampler(self, batch_size: int, seed: int) -> MixedShuffle:
        """Return a sampler of batches that all have the same part of clips without labels."""
        return MixedShuffle(
            len(self.labelled), len(self.unlabelled.waveforms), batch_size, self.unlabelled.per_batch, seed
        )


def check_splits(scenes: datasets.DatasetDict, name: str) -> None:
    """Raise `InputError` if the configuration `name` does not have a training and a test split."""
    if set(scenes) != {"train", "test"}:
        raise InputError(f"{name} does not have a training and a test split: choose a subset such as split25 or demo.")


def split_by_location(scenes: datasets.Dataset, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Split clips into a training and a validation part without a common recording location.

    For each class, random locations are held out until they contain at least `fraction` of its clips, but never its
    last location. Locations are numbered within a city.

    Args:
        scenes (`datasets.Dataset`): Columns `label`, `city` and `location`.
        fraction (`float`): Fraction of each class's clips to hold out, above 0 and below 1.
        seed (`int`): Seed of the choice of locations.

    Returns:
        `tuple[list[int], list[int]]`: The rows of both parts, in ascending order.

    Raises:
        InputError: If every class has a single location.
    """
    columns = scenes.with_format("numpy", columns=["label", "city", "location"])[:]
    _, location = np.unique(np.stack([columns["city"], columns["location"]]), axis=1, return_inverse=True)
    location = location.ravel()
    generator = np.random.default_rng(seed)
    held_out = np.zeros(len(scenes), dtype=bool)
    for label in np.unique(columns["label"]):
        of_class = columns["label"] == label
        wanted = fraction * of_class.sum()
        for candidate in generator.permutation(np.unique(location[of_class]))[1:]:
            if (held_out & of_class).sum() >= wanted:
                break
            held_out |= location == candidate
    if not held_out.any():
        raise InputError("Every class has only one location, so none can be held out: set validation_fraction to 0.")
    return np.flatnonzero(~held_out).tolist(), np.flatnonzero(held_out).tolist()

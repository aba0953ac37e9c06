"""Scenes as the trainer wants them: waveforms from a memory map, labels, devices and the ensemble's logits."""

from collections.abc import Sequence

import datasets
import numpy as np
import torch
from torch.utils.data import Dataset

from dataset_script.errors import InputError


LOGITS_PREFIX = "teacher_logits_"
ROWS_PER_COPY = 1024


class SceneDataset(Dataset):
    """Clips of one split, with everything but the audio in memory; read a batch at a time.

    Args:
        scenes (`datasets.Dataset`): Columns `filename`, `label`, `device`, `city`, `location`, and `teacher_logits_*`
            of any number of teachers, whose mean is the teacher of [`~train.classification.losses.DistillationLoss`].
        waveforms (`np.ndarray` of shape `(rows, samples)`, int16): The clips of these rows, in this order.
        with_teachers (`bool`, *optional*, defaults to `True`): Whether rows get `teacher_logits`, if there are any.

    A list of rows gives a dictionary of:

    - `waveform` (`torch.ShortTensor` of shape `(batch_size, samples)`): Half as much to move to the training device
      as floats, to which [`~train.classification.trainer.DistillationTrainer`] scales them there.
    - `labels`, `device` (`torch.LongTensor` of shape `(batch_size,)`)
    - `teacher_logits` (`torch.FloatTensor` of shape `(batch_size, num_labels)`), if there are teachers
    """

    def __init__(self, scenes: datasets.Dataset, waveforms: np.ndarray, with_teachers: bool = True):
        if len(scenes) != len(waveforms):
            raise ValueError(f"There are {len(scenes)} clips but {len(waveforms)} waveforms: prepare them again.")
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
        """Copy all waveforms to a device, from which batches are then taken."""
        if isinstance(self.waveforms, torch.Tensor):
            self.waveforms = self.waveforms.to(device)
            return
        shape = (len(self), len(self.waveforms[0]))
        moved = torch.empty(shape, dtype=torch.int16, device=device)
        for start in range(0, len(self), ROWS_PER_COPY):
            rows = slice(start, start + ROWS_PER_COPY)
            moved[rows] = torch.from_numpy(np.array(self.waveforms[rows]))
        self.waveforms = moved

    def subset(self, rows: Sequence[int], with_teachers: bool = True) -> "SceneDataset":
        """Return the given rows, in their order, without copying the waveforms."""
        return SceneDataset(self.scenes.select(rows), _Rows(self.waveforms, rows), with_teachers)


class _Rows:
    """Chosen rows of an array, read when they are asked for."""

    def __init__(self, array: np.ndarray, rows: Sequence[int]):
        self.array = array
        self.rows = np.asarray(rows)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int | slice) -> np.ndarray:
        return self.array[self.rows[index]]


def check_splits(scenes: datasets.DatasetDict, name: str) -> None:
    """Raise `InputError` unless the configuration `name` has what training and testing need."""
    if set(scenes) != {"train", "test"}:
        raise InputError(f"{name} has no training and test split: give a subset such as split25 or demo.")


def split_by_location(scenes: datasets.Dataset, fraction: float, seed: int) -> tuple[list[int], list[int]]:
    """Divide clips into a training and a validation part that share no recording location.

    Of every class, random locations are held out until they have at least `fraction` of its clips, but never the last
    location of a class.

    Args:
        scenes (`datasets.Dataset`): Columns `label`, `city` and `location`.
        fraction (`float`): Share of each class's clips to hold out, above 0 and below 1.
        seed (`int`): Chooses the locations.

    Returns:
        The row numbers of both parts, ascending.

    Raises:
        InputError: If every class was recorded at a single location.
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
        raise InputError("Every class has one location only, so none can be held out: use validation_fraction 0.")
    return np.flatnonzero(~held_out).tolist(), np.flatnonzero(held_out).tolist()

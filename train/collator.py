"""Batches of waveforms for the trainer."""

from typing import Any

import numpy as np
import torch


class SceneCollator:
    """Stack rows of a [`~train.data.SceneDataset`] into tensors.

    The waveforms stay 16-bit integers, which are half as much to move to the training device as floats, where
    [`~train.trainer.DistillationTrainer`] scales them to [-1, 1).

    Returns, from a list of rows, a dictionary of:

    - `waveform` (`torch.ShortTensor` of shape `(batch_size, samples)`)
    - `labels`, `device` (`torch.LongTensor` of shape `(batch_size,)`)
    - `teacher_logits` (`torch.FloatTensor` of shape `(batch_size, num_labels)`), where the rows have them
    """

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        """Stack `rows`, which must all have the same keys and as many samples."""
        batch = {
            "waveform": torch.from_numpy(np.stack([row["waveform"] for row in rows])),
            "labels": torch.tensor([int(row["label"]) for row in rows]),
            "device": torch.tensor([int(row["device"]) for row in rows]),
        }
        if "teacher_logits" in rows[0]:
            logits = np.stack([np.asarray(row["teacher_logits"], dtype=np.float32) for row in rows])
            batch["teacher_logits"] = torch.from_numpy(logits)
        return batch

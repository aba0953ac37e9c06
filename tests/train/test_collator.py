import numpy as np
import torch

from train.collator import SceneCollator


def row(index: int, **more) -> dict:
    return {"waveform": np.full(8, index, np.int16), "label": np.int64(index), "device": np.int8(2), **more}


def test_types_and_shapes():
    batch = SceneCollator()([row(index, teacher_logits=[index + 0.5] * 10) for index in range(3)])
    assert batch["waveform"].dtype == torch.int16
    assert torch.equal(batch["waveform"], torch.arange(3, dtype=torch.int16)[:, None].expand(3, 8))
    assert torch.equal(batch["labels"], torch.tensor([0, 1, 2]))
    assert torch.equal(batch["device"], torch.tensor([2, 2, 2]))
    assert batch["teacher_logits"].dtype == torch.float32
    assert torch.equal(batch["teacher_logits"][:, 3], torch.tensor([0.5, 1.5, 2.5]))


def test_without_teachers():
    assert set(SceneCollator()([row(0), row(1)])) == {"waveform", "labels", "device"}

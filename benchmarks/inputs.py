"""Inputs of the stages: the same random clips, labels and impulse responses for all implementations."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch


RATE = 32_000
NUM_LABELS = 10


@dataclass(frozen=True)
class Inputs:
    """Inputs of the stages; a stage with batch size n uses the first n rows.

    Attributes:
        waveform (`torch.Tensor` of shape `(256, 32000)`, float32): One-second clips at 32 kHz.
        log_mel (`torch.Tensor` of shape `(256, 1, 512, 64)`, float32): Features of such clips.
        device (`torch.Tensor` of shape `(256,)`, int64): 0 for three clips in four. That is device a, the only one to
            which impulse responses apply.
        labels (`torch.Tensor` of shape `(256,)`, int64): Class indices.
        teacher_logits (`torch.Tensor` of shape `(256, 10)`, float32): Logits of one teacher.
        impulse_responses (`Path`): Folder of WAV files.
        recordings (`Path`): Folder for [`write_recordings`].
    """

    waveform: torch.Tensor
    log_mel: torch.Tensor
    device: torch.Tensor
    labels: torch.Tensor
    teacher_logits: torch.Tensor
    impulse_responses: Path
    recordings: Path


def make_inputs(folder: Path, impulse_responses: Path | None = None, batch_size: int = 256, seed: int = 0) -> Inputs:
    """Draw the inputs; without a folder of impulse responses, generate 66 of decaying noise in `folder`."""
    generator = torch.Generator().manual_seed(seed)
    if impulse_responses is None:
        impulse_responses = folder / "impulse_responses"
        write_impulse_responses(impulse_responses, seed)
    return Inputs(
        waveform=0.1 * torch.randn(batch_size, RATE, generator=generator),
        log_mel=0.5 * torch.randn(batch_size, 1, 512, 64, generator=generator),
        device=torch.where(torch.arange(batch_size) % 4 == 3, 1, 0),
        labels=torch.randint(0, NUM_LABELS, (batch_size,), generator=generator),
        teacher_logits=3 * torch.randn(batch_size, NUM_LABELS, generator=generator),
        impulse_responses=impulse_responses,
        recordings=folder / "recordings",
    )


def write_impulse_responses(folder: Path, seed: int, count: int = 66, rate: int = 44_100) -> None:
    """Write impulse responses as long as those of MicIRP (0.4 s)."""
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(seed)
    decay = np.exp(-np.arange(int(0.4 * rate)) / (0.005 * rate))
    for index in range(count):
        response = decay * random.normal(size=len(decay))
        soundfile.write(
            folder / f"response_{index:02d}.wav", response / np.abs(response).max(), rate, subtype="PCM_24"
        )


def write_recordings(folder: Path, count: int = 1024, rate: int = 44_100, seed: int = 0) -> list[Path]:
    """Write one-second recordings at the sampling rate of TAU unless `folder` exists, and return their paths."""
    paths = [folder / f"recording_{index:04d}.wav" for index in range(count)]
    if not folder.is_dir():
        folder.mkdir()
        random = np.random.default_rng(seed)
        for path in paths:
            soundfile.write(path, 0.1 * random.normal(size=rate), rate, subtype="PCM_16")
    return paths

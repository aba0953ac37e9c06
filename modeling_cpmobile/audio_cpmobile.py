"""Checking, converting and resampling of audio, for the feature extractor and the pipeline of CP-Mobile."""

import math
import numbers
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch


# Samples that are converted together, so that the memory for long recordings does not grow with their length.
SAMPLES_PER_BLOCK = 2**17
# Decoders of lossy formats exceed full scale, 1, by up to a factor of about 2; PCM that was not scaled to [-1, 1], by
# far more.
MAX_AMPLITUDE = 16.0


def check_integer(name: str, value: Any, minimum: int, maximum: int) -> None:
    """Raise an error that names a value of `preprocessor_config.json` unless it is an integer within the bounds."""
    if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
        raise ValueError(f"{name} is {value!r}, but must be an integer between {minimum} and {maximum}.")


def check_number(name: str, value: Any, minimum: float = -math.inf) -> None:
    """Raise an error that names a value of `preprocessor_config.json` unless it is finite and above `minimum`."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not minimum < value < math.inf:
        bound = "" if minimum == -math.inf else f" greater than {minimum}"
        raise ValueError(f"{name} is {value!r}, but must be a finite number{bound}.")


def check_sampling_rate(sampling_rate: Any, expected: int, name: str = "sampling_rate") -> float:
    """Return the sampling rate if it is valid, or raise an error that names it."""
    if sampling_rate is None:
        raise ValueError(
            f"{name} is missing: pass the sampling rate of the audio, in Hz, so that audio at any other rate than "
            f"{expected} Hz can be resampled."
        )
    if isinstance(sampling_rate, (np.ndarray, torch.Tensor)) and sampling_rate.ndim == 0:
        sampling_rate = sampling_rate.item()
    if isinstance(sampling_rate, bool) or not isinstance(sampling_rate, numbers.Real):
        raise ValueError(f"{name} is {sampling_rate!r}, but must be a number, in Hz.")
    rate = float(sampling_rate)
    if not 100 <= rate <= 10_000_000:
        raise ValueError(f"{name} is {sampling_rate} Hz, but must be between 100 Hz and 10 MHz.")
    return rate


def to_clips(raw_speech: Any) -> list[np.ndarray | torch.Tensor]:
    """Split the `raw_speech` argument of a feature extractor into single clips and check each with [`to_clip`]."""
    if isinstance(raw_speech, (np.ndarray, torch.Tensor)):
        if raw_speech.ndim not in (1, 2, 3):
            raise ValueError(
                f"The audio has shape {tuple(raw_speech.shape)}, but must be (samples,), (batch, samples) or "
                "(batch, channels, samples)."
            )
        if raw_speech.ndim == 2 and raw_speech.shape[0] > raw_speech.shape[1] > 0:
            raise ValueError(
                f"The audio has shape {tuple(raw_speech.shape)}, more clips than samples: transpose it to (batch, "
                "samples), or pass one clip with several channels as [clip], of shape (channels, samples)."
            )
        clips = [raw_speech] if raw_speech.ndim == 1 else list(raw_speech)
    elif isinstance(raw_speech, (list, tuple)):
        is_clip = len(raw_speech) > 0 and isinstance(raw_speech[0], numbers.Real)
        clips = [raw_speech] if is_clip else list(raw_speech)
    else:
        raise TypeError(
            f"The audio is of type {type(raw_speech).__name__}, but must be a NumPy array, a torch tensor or a list."
        )
    if len(clips) == 0:
        raise ValueError("The audio is empty: pass at least one clip.")
    return [to_clip(clip, f"Clip {index}") for index, clip in enumerate(clips)]


def to_clip(clip: Any, name: str) -> np.ndarray | torch.Tensor:
    """Return a clip, (samples,) or (channels, samples), as a real array or tensor, not copied if it is one already."""
    if not isinstance(clip, torch.Tensor):
        try:
            clip = np.asarray(clip)
        except ValueError:
            raise ValueError(f"{name} has channels of different lengths: all must have the same length.") from None
        if clip.dtype.kind not in "iuf":
            raise TypeError(f"{name} contains values of type {clip.dtype}, not real numbers.")
    if clip.ndim not in (1, 2):
        raise ValueError(f"{name} has shape {tuple(clip.shape)}, but must be (samples,) or (channels, samples).")
    if 0 in clip.shape:
        raise ValueError(f"{name} is empty (shape {tuple(clip.shape)}).")
    if clip.ndim == 2 and clip.shape[0] > clip.shape[1]:
        raise ValueError(
            f"{name} has shape {tuple(clip.shape)}, more channels than samples: transpose it to (channels, samples)."
        )
    to_mono(clip[..., :1], name)  # checks the type of the samples
    return clip


def to_blocks(clip: np.ndarray | torch.Tensor, name: str) -> Iterator[torch.Tensor]:
    """Convert a clip, (samples,) or (channels, samples), with [`to_mono`], one block at a time."""
    size = max(1, SAMPLES_PER_BLOCK // (clip.shape[0] if clip.ndim == 2 else 1))
    for start in range(0, clip.shape[-1], size):
        yield to_mono(clip[..., start : start + size], name)


def to_mono(samples: np.ndarray | torch.Tensor, name: str) -> torch.Tensor:
    """Return samples (samples,) or (channels, samples) as a finite float32 tensor (samples,) of full scale [-1, 1]."""
    if isinstance(samples, np.ndarray):
        native = np.float32 if samples.dtype.kind == "f" else samples.dtype.newbyteorder("=")
        with np.errstate(over="ignore"):
            samples = torch.from_numpy(np.array(samples, dtype=native, order="C"))
    if samples.is_complex() or samples.dtype == torch.bool:
        raise TypeError(f"{name} contains values of type {samples.dtype}, not real numbers.")
    if samples.dtype in (torch.int16, torch.int32):
        samples = samples.float() / 2.0 ** (torch.iinfo(samples.dtype).bits - 1)
    elif not samples.is_floating_point():
        raise TypeError(
            f"{name} contains {samples.dtype} integers: pass int16 or int32 PCM, or floating-point samples."
        )
    samples = samples.detach().float()
    peak = float(samples.abs().amax())
    if not math.isfinite(peak):
        raise ValueError(f"{name} contains NaN or infinite samples.")
    if peak > MAX_AMPLITUDE:
        raise ValueError(
            f"{name} has a sample of magnitude {peak:g}, but full scale is [-1, 1]: divide 16-bit PCM by 32768, or "
            "pass it as int16."
        )
    return samples.mean(dim=0) if samples.ndim == 2 else samples


def resample(blocks: Iterable[torch.Tensor], source: float, target: int, name: str) -> Iterator[torch.Tensor]:
    """Resample the blocks of a clip from the rate `source` to `target`, in Hz, with soxr at quality HQ.

    The result does not depend on the size of the blocks, and equals that of `soxr.resample`. It has
    [`resampled_length`] samples.
    """
    if source == target:
        yield from blocks
        return
    try:
        import soxr
    except ImportError as error:
        raise ImportError(
            f"Resampling from {source:g} to {target} Hz requires soxr: pip install soxr, or pass audio at {target} Hz."
        ) from error
    stream = soxr.ResampleStream(source, target, 1, dtype="float32", quality="HQ")
    device = torch.device("cpu")
    for block in blocks:
        device = block.device
        yield torch.from_numpy(stream.resample_chunk(block.cpu().numpy())).to(device)
    yield torch.from_numpy(stream.resample_chunk(np.zeros(0, dtype=np.float32), last=True)).to(device)


def resampled_length(num_samples: int, source: float, target: int) -> int:
    """Return the number of samples to which [`resample`] converts `num_samples` samples."""
    return int(num_samples * target / source + 0.5)

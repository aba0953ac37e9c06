"""Augmentations of whole batches, on the device of the tensors, in the order of the report's section 3.

Every random number comes from an explicit `torch.Generator` on the CPU, so that a seed gives the same draws on every
device and in every process. Each class draws with `draw(...)` and applies with a function of the drawn values; calling
the object does both.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.special
import soundfile
import soxr
import torch
from torch import Generator, Tensor

from dataset_script.errors import InputError


@dataclass(frozen=True)
class Mix:
    """How a batch is mixed with a permutation of itself: `lam x + (1 - lam) x[perm]` for every row.

    Args:
        lam (`float`): Share of the row itself, from 0 to 1; one for the whole batch.
        perm (`torch.LongTensor` of shape `(batch_size,)`): The row each row is mixed with.
    """

    lam: float
    perm: Tensor

    @classmethod
    def draw(cls, batch_size: int, alpha: float, generator: Generator) -> "Mix":
        """Draw `lam` from Beta(alpha, alpha), by inverting its distribution function, and a random permutation."""
        uniform = torch.rand((), dtype=torch.float64, generator=generator).item()
        lam = float(scipy.special.betaincinv(alpha, alpha, uniform))
        return cls(lam, torch.randperm(batch_size, generator=generator))

    def __call__(self, x: Tensor) -> Tensor:
        """Mix `x` of shape `(batch_size, ...)`."""
        return self.lam * x + (1 - self.lam) * x[self.perm]


class SoftMixup:
    """Mix the inputs of a batch; the loss mixes the targets by the same `Mix` (report, equations 1 to 3).

    Args:
        alpha (`float`, *optional*, defaults to 0.3): Both parameters of the Beta distribution that `lam` comes from.

    Example:
        >>> features, mix = SoftMixup()(torch.randn(8, 1, 512, 64), torch.Generator().manual_seed(0))
        >>> targets = mix(torch.eye(8))
    """

    def __init__(self, alpha: float = 0.3):
        _check_positive("alpha of Soft Mixup", alpha)
        self.alpha = alpha

    def __call__(self, x: Tensor, generator: Generator) -> tuple[Tensor, Mix]:
        """Return the mixed `x` of shape `(batch_size, ...)` and the `Mix` drawn for it."""
        mix = Mix.draw(len(x), self.alpha, generator)
        return mix(x), mix


def freq_mixstyle(x: Tensor, mix: Mix) -> Tensor:
    """Give every clip the mixed frequency-wise statistics of itself and its partner.

    Statistics are the mean and the square root of (unbiased variance + 1e-6) over all axes but the first and the last
    but one, and carry no gradient: one pair for each clip and *frequency bin* of the student's `(batch, 1, frequency,
    time)` features. BEATs' features are `(batch, time, mel)`, and there the very same axes give one pair for each
    *time frame*; the report's teachers were fine-tuned like that, so it is kept.

    Args:
        x (`torch.Tensor` of shape `(batch_size, ..., rows, columns)`): Features.
        mix (`Mix`): Shares and partners.
    """
    axes = [axis for axis in range(1, x.ndim) if axis != x.ndim - 2]
    mean = x.mean(axes, keepdim=True).detach()
    std = (x.var(axes, keepdim=True) + 1e-6).sqrt().detach()
    return (x - mean) / std * mix(std) + mix(mean)


class FreqMixStyle:
    """Apply [`freq_mixstyle`] to a batch with probability `p`, with one Beta(alpha, alpha) draw for the batch.

    Args:
        alpha (`float`, *optional*, defaults to 0.4): Both parameters of the Beta distribution.
        p (`float`, *optional*, defaults to 0.8): Probability that a batch is changed at all.

    Source: report, section 3.3; public code for the single `lam` of a batch.
    """

    def __init__(self, alpha: float = 0.4, p: float = 0.8):
        _check_positive("alpha of Freq-MixStyle", alpha)
        _check_probability("p of Freq-MixStyle", p)
        self.alpha = alpha
        self.p = p

    def __call__(self, x: Tensor, generator: Generator) -> Tensor:
        """Return the changed features, of the shape of `x`."""
        if torch.rand((), generator=generator).item() > self.p:
            return x
        return freq_mixstyle(x, Mix.draw(len(x), self.alpha, generator))


class SpecAugment:
    """Set one random band of rows and one of columns to zero, drawn for every clip on its own.

    A band along an axis of length n is up to `round(size * n)` wide. The axes are the last two of the features, in
    their order: for BEATs' `(batch, time, mel)` the first band therefore lies on time and the second on mel. Zero is
    about the mean of normalised features.

    Args:
        size (`float`, *optional*, defaults to 0.2): Largest width as a share of the axis.
    """

    def __init__(self, size: float = 0.2):
        _check_probability("size of SpecAugment", size)
        self.size = size

    def __call__(self, x: Tensor, generator: Generator) -> Tensor:
        """Return `x` of shape `(batch_size, ..., rows, columns)` with its bands masked."""
        rows = self._band(len(x), x.shape[-2], generator).to(x.device)
        columns = self._band(len(x), x.shape[-1], generator).to(x.device)
        masked = rows[:, :, None] | columns[:, None, :]
        return x.masked_fill(masked.reshape(len(x), *[1] * (x.ndim - 3), *masked.shape[1:]), 0.0)

    def _band(self, batch_size: int, length: int, generator: Generator) -> Tensor:
        width, position = torch.rand(2, batch_size, 1, generator=generator)
        width = width * round(self.size * length)
        start = (position * (length - width)).floor()
        index = torch.arange(length)
        return (start <= index) & (index < start + width.floor())


class DeviceImpulseResponse:
    """Convolve clips of one recording device with measured microphone responses, to imitate other devices.

    Each clip of that device is convolved, with probability `p`, with one response drawn uniformly; the full
    convolution is cut to the length of the clip. Nothing is normalised and no delay is compensated. The responses are
    read, resampled to the clips' rate and transformed once; one batched FFT then serves all clips that drew one.

    Args:
        folder (`str` or `Path`): Its WAV files are the responses, as mono; all of them are used.
        sampling_rate (`int`): Rate of the clips, in Hz. (The public code reads the responses at 32 kHz for its 16 kHz
            teachers as well, which shifts them by an octave; here they keep their frequencies.)
        p (`float`, *optional*, defaults to 0.4): Probability for a clip of the device.
        device (`int`, *optional*, defaults to 0): Index of the device whose clips are changed (0 is TAU's device a).

    Raises:
        FileNotFoundError: If the folder is missing or holds no WAV file.
        InputError: If a file cannot be read as sound or holds none, or an argument is outside its range.
    """

    def __init__(self, folder: str | Path, sampling_rate: int, p: float = 0.4, device: int = 0):
        _check_probability("p of the impulse responses", p)
        files = sorted(path for path in Path(folder).glob("*") if path.suffix.lower() == ".wav")
        if not files:
            state = "holds no WAV file" if Path(folder).is_dir() else "does not exist"
            raise FileNotFoundError(f"The impulse response folder {folder} {state}: give a folder of WAV files.")
        self.responses = [_read_response(path, sampling_rate) for path in files]
        self.p = p
        self.device = device
        self._spectra: dict[tuple[int, torch.device], tuple[int, Tensor]] = {}

    def draw(self, devices: Tensor, generator: Generator) -> Tensor:
        """Return for each clip the index of its response, or -1 where it is left alone.

        Args:
            devices (`torch.LongTensor` of shape `(batch_size,)`): Device index of each clip.
        """
        chosen = torch.rand(len(devices), generator=generator) < self.p
        response = torch.randint(len(self.responses), (len(devices),), generator=generator)
        return torch.where(chosen & (devices.cpu() == self.device), response, -1)

    def apply(self, waveform: Tensor, response: Tensor) -> Tensor:
        """Return a copy of `waveform`, of shape `(batch_size, samples)`, convolved where `response` is not -1."""
        rows = (response >= 0).nonzero().squeeze(1)
        if not len(rows):
            return waveform
        size, spectra = self._spectra_for(waveform)
        response = response[rows].to(waveform.device)
        rows = rows.to(waveform.device)
        spectrum = torch.fft.rfft(waveform[rows], size).mul_(spectra[response])
        return waveform.index_copy(0, rows, torch.fft.irfft(spectrum, size)[:, : waveform.shape[1]])

    def __call__(self, waveform: Tensor, devices: Tensor, generator: Generator) -> Tensor:
        """Draw for clips `(batch_size, samples)` recorded by `devices` `(batch_size,)`, and apply."""
        return self.apply(waveform, self.draw(devices, generator))

    def _spectra_for(self, waveform: Tensor) -> tuple[int, Tensor]:
        """Return the FFT size that avoids wrap-around and the responses' spectra at that size, cached."""
        samples = waveform.shape[1]
        key = (samples, waveform.device)
        if key not in self._spectra:
            responses = [response[:samples] for response in self.responses]
            size = scipy.fft.next_fast_len(samples + max(map(len, responses)) - 1, real=True)
            padded = torch.zeros(len(responses), size)
            for row, response in zip(padded, responses, strict=True):
                row[: len(response)] = torch.from_numpy(response)
            self._spectra[key] = size, torch.fft.rfft(padded).to(waveform.device)
        return self._spectra[key]


def _read_response(path: Path, sampling_rate: int) -> np.ndarray:
    try:
        response, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        reason = error.error_string.rstrip(".")
        raise InputError(
            f"The impulse response {path} is not readable sound ({reason}): remove or replace it."
        ) from None
    if not response.any() or not np.isfinite(response).all():
        raise InputError(f"The impulse response {path} is silent, empty or not finite: remove or replace it.")
    return np.asarray(soxr.resample(response.mean(axis=1), rate, sampling_rate, quality="HQ"), dtype=np.float32)


def _check_positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise InputError(f"The {name} is {value}: give a number above 0.")


def _check_probability(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise InputError(f"The {name} is {value}: give a number from 0 to 1.")

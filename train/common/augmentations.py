"""Augmentations of whole batches, on the device of the tensors, in the order of the report's section 3.

All random numbers come from an explicit `torch.Generator` on the CPU, so that a seed produces the same draws on every
device and in every process.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import scipy.fft
import scipy.special
import soxr
import torch
from torch import Generator, Tensor

from dataset_script.audio import is_hidden, read_audio
from dataset_script.errors import InputError


DEVICE_A = 0
"""Index of TAU's device a among the recording devices."""

MAX_RESPONSE_SECONDS = 30.0
"""Longest impulse response; longer files are recordings in the wrong folder."""


@dataclass(frozen=True)
class Mix:
    """A mix of a batch with a permutation of itself: `lam x + (1 - lam) x[perm]`.

    Args:
        lam (`float` or `torch.Tensor` of shape `(batch_size,)`): Weight of a row itself, from 0 to 1; the same for all
            rows, or one for each.
        perm (`torch.LongTensor` of shape `(batch_size,)`): For each row, the row that it is mixed with.
    """

    lam: float | Tensor
    perm: Tensor

    @classmethod
    def draw(cls, batch_size: int, alpha: float, generator: Generator, per_row: bool = False) -> "Mix":
        """Draw `lam` from Beta(alpha, alpha), by inverting its distribution function, and a random permutation.

        Args:
            batch_size (`int`): Number of rows.
            alpha (`float`): Both parameters of the Beta distribution.
            generator (`torch.Generator`): Source of the random numbers.
            per_row (`bool`, *optional*, defaults to `False`): Whether each row gets a weight of its own.

        Returns:
            `Mix`: The mix.
        """
        uniform = torch.rand((batch_size,) if per_row else (), dtype=torch.float64, generator=generator)
        lam = torch.as_tensor(scipy.special.betaincinv(alpha, alpha, uniform.numpy()))
        return cls(lam if per_row else lam.item(), torch.randperm(batch_size, generator=generator))

    def __call__(self, x: Tensor) -> Tensor:
        """Return the mixed rows of `x`, of shape `(batch_size, ...)`."""
        lam = self.lam
        if isinstance(lam, Tensor):
            lam = lam.to(x).view(-1, *[1] * (x.ndim - 1))
        return lam * x + (1 - lam) * x[self.perm]


class SoftMixup:
    """Soft Mixup of the inputs of a batch; the loss applies the same `Mix` to the targets (report, equations 1 to 3).

    Args:
        alpha (`float`, *optional*, defaults to 0.3): Both parameters of the Beta distribution of `lam`.

    Example:
    ```python
    >>> features, mix = SoftMixup()(torch.randn(8, 1, 512, 64), torch.Generator().manual_seed(0))
    >>> targets = mix(torch.eye(8))
    ```
    """

    def __init__(self, alpha: float = 0.3):
        _check_positive("alpha of Soft Mixup", alpha)
        self.alpha = alpha

    def __call__(self, x: Tensor, generator: Generator) -> tuple[Tensor, Mix]:
        """Mix a batch.

        Args:
            x (`torch.Tensor` of shape `(batch_size, ...)`): Inputs.
            generator (`torch.Generator`): Source of the random numbers.

        Returns:
            `tuple[torch.Tensor, Mix]`: The mixed inputs, and the mix.
        """
        mix = Mix.draw(len(x), self.alpha, generator)
        return mix(x), mix


def freq_mixstyle(x: Tensor, mix: Mix) -> Tensor:
    """Replace the frequency-wise statistics of each clip by a mix of its own and those of its partner.

    The statistics are the mean and the square root of (unbiased variance + 1e-6) over all axes except the first and
    the second to last, and carry no gradient. The student's features of shape `(batch, 1, frequency, time)` thus have
    one pair for each clip and *frequency bin*. The features of BEATs have the shape `(batch, time, mel)`, so the same
    axes yield one pair for each *frame*; this is how the report's teachers were fine-tuned. Features of transformers'
    models are passed as `(batch, mel, time)`, which yields one pair for each mel bin.

    Args:
        x (`torch.Tensor` of shape `(batch_size, ..., rows, columns)`): Features.
        mix (`Mix`): Weight and partners.

    Returns:
        `torch.Tensor`: Features of the shape of `x`.
    """
    axes = [axis for axis in range(1, x.ndim) if axis != x.ndim - 2]
    mean = x.mean(axes, keepdim=True).detach()
    std = (x.var(axes, keepdim=True) + 1e-6).sqrt().detach()
    return (x - mean) / std * mix(std) + mix(mean)


class FreqMixStyle:
    """Freq-MixStyle: [`freq_mixstyle`] with probability `p` for a batch, and weights from Beta(alpha, alpha).

    Source: section 3.3 of the report; the public code for the single `lam` of a batch. The baseline of the challenge
    draws one for each clip.

    Args:
        alpha (`float`, *optional*, defaults to 0.4): Both parameters of the Beta distribution.
        p (`float`, *optional*, defaults to 0.8): Probability that a batch is changed.
        per_clip (`bool`, *optional*, defaults to `False`): Whether each clip gets a weight of its own.
    """

    def __init__(self, alpha: float = 0.4, p: float = 0.8, per_clip: bool = False):
        _check_positive("alpha of Freq-MixStyle", alpha)
        check_probability("p of Freq-MixStyle", p)
        self.alpha = alpha
        self.p = p
        self.per_clip = per_clip

    def __call__(self, x: Tensor, generator: Generator) -> Tensor:
        """Apply Freq-MixStyle to a batch.

        Args:
            x (`torch.Tensor` of shape `(batch_size, ..., rows, columns)`): Features.
            generator (`torch.Generator`): Source of the random numbers.

        Returns:
            `torch.Tensor`: Features of the shape of `x`.
        """
        if torch.rand((), generator=generator).item() > self.p:
            return x
        return freq_mixstyle(x, Mix.draw(len(x), self.alpha, generator, self.per_clip))


class TimeRolling:
    """Time rolling: a circular shift of each waveform by a uniformly drawn number of samples, in both directions.

    Args:
        max_shift (`int`): Largest shift, in samples.
    """

    def __init__(self, max_shift: int):
        self.max_shift = max_shift

    def draw(self, batch_size: int, generator: Generator) -> Tensor:
        """Draw a shift for each clip, from `-max_shift` to `max_shift`."""
        return torch.randint(-self.max_shift, self.max_shift + 1, (batch_size,), generator=generator)

    def apply(self, waveform: Tensor, shift: Tensor) -> Tensor:
        """Shift clips.

        Args:
            waveform (`torch.Tensor` of shape `(batch_size, samples)`): Clips; they are not modified.
            shift (`torch.LongTensor` of shape `(batch_size,)`): As returned by `draw`; a positive shift is a delay.

        Returns:
            `torch.Tensor` of shape `(batch_size, samples)`: The shifted clips.
        """
        samples = torch.arange(waveform.shape[1], device=waveform.device)
        return waveform.gather(1, (samples - shift.to(waveform.device).unsqueeze(1)) % waveform.shape[1])


class SpecAugment:
    """SpecAugment: a random band of rows and one of columns are set to zero, drawn for each clip separately.

    A band along an axis of length n is up to `round(size * n)` wide. The axes are the last two of the features: for
    BEATs, whose features have the shape `(batch, time, mel)`, the first band masks frames and the second one mel
    bins. Zero is approximately the mean of normalised features.

    Args:
        size (`float`, *optional*, defaults to 0.2): Largest width, as a fraction of the axis.
    """

    def __init__(self, size: float = 0.2):
        check_probability("size of SpecAugment", size)
        self.size = size

    def __call__(self, x: Tensor, generator: Generator) -> Tensor:
        """Mask a batch.

        Args:
            x (`torch.Tensor` of shape `(batch_size, ..., rows, columns)`): Features.
            generator (`torch.Generator`): Source of the random numbers.

        Returns:
            `torch.Tensor`: Masked features of the shape of `x`.
        """
        rows, columns = (
            bands(torch.rand(2, len(x), 1, generator=generator), self.size, length).to(x.device)
            for length in x.shape[-2:]
        )
        masked = rows[:, :, None] | columns[:, None, :]
        return x.masked_fill(masked.reshape(len(x), *[1] * (x.ndim - 3), *masked.shape[1:]), 0.0)


class FrequencyMask:
    """Frequency masking: a random band of mel bands is silenced, drawn for each clip separately.

    The band is up to `round(size * mel bands)` wide. Source: the public code of the challenge's baseline, which sets
    the energies to zero before the logarithm.

    Args:
        size (`float`): Largest width, as a fraction of the mel bands.
        silence (`float`): Value of the features of digital silence.
    """

    def __init__(self, size: float, silence: float):
        self.size = size
        self.silence = silence

    def __call__(self, x: Tensor, generator: Generator) -> Tensor:
        """Mask a batch.

        Args:
            x (`torch.Tensor` of shape `(batch_size, 1, mel_bands, frames)`): Features.
            generator (`torch.Generator`): Source of the random numbers.

        Returns:
            `torch.Tensor`: Masked features of the shape of `x`.
        """
        masked = bands(torch.rand(2, len(x), 1, generator=generator), self.size, x.shape[2]).to(x.device)
        return x.masked_fill(masked[:, None, :, None], self.silence)


def bands(uniform: Tensor, size: float, length: int) -> Tensor:
    """Return random bands along an axis.

    Args:
        uniform (`torch.Tensor` of shape `(2, batch_size, 1)`): Random numbers from 0 to 1, for widths and positions.
        size (`float`): Largest width, as a fraction of the axis.
        length (`int`): Length of the axis.

    Returns:
        `torch.BoolTensor` of shape `(batch_size, length)`: Whether a position is within the band.
    """
    width, position = uniform
    width = width * round(size * length)
    start = (position * (length - width)).floor()
    index = torch.arange(length)
    return (start <= index) & (index < start + width.floor())


class DeviceImpulseResponse:
    """Convolution of the clips of device a with measured microphone responses, to imitate other devices.

    Each clip of device a is convolved, with probability `p`, with one uniformly drawn response; the result is cut to
    the length of the clip. Nothing is normalised and no delay is compensated. The responses are read, resampled to
    the clips' rate and transformed once; a single batched FFT processes all clips that are convolved.

    The public code reads the responses at 32 kHz for its 16 kHz teachers as well, which shifts them by an octave; here
    they keep their frequencies.

    Args:
        folder (`str` or `Path`): Folder whose WAV files are the responses; channels are averaged.
        sampling_rate (`int`): Rate of the clips, in Hz.
        p (`float`, *optional*, defaults to 0.4): Probability that a clip of device a is convolved.

    Raises:
        FileNotFoundError, InputError: As [`read_impulse_responses`]; if `p` is not a probability.
    """

    def __init__(self, folder: str | Path, sampling_rate: int, p: float = 0.4):
        check_probability("p of the impulse responses", p)
        self.responses = [
            np.asarray(soxr.resample(response, rate, sampling_rate, quality="HQ"), dtype=np.float32)
            for response, rate in read_impulse_responses(folder)
        ]
        self.p = p
        self._spectra: dict[tuple[int, torch.dtype, torch.device], tuple[int, Tensor]] = {}

    def draw(self, devices: Tensor, generator: Generator) -> Tensor:
        """Draw a response for each clip.

        Args:
            devices (`torch.LongTensor` of shape `(batch_size,)`): Device of each clip.
            generator (`torch.Generator`): Source of the random numbers.

        Returns:
            `torch.LongTensor` of shape `(batch_size,)`: The index of the response, or -1 for an unchanged clip.
        """
        chosen = torch.rand(len(devices), generator=generator) < self.p
        response = torch.randint(len(self.responses), (len(devices),), generator=generator)
        return torch.where(chosen & (devices.cpu() == DEVICE_A), response, -1)

    def apply(self, waveform: Tensor, response: Tensor) -> Tensor:
        """Convolve clips with the drawn responses, in the precision of the clips.

        Args:
            waveform (`torch.Tensor` of shape `(batch_size, samples)`): Clips; they are not modified.
            response (`torch.LongTensor` of shape `(batch_size,)`): As returned by `draw`.

        Returns:
            `torch.Tensor` of shape `(batch_size, samples)`: The clips, convolved where `response` is not -1.
        """
        rows = (response >= 0).nonzero().squeeze(1)
        if not len(rows):
            return waveform
        size, spectra = self._spectra_for(waveform)
        response = response[rows].to(waveform.device)
        rows = rows.to(waveform.device)
        spectrum = torch.fft.rfft(waveform[rows], size).mul_(spectra[response])
        return waveform.index_copy(0, rows, torch.fft.irfft(spectrum, size)[:, : waveform.shape[1]])

    def __call__(self, waveform: Tensor, devices: Tensor, generator: Generator) -> Tensor:
        """Draw responses for clips and apply them; arguments as for `draw` and `apply`."""
        return self.apply(waveform, self.draw(devices, generator))

    def _spectra_for(self, waveform: Tensor) -> tuple[int, Tensor]:
        """Return the FFT size that avoids wrap-around, and the responses' spectra at that size."""
        samples = waveform.shape[1]
        key = (samples, waveform.dtype, waveform.device)
        if key not in self._spectra:
            responses = [response[:samples] for response in self.responses]
            size = scipy.fft.next_fast_len(samples + max(map(len, responses)) - 1, real=True)
            padded = torch.zeros(len(responses), size, dtype=waveform.dtype)
            for row, response in zip(padded, responses, strict=True):
                row[: len(response)] = torch.from_numpy(response)
            self._spectra[key] = size, torch.fft.rfft(padded).to(waveform.device)
        return self._spectra[key]


def read_impulse_responses(folder: str | Path) -> list[tuple[np.ndarray, int]]:
    """Read all impulse responses of a folder.

    Args:
        folder (`str` or `Path`): Folder with WAV files; other files are ignored.

    Returns:
        `list[tuple[np.ndarray, int]]`: Mono samples and sampling rate of each file, in the order of their names.

    Raises:
        FileNotFoundError: If the folder does not exist or contains no WAV file.
        InputError: If a file is silent, or as [`~dataset_script.audio.read_audio`].
    """
    paths = sorted(Path(folder).glob("*"))
    files = [path for path in paths if path.suffix.lower() == ".wav" and not is_hidden(path)]
    if not files:
        fault = "contains no WAV file" if Path(folder).is_dir() else "does not exist"
        raise FileNotFoundError(f"The impulse response folder {folder} {fault}: choose a folder of WAV files.")
    return [_read_response(path) for path in files]


def _read_response(path: Path) -> tuple[np.ndarray, int]:
    response, rate = read_audio(path, mono=True, max_seconds=MAX_RESPONSE_SECONDS, name=f"The impulse response {path}")
    if not response.any():
        raise InputError(f"The impulse response {path} is silent: replace or remove it.")
    return response, rate


def check_probability(name: str, value: float) -> None:
    """Raise `InputError` if the argument `name` is not a probability."""
    if not 0 <= value <= 1:
        raise InputError(f"{name} is {value}: choose a number from 0 to 1.")


def _check_positive(name: str, value: float) -> None:
    if not (value > 0 and math.isfinite(value)):
        raise InputError(f"{name} is {value}: choose a number above 0.")

"""Log-mel feature extractor of CP-Mobile."""

import math
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

import torch
from transformers.utils import TensorType

from .audio_cpmobile import (
    check_integer,
    check_number,
    check_sampling_rate,
    resample,
    resampled_length,
    to_blocks,
    to_clips,
)
from .resampling_cpmobile import resample_sinc


try:
    from transformers import BatchFeature, SequenceFeatureExtractor
except (OSError, RuntimeError) as error:  # transformers imports torchaudio wherever it is installed
    raise ImportError(
        f"transformers cannot be imported ({error}): repair or uninstall the package that this names. If it is "
        "torchaudio, uninstall it: it is not needed here."
    ) from error


# Frames that are transformed together: few enough for the CPU cache, enough to make the loop's overhead negligible.
FRAMES_PER_CHUNK = 256
# Mel bands that are multiplied as one dense block. A band overlaps only its neighbours, so blocks of this size skip
# nearly all zeros of the 256 x 2049 mel bank.
BANDS_PER_BLOCK = 32
# Windows of a long recording that are transformed together.
WINDOWS_PER_BLOCK = 32

RESAMPLERS = {"soxr": resample, "sinc": resample_sinc}


class CPMobileFeatureExtractor(SequenceFeatureExtractor):
    r"""Feature extractor that converts audio of any sampling rate and length to one-second log-mel windows.

    Each window goes through a short-time Fourier transform (centred, with reflection padding), the power spectrum,
    triangular mel bands, and `ln(mel + 1e-5)`: there is no pre-emphasis and no scaling. A window of 32,000 samples has
    65 frames. All of this follows the public code of the baseline of DCASE 2024 Task 1.

    Longer audio is cut into one-second windows from the start. The last window is shifted back so that it ends with
    the audio, and a remainder shorter than one hop is dropped. The model averages the logits over the windows. Shorter
    audio is repeated until it fills one second: unlike zero padding, this preserves the statistics of the scene.

    Args:
        feature_size (`int`, *optional*, defaults to 256):
            Number of mel bands.
        sampling_rate (`int`, *optional*, defaults to 32000):
            Sampling rate of the model, in Hz. Other audio is resampled.
        padding_value (`float`, *optional*, defaults to 0.0):
            Value of the windows that pad the shorter clips of a batch; the attention mask excludes them.
        n_fft (`int`, *optional*, defaults to 4096):
            Length of the Fourier transform, in samples.
        win_length (`int`, *optional*, defaults to 3072):
            Length of the periodic Hann window (96 ms), in samples.
        hop_length (`int`, *optional*, defaults to 500):
            Distance between frames (15.625 ms), in samples.
        mel_floor (`float`, *optional*, defaults to 1e-5):
            Constant added to the mel energies before the logarithm.
        window_length_s (`float`, *optional*, defaults to 1.0):
            Length of a window, in seconds.
        resampler (`str`, *optional*, defaults to `"soxr"`):
            `"soxr"` at quality HQ, or the windowed `"sinc"` of the public code, whose stop band is less steep. Use
            that of the training data: the other one changes the logits by up to 0.6.

    Raises:
        ValueError: If a value is of the wrong type or out of range.

    Example:
    ```python
    >>> import numpy as np
    >>> from modeling_cpmobile import CPMobileFeatureExtractor

    >>> inputs = CPMobileFeatureExtractor()(np.zeros(441_000), sampling_rate=44_100, return_tensors="pt")
    >>> inputs["input_values"].shape
    torch.Size([1, 10, 256, 65])
    ```
    """

    model_input_names = ("input_values", "attention_mask")

    def __init__(
        self,
        feature_size: int = 256,
        sampling_rate: int = 32_000,
        padding_value: float = 0.0,
        n_fft: int = 4096,
        win_length: int = 3072,
        hop_length: int = 500,
        mel_floor: float = 1e-5,
        window_length_s: float = 1.0,
        resampler: str = "soxr",
        **kwargs: Any,
    ) -> None:
        check_integer("sampling_rate", sampling_rate, 1000, 10_000_000)
        check_integer("n_fft", n_fft, 4, 2**20)
        check_integer("win_length", win_length, 2, n_fft)
        check_integer("feature_size", feature_size, 1, n_fft)
        check_number("padding_value", padding_value)
        check_number("mel_floor", mel_floor, 0)
        check_number("window_length_s", window_length_s, 0)
        if resampler not in RESAMPLERS:
            raise ValueError(f"resampler is {resampler!r}, but must be one of {', '.join(RESAMPLERS)}.")
        shortest = n_fft // 2 + 1
        if not shortest <= round(window_length_s * sampling_rate) <= 600 * sampling_rate:
            raise ValueError(
                f"window_length_s is {window_length_s}, but must be between {shortest / sampling_rate} s, a little "
                "more than half of n_fft, and 600 s."
            )
        check_integer("hop_length", hop_length, 1, round(window_length_s * sampling_rate))
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        self.n_fft = n_fft
        self.win_length = win_length
        self.hop_length = hop_length
        self.mel_floor = mel_floor
        self.window_length_s = window_length_s
        self.resampler = resampler

    @property
    def window_length(self) -> int:
        """Length of a window in samples."""
        return round(self.window_length_s * self.sampling_rate)

    @torch.no_grad()
    def log_mel(self, waveform: torch.Tensor) -> torch.Tensor:
        """Compute the log-mel energies of a batch of waveforms on their device.

        Args:
            waveform (`torch.Tensor` of shape `(batch, samples)`):
                Floating-point samples in [-1, 1] at `sampling_rate`, with at least `n_fft // 2 + 1` samples each.

        Returns:
            `torch.Tensor` of shape `(batch, feature_size, frames)`: Float32 energies, with
            `frames = 1 + samples // hop_length`. Digital silence is -11.512925.

        Raises:
            ValueError: If the waveform has the wrong shape or is too short for the reflection padding.
        """
        half = self.n_fft // 2
        if waveform.ndim != 2 or waveform.shape[1] < half + 1:
            raise ValueError(
                f"The waveform has shape {tuple(waveform.shape)}, but must be (batch, samples) with at least "
                f"{half + 1} samples."
            )
        batch_size, num_samples = waveform.shape
        num_frames = 1 + num_samples // self.hop_length
        chunk_size = max(1, FRAMES_PER_CHUNK // num_frames) if waveform.device.type == "cpu" else batch_size
        chunk_size = max(1, min(chunk_size, batch_size))
        window = hann_window(self.win_length, waveform.device)
        blocks = mel_blocks(self.feature_size, self.n_fft, self.sampling_rate, waveform.device)
        # The Hann window is centred within `n_fft` samples; the samples on both sides get weight 0 and are not copied.
        margin = (self.n_fft - self.win_length) // 2
        mel = waveform.new_empty(batch_size, self.feature_size, num_frames, dtype=torch.float32)
        # All chunks share this memory; the part after the window stays zero.
        chunk_frames = mel.new_zeros(chunk_size, num_frames, self.n_fft)
        chunk_energies = mel.new_empty(chunk_size, num_frames, self.feature_size)
        with torch.autocast(waveform.device.type, enabled=False):  # half precision is too coarse for energies
            for clips, target in zip(waveform.float().split(chunk_size), mel.split(chunk_size), strict=True):
                frames, energies = chunk_frames[: len(clips)], chunk_energies[: len(clips)]
                padded = torch.nn.functional.pad(clips, (half, half), mode="reflect")[:, margin:]
                cut = padded.unfold(1, self.win_length, self.hop_length)[:, :num_frames]
                torch.mul(cut, window, out=frames[..., : self.win_length])
                spectrum = torch.view_as_real(torch.fft.rfft(frames)).flatten(0, 1).flatten(1).square_()
                for first, last, start, weights in blocks:
                    banded = spectrum[:, start : start + len(weights)]
                    torch.mm(banded, weights, out=energies.flatten(0, 1)[:, first:last])
                target.copy_(energies.add_(self.mel_floor).log_().transpose(1, 2))
        return mel

    def features(self, waveform: torch.Tensor) -> torch.Tensor:
        """Compute the `input_values` of the model for a batch of one-window clips on their device.

        Args:
            waveform (`torch.Tensor` of shape `(batch, samples)`):
                As in [`~CPMobileFeatureExtractor.log_mel`].

        Returns:
            `torch.Tensor` of shape `(batch, 1, feature_size, frames)`: Log-mel energies with an axis for the windows.
        """
        return self.log_mel(waveform).unsqueeze(1)

    def cut(self, waveform: torch.Tensor) -> torch.Tensor:
        """Cut a waveform (samples,) at `sampling_rate` into windows (windows, window_length)."""
        length = self.window_length
        if len(waveform) < length:
            return waveform.repeat(-(-length // len(waveform)))[:length].unsqueeze(0)
        windows = waveform.unfold(0, length, length)
        if len(waveform) % length < self.hop_length:
            return windows
        return torch.cat([windows, waveform[-length:].unsqueeze(0)])

    def num_windows(self, num_samples: int) -> int:
        """Return the number of windows that [`~CPMobileFeatureExtractor.cut`] makes of a clip at `sampling_rate`."""
        whole, rest = divmod(num_samples, self.window_length)
        return max(1, whole + (rest >= self.hop_length))

    def stream(
        self, blocks: Iterable[torch.Tensor], sampling_rate: float, name: str = "The audio"
    ) -> Iterator[torch.Tensor]:
        """Compute the features of one clip of any length, a few windows at a time.

        Args:
            blocks (iterable of `torch.Tensor` of shape `(samples,)`):
                Consecutive parts of the clip: floating-point samples in [-1, 1].
            sampling_rate (`float`):
                Sampling rate of the clip, in Hz.
            name (`str`, *optional*, defaults to `"The audio"`):
                Subject of error messages.

        Yields:
            `torch.Tensor` of shape `(windows, feature_size, frames)`: Log-mel energies of consecutive windows.

        Raises:
            ValueError: If the clip is empty or too short to resample.
        """
        waveform, num_samples = torch.empty(0), 0
        for block in RESAMPLERS[self.resampler](blocks, sampling_rate, self.sampling_rate, name):
            waveform = torch.cat([waveform.to(block.device), block])
            num_samples += len(block)
            # At least one window is kept, since the last one may have to be shifted back.
            while len(waveform) >= (WINDOWS_PER_BLOCK + 1) * self.window_length:
                yield self.log_mel(self.cut(waveform[: WINDOWS_PER_BLOCK * self.window_length]))
                waveform = waveform[WINDOWS_PER_BLOCK * self.window_length :]
        if num_samples == 0:
            raise ValueError(f"{name} is empty or too short to resample from {sampling_rate:g} Hz.")
        yield self.log_mel(self.cut(waveform))

    def __call__(
        self,
        raw_speech: Any,
        sampling_rate: float | None = None,
        return_tensors: str | TensorType | None = None,
        device: str | torch.device | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Convert one clip or a batch of clips to model inputs.

        Args:
            raw_speech (`np.ndarray`, `torch.Tensor`, `list`):
                One mono clip of shape `(samples,)`; a batch of mono clips `(batch, samples)` or of multi-channel clips
                `(batch, channels, samples)`; or a list of clips, each `(samples,)` or `(channels, samples)`. Channels
                are averaged. Floating-point samples in [-1, 1], or int16 or int32 PCM.
            sampling_rate (`float`):
                Sampling rate of the audio in Hz. Audio at any other rate than the model's is resampled.
            return_tensors (`str` or [`~transformers.utils.TensorType`], *optional*):
                `"pt"` for torch tensors, `"np"` for NumPy arrays.
            device (`str` or `torch.device`, *optional*):
                Device on which the features are computed and returned. Defaults to the device of the audio.
            **kwargs:
                Not supported; any other argument raises an error.

        Returns:
            [`~transformers.BatchFeature`]: `input_values` of shape `(batch, windows, feature_size, frames)` and
            `attention_mask` of shape `(batch, windows)`, which is 1 for real windows and 0 for padding.

        Raises:
            TypeError: If the audio is not numeric or an argument is unknown.
            ValueError: If `sampling_rate` is missing or invalid, or a clip is empty, has the wrong shape, contains
                NaN or infinite samples, or exceeds full scale by far.
        """
        if kwargs:
            raise TypeError(f"{type(self).__name__} does not support these arguments: {', '.join(sorted(kwargs))}.")
        rate = check_sampling_rate(sampling_rate, self.sampling_rate)
        clips = to_clips(raw_speech)
        counts = [self.num_windows(resampled_length(clip.shape[-1], rate, self.sampling_rate)) for clip in clips]
        first = clips[0]
        device = torch.device(device or (first.device if isinstance(first, torch.Tensor) else "cpu"))
        num_frames = 1 + self.window_length // self.hop_length
        shape = (len(clips), max(counts), self.feature_size, num_frames)
        input_values = torch.full(shape, self.padding_value, device=device)
        for index, clip in enumerate(clips):
            name = f"Clip {index}"
            blocks = (block.to(device) for block in to_blocks(clip, name))
            stop = 0
            for features in self.stream(blocks, rate, name):
                start, stop = stop, stop + len(features)
                input_values[index, start:stop] = features
        mask = torch.arange(max(counts)) < torch.tensor(counts).unsqueeze(1)
        output = {"input_values": input_values, "attention_mask": mask.to(device=device, dtype=torch.long)}
        if return_tensors is None or TensorType(return_tensors) is not TensorType.PYTORCH:
            arrays = {name: value.cpu().numpy() for name, value in output.items()}
            return BatchFeature(arrays, tensor_type=return_tensors)
        return BatchFeature(output, tensor_type=return_tensors)


@lru_cache(maxsize=8)
def hann_window(length: int, device: torch.device) -> torch.Tensor:
    """Return the periodic Hann window (length,)."""
    return torch.hann_window(length, device=device)


def mel_bank(num_bands: int, n_fft: int, sampling_rate: int) -> torch.Tensor:
    """Return triangular mel bands, (n_fft // 2 + 1, num_bands), computed in float32 as in the public code.

    The triangles have peak 1 and are linear in hertz. Their corners are equally spaced on the mel scale
    `2595 log10(1 + f / 700)`, from 0 Hz to the Nyquist frequency.
    """
    bins, left, center, right = mel_triangles(num_bands, n_fft, sampling_rate)
    bins = bins.unsqueeze(1)
    return torch.minimum((bins - left) / (center - left), (right - bins) / (right - center)).clamp(min=0)


def mel_triangles(
    num_bands: int, n_fft: int, sampling_rate: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the frequency bins, and the left ends, peaks and right ends of the mel bands, all in hertz.

    The bins have shape (n_fft // 2 + 1,), the others (num_bands,).
    """
    highest = 2595.0 * math.log10(1.0 + sampling_rate / 2 / 700.0)
    corners = 700.0 * (10.0 ** (torch.linspace(0.0, highest, num_bands + 2) / 2595.0) - 1.0)
    bins = torch.linspace(0, sampling_rate // 2, n_fft // 2 + 1)
    return bins, corners[:-2], corners[1:-1], corners[2:]


@lru_cache(maxsize=8)
def mel_blocks(
    num_bands: int, n_fft: int, sampling_rate: int, device: torch.device
) -> list[tuple[int, int, int, torch.Tensor]]:
    """Return the mel bank in blocks of neighbouring bands, without most of its zeros.

    Returns:
        `list` of tuples (first band, last band + 1, first row, weights). The weights have shape (2 * bins, bands):
        each bin appears twice, for the squared real and imaginary parts, and `first row` counts the same way.
    """
    bank = mel_bank(num_bands, n_fft, sampling_rate)
    blocks = []
    for first in range(0, num_bands, BANDS_PER_BLOCK):
        block = bank[:, first : first + BANDS_PER_BLOCK]
        used = block.any(dim=1).nonzero().flatten()
        start, stop = (int(used[0]), int(used[-1]) + 1) if len(used) else (0, 1)
        weights = block[start:stop].repeat_interleave(2, dim=0).contiguous().to(device)
        blocks.append((first, first + block.shape[1], 2 * start, weights))
    return blocks


__all__ = ["CPMobileFeatureExtractor"]

"""Feature extractor of BEATs: Kaldi filter banks."""

import math
import numbers
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from transformers.utils import TensorType


try:
    from transformers import BatchFeature, SequenceFeatureExtractor
except (OSError, RuntimeError) as error:  # transformers imports torchaudio wherever it is installed
    raise ImportError(
        f"transformers cannot be imported ({error}): repair or uninstall the package that this names. If it is "
        "torchaudio, uninstall it: it is not needed here."
    ) from error


# Frames that are transformed together: on the CPU few enough for its cache and enough to make the loop's overhead
# negligible, on other devices few enough for their memory.
FRAMES_PER_CHUNK = 400
FRAMES_PER_CHUNK_ON_DEVICE = 100_000
# Mel bands that are multiplied as one dense block. A band overlaps only its neighbours, so blocks of this size skip
# most zeros of the 257 x 128 mel bank.
BANDS_PER_BLOCK = 32
# Samples that are converted together, so that the memory for long recordings does not grow with their length.
SAMPLES_PER_BLOCK = 2**17
# Decoders of lossy formats exceed full scale, 1, by up to a factor of about 2; PCM that was not scaled to [-1, 1], by
# far more.
MAX_AMPLITUDE = 16.0


class BeatsFeatureExtractor(SequenceFeatureExtractor):
    r"""Feature extractor that converts audio of any sampling rate and length to normalised Kaldi filter banks.

    Frames of 25 ms are taken every 10 ms, without padding at the ends (Kaldi's `snip-edges`). Each frame goes through
    mean removal, pre-emphasis with 0.97, a Povey window (a symmetric Hann window to the power 0.85), a 512-point power
    spectrum, triangular mel bands from 20 Hz to the Nyquist frequency, and the normalisation
    `(ln(max(mel, 1.19e-7)) - mean) / (2 std)`. Samples are scaled to the range of 16-bit integers; there is no dither.
    A clip at 16 kHz has `1 + (samples - 400) // 160` frames.

    Args:
        feature_size (`int`, *optional*, defaults to 128):
            Number of mel bands.
        sampling_rate (`int`, *optional*, defaults to 16000):
            Sampling rate of the model, in Hz. Other audio is resampled with soxr at quality HQ.
        padding_value (`float`, *optional*, defaults to 0.0):
            Value of the frames that pad the shorter clips of a batch; the attention mask excludes them.
        mean (`float`, *optional*, defaults to 15.41663):
            Value subtracted from the log-mel energies; their mean over AudioSet.
        std (`float`, *optional*, defaults to 6.55582):
            Half of the value that the log-mel energies are then divided by; their standard deviation over AudioSet.
        patch_size (`int`, *optional*, defaults to 16):
            Minimum number of frames of a clip: the side length of the model's patches.

    Raises:
        ValueError: If a value is of the wrong type or out of range.

    Example:
    ```python
    >>> import numpy as np
    >>> from modeling_beats import BeatsFeatureExtractor

    >>> inputs = BeatsFeatureExtractor()(np.zeros(441_000), sampling_rate=44_100, return_tensors="pt")
    >>> inputs["input_values"].shape
    torch.Size([1, 998, 128])
    ```
    """

    model_input_names = ("input_values", "attention_mask")

    def __init__(
        self,
        feature_size: int = 128,
        sampling_rate: int = 16_000,
        padding_value: float = 0.0,
        mean: float = 15.41663,
        std: float = 6.55582,
        patch_size: int = 16,
        **kwargs: Any,
    ) -> None:
        check_integer("feature_size", feature_size, 1, 4096)
        check_integer("sampling_rate", sampling_rate, 1000, 10_000_000)
        check_integer("patch_size", patch_size, 1, 4096)
        for name, value in (("padding_value", padding_value), ("mean", mean)):
            check_number(name, value)
        check_number("std", std, 0)
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        self.mean = mean
        self.std = std
        self.patch_size = patch_size

    @property
    def frame_length(self) -> int:
        """Length of a frame (25 ms), in samples."""
        return self.sampling_rate // 40

    @property
    def hop_length(self) -> int:
        """Distance between frames (10 ms), in samples."""
        return self.sampling_rate // 100

    def num_frames(self, num_samples: int) -> int:
        """Return the number of frames of a clip with `num_samples` samples at `sampling_rate`."""
        return max(0, 1 + (num_samples - self.frame_length) // self.hop_length)

    @torch.no_grad()
    def fbank(self, waveform: torch.Tensor) -> torch.Tensor:
        """Compute normalised filter banks for a batch of waveforms, on their device.

        Args:
            waveform (`torch.Tensor` of shape `(batch, samples)`):
                Floating-point samples in [-1, 1] at `sampling_rate`; at least one frame (25 ms).

        Returns:
            `torch.Tensor` of shape `(batch, frames, feature_size)`, float32, with
            `frames = 1 + (samples - 400) // 160` at 16 kHz. Digital silence results in -2.3917.

        Raises:
            ValueError: If the waveform has another shape or is shorter than a frame.
        """
        if waveform.ndim != 2 or waveform.shape[1] < self.frame_length:
            raise ValueError(
                f"The waveform has shape {tuple(waveform.shape)}, but must be (batch, samples) with at least "
                f"{self.frame_length} samples."
            )
        frames = waveform.float().unfold(1, self.frame_length, self.hop_length)
        size = FRAMES_PER_CHUNK if waveform.device.type == "cpu" else FRAMES_PER_CHUNK_ON_DEVICE
        with torch.autocast(waveform.device.type, enabled=False):  # half precision is too coarse for energies
            chunks = [
                torch.cat([self.log_energies(part) for part in clips.split(size, dim=1)], dim=1)
                for clips in frames.split(max(1, size // frames.shape[1]))
            ]
        return torch.cat(chunks).sub_(self.mean).div_(2 * self.std)

    def log_energies(self, frames: torch.Tensor) -> torch.Tensor:
        """Compute log-mel energies of frames: (batch, frames, frame_length) to (batch, frames, feature_size)."""
        n_fft = 2 ** math.ceil(math.log2(self.frame_length))
        window = povey_window(self.frame_length, frames.device)
        blocks = mel_blocks(self.feature_size, n_fft, self.sampling_rate, frames.device)
        frames = frames - frames.mean(dim=-1, keepdim=True)
        # The first sample of a frame needs no pre-emphasis, as the window starts with zero.
        frames = torch.sub(frames[..., 1:], frames[..., :-1], alpha=0.97).mul_(window[1:])
        spectrum = torch.view_as_real(torch.fft.rfft(frames, n=n_fft)).flatten(2).square_()
        energies = torch.cat([spectrum[..., start : start + len(bank)] @ bank for start, bank in blocks], dim=-1)
        return energies.clamp_(min=torch.finfo(energies.dtype).eps).log_()

    def features(self, waveform: torch.Tensor) -> torch.Tensor:
        """Compute the model input for a batch of clips of equal length, on their device.

        Args:
            waveform (`torch.Tensor` of shape `(batch, samples)`): As for [`~BeatsFeatureExtractor.fbank`].

        Returns:
            `torch.Tensor` of shape `(batch, frames, feature_size)`, the `input_values` of the model.
        """
        return self.fbank(waveform)

    def check_length(self, num_samples: int, name: str) -> None:
        """Raise an error if a clip with `num_samples` samples at `sampling_rate` is shorter than a patch."""
        if self.num_frames(num_samples) < self.patch_size:
            needed = self.frame_length + (self.patch_size - 1) * self.hop_length
            raise ValueError(
                f"{name} is too short: at {self.sampling_rate} Hz it has {num_samples} samples, but one patch of the "
                f"model needs {needed}."
            )

    def stream(
        self, blocks: Iterable[torch.Tensor], sampling_rate: float, name: str = "The audio"
    ) -> Iterator[torch.Tensor]:
        """Compute the features of one clip of any length, a few frames at a time.

        Args:
            blocks (iterable of `torch.Tensor` of shape `(samples,)`):
                Consecutive parts of the clip: floating-point samples in [-1, 1].
            sampling_rate (`float`):
                Sampling rate of the clip, in Hz.
            name (`str`, *optional*, defaults to `"The audio"`):
                Subject of error messages.

        Yields:
            `torch.Tensor` of shape `(frames, feature_size)`: Filter banks of consecutive frames.

        Raises:
            ValueError: If the clip is shorter than one patch of the model.
        """
        waveform, num_samples = torch.empty(0), 0
        for block in resample(blocks, sampling_rate, self.sampling_rate, name):
            waveform = torch.cat([waveform.to(block.device), block])
            num_samples += len(block)
            if (num_frames := self.num_frames(len(waveform))) >= FRAMES_PER_CHUNK:
                yield self.fbank(waveform.unsqueeze(0))[0]
                waveform = waveform[num_frames * self.hop_length :]
        if num_samples == 0:
            raise ValueError(f"{name} is empty or too short to resample from {sampling_rate:g} Hz.")
        self.check_length(num_samples, name)
        if self.num_frames(len(waveform)):
            yield self.fbank(waveform.unsqueeze(0))[0]

    def __call__(
        self,
        raw_speech: Any,
        sampling_rate: float | None = None,
        return_tensors: str | TensorType | None = None,
        device: str | torch.device | None = None,
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

        Returns:
            A [`~transformers.BatchFeature`] with `input_values` of shape `(batch, frames, feature_size)` and
            `attention_mask` of shape `(batch, frames)`, 1 for the frames of a clip and 0 for padding.

        Raises:
            TypeError: If the audio is not numeric.
            ValueError: If `sampling_rate` is missing or invalid, or a clip is empty, contains NaN or infinite samples,
                exceeds full scale by far, is shorter than one patch of the model (2800 samples at 16 kHz), or has the
                wrong shape.
        """
        rate = check_sampling_rate(sampling_rate, self.sampling_rate)
        clips = to_clips(raw_speech)
        lengths = [resampled_length(clip.shape[-1], rate, self.sampling_rate) for clip in clips]
        for index, length in enumerate(lengths):
            self.check_length(length, f"Clip {index}")
        counts = [self.num_frames(length) for length in lengths]
        first = clips[0]
        device = torch.device(device or (first.device if isinstance(first, torch.Tensor) else "cpu"))
        input_values = torch.full((len(clips), max(counts), self.feature_size), self.padding_value, device=device)
        for index, clip in enumerate(clips):
            name = f"Clip {index}"
            blocks = (block.to(device) for block in to_blocks(clip, name))
            stop = 0
            for features in self.stream(blocks, rate, name):
                start, stop = stop, stop + len(features)
                input_values[index, start:stop] = features
        mask = (torch.arange(max(counts)) < torch.tensor(counts).unsqueeze(1)).to(device)
        output = {"input_values": input_values, "attention_mask": mask.long()}
        if return_tensors is not None and TensorType(return_tensors) is TensorType.PYTORCH:
            return BatchFeature(output, tensor_type=return_tensors)
        return BatchFeature({name: value.cpu().numpy() for name, value in output.items()}, tensor_type=return_tensors)


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


@lru_cache(maxsize=8)
def povey_window(length: int, device: torch.device) -> torch.Tensor:
    """Return Kaldi's Povey window (length,), scaled for samples in [-1, 1] instead of 16-bit integers."""
    return (2**15 * torch.hann_window(length, periodic=False, dtype=torch.float64) ** 0.85).float().to(device)


@lru_cache(maxsize=8)
def mel_blocks(num_bands: int, n_fft: int, sampling_rate: int, device: torch.device) -> list[tuple[int, torch.Tensor]]:
    """Return Kaldi's triangular mel bands without most of their zeros, in blocks of neighbouring bands.

    The triangles are equally spaced on `1127 ln(1 + f / 700)` from 20 Hz to the Nyquist frequency, linear on that
    axis, with peak 1. The Nyquist bin has no weight.

    Returns:
        Tuples (first row, weights). The weights have shape (2 * bins, bands): every bin occurs twice, for the squared
        real and the squared imaginary part, and `first row` counts these doubled bins.
    """
    frequencies = torch.arange(n_fft // 2, dtype=torch.float64) * sampling_rate / n_fft
    low, high = (1127 * math.log(1 + frequency / 700) for frequency in (20, sampling_rate / 2))
    edges = low + (high - low) / (num_bands + 1) * torch.arange(num_bands + 2, dtype=torch.float64)
    left, center, right = edges[:-2], edges[1:-1], edges[2:]
    bins = 1127 * (1 + frequencies / 700).log().unsqueeze(1)
    bank = torch.minimum((bins - left) / (center - left), (right - bins) / (right - center)).clamp(min=0).float()
    blocks = []
    for block in bank.split(BANDS_PER_BLOCK, dim=1):
        used = block.any(dim=1).nonzero().flatten().tolist() or [0]
        rows = block[used[0] : used[-1] + 1].repeat_interleave(2, dim=0)
        blocks.append((2 * used[0], rows.contiguous().to(device)))
    return blocks


__all__ = ["BeatsFeatureExtractor"]

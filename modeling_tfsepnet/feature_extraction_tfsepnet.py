"""Log-mel front end of TF-SepNet."""

import math
import numbers
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from transformers import BatchFeature, SequenceFeatureExtractor
from transformers.utils import TensorType


# Frames whose spectra are held at a time: small enough for a processor's cache, large enough to hide the loop.
FRAMES_PER_CHUNK = 256
# Mel bands whose weights are multiplied as one dense block. A band overlaps its neighbours only, so blocks of this
# many keep nearly all of the zeros of the 512 x 2049 bank out of the product.
BANDS_PER_BLOCK = 32


class TFSepNetFeatureExtractor(SequenceFeatureExtractor):
    r"""Turns audio of any rate and length into log-mel windows of one second, as TF-SepNet was trained on.

    Per window: pre-emphasis `x[n + 1] - 0.97 x[n]` (one sample is lost), short-time Fourier transform (centred, with
    reflection), power, triangular mel bands, `(ln(mel + 1e-5) + 4.5) / 5`. 32,000 samples give 64 frames. The report
    states a hop of 16 ms; its input of 512 x 64 belongs to the public code's hop of 500 samples, which is used here,
    as are the pre-emphasis and the scaling, of which the report is silent.

    Policy for other lengths: a longer clip is cut into one-second windows from its start; the last one is moved back
    to end with the clip, and a remainder shorter than one hop is dropped. The model averages the windows' logits. A
    shorter clip is repeated until it fills a second, which keeps the statistics of a scene, where zeros would not.

    Args:
        feature_size (`int`, *optional*, defaults to 512):
            Number of mel bands.
        sampling_rate (`int`, *optional*, defaults to 32000):
            Rate the network works at, in Hz. Audio of another rate is resampled (soxr, quality HQ; a cheaper resampler
            moves the logits of a trained network by up to 0.5).
        padding_value (`float`, *optional*, defaults to 0.0):
            Value of the windows that fill up the shorter clips of a batch; the attention mask leaves them out.
        n_fft (`int`, *optional*, defaults to 4096):
            Length of the Fourier transform, in samples.
        win_length (`int`, *optional*, defaults to 3072):
            Length of the symmetric Hann window (96 ms), in samples.
        hop_length (`int`, *optional*, defaults to 500):
            Distance of frames (15.625 ms), in samples.
        preemphasis (`float`, *optional*, defaults to 0.97):
            Coefficient of the pre-emphasis.
        mel_floor (`float`, *optional*, defaults to 1e-5):
            Added to the mel energies before the logarithm.
        mean (`float`, *optional*, defaults to -4.5):
            Subtracted from the logarithm.
        std (`float`, *optional*, defaults to 5.0):
            Divides the logarithm after that.
        window_length_s (`float`, *optional*, defaults to 1.0):
            Length of a window, in seconds.

    Example:

    ```python
    >>> import numpy as np
    >>> from modeling_tfsepnet import TFSepNetFeatureExtractor

    >>> inputs = TFSepNetFeatureExtractor()(np.zeros(441_000), sampling_rate=44_100, return_tensors="pt")
    >>> inputs["input_values"].shape
    torch.Size([1, 10, 512, 64])
    ```
    """

    model_input_names = ("input_values", "attention_mask")

    def __init__(
        self,
        feature_size: int = 512,
        sampling_rate: int = 32_000,
        padding_value: float = 0.0,
        n_fft: int = 4096,
        win_length: int = 3072,
        hop_length: int = 500,
        preemphasis: float = 0.97,
        mel_floor: float = 1e-5,
        mean: float = -4.5,
        std: float = 5.0,
        window_length_s: float = 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(feature_size=feature_size, sampling_rate=sampling_rate, padding_value=padding_value, **kwargs)
        self.n_fft = n_fft
        self.win_length = win_length
        self.hop_length = hop_length
        self.preemphasis = preemphasis
        self.mel_floor = mel_floor
        self.mean = mean
        self.std = std
        self.window_length_s = window_length_s

    @property
    def window_length(self) -> int:
        """Samples of a window."""
        return round(self.window_length_s * self.sampling_rate)

    @torch.no_grad()
    def log_mel(self, waveform: torch.Tensor) -> torch.Tensor:
        """Log-mel energies of a batch of waveforms, on the waveforms' device.

        Args:
            waveform (`torch.Tensor` of shape `(batch, samples)`):
                Floating point, in full scale [-1, 1], at `sampling_rate`. Longer than half of `n_fft`.

        Returns:
            `torch.Tensor` of shape `(batch, feature_size, frames)`, float32, with
            `frames = 1 + (samples - 1) // hop_length`; digital silence gives -1.4025851.

        Raises:
            ValueError: The waveform has another shape, or is too short for the reflection at its ends.
        """
        half = self.n_fft // 2
        if waveform.ndim != 2 or waveform.shape[1] < half + 2:
            raise ValueError(
                f"The waveform has shape {tuple(waveform.shape)}, but has to be (batch, samples) with at least "
                f"{half + 2} samples."
            )
        batch_size, num_samples = waveform.shape
        num_frames = 1 + (num_samples - 1) // self.hop_length
        chunk_size = max(1, FRAMES_PER_CHUNK // num_frames) if waveform.device.type == "cpu" else batch_size
        chunk_size = max(1, min(chunk_size, batch_size))
        window = hann_window(self.win_length, waveform.device)
        blocks = mel_blocks(self.feature_size, self.n_fft, self.sampling_rate, waveform.device)
        # The window is centred in the transform's span; its margins are zero, so they are not cut out at all.
        margin = (self.n_fft - self.win_length) // 2
        mel = waveform.new_empty(batch_size, self.feature_size, num_frames, dtype=torch.float32)
        # Every chunk is computed in the same memory; what follows the window stays zero.
        chunk_frames = mel.new_zeros(chunk_size, num_frames, self.n_fft)
        chunk_energies = mel.new_empty(chunk_size, num_frames, self.feature_size)
        with torch.autocast(waveform.device.type, enabled=False):  # half precision has too few digits for energies
            for clips, target in zip(waveform.float().split(chunk_size), mel.split(chunk_size), strict=True):
                frames, energies = chunk_frames[: len(clips)], chunk_energies[: len(clips)]
                emphasised = torch.sub(clips[:, 1:], clips[:, :-1], alpha=self.preemphasis)
                padded = torch.nn.functional.pad(emphasised, (half, half), mode="reflect")[:, margin:]
                cut = padded.unfold(1, self.win_length, self.hop_length)[:, :num_frames]
                torch.mul(cut, window, out=frames[..., : self.win_length])
                spectrum = torch.view_as_real(torch.fft.rfft(frames)).flatten(0, 1).flatten(1).square_()
                for first, last, start, weights in blocks:
                    banded = spectrum[:, start : start + len(weights)]
                    torch.mm(banded, weights, out=energies.flatten(0, 1)[:, first:last])
                energies.add_(self.mel_floor).log_().sub_(self.mean).div_(self.std)
                target.copy_(energies.transpose(1, 2))
        return mel

    def features(self, waveform: torch.Tensor) -> torch.Tensor:
        """Model input for a batch of clips of one window each, on their device.

        Args:
            waveform (`torch.Tensor` of shape `(batch, samples)`): As for [`~TFSepNetFeatureExtractor.log_mel`].

        Returns:
            `torch.Tensor` of shape `(batch, 1, feature_size, frames)`, the `input_values` of the model.
        """
        return self.log_mel(waveform).unsqueeze(1)

    def cut(self, waveform: torch.Tensor) -> torch.Tensor:
        """Cuts one clip (samples,) at `sampling_rate` into windows (windows, window_length), by the class's policy."""
        length = self.window_length
        if len(waveform) < length:
            return waveform.repeat(-(-length // len(waveform)))[:length].unsqueeze(0)
        windows = waveform.unfold(0, length, length)
        if len(waveform) % length < self.hop_length:
            return windows
        return torch.cat([windows, waveform[-length:].unsqueeze(0)])

    def __call__(
        self,
        raw_speech: Any,
        sampling_rate: float | None = None,
        return_tensors: str | TensorType | None = None,
        device: str | torch.device | None = None,
        **kwargs: Any,
    ) -> BatchFeature:
        """Prepares one clip or a batch of clips for the model.

        Args:
            raw_speech (`np.ndarray`, `torch.Tensor`, `list`):
                One mono clip of shape `(samples,)`; a batch of mono clips `(batch, samples)` or of multi-channel clips
                `(batch, channels, samples)`; or a list of clips, each `(samples,)` or `(channels, samples)`. Channels
                are averaged. Floating point in full scale [-1, 1], or PCM as int16 or int32.
            sampling_rate (`float`):
                Rate of the audio in Hz. Anything but the network's own rate is resampled.
            return_tensors (`str` or [`~transformers.utils.TensorType`], *optional*):
                `"pt"` for tensors, `"np"` for arrays.
            device (`str` or `torch.device`, *optional*):
                Where the features are computed and left. Defaults to the device of the audio.

        Returns:
            [`~transformers.BatchFeature`] with `input_values` of shape `(batch, windows, feature_size, frames)` and
            `attention_mask` of shape `(batch, windows)`, 1 for the windows of a clip, 0 for padding.

        Raises:
            TypeError: The audio is not numeric.
            ValueError: `sampling_rate` is missing or no rate; a clip is empty, not finite, or of the wrong shape.
        """
        if kwargs:
            raise TypeError(f"{type(self).__name__} got unknown arguments: {', '.join(sorted(kwargs))}.")
        sampling_rate = check_sampling_rate(sampling_rate, self.sampling_rate)
        clips = [to_mono(clip, f"Clip {index}") for index, clip in enumerate(to_clips(raw_speech))]
        windows = [
            self.cut(resample(clip, sampling_rate, self.sampling_rate).to(device or clip.device)) for clip in clips
        ]
        counts = [len(clip) for clip in windows]
        features = self.log_mel(torch.cat(windows)).split(counts)
        mask = torch.arange(max(counts)) < torch.tensor(counts).unsqueeze(1)
        output = {
            "input_values": torch.nn.utils.rnn.pad_sequence(
                list(features), batch_first=True, padding_value=self.padding_value
            ),
            "attention_mask": mask.to(device=features[0].device, dtype=torch.long),
        }
        if return_tensors is None or TensorType(return_tensors) is not TensorType.PYTORCH:
            arrays = {name: value.cpu().numpy() for name, value in output.items()}
            return BatchFeature(arrays, tensor_type=return_tensors)
        return BatchFeature(output, tensor_type=return_tensors)


def check_sampling_rate(sampling_rate: float | None, expected: int) -> float:
    """Returns the rate if it is one, and refuses anything else by name."""
    if sampling_rate is None:
        raise ValueError(
            f"Pass sampling_rate, the rate of the audio in Hz (the network works at {expected} Hz, other rates are "
            "resampled): without it, audio of another rate would be misread in silence."
        )
    if isinstance(sampling_rate, bool) or not isinstance(sampling_rate, numbers.Real):
        raise ValueError(f"sampling_rate is {sampling_rate!r}, but has to be a number of Hz.")
    if not 100 <= sampling_rate <= 10_000_000:
        raise ValueError(f"sampling_rate is {sampling_rate} Hz, which is no rate of audio (100 Hz to 10 MHz).")
    return sampling_rate


def to_clips(raw_speech: Any) -> list[Any]:
    """Splits the argument of a feature extractor into single clips."""
    if isinstance(raw_speech, (np.ndarray, torch.Tensor)):
        if raw_speech.ndim not in (1, 2, 3):
            raise ValueError(
                f"The audio has shape {tuple(raw_speech.shape)}, but has to be (samples,), (batch, samples) or "
                "(batch, channels, samples)."
            )
        return [raw_speech] if raw_speech.ndim == 1 else list(raw_speech)
    if not isinstance(raw_speech, (list, tuple)):
        raise TypeError(
            f"The audio is of type {type(raw_speech).__name__}, but has to be a NumPy array, a torch tensor or a list."
        )
    if len(raw_speech) == 0:
        raise ValueError("The audio is empty: there is no clip to prepare.")
    return [raw_speech] if isinstance(raw_speech[0], numbers.Real) else list(raw_speech)


def to_mono(clip: Any, name: str) -> torch.Tensor:
    """Returns a clip, (samples,) or (channels, samples), as a finite float32 tensor (samples,)."""
    if not isinstance(clip, torch.Tensor):
        try:
            clip = np.asarray(clip)
        except ValueError:
            raise ValueError(f"{name} is a list of unequal parts; its channels must have the same length.") from None
        if clip.dtype.kind not in "iuf":
            raise TypeError(f"{name} holds values of type {clip.dtype}, not real numbers.")
        native = np.float32 if clip.dtype.kind == "f" else clip.dtype.newbyteorder("=")
        clip = torch.from_numpy(np.ascontiguousarray(clip, dtype=native))
    if clip.is_complex() or clip.dtype == torch.bool:
        raise TypeError(f"{name} holds values of type {clip.dtype}, not real numbers.")
    if clip.ndim not in (1, 2):
        raise ValueError(f"{name} has shape {tuple(clip.shape)}, but has to be (samples,) or (channels, samples).")
    if clip.numel() == 0:
        raise ValueError(f"{name} is empty (shape {tuple(clip.shape)}).")
    if clip.ndim == 2 and clip.shape[0] > clip.shape[1]:
        raise ValueError(
            f"{name} has shape {tuple(clip.shape)}: more channels than samples. Pass (channels, samples)."
        )
    if clip.dtype in (torch.int16, torch.int32):
        clip = clip.double() / 2.0 ** (torch.iinfo(clip.dtype).bits - 1)
    elif not clip.is_floating_point():
        raise TypeError(f"{name} holds {clip.dtype} integers; PCM is int16 or int32, anything else has to be float.")
    clip = clip.detach().float()
    if clip.ndim == 2:
        clip = clip.mean(dim=0)
    if not torch.isfinite(clip).all():
        raise ValueError(f"{name} holds NaN or infinite samples.")
    return clip


def resample(clip: torch.Tensor, sampling_rate: float, target_rate: int) -> torch.Tensor:
    """Resamples a clip (samples,) with soxr at quality HQ, the resampler the published networks were trained with."""
    if sampling_rate == target_rate:
        return clip
    try:
        import soxr
    except ImportError as error:
        raise ImportError(
            f"Resampling from {sampling_rate} to {target_rate} Hz needs soxr (pip install soxr); or pass audio at "
            f"{target_rate} Hz."
        ) from error
    resampled = torch.from_numpy(soxr.resample(clip.cpu().numpy(), sampling_rate, target_rate, quality="HQ"))
    if len(resampled) == 0:
        raise ValueError(f"A clip of {len(clip)} samples at {sampling_rate} Hz is too short to be resampled.")
    return resampled.to(clip.device)


@lru_cache(maxsize=8)
def hann_window(length: int, device: torch.device) -> torch.Tensor:
    """Symmetric Hann window (length,)."""
    return torch.hann_window(length, periodic=False, device=device)


def mel_bank(num_bands: int, n_fft: int, sampling_rate: int) -> torch.Tensor:
    """Kaldi's triangular mel bands, (n_fft // 2 + 1, num_bands), evaluated in float32 as the public code does.

    The triangles are equally spaced on `1127 ln(1 + f / 700)` from 0 Hz to the Nyquist frequency, linear on that axis,
    with peak 1. The Nyquist bin has no weight.
    """
    bins, left, center, right = mel_triangles(num_bands, n_fft, sampling_rate)
    bins = bins.unsqueeze(1)
    weights = torch.minimum((bins - left) / (center - left), (right - bins) / (right - center)).clamp(min=0)
    return torch.nn.functional.pad(weights, (0, 0, 0, 1))


def mel_triangles(
    num_bands: int, n_fft: int, sampling_rate: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """The bins below the Nyquist frequency (n_fft // 2,), and left end, peak and right end of the bands, in mel."""
    step = 1127.0 * math.log(1.0 + sampling_rate / 2 / 700.0) / (num_bands + 1)
    left, center, right = (step * (torch.arange(num_bands) + offset) for offset in (0.0, 1.0, 2.0))
    bins = 1127.0 * (1.0 + sampling_rate / n_fft * torch.arange(n_fft // 2) / 700.0).log()
    return bins, left, center, right


@lru_cache(maxsize=8)
def mel_blocks(
    num_bands: int, n_fft: int, sampling_rate: int, device: torch.device
) -> list[tuple[int, int, int, torch.Tensor]]:
    """The mel bank without most of its zeros, in blocks of neighbouring bands.

    Returns:
        Tuples (first band, last band + 1, first row, weights). The weights have shape (2 * bins, bands): every bin
        stands twice, for the squared real and the squared imaginary part, and `first row` counts in the same way.
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


__all__ = ["TFSepNetFeatureExtractor"]

"""Inputs of networks: feature extractors, and where the spectrogram of a clip is in what they return."""

from os import PathLike
from typing import Any, Protocol, TypeAlias

from torch import Tensor
from transformers import ASTFeatureExtractor, WhisperFeatureExtractor
from transformers.feature_extraction_utils import FeatureExtractionMixin

from dataset_script.errors import InputError


class WaveformFeatures(Protocol):
    """A feature extractor that computes features of a batch of waveforms in torch, on their device.

    The feature extractors of this project do. Training and prediction accept any feature
    extractor of transformers: see [`model_inputs`].
    """

    sampling_rate: int
    """Rate of the waveforms, in Hz."""

    def features(self, waveform: Tensor) -> Tensor:
        """Return the `input_values` of waveforms of shape `(batch_size, samples)` in [-1, 1]."""
        ...

    def save_pretrained(self, save_directory: str | PathLike[str], **kwargs: Any) -> Any:
        """Write the configuration of the feature extractor to a model folder."""
        ...


AnyFeatureExtractor: TypeAlias = FeatureExtractionMixin | WaveformFeatures


def model_inputs(feature_extractor: AnyFeatureExtractor, waveform: Tensor) -> dict[str, Any]:
    """Compute the inputs of a model on the device of the waveforms.

    The feature extractors of transformers compute on the CPU, one clip after the other, and pad or cut clips as their
    family does: ASTs to 1024 frames (10.24 s), Whisper to 30 s, the wav2vec2 family not at all. They return an
    attention mask if the family was trained with one.

    Args:
        feature_extractor (`FeatureExtractionMixin` or `WaveformFeatures`): Feature extractor of the model.
        waveform (`torch.Tensor` of shape `(batch_size, samples)`): Waveforms in [-1, 1].

    Returns:
        `dict[str, torch.Tensor]`: Arguments of the model.
    """
    if hasattr(feature_extractor, "features"):
        return {"input_values": feature_extractor.features(waveform)}
    assert callable(feature_extractor)
    rate = input_rate(feature_extractor)
    return dict(
        feature_extractor(list(waveform.cpu().numpy()), sampling_rate=rate, return_tensors="pt").to(waveform.device)
    )


def input_rate(feature_extractor: AnyFeatureExtractor) -> int:
    """Return the sampling rate that a feature extractor expects, in Hz; raise `InputError` if it is not for audio."""
    if not hasattr(feature_extractor, "sampling_rate"):
        raise InputError(f"{type(feature_extractor).__name__} is not for audio: choose another model.")
    return feature_extractor.sampling_rate


def clip_spectrogram(feature_extractor: AnyFeatureExtractor, features: Tensor, samples: int) -> Tensor:
    """Return the part of features that the augmentations of spectrograms act on: a view, without padding.

    Args:
        feature_extractor (`FeatureExtractionMixin` or `WaveformFeatures`): Feature extractor of the model.
        features (`torch.Tensor` of shape `(batch_size, ..., rows, columns)`): What it returned.
        samples (`int`): Samples of each clip.

    Returns:
        `torch.Tensor`: For feature extractors of transformers the frames of the clips, of shape
        `(batch_size, mel, frames)`, in which Freq-MixStyle has statistics for each mel bin. For those of this project
        all features, as they are: see [`~train.common.augmentations.freq_mixstyle`].
    """
    if hasattr(feature_extractor, "features"):
        return features
    if isinstance(feature_extractor, WhisperFeatureExtractor):  # (batch, mel, time), 30 s
        return features[..., : max(samples // feature_extractor.hop_length, 1)]
    spectrogram = features.transpose(1, 2)
    if isinstance(feature_extractor, ASTFeatureExtractor):  # (batch, time, mel), 10.24 s; frames of 25 ms every 10 ms
        rate = feature_extractor.sampling_rate
        return spectrogram[..., : max((samples - rate // 40) // (rate // 100) + 1, 1)]
    return spectrogram

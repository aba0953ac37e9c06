"""The interface of feature extractors in training."""

from os import PathLike
from typing import Any, Protocol

from torch import Tensor


class WaveformFeatures(Protocol):
    """A feature extractor that computes features of a batch of waveforms in torch, on their device.

    The feature extractors of `modeling_tfsepnet` and `modeling_beats` do. Prediction accepts any feature extractor of
    transformers: see [`~train.evaluation.inference.compute_logits`].
    """

    sampling_rate: int
    """Rate of the waveforms, in Hz."""

    def features(self, waveform: Tensor) -> Tensor:
        """Return the `input_values` of waveforms of shape `(batch_size, samples)` in [-1, 1]."""
        ...

    def save_pretrained(self, save_directory: str | PathLike[str], **kwargs: Any) -> Any:
        """Write the configuration of the feature extractor to a model folder."""
        ...

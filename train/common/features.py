"""What training needs of a model's feature extractor."""

from os import PathLike
from typing import Any, Protocol

from torch import Tensor


class WaveformFeatures(Protocol):
    """A feature extractor whose features are a batched torch function of waveforms.

    Those of `modeling_tfsepnet` and `modeling_beats` are; [`~train.evaluation.inference.compute_logits`] also takes
    any other feature extractor of transformers.
    """

    sampling_rate: int
    """Rate of the waveforms, in Hz."""

    def features(self, waveform: Tensor) -> Tensor:
        """Return the `input_values` of waveforms of shape `(batch, samples)` in [-1, 1], on their device."""
        ...

    def save_pretrained(self, save_directory: str | PathLike[str], **kwargs: Any) -> Any:
        """Write the feature extractor's file beside a model."""
        ...

"""Audio-classification pipeline that reads files with soundfile and resamples in the feature extractor."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AudioClassificationPipeline, BatchFeature

from .feature_extraction_tfsepnet import TFSepNetFeatureExtractor


class SceneClassificationPipeline(AudioClassificationPipeline):
    """Audio-classification pipeline for TF-SepNet that needs neither the ffmpeg program nor torchaudio.

    It accepts the inputs of [`~transformers.AudioClassificationPipeline`]: arrays at the feature extractor's sampling
    rate, dicts `{"array" or "raw": ..., "sampling_rate": ...}` at any rate, paths and URLs of WAV, FLAC, OGG and MP3
    files, the bytes of such files, dicts `{"path": ..., "bytes": ...}` as in an undecoded `datasets.Audio` column, and
    lists, generators and dataset columns of these. Channels are averaged.

    Raises:
        FileNotFoundError: If a path does not exist.
        TypeError: If an input is of any other type.
        ValueError: If bytes are not an audio file, or the audio is empty or contains NaN or infinite samples.
    """

    feature_extractor: TFSepNetFeatureExtractor
    replaced_class: type = AudioClassificationPipeline
    """Pipeline class that transformers used for the task before; it still serves all other models."""

    def __new__(  # type: ignore[misc]  # returns the pipeline that fits the model, which may be of another class
        cls, model: Any = None, *args: Any, **kwargs: Any
    ) -> AudioClassificationPipeline:
        """Create the pipeline that fits the model: its own `pipeline_class`, or else `replaced_class`."""
        right_class = cls if model is None else getattr(model, "pipeline_class", cls.replaced_class)
        return super().__new__(cls) if right_class is cls else right_class(model, *args, **kwargs)

    def __call__(  # type: ignore[override]  # the parent's annotations leave out lists of inputs
        self, inputs: Any, **kwargs: Any
    ) -> list[dict[str, Any]] | list[list[dict[str, Any]]]:
        """Classify one input or several.

        Args:
            inputs (`np.ndarray`, `torch.Tensor`, `str`, `Path`, `bytes`, `dict` or a collection of these):
                The audio, in one of the forms that the class docstring lists.
            **kwargs:
                `top_k`, `function_to_apply` and `batch_size`, as in [`~transformers.AudioClassificationPipeline`].

        Returns:
            Dicts with `label` and `score`, best first; a list of such lists for several inputs.
        """
        if isinstance(inputs, Path):
            inputs = str(inputs)
        elif isinstance(inputs, Sequence) and not isinstance(inputs, (str, bytes, list)):
            inputs = list(inputs)  # a dataset column
        return super().__call__(inputs, **kwargs)

    def preprocess(self, inputs: Any) -> BatchFeature:  # type: ignore[override]  # annotated for plain dicts only
        """Convert one input to model inputs."""
        audio, sampling_rate = self.read(inputs)
        features = self.feature_extractor([audio], sampling_rate=sampling_rate, return_tensors="pt")
        return features.to(dtype=self.dtype) if self.dtype is not None else features

    def read(self, inputs: Any) -> tuple[np.ndarray | torch.Tensor, int]:
        """Return the waveform of one input, (samples,) or (channels, samples), and its sampling rate in Hz."""
        if isinstance(inputs, dict):
            array = inputs.get("array", inputs.get("raw"))
            if array is not None:
                if "sampling_rate" not in inputs:
                    raise ValueError('The dict has no "sampling_rate": add the sampling rate of its array, in Hz.')
                return array, inputs["sampling_rate"]
            inputs = inputs["bytes"] if inputs.get("bytes") is not None else inputs.get("path")
            if inputs is None:
                raise ValueError('The dict needs "array" and "sampling_rate", or "bytes", or "path".')
        if isinstance(inputs, (str, Path)):
            inputs = read_bytes(str(inputs))
        if isinstance(inputs, (bytes, bytearray)):
            return decode(bytes(inputs))
        if not isinstance(inputs, (np.ndarray, torch.Tensor)):
            raise TypeError(
                f"An input is of type {type(inputs).__name__}; the pipeline accepts arrays, tensors, paths, URLs, "
                "bytes and dicts."
            )
        return inputs, self.feature_extractor.sampling_rate


def read_bytes(location: str) -> bytes:
    """Return the contents of a local file or an http(s) URL."""
    if location.startswith(("http://", "https://")):
        from huggingface_hub import get_session

        response = get_session().get(location, follow_redirects=True)
        response.raise_for_status()
        return response.content
    path = Path(location)
    if not path.is_file():
        raise FileNotFoundError(f"There is no audio file {location}.")
    return path.read_bytes()


def decode(contents: bytes) -> tuple[np.ndarray, int]:
    """Decode an audio file to a float32 waveform, (samples,) or (channels, samples), and its sampling rate in Hz."""
    try:
        import soundfile
    except ImportError as error:
        raise ImportError("Reading audio files requires soundfile: pip install soundfile.") from error
    try:
        audio, sampling_rate = soundfile.read(io.BytesIO(contents), dtype="float32")
    except soundfile.LibsndfileError as error:
        raise ValueError(
            f"The {len(contents)} bytes are not an audio file that libsndfile can read (WAV, FLAC, OGG, MP3): "
            f"{error.error_string}"
        ) from None
    return audio.T, sampling_rate


__all__ = ["SceneClassificationPipeline"]

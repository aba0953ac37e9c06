"""The audio-classification pipeline, reading files with soundfile and resampling in the feature extractor."""

import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AudioClassificationPipeline
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.pipelines.base import ChunkPipeline

from .feature_extraction_beats import BeatsFeatureExtractor


# The models are trained on AudioSet's ten seconds (998 frames), and attention over an hour of audio would not fit in
# memory, so longer audio is classified in windows of 992 frames: a multiple of the patch size, so that no frame falls
# between two windows.
MAX_FRAMES = 998
WINDOW_FRAMES = 992


class BeatsAudioClassificationPipeline(ChunkPipeline, AudioClassificationPipeline):
    """`pipeline("audio-classification")` without the ffmpeg program and without torchaudio.

    Takes what the [`~transformers.AudioClassificationPipeline`] takes: arrays at the feature extractor's rate, dicts
    `{"array" or "raw": …, "sampling_rate": …}` of any rate, paths and URLs of WAV, FLAC, OGG and MP3 files, their
    bytes, dicts `{"path": …, "bytes": …}` as an undecoded `datasets.Audio` column holds them, and lists, generators
    and columns of these. Several channels are averaged. Audio of more than ten seconds is cut into windows of 992
    frames (9.9 s), the last of which is shifted back to end with the audio; the windows' logits are averaged.

    Raises:
        FileNotFoundError: The path does not exist.
        TypeError: The input is none of these.
        ValueError: The bytes are no audio file, or the audio is empty, too short or not finite.
    """

    feature_extractor: BeatsFeatureExtractor
    replaced_class: type = AudioClassificationPipeline
    """What transformers knew the task by before, and what other models are left to."""

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

    def _sanitize_parameters(
        self, top_k: int | None = None, function_to_apply: str | None = None, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        preprocess, forward, postprocess = super()._sanitize_parameters(
            top_k=top_k, function_to_apply=function_to_apply, **kwargs
        )
        if function_to_apply is None:
            postprocess.pop("function_to_apply", None)  # softmax in older transformers, also for several labels
        return preprocess, forward, postprocess

    # transformers annotates the next three methods for one window per input, not as a ChunkPipeline needs them.
    def preprocess(self, inputs: Any) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """Convert one input to model inputs, one for each window."""
        audio, sampling_rate = self.read(inputs)
        features = self.feature_extractor([audio], sampling_rate=sampling_rate, return_tensors="pt")
        if self.dtype is not None:
            features = features.to(dtype=self.dtype)
        num_frames = features["input_values"].shape[1]
        starts = [0]
        if num_frames > MAX_FRAMES:
            starts = [*range(0, num_frames - WINDOW_FRAMES, WINDOW_FRAMES), num_frames - WINDOW_FRAMES]
        for start in starts:
            stop = num_frames if len(starts) == 1 else start + WINDOW_FRAMES
            window = {name: value[:, start:stop] for name, value in features.items()}
            yield {**window, "is_last": start == starts[-1]}

    def _forward(self, model_inputs: dict[str, Any]) -> dict[str, Any]:  # type: ignore[override]
        is_last = model_inputs.pop("is_last")
        return {"logits": self.model(**model_inputs).logits, "is_last": is_last}

    def postprocess(  # type: ignore[override]
        self, model_outputs: list[dict[str, Any]], top_k: int = 5, function_to_apply: str | None = None
    ) -> list[dict[str, Any]]:
        """Convert the logits of the windows of one input to labels and scores."""
        if function_to_apply is None:
            several_labels = self.model.config.problem_type == "multi_label_classification"
            function_to_apply = "sigmoid" if several_labels else "softmax"
        logits = torch.cat([output["logits"] for output in model_outputs]).float().mean(dim=0, keepdim=True)
        return super().postprocess(SequenceClassifierOutput(logits=logits), top_k, function_to_apply)

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


__all__ = ["BeatsAudioClassificationPipeline"]

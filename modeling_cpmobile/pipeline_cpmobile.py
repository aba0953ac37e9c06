"""Audio-classification pipeline that reads files with soundfile and resamples in the feature extractor."""

import io
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sized
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset

# First, because it names the cause if transformers cannot import torchaudio.
from .audio_cpmobile import SAMPLES_PER_BLOCK, check_sampling_rate, to_blocks, to_clip, to_mono
from .feature_extraction_cpmobile import CPMobileFeatureExtractor


# isort: split
from transformers import AudioClassificationPipeline
from transformers.modeling_outputs import SequenceClassifierOutput
from transformers.pipelines.base import ChunkPipeline
from transformers.utils import cached_file, logging


logger = logging.get_logger(__name__)


class CPMobileAudioClassificationPipeline(ChunkPipeline, AudioClassificationPipeline):
    """Audio-classification pipeline for CP-Mobile that needs neither the ffmpeg program nor torchaudio.

    It accepts the inputs of [`~transformers.AudioClassificationPipeline`]: arrays at the feature extractor's sampling
    rate, dicts `{"array" or "raw": ..., "sampling_rate": ...}` at any rate, paths and URLs of WAV, FLAC, OGG and MP3
    files, the bytes of such files, dicts `{"path": ..., "bytes": ...}` as in an undecoded `datasets.Audio` column,
    decoders of torchcodec as in a decoded one, and lists, generators and dataset columns of these. Channels are
    averaged. Recordings of any length are read, resampled and classified in blocks, in bounded memory.

    With `return_timestamps=True`, the result for an input is a dict: `labels`, as without it, and `chunks`, a list of
    dicts with the `timestamp` of each window, `(start, end)` in seconds, and the `labels` of this window alone. The
    last window ends with the audio and may overlap the one before it.

    If the recording device of all inputs is known, the argument `device_id` selects the model of that device, see
    [`model_of`].

    Raises:
        ConnectionError: If a URL cannot be downloaded.
        FileNotFoundError: If a path does not exist.
        TypeError: If an input is of any other type, or its samples are not real numbers.
        ValueError: If a file or bytes are not an audio file or are damaged; if the audio is empty, contains NaN or
            infinite samples, or exceeds full scale by far; or if its sampling rate is missing or invalid.
    """

    feature_extractor: CPMobileFeatureExtractor
    replaced_class: type = AudioClassificationPipeline
    """Pipeline class that transformers used for the task before; it still serves all other models."""

    def __new__(  # type: ignore[misc]  # returns the pipeline that fits the model, which may be of another class
        cls, model: Any = None, *args: Any, **kwargs: Any
    ) -> AudioClassificationPipeline:
        """Create the pipeline that fits the model: its own `pipeline_class`, or else `replaced_class`."""
        right_class = cls if model is None else getattr(model, "pipeline_class", cls.replaced_class)
        return super().__new__(cls) if right_class is cls else right_class(model, *args, **kwargs)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.device_models: dict[str | None, Any] = {}
        super().__init__(*args, **kwargs)

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
            Dicts with `label` and `score`, best first; for several inputs, a list of such lists, or an iterator over
            them if the number of inputs is unknown or they are a torch dataset.
        """
        single = (str, os.PathLike, bytes, bytearray, memoryview, Mapping, np.ndarray, torch.Tensor, io.IOBase)
        is_dataset = isinstance(inputs, Dataset)  # of torch; it need not be iterable
        if isinstance(inputs, single) or not (isinstance(inputs, Iterable) or is_dataset):
            audio: Any = inputs
            return super().__call__(audio, **kwargs)
        items: Any = (Numbered(number, audio) for number, audio in enumerate(inputs))
        results = super().__call__(items, **kwargs)
        return list(results) if isinstance(inputs, Sized) and not is_dataset else results

    def _sanitize_parameters(
        self, top_k: int | None = None, function_to_apply: str | None = None, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        forward = {"device_id": kwargs.pop("device_id")} if "device_id" in kwargs else {}
        preprocess, _, postprocess = super()._sanitize_parameters(top_k, function_to_apply, **kwargs)
        if kwargs.get("return_timestamps") is not None:
            postprocess["return_timestamps"] = kwargs["return_timestamps"]
        return preprocess, forward, postprocess

    def model_of(self, device_id: str | None) -> Any:
        """Return the model for the recordings of a device.

        It is loaded once, from the subfolder `devices/<device_id>` of the model folder or repository.

        Args:
            device_id (`str`, *optional*): The device.

        Returns:
            `PreTrainedModel`: The model of the device; the general model if the device is None, or has none.
        """
        general: Any = self.model
        if device_id not in self.device_models:
            folder = f"devices/{device_id}"
            source: dict[str, Any] = {"subfolder": folder, "revision": getattr(general.config, "_commit_hash", None)}
            name, model = general.name_or_path, None
            named = name and os.path.basename(folder) == device_id
            if named and cached_file(name, "config.json", **source) is not None:
                model = type(general).from_pretrained(name, dtype=general.dtype, **source).to(general.device)
            self.device_models[device_id] = model
        return self.device_models[device_id] or general

    # transformers annotates the next three methods for one pass per input, not as a ChunkPipeline needs them.
    def preprocess(self, inputs: Any) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        """Convert one input to model inputs, a few windows at a time."""
        blocks, sampling_rate, name = self.open_audio(inputs)
        num_samples = 0

        def count(blocks: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
            nonlocal num_samples
            for block in blocks:
                num_samples += len(block)
                yield block

        stream = self.feature_extractor.stream(count(blocks), sampling_rate, name)
        windows = next(stream, None)
        while windows is not None:
            following = next(stream, None)
            yield {
                "input_values": windows.unsqueeze(0).to(self.dtype),
                "attention_mask": torch.ones(1, len(windows), dtype=torch.long),
                "duration": num_samples / sampling_rate,  # that of the audio if this is the last part
                "is_last": following is None,
            }
            windows = following

    def _forward(  # type: ignore[override]
        self, model_inputs: dict[str, Any], device_id: str | None = None
    ) -> dict[str, Any]:
        windows = model_inputs["input_values"]
        logits = self.model_of(device_id)(windows.flatten(0, 1).unsqueeze(1)).logits
        return {
            "logits": logits.unflatten(0, windows.shape[:2]),
            "num_windows": model_inputs["attention_mask"].sum(dim=1),
            "duration": model_inputs["duration"],
            "is_last": model_inputs["is_last"],
        }

    def postprocess(  # type: ignore[override]
        self,
        model_outputs: list[dict[str, Any]],
        top_k: int = 5,
        function_to_apply: str | None = None,
        return_timestamps: bool = False,
    ) -> list[dict[str, Any]] | dict[str, Any]:
        """Convert the logits of all windows of one input to labels and scores."""
        # Windows beyond `num_windows` pad a batch.
        logits = torch.cat([output["logits"][0, : output["num_windows"]] for output in model_outputs]).float()
        rows = [logits.mean(dim=0), *(logits if return_timestamps else [])]
        convert = super().postprocess
        labels, *window_labels = [
            convert(SequenceClassifierOutput(logits=row.unsqueeze(0)), top_k, function_to_apply) for row in rows
        ]
        if not return_timestamps:
            return labels
        timestamps = self.timestamps(len(logits), model_outputs[-1]["duration"])
        chunks = zip(timestamps, window_labels, strict=True)
        return {"labels": labels, "chunks": [{"timestamp": times, "labels": best} for times, best in chunks]}

    def timestamps(self, num_windows: int, duration: float) -> list[tuple[float, float]]:
        """Return the start and end, in seconds, of the windows of audio of a duration in seconds."""
        length = self.feature_extractor.window_length / self.feature_extractor.sampling_rate
        starts = [length * index for index in range(num_windows)]
        starts[-1] = max(0.0, min(starts[-1], duration - length))
        return [(start, min(start + length, duration)) for start in starts]

    def read(self, inputs: Any) -> tuple[np.ndarray, float]:
        """Return the mono waveform of one input, (samples,), and its sampling rate in Hz."""
        blocks, sampling_rate, _ = self.open_audio(inputs)
        return torch.cat(list(blocks)).cpu().numpy(), sampling_rate

    def open_audio(self, inputs: Any) -> tuple[Iterator[torch.Tensor], float, str]:
        """Open one input without reading all of it.

        Returns:
            `tuple`: The blocks of its mono waveform, tensors of shape `(samples,)`; its sampling rate in Hz; and its
            name in error messages.
        """
        number, inputs = inputs if isinstance(inputs, Numbered) else (None, inputs)
        name = "The audio" if number is None else f"Input {number}"
        sampling_rate: Any = self.feature_extractor.sampling_rate
        if isinstance(inputs, (np.ndarray, torch.Tensor)):
            logger.warning_once(
                f"An array is taken to be sampled at {sampling_rate:,} Hz: give one of another rate as "
                '{"array": ..., "sampling_rate": ...}.'
            )
        if hasattr(inputs, "get_all_samples"):  # torchcodec's decoder, as in a decoded `datasets.Audio` column
            samples = inputs.get_all_samples()
            inputs = {"array": samples.data, "sampling_rate": samples.sample_rate}
        if isinstance(inputs, Mapping):
            name = inputs.get("path") or name
            array = next((inputs[key] for key in ("array", "raw") if inputs.get(key) is not None), None)
            if array is not None:
                sampling_rate, inputs = inputs.get("sampling_rate"), to_clip(array, name)
            elif inputs.get("bytes") is not None:
                inputs = inputs["bytes"]
            elif inputs.get("path") is not None:
                inputs = inputs["path"]
            else:
                raise ValueError(
                    f'{name} is a dict with {", ".join(map(repr, inputs)) or "no keys"}, but needs "array" and '
                    '"sampling_rate", or "bytes", or "path".'
                )
        if isinstance(inputs, (str, os.PathLike)):
            name = os.fspath(inputs)
            blocks, sampling_rate = decode(open_file(name), name)
        elif isinstance(inputs, (bytes, bytearray, memoryview)):
            name = f"{name} ({len(inputs)} bytes)"
            blocks, sampling_rate = decode(io.BytesIO(inputs), name)
        elif isinstance(inputs, (np.ndarray, torch.Tensor)):
            blocks = to_blocks(to_clip(inputs, name), name)
        else:
            raise TypeError(
                f"{name} is of type {type(inputs).__name__}, but must be an array, a tensor, a path, a URL, bytes "
                "or a dict."
            )
        rate = check_sampling_rate(sampling_rate, self.feature_extractor.sampling_rate, f"{name}: sampling_rate")
        return blocks, rate, name


class Numbered(NamedTuple):
    """One of several inputs of a pipeline, with its number for error messages."""

    number: int
    audio: Any


def open_file(location: str) -> BinaryIO:
    """Open a local file, or download an http(s) URL to a temporary file."""
    if not location.startswith(("http://", "https://")):
        if not os.path.isfile(location):
            raise FileNotFoundError(f"There is no audio file {location}.")
        return open(location, "rb")
    from huggingface_hub import get_session

    file = tempfile.TemporaryFile()  # noqa: SIM115 - the caller closes it
    try:
        with get_session().stream("GET", location, follow_redirects=True) as response:
            response.raise_for_status()
            for part in response.iter_bytes():
                file.write(part)
    except Exception as error:  # the HTTP client has its own types
        file.close()
        raise ConnectionError(f"{location} cannot be downloaded: {str(error).splitlines()[0]}") from None
    file.seek(0)
    return file


class OpenEnded:
    """File that hides its length from a decoder that would estimate the length of the audio from it.

    Args:
        file (`BinaryIO`): The file.
    """

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.at_end = False

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Change the position, or pretend that it is at the end."""
        self.at_end = whence == os.SEEK_END
        return self.tell() if self.at_end else self.file.seek(offset, whence)

    def tell(self) -> int:
        """Return the position; the end is far beyond that of any file."""
        return 2**50 if self.at_end else self.file.tell()

    def read(self, size: int = -1) -> bytes:
        """Return up to `size` bytes."""
        return self.file.read(size)


def states_length(file: BinaryIO) -> bool:
    """Return whether an MP3 file states its length, in a tag that encoders write into its first frame."""
    position = file.tell()
    file.seek(0)
    head = file.read(10)
    if head.startswith(b"ID3"):
        file.seek(sum(byte << shift for byte, shift in zip(head[6:10], (21, 14, 7, 0), strict=True)), os.SEEK_CUR)
    head += file.read(1000)
    file.seek(position)
    tag = max(head.find(b"Xing"), head.find(b"Info"))
    return b"VBRI" in head or (tag >= 0 and bool(head[tag + 7] & 1) and any(head[tag + 8 : tag + 12]))


def decode(file: BinaryIO, name: str) -> tuple[Iterator[torch.Tensor], int]:
    """Open an audio file and return the blocks of its mono waveform, tensors (samples,), and its rate in Hz.

    Files are read to their end, whatever length their header states.
    """
    try:
        import soundfile
    except (ImportError, OSError) as error:
        raise ImportError("Reading audio files requires soundfile: pip install soundfile.") from error

    class Stream(soundfile.SoundFile):
        def seekable(self) -> bool:
            return False  # soundfile believes the length in the header of seekable files

    try:
        audio = Stream(file)
        open_ended = audio.format == "MP3" and not states_length(file)
        if open_ended:
            file.seek(0)
            audio = Stream(OpenEnded(file))
    except (soundfile.LibsndfileError, TypeError) as error:
        file.close()
        reason = getattr(error, "error_string", "Format not recognised.")
        raise ValueError(
            f"{name} is not an audio file that libsndfile can read (WAV, FLAC, OGG, MP3): {reason}"
        ) from None
    size = max(1, SAMPLES_PER_BLOCK // (16 if open_ended else audio.channels))

    def read_blocks() -> Iterator[torch.Tensor]:
        num_samples = 0
        with file, audio:
            while True:
                try:
                    samples = audio.read(size, dtype="float32", always_2d=True)
                except soundfile.LibsndfileError as error:
                    if open_ended and num_samples:
                        break  # at a tag at the end of the file, which does not decode
                    reason = error.error_string.rstrip(".")
                    raise ValueError(f"{name} is damaged ({reason}): get the file again.") from None
                if len(samples) == 0:
                    break
                num_samples += len(samples)
                yield to_mono(samples.T, name)
        if num_samples == 0:
            raise ValueError(f"{name} is empty: it contains no samples, or its header states a length of zero.")

    return read_blocks(), audio.samplerate


__all__ = ["CPMobileAudioClassificationPipeline"]

"""Sources of audio without labels: folders of recordings, datasets with a column of audio, and shards."""

import errno
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypedDict

import datasets
import numpy as np
import soxr
from datasets.exceptions import DatasetGenerationError
from datasets.utils import tqdm

from dataset_script import TAUUrban2022, load_scenes
from dataset_script.audio import MAX_SECONDS, AudioReader, audio_info, find_audio
from dataset_script.demo_sounds import DEMO_SOUNDS, demo_sounds
from dataset_script.errors import InputError
from dataset_script.waveforms import to_int16
from train.common.shards import find_shards, is_shards, read_shards


class EncodedAudio(TypedDict, total=False):
    """An audio file that is not decoded, as in datasets with `Audio(decode=False)`: its content, or else its path."""

    bytes: bytes | None
    path: str | None


def load_unlabelled(
    dataset: str,
    dataset_config: str | None = None,
    split: str = "train",
    data_dir: str | None = None,
    streaming: bool = False,
    cache_dir: str | None = None,
) -> list[Path] | datasets.Dataset | datasets.IterableDataset:
    """Find audio and ignore its labels.

    Args:
        dataset (`str`): A folder, searched for audio files at any depth; a configuration of the scenes, such as
            `"demo"` or `"split100"`; `"demo_sounds"`, synthetic recordings; the address of tar or Parquet files, as
            for [`find_shards`]; or anything else that `datasets.load_dataset` accepts, such as a Hub id or a folder of
            Parquet files.
        dataset_config (`str`, *optional*): Configuration of a dataset on the Hub.
        split (`str`, *optional*, defaults to `"train"`): Split of the scenes or of a dataset on the Hub.
        data_dir (`str`, *optional*): Folder of the scenes' corpus.
        streaming (`bool`, *optional*, defaults to `False`): Read a dataset on the Hub, or shards, while training.
        cache_dir (`str`, *optional*): Cache folder for datasets.

    Returns:
        `list[Path]`, `datasets.Dataset` or `datasets.IterableDataset`: The sorted files of a folder, or a dataset
        with the column `audio`, not decoded; that of the scenes also has `filename`.

    Raises:
        FileNotFoundError: If the source does not exist or contains no audio.
        InputError: If the dataset has no column `audio`, cannot be streamed, or can only be streamed.
    """
    dataset = local_folder(dataset, cache_dir)
    if streaming and is_local_audio(dataset):
        raise InputError(f"{dataset} is on this machine and needs no streaming: omit --streaming.")
    if is_shards(dataset):
        if not streaming:
            raise InputError(f"{dataset} is an address of shards, which are read while training: add --streaming.")
        return datasets.IterableDataset.from_generator(read_shards, gen_kwargs={"shards": find_shards(dataset)})
    if files := find_audio(dataset):
        return files
    if any(Path(dataset).glob("*.tar")):
        raise InputError(f"{dataset} has tar files instead of audio files: choose {dataset}/*.tar, and --streaming.")
    if is_scenes(dataset):
        scenes = load_scenes(dataset, data_dir, cache_dir=cache_dir)
        if split not in scenes:
            raise InputError(f"{dataset} has no split {split!r}: choose one of {', '.join(scenes)}.")
        loaded = scenes[split].cast_column("audio", datasets.Audio(decode=False))
        return loaded.select_columns([name for name in ("audio", "filename") if name in loaded.column_names])
    return load_hub_audio(dataset, dataset_config, split, streaming, cache_dir).select_columns(["audio"])


def local_folder(dataset: str, cache_dir: str | None = None) -> str:
    """Return the folder of the demo sounds, which are made if they do not exist, for their name; or else the name.

    Args:
        dataset (`str`): As for [`load_unlabelled`].
        cache_dir (`str`, *optional*): Cache folder for datasets.
    """
    if dataset != DEMO_SOUNDS:
        return dataset
    return str(demo_sounds(Path(cache_dir or datasets.config.HF_DATASETS_CACHE)))


def is_scenes(dataset: str) -> bool:
    """Return whether a name is that of a configuration of the scenes, such as `"split100"`."""
    return dataset in (config.name for config in TAUUrban2022.BUILDER_CONFIGS)


def is_local_audio(dataset: str) -> bool:
    """Return whether a name is that of a configuration of the scenes, or of a folder with audio files."""
    return dataset == DEMO_SOUNDS or is_scenes(dataset) or bool(find_audio(dataset))


def load_hub_audio(
    dataset: str, dataset_config: str | None, split: str, streaming: bool = False, cache_dir: str | None = None
) -> datasets.Dataset | datasets.IterableDataset:
    """Load a dataset with a column `audio`, without decoding it.

    Args:
        dataset (`str`): Anything that `datasets.load_dataset` accepts.
        dataset_config (`str`, *optional*): As for [`load_unlabelled`], like all of the following.
        split (`str`): Split of the dataset.
        streaming (`bool`, *optional*, defaults to `False`): Read it while training.
        cache_dir (`str`, *optional*): Cache folder for datasets.

    Raises:
        FileNotFoundError: If the dataset cannot be loaded.
        InputError: If it has no column `audio`.
        OSError: If it does not fit on the disk.
    """
    try:
        loaded = datasets.load_dataset(dataset, dataset_config, split=split, streaming=streaming, cache_dir=cache_dir)
    except (OSError, ValueError, DatasetGenerationError) as error:
        cause = error.__cause__ or error
        reason = " ".join(str(cause).split())[:300].rstrip(".")
        if getattr(cause, "errno", None) == errno.ENOSPC or "disk space" in reason:
            raise OSError(
                f"{dataset} needs twice the size of its files and does not fit on the disk ({reason}): choose a "
                "--cache_dir on another disk, or a folder of audio files, which are not copied."
            ) from None
        state = "is a folder without audio files" if Path(dataset).is_dir() else "is not a folder"
        raise FileNotFoundError(
            f"{dataset} {state} and cannot be loaded as a dataset ({reason}): choose a folder of WAV, FLAC, Ogg or "
            "MP3 files, or the id of a dataset on the Hub."
        ) from None
    if "audio" not in (loaded.column_names or ()):
        columns = ", ".join(loaded.column_names or ())
        raise InputError(
            f"{dataset} contains no audio files and has no column 'audio', only {columns}: choose a folder of WAV, "
            "FLAC, Ogg or MP3 files, or a dataset with that column."
        )
    return loaded.cast_column("audio", datasets.Audio(decode=False))


def encoded_audio(source: list[Path] | datasets.Dataset, index: int) -> EncodedAudio:
    """Return an entry of a source of audio as [`read_crop`] accepts it."""
    if isinstance(source, list):
        return {"path": str(source[index])}
    return source[index]["audio"]


def audio_source(audio: EncodedAudio, name: str = "An entry of the dataset") -> str | bytes:
    """Return the content of a recording, or else its path, as [`~dataset_script.audio.AudioReader`] takes it.

    Args:
        audio (`EncodedAudio`): The recording.
        name (`str`, *optional*, defaults to `"An entry of the dataset"`): Its name in the error message.

    Raises:
        InputError: If it has neither.
    """
    content = audio.get("bytes")
    source = audio.get("path") if content is None else content
    if source is None:
        raise InputError(f"{name} has no audio: remove it.")
    return source


def read_part(reader: AudioReader, offset_seconds: float, seconds: float, sampling_rate: int) -> np.ndarray:
    """Decode a part of a recording, average its channels and resample it (soxr, quality HQ).

    Args:
        reader (`AudioReader`): The open recording.
        offset_seconds (`float`): Start of the part.
        seconds (`float`): Length of the part, which ends earlier if the recording does.
        sampling_rate (`int`): Rate of the result in Hz.

    Returns:
        `np.ndarray` of shape `(samples,)`: The samples.
    """
    blocks = reader.blocks(offset_seconds=offset_seconds, seconds=seconds)
    samples = np.concatenate([block.mean(axis=1) for block in blocks])
    if reader.sampling_rate == sampling_rate:
        return samples
    return soxr.resample(samples, reader.sampling_rate, sampling_rate, quality="HQ")


def read_crop(audio: EncodedAudio, seconds: float, sampling_rate: int, position: float) -> np.ndarray:
    """Read and decode only a crop of an audio file.

    Args:
        audio (`EncodedAudio`): The file.
        seconds (`float`): Length of the crop; shorter recordings are read whole.
        sampling_rate (`int`): Rate in Hz to resample to (soxr, quality HQ).
        position (`float`): Position of the crop, from 0 (start of the recording) to 1 (end).

    Returns:
        `np.ndarray` of shape `(samples,)`, int16: The mean of the channels.

    Raises:
        InputError: If the file cannot be decoded or is empty, or samples are NaN, infinite or far out of [-1, 1].
    """
    source = audio_source(audio)
    with AudioReader(source, name=audio.get("path")) as reader:
        rate, frames = reader.sampling_rate, reader.claimed_frames
        if not frames or frames > MAX_SECONDS * rate or not reader.has_frame(frames - 1):
            frames = audio_info(source, name=audio.get("path")).frames
        start = int(position * max(frames - round(seconds * rate), 0))
        samples = read_part(reader, start / rate, seconds, sampling_rate)
    return to_int16(samples[: round(seconds * sampling_rate)])


def durations(files: Sequence[Path]) -> list[float]:
    """Return the duration of each file in seconds.

    Raises:
        InputError: If files cannot be read; the message names the first one and counts the others.
    """
    with ThreadPoolExecutor() as pool:
        results = list(tqdm(pool.map(_duration_or_fault, files), total=len(files), desc="Audio files", leave=False))
    if faults := [result for result in results if isinstance(result, str)]:
        others = f" ({len(faults) - 1} of the other {len(files) - 1} files are faulty too.)" if len(faults) > 1 else ""
        raise InputError(f"{faults[0]}{others}")
    return results


def _duration_or_fault(path: Path) -> float | str:
    """Return the duration of a file in seconds, or what is wrong with it."""
    try:
        return audio_info(path).seconds
    except (InputError, OSError) as error:
        return str(error)

"""Unlabelled audio for pre-training: any source, any length, as segments for the network's front end."""

import errno
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import soundfile
import soxr
import torch
from datasets.distributed import split_dataset_by_node
from datasets.exceptions import DatasetGenerationError
from datasets.utils import tqdm
from torch.utils.data import Dataset, IterableDataset, Sampler

from dataset_script import TAUUrban2022, load_scenes
from dataset_script.errors import InputError
from dataset_script.waveforms import to_int16
from train.common.distributed import BatchRows
from train.common.resumable import derived_seed


SUFFIXES = {f".{name.lower()}" for name in soundfile.available_formats()} - {".raw"} | {".oga", ".opus", ".aif"}
"""File names that the scan of a folder takes for audio."""


def load_unlabelled(
    dataset: str,
    dataset_config: str | None = None,
    split: str = "train",
    data_dir: str | None = None,
    streaming: bool = False,
    cache_dir: str | None = None,
) -> list[Path] | datasets.Dataset | datasets.IterableDataset:
    """Find audio, without its labels.

    Args:
        dataset (`str`): A folder, searched for audio files at any depth; a configuration of the scenes, such as
            `"demo"` or `"split100"`; or anything else that `datasets.load_dataset` takes, such as an id on the Hub,
            or a folder of Parquet files.
        dataset_config (`str`, *optional*): Configuration of a dataset on the Hub.
        split (`str`, *optional*, defaults to `"train"`): Split of the scenes or of a dataset on the Hub.
        data_dir (`str`, *optional*): Folder of the scenes' corpus.
        streaming (`bool`, *optional*, defaults to `False`): Read a dataset on the Hub while training.
        cache_dir (`str`, *optional*): Where datasets are kept.

    Returns:
        The files of a folder, sorted, or the column `audio` of a dataset, not decoded.

    Raises:
        FileNotFoundError: If there is no such source, or no audio in it.
        InputError: If the dataset has no column of audio, or cannot be streamed.
    """
    is_scenes = dataset in (config.name for config in TAUUrban2022.BUILDER_CONFIGS)
    files = audio_files(dataset)
    if streaming and (is_scenes or files):
        raise InputError(f"{dataset} is on this machine and needs no streaming: leave --streaming out.")
    if files:
        return files
    if is_scenes:
        scenes = load_scenes(dataset, data_dir, cache_dir=cache_dir)
        if split not in scenes:
            raise InputError(f"{dataset} has no split {split!r}: choose one of {', '.join(scenes)}.")
        loaded = scenes[split].cast_column("audio", datasets.Audio(decode=False))
    else:
        loaded = load_hub_audio(dataset, dataset_config, split, streaming, cache_dir)
    return loaded.select_columns(["audio"])


def audio_files(folder: str) -> list[Path]:
    """Return the audio files of a folder at any depth, sorted, without hidden ones; none if there is no folder."""
    paths = Path(folder).rglob("*")
    return sorted(path for path in paths if path.suffix.lower() in SUFFIXES and path.name[0] != "." and path.is_file())


def load_hub_audio(
    dataset: str, dataset_config: str | None, split: str, streaming: bool = False, cache_dir: str | None = None
) -> datasets.Dataset | datasets.IterableDataset:
    """Load a dataset with a column `audio`, which is not decoded; arguments and errors as [`load_unlabelled`]."""
    try:
        loaded = datasets.load_dataset(dataset, dataset_config, split=split, streaming=streaming, cache_dir=cache_dir)
    except (OSError, ValueError, DatasetGenerationError) as error:
        cause = error.__cause__ or error
        reason = " ".join(str(cause).split())[:300].rstrip(".")
        if getattr(cause, "errno", None) == errno.ENOSPC or "disk space" in reason:
            raise OSError(
                f"{dataset} does not fit on the disk, where it needs twice the size of its files ({reason}): give "
                "--cache_dir on another one, or a folder of audio files, which are read where they are."
            ) from None
        state = "is a folder without audio files" if Path(dataset).is_dir() else "is no folder"
        raise FileNotFoundError(
            f"{dataset} {state}, and no dataset that can be loaded ({reason}): give a folder of WAV, FLAC, Ogg or MP3 "
            "files, or the id of a dataset."
        ) from None
    if "audio" not in (loaded.column_names or ()):
        columns = ", ".join(loaded.column_names or ())
        raise InputError(
            f"{dataset} has neither audio files nor a column 'audio', only {columns}: give a folder of WAV, FLAC, Ogg "
            "or MP3 files, or a dataset with that column."
        )
    return loaded.cast_column("audio", datasets.Audio(decode=False))


def audio_of(source: list[Path] | datasets.Dataset, index: int) -> dict[str, Any]:
    """Return a clip as [`read_segment`] takes it."""
    clip = source[index]
    return {"path": str(clip)} if isinstance(clip, Path) else clip["audio"]


def read_segment(audio: dict[str, Any], seconds: float, sampling_rate: int, place: float) -> np.ndarray:
    """Read a segment of an audio file, and nothing else of it.

    Args:
        audio (`dict`): `{"bytes": …, "path": …}`: the content of a file, or, where that is None, its path.
        seconds (`float`): Length; all of a shorter clip is taken.
        sampling_rate (`int`): Rate in Hz to resample to (soxr, quality HQ).
        place (`float`): Where in the clip, from 0 (its beginning) to 1 (its end).

    Returns:
        `np.ndarray` of shape `(samples,)`, int16; the mean of the channels.

    Raises:
        InputError: If the file cannot be decoded, is empty, or holds values that are not finite.
    """
    source = audio["path"] if audio.get("bytes") is None else io.BytesIO(audio["bytes"])
    try:
        with soundfile.SoundFile(source) as file:
            rate, wanted = file.samplerate, round(seconds * file.samplerate)
            file.seek(int(place * max(file.frames - wanted, 0)))
            samples = file.read(wanted, dtype="float32", always_2d=True).mean(axis=1)
    except (soundfile.LibsndfileError, TypeError) as error:
        raise InputError(f"{audio['path']} cannot be decoded ({error}): mend it, or leave it out.") from None
    if not len(samples) or not np.isfinite(samples).all():
        fault = "holds NaN or infinite samples" if len(samples) else "has no samples"
        raise InputError(f"{audio['path']} {fault}: mend it, or leave it out.")
    if rate != sampling_rate:
        samples = soxr.resample(samples, rate, sampling_rate, quality="HQ")
    samples = samples[: round(seconds * sampling_rate)]
    return to_int16(samples)


class Segments(Dataset):
    """Segments of audio that can be read in any order.

    A recording in a folder has as many rows as it has whole segments, but at least one, so that long ones are used
    evenly. An entry of a dataset has one row, because its length is not known before it is read. The segment is
    another one in each epoch: within a row's part of the recording, its place is random.

    Args:
        source (`list[Path]` or `datasets.Dataset`): As [`load_unlabelled`] gives it.
        seconds (`float`): Length of a segment.
        sampling_rate (`int`): Rate in Hz of the samples.
        seed (`int`): Chooses the places.

    Raises:
        InputError: If a file in the folder cannot be read, or the first entry of a dataset.
    """

    def __init__(self, source: list[Path] | datasets.Dataset, seconds: float, sampling_rate: int, seed: int):
        self.source = source
        self.seconds = seconds
        self.sampling_rate = sampling_rate
        self.seed = seed
        if isinstance(source, list):
            counts = np.maximum(1, np.floor(np.array(durations(source)) / seconds + 1e-6)).astype(np.int64)
        else:
            counts = np.ones(len(source), dtype=np.int64)
        self.clips = np.repeat(np.arange(len(source)), counts)
        self.parts = np.arange(len(self.clips)) - np.repeat(np.cumsum(counts) - counts, counts)
        self.counts = counts
        self[0, 0]

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, index: tuple[int, int]) -> np.ndarray:
        epoch, row = index
        clip = int(self.clips[row])
        chance = np.random.default_rng(derived_seed(self.seed, epoch, row)).random()
        place = (self.parts[row] + chance) / self.counts[clip]
        return read_segment(audio_of(self.source, clip), self.seconds, self.sampling_rate, place)


def durations(files: Sequence[Path]) -> list[float]:
    """Return the seconds that each file holds.

    Raises:
        InputError: If some cannot be read; names one, and tells how many.
    """
    with ThreadPoolExecutor() as pool:
        lengths = list(tqdm(pool.map(_duration, files), total=len(files), desc="Audio files", leave=False))
    if faults := [length for length in lengths if isinstance(length, str)]:
        others = f" (and {len(faults) - 1} of the other {len(files) - 1} files)" if len(faults) > 1 else ""
        raise InputError(f"{faults[0]}{others}: mend it, or leave it out.")
    return lengths


def _duration(path: Path) -> float | str:
    """Return the seconds that a file holds, or what is wrong with it."""
    try:
        info = soundfile.info(path)
    except soundfile.LibsndfileError as error:
        return f"{path} cannot be decoded ({error.error_string})"
    return info.frames / info.samplerate if info.frames else f"{path} has no samples"


class StreamedSegments(IterableDataset):
    """Segments of streamed clips without end: one of each clip in a pass, at a random place.

    Every pass is shuffled anew, through a buffer. Each process takes its share of the clips: the same shards in every
    pass, if the source has as many for each, and otherwise every n-th clip for n processes, which then all read all of
    them. A run that goes on reads the first pass to know how long they are, and then the one where it stopped.

    Args:
        source (`datasets.IterableDataset`): As [`load_unlabelled`] gives it.
        seconds (`float`): Length of a segment.
        sampling_rate (`int`): Rate in Hz of the samples.
        seed (`int`): Chooses order and places.
        num_processes, process_index (`int`): This process, counted from 0.
        first (`int`, *optional*, defaults to 0): Segments of this process to leave out, where a run goes on.
        buffer_size (`int`, *optional*, defaults to 1000): Clips to draw the next one from.
    """

    def __init__(
        self,
        source: datasets.IterableDataset,
        seconds: float,
        sampling_rate: int,
        seed: int,
        num_processes: int = 1,
        process_index: int = 0,
        first: int = 0,
        buffer_size: int = 1000,
    ):
        if source.num_shards % num_processes == 0:
            source = source.shard(num_processes, process_index)
        else:
            source = split_dataset_by_node(source, process_index, num_processes)
        self.source = source.shuffle(seed=seed, buffer_size=buffer_size)
        self.seconds = seconds
        self.sampling_rate = sampling_rate
        self.seed = derived_seed(seed, process_index)
        self.first = first

    def __iter__(self) -> Iterator[np.ndarray]:
        passed, epoch = 0, 0
        while True:
            self.source.set_epoch(epoch)
            before = passed
            for row in self.source:
                passed += 1
                if passed > self.first:
                    place = np.random.default_rng(derived_seed(self.seed, passed)).random()
                    yield read_segment(row["audio"], self.seconds, self.sampling_rate, place)
            length = passed - before
            if length == 0:
                raise InputError("The stream has no audio for this process: use fewer processes, or more clips.")
            done = max(self.first - passed, 0) // length
            passed += done * length
            epoch += 1 + done


class SegmentBatches(Sampler[list[tuple[int, int]]]):
    """Batches of `(epoch, row)` for a whole run, of which each process gets its rows.

    Each epoch visits the rows in an order of its own, and leaves out what does not fill a batch. With weights it draws
    as many rows instead, each time any of them.

    Args:
        num_rows (`int`): Rows of the dataset.
        batch_size (`int`): Rows of a batch over all processes, or all rows if they are fewer.
        num_batches (`int`): Batches of the run.
        seed (`int`): Seed of the run.
        rows (`BatchRows`): Which rows of a batch belong to this process.
        weights (`torch.Tensor` of shape `(num_rows,)`, *optional*): How often a row is drawn, relative to the others.
    """

    def __init__(
        self,
        num_rows: int,
        batch_size: int,
        num_batches: int,
        seed: int,
        rows: BatchRows,
        weights: torch.Tensor | None = None,
    ):
        self.num_rows = num_rows
        self.batch_size = min(batch_size, num_rows)
        self.num_batches = num_batches
        self.seed = seed
        rows.resize(self.batch_size)
        self.rows = rows
        self.weights = weights

    def __len__(self) -> int:
        return self.num_batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        batches_per_epoch = self.num_rows // self.batch_size
        for batch in range(self.num_batches):
            epoch, index = divmod(batch, batches_per_epoch)
            if index == 0:
                generator = torch.Generator().manual_seed(derived_seed(self.seed, epoch))
                if self.weights is None:
                    order = torch.randperm(self.num_rows, generator=generator).tolist()
                else:
                    order = torch.multinomial(self.weights, self.num_rows, True, generator=generator).tolist()
            rows = order[index * self.batch_size : (index + 1) * self.batch_size]
            yield [(epoch, row) for row in rows[self.rows.work]]


class SegmentCollator:
    """Pad segments to the longest of a batch.

    Args:
        min_samples (`int`): What one patch of the network takes; shorter segments are repeated up to it.

    Returns, from a list of segments, a dictionary of:

    - `waveform` (`torch.ShortTensor` of shape `(batch_size, samples)`)
    - `num_samples` (`torch.LongTensor` of shape `(batch_size,)`), unless all have the same
    """

    def __init__(self, min_samples: int):
        self.min_samples = min_samples

    def __call__(self, segments: Sequence[np.ndarray]) -> dict[str, torch.Tensor]:
        """Stack `segments`, int16 arrays of any length."""
        segments = [np.resize(segment, max(len(segment), self.min_samples)) for segment in segments]
        lengths = torch.tensor([len(segment) for segment in segments])
        tensors = [torch.from_numpy(segment) for segment in segments]
        batch = {"waveform": torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)}
        if (lengths != lengths.max()).any():
            batch["num_samples"] = lengths
        return batch

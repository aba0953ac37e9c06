"""Sound without labels that students learn from: its one-second clips, cut and resampled once."""

import hashlib
import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import datasets
import numpy as np
from datasets.utils import tqdm

from dataset_script.audio import AudioReader, audio_info
from dataset_script.checksums import is_intact, write_checksum
from dataset_script.clips import audio_state
from dataset_script.errors import InputError
from dataset_script.files import atomic_path, locked, write_json
from dataset_script.recording_sources import split_configuration
from dataset_script.waveforms import to_int16
from train.common.process import main_process_first
from train.common.sources import (
    EncodedAudio,
    audio_source,
    encoded_audio,
    is_local_audio,
    load_unlabelled,
    local_folder,
    read_part,
)
from train.common.waveforms import Shards


logger = logging.getLogger(__name__)

CLIPS_PER_SHARD = 2048
"""Clips after which a shard ends: 131 MB at 32 kHz."""

SECONDS_PER_PIECE = 60
"""Clips of a recording that are decoded at a time."""

FINISHED = "finished.json"
"""File that is written last: the number of shards, and what is wrong with recordings that are left out."""

SUFFIXES = (".json", ".npy")
"""Suffixes of a shard's files: the names of its clips, and their waveforms."""

Recordings: TypeAlias = list[Path] | datasets.Dataset | datasets.IterableDataset


@dataclass
class UnlabelledSource:
    """Recordings without labels.

    Args:
        source (`str`): As the user gave it.
        recordings (`list[Path]`, `datasets.Dataset` or `datasets.IterableDataset`): The recordings, as returned by
            [`~train.common.sources.load_unlabelled`].
    """

    source: str
    recordings: Recordings

    def name(self, row: int) -> str:
        """Return the name of a recording, to which its clips add their second: that of the scenes, if it has one."""
        if isinstance(self.recordings, list):
            folder = Path(self.source).expanduser()
            return f"{folder.resolve().name}/{self.recordings[row].relative_to(folder).as_posix()}"
        if isinstance(self.recordings, datasets.Dataset) and "filename" in self.recordings.column_names:
            return self.recordings[row]["filename"]
        return f"{self.source}/{row:08}"

    def state(self, row: int) -> str:
        """Return a key that changes with the content of a recording."""
        assert not isinstance(self.recordings, datasets.IterableDataset)
        audio = encoded_audio(self.recordings, row)
        return audio_state({"bytes": audio.get("bytes"), "path": audio.get("path")})


@dataclass
class Piece:
    """Consecutive clips of a recording.

    Args:
        name (`str`): Name of the recording.
        audio (`EncodedAudio`): The recording.
        first (`int`): Second at which the first clip starts.
        count (`int`): Number of clips.
        is_only (`bool`): Whether the recording has no other clips, which then has its name.
    """

    name: str
    audio: EncodedAudio
    first: int
    count: int
    is_only: bool

    @property
    def filenames(self) -> list[str]:
        """Names of the clips."""
        if self.is_only:
            return [self.name]
        return [f"{self.name}#{second}" for second in range(self.first, self.first + self.count)]


@dataclass
class UnlabelledClips:
    """One-second clips without labels.

    Args:
        filenames (`list[str]`): Their unique names.
        waveforms (`Shards` of shape `(clips, samples)`): The clips, int16.
        sampling_rate (`int`): Their rate in Hz.
        faults (`list[str]`): What is wrong with the recordings that are left out.
    """

    filenames: list[str]
    waveforms: Shards
    sampling_rate: int
    faults: list[str]


@dataclass
class UnlabelledSound:
    """The recordings to take clips from.

    Args:
        sources (`list[UnlabelledSource]`): The recordings that were found.
        rows (`list[list[int]]`): For each source, the recordings to use; empty for a stream.
        max_clips (`int`): Most clips to use.
        key (`str`): Changes with the content of the recordings and with the other arguments.
    """

    sources: list[UnlabelledSource]
    rows: list[list[int]]
    max_clips: int
    key: str


def find_unlabelled(
    sources: Sequence[str],
    max_clips: int,
    labelled: Iterable[str] = (),
    data_dir: str | None = None,
    streaming: bool = False,
    cache_dir: str | None = None,
) -> UnlabelledSound:
    """Find the recordings of all sources. Nothing is decoded.

    Args:
        sources (`Sequence[str]`): Folders, searched for audio at any depth; configurations of the scenes, such as
            `"split100"`, of which the training split is used; `"demo_sounds"`; or datasets on the Hub, as `<id>` or
            `<id>:<configuration>`, of which the split `train` is used.
        max_clips (`int`): Most clips to use.
        labelled (`Iterable[str]`, *optional*): Names of labelled clips, which are left out.
        data_dir (`str`, *optional*): Folder of the scenes' corpus.
        streaming (`bool`, *optional*, defaults to `False`): Do not download datasets of the Hub as a whole.
        cache_dir (`str`, *optional*): Cache folder of datasets.

    Raises:
        FileNotFoundError: If a source does not exist or contains no audio.
        InputError: If two folders have the same name, or there are only labelled clips.
    """
    found = []
    for source in dict.fromkeys(sources):
        name, configuration = split_configuration(source)
        streamed = streaming and not is_local_audio(name)
        recordings = load_unlabelled(name, configuration, "train", data_dir, streamed, cache_dir)
        found.append(UnlabelledSource(local_folder(source, cache_dir), recordings))
    folders = [Path(item.source).resolve().name for item in found if isinstance(item.recordings, list)]
    if repeated := [name for name in folders if folders.count(name) > 1]:
        raise InputError(f"Two folders without labels are called {repeated[0]}: rename one of them.")
    excluded = frozenset(name.partition("#")[0] for name in labelled)
    rows = [_usable_rows(item, max_clips, excluded) for item in found]
    for item, usable in zip(found, rows, strict=True):
        if not usable and not isinstance(item.recordings, datasets.IterableDataset):
            raise InputError(f"{item.source} contains only labelled clips: choose other sound.")
    return UnlabelledSound(found, rows, max_clips, _content_key(found, rows, max_clips))


def cache_unlabelled(sound: UnlabelledSound, sampling_rate: int, cache_dir: str | None = None) -> UnlabelledClips:
    """Cut recordings into clips of one second and resample them, or load the cached result of an earlier call.

    Rests of less than a second are left out; shorter recordings are repeated. If there are more clips than wanted, as
    many are chosen at random, always the same; of a stream the first ones are used. Recordings that cannot be read are
    left out with a warning. An interrupted call resumes after the last shard of the result that is whole.

    Args:
        sound (`UnlabelledSound`): The recordings.
        sampling_rate (`int`): Rate of the result in Hz.
        cache_dir (`str`, *optional*): Folder of the results, defaults to the cache of `datasets`.

    Returns:
        `UnlabelledClips`: The clips.

    Raises:
        InputError: If no recording can be used.
        OSError: If the clips do not fit on the disk, or the cache cannot be written to.
    """
    cache = Path(cache_dir or datasets.config.HF_DATASETS_CACHE) / "unlabelled"
    folder = cache / f"{sampling_rate}-{sound.key}"
    with main_process_first():
        if not _is_finished(folder):
            with locked(folder.with_suffix(".lock")):
                if not _is_finished(folder):
                    _write_shards(folder, sound, sampling_rate)
    finished = json.loads((folder / FINISHED).read_text(encoding="utf-8"))
    names: list[str] = []
    for shard in range(finished["shards"]):
        names += json.loads((folder / f"{shard:05}.json").read_text(encoding="utf-8"))["filenames"]
    if not names:
        sources = ", ".join(source.source for source in sound.sources)
        raise InputError(f"No recording of {sources} can be used ({finished['faults'][0]}): add others.")
    arrays = [np.load(folder / f"{shard:05}.npy", mmap_mode="r") for shard in range(finished["shards"])]
    return UnlabelledClips(names, Shards(arrays), sampling_rate, finished["faults"])


def _usable_rows(source: UnlabelledSource, max_clips: int, labelled: frozenset[str]) -> list[int]:
    """Return the recordings to take clips from: at most as many as there are clips to take, and no labelled ones."""
    if isinstance(source.recordings, datasets.IterableDataset):
        return []
    rows = np.arange(len(source.recordings))
    if len(rows) > max_clips:
        rows = np.sort(np.random.default_rng(0).choice(rows, max_clips, replace=False))
    return [row for row in rows.tolist() if not _is_labelled(source.name(row), labelled)]


def _is_labelled(name: str, labelled: frozenset[str]) -> bool:
    # The name of a labelled clip is a path within its corpus, of which the source may be a part or a parent.
    parts = name.split("/")
    return any("/".join(parts[start:]) in labelled for start in range(len(parts)))


def _content_key(sources: Sequence[UnlabelledSource], rows: Sequence[Sequence[int]], max_clips: int) -> str:
    digest = hashlib.sha256(f"{max_clips}".encode())
    for source, usable in zip(sources, rows, strict=True):
        digest.update(f"\n{source.source}".encode(errors="surrogateescape"))
        for row in usable:
            digest.update(f"{source.name(row)}\t{source.state(row)}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()[:20]


def _is_finished(folder: Path) -> bool:
    try:
        finished = json.loads((folder / FINISHED).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return all(is_intact(folder / f"{shard:05}{suffix}") for shard in range(finished["shards"]) for suffix in SUFFIXES)


def _write_shards(folder: Path, sound: UnlabelledSound, sampling_rate: int) -> None:
    faults: list[str] = []
    pieces = _choose(sound, faults)
    number = 0
    with tqdm(unit=" clips", desc="Cutting unlabelled sound") as progress:
        while shard := _take(pieces, CLIPS_PER_SHARD):
            names, waveforms = folder / f"{number:05}.json", folder / f"{number:05}.npy"
            if not (is_intact(names) and is_intact(waveforms)):
                filenames, clips, unreadable = _cut(shard, sampling_rate)
                with atomic_path(waveforms, size=clips.nbytes) as part, part.open("wb") as file:
                    np.save(file, clips)
                write_json(names, {"filenames": filenames, "faults": unreadable})
                write_checksum(waveforms)
                write_checksum(names)
            faults += json.loads(names.read_text(encoding="utf-8"))["faults"]
            number += 1
            progress.update(sum(piece.count for piece in shard))
    if faults:
        logger.warning("%d recordings without labels are left out. The first one: %s", len(faults), faults[0])
    write_json(folder / FINISHED, {"shards": number, "faults": faults})


def _choose(sound: UnlabelledSound, faults: list[str]) -> Iterator[Piece]:
    """Yield the pieces of the chosen clips; add what is wrong with recordings that cannot be read to `faults`."""
    sources, rows, max_clips = sound.sources, sound.rows, sound.max_clips
    measured = [_measure(source, usable, faults) for source, usable in zip(sources, rows, strict=True)]
    total = sum(int(counts.sum()) for counts in measured)
    chosen = np.ones(total, dtype=bool)
    if total > max_clips:
        chosen[:] = False
        chosen[np.random.default_rng(0).choice(total, max_clips, replace=False)] = True
    start = 0
    for source, usable, counts in zip(sources, rows, measured, strict=True):
        for row, count in zip(usable, counts, strict=True):
            wanted = np.flatnonzero(chosen[start : start + count])
            start += count
            # Neighbours are decoded together, but no more than a minute.
            breaks = np.flatnonzero((np.diff(wanted) != 1) | (wanted[1:] % SECONDS_PER_PIECE == 0)) + 1
            for seconds in np.split(wanted, breaks):
                if len(seconds):
                    assert not isinstance(source.recordings, datasets.IterableDataset)
                    audio = encoded_audio(source.recordings, row)
                    yield Piece(source.name(row), audio, int(seconds[0]), len(seconds), is_only=bool(count == 1))
    for source in sources:
        if isinstance(source.recordings, datasets.IterableDataset):
            for piece in _stream(source, source.recordings, faults):
                piece.count = min(piece.count, max_clips - total)
                if not piece.count:
                    return
                total += piece.count
                yield piece


def _measure(source: UnlabelledSource, rows: Sequence[int], faults: list[str]) -> np.ndarray:
    """Return the number of clips of recordings, 0 if they cannot be read."""
    recordings = source.recordings
    if isinstance(recordings, datasets.IterableDataset):
        return np.zeros(0, dtype=int)

    def measure(row: int) -> int | str:
        return _count_clips(encoded_audio(recordings, row), source.name(row))

    with ThreadPoolExecutor() as pool:
        counts = list(tqdm(pool.map(measure, rows), total=len(rows), unit=" files", desc="Measuring", leave=False))
    faults += [count for count in counts if isinstance(count, str)]
    return np.array([0 if isinstance(count, str) else count for count in counts], dtype=int)


def _count_clips(audio: EncodedAudio, name: str) -> int | str:
    """Return the number of clips of a recording, or what is wrong with it."""
    try:
        return max(1, int(audio_info(audio_source(audio, name), name=name).seconds + 1e-6))
    except (InputError, OSError) as error:
        return str(error)


def _stream(source: UnlabelledSource, stream: datasets.IterableDataset, faults: list[str]) -> Iterator[Piece]:
    for row, entry in enumerate(stream):
        count = _count_clips(entry["audio"], source.name(row))
        if isinstance(count, str):
            faults.append(count)
            continue
        for first in range(0, count, SECONDS_PER_PIECE):
            clips = min(SECONDS_PER_PIECE, count - first)
            yield Piece(source.name(row), entry["audio"], first, clips, is_only=count == 1)


def _take(pieces: Iterator[Piece], clips: int) -> list[Piece]:
    """Return the next pieces, until they have a number of clips."""
    taken: list[Piece] = []
    total = 0
    while total < clips and (piece := next(pieces, None)) is not None:
        taken.append(piece)
        total += piece.count
    return taken


def _cut(pieces: Sequence[Piece], sampling_rate: int) -> tuple[list[str], np.ndarray, list[str]]:
    """Return names and waveforms of the clips of pieces, and what is wrong with pieces that cannot be decoded."""

    def read(piece: Piece) -> np.ndarray | str:
        try:
            return _read_piece(piece, sampling_rate)
        except (InputError, OSError) as error:
            return str(error)

    with ThreadPoolExecutor() as pool:
        results = list(pool.map(read, pieces))
    filenames: list[str] = []
    for piece, clips in zip(pieces, results, strict=True):
        filenames += [] if isinstance(clips, str) else piece.filenames
    arrays = [clips for clips in results if not isinstance(clips, str)]
    waveforms = np.concatenate([np.empty((0, sampling_rate), np.int16), *arrays])
    return filenames, waveforms, [clips for clips in results if isinstance(clips, str)]


def _read_piece(piece: Piece, sampling_rate: int) -> np.ndarray:
    """Decode and resample the clips of a piece: int16 of shape (clips, sampling_rate)."""
    with AudioReader(audio_source(piece.audio, piece.name), name=piece.name) as reader:
        samples = read_part(reader, piece.first, piece.count, sampling_rate)
    wanted = piece.count * sampling_rate
    # Recordings of less than a second are repeated, and a sample that rounding took away is, too.
    samples = (
        np.resize(samples, wanted) if piece.is_only else np.pad(samples, (0, max(0, wanted - len(samples))), "edge")
    )
    return to_int16(samples[:wanted]).reshape(piece.count, sampling_rate)

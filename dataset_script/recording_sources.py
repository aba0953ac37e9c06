"""Finding labelled recordings: in folders with one folder per class, and in datasets."""

import logging
import os
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
from datasets import Audio, ClassLabel, Dataset, DatasetDict, Value
from datasets.exceptions import DatasetGenerationError

from dataset_script.audio import check_audio_file, is_audio_name, is_hidden
from dataset_script.errors import InputError


logger = logging.getLogger(__name__)

SPLITS = ("train", "test")
UNKNOWN = "unknown"
DATA_SUFFIXES = {".parquet", ".csv", ".jsonl"}
"""Suffixes of files that `datasets.load_dataset` reads."""

SAVED_MARKERS = ("dataset_dict.json", "state.json")
"""Files in a folder made by `save_to_disk`."""

JOINERS = {"\u200c", "\u200d"}
"""Invisible characters that names in some scripts, and of some emoji, need."""

STRINGS = {"string", "large_string"}
BINARIES = {"binary", "large_binary"}
INTEGERS = {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}

LAYOUT = "a folder with train/<label>/ and test/<label>/, or the id of a dataset on the Hub"


@dataclass
class Recording:
    """A labelled recording.

    Attributes:
        filename (`str`): Unique name.
        label (`str`): Its class.
        device (`str`): Recording device.
        load_audio (`Callable[[], dict]`): Returns its entry of the column `audio`, see `decode_clip`.
        name (`str`): Name in error messages.
    """

    filename: str
    label: str
    device: str
    load_audio: Callable[[], dict[str, Any]]
    name: str


def split_configuration(source: str) -> tuple[str, str | None]:
    """Split `<source>:<configuration>`; an existing folder is never split.

    Args:
        source (`str`): As for `load_recordings`.

    Returns:
        `tuple[str, str | None]`: Folder or id of the dataset, and the name of its configuration.
    """
    name, colon, configuration = source.rpartition(":")
    if not colon or os.path.isdir(os.path.expanduser(source)) or set(configuration) & {"/", "\\"}:
        return source, None
    return name, configuration or None


def find_recordings(source: str, cache_dir: str) -> dict[str, list[Recording]]:
    """Find the recordings of the splits `train` and `test`.

    Args:
        source (`str`): As for `load_recordings`.
        cache_dir (`str`): Cache folder of `datasets`.

    Raises:
        FileNotFoundError: If there is no such folder or dataset, or a class folder has no recordings.
        InputError: If a split, column or label is missing or invalid.
    """
    name, configuration = split_configuration(source)
    folder = Path(name).expanduser()
    if folder.is_dir() and (_has_class_folders(folder) or not _has_data(folder)):
        splits = _read_class_folders(folder)
    else:
        splits = {}
        for split in SPLITS:
            dataset = _load_split(str(folder) if folder.is_dir() else name, configuration, split, cache_dir)
            splits[split] = _read_rows(dataset, f"{source}, split {split!r}", folder)
        _make_unique(splits, source)
    names = {recording.label for recordings in splits.values() for recording in recordings}
    labels = {name: _clean_label(name) for name in names}
    for recordings in splits.values():
        for recording in recordings:
            recording.label = labels[recording.label]
    _warn_of_similar_labels(labels)
    return splits


def _clean_label(name: str) -> str:
    """Return the name of a class without spaces around it and in one Unicode form, as other systems may write it."""
    label = unicodedata.normalize("NFC", name).strip()
    invisible = [character for character in label if unicodedata.category(character) in ("Cc", "Cf", "Cs")]
    if set(invisible) - JOINERS:
        raise InputError(f"The class name {name!a} has control characters or is not UTF-8: rename it.")
    if not label:
        raise InputError(f"The class name {name!r} is empty: rename it.")
    return label


def _warn_of_similar_labels(labels: dict[str, str]) -> None:
    """Warn of class names that were written in several ways, or that differ only in case."""
    distinct = sorted(set(labels.values()), key=lambda label: (label.lower(), label))
    for label in distinct:
        written = sorted(name for name, clean in labels.items() if clean == label)
        if len(written) > 1:
            logger.warning("The class names %s are taken as one.", " and ".join(map(ascii, written)))
    for label, other in pairwise(distinct):
        if label.lower() == other.lower():
            logger.warning("The classes %r and %r differ only in case: rename one if they are the same.", label, other)


def _has_class_folders(folder: Path) -> bool:
    return any(
        is_audio_name(path) and not is_hidden(path.parent) for split in SPLITS for path in (folder / split).glob("*/*")
    )


def _has_data(folder: Path) -> bool:
    if any((folder / marker).is_file() for marker in SAVED_MARKERS):
        return True
    return any(path.suffix in DATA_SUFFIXES and not is_hidden(path) for path in folder.rglob("*"))


def _read_class_folders(folder: Path) -> dict[str, list[Recording]]:
    splits: dict[str, list[Recording]] = {}
    unused: list[Path] = []
    for split in SPLITS:
        recordings: list[Recording] = []
        used: set[Path] = set()
        entries = sorted(path for path in (folder / split).glob("*") if not is_hidden(path))
        if dangling := [path for path in entries if path.is_symlink() and not path.exists()]:
            raise FileNotFoundError(f"{dangling[0]} is a link to a missing folder: fetch its data or remove it.")
        classes = [path for path in entries if path.is_dir()]
        for path in classes:
            files = sorted(file for file in path.glob("*") if is_audio_name(file) and not file.is_dir())
            if not files:
                raise FileNotFoundError(
                    f"{path} contains no recordings that can be read (WAV, FLAC, OGG, MP3, AIFF): add some directly "
                    "in it, or remove it."
                )
            recordings += [_recording_of_file(file, folder) for file in files]
            used.update(files)
        if not recordings:
            raise FileNotFoundError(
                f"{folder / split} contains no recordings: put WAV, FLAC, Ogg, Opus, MP3 or AIFF files into one "
                f"folder per class, such as {folder / split / 'park' / 'recording.wav'}."
            )
        splits[split] = recordings
        unused += [path for path in _visible_files(folder / split) if path not in used]
    if unused:
        logger.warning(
            "%s: %d files are not used, such as %s: recordings are audio files directly in train/<label>/ and "
            "test/<label>/.",
            folder,
            len(unused),
            min(unused),
        )
    return splits


def _visible_files(folder: Path) -> Iterator[Path]:
    for parent, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not is_hidden(Path(name))]
        yield from (Path(parent, name) for name in files if not is_hidden(Path(name)))


def _recording_of_file(path: Path, folder: Path) -> Recording:
    try:
        str(path).encode()
    except UnicodeEncodeError:
        raise InputError(f"The name of {str(path)!a} is not UTF-8: rename it.") from None
    check_audio_file(path)
    audio = {"bytes": None, "path": str(path)}
    return Recording(str(path.relative_to(folder)), path.parent.name, UNKNOWN, lambda: audio, str(path))


def _load_split(name: str, configuration: str | None, split: str, cache_dir: str) -> Dataset:
    try:
        if not any(os.path.isfile(os.path.join(name, marker)) for marker in SAVED_MARKERS):
            return datasets.load_dataset(name, configuration, split=split, cache_dir=cache_dir)
        saved = datasets.load_from_disk(name)
        if isinstance(saved, DatasetDict) and split in saved:
            return saved[split]
        reason = "save a DatasetDict with the splits train and test"
    except FileNotFoundError:
        raise FileNotFoundError(f"{name} is neither a folder nor an available dataset: give {LAYOUT}.") from None
    except (DatasetGenerationError, ValueError, TypeError, pa.ArrowException) as error:
        reason = " ".join(str(error.__cause__ or error).split())[:300]
    raise InputError(f"The split {split!r} of {name} cannot be loaded ({reason}): give {LAYOUT}.")


def _read_rows(dataset: Dataset, name: str, folder: Path) -> list[Recording]:
    for column in ("audio", "label"):
        if column not in dataset.features:
            raise InputError(f"{name} has the columns {', '.join(dataset.column_names)}, but no {column!r}: add it.")
    audio = _cast_audio(dataset.select_columns("audio"), name)
    labels, devices = _read_names(dataset, "label", name), _read_names(dataset, "device", name)
    filenames = dataset["filename"][:] if "filename" in dataset.features else [None] * len(dataset)
    recordings = []
    for row, (label, device, filename) in enumerate(zip(labels, devices, filenames, strict=True)):
        if label is None:
            raise InputError(f"{name}, row {row} has no label: add one or remove the row.")

        def load_audio(row: int = row) -> dict[str, Any]:
            entry = audio[row]["audio"] or {"bytes": None, "path": None}
            if entry["bytes"] is None and entry["path"] is None:
                raise InputError(f"{name}, row {row} has no audio: add it or remove the row.")
            if entry["bytes"] is None and (folder / entry["path"]).is_file():
                entry["path"] = str(folder / entry["path"])
            return entry

        filename = None if filename is None else str(filename)
        recordings.append(Recording(filename or "", label, device or UNKNOWN, load_audio, f"{name}, row {row}"))
    return recordings


def _cast_audio(dataset: Dataset, name: str) -> Dataset:
    """Turn paths, file contents and structs of both into the type `Audio`."""
    feature = dataset.features["audio"]
    kinds = feature if isinstance(feature, dict) else {"path": feature}
    known = isinstance(feature, Audio) or (
        kinds.keys() <= {"bytes", "path"}
        and all(getattr(kind, "dtype", None) in STRINGS | BINARIES for kind in kinds.values())
    )
    if not known:
        raise InputError(
            f"{name}: the column 'audio' has the type {feature}, but needs audio files, their paths or their "
            "contents: encode arrays of samples with dataset_script.audio.encode_wav."
        )
    if isinstance(feature, Value) and feature.dtype in STRINGS:
        dataset = dataset.cast_column("audio", Value("string"))
    return dataset.cast_column("audio", Audio(decode=False))


def _read_names(dataset: Dataset, column: str, name: str) -> list[str | None]:
    """Return the names in a column of labels or devices; `None` for cells without one."""
    feature = dataset.features.get(column)
    if feature is None:
        return [None] * len(dataset)
    if isinstance(feature, ClassLabel):
        return [None if cell is None or cell < 0 else feature.int2str(cell) for cell in dataset[column][:]]
    if getattr(feature, "dtype", None) not in STRINGS | INTEGERS | {"bool"}:
        raise InputError(
            f"{name}: the column {column!r} has the type {feature}, but needs one name per row: use strings or a "
            "ClassLabel."
        )
    return [None if cell is None or not str(cell).strip() else str(cell) for cell in dataset[column][:]]


def _make_unique(splits: dict[str, list[Recording]], source: str) -> None:
    """Name recordings by split and row if there are no names, or if names are missing or repeated."""
    names = [recording.filename for recordings in splits.values() for recording in recordings]
    if len(set(names)) == len(names) and all(names):
        return
    if any(names):
        (name, repetitions), *_ = Counter(filter(None, names)).most_common(1)
        problem = f"the file name {name!r} is repeated" if repetitions > 1 else "some rows have no file name"
        logger.warning("%s: %s: using split and row instead of names.", source, problem)
    for split, recordings in splits.items():
        for row, recording in enumerate(recordings):
            recording.filename = f"{split}-{row:07}"

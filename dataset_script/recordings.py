"""Your own labelled recordings: folders with one folder per class, and datasets on the Hub."""

import io
from collections.abc import Iterator
from pathlib import Path

import datasets
import numpy as np
import soundfile
from datasets import Audio, ClassLabel, Dataset, DatasetDict, Features, List, Value
from datasets.exceptions import DatasetGenerationError

from dataset_script.clips import decode_clip
from dataset_script.errors import InputError
from dataset_script.logits import join_logits, read_logits


SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
UNKNOWN = "unknown"


def load_recordings(source: str, teacher_logits: dict[str, str] | None = None) -> DatasetDict:
    """Load labelled recordings of any length and rate as one-second clips with the columns of `load_scenes`.

    Longer recordings are cut into consecutive clips, of which the last one overlaps so that it ends with the
    recording; shorter ones are repeated. The clips of a recording share a `location`, so that training and validation
    never share a recording. `city` is unknown, and so is `device` unless the source has such a column.

    Args:
        source (`str`): A folder with WAV, FLAC, OGG or MP3 files in `train/<label>/` and `test/<label>/`; or a dataset
            for `datasets.load_dataset`, a folder or an id on the Hub, with the splits `train` and `test` and the
            columns `audio`, `label` and optionally `device`. `<source>:<configuration>` selects one of several
            configurations.
        teacher_logits (`dict[str, str]`, *optional*): Logits datasets, as for `load_scenes`.

    Returns:
        `DatasetDict`: The splits `train` and `test`.

    Raises:
        FileNotFoundError: If there is no such folder or dataset.
        InputError: If a split, class or column is missing, a recording cannot be used, or logits do not match.
    """
    source, _, config_name = source.partition(":")
    folder = Path(source).expanduser()
    if folder.is_dir() and not any(folder.rglob("*.parquet")):
        splits = {split: _files(folder / split) for split in ("train", "test")}
    else:
        splits = {split: _rows(source, config_name or None, split) for split in ("train", "test")}
    names = {
        column: sorted({row[column] for rows in splits.values() for row in rows}) for column in ("label", "device")
    }
    if len(names["label"]) < 2:
        raise InputError(f"{source} has only the class {names['label'][0]!r}: at least two classes are needed.")
    for label in names["label"]:
        if all(row["label"] != label for row in splits["train"]):
            raise InputError(f"{source} has the class {label!r} only in its test split: add some of it to train.")
    features = Features(
        {
            "audio": {"bytes": Value("binary"), "path": Value("string")},
            "filename": Value("string"),
            "label": ClassLabel(names=names["label"]),
            "device": ClassLabel(names=names["device"]),
            "city": ClassLabel(names=[UNKNOWN]),
            "location": Value("int32"),
            "segment": Value("int32"),
        }
    )
    try:
        clips = {
            split: Dataset.from_generator(_clips, features=features, gen_kwargs={"recordings": rows}, split=split)
            for split, rows in splits.items()
        }
    except DatasetGenerationError as error:
        raise error.__cause__ or error from None
    # Writing rows to an Audio column needs torchcodec, casting a column does not.
    scenes = DatasetDict(clips).cast_column("audio", Audio(decode=False))
    feature = List(Value("float32"), length=len(names["label"]))
    for name, path in (teacher_logits or {}).items():
        logits = read_logits(path, names["label"])
        for split, rows in scenes.items():
            # Students are trained on the logits, so test clips do not need them.
            column = join_logits(name, logits, rows["filename"], optional=split == "test")
            scenes[split] = rows.add_column(f"teacher_logits_{name}", column, feature=feature)
    return scenes


def _files(folder: Path) -> list[dict]:
    files = sorted(path for path in folder.glob("*/*") if path.suffix.lower() in SUFFIXES)
    if not files:
        raise FileNotFoundError(
            f"{folder} contains no recordings: put {', '.join(SUFFIXES)} files into one folder per class, such as "
            f"{folder / 'park' / 'recording.wav'}."
        )
    classes = {path.parent for path in files}
    if empty := sorted(path for path in folder.glob("[!.]*") if path.is_dir() and path not in classes):
        raise FileNotFoundError(f"{empty[0]} contains no recordings: add some directly in it, or remove it.")
    return [
        {
            "audio": {"bytes": None, "path": str(path)},
            "filename": str(path.relative_to(folder.parent)),
            "label": path.parent.name,
            "device": UNKNOWN,
            "location": index,
            "state": path.stat().st_mtime_ns,  # part of the cache key: replaced files are read again
        }
        for index, path in enumerate(files)
    ]


def _rows(source: str, config_name: str | None, split: str) -> list[dict]:
    try:
        dataset = datasets.load_dataset(source, config_name, split=split)
    except FileNotFoundError:
        raise FileNotFoundError(
            f"{source} is neither a folder nor an available dataset: give a folder with train/<label>/ and "
            "test/<label>/, or the id of a dataset on the Hub."
        ) from None
    except ValueError as error:
        raise InputError(
            f"The split {split!r} of {source} cannot be loaded ({' '.join(str(error).split())})."
        ) from None
    for column in ("audio", "label"):
        if column not in dataset.features:
            raise InputError(f"{source} has the columns {', '.join(dataset.column_names)}, but no {column!r}.")
    dataset = dataset.cast_column("audio", Audio(decode=False))
    names = {}
    for column in ("label", "device"):
        feature = dataset.features.get(column)
        values = dataset[column] if feature is not None else [UNKNOWN] * len(dataset)
        names[column] = [feature.int2str(value) if isinstance(feature, ClassLabel) else str(value) for value in values]
    filenames = (
        dataset["filename"] if "filename" in dataset.features else [f"{split}-{i:07}" for i in range(len(dataset))]
    )
    return [
        {"audio": audio, "filename": filename, "label": label, "device": device, "location": index}
        for index, (audio, filename, label, device) in enumerate(
            zip(dataset["audio"], filenames, names["label"], names["device"], strict=True)
        )
    ]


def _clips(recordings: list[dict]) -> Iterator[dict]:
    for recording in recordings:
        samples, rate = decode_clip(recording["audio"])
        mono = samples if samples.ndim == 1 else samples.mean(axis=1)
        if len(mono) == 0:
            raise InputError(f"{recording['filename']} is empty: remove it.")
        if not np.isfinite(mono).all():
            raise InputError(f"{recording['filename']} has NaN or infinite samples: remove or replace it.")
        starts = [*range(0, len(mono) - rate, rate), max(0, len(mono) - rate)]
        for segment, start in enumerate(starts):
            clip = np.resize(mono[start : start + rate], rate)  # repeats a shorter recording
            wav = io.BytesIO()
            soundfile.write(wav, clip, rate, format="WAV", subtype="PCM_24")
            yield {
                "audio": {"bytes": wav.getvalue(), "path": None},
                "filename": recording["filename"] if len(starts) == 1 else f"{recording['filename']}#{segment}",
                "label": recording["label"],
                "device": recording["device"],
                "city": UNKNOWN,
                "location": recording["location"],
                "segment": segment,
            }

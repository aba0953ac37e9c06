"""Your own labelled recordings as one-second clips."""

import hashlib
import logging
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
from datasets import Audio, ClassLabel, Dataset, DatasetDict, Features, List, NamedSplit, Value
from datasets.utils import tqdm

from dataset_script.audio import AudioReader, encode_wav
from dataset_script.checksums import is_intact, write_checksum
from dataset_script.clips import audio_state
from dataset_script.errors import InputError
from dataset_script.files import atomic_path, locked
from dataset_script.logits import join_logits, read_logits
from dataset_script.recording_sources import UNKNOWN, Recording, find_recordings


logger = logging.getLogger(__name__)

CLIPS_PER_BATCH = 100


def load_recordings(
    source: str, teacher_logits: dict[str, str] | None = None, cache_dir: str | os.PathLike | None = None
) -> DatasetDict:
    """Load labelled recordings of any length and rate as one-second clips with the columns of `load_scenes`.

    Longer recordings are cut into consecutive clips, of which the last one overlaps so that it ends with the
    recording; shorter ones are repeated. The clips of a recording share a `location`, so that training and validation
    never share a recording. `city` is unknown, and so is `device` unless the source has such a column.

    Args:
        source (`str`): A folder with audio files in `train/<label>/` and `test/<label>/`; or a dataset for
            `datasets.load_dataset`, a folder or an id on the Hub, or a folder made by `save_to_disk`, with the splits
            `train` and `test` and the columns `audio`, `label` and optionally `device` and `filename`.
            `<source>:<configuration>` selects one of several configurations.
        teacher_logits (`dict[str, str]`, *optional*): Logits datasets, as for `load_scenes`.
        cache_dir (`str` or `os.PathLike`, *optional*): Cache folder, defaults to that of `datasets`.

    Returns:
        `DatasetDict`: The splits `train` and `test`.

    Raises:
        FileNotFoundError: If there is no such folder or dataset, or a recording does not exist.
        InputError: If a split, class, column or label is missing, a recording cannot be used, or logits do not match.
        OSError: If the clips do not fit on the disk, or the cache cannot be written to.
    """
    cache = Path(cache_dir or datasets.config.HF_DATASETS_CACHE)
    splits = find_recordings(source, str(cache))
    labels = sorted({recording.label for recordings in splits.values() for recording in recordings})
    devices = sorted({recording.device for recordings in splits.values() for recording in recordings})
    if len(labels) < 2:
        raise InputError(f"{source} has only the class {labels[0]!r}: at least two classes are needed.")
    if only_tested := sorted(set(labels) - {recording.label for recording in splits["train"]}):
        raise InputError(f"{source} has the class {only_tested[0]!r} only in its test split: add some of it to train.")
    features = Features(
        {
            "audio": Audio(decode=False),
            "filename": Value("string"),
            "label": ClassLabel(names=labels),
            "device": ClassLabel(names=devices),
            "city": ClassLabel(names=[UNKNOWN]),
            "location": Value("int32"),
            "segment": Value("int32"),
        }
    )
    scenes = DatasetDict(
        {split: _cached_clips(cache / "recordings", split, rows, features) for split, rows in splits.items()}
    )
    feature = List(Value("float32"), length=len(labels))
    for name, path in (teacher_logits or {}).items():
        logits = read_logits(path, labels)
        for split, rows in scenes.items():
            # Students are trained on the logits, so test clips do not need them.
            column = join_logits(name, logits, rows["filename"], optional=split == "test")
            scenes[split] = rows.add_column(f"teacher_logits_{name}", column, feature=feature)
    return scenes


def _cached_clips(folder: Path, split: str, recordings: list[Recording], features: Features) -> Dataset:
    """Cut recordings into clips, or load the cached result of an earlier call."""
    path = folder / f"{split}-{_content_key(recordings, features)}.arrow"
    if not is_intact(path):
        with locked(path.with_suffix(".lock")):
            if not is_intact(path):
                if path.exists():
                    logger.warning("The cached clips %s are damaged and will be written again.", path)
                _write_clips(path, split, recordings, features)
                write_checksum(path)
    return Dataset.from_file(str(path), split=NamedSplit(split))


def _content_key(recordings: list[Recording], features: Features) -> str:
    digest = hashlib.sha256(repr(features).encode())
    for recording in recordings:
        row = (recording.filename, recording.label, recording.device, audio_state(recording.load_audio()))
        digest.update(repr(row).encode())
    return digest.hexdigest()[:20]


def _write_clips(path: Path, split: str, recordings: list[Recording], features: Features) -> None:
    with (
        atomic_path(path) as part,
        open(part, "wb") as file,
        pa.ipc.new_stream(file, features.arrow_schema) as writer,
    ):
        progress = tqdm(recordings, unit=" recordings", desc=f"Cutting {split}")
        rows = (row for location, recording in enumerate(progress) for row in _clips(recording, location, features))
        while batch := list(islice(rows, CLIPS_PER_BATCH)):
            writer.write_batch(pa.RecordBatch.from_pylist(batch, schema=features.arrow_schema))


def _clips(recording: Recording, location: int, features: Features) -> Iterator[dict]:
    label, device = features["label"].str2int(recording.label), features["device"].str2int(recording.device)
    audio = recording.load_audio()
    source = audio["path"] if audio["bytes"] is None else audio["bytes"]
    with AudioReader(source, name=recording.name) as reader:
        for segment, clip, is_only in _cut(reader):
            yield {
                "audio": {"bytes": encode_wav(clip, reader.sampling_rate), "path": None},
                "filename": recording.filename if is_only else f"{recording.filename}#{segment}",
                "label": label,
                "device": device,
                "city": 0,
                "location": location,
                "segment": segment,
            }


def _cut(reader: AudioReader) -> Iterator[tuple[int, np.ndarray, bool]]:
    """Cut a recording into clips of one second: yields number, samples, and whether it is the only one."""
    rate, segment = reader.sampling_rate, 0
    previous = rest = np.empty(0, np.float32)
    for block in reader.blocks():
        rest = np.concatenate([rest, block.mean(axis=1)])
        # The last clip is left over, for it may have to be filled up.
        for start in range(0, len(rest) - rate, rate):
            previous = rest[start : start + rate]
            yield segment, previous, False
            segment += 1
        rest = rest[max(0, -(-(len(rest) - rate) // rate)) * rate :]
    if segment:
        yield segment, np.concatenate([previous, rest])[-rate:], False
    else:
        yield 0, np.resize(rest, rate), True

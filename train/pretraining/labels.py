"""Lists of labels, as AudioSet has them: any number for each clip."""

import csv
import logging
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np

from dataset_script.errors import InputError
from train.pretraining.crops import SUFFIXES, audio_files, load_hub_audio


logger = logging.getLogger(__name__)


def load_tagged(
    dataset: str,
    labels: str | None = None,
    dataset_config: str | None = None,
    split: str = "train",
    cache_dir: str | None = None,
) -> tuple[list[Path] | datasets.Dataset, list[list[str]]]:
    """Find audio and the labels of each clip.

    Args:
        dataset (`str`): With `labels` a folder, searched for audio files at any depth. Without, whatever
            `datasets.load_dataset` takes, with the columns `audio` and `labels`, a list.
        labels (`str`, *optional*): CSV file: in the first column a file, by its path in the folder or by its name with
            or without suffix; the labels, separated by commas, in the column named `labels`, or in the last one. This
            is the format of AudioSet's lists of segments, whose files may also be called Y and the identifier.
        dataset_config (`str`, *optional*): Configuration of a dataset on the Hub.
        split (`str`, *optional*, defaults to `"train"`): Split of a dataset on the Hub.
        cache_dir (`str`, *optional*): Where datasets are kept.

    Returns:
        The clips, as [`~train.pretraining.crops.load_unlabelled`] gives them, and the names of each one's labels.

    Raises:
        FileNotFoundError: If there is no such source, or the folder holds none of the files.
        InputError: If a clip has no label, a file is ambiguous, a folder comes without labels, or the dataset lacks a
            column.
    """
    if labels is not None:
        return _folder_with_list(dataset, Path(labels))
    if audio_files(dataset):
        raise InputError(f"{dataset} is a folder of audio files: name the lists of their labels.")
    loaded = load_hub_audio(dataset, dataset_config, split, cache_dir=cache_dir)
    feature = loaded.features.get("labels")
    if not isinstance(feature, datasets.List):
        raise InputError(f"{dataset} has no column 'labels' with a list for each clip: for a folder name a CSV file.")
    names = getattr(feature.feature, "names", None)
    labels_of_clips = loaded.select_columns(["labels"])[:]["labels"]
    tags = [[names[tag] if names else str(tag) for tag in row] for row in labels_of_clips]
    if [] in tags:
        raise InputError(f"Clip {tags.index([])} of {dataset} has no label: leave it out.")
    return loaded.select_columns(["audio"]), tags


def _folder_with_list(folder: str, path: Path) -> tuple[list[Path], list[list[str]]]:
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no list of labels {path}: give a CSV file with a file and its labels a line."
        )
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder} is no folder: give the one with the files of the lists.")
    by_stem: dict[str, list[Path]] = {}
    for file in audio_files(folder):
        by_stem.setdefault(file.stem, []).append(file)
    files, tags, absent = [], [], []
    with path.open(encoding="utf-8-sig", newline="") as stream:
        lines = (line for line in stream if line.strip() and not line.startswith("#"))
        column = -1
        for number, row in enumerate(csv.reader(lines, skipinitialspace=True)):
            if number == 0 and "labels" in row:
                column = row.index("labels")
                continue
            name = row[0].strip()
            cell = row[column] if len(row) > max(column, 1) else ""
            own = [label.strip() for label in cell.split(",") if label.strip()]
            if not own:
                raise InputError(f"{path} gives {name!r} no label: each line needs a file and its labels.")
            stem = Path(name).stem if Path(name).suffix.lower() in SUFFIXES else name
            candidates = by_stem.get(stem) or by_stem.get(f"Y{stem}", [])
            if (Path(folder) / name).is_file():
                candidates = [Path(folder) / name]
            if len(candidates) > 1:
                raise InputError(
                    f"{path} names {name!r}, which is {' and '.join(map(str, candidates[:2]))}: give paths."
                )
            if candidates:
                files.append(candidates[0])
                tags.append(own)
            else:
                absent.append(name)
    if not files:
        fault = (
            f"{folder} holds none of the {len(absent)} files in {path}, such as {absent[0]}"
            if absent
            else f"{path} lists no files"
        )
        raise FileNotFoundError(f"{fault}: give the folder with the files of the list.")
    if absent:
        logger.warning(
            "%d of %d files in %s are not there, such as %s.", len(absent), len(absent + tags), path, absent[0]
        )
    return files, tags


def load_class_names(path: str) -> dict[str, str]:
    """Return, from a label to its name, what AudioSet's `class_labels_indices.csv` says, in the order of its indices.

    Raises:
        FileNotFoundError: If there is no such file.
        InputError: If it lacks the columns `index`, `mid` and `display_name`.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no list of classes {path}: give class_labels_indices.csv of AudioSet.")
    with open(path, encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    if not rows or not {"index", "mid", "display_name"} <= rows[0].keys():
        raise InputError(f"{path} lacks the columns index, mid and display_name of AudioSet's list of classes.")
    return {row["mid"]: row["display_name"] for row in sorted(rows, key=lambda row: int(row["index"]))}


def class_indices(tags: Sequence[Sequence[str]], classes: Sequence[str]) -> list[list[int]]:
    """Return the index in `classes` of each label of each clip.

    Raises:
        InputError: If a label is not among the classes.
    """
    index = {name: number for number, name in enumerate(classes)}
    if unknown := {tag for row in tags for tag in row} - index.keys():
        raise InputError(
            f"{len(unknown)} labels are not among the {len(index)} classes to train, such as {min(unknown)!r}: leave "
            "their clips out, or list all classes."
        )
    return [[index[tag] for tag in row] for row in tags]


def multi_hot(tags: Sequence[Sequence[int]], num_classes: int) -> np.ndarray:
    """Return 1 where a clip has a class and 0 elsewhere, `(clips, num_classes)`, float32."""
    target = np.zeros((len(tags), num_classes), dtype=np.float32)
    for row, own in zip(target, tags, strict=True):
        row[own] = 1
    return target

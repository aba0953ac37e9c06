"""Lists of labels, as AudioSet has them: any number of labels for each clip."""

import csv
import logging
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np

from dataset_script.audio import AUDIO_SUFFIXES, find_audio
from dataset_script.demo_sounds import DEMO_SOUNDS, LABEL_FILES
from dataset_script.errors import InputError
from train.common.sources import load_hub_audio, local_folder


logger = logging.getLogger(__name__)


def load_tagged(
    dataset: str,
    label_file: str | None = None,
    dataset_config: str | None = None,
    split: str = "train",
    cache_dir: str | None = None,
) -> tuple[list[Path] | datasets.Dataset, list[list[str]]]:
    """Find audio and the labels of each clip.

    Args:
        dataset (`str`): With `label_file` a folder, searched for audio files at any depth. Without it anything that
            `datasets.load_dataset` accepts, with the columns `audio` and `labels`, a list; or `"demo_sounds"`,
            synthetic recordings with lists of their own.
        label_file (`str`, *optional*): CSV file. The first column contains a file: its path in the folder, or its name
            with or without suffix. The column `labels`, or else the last one, contains its labels, separated by
            commas. This is the format of AudioSet's lists, where files may also be named Y and the identifier.
        dataset_config (`str`, *optional*): Configuration of a dataset on the Hub.
        split (`str`, *optional*, defaults to `"train"`): Split of a dataset on the Hub.
        cache_dir (`str`, *optional*): Cache folder for datasets.

    Returns:
        `tuple`: The clips, as files or as a dataset with the column `audio`, and the labels of each clip.

    Raises:
        FileNotFoundError: If a source does not exist, or the folder contains none of the files.
        InputError: If a clip has no label, a file is ambiguous, a folder has no list of labels, or the dataset lacks a
            column.
    """
    folder = local_folder(dataset, cache_dir)
    if label_file is None and dataset == DEMO_SOUNDS:
        label_file = str(Path(folder) / LABEL_FILES[split])
    if label_file is not None:
        return _folder_with_list(folder, Path(label_file))
    if find_audio(dataset):
        raise InputError(f"{dataset} is a folder of audio files: set --labels and --test_labels to their CSV files.")
    loaded = load_hub_audio(dataset, dataset_config, split, cache_dir=cache_dir)
    feature = loaded.features.get("labels")
    if not isinstance(feature, datasets.List):
        raise InputError(
            f"{dataset} has no column 'labels' with a list for each clip: choose another dataset, or a folder and CSV "
            "files with its labels."
        )
    names = getattr(feature.feature, "names", None)
    column = loaded.select_columns(["labels"])[:]["labels"]
    labels = [[names[label] if names else str(label) for label in row] for row in column]
    if [] in labels:
        raise InputError(f"Clip {labels.index([])} of {dataset} has no label: remove it.")
    return loaded.select_columns(["audio"]), labels


def _folder_with_list(folder: str, path: Path) -> tuple[list[Path], list[list[str]]]:
    if not path.is_file():
        raise FileNotFoundError(
            f"The list of labels {path} does not exist: choose a CSV file with a file and its labels per line."
        )
    if not Path(folder).is_dir():
        raise FileNotFoundError(f"{folder} is not a folder: choose the one with the files of the lists.")
    by_stem: dict[str, list[Path]] = {}
    for file in find_audio(folder):
        by_stem.setdefault(file.stem, []).append(file)
    files, labels, absent = [], [], []
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
                raise InputError(f"{path} has no label for {name!r}: each line needs a file and its labels.")
            stem = Path(name).stem if Path(name).suffix.lower() in AUDIO_SUFFIXES else name
            candidates = by_stem.get(stem) or by_stem.get(f"Y{stem}", [])
            if (Path(folder) / name).is_file():
                candidates = [Path(folder) / name]
            if len(candidates) > 1:
                raise InputError(
                    f"{path} names {name!r}, which may be {' or '.join(map(str, candidates[:2]))}: use paths in the "
                    "folder."
                )
            if candidates:
                files.append(candidates[0])
                labels.append(own)
            else:
                absent.append(name)
    if not files:
        fault = (
            f"{folder} contains none of the {len(absent)} files in {path}, such as {absent[0]}"
            if absent
            else f"{path} lists no files"
        )
        raise FileNotFoundError(f"{fault}: choose the folder with the files of the list.")
    if absent:
        logger.warning(
            "%d of %d files in %s do not exist and are skipped, such as %s.",
            len(absent),
            len(absent + labels),
            path,
            absent[0],
        )
    return files, labels


def load_class_names(path: str) -> dict[str, str]:
    """Return the name of each class in AudioSet's `class_labels_indices.csv`, by its label and ordered by its index.

    Args:
        path (`str`): The CSV file.

    Raises:
        FileNotFoundError: If the file does not exist.
        InputError: If it lacks the columns `index`, `mid` and `display_name`.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"The list of classes {path} does not exist: use AudioSet's class_labels_indices.csv.")
    with open(path, encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    if not rows or not {"index", "mid", "display_name"} <= rows[0].keys():
        raise InputError(
            f"{path} lacks the columns index, mid and display_name: use AudioSet's class_labels_indices.csv."
        )
    return {row["mid"]: row["display_name"] for row in sorted(rows, key=lambda row: int(row["index"]))}


def class_indices(labels: Sequence[Sequence[str]], classes: Sequence[str]) -> list[list[int]]:
    """Return the class indices of each clip.

    Args:
        labels (`Sequence[Sequence[str]]`): Labels of each clip.
        classes (`Sequence[str]`): All labels, in the order of the classes.

    Raises:
        InputError: If a label is not among the classes.
    """
    index = {label: number for number, label in enumerate(classes)}
    if unknown := {label for row in labels for label in row} - index.keys():
        raise InputError(
            f"{len(unknown)} labels are not among the {len(index)} classes to train, such as {min(unknown)!r}: remove "
            "their clips, or list all classes in --class_names."
        )
    return [[index[label] for label in row] for row in labels]


def multi_hot(indices: Sequence[Sequence[int]], num_classes: int) -> np.ndarray:
    """Encode the class indices of clips as 0 and 1.

    Args:
        indices (`Sequence[Sequence[int]]`): Class indices of each clip.
        num_classes (`int`): Number of classes.

    Returns:
        `np.ndarray` of shape `(clips, num_classes)`, float32.
    """
    target = np.zeros((len(indices), num_classes), dtype=np.float32)
    for row, own in zip(target, indices, strict=True):
        row[own] = 1
    return target

"""Clips with any number of labels each, as AudioSet has them: data, trainer and mean average precision."""

import csv
import logging
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.feature_extraction_utils import FeatureExtractionMixin

from train.pretraining import SegmentTrainer
from train.unlabelled import (
    SUFFIXES,
    SegmentCollator,
    Segments,
    audio_files,
    audio_of,
    durations,
    load_hub_audio,
    read_segment,
)


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
        The clips, as [`~train.unlabelled.load_unlabelled`] gives them, and the names of each one's labels.

    Raises:
        FileNotFoundError: If there is no such source, or the folder holds none of the files.
        ValueError: If a clip has no label, a file is ambiguous, a folder comes without labels, or the dataset lacks a
            column.
    """
    if labels is not None:
        return _folder_with_list(dataset, Path(labels))
    if audio_files(dataset):
        raise ValueError(f"{dataset} is a folder of audio files: name the lists of their labels.")
    loaded = load_hub_audio(dataset, dataset_config, split, cache_dir=cache_dir)
    feature = loaded.features.get("labels")
    if not isinstance(feature, datasets.List):
        raise ValueError(f"{dataset} has no column 'labels' with a list for each clip: for a folder name a CSV file.")
    names = getattr(feature.feature, "names", None)
    labels_of_clips = loaded.select_columns(["labels"])[:]["labels"]
    tags = [[names[tag] if names else str(tag) for tag in row] for row in labels_of_clips]
    if [] in tags:
        raise ValueError(f"Clip {tags.index([])} of {dataset} has no label: leave it out.")
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
                raise ValueError(f"{path} gives {name!r} no label: each line needs a file and its labels.")
            stem = Path(name).stem if Path(name).suffix.lower() in SUFFIXES else name
            candidates = by_stem.get(stem) or by_stem.get(f"Y{stem}", [])
            if (Path(folder) / name).is_file():
                candidates = [Path(folder) / name]
            if len(candidates) > 1:
                raise ValueError(
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
        ValueError: If it lacks the columns `index`, `mid` and `display_name`.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"There is no list of classes {path}: give class_labels_indices.csv of AudioSet.")
    with open(path, encoding="utf-8-sig", newline="") as stream:
        rows = list(csv.DictReader(stream))
    if not rows or not {"index", "mid", "display_name"} <= rows[0].keys():
        raise ValueError(f"{path} lacks the columns index, mid and display_name of AudioSet's list of classes.")
    return {row["mid"]: row["display_name"] for row in sorted(rows, key=lambda row: int(row["index"]))}


def class_indices(tags: Sequence[Sequence[str]], classes: Sequence[str]) -> list[list[int]]:
    """Return the index in `classes` of each label of each clip.

    Raises:
        ValueError: If a label is not among the classes.
    """
    index = {name: number for number, name in enumerate(classes)}
    if unknown := {tag for row in tags for tag in row} - index.keys():
        raise ValueError(
            f"{len(unknown)} labels are not among the {len(index)} classes to train, such as {min(unknown)!r}: leave "
            "their clips out, or list all classes."
        )
    return [[index[tag] for tag in row] for row in tags]


class TaggedSegments(Segments):
    """Segments of labelled audio, each with the labels of its whole recording.

    Args:
        source, seconds, sampling_rate, seed: As for [`~train.unlabelled.Segments`].
        tags (`list[list[int]]`): Classes of each recording.
        num_classes (`int`): Number of classes.
        balanced (`bool`, *optional*, defaults to `False`): Draw clips by the sum of their classes' inverse frequency,
            so that rare classes are heard as often as common ones.
    """

    def __init__(
        self,
        source: list[Path] | datasets.Dataset,
        tags: list[list[int]],
        num_classes: int,
        seconds: float,
        sampling_rate: int,
        seed: int,
        balanced: bool = False,
    ):
        self.tags = tags
        self.num_classes = num_classes
        super().__init__(source, seconds, sampling_rate, seed)
        self.weights = None
        if balanced:
            frequency = Counter(tag for clip in self.clips for tag in tags[clip])
            weights = [sum(1 / frequency[tag] for tag in row) for row in tags]
            self.weights = torch.tensor(weights, dtype=torch.float64)[self.clips]

    def __getitem__(self, index: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        return super().__getitem__(index), multi_hot([self.tags[self.clips[index[1]]]], self.num_classes)[0]


def multi_hot(tags: Sequence[Sequence[int]], num_classes: int) -> np.ndarray:
    """Return 1 where a clip has a class and 0 elsewhere, `(clips, num_classes)`, float32."""
    target = np.zeros((len(tags), num_classes), dtype=np.float32)
    for row, own in zip(target, tags, strict=True):
        row[own] = 1
    return target


class TaggedCollator(SegmentCollator):
    """Repeat segments to one length, and stack them with their labels, `(batch_size, num_classes)`."""

    def __call__(self, rows: Sequence[tuple[np.ndarray, np.ndarray]]) -> dict[str, Tensor]:
        """Stack `rows` of [`TaggedSegments`]."""
        segments, labels = zip(*rows, strict=True)
        return {**super().__call__(segments), "labels": torch.from_numpy(np.stack(labels))}


class TaggingTrainer(SegmentTrainer):
    """Train a classifier of any number of labels: SpecAugment, mixup, then binary cross-entropy over all classes.

    Args:
        model (`PreTrainedModel`): With `problem_type` `multi_label_classification`.
        args (`TaggingArguments`): Recipe of the run.
        feature_extractor (`FeatureExtractionMixin`): Makes filter banks. Saved with the model.
        train_dataset (`TaggedSegments`): Clips, of which shorter ones are repeated to `args.segment_seconds`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: Any,
        feature_extractor: FeatureExtractionMixin,
        train_dataset: TaggedSegments,
    ):
        samples = round(args.segment_seconds * feature_extractor.sampling_rate)
        super().__init__(model, args, feature_extractor, train_dataset, TaggedCollator(samples))
        self.spec_augment, self.mixup = args.augmentations()

    def noise(self, clips: int) -> dict[str, Tensor]:
        """As the base class, with clips that have no label."""
        return {**super().noise(clips), "labels": torch.zeros(clips, self.model.config.num_labels)}

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Return the loss of this process' rows, weighted so that the mean over processes is that over all rows."""
        rows = self.rows
        # Partners may be rows of other processes.
        features, labels = rows.gather(self.features(inputs["waveform"])[0]), rows.gather(inputs["labels"])
        if self.spec_augment is not None:
            features = self.spec_augment(features, self._generator)
        if self.mixup is not None:
            features, mix = self.mixup(features, self._generator)
            labels = mix(labels)
        loss = model(features[rows.work], labels=labels[rows.work]).loss
        return loss * (rows.count * self.args.world_size / rows.total)


class FirstSeconds:
    """The beginning of each clip, of one length, for a slice of the clips at a time.

    Args:
        source, seconds, sampling_rate: As for [`~train.unlabelled.Segments`]; shorter clips are repeated.

    Raises:
        ValueError: If a file in a folder cannot be read.
    """

    def __init__(self, source: list[Path] | datasets.Dataset, seconds: float, sampling_rate: int):
        if isinstance(source, list):
            durations(source)
        self.source = source
        self.seconds = seconds
        self.sampling_rate = sampling_rate

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, rows: slice) -> np.ndarray:
        clips = [audio_of(self.source, row) for row in range(*rows.indices(len(self)))]
        samples = round(self.seconds * self.sampling_rate)
        return np.stack(
            [np.resize(read_segment(clip, self.seconds, self.sampling_rate, 0.0), samples) for clip in clips]
        )


def tagging_metrics(logits: np.ndarray, targets: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    """Return the mean average precision (AudioSet's mAP), and what stands behind it.

    Args:
        logits (`np.ndarray` of shape `(clips, classes)`): Scores; only their order counts.
        targets (`np.ndarray` of shape `(clips, classes)`): 0 and 1.
        class_names (`Sequence[str]`): Names of the classes.

    Returns:
        `clips`; `map`, the mean over the classes that occur; `chance`, what random scores would give (the mean of the
        classes' frequencies); and `average_precision` by class, None for one that does not occur.
    """
    occurs = targets.any(axis=0)
    precision = np.atleast_1d(average_precision_score(targets[:, occurs], logits[:, occurs], average=None))
    by_class = dict(zip(np.flatnonzero(occurs).tolist(), precision.tolist(), strict=True))
    return {
        "clips": len(targets),
        "map": float(precision.mean()),
        "chance": float(targets[:, occurs].mean()),
        "average_precision": {name: by_class.get(index) for index, name in enumerate(class_names)},
    }

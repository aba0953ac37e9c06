"""Clips with any number of labels each, as AudioSet has them: data, trainer and mean average precision."""

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

from train.pretraining.crops import SegmentCollator, Segments, audio_of, durations, read_segment
from train.pretraining.labels import multi_hot
from train.pretraining.trainers import SegmentTrainer


class TaggedSegments(Segments):
    """Segments of labelled audio, each with the labels of its whole recording.

    Args:
        source, seconds, sampling_rate, seed: As for [`~train.pretraining.crops.Segments`].
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
        source, seconds, sampling_rate: As for [`~train.pretraining.crops.Segments`]; shorter clips are repeated.

    Raises:
        InputError: If a file in a folder cannot be read.
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

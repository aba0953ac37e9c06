"""Fine-tuning on clips with any number of labels each: dataset, trainer and mean average precision."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from sklearn.metrics import average_precision_score
from torch import Tensor, nn

from modeling_beats import BeatsFeatureExtractor, BeatsForAudioClassification
from train.common.sources import durations, encoded_audio, read_crop
from train.pretraining.crops import Crops
from train.pretraining.labels import multi_hot
from train.pretraining.trainers import CropTrainer
from train.pretraining.training_arguments import TaggingArguments


class TaggedCrops(Crops):
    """Crops of labelled recordings, each with the labels of its whole recording.

    An item has `labels` of shape `(num_classes,)`, 0 or 1, besides its `waveform`.

    Args:
        source, seconds, sampling_rate, seed: As for [`~train.pretraining.crops.Crops`].
        labels (`list[list[int]]`): Class indices of each recording.
        num_classes (`int`): Number of classes.
        balanced (`bool`, *optional*, defaults to `False`): Draw clips by the sum of the inverse frequencies of their
            classes, so that rare classes occur about as often as common ones.
    """

    def __init__(
        self,
        source: list[Path] | datasets.Dataset,
        labels: list[list[int]],
        num_classes: int,
        seconds: float,
        sampling_rate: int,
        seed: int,
        balanced: bool = False,
    ):
        self.labels = labels
        self.num_classes = num_classes
        super().__init__(source, seconds, sampling_rate, seed)
        if balanced:
            frequency = Counter(label for recording in self.recordings for label in labels[recording])
            weights = [sum(1 / frequency[label] for label in own) for own in labels]
            self.weights = torch.tensor(weights, dtype=torch.float64)[self.recordings]

    def __getitem__(self, index: tuple[int, int]) -> dict[str, np.ndarray]:
        labels = self.labels[self.recordings[index[1]]]
        return {**super().__getitem__(index), "labels": multi_hot([labels], self.num_classes)[0]}


class TaggingTrainer(CropTrainer):
    """Train a multi-label classifier: SpecAugment, mixup, then binary cross-entropy over all classes.

    Args:
        model (`BeatsForAudioClassification`): With `problem_type` `multi_label_classification`.
        args (`TaggingArguments`): Recipe of the run.
        feature_extractor (`BeatsFeatureExtractor`): Computes the filter banks. Saved with the model.
        train_dataset (`TaggedCrops`): Clips; shorter ones are repeated to `args.segment_seconds`.
    """

    model: BeatsForAudioClassification

    def __init__(
        self,
        model: BeatsForAudioClassification,
        args: TaggingArguments,
        feature_extractor: BeatsFeatureExtractor,
        train_dataset: TaggedCrops,
    ):
        samples = round(args.segment_seconds * feature_extractor.sampling_rate)
        super().__init__(model, args, feature_extractor, train_dataset, min_samples=samples)
        self.spec_augment, self.mixup = args.augmentations()

    def noise(self, batch_size: int) -> dict[str, Tensor]:
        """Return a batch of crops of full length without any label, to measure what a step costs."""
        return {**super().noise(batch_size), "labels": torch.zeros(batch_size, self.model.classifier.out_features)}

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
        loss = model(features[rows.slice], labels=labels[rows.slice]).loss
        return loss * (rows.count * self.args.world_size / rows.total)


class FirstSeconds:
    """The first seconds of each clip, for a slice of the clips at a time; shorter clips are repeated.

    Args:
        source, seconds, sampling_rate: As for [`~train.pretraining.crops.Crops`].

    Raises:
        InputError: If a file of the folder cannot be read.
    """

    def __init__(self, source: list[Path] | datasets.Dataset, seconds: float, sampling_rate: int):
        if isinstance(source, list):
            durations(source)  # fails early if a file cannot be read
        self.source = source
        self.seconds = seconds
        self.sampling_rate = sampling_rate

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, rows: slice) -> np.ndarray:
        samples = round(self.seconds * self.sampling_rate)
        clips = [encoded_audio(self.source, row) for row in range(*rows.indices(len(self)))]
        waveforms = [read_crop(clip, self.seconds, self.sampling_rate, position=0.0) for clip in clips]
        return np.stack([np.resize(waveform, samples) for waveform in waveforms])


def tagging_metrics(logits: np.ndarray, targets: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    """Return the mean average precision (AudioSet's mAP) and its parts.

    Args:
        logits (`np.ndarray` of shape `(clips, classes)`): Scores; only their order counts.
        targets (`np.ndarray` of shape `(clips, classes)`): 0 or 1.
        class_names (`Sequence[str]`): Names of the classes.

    Returns:
        `dict`: `clips`; `map`, the mean over the classes that occur; `chance`, the expected `map` of random scores
        (the mean frequency of these classes); and `average_precision` by class, None for those that do not occur.
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

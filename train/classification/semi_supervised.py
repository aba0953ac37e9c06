"""What teachers say about sound without labels, for students that learn from both."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import datasets
import numpy as np
from transformers import PreTrainedModel

from dataset_script import is_synthetic, read_logits
from dataset_script.errors import InputError
from dataset_script.logits import join_logits
from dataset_script.logits_card import TAU_FILENAME
from train.classification.arguments import DataArguments, DistillationArguments
from train.classification.data import UnlabelledBatches
from train.classification.teacher_quality import highest_probability
from train.classification.unlabelled import UnlabelledClips, UnlabelledSound, find_unlabelled
from train.common.augmentations import DEVICE_A
from train.common.features import AnyFeatureExtractor, input_rate
from train.common.sources import is_scenes
from train.common.waveforms import Resampled, RowSelection
from train.evaluation.inference import predict_clips


logger = logging.getLogger(__name__)


def find_sound(
    scenes: datasets.DatasetDict, distillation_args: DistillationArguments, data_args: DataArguments
) -> UnlabelledSound | None:
    """Find the sound without labels of a run, and check that the challenge allows it.

    Args:
        scenes (`datasets.DatasetDict`): The labelled clips, which are left out.
        distillation_args (`DistillationArguments`): The sources.
        data_args (`DataArguments`): The corpus.

    Returns:
        `UnlabelledSound`: The recordings, None if the run has none.

    Raises:
        FileNotFoundError, InputError: As [`~train.classification.unlabelled.find_unlabelled`]; if the challenge's
            rules do not allow a source.
    """
    dataset = data_args.dataset
    if distillation_args.edition == "2025" and dataset != "split25" and is_scenes(dataset):
        raise InputError(f"The labelled clips of DCASE 2025 are those of split25, not of {dataset}: change --dataset.")
    if not distillation_args.unlabelled:
        return None
    sound = find_unlabelled(
        distillation_args.unlabelled,
        distillation_args.unlabelled_clips,
        [name for clips in scenes.values() for name in clips["filename"][:]],
        data_args.data_dir,
        distillation_args.unlabelled_streaming,
        data_args.cache_dir,
    )
    if distillation_args.edition is not None:
        for source, rows in zip(sound.sources, sound.rows, strict=True):
            names = (source.name(row) for row in rows)
            if name := next((name for name in names if TAU_FILENAME.search(name)), None):
                raise InputError(
                    f"{source.source} has clips of TAU outside of {dataset}, such as {name}, which DCASE "
                    f"{distillation_args.edition} does not allow: choose other sound."
                )
    return sound


def predict_unlabelled(
    model: PreTrainedModel,
    feature_extractor: AnyFeatureExtractor,
    clips: UnlabelledClips,
    scenes: datasets.Dataset,
    output_dir: Path,
    teacher: str,
    batch_size: int,
) -> None:
    """Predict a teacher's logits of clips without labels and write them as a logits dataset; resume an earlier call.

    Args:
        model (`PreTrainedModel`): The teacher, in evaluation mode.
        feature_extractor (`FeatureExtractionMixin` or `WaveformFeatures`): Its feature extractor.
        clips (`UnlabelledClips`): The clips.
        scenes (`datasets.Dataset`): Labelled clips, for the classes.
        output_dir (`Path`): Folder of the logits dataset.
        teacher (`str`): Name of the teacher in the dataset.
        batch_size (`int`): Clips per forward pass.

    Raises:
        FileExistsError, InputError: As [`~train.evaluation.inference.predict_clips`].
    """
    predict_clips(
        model,
        feature_extractor,
        lambda: Resampled(clips.waveforms, clips.sampling_rate, input_rate(feature_extractor)),
        clips.filenames,
        scenes.features["label"].names,
        output_dir,
        teacher,
        batch_size,
        is_synthetic(scenes) and all(map(TAU_FILENAME.fullmatch, clips.filenames)),
    )


def unlabelled_batches(
    clips: UnlabelledClips,
    logits: Mapping[str, str],
    label_names: Sequence[str],
    distillation_args: DistillationArguments,
    batch_size: int,
) -> UnlabelledBatches:
    """Return the clips without labels that the student learns from, with the mean of the teachers' logits.

    Args:
        clips (`UnlabelledClips`): The clips.
        logits (`Mapping[str, str]`): For the name of each teacher, a logits dataset with these clips.
        label_names (`Sequence[str]`): The classes.
        distillation_args (`DistillationArguments`): What is left out, and the clips in a batch.
        batch_size (`int`): Clips in a batch.

    Returns:
        `UnlabelledBatches`: The clips.

    Raises:
        FileNotFoundError, InputError: If a logits dataset is missing or faulty or lacks a clip, or no clip is left.
    """
    joined = [
        join_logits(name, read_logits(folder, label_names), clips.filenames).flatten().to_numpy(zero_copy_only=False)
        for name, folder in logits.items()
    ]
    mean = np.mean(joined, axis=0, dtype=np.float32).reshape(len(clips.filenames), len(label_names))
    highest = highest_probability(mean)
    kept = np.flatnonzero(highest >= distillation_args.unlabelled_confidence)
    if not len(kept):
        raise InputError(
            f"The teachers are not as confident as unlabelled_confidence {distillation_args.unlabelled_confidence} "
            f"about any of {len(mean)} clips without labels ({highest.max():.3f} at most): lower it."
        )
    if len(kept) < len(mean):
        logger.info(
            "%d of %d clips without labels are left out: the teachers are unsure.", len(mean) - len(kept), len(mean)
        )
    return UnlabelledBatches(
        RowSelection(clips.waveforms, kept),
        mean[kept],
        distillation_args.unlabelled_per_batch(batch_size),
        **({"device": DEVICE_A} if distillation_args.unlabelled_impulse_responses else {}),
    )

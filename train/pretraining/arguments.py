"""Arguments of pre-training and of tagging."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from transformers.trainer_utils import IntervalStrategy

import modeling_beats
from dataset_script.errors import InputError
from train.common.arguments import CorpusArguments, ModelArguments, ResumableTrainingArguments
from train.common.augmentations import SoftMixup, SpecAugment


@dataclass
class StageArguments(ModelArguments):
    """What is trained, from what, by what."""

    stage: Literal["model", "tokenizer"] = field(
        default="model", metadata={"help": "Masked modelling, or a tokenizer for the next iteration."}
    )
    tokenizer_name_or_path: str | None = field(
        default=None, metadata={"help": "Trained tokenizer that gives the labels of a model; or a random projection."}
    )
    teacher_name_or_path: str | None = field(
        default=None, metadata={"help": "BEATs model folder or Hub id that a tokenizer learns from."}
    )

    def __post_init__(self):
        if self.stage == "tokenizer" and self.teacher_name_or_path is None:
            raise InputError("A tokenizer needs a teacher: give --teacher_name_or_path.")


@dataclass
class AudioArguments(CorpusArguments):
    """Which audio is used."""

    dataset: str | None = field(
        default=None,
        metadata={"help": "Folder of audio files, configuration of the scenes (demo, split100), or Hub dataset."},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    dataset_split: str = field(default="train", metadata={"help": "Split of the scenes or of a Hub dataset."})
    streaming: bool = field(default=False, metadata={"help": "Read a Hub dataset while training."})


@dataclass
class PretrainingArguments(ResumableTrainingArguments):
    """`TrainingArguments` with what pre-training counts in: steps, and batches of segments over all processes."""

    batch_size: int = field(default=64, metadata={"help": "Segments of a forward pass over all processes together."})
    segment_seconds: float = field(default=10.0, metadata={"help": "Longest segment that the network sees."})
    max_steps: int = field(default=1000, metadata={"help": "Optimizer steps."})
    warmup_steps: int = field(default=0, metadata={"help": "Steps before the full rate; it falls to 0 from there."})
    dry_run: bool = field(default=False, metadata={"help": "Measure what the run costs instead of running it."})

    remove_unused_columns: bool = field(default=False, metadata={"help": "Must stay off: batches have no columns."})
    logging_steps: int = field(default=50, metadata={"help": "Steps between the figures in the log."})
    save_steps: int = field(default=1000, metadata={"help": "Steps between checkpoints."})

    def __post_init__(self):
        if self.max_steps < 1:
            raise InputError(f"max_steps is {self.max_steps}: give the number of optimizer steps, at least 1.")
        if not 0.175 <= self.segment_seconds <= 60:
            raise InputError(f"segment_seconds is {self.segment_seconds}: give 0.175 (one patch) to 60 seconds.")
        self.save_strategy, self.logging_strategy = IntervalStrategy.STEPS, IntervalStrategy.STEPS
        if not torch.accelerator.is_available():
            # The recipes ask for bfloat16, which most CPUs can only imitate, slowly.
            self.use_cpu, self.bf16 = True, False
        super().__post_init__()
        if self.batch_size < self.world_size:
            raise InputError(f"batch_size is {self.batch_size}: give at least one segment to each process.")

    def max_patches(self, config: modeling_beats.BeatsConfig) -> int:
        """Return a number of patches that no segment exceeds."""
        frames = round(self.segment_seconds * 100)
        return max(1, frames // config.patch_size) * (config.num_mel_bins // config.patch_size)


@dataclass
class TaggedDataArguments:
    """Which clips are used."""

    dataset: str | None = field(
        default=None,
        metadata={"help": "Folder of audio files, or Hub dataset with columns audio and labels (a list)."},
    )
    labels: str | None = field(
        default=None, metadata={"help": "CSV file with the files to train on and their labels."}
    )
    test_labels: str | None = field(default=None, metadata={"help": "The same for the files to test on."})
    class_names: str | None = field(
        default=None, metadata={"help": "AudioSet's class_labels_indices.csv: order and names of the classes."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    train_split: str = field(default="train", metadata={"help": "Split of a Hub dataset to train on."})
    test_split: str = field(default="test", metadata={"help": "Split of a Hub dataset to test on."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where datasets are kept."})

    def __post_init__(self):
        if (self.labels is None) != (self.test_labels is None):
            raise InputError("labels and test_labels belong together: give both for a folder, none for a Hub dataset.")


@dataclass
class TaggingArguments(PretrainingArguments):
    """`PretrainingArguments` with augmentation and the sampling of clips."""

    balanced: bool = field(
        default=False,
        metadata={"help": "Draw clips by the inverse frequency of their classes, not one after another."},
    )
    spec_augment_size: float = field(
        default=0.0, metadata={"help": "Largest share of each axis that SpecAugment masks; 0 is off."}
    )
    mixup_alpha: float = field(default=0.0, metadata={"help": "Beta parameter of mixup; 0 is off."})
    per_device_eval_batch_size: int = field(default=32, metadata={"help": "Clips of a forward pass in the test."})

    def __post_init__(self):
        self.augmentations()  # so that wrong values are found at once
        super().__post_init__()

    def augmentations(self) -> tuple[SpecAugment | None, SoftMixup | None]:
        """Return the recipe's augmentations, None for those that are off."""
        return (
            SpecAugment(self.spec_augment_size) if self.spec_augment_size else None,
            SoftMixup(self.mixup_alpha) if self.mixup_alpha else None,
        )

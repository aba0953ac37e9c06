"""`TrainingArguments` of pre-training and of fine-tuning on AudioSet; importing them takes seconds."""

from dataclasses import dataclass

from dataset_script.errors import InputError
from modeling_beats import BeatsConfig
from train.common.augmentations import SoftMixup, SpecAugment
from train.common.training_arguments import ResumableTrainingArguments
from train.pretraining.arguments import PretrainingOptions, TaggingOptions


@dataclass
class PretrainingArguments(PretrainingOptions, ResumableTrainingArguments):  # type: ignore[misc] # as its parent
    """`TrainingArguments` of runs that count in steps, and in batches of crops over all processes."""

    def __post_init__(self) -> None:
        if self.max_steps < 1:
            raise InputError(f"max_steps is {self.max_steps}: choose at least one optimizer step.")
        if not 0.175 <= self.segment_seconds <= 60:
            raise InputError(f"segment_seconds is {self.segment_seconds}: choose 0.175 (one patch) to 60 seconds.")
        super().__post_init__()
        if self.batch_size < self.world_size:
            raise InputError(f"batch_size is {self.batch_size}: choose at least one crop for each process.")

    def max_patches(self, config: BeatsConfig) -> int:
        """Return a number of patches that no crop exceeds."""
        frames = round(self.segment_seconds * 100)
        return max(1, frames // config.patch_size) * (config.num_mel_bins // config.patch_size)


@dataclass
class TaggingArguments(TaggingOptions, PretrainingArguments):  # type: ignore[misc] # as its parent
    """`PretrainingArguments` with augmentations and the sampling of clips."""

    def __post_init__(self) -> None:
        self.augmentations()  # so that invalid values are found at once
        super().__post_init__()

    def augmentations(self) -> tuple[SpecAugment | None, SoftMixup | None]:
        """Return SpecAugment and mixup, None for those that are off."""
        return (
            SpecAugment(self.spec_augment_size) if self.spec_augment_size else None,
            SoftMixup(self.mixup_alpha) if self.mixup_alpha else None,
        )

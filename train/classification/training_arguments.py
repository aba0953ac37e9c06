"""`TrainingArguments` of distillation and fine-tuning; importing them takes seconds."""

import math
from dataclasses import dataclass

from dataset_script.errors import InputError
from train.classification.arguments import SceneOptions
from train.classification.losses import DistillationLoss
from train.common.augmentations import FreqMixStyle, SoftMixup, SpecAugment, check_probability
from train.common.training_arguments import ResumableTrainingArguments


POSITIVE_ARGUMENTS = (
    "learning_rate",
    "num_train_epochs",
    "gradient_accumulation_steps",
    "per_device_eval_batch_size",
    "first_cycle",
    "cycle_factor",
)
NONNEGATIVE_ARGUMENTS = (
    "weight_decay",
    "max_grad_norm",
    "warmup_epochs",
    "warmup_steps",
    "time_rolling",
    "dataloader_num_workers",
    "seed",
)


@dataclass
class SceneTrainingArguments(SceneOptions, ResumableTrainingArguments):  # type: ignore[misc] # as its parent
    """`TrainingArguments` with the options of this project.

    The optimizer is AdamW; without weight decay, the default, it is Adam, as in the report.
    """

    def __post_init__(self) -> None:
        self._check_ranges()
        self._check_combinations()
        self._check_loss_and_augmentations()
        super().__post_init__()
        self.ddp_broadcast_buffers = self.separate_batches  # otherwise all processes have the same
        self.label_names = ["labels", "device"]
        self.remove_unused_columns = False

    def _check_ranges(self) -> None:
        """Raise `InputError` if a number is out of range."""
        for name in POSITIVE_ARGUMENTS:
            if not 0 < getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}: choose a number above 0.")
        for name in NONNEGATIVE_ARGUMENTS:
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}: choose 0 or a number above it.")
        if self.batch_size < 2:
            raise InputError(
                f"batch_size is {self.batch_size}, but batch normalisation and mixing need several clips: choose 2 or "
                "more."
            )

    def _check_combinations(self) -> None:
        """Raise `InputError` if arguments exclude each other."""
        if self.warmup_steps and self.schedule != "warmup_cosine":
            raise InputError(
                f"warmup_steps has no effect here: the schedule {self.schedule} does not use it; use warmup_epochs or "
                "the schedule warmup_cosine."
            )
        if self.waveforms_on_device and self.dataloader_num_workers:
            raise InputError("waveforms_on_device and dataloader_num_workers exclude each other: leave out one.")

    def _check_loss_and_augmentations(self) -> None:
        """Raise `InputError` if the loss or an augmentation cannot be created with its arguments."""
        check_probability("impulse_response_p", self.impulse_response_p)
        check_probability("frequency_mask_size", self.frequency_mask_size)
        self.loss_function()
        self.feature_augmentations()

    def loss_function(self) -> DistillationLoss:
        """Create the loss."""
        return DistillationLoss(self.temperature, self.kd_lambda, self.kd_reduction, self.mixup_targets)

    def feature_augmentations(self) -> tuple[FreqMixStyle | None, SpecAugment | None, SoftMixup | None]:
        """Create the augmentations of features, with None for those that are off."""
        return (
            FreqMixStyle(self.freq_mixstyle_alpha, self.freq_mixstyle_p, self.freq_mixstyle_per_clip)
            if self.freq_mixstyle_p
            else None,
            SpecAugment(self.spec_augment_size) if self.spec_augment_size else None,
            SoftMixup(self.mixup_alpha) if self.mixup_alpha else None,
        )

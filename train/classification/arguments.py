"""Arguments of distillation and of fine-tuning on scenes: dataclasses filled from a recipe and the command line."""

import math
from dataclasses import dataclass, field, fields
from typing import Literal

from transformers import TrainingArguments

from dataset_script.errors import InputError
from train.classification.losses import DistillationLoss
from train.common.arguments import CorpusArguments, ModelArguments, ResumableTrainingArguments
from train.common.augmentations import FreqMixStyle, SoftMixup, SpecAugment


@dataclass
class TeacherArguments(ModelArguments):
    """What the teacher starts from, and what of it is trained."""

    freeze_encoder: bool = field(default=False, metadata={"help": "Train the classifier only."})


@dataclass
class DataArguments(CorpusArguments):
    """Which clips are used, and on which of them the epoch to keep is chosen."""

    validation_fraction: float = field(
        default=0.0,
        metadata={
            "help": "Share of the training subset's locations to hold out; the epoch with the best macro accuracy on "
            "them is kept. 0 keeps the last epoch."
        },
    )
    select_on_test: bool = field(
        default=False,
        metadata={"help": "Keep the epoch that is best on the test split, as the report does; results are marked."},
    )

    def __post_init__(self):
        if not 0 <= self.validation_fraction < 1:
            raise InputError(
                f"validation_fraction is {self.validation_fraction}: give a share of the training locations, "
                "from 0 to below 1."
            )
        if self.validation_fraction and self.select_on_test:
            raise InputError("validation_fraction and select_on_test exclude each other: give one of them.")


REPLACED = {
    "per_device_train_batch_size": "use batch_size",
    "lr_scheduler_type": "use schedule",
    "warmup_steps": "use warmup_epochs",
    "eval_strategy": "use validation_fraction or select_on_test",
    "load_best_model_at_end": "use validation_fraction or select_on_test",
    "label_smoothing_factor": "use teachers",
    "dataloader_drop_last": "leave it out, since every clip counts",
    "remove_unused_columns": "leave it out, since the loss needs the columns",
    "resume_from_checkpoint": "leave it out, since the same command goes on by itself",
}
"""Arguments of `TrainingArguments` that have no effect here, and what to do instead."""

POSITIVE = (
    "learning_rate",
    "num_train_epochs",
    "gradient_accumulation_steps",
    "per_device_eval_batch_size",
    "first_cycle",
    "cycle_factor",
)
NOT_NEGATIVE = ("weight_decay", "max_grad_norm", "warmup_epochs", "dataloader_num_workers", "seed")


@dataclass
class SceneTrainingArguments(ResumableTrainingArguments):
    """`TrainingArguments` with the recipes' batch, schedule, augmentations and loss.

    The optimizer is AdamW, which without weight decay (the default) is Adam, as in the report.
    """

    batch_size: int = field(
        default=256,
        metadata={"help": "Clips of a forward pass over all processes together: the same training on any number."},
    )
    num_train_epochs: float = field(default=150, metadata={"help": "Passes over the training subset."})
    learning_rate: float = field(default=0.004, metadata={"help": "The initial learning rate."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Largest gradient norm; 0 does not clip."})
    schedule: Literal["sgdr", "warmup_linear", "constant"] = field(
        default="sgdr",
        metadata={"help": "Learning rate by epoch: warm restarts, warm-up and linear descent, or none."},
    )
    first_cycle: int = field(default=10, metadata={"help": "Epochs before the first warm restart."})
    cycle_factor: int = field(default=2, metadata={"help": "How much longer each cycle is than the one before."})
    warmup_epochs: int = field(default=4, metadata={"help": "Epochs of the warm-up of schedule warmup_linear."})

    impulse_responses: str | None = field(
        default=None,
        metadata={"help": "Folder of WAV files to convolve clips of device a with; defaults to that of the corpus."},
    )
    impulse_response_p: float = field(default=0.0, metadata={"help": "Probability of that for a clip; 0 is off."})
    freq_mixstyle_alpha: float = field(default=0.4, metadata={"help": "Beta parameter of Freq-MixStyle."})
    freq_mixstyle_p: float = field(default=0.0, metadata={"help": "Probability of it for a batch; 0 is off."})
    spec_augment_size: float = field(
        default=0.0, metadata={"help": "Largest share of each axis that SpecAugment masks; 0 is off."}
    )
    mixup_alpha: float = field(default=0.0, metadata={"help": "Beta parameter of (Soft) Mixup; 0 is off."})

    temperature: float = field(default=2.0, metadata={"help": "Softens teacher and student in distillation."})
    kd_lambda: float = field(default=0.02, metadata={"help": "Weight of the labels beside the teachers."})
    kd_reduction: Literal["batchmean", "mean"] = field(
        default="batchmean",
        metadata={"help": "batchmean is the report's equation; mean also divides by the classes, as its public code."},
    )
    mixup_targets: Literal["logits", "losses"] = field(
        default="logits",
        metadata={"help": "logits mixes teacher logits, as the report's equations; losses as its public code."},
    )

    waveforms_on_device: bool = field(
        default=False,
        metadata={"help": "Keep the training clips on the device: 64 kB each, 8.9 GB for all of TAU at 32 kHz."},
    )
    logging_strategy: str = field(default="epoch", metadata={"help": "When the loss is logged: epoch, steps or no."})
    save_strategy: str = field(default="epoch", metadata={"help": "When checkpoints are written: epoch, steps or no."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep, at least two."})
    per_device_eval_batch_size: int = field(default=256, metadata={"help": "Clips of a forward pass in evaluation."})

    def __post_init__(self):
        for field_ in fields(TrainingArguments):
            if field_.name in REPLACED and getattr(self, field_.name) != field_.default:
                raise InputError(f"{field_.name} has no effect here: {REPLACED[field_.name]}.")
        for name in (*POSITIVE, *NOT_NEGATIVE):
            value, may_be_zero = getattr(self, name), name in NOT_NEGATIVE
            if not 0 <= value < math.inf or (value == 0 and not may_be_zero):
                raise InputError(f"{name} is {value}: give {'0 or more' if may_be_zero else 'a number above 0'}.")
        if self.batch_size < 2:
            raise InputError(
                f"batch_size is {self.batch_size}, but batch normalisation and mixing need company: give 2 or more."
            )
        if self.waveforms_on_device and self.dataloader_num_workers:
            raise InputError("waveforms_on_device leaves loader workers nothing to do: leave out one of the two.")
        self.loss_function(), self.feature_augmentations()  # so that wrong values are found at once
        self.label_names = ["labels", "device"]
        self.remove_unused_columns = False
        super().__post_init__()

    def loss_function(self) -> DistillationLoss:
        """Return the recipe's loss."""
        return DistillationLoss(self.temperature, self.kd_lambda, self.kd_reduction, self.mixup_targets)

    def feature_augmentations(self) -> tuple[FreqMixStyle | None, SpecAugment | None, SoftMixup | None]:
        """Return the recipe's augmentations of features, None for those that are off."""
        return (
            FreqMixStyle(self.freq_mixstyle_alpha, self.freq_mixstyle_p) if self.freq_mixstyle_p else None,
            SpecAugment(self.spec_augment_size) if self.spec_augment_size else None,
            SoftMixup(self.mixup_alpha) if self.mixup_alpha else None,
        )


@dataclass
class StudentArguments:
    """The student, and whom it learns from."""

    teachers: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Teachers, whose logits are averaged: logits datasets; model folders or Hub ids, whose logits are "
            "predicted first; or recipes of teachers, which are fine-tuned first."
        },
    )
    config_overrides: str | None = field(
        default=None, metadata={"help": "Settings of the network to change, as name=value,name=value."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Allow code that comes with teachers to run."})

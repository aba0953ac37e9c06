"""Arguments of distillation and fine-tuning: dataclasses that are filled from a recipe and the command line."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from dataset_script.errors import InputError
from train.common.arguments import UNSUPPORTED_ARGUMENTS, CorpusArguments, ModelArguments, RunOptions


@dataclass
class TeacherArguments(ModelArguments):
    """The pretrained model of a teacher, and the part of it that is trained."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Model folder or Hub id to start from: BEATs, or any model that transformers' "
            "AutoModelForAudioClassification can load; defaults to a BEATs model with random weights."
        },
    )
    freeze_encoder: bool = field(default=False, metadata={"help": "Train only the classification head."})
    layer_decay: float = field(
        default=1.0,
        metadata={"help": "Factor of the learning rate from a layer of the encoder to the one below; 1 disables it."},
    )

    def __post_init__(self) -> None:
        if not 0 < self.layer_decay <= 1:
            raise InputError(f"layer_decay is {self.layer_decay}: choose a number above 0, up to 1.")


@dataclass
class DataArguments(CorpusArguments):
    """The clips, and those among them that select the epoch to keep."""

    validation_fraction: float | None = field(
        default=None,
        metadata={
            "help": "Fraction of the training clips to hold out, by recording location; the epoch with the best macro "
            "accuracy on them is kept (0: the last one). Defaults to 0, but to 0.1 for own data with 20 recordings of "
            "each class."
        },
    )
    select_on_test: bool = field(
        default=False,
        metadata={"help": "Keep the epoch that is best on the test split, as the report does; the results say so."},
    )

    early_stopping_patience: int | None = field(
        default=None,
        metadata={"help": "Stop after this number of epochs without a better one; needs --validation_fraction."},
    )

    def __post_init__(self) -> None:
        if self.validation_fraction is not None and not 0 <= self.validation_fraction < 1:
            raise InputError(
                f"validation_fraction is {self.validation_fraction}: choose a fraction of the training clips, from 0 "
                "to below 1."
            )
        if self.validation_fraction and self.select_on_test:
            raise InputError("validation_fraction and select_on_test exclude each other: leave out one of them.")
        if self.early_stopping_patience is not None:
            if self.early_stopping_patience < 1:
                raise InputError(
                    f"early_stopping_patience is {self.early_stopping_patience}: choose at least one epoch."
                )
            if not self.validation_fraction:
                raise InputError(
                    "early_stopping_patience needs clips that tell whether an epoch is better: set "
                    "--validation_fraction as well, such as 0.1."
                )


REPLACED_ARGUMENTS = {
    "lr_scheduler_type": "use schedule",
    "eval_strategy": "use validation_fraction or select_on_test",
    "load_best_model_at_end": "use validation_fraction or select_on_test",
    "label_smoothing_factor": "use teachers",
}
"""Arguments of `TrainingArguments` that have no effect here, and what to use instead."""


@dataclass
class SceneOptions(RunOptions):
    """The batch size, schedule, augmentations and loss of the recipes."""

    unsupported: ClassVar[dict[str, str]] = UNSUPPORTED_ARGUMENTS | REPLACED_ARGUMENTS

    batch_size: int = field(
        default=256,
        metadata={"help": "Clips per forward pass, summed over all processes: their number does not matter."},
    )
    num_train_epochs: float = field(default=150, metadata={"help": "Passes over the training clips."})
    learning_rate: float = field(default=0.004, metadata={"help": "Initial learning rate."})
    max_grad_norm: float = field(default=0.0, metadata={"help": "Maximum gradient norm; 0 disables clipping."})
    schedule: Literal["sgdr", "warmup_linear", "warmup_cosine", "constant"] = field(
        default="sgdr",
        metadata={
            "help": "Learning rate: by epoch with warm restarts, or warm-up and linear decay; by step with warm-up "
            "and half a cosine; or constant."
        },
    )
    first_cycle: int = field(default=10, metadata={"help": "Epochs before the first warm restart."})
    cycle_factor: int = field(
        default=2, metadata={"help": "Factor by which each cycle is longer than the previous one."}
    )
    warmup_epochs: int = field(default=4, metadata={"help": "Epochs of warm-up in the schedule warmup_linear."})
    warmup_steps: float = field(
        default=0,
        metadata={"help": "Steps of warm-up in the schedule warmup_cosine, at most half of all; below 1, a fraction."},
    )

    time_rolling: float = field(
        default=0.0, metadata={"help": "Largest circular shift of a clip in time, in seconds; 0 disables it."}
    )
    impulse_responses: str | None = field(
        default=None,
        metadata={"help": "Folder of WAV files to convolve clips of device a with; defaults to the corpus's own."},
    )
    impulse_response_p: float = field(
        default=0.0, metadata={"help": "Probability that a clip of device a is convolved."}
    )
    freq_mixstyle_alpha: float = field(
        default=0.4, metadata={"help": "Parameter of the Beta distribution of Freq-MixStyle."}
    )
    freq_mixstyle_p: float = field(default=0.0, metadata={"help": "Probability of Freq-MixStyle for a batch."})
    freq_mixstyle_per_clip: bool = field(
        default=False, metadata={"help": "Draw the weight of Freq-MixStyle for each clip, rather than for a batch."}
    )
    frequency_mask_size: float = field(
        default=0.0, metadata={"help": "Largest fraction of the mel bands that a random mask silences; 0 disables it."}
    )
    spec_augment_size: float = field(
        default=0.0, metadata={"help": "Largest fraction of each axis that SpecAugment masks; 0 disables it."}
    )
    mixup_alpha: float = field(
        default=0.0, metadata={"help": "Parameter of the Beta distribution of Soft Mixup; 0 disables it."}
    )

    temperature: float = field(default=2.0, metadata={"help": "Temperature of distillation; higher is softer."})
    kd_lambda: float = field(
        default=0.02, metadata={"help": "Weight of the label loss; the distillation loss has the rest."}
    )
    kd_reduction: Literal["batchmean", "mean"] = field(
        default="batchmean",
        metadata={"help": "batchmean as in the report; mean also averages over classes, as its public code does."},
    )
    mixup_targets: Literal["logits", "losses"] = field(
        default="logits",
        metadata={"help": "Soft Mixup of teacher logits, as in the report, or of losses, as in its public code."},
    )

    separate_batches: bool = field(
        default=False,
        metadata={
            "help": "Let each process mix and normalise its part of a batch as a batch of its own: for machines with "
            "a slow network. Several processes then no longer train the same model as one."
        },
    )
    waveforms_on_device: bool = field(
        default=False,
        metadata={"help": "Keep all training clips on the device: 64 kB each at 32 kHz, 8.9 GB for TAU."},
    )
    logging_strategy: str = field(default="epoch", metadata={"help": "When to log the loss: epoch, steps or no."})
    save_strategy: str = field(default="epoch", metadata={"help": "When to write checkpoints: epoch, steps or no."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep, at least two."})
    per_device_eval_batch_size: int = field(default=256, metadata={"help": "Clips per forward pass in evaluation."})


@dataclass
class DistillationArguments:
    """The teachers, the sound without labels that they explain, and the network of the student."""

    teachers: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Teachers whose logits are averaged: logits datasets; model folders or Hub ids, which predict "
            "logits first; or recipes of teachers, which are fine-tuned first."
        },
    )
    student: Literal["tfsepnet", "cpmobile"] = field(
        default="tfsepnet", metadata={"help": "Network of the student: TF-SepNet, or CP-Mobile, the baseline's."}
    )
    config_overrides: str | None = field(
        default=None, metadata={"help": "Settings of the network to override, as name=value,name=value."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the teachers' own code."})
    labels_alone: bool = field(
        default=False,
        metadata={"help": "First train the same student on the labels alone, for as many steps, and compare the two."},
    )

    unlabelled: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Sound without labels to learn from the teachers: folders of any audio, datasets on the Hub, or "
            "subsets of TAU such as split100."
        },
    )
    unlabelled_fraction: float = field(
        default=0.75, metadata={"help": "Fraction of each batch that consists of clips without labels."}
    )
    unlabelled_clips: int = field(
        default=100_000,
        metadata={"help": "Most clips without labels to use; 100,000 take 6.4 GB of --cache_dir at 32 kHz."},
    )
    unlabelled_confidence: float = field(
        default=0.0,
        metadata={"help": "Leave out clips without labels whose most likely class is less probable to the teachers."},
    )
    unlabelled_impulse_responses: bool = field(
        default=False,
        metadata={"help": "Convolve clips without labels with impulse responses, as those of device a."},
    )
    unlabelled_streaming: bool = field(
        default=False, metadata={"help": "Read datasets on the Hub without downloading them as a whole."}
    )
    edition: Literal["2024", "2025"] | None = field(
        default=None, metadata={"help": "DCASE challenge to enter: refuse what its rules do not allow."}
    )

    def __post_init__(self) -> None:
        if self.unlabelled and not self.teachers:
            raise InputError("Sound without labels is learnt from teachers, and there are none: set --teachers.")
        if self.labels_alone and not self.teachers:
            raise InputError("labels_alone compares students with and without teachers: set --teachers.")
        if not 0 < self.unlabelled_fraction < 1:
            raise InputError(
                f"unlabelled_fraction is {self.unlabelled_fraction}: choose a fraction of each batch, above 0 and "
                "below 1."
            )
        if self.unlabelled_clips < 1:
            raise InputError(f"unlabelled_clips is {self.unlabelled_clips}: choose at least 1.")
        if not 0 <= self.unlabelled_confidence < 1:
            raise InputError(
                f"unlabelled_confidence is {self.unlabelled_confidence}: choose a probability from 0 to below 1."
            )

    def unlabelled_per_batch(self, batch_size: int) -> int:
        """Return the clips without labels in a batch: at least one, but not all.

        Args:
            batch_size (`int`): Clips in a batch.
        """
        return min(max(round(batch_size * self.unlabelled_fraction), 1), batch_size - 1)


@dataclass
class AdaptationArguments:
    """The student that is adapted to recording devices, its teachers, and the part of it that is trained."""

    model_name_or_path: str = field(
        default="", metadata={"help": "Model folder or Hub id of the student, the general model."}
    )
    teachers: list[str] = field(
        default_factory=list,
        metadata={"help": "Teachers to distil while adapting, as for train/distill.py; without any, labels alone."},
    )
    trainable: Literal["all", "norms", "classifier"] = field(
        default="all", metadata={"help": "Parameters to train: all, those of normalisation layers, or the classifier."}
    )
    min_clips: int = field(
        default=100, metadata={"help": "Fewest training clips of a device; devices with fewer keep the general model."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the own code of the student and teachers."})

    def __post_init__(self) -> None:
        if not self.model_name_or_path:
            raise InputError("model_name_or_path is missing: set it to the model folder of a finished student.")
        if self.min_clips < 2:
            raise InputError(f"min_clips is {self.min_clips}: choose at least 2.")

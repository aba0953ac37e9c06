"""Arguments of pre-training and of fine-tuning on AudioSet."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from dataset_script.errors import InputError
from train.common.arguments import UNSUPPORTED_ARGUMENTS, CorpusArguments, ModelArguments, RunOptions


@dataclass
class StageArguments(ModelArguments):
    """What is trained, and on the output of which model."""

    stage: Literal["model", "tokenizer"] = field(
        default="model", metadata={"help": "Train a model by masked audio modelling, or a tokenizer for the next one."}
    )
    tokenizer_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Tokenizer (folder or Hub id) that labels the patches; without it, a random projection."},
    )
    teacher_name_or_path: str | None = field(
        default=None, metadata={"help": "BEATs model (folder or Hub id) that a tokenizer learns from."}
    )
    feature_mean: float | None = field(
        default=None,
        metadata={"help": "Mean of the log-mel energies; defaults to the model's, or to AudioSet's."},
    )
    feature_std: float | None = field(
        default=None, metadata={"help": "Their standard deviation; defaults to the model's, or to AudioSet's."}
    )

    def __post_init__(self) -> None:
        if self.feature_std is not None and not self.feature_std > 0:
            raise InputError(f"feature_std is {self.feature_std}: choose a number above 0.")
        if self.stage == "tokenizer" and self.teacher_name_or_path is None:
            raise InputError("Stage tokenizer needs a teacher: set --teacher_name_or_path.")
        if self.stage == "tokenizer" and self.tokenizer_name_or_path is not None:
            raise InputError("tokenizer_name_or_path has no effect on stage tokenizer: omit it.")
        if self.stage == "model" and self.teacher_name_or_path is not None:
            raise InputError("teacher_name_or_path has no effect on stage model: omit it, or use --stage tokenizer.")


@dataclass
class AudioArguments(CorpusArguments):
    """Which audio is used."""

    dataset: str = field(
        default="",
        metadata={
            "help": "Folder of audio files, scenes (demo, split100), demo_sounds, Hub dataset, or address of shards "
            "(https://host/{000..511}.tar, s3://bucket/*.parquet)."
        },
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    dataset_split: str = field(default="train", metadata={"help": "Split of the scenes or of a Hub dataset."})
    streaming: bool = field(
        default=False, metadata={"help": "Read a Hub dataset, or shards, while training instead of downloading it."}
    )


REPLACED_ARGUMENTS = {
    "num_train_epochs": "use max_steps",
    "logging_strategy": "use logging_steps",
    "save_strategy": "use save_steps",
    "eval_strategy": "leave it out, because there is no evaluation during training",
    "load_best_model_at_end": "leave it out, because the weights of the last step are kept",
    "dataloader_persistent_workers": "leave it out, because the whole run is one epoch of the loader",
    "dataloader_prefetch_factor": "use dataloader_num_workers",
}
"""Arguments of `TrainingArguments` that have no effect here, and what to do instead."""


@dataclass
class PretrainingOptions(RunOptions):
    """The options of runs that count in steps, and in batches of crops over all processes."""

    unsupported: ClassVar[dict[str, str]] = (
        UNSUPPORTED_ARGUMENTS
        | REPLACED_ARGUMENTS
        | {"per_device_eval_batch_size": "leave it out, because there is no test"}
    )

    output_dir: str = field(default="outputs", metadata={"help": "Folder for the checkpoints, model and results."})
    batch_size: int = field(default=64, metadata={"help": "Crops per forward pass, over all processes together."})
    segment_seconds: float = field(default=10.0, metadata={"help": "Longest crop, in seconds."})
    max_steps: int = field(default=1000, metadata={"help": "Optimizer steps."})
    warmup_steps: int = field(default=0, metadata={"help": "Steps before the learning rate reaches its maximum."})
    dry_run: bool = field(default=False, metadata={"help": "Measure the cost of the run instead of running it."})

    num_train_epochs: float = field(default=-1.0, metadata={"help": "Has no effect: use max_steps."})
    logging_steps: int = field(default=50, metadata={"help": "Steps between log lines."})
    save_steps: int = field(default=1000, metadata={"help": "Steps between checkpoints."})


@dataclass
class TaggedDataArguments:
    """Which clips are used, and where their labels are."""

    dataset: str = field(
        default="",
        metadata={"help": "Folder of audio files, demo_sounds, or Hub dataset with lists in a column labels."},
    )
    labels: str | None = field(default=None, metadata={"help": "CSV file with the training files and their labels."})
    test_labels: str | None = field(default=None, metadata={"help": "CSV file with the test files and their labels."})
    class_names: str | None = field(
        default=None, metadata={"help": "AudioSet's class_labels_indices.csv: order and names of the classes."}
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of a Hub dataset."})
    train_split: str = field(default="train", metadata={"help": "Training split of a Hub dataset."})
    test_split: str = field(default="test", metadata={"help": "Test split of a Hub dataset."})
    cache_dir: str | None = field(default=None, metadata={"help": "Cache folder for datasets."})

    def __post_init__(self) -> None:
        if not self.dataset:
            raise InputError("There is no audio: set --dataset to a folder or a Hub dataset.")
        if (self.labels is None) != (self.test_labels is None):
            raise InputError("labels and test_labels belong together: set both for a folder, none for a Hub dataset.")


@dataclass
class TaggingOptions(PretrainingOptions):
    """`PretrainingOptions` with augmentations and the sampling of clips."""

    unsupported: ClassVar[dict[str, str]] = UNSUPPORTED_ARGUMENTS | REPLACED_ARGUMENTS

    balanced: bool = field(
        default=False,
        metadata={"help": "Draw clips by the inverse frequency of their classes instead of each once per epoch."},
    )
    spec_augment_size: float = field(
        default=0.0, metadata={"help": "Largest fraction of each axis that SpecAugment masks; 0 is off."}
    )
    mixup_alpha: float = field(default=0.0, metadata={"help": "Beta parameter of mixup; 0 is off."})
    per_device_eval_batch_size: int = field(default=32, metadata={"help": "Clips per forward pass in the test."})

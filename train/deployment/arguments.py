"""Arguments of quantization, half precision and submissions."""

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

from dataset_script.errors import InputError
from train.evaluation.arguments import EvaluationArguments


if TYPE_CHECKING:
    from train.deployment.quantizer import INCConfig


@dataclass
class ConversionArguments(EvaluationArguments):
    """The float32 model, and the repository that the converted model is pushed to."""

    unsupported: ClassVar[tuple[str, ...]] = ("dtype", "torch_compile")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dtype != "float32" or self.torch_compile:
            raise InputError("The conversion starts from the float32 model: leave out dtype and torch_compile.")


@dataclass
class QuantizationArguments(ConversionArguments):
    """The float model, the quantization, and the repository that the INT8 model is pushed to."""

    calibration_clips: int = field(default=300, metadata={"help": "Clips of the training subset to calibrate with."})
    activation_bits: Literal[8, 16] = field(
        default=16,
        metadata={"help": "Bits of the layers' inputs: 16 decides as float does, runtimes have more kernels for 8."},
    )
    criterion: Literal["accuracy", "agreement"] = field(
        default="accuracy",
        metadata={"help": "What must not drop on the calibration clips: accuracy, or agreement with float."},
    )
    tolerable_loss: float = field(
        default=0.01,
        metadata={"help": "Largest relative loss of the criterion; a loss within its uncertainty is tolerated."},
    )
    max_trials: int = field(default=100, metadata={"help": "Largest number of configurations that tuning tries."})
    qat_epochs: int = field(
        default=0, metadata={"help": "Epochs of quantization-aware fine-tuning on the training subset; 0 for none."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the calibration clips and of the fine-tuning batches."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.calibration_clips < 1:
            raise InputError(f"calibration_clips is {self.calibration_clips}: choose some hundred.")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed is {self.seed}: choose an integer from 0 to {2**32 - 1}.")

    def quantization_config(self) -> "INCConfig":
        """Return the settings of the quantizer; raise `InputError` if a value is out of range."""
        from train.deployment.quantizer import INCConfig  # its packages take seconds to import

        return INCConfig(
            activation_bits=self.activation_bits,
            criterion=self.criterion,
            tolerable_loss=self.tolerable_loss,
            max_trials=self.max_trials,
            qat_epochs=self.qat_epochs,
        )


@dataclass
class SubmissionArguments:
    """The models and the metadata of a submission."""

    models: list[str] = field(
        metadata={"help": "Student folders with results: one for each training subset, or (2025) the general model."}
    )
    label: str = field(metadata={"help": "Label of the submission: <LastName>_<Institute>_task1_<1 to 4>."})
    output_dir: str = field(metadata={"help": "Output folder."})
    edition: Literal["2024", "2025"] = field(default="2024", metadata={"help": "Edition of the challenge."})
    data_dir: str | None = field(
        default=None, metadata={"help": "Folder of the evaluation set, or (2025) of the development set."}
    )
    device_models: list[str] = field(
        default_factory=list,
        metadata={"help": "Models of devices (2025), as <device id>=<folder>; other devices get the general model."},
    )
    about: str | None = field(default=None, metadata={"help": "YAML file with values for the metadata."})
    write_about: str | None = field(
        default=None, metadata={"help": "Write a YAML file with the values that are missing, to fill in, and stop."}
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Folder of resampled clips."})
    batch_size: int = field(default=256, metadata={"help": "Clips per forward pass."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the models' own code."})

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"batch_size is {self.batch_size}: choose at least one clip per forward pass.")
        if not re.fullmatch(r"[^\W\d_][^\W_]*_[^\W_]+_task1_[1-4]", self.label):
            raise InputError(
                f"label is {self.label!r}, but must be <LastName>_<Institute>_task1_<1 to 4>, such as "
                "Cai_XJTLU_task1_1."
            )
        if self.edition == "2024" and self.device_models:
            raise InputError("The 2024 edition has no device_models: leave them out, or add --edition 2025.")
        if self.edition == "2024" and self.data_dir is None and self.write_about is None:
            raise InputError("The evaluation set is missing: set data_dir to its folder.")

"""Arguments of quantization."""

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from dataset_script.errors import InputError
from train.common.arguments import HubArguments, InferenceArguments, check_bootstrap


if TYPE_CHECKING:
    from train.deployment.quantizer import INCConfig


@dataclass
class QuantizationArguments(HubArguments, InferenceArguments):
    """The float model, the quantization, and the repository that the INT8 model is pushed to."""

    unsupported: ClassVar[tuple[str, ...]] = ("dtype", "torch_compile")

    calibration_clips: int = field(default=300, metadata={"help": "Clips of the training subset to calibrate with."})
    tolerable_loss: float = field(
        default=0.01, metadata={"help": "Largest relative loss of accuracy on the calibration clips."}
    )
    max_trials: int = field(default=100, metadata={"help": "Largest number of configurations that tuning tries."})
    qat_epochs: int = field(
        default=0, metadata={"help": "Epochs of quantization-aware fine-tuning on the training subset; 0 for none."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the calibration clips and of the fine-tuning batches."})
    bootstrap: int = field(
        default=1000, metadata={"help": "Number of resamples for the confidence intervals; 0 for none."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dtype != "float32" or self.torch_compile:
            raise InputError("Quantization starts from the float32 model: leave out dtype and torch_compile.")
        if self.calibration_clips < 1:
            raise InputError(f"calibration_clips is {self.calibration_clips}: choose some hundred.")
        if not 0 <= self.seed < 2**32:
            raise InputError(f"seed is {self.seed}: choose an integer from 0 to {2**32 - 1}.")
        check_bootstrap(self.bootstrap)

    def quantization_config(self) -> "INCConfig":
        """Return the settings of the quantizer; raise `InputError` if a value is out of range."""
        from train.deployment.quantizer import INCConfig  # its packages take seconds to import

        return INCConfig(tolerable_loss=self.tolerable_loss, max_trials=self.max_trials, qat_epochs=self.qat_epochs)

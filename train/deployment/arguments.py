"""Arguments of quantization."""

from dataclasses import dataclass, field

from dataset_script.errors import InputError
from train.common.arguments import HubArguments, InferenceArguments, check_bootstrap
from train.deployment.quantizer import INCConfig


@dataclass
class QuantizationArguments(HubArguments, InferenceArguments):
    """`InferenceArguments`, and how to quantize."""

    calibration_clips: int = field(default=300, metadata={"help": "Clips of the training subset to calibrate on."})
    tolerable_loss: float = field(default=0.01, metadata={"help": "Largest relative loss of accuracy on them."})
    max_trials: int = field(default=100, metadata={"help": "Most configurations that the tuning tries."})
    qat_epochs: int = field(
        default=0, metadata={"help": "Epochs of quantization-aware fine-tuning on the training subset; 0 is none."}
    )
    seed: int = field(default=0, metadata={"help": "Chooses the calibration clips, and the order of training ones."})
    bootstrap: int = field(default=1000, metadata={"help": "Resamples behind the confidence intervals; 0 is none."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dtype != "float32" or self.torch_compile:
            raise InputError("The integers are found for float32 as it is: leave out dtype and torch_compile.")
        if self.calibration_clips < 1:
            raise InputError(f"calibration_clips is {self.calibration_clips}: give some hundred.")
        check_bootstrap(self.bootstrap)
        self.quantization_config()

    def quantization_config(self) -> INCConfig:
        """What is asked of the quantizer; raises `InputError` if a value is out of range."""
        return INCConfig(tolerable_loss=self.tolerable_loss, max_trials=self.max_trials, qat_epochs=self.qat_epochs)

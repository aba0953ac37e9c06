"""The INT8 forms of the students, by the type of their configuration."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from torch import nn

from modeling_cpmobile import CPMobileInt8Config, CPMobileInt8Conv, CPMobileInt8Quantizer, quantization_cpmobile
from modeling_tfsepnet import TFSepNetInt8Config, TFSepNetInt8Conv, TFSepNetInt8Quantizer, quantization_tfsepnet


Int8Conv: TypeAlias = TFSepNetInt8Conv | CPMobileInt8Conv
Int8Config: TypeAlias = TFSepNetInt8Config | CPMobileInt8Config


@dataclass(frozen=True)
class Int8Form:
    """What the package of a student provides for INT8; the models of a form have the same layers and steps.

    Attributes:
        config (`type`): Marks a model folder as INT8, and records how it was quantized.
        quantizer (`Callable`): Loads such a folder.
        replace_convolutions (`Callable`): Replaces the convolutions of a network by what a function returns for them.
        make_int8 (`Callable`): Such a function, which creates empty INT8 layers; `activation_bits` may be added.
    """

    config: type[Int8Config]
    quantizer: Callable[[Any], Any]
    replace_convolutions: Callable[[nn.Module, Callable[[nn.Module, bool, bool], nn.Module]], None]
    make_int8: Callable[..., Int8Conv]


INT8_FORMS = {
    "tfsepnet": Int8Form(
        TFSepNetInt8Config,
        TFSepNetInt8Quantizer,
        quantization_tfsepnet.replace_convolutions,
        quantization_tfsepnet.make_int8,
    ),
    "cpmobile": Int8Form(
        CPMobileInt8Config,
        CPMobileInt8Quantizer,
        quantization_cpmobile.replace_convolutions,
        quantization_cpmobile.make_int8,
    ),
}
"""INT8 forms by the `model_type` of the configuration."""

"""Loading and running of quantized (INT8) CP-Mobile model folders with torch and transformers only."""

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import nn
from transformers.quantizers.auto import (
    AUTO_QUANTIZER_MAPPING,
    register_quantization_config,
    register_quantizer,
)
from transformers.quantizers.base import HfQuantizer
from transformers.utils.quantization_config import QuantizationConfigMixin


METHOD = "cpmobile_int8"
"""`quant_method` of the models' configurations."""

ACTIVATION_RANGES = {8: (0, 255), 16: (-32768, 32767)}
"""Smallest and largest integer of an activation, by its bits."""


class CPMobileInt8Config(QuantizationConfigMixin):
    """Configuration that marks a model folder as INT8 and records how it was quantized.

    Args:
        calibration_clips (`int`, *optional*):
            Number of clips that the activation ranges were calibrated on.
        activation_algorithm (`str`, *optional*):
            Neural Compressor's algorithm for the activation ranges, `"kl"` or `"minmax"`.
        activation_symmetric (`bool`, *optional*):
            Whether the activation ranges are symmetric about zero.
        activation_bits (`int`, *optional*, defaults to 8):
            Bits of the inputs of the layers, 8 (unsigned) or 16 (signed); weights have 8.
        **kwargs:
            Further entries of a stored `quantization_config`, which are ignored.

    Raises:
        ValueError: If `activation_bits` is neither 8 nor 16.
    """

    def __init__(
        self,
        calibration_clips: int | None = None,
        activation_algorithm: str | None = None,
        activation_symmetric: bool | None = None,
        activation_bits: int = 8,
        **kwargs: Any,
    ) -> None:
        if activation_bits not in ACTIVATION_RANGES:
            raise ValueError(f"activation_bits is {activation_bits}: choose 8 or 16.")
        self.quant_method = METHOD  # type: ignore[assignment]  # annotated with transformers' own methods only
        self.calibration_clips = calibration_clips
        self.activation_algorithm = activation_algorithm
        self.activation_symmetric = activation_symmetric
        self.activation_bits = activation_bits


class CPMobileInt8Conv(nn.Module):
    """Convolution with 8-bit weights, 8- or 16-bit inputs and a folded batch norm, with an optional ReLU.

    The state contains everything that integer arithmetic needs: `weight` (int8, output channels first), `weight_scale`
    (float32, one per output channel), `bias` (int16) and its `bias_scale`, `input_scale` (float32) and
    `input_zero_point` (uint8), and, if `smooth`, one `smoothing` factor (float32) per input channel. An input integer
    `q` represents `(q - input_zero_point) * input_scale * smoothing`, a weight integer `q` represents
    `q * weight_scale / smoothing`.

    Args:
        convolution (`nn.Conv2d`):
            Float layer that sets the shape, stride, padding and groups.
        relu (`bool`):
            Whether a ReLU follows.
        smooth (`bool`):
            Whether each input channel has its own smoothing factor.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    bias_scale: torch.Tensor
    input_scale: torch.Tensor
    input_zero_point: torch.Tensor
    smoothing: torch.Tensor | None

    centred = False
    """Whether an offset is subtracted from the input before rounding, as in other networks of the same form."""

    def __init__(self, convolution: nn.Conv2d, relu: bool, smooth: bool, activation_bits: int = 8) -> None:
        super().__init__()
        self.stride, self.padding, self.groups = convolution.stride, convolution.padding, convolution.groups
        self.relu = relu
        self.activation_bits = activation_bits
        out_channels = convolution.out_channels
        self.register_buffer("weight", torch.zeros(convolution.weight.shape, dtype=torch.int8))
        # This scale is a parameter because transformers takes a model's dtype from its first floating-point parameter.
        self.weight_scale = nn.Parameter(torch.ones(out_channels), requires_grad=False)
        self.register_buffer("bias", torch.zeros(out_channels, dtype=torch.int16))
        self.register_buffer("bias_scale", torch.ones(()))
        self.register_buffer("input_scale", torch.ones(()))
        self.register_buffer("input_zero_point", torch.zeros((), dtype=torch.uint8))
        self.register_buffer("smoothing", torch.ones(convolution.in_channels) if smooth else None)

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        """Map (batch, in_channels, frequency, time) to (batch, out_channels, frequency, time), in float32.

        The integers are multiplied as the floats that they represent, which equals integer arithmetic up to float32
        rounding and works on any device.
        """
        scale = self.weight_scale * self.input_scale
        weight = self.weight.to(torch.float32) * scale.view(-1, 1, 1, 1)
        bias = self.bias.to(torch.float32) * self.bias_scale
        step = self.input_scale if self.smoothing is None else (self.input_scale * self.smoothing).view(1, -1, 1, 1)
        integers = self.clamp((hidden_state * step.reciprocal()).round_())
        output = nn.functional.conv2d(integers, weight, bias, self.stride, self.padding, (1, 1), self.groups)
        return output.relu_() if self.relu else output

    def clamp(self, integers: torch.Tensor) -> torch.Tensor:
        """Clamp integers to their bits, with zero for an input of zero, in place."""
        limits = ACTIVATION_RANGES[self.activation_bits]
        if self.activation_bits == 16:  # the zero point is 0
            return integers.clamp_(*limits)
        zero_point = self.input_zero_point.to(torch.float32)
        return integers.add_(zero_point).clamp_(*limits).sub_(zero_point)


def replace_convolutions(model: nn.Module, make: Callable[[nn.Module, bool, bool], nn.Module]) -> None:
    """Replace every convolution unit of a CP-Mobile by `make(unit, smooth, centred)`."""
    for name, module in list(model.named_modules()):
        # Compare names, as a model loaded as remote code has its own copy of the class.
        if type(module).__name__ != "CPMobileConvUnit":
            continue
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, make(module, child == "depthwise", False))


def make_int8(unit: nn.Module, smooth: bool, centred: bool, activation_bits: int = 8) -> CPMobileInt8Conv:
    """Create an INT8 layer of a unit's shape, to be filled with integers and scales."""
    assert isinstance(unit.convolution, nn.Conv2d) and not centred
    return CPMobileInt8Conv(unit.convolution, bool(unit.activation), smooth, activation_bits)


class CPMobileInt8Quantizer(HfQuantizer):
    """Quantizer with which `from_pretrained` loads INT8 model folders, as written by [`INCQuantizer`]."""

    requires_calibration = True
    quantization_config: CPMobileInt8Config

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Return float32 whatever the requested dtype, as lower precision would change the scales."""
        return torch.float32

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        bits = self.quantization_config.activation_bits
        replace_convolutions(model, partial(make_int8, activation_bits=bits))

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        for name, module in model.named_modules():
            if isinstance(module, CPMobileInt8Conv):
                check_layer(name, module)
        return model

    def is_serializable(self) -> bool:
        """Return whether the model can be saved, which it always can."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether the model can be trained; integers have no gradients."""
        return False


def check_layer(name: str, layer: CPMobileInt8Conv) -> None:
    """Raise an error if the state of a layer is not that of a quantized convolution."""
    if layer.weight.dtype != torch.int8 or layer.bias.dtype != torch.int16:
        raise ValueError(
            f"{name} has {layer.weight.dtype} weights and {layer.bias.dtype} biases instead of int8 and int16: load a "
            "folder written by INCQuantizer."
        )
    scales = [layer.weight_scale, layer.bias_scale.view(1), layer.input_scale.view(1)]
    if layer.smoothing is not None:
        scales.append(layer.smoothing)
    values = torch.cat(scales).detach()
    if not math.isfinite(float(values.sum())) or float(values.min()) <= 0:
        raise ValueError(f"{name} has a scale that is not a positive number: quantize the model again.")


if METHOD not in AUTO_QUANTIZER_MAPPING:  # the package and a remote-code copy of it may both be imported
    register_quantization_config(METHOD)(CPMobileInt8Config)
    register_quantizer(METHOD)(CPMobileInt8Quantizer)


__all__ = ["CPMobileInt8Config", "CPMobileInt8Conv", "CPMobileInt8Quantizer"]

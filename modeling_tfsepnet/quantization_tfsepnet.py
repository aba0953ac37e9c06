"""Loading and running of quantized (INT8) TF-SepNet model folders with torch and transformers only."""

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

from .inference_tfsepnet import Layer, Rounding, channels_last


METHOD = "tfsepnet_int8"
"""`quant_method` of the models' configurations."""

ACTIVATION_RANGES = {8: (0, 255), 16: (-32768, 32767)}
"""Smallest and largest integer of an activation, by its bits."""


class TFSepNetInt8Config(QuantizationConfigMixin):
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


class TFSepNetInt8Conv(nn.Module):
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
        centred (`bool`):
            Whether the minimum of each window and frequency bin is subtracted from the input before rounding, and its
            contribution added after the convolution, in float. After a residual norm, all channels that a ReLU has set
            to zero share this minimum; rounding it would add the same error to all of them.
    """

    weight: torch.Tensor
    bias: torch.Tensor
    bias_scale: torch.Tensor
    input_scale: torch.Tensor
    input_zero_point: torch.Tensor
    smoothing: torch.Tensor | None

    def __init__(
        self, convolution: nn.Conv2d, relu: bool, smooth: bool, centred: bool, activation_bits: int = 8
    ) -> None:
        super().__init__()
        self.in_channels, self.stride = convolution.in_channels, convolution.stride
        self.padding, self.groups = convolution.padding, convolution.groups
        self.relu = relu
        self.activation_bits = activation_bits
        self.centred = centred
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
        layer, rows = self.layer(), hidden_state.permute(0, 2, 3, 1)
        if self.weight.shape[2:] == (1, 1):
            return channels_last(layer._replace(weight=layer.weight.flatten(1)).pointwise(rows))
        return channels_last(layer.convolve(rows, self.stride))

    def layer(self) -> Layer:
        """Return the weights and biases that the integers represent, and the rounding of the input.

        The weights include the step of the input, so that they apply to its integers.
        """
        scale = self.weight_scale * self.input_scale
        step = (
            self.input_scale.expand(self.in_channels) if self.smoothing is None else self.input_scale * self.smoothing
        )
        zero_point = self.input_zero_point * torch.full_like(step, self.activation_bits == 8)  # 0 with 16 bits
        low, high = ACTIVATION_RANGES[self.activation_bits]
        return Layer(
            self.weight.to(torch.float32) * scale.view(-1, 1, 1, 1),
            self.bias.to(torch.float32) * self.bias_scale,
            Rounding(step.reciprocal(), low - zero_point, high - zero_point, self.centred),
            self.relu,
        )


def replace_convolutions(model: nn.Module, make: Callable[[nn.Module, bool, bool], nn.Module]) -> None:
    """Replace every convolution unit and the classifier of a TF-SepNet by `make(unit, smooth, centred)`."""
    for name, module in list(model.named_modules()):
        # Compare names, as a model loaded as remote code has its own copy of the class.
        if type(module).__name__ != "TFSepNetConvUnit" and name != "classifier":
            continue
        centred = name == "classifier" or name.endswith(".transition")
        smooth = centred or name.endswith("_path.depthwise")
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, make(module, smooth, centred))


def make_int8(unit: nn.Module, smooth: bool, centred: bool, activation_bits: int = 8) -> TFSepNetInt8Conv:
    """Create an INT8 layer of a unit's shape, to be filled with integers and scales."""
    relu = not isinstance(unit, nn.Conv2d)
    convolution = unit.convolution if relu else unit
    assert isinstance(convolution, nn.Conv2d)
    return TFSepNetInt8Conv(convolution, relu, smooth, centred, activation_bits)


class TFSepNetInt8Quantizer(HfQuantizer):
    """Quantizer with which `from_pretrained` loads INT8 model folders, as written by [`INCQuantizer`]."""

    requires_calibration = True
    quantization_config: TFSepNetInt8Config

    def update_dtype(self, dtype: torch.dtype) -> torch.dtype:
        """Return float32 whatever the requested dtype, as lower precision would change the scales."""
        return torch.float32

    def _process_model_before_weight_loading(self, model: nn.Module, **kwargs: Any) -> None:
        bits = self.quantization_config.activation_bits
        replace_convolutions(model, partial(make_int8, activation_bits=bits))

    def _process_model_after_weight_loading(self, model: nn.Module, **kwargs: Any) -> nn.Module:
        for name, module in model.named_modules():
            if isinstance(module, TFSepNetInt8Conv):
                check_layer(name, module)
        return model

    def is_serializable(self) -> bool:
        """Return whether the model can be saved, which it always can."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Whether the model can be trained; integers have no gradients."""
        return False


def check_layer(name: str, layer: TFSepNetInt8Conv) -> None:
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
    register_quantization_config(METHOD)(TFSepNetInt8Config)
    register_quantizer(METHOD)(TFSepNetInt8Quantizer)


__all__ = ["TFSepNetInt8Config", "TFSepNetInt8Conv", "TFSepNetInt8Quantizer"]

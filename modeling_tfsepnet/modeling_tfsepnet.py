"""TF-SepNet: a network of time-frequency separable convolutions for acoustic scene classification."""

import math
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._python_dispatch import is_in_torch_dispatch_mode
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput
from transformers.utils.generic import can_return_tuple

from .configuration_tfsepnet import TFSepNetConfig
from .inference_tfsepnet import Encoder, Layer, arrange, channels_last, encode, same_values
from .pipeline_tfsepnet import SceneClassificationPipeline
from .quantization_tfsepnet import TFSepNetInt8Config  # noqa: F401 - registers INT8 models with transformers
from .training_tfsepnet import MaxPool, NormReLU, ResidualNorm, StridedConv, can_fuse, convolve_copies, keeps_less


# Number of windows that are processed together when no gradients are needed.
WINDOWS_PER_CHUNK = 4


class TFSepNetConv2d(nn.Conv2d):
    """Convolution with the fastest kernels for grouped channels.

    CPUs have fast kernels only for depthwise convolutions with one output per channel, so that a grouped convolution
    runs as one of these per output of a group; for the second one of the stem this is 1.5 times as fast. On CUDA,
    torch's own depthwise kernels, which want channels first, are several times as fast as those of cuDNN for channels
    last: on an H100, a training step of 256 clips takes 38 instead of 66 ms.
    """

    def _conv_forward(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        if self.groups > 1 and input.device.type == "cuda":
            input = input.contiguous()
        if self.groups in (1, self.out_channels) or input.device.type != "cpu" or torch.compiler.is_exporting():
            return super()._conv_forward(input, weight, bias)
        if self.training and bias is None and self.kernel_size == (3, 3) and keeps_less(input, compiled=True):
            if torch.is_autocast_enabled("cpu") and input.dtype != torch.float64:  # which autocast leaves
                dtype = torch.get_autocast_dtype("cpu")
                input, weight = input.to(dtype), weight.to(dtype)
            return StridedConv.apply(input, weight, self.stride)
        return convolve_copies(input, weight, bias, self.stride, self.padding)


class TFSepNetConvUnit(nn.Module):
    """Convolution without bias, batch normalisation and ReLU.

    Args:
        in_channels (`int`): Number of input channels.
        out_channels (`int`): Number of output channels.
        kernel_size (`tuple[int, int]`): Odd kernel size (frequency, time); the padding preserves the size at stride 1.
        stride (`int`, *optional*, defaults to 1): Stride along both axes.
        groups (`int`, *optional*, defaults to 1): Number of channel groups.
    """

    def __init__(
        self, in_channels: int, out_channels: int, kernel_size: tuple[int, int], stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.convolution = TFSepNetConv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=(kernel_size[0] // 2, kernel_size[1] // 2),
            groups=groups,
            bias=False,
        )
        self.normalization = nn.BatchNorm2d(out_channels)

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        """Map (batch, in_channels, frequency, time) to (batch, out_channels, frequency / stride, time / stride)."""
        norm = self.normalization
        # Hooks, such as those of tools that count operations, have to see both layers.
        hooks = (norm._forward_hooks, norm._forward_pre_hooks, norm._backward_hooks, norm._backward_pre_hooks)
        hooked = any(hooks) or _has_any_global_hook()
        if self.training or hooked:
            hidden_state = self.convolution(hidden_state)
            if not hooked and keeps_less(hidden_state) and can_fuse(norm, hidden_state):
                return NormReLU.apply(hidden_state, norm.weight, norm.bias, norm)
            output = norm(hidden_state)
            return output.relu() if hooked else output.relu_()
        layer = self.layer()
        return self.convolution._conv_forward(hidden_state, layer.weight, layer.bias).relu_()

    def layer(self) -> Layer:
        """Return the convolution with the normalisation, a scale and a shift per channel, folded in."""
        norm = self.normalization
        assert norm.running_mean is not None and norm.running_var is not None
        scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
        return Layer(self.convolution.weight * scale.view(-1, 1, 1, 1), norm.bias - norm.running_mean * scale)


class TFSepNetResidualNorm(nn.Module):
    """Residual normalisation `scale * x + (x - mean) / sqrt(variance + eps)` (report, section 3.2).

    The mean and the unbiased variance of each window and frequency bin are taken over channels and time. There are no
    parameters and no running statistics.
    """

    def __init__(self, scale: float, eps: float) -> None:
        super().__init__()
        self.scale = scale
        self.eps = eps

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        """Normalise a tensor (batch, channels, frequency, time)."""
        rows = hidden_state.permute(0, 2, 3, 1).flatten(2)  # a view, as activations are channels last
        count = rows.shape[2]
        # Layer norm divides by the biased standard deviation; (count - 1) / count is the ratio of the two variances.
        bias_correction = (count - 1) / count
        # In half precision, a gain in float32 makes a CPU compute in it too.
        dtype = torch.promote_types(rows.dtype, torch.float32) if rows.device.type == "cpu" else rows.dtype
        gain = rows.new_full((count,), math.sqrt(bias_correction), dtype=dtype)
        if self.training and self.scale >= 0 and keeps_less(rows):
            normalised = ResidualNorm.apply(rows, gain, self.scale, self.eps * bias_correction)
        else:
            normalised = nn.functional.layer_norm(rows, (count,), gain, eps=self.eps * bias_correction)
            normalised.add_(rows, alpha=self.scale)
        return channels_last(normalised.unflatten(2, (-1, hidden_state.shape[1])))


class TFSepNetMaxPool(nn.MaxPool2d):
    """Max-pooling by two along both axes, without padding."""

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        """Map (batch, channels, frequency, time) to (batch, channels, frequency / 2, time / 2)."""
        if self.training and keeps_less(hidden_state):
            return MaxPool.apply(hidden_state)
        return super().forward(hidden_state)


class TFSepNetPath(nn.Module):
    """One half of a block: a residual path with a depthwise convolution along one axis and a mean over that axis.

    Args:
        channels (`int`): Number of channels of the path.
        kernel_size (`int`): Kernel size along `axis`.
        axis (`int`): 2 for the frequency path, 3 for the time path.
        dropout (`float`): Dropout probability of the correction that the path adds.
    """

    def __init__(self, channels: int, kernel_size: int, axis: int, dropout: float) -> None:
        super().__init__()
        self.axis = axis
        kernel = (kernel_size, 1) if axis == 2 else (1, kernel_size)
        self.depthwise = TFSepNetConvUnit(channels, channels, kernel, groups=channels)
        self.pointwise = TFSepNetConvUnit(channels, channels, (1, 1))
        self.dropout = nn.Dropout(dropout)

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        """Add a correction that is constant along `axis` to a tensor (batch, channels, frequency, time)."""
        # Dividing a sum, unlike `mean`, lets autograd expand the gradient along the axis without copying it.
        rows = self.depthwise(hidden_state).permute(0, 2, 3, 1)
        correction = rows.sum(dim=self.axis - 1, keepdim=True) / rows.shape[self.axis - 1]
        return hidden_state + self.dropout(self.pointwise(channels_last(correction)))


class TFSepNetBlock(nn.Module):
    """Block of time-frequency separable convolutions (report, section 3.2).

    If `in_channels` and `out_channels` differ, a pointwise convolution unit (the transition) changes the width first.
    The channels are then shuffled, so that the two halves interleave. The first half of the shuffled channels goes
    through the frequency path, the second through the time path.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, dropout: float) -> None:
        super().__init__()
        half = out_channels // 2
        self.transition = (
            TFSepNetConvUnit(in_channels, out_channels, (1, 1)) if in_channels != out_channels else nn.Identity()
        )
        self.frequency_path = TFSepNetPath(half, kernel_size, axis=2, dropout=dropout)
        self.time_path = TFSepNetPath(half, kernel_size, axis=3, dropout=dropout)

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        """Map (batch, in_channels, frequency, time) to (batch, out_channels, frequency, time)."""
        frequency, time = self.shuffle(self.transition(hidden_state))
        return torch.cat([self.frequency_path(frequency), self.time_path(time)], dim=1)

    @staticmethod
    def shuffle(hidden_state: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the two halves of the shuffled channels, copied only once, each to its own memory."""
        shuffled = hidden_state.permute(0, 2, 3, 1).unflatten(3, (2, -1)).transpose(3, 4)
        if shuffled.shape[3] % 2:  # the boundary between the halves splits a pair
            frequency, time = shuffled.flatten(3).chunk(2, dim=3)
        else:
            frequency, time = (half.flatten(3) for half in shuffled.chunk(2, dim=3))
        return channels_last(frequency), channels_last(time)


class TFSepNetStage(nn.Module):
    """Stage of max-pooling (if `downsample`), `num_blocks` blocks of the same width, and a residual norm."""

    def __init__(
        self, config: TFSepNetConfig, in_channels: int, out_channels: int, num_blocks: int, downsample: bool
    ) -> None:
        super().__init__()
        self.pooling = TFSepNetMaxPool() if downsample else nn.Identity()
        self.blocks = nn.ModuleList(
            TFSepNetBlock(in_channels if i == 0 else out_channels, out_channels, config.kernel_size, config.dropout)
            for i in range(num_blocks)
        )
        self.normalization = TFSepNetResidualNorm(config.residual_norm_scale, config.residual_norm_eps)

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        """Map (batch, in_channels, frequency, time) to (batch, out_channels, frequency, time), halved if pooled."""
        hidden_state = self.pooling(hidden_state)
        for block in self.blocks:
            hidden_state = block(hidden_state)
        return self.normalization(hidden_state)


class TFSepNetPreTrainedModel(PreTrainedModel):
    """Base class that sets the configuration, names and initialisation (PyTorch's defaults, as in the public code)."""

    config: TFSepNetConfig
    base_model_prefix = "tfsepnet"
    main_input_name = "input_values"
    input_modalities = "audio"
    _no_split_modules = ["TFSepNetBlock"]  # noqa: RUF012 - transformers expects a list or a set

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a model as [`~transformers.PreTrainedModel.from_pretrained`] does, but only from safetensors.

        Raises:
            OSError: If the folder or repository has no weights in that format; pickled ones are not opened.
        """
        return super().from_pretrained(*args, **{"use_safetensors": True, **kwargs})

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Conv2d):
            init.kaiming_uniform_(module.weight, a=math.sqrt(5))
            if module.bias is not None:
                bound = 1 / math.sqrt(module.weight[0].numel())
                init.uniform_(module.bias, -bound, bound)
        else:
            super()._init_weights(module)


def check_shapes(input_values: torch.Tensor, attention_mask: torch.Tensor | None) -> None:
    """Raise an error unless the input is (batch, windows, mel bins, frames) and the mask (batch, windows)."""
    if input_values.ndim != 4:
        raise ValueError(
            f"input_values has shape {tuple(input_values.shape)}, but must be (batch, windows, mel bins, frames); a "
            "one-second clip has one window."
        )
    if attention_mask is not None and attention_mask.shape != input_values.shape[:2]:
        raise ValueError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, but must be (batch, windows), here "
            f"{tuple(input_values.shape[:2])}."
        )


def mean_over_windows(values: torch.Tensor, attention_mask: torch.Tensor | None) -> torch.Tensor:
    """Average values (batch, windows, channels) over the windows whose mask (batch, windows) is 1."""
    if attention_mask is None:
        return values.mean(dim=1)
    weight = attention_mask.to(values.dtype)
    return torch.einsum("bwc,bw->bc", values, weight / weight.sum(dim=1, keepdim=True).clamp(min=1))


class TFSepNetModel(TFSepNetPreTrainedModel):
    """TF-SepNet without its classifier (report, Table 2).

    The stem, two strided convolutions, is followed by four stages of time-frequency separable blocks. A residual norm
    follows the stem and every stage, before the next pooling: five in all, for both depths.
    """

    # Of the folder of a classifier, only the network before it is loaded.
    _keys_to_ignore_on_load_unexpected = [r"^classifier\."]  # noqa: RUF012 - transformers expects a list or a set

    def __init__(self, config: TFSepNetConfig) -> None:
        super().__init__(config)
        width = config.base_channels
        widths = [2 * width, width, int(1.5 * width), 2 * width, int(2.5 * width)]
        self.stem = nn.Sequential(
            TFSepNetConvUnit(1, width // 2, (3, 3), stride=2),
            TFSepNetConvUnit(width // 2, widths[0], (3, 3), stride=2, groups=width // 2),
            TFSepNetResidualNorm(config.residual_norm_scale, config.residual_norm_eps),
        )
        self.stages = nn.ModuleList(
            TFSepNetStage(config, in_channels, out_channels, num_blocks, downsample)
            for in_channels, out_channels, num_blocks, downsample in zip(
                widths[:-1], widths[1:], (2, 2, 2, 3), (False, True, True, config.depth == 17), strict=True
            )
        )
        self._arranged: tuple[list[torch.Tensor], Encoder | None] | None = None
        self.post_init()

    def encode(self, windows: torch.Tensor, every_stage: bool) -> list[torch.Tensor]:
        """Encode log-mel windows (windows, mel bins, frames).

        Without gradients, a few windows are processed at a time: the activations then fit into the CPU cache, which is
        twice as fast as one pass over a large batch, and memory use does not grow with the batch.

        Args:
            windows (`torch.Tensor` of shape `(windows, mel_bins, frames)`): Log-mel energies.
            every_stage (`bool`): Whether to return the output of the stem and of every stage, or only the last one.

        Returns:
            `list[torch.Tensor]`: The outputs, each of shape `(windows, channels, frequency, time)`.
        """
        if torch.is_grad_enabled() or self.training or torch.compiler.is_exporting():
            return self.encode_together(windows, every_stage)
        encoder = self.arranged_layers()
        if len(windows) <= WINDOWS_PER_CHUNK:
            return self.encode_together(windows, every_stage, encoder)
        return self.encode_by_chunks(windows, every_stage, encoder)

    @torch.compiler.disable(recursive=False)  # compile one chunk, not every number of chunks
    def encode_by_chunks(
        self, windows: torch.Tensor, every_stage: bool, encoder: Encoder | None
    ) -> list[torch.Tensor]:
        """Encode windows in chunks that fit into the cache."""
        chunks = [self.encode_together(chunk, every_stage, encoder) for chunk in windows.split(WINDOWS_PER_CHUNK)]
        return [torch.cat(states) for states in zip(*chunks, strict=True)]

    def encode_together(
        self, windows: torch.Tensor, every_stage: bool, encoder: Encoder | None = None
    ) -> list[torch.Tensor]:
        """Encode windows in one pass, by the modules or, if there is an `encoder`, by its layers."""
        if encoder is not None:
            return encode(encoder, self.stem[-1], windows, every_stage)
        hidden_state = channels_last(windows.unsqueeze(-1))
        hidden_states = []
        for stage in (self.stem, *self.stages):
            hidden_state = stage(hidden_state)
            hidden_states.append(hidden_state)
        return hidden_states if every_stage else hidden_states[-1:]

    def arranged_layers(self) -> Encoder | None:
        """Return the weights for [`~inference_tfsepnet.encode`], arranged anew if one of them has changed.

        Returns None on other devices than the CPU, and where the modules have to run: for hooks, for modes of torch
        that look at operations, for layers of another kind, and for compilers, which arrange what they see.
        """
        if self.device.type != "cpu" or torch.compiler.is_compiling() or is_in_torch_dispatch_mode():
            return None
        modules: list[nn.Module] = [self]
        tensors: list[torch.Tensor | None] = []
        while modules:
            module = modules.pop()
            if module._forward_hooks or module._forward_pre_hooks:
                return None
            modules.extend(child for child in module._modules.values() if child is not None)
            tensors.extend(module._parameters.values())
            tensors.extend(module._buffers.values())
        # The values are compared, as no counter of torch tells of all changes. Batches are counted in integers.
        values = [tensor for tensor in tensors if tensor is not None and tensor.dtype != torch.long]
        if self._arranged is None or not same_values(values, self._arranged[0]):
            self._arranged = [tensor.clone() for tensor in values], arrange(self)
        return self._arranged[1]

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> BaseModelOutputWithPooling:
        """Encode log-mel windows.

        Args:
            input_values (`torch.Tensor` of shape `(batch, windows, mel_bins, frames)`):
                Normalised log-mel energies of one-second windows from [`TFSepNetFeatureExtractor`], of any floating
                type. At least 29 mel bins and 29 frames (13 at depth 16), or the poolings leave nothing.
            attention_mask (`torch.Tensor` of shape `(batch, windows)`, *optional*):
                1 for real windows, 0 for padding.
            output_hidden_states (`bool`, *optional*):
                Whether to return the output of the stem and of every stage.
            return_dict (`bool`, *optional*):
                Whether to return a [`~transformers.utils.ModelOutput`] instead of a tuple.

        Returns:
            [`~transformers.modeling_outputs.BaseModelOutputWithPooling`]: `last_hidden_state` of shape
            `(batch, windows, 2.5 * base_channels, mel_bins / 32, frames / 32)` at depth 17; `pooler_output` of shape
            `(batch, 2.5 * base_channels)`, its mean over frequency, time and real windows; and, if requested,
            `hidden_states`, five tensors of shape `(batch, windows, channels, frequency, time)`.

        Raises:
            ValueError: If `input_values` or `attention_mask` has the wrong shape.
        """
        check_shapes(input_values, attention_mask)
        if output_hidden_states is None:
            output_hidden_states = bool(self.config.output_hidden_states)
        batch_size = input_values.shape[0]
        hidden_states = [
            state.unflatten(0, (batch_size, -1))
            for state in self.encode(input_values.flatten(0, 1).to(self.dtype), output_hidden_states)
        ]
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden_states[-1],
            pooler_output=mean_over_windows(hidden_states[-1].mean(dim=(3, 4)), attention_mask),
            hidden_states=tuple(hidden_states) if output_hidden_states else None,
        )


class TFSepNetForAudioClassification(TFSepNetPreTrainedModel):
    """TF-SepNet with its classifier, a pointwise convolution followed by the mean over frequency and time.

    The logits of a clip are the mean of the logits of its windows.
    """

    pipeline_class = SceneClassificationPipeline
    """Pipeline class that reads audio files without ffmpeg; see its `__new__`."""

    def __init__(self, config: TFSepNetConfig) -> None:
        super().__init__(config)
        assert config.num_labels is not None
        self.num_labels = config.num_labels
        self.tfsepnet = TFSepNetModel(config)
        self.classifier = nn.Conv2d(int(2.5 * config.base_channels), config.num_labels, 1)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> SequenceClassifierOutput:
        """Classify clips.

        Args:
            input_values (`torch.Tensor` of shape `(batch, windows, mel_bins, frames)`):
                Normalised log-mel energies of one-second windows from [`TFSepNetFeatureExtractor`].
            attention_mask (`torch.Tensor` of shape `(batch, windows)`, *optional*):
                1 for real windows, 0 for padding.
            labels (`torch.Tensor` of shape `(batch,)`, *optional*):
                Labels for computing the cross-entropy loss.
            output_hidden_states (`bool`, *optional*):
                Whether to return the output of the stem and of every stage.
            return_dict (`bool`, *optional*):
                Whether to return a [`~transformers.utils.ModelOutput`] instead of a tuple.

        Returns:
            [`~transformers.modeling_outputs.SequenceClassifierOutput`]: `logits` of shape `(batch, num_labels)`;
            `loss`, if labels are given; and `hidden_states`, if requested.

        Raises:
            ValueError: If `input_values` or `attention_mask` has the wrong shape.
        """
        outputs = self.tfsepnet(input_values, attention_mask, output_hidden_states)
        batch_size = input_values.shape[0]
        logits = self.classifier(outputs.last_hidden_state.flatten(0, 1)).mean(dim=(2, 3))
        logits = mean_over_windows(logits.unflatten(0, (batch_size, -1)), attention_mask)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels, logits, self.config)
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


__all__ = ["TFSepNetForAudioClassification", "TFSepNetModel", "TFSepNetPreTrainedModel"]

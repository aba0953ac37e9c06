"""CP-Mobile: a network of inverted residual blocks for acoustic scene classification."""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling, SequenceClassifierOutput
from transformers.utils.generic import can_return_tuple

from .configuration_cpmobile import CPMobileConfig, round_width
from .pipeline_cpmobile import CPMobileAudioClassificationPipeline
from .quantization_cpmobile import CPMobileInt8Config  # noqa: F401 - registers INT8 models with transformers
from .training_cpmobile import StridedConv, is_differentiated_by_phases


# Number of windows that are processed together when no gradients are needed.
WINDOWS_PER_CHUNK = 8


class CPMobileConv2d(nn.Conv2d):
    """Convolution whose gradient is fast on a CPU, see [`~training_cpmobile.StridedConv`]."""

    def _conv_forward(self, input: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        strided = self.groups > 1 and self.kernel_size == (3, 3) and max(self.stride) == 2
        if not (strided and self.training and is_differentiated_by_phases(input)):
            return super()._conv_forward(input, weight, bias)
        if torch.is_autocast_enabled("cpu") and input.dtype != torch.float64:  # which autocast leaves
            dtype = torch.get_autocast_dtype("cpu")
            input, weight = input.to(dtype), weight.to(dtype)
        return StridedConv.apply(input, weight, self.stride)


class CPMobileConvUnit(nn.Module):
    """Convolution without bias, batch normalisation and, if `activation`, ReLU.

    Args:
        in_channels (`int`): Number of input channels.
        out_channels (`int`): Number of output channels.
        kernel_size (`int`): Odd kernel size along both axes; the padding preserves the size at stride 1.
        stride (`int` or `tuple[int, int]`, *optional*, defaults to 1): Stride along frequency and time.
        groups (`int`, *optional*, defaults to 1): Number of channel groups.
        activation (`bool`, *optional*, defaults to `True`): Whether a ReLU follows.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int,
        stride: int | tuple[int, int] = 1,
        groups: int = 1,
        activation: bool = True,
    ) -> None:
        super().__init__()
        self.convolution = CPMobileConv2d(
            in_channels,
            out_channels,
            kernel_size,
            stride=stride,
            padding=kernel_size // 2,
            groups=groups,
            bias=False,
        )
        self.normalization = nn.BatchNorm2d(out_channels)
        self.activation = activation

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        """Map (batch, in_channels, frequency, time) to (batch, out_channels, frequency / stride, time / stride)."""
        if self.training or self.normalization._forward_hooks:
            # Hooks, such as those of tools that count operations, have to see both layers.
            output = self.normalization(self.convolution(hidden_state))
        else:
            # With fixed statistics the normalisation is a scale and a shift per channel. Folding them into the
            # convolution costs a few thousand operations and saves a pass over its output.
            convolution, norm = self.convolution, self.normalization
            assert norm.running_mean is not None and norm.running_var is not None
            scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
            weight, bias = convolution.weight * scale.view(-1, 1, 1, 1), norm.bias - norm.running_mean * scale
            output = convolution._conv_forward(hidden_state, weight, bias)
        return output.relu_() if self.activation else output


class CPMobileResponseNorm(nn.Module):
    """Global response norm with one scale and one shift: `x + gamma * x * n + beta`.

    `n` is the norm of each channel over frequency and time, divided by the mean of these norms over the channels.
    """

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(1))
        self.beta = nn.Parameter(torch.zeros(1))

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        """Normalise a tensor (batch, channels, frequency, time)."""
        response = torch.linalg.vector_norm(hidden_state, dim=(2, 3), keepdim=True)
        response = response / (response.mean(dim=1, keepdim=True) + 1e-6)
        return hidden_state + self.gamma * hidden_state * response + self.beta


class CPMobileBlock(nn.Module):
    """Inverted residual block: expansion, depthwise convolution and projection, around which a shortcut leads.

    There is a shortcut only if `in_channels` and `out_channels` are equal; if the block has a stride, the shortcut
    averages windows of 3 x 3.

    Args:
        config ([`CPMobileConfig`]): Configuration of the network.
        in_channels (`int`): Number of input channels.
        out_channels (`int`): Number of output channels.
        stride (`tuple[int, int]`): Stride along frequency and time.
    """

    def __init__(self, config: CPMobileConfig, in_channels: int, out_channels: int, stride: tuple[int, int]) -> None:
        super().__init__()
        width = round_width(in_channels * config.expansion_rate)
        self.expansion = CPMobileConvUnit(in_channels, width, 1)
        self.depthwise = CPMobileConvUnit(width, width, 3, stride=stride, groups=width)
        self.projection = CPMobileConvUnit(width, out_channels, 1, activation=False)
        self.shortcut: nn.Module | None = None
        if in_channels == out_channels:
            self.shortcut = nn.Identity() if stride == (1, 1) else nn.AvgPool2d(3, stride, padding=1)
        self.response_norm = CPMobileResponseNorm() if config.global_response_norm else nn.Identity()

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        """Map (batch, in_channels, frequency, time) to (batch, out_channels, frequency / stride, time / stride)."""
        output = self.projection(self.depthwise(self.expansion(hidden_state)))
        if self.shortcut is not None:
            output = output + self.shortcut(hidden_state)
        return self.response_norm(output).relu_()


class CPMobilePreTrainedModel(PreTrainedModel):
    """Base class that sets the configuration, names and initialisation of the public code."""

    config: CPMobileConfig
    base_model_prefix = "cpmobile"
    main_input_name = "input_values"
    input_modalities = "audio"
    _no_split_modules = ["CPMobileBlock"]  # noqa: RUF012 - transformers expects a list or a set

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
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, CPMobileResponseNorm):
            init.zeros_(module.gamma)
            init.zeros_(module.beta)
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


class CPMobileModel(CPMobilePreTrainedModel):
    """CP-Mobile without its classifier: a stem of two strided convolutions, and stages of inverted residual blocks."""

    # Of the folder of a classifier, only the network before it is loaded.
    _keys_to_ignore_on_load_unexpected = [r"^classifier\."]  # noqa: RUF012 - transformers expects a list or a set

    def __init__(self, config: CPMobileConfig) -> None:
        super().__init__(config)
        width = config.widths[0]
        self.stem = nn.Sequential(CPMobileConvUnit(1, width // 4, 3, 2), CPMobileConvUnit(width // 4, width, 3, 2))
        self.stages = nn.ModuleList()
        strides = iter(config.strides)
        for num_blocks, out_channels in zip(config.num_blocks, config.widths, strict=True):
            blocks = []
            for _ in range(num_blocks):
                frequency, time = next(strides)
                blocks.append(CPMobileBlock(config, width, out_channels, (frequency, time)))
                width = out_channels
            self.stages.append(nn.Sequential(*blocks))
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
        if torch.is_grad_enabled() or torch.compiler.is_exporting() or len(windows) <= WINDOWS_PER_CHUNK:
            return self.encode_together(windows, every_stage)
        return self.encode_by_chunks(windows, every_stage)

    @torch.compiler.disable(recursive=False)  # compile one chunk, not every number of chunks
    def encode_by_chunks(self, windows: torch.Tensor, every_stage: bool) -> list[torch.Tensor]:
        """Encode windows in chunks that fit into the cache."""
        chunks = [self.encode_together(chunk, every_stage) for chunk in windows.split(WINDOWS_PER_CHUNK)]
        return [torch.cat(states) for states in zip(*chunks, strict=True)]

    def encode_together(self, windows: torch.Tensor, every_stage: bool) -> list[torch.Tensor]:
        """Encode windows in one pass."""
        hidden_state = windows.unsqueeze(-1).permute(0, 3, 1, 2)  # channels last
        hidden_states = []
        for stage in (self.stem, *self.stages):
            hidden_state = stage(hidden_state)
            hidden_states.append(hidden_state)
        return hidden_states if every_stage else hidden_states[-1:]

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
                Log-mel energies of one-second windows from [`CPMobileFeatureExtractor`].
            attention_mask (`torch.Tensor` of shape `(batch, windows)`, *optional*):
                1 for real windows, 0 for padding.
            output_hidden_states (`bool`, *optional*):
                Whether to return the output of the stem and of every stage.
            return_dict (`bool`, *optional*):
                Whether to return a [`~transformers.utils.ModelOutput`] instead of a tuple.

        Returns:
            [`~transformers.modeling_outputs.BaseModelOutputWithPooling`]: `last_hidden_state` of shape
            `(batch, windows, channels, frequency, time)`; `pooler_output` of shape `(batch, channels)`, its mean over
            frequency, time and real windows; and, if requested, `hidden_states`, the output of the stem and of every
            stage, of shape `(batch, windows, channels, frequency, time)`.

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


class CPMobileForAudioClassification(CPMobilePreTrainedModel):
    """CP-Mobile with its classifier, a pointwise convolution and a batch norm, averaged over frequency and time.

    The logits of a clip are the mean of the logits of its windows.
    """

    pipeline_class = CPMobileAudioClassificationPipeline
    """Pipeline class that reads audio files without ffmpeg; see its `__new__`."""

    def __init__(self, config: CPMobileConfig) -> None:
        super().__init__(config)
        assert config.num_labels is not None
        self.num_labels = config.num_labels
        self.cpmobile = CPMobileModel(config)
        self.classifier = CPMobileConvUnit(config.widths[-1], config.num_labels, 1, activation=False)
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
                Log-mel energies of one-second windows from [`CPMobileFeatureExtractor`].
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
        outputs = self.cpmobile(input_values, attention_mask, output_hidden_states)
        batch_size = input_values.shape[0]
        logits = self.classifier(outputs.last_hidden_state.flatten(0, 1)).mean(dim=(2, 3))
        logits = mean_over_windows(logits.unflatten(0, (batch_size, -1)), attention_mask)
        loss = None
        if labels is not None:
            loss = self.loss_function(labels, logits, self.config)
        return SequenceClassifierOutput(loss=loss, logits=logits, hidden_states=outputs.hidden_states)


__all__ = ["CPMobileForAudioClassification", "CPMobileModel", "CPMobilePreTrainedModel"]

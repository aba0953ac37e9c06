"""BEATs: a Transformer over patches of a log-mel spectrogram (Chen et al., arXiv 2212.09058)."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import ModelOutput, SequenceClassifierOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.utils import can_return_tuple

from .configuration_beats import BeatsConfig
from .pipeline_beats import BeatsAudioClassificationPipeline


# Length of a frame and distance between frames, in samples at 16 kHz, for masks of samples.
FRAME_LENGTH = 400
HOP_LENGTH = 160


@dataclass
class BeatsModelOutput(ModelOutput):
    """Output of [`BeatsModel`].

    Args:
        last_hidden_state (`torch.FloatTensor` of shape `(batch, patches, hidden_size)`):
            Features of the patches, time-major: patch `t * rows + f` is mel row `f` of time column `t`. Features of
            masked-out patches are finite but meaningless.
        hidden_states (`tuple[torch.FloatTensor]`, *optional*, if `output_hidden_states=True`):
            Input of the first layer and outputs of all layers; the last one is `last_hidden_state`.
        attentions (`tuple[torch.FloatTensor]`, *optional*, if `output_attentions=True`):
            Attention weights of all layers, each of shape `(batch, heads, patches, patches)`.
        patch_mask (`torch.BoolTensor` of shape `(batch, patches)`, *optional*, if a mask was given):
            `True` for real patches, `False` for padding.
    """

    last_hidden_state: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    patch_mask: torch.Tensor | None = None


class BeatsPatchEmbeddings(nn.Module):
    """Embeddings of the square patches of a spectrogram: convolution, layer normalisation and projection."""

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(
            1, config.embedding_size, config.patch_size, stride=config.patch_size, bias=config.conv_bias
        )
        self.layer_norm = nn.LayerNorm(config.embedding_size, eps=config.layer_norm_eps)
        self.projection = (
            nn.Linear(config.embedding_size, config.hidden_size)
            if config.embedding_size != config.hidden_size
            else nn.Identity()
        )
        self.dropout = nn.Dropout(config.embedding_dropout)

    def forward(self, input_values: torch.Tensor) -> torch.Tensor:
        """Map (batch, frames, num_mel_bins) to (batch, patches, hidden_size), dropping frames after the last patch."""
        hidden_states = self.convolution(input_values.to(self.convolution.weight.dtype).unsqueeze(1))
        hidden_states = self.layer_norm(hidden_states.flatten(2).transpose(1, 2))
        return self.dropout(self.projection(hidden_states))


class BeatsPositionalConvEmbedding(nn.Module):
    """Grouped convolution over the sequence of patches, weight-normalised per kernel tap, followed by exact GELU.

    An even kernel produces one output too many; the last one is dropped.
    """

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        self.groups = config.num_conv_pos_embedding_groups
        shape = (config.hidden_size, config.hidden_size // self.groups, config.num_conv_pos_embeddings)
        self.magnitude = nn.Parameter(torch.ones(1, 1, shape[2]))
        self.direction = nn.Parameter(torch.empty(shape))
        self.bias = nn.Parameter(torch.zeros(config.hidden_size))

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map (batch, patches, hidden_size) to the same shape."""
        inverse_norm = self.direction.square().sum(dim=(0, 1), keepdim=True).rsqrt()  # four times as fast as `norm`
        weight = self.direction * (self.magnitude * inverse_norm)
        hidden_states = F.conv1d(
            hidden_states.transpose(1, 2), weight, self.bias, padding=weight.shape[2] // 2, groups=self.groups
        )
        if weight.shape[2] % 2 == 0:
            hidden_states = hidden_states[..., :-1]
        return F.gelu(hidden_states).transpose(1, 2)


class BeatsRelativePositionBias(nn.Module):
    """Learned bias for the distance from query to key, in patches, with one value per distance bucket and head."""

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        self.num_buckets = config.num_buckets
        self.max_distance = config.max_bucket_distance
        self.embedding = nn.Embedding(config.num_buckets, config.num_attention_heads)

    def buckets(self, distance: torch.Tensor) -> torch.Tensor:
        """Return the buckets of integer distances of any shape (key index minus query index).

        Half of the buckets are for keys after the query. In each half, the first half of the buckets contain one
        distance each; the others grow logarithmically up to `max_distance`, and the last one contains all beyond.
        """
        num_buckets = self.num_buckets // 2
        num_exact = num_buckets // 2
        magnitude = distance.abs()
        growth = torch.log(magnitude.clamp(min=1).float() / num_exact) / math.log(self.max_distance / num_exact)
        logarithmic = num_exact + (growth * (num_buckets - num_exact)).long()
        buckets = torch.where(magnitude < num_exact, magnitude, logarithmic.clamp(max=num_buckets - 1))
        return buckets + (distance > 0) * num_buckets

    def forward(self, positions: torch.Tensor) -> torch.Tensor:
        """Map patch indices (batch, patches) to the bias (batch, heads, patches, patches), queries first."""
        distance = positions.unsqueeze(1) - positions.unsqueeze(2)
        return self.embedding(self.buckets(distance)).movedim(3, 1)


def encoder_linear(
    config: BeatsConfig, in_features: int, out_features: int, deep_norm_gain: float | None = None
) -> nn.Linear:
    """Create a linear layer of the Transformer whose attribute `init_std` is the standard deviation of its weights.

    The initial weights follow `config.initializer_range` or, in deep-norm models, Xavier initialisation with the given
    gain. The value is stored in the layer because transformers initialises custom models module by module and skips
    modules without parameters of their own.
    """
    linear = nn.Linear(in_features, out_features)
    std = config.initializer_range
    if config.deep_norm and deep_norm_gain is not None:
        std = deep_norm_gain * math.sqrt(2 / (in_features + out_features))
    linear.init_std = std  # type: ignore[assignment]  # PyTorch allows attributes of any type
    return linear


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute attention by matrix products.

    Queries, keys and values are (batch, heads, patches, head_size). The results are the context, (batch, patches,
    heads, head_size), and the attention weights.
    """
    logits = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        logits = logits + attention_mask
    weights = F.softmax(logits, dim=-1, dtype=torch.float32).to(query.dtype)
    weights = F.dropout(weights, p=dropout, training=module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


class BeatsAttention(nn.Module):
    """Multi-head self-attention whose relative position bias is scaled by a gate per query and head.

    The gate is `a * (b * grep_a - 1) + 2`, with `a` and `b` in (0, 1) computed from the projected query (the gated
    relative position bias of WavLM, arXiv 2110.13900).
    """

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        self.config = config
        self.head_size = config.hidden_size // config.num_attention_heads
        self.scaling = self.head_size**-0.5
        self.is_causal = False
        self.dropout = config.attention_dropout
        size = config.hidden_size
        self.q_proj = encoder_linear(config, size, size, deep_norm_gain=1.0)
        self.k_proj = encoder_linear(config, size, size, deep_norm_gain=1.0)
        self.v_proj = encoder_linear(config, size, size, deep_norm_gain=config.deep_norm_beta)
        self.out_proj = encoder_linear(config, size, size, deep_norm_gain=config.deep_norm_beta)
        self.has_gate = config.relative_position_embedding and config.gru_rel_pos
        if self.has_gate:
            self.grep_linear = encoder_linear(config, self.head_size, 8)
            self.grep_a = nn.Parameter(torch.ones(1, config.num_attention_heads, 1, 1))

    def bias(
        self, query: torch.Tensor, position_bias: torch.Tensor | None, patch_mask: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Return the term added to the logits, if any; broadcastable to (batch, heads, patches, patches)."""
        bias = position_bias
        if self.has_gate:
            a, b = self.grep_linear(query).unflatten(-1, (2, 4)).sum(-1, keepdim=True).sigmoid().unbind(-2)
            bias = (a * (b * self.grep_a - 1) + 2) * position_bias
        if patch_mask is not None:
            # The lowest finite number, as -inf would result in NaN for clips without any real patch.
            lowest = torch.finfo(query.dtype).min
            bias = torch.where(patch_mask[:, None, None, :], 0.0 if bias is None else bias, lowest)
        return None if bias is None else bias.to(query.dtype)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_bias: torch.Tensor | None,
        patch_mask: torch.Tensor | None,
        output_attentions: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Map (batch, patches, hidden_size) to the same shape and return the attention weights if available.

        `position_bias` is ungated, (1 or batch, heads, patches, patches); `patch_mask` is (batch, patches), `True` for
        real patches.
        """
        shape = (-1, self.head_size)
        query = self.q_proj(hidden_states).unflatten(-1, shape).transpose(1, 2)
        key = self.k_proj(hidden_states).unflatten(-1, shape).transpose(1, 2)
        value = self.v_proj(hidden_states).unflatten(-1, shape).transpose(1, 2)

        # Fused kernels do not return weights, so weights require the eager implementation.
        attention: Callable = eager_attention_forward
        if not output_attentions:
            attention = ALL_ATTENTION_FUNCTIONS.get_interface(self.config._attn_implementation, attention)
        context, weights = attention(
            self,
            query,
            key,
            value,
            self.bias(query, position_bias, patch_mask),
            scaling=self.scaling,
            dropout=self.dropout if self.training else 0.0,
        )
        return self.out_proj(context.flatten(2)), weights


class BeatsFeedForward(nn.Module):
    """Two linear layers with an activation between them; with `"glu"`, the first is twice as wide and gates itself."""

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        self.gated = config.hidden_act == "glu"
        self.activation = ACT2FN["silu" if self.gated else config.hidden_act]
        width = config.intermediate_size
        self.fc1 = encoder_linear(
            config, config.hidden_size, 2 * width if self.gated else width, deep_norm_gain=config.deep_norm_beta
        )
        self.fc2 = encoder_linear(config, width, config.hidden_size, deep_norm_gain=config.deep_norm_beta)
        self.activation_dropout = nn.Dropout(config.activation_dropout)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Map (batch, patches, hidden_size) to the same shape."""
        hidden_states = self.fc1(hidden_states)
        if self.gated:
            hidden_states, gate = hidden_states.chunk(2, dim=-1)
            hidden_states = hidden_states * self.activation(gate)
        else:
            hidden_states = self.activation(hidden_states)
        return self.fc2(self.activation_dropout(hidden_states))


class BeatsLayer(GradientCheckpointingLayer):
    """Attention and feed-forward layers with residuals, normalised after or, with `layer_norm_first`, before each."""

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        self.layer_norm_first = config.layer_norm_first
        self.residual_scale = config.deep_norm_alpha
        self.self_attn = BeatsAttention(config)
        self.self_attn_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = BeatsFeedForward(config)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)

    def forward(
        self,
        hidden_states: torch.Tensor,
        position_bias: torch.Tensor | None,
        patch_mask: torch.Tensor | None,
        output_attentions: bool,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Map (batch, patches, hidden_size) to the same shape; arguments and results as in [`BeatsAttention`]."""
        residual = hidden_states
        if self.layer_norm_first:
            hidden_states = self.self_attn_layer_norm(hidden_states)
        hidden_states, weights = self.self_attn(hidden_states, position_bias, patch_mask, output_attentions)
        hidden_states = self.residual_scale * residual + self.dropout(hidden_states)
        if not self.layer_norm_first:
            hidden_states = self.self_attn_layer_norm(hidden_states)

        residual = hidden_states
        if self.layer_norm_first:
            hidden_states = self.final_layer_norm(hidden_states)
        hidden_states = self.feed_forward(hidden_states)
        hidden_states = self.residual_scale * residual + self.dropout(hidden_states)
        if not self.layer_norm_first:
            hidden_states = self.final_layer_norm(hidden_states)
        return hidden_states, weights


class ScaleGradient(torch.autograd.Function):
    """Identity whose gradient is multiplied by a number."""

    @staticmethod
    def forward(ctx: Any, hidden_states: torch.Tensor, scale: float) -> torch.Tensor:
        """Return the input."""
        ctx.scale = scale
        return hidden_states.view_as(hidden_states)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor, None]:
        """Return the scaled gradient."""
        return gradient * ctx.scale, None


class BeatsEncoder(nn.Module):
    """Positional convolution followed by Transformer layers that share one table of relative position biases."""

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        self.config = config
        self.pos_conv_embed = BeatsPositionalConvEmbedding(config)
        self.layer_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout)
        self.relative_position_bias = BeatsRelativePositionBias(config) if config.relative_position_embedding else None
        self.layers = nn.ModuleList(BeatsLayer(config) for _ in range(config.num_hidden_layers))

    def forward(
        self,
        hidden_states: torch.Tensor,
        patch_mask: torch.Tensor | None,
        output_attentions: bool = False,
        output_hidden_states: bool = False,
        visible: torch.Tensor | None = None,
    ) -> BeatsModelOutput:
        """Encode (batch, patches, hidden_size); `patch_mask` is (batch, patches) with `True` for real patches.

        With `visible`, the indices of a subset of patches (batch, kept), the layers process only these, at their
        positions in the clip. `patch_mask` must then exclude all others, to hide them from the positional convolution.
        """
        if patch_mask is not None:
            hidden_states = hidden_states.masked_fill(~patch_mask.unsqueeze(-1), 0.0)
        hidden_states = hidden_states + self.pos_conv_embed(hidden_states)
        if visible is not None:
            assert patch_mask is not None
            hidden_states = hidden_states.take_along_dim(visible.unsqueeze(-1), dim=1)
            patch_mask = patch_mask.take_along_dim(visible, dim=1)
        if not self.config.layer_norm_first:
            hidden_states = self.layer_norm(hidden_states)
        hidden_states = self.dropout(hidden_states)

        position_bias = None
        if self.relative_position_bias is not None:
            if visible is None:
                visible = torch.arange(hidden_states.shape[1], device=hidden_states.device).unsqueeze(0)
            position_bias = self.relative_position_bias(visible)
        all_hidden_states, all_weights = [hidden_states], []
        for layer in self.layers:
            if self.config.layer_wise_gradient_decay_ratio != 1:
                hidden_states = ScaleGradient.apply(hidden_states, self.config.layer_wise_gradient_decay_ratio)
            probability = self.config.layerdrop if self.training else 0.0
            if probability == 0 or torch.rand((), device="cpu") >= probability:
                hidden_states, weights = layer(hidden_states, position_bias, patch_mask, output_attentions)
                all_weights.append(weights)
            all_hidden_states.append(hidden_states)
        if self.config.layer_norm_first:
            hidden_states = self.layer_norm(hidden_states)
            all_hidden_states[-1] = hidden_states

        return BeatsModelOutput(
            last_hidden_state=hidden_states,
            hidden_states=tuple(all_hidden_states) if output_hidden_states else None,
            attentions=tuple(all_weights) if output_attentions else None,
            patch_mask=patch_mask,
        )


class BeatsPreTrainedModel(PreTrainedModel):
    """Base class of the models: configuration, names, initialisation, and handling of inputs and masks."""

    config: BeatsConfig
    base_model_prefix = "beats"
    main_input_name = "input_values"
    input_modalities = "audio"
    supports_gradient_checkpointing = True
    _supports_sdpa = True
    # Mutable because transformers expects lists or sets.
    _no_split_modules = ["BeatsPatchEmbeddings", "BeatsPositionalConvEmbedding", "BeatsLayer"]  # noqa: RUF012
    # Parameters of other tasks' heads: only the encoder of their folders is loaded.
    _keys_to_ignore_on_load_unexpected = [  # noqa: RUF012
        r"^(predictor|label_head|classifier|quantize_layer|quantizer|estimator)\.",
    ]

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Load a model as [`~transformers.PreTrainedModel.from_pretrained`] does, but only from safetensors.

        Raises:
            OSError: If the folder or repository has no weights in that format; pickled ones are not opened.
        """
        return super().from_pretrained(*args, **{"use_safetensors": True, **kwargs})

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, BeatsPositionalConvEmbedding):
            hidden_size, _, kernel_size = module.direction.shape
            init.normal_(module.direction, std=math.sqrt(4 / (kernel_size * hidden_size)))
            init.copy_(module.magnitude, module.direction.norm(dim=(0, 1), keepdim=True))
            init.zeros_(module.bias)
        elif isinstance(module, BeatsAttention):
            if module.has_gate:
                init.ones_(module.grep_a)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            init.normal_(module.weight, std=self.config.initializer_range)
        elif isinstance(module, nn.Linear) and (std := getattr(module, "init_std", None)) is not None:
            init.normal_(module.weight, std=std)
            init.zeros_(module.bias)
        elif isinstance(module, (nn.Conv2d, nn.Linear)):
            module.reset_parameters()  # guarded by transformers: loaded weights stay

    def check_inputs(
        self, input_values: torch.Tensor, attention_mask: torch.Tensor | None, padding_mask: torch.Tensor | None
    ) -> None:
        """Raise an error if the inputs have the wrong shape or both masks are given."""
        config = self.config
        if input_values.ndim != 3 or input_values.shape[2] != config.num_mel_bins:
            raise ValueError(
                f"input_values has shape {tuple(input_values.shape)}, but must be (batch, frames, "
                f"{config.num_mel_bins} mel bins)."
            )
        batch_size, num_frames = input_values.shape[:2]
        if num_frames < config.patch_size:
            raise ValueError(
                f"input_values has {num_frames} frames, but a patch needs {config.patch_size}: use a longer clip."
            )
        if attention_mask is not None and padding_mask is not None:
            raise ValueError("attention_mask and padding_mask have the same purpose: pass only one of them.")
        if attention_mask is not None and attention_mask.shape != (batch_size, num_frames):
            raise ValueError(
                f"attention_mask has shape {tuple(attention_mask.shape)}, but must be (batch, frames), here "
                f"({batch_size}, {num_frames})."
            )
        if padding_mask is not None and (
            padding_mask.ndim != 2 or padding_mask.shape[0] != batch_size or padding_mask.shape[1] < num_frames
        ):
            raise ValueError(
                f"padding_mask has shape {tuple(padding_mask.shape)}, but must be (batch, samples) or (batch, "
                f"frames), for {batch_size} clips of {num_frames} frames."
            )

    def patch_mask(
        self, num_frames: int, attention_mask: torch.Tensor | None, padding_mask: torch.Tensor | None
    ) -> torch.Tensor | None:
        """Return the mask of the patches of clips with `num_frames` frames, if there is an input mask.

        It has shape (batch, patches) and is `True` for real patches. The two input masks follow different rules, see
        [`~BeatsModel.forward`].
        """
        size = self.config.patch_size
        num_rows = self.config.num_mel_bins // size
        if padding_mask is not None and self.config.padding_rule == "convolution":
            attention_mask = ~any_of_windows(padding_mask.bool(), num_frames)
        if attention_mask is not None:
            mask = attention_mask.bool().unfold(1, size, size).all(dim=-1).repeat_interleave(num_rows, dim=1)
        elif padding_mask is not None:
            num_patches = num_frames // size * num_rows
            mask = ~all_of_equal_runs(all_of_equal_runs(padding_mask.bool(), num_frames), num_patches)
        else:
            return None
        if not torch.compiler.is_compiling() and not mask.any(dim=1).all():
            clip = int(mask.any(dim=1).int().argmin())
            raise ValueError(f"The mask leaves no whole patch of clip {clip} of the batch: remove the clip.")
        return mask


def all_of_equal_runs(mask: torch.Tensor, num_runs: int) -> torch.Tensor:
    """Split (batch, length) into `num_runs` runs of equal length, dropping the rest; return which are all `True`."""
    run_length = mask.shape[1] // num_runs
    return mask.unfold(1, run_length, run_length)[:, :num_runs].all(dim=-1)


def any_of_windows(mask: torch.Tensor, num_frames: int) -> torch.Tensor:
    """Return which frames have any `True` sample; a mask of frames is returned as it is.

    Args:
        mask (`torch.BoolTensor` of shape `(batch, samples)` or `(batch, frames)`): Mask of samples at 16 kHz, or of
            frames.
        num_frames (`int`): Number of frames.

    Raises:
        ValueError: If the mask has neither the length of the frames nor that of their samples.
    """
    if mask.shape[1] == num_frames:
        return mask
    if 1 + (mask.shape[1] - FRAME_LENGTH) // HOP_LENGTH != num_frames:
        raise ValueError(
            f"padding_mask has {mask.shape[1]} entries per clip, which are neither {num_frames} frames nor the "
            "samples of that many frames at 16 kHz: pass the mask of the samples that the features are of."
        )
    return mask.unfold(1, FRAME_LENGTH, HOP_LENGTH).any(dim=-1)


class BeatsModel(BeatsPreTrainedModel):
    """BEATs encoder that maps the patches of a spectrogram to features, without a head."""

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__(config)
        self.embeddings = BeatsPatchEmbeddings(config)
        self.encoder = BeatsEncoder(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        padding_mask: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> BeatsModelOutput:
        r"""Encode filter banks.

        Args:
            input_values (`torch.Tensor` of shape `(batch, frames, num_mel_bins)`):
                Normalised filter banks from [`BeatsFeatureExtractor`]. Frames after the last whole patch are dropped.
            attention_mask (`torch.Tensor` of shape `(batch, frames)`, *optional*):
                1 for real frames, 0 for padding, as returned by the feature extractor. A patch is real if all of its
                frames are, so that padding does not change the results of a clip.
            padding_mask (`torch.BoolTensor` of shape `(batch, samples)` or `(batch, frames)`, *optional*):
                `True` for padding, to reproduce the results of other implementations: the mask is reduced to patches
                by `config.padding_rule`. With `"equal_runs"`, the rule of the original implementation, part of a
                clip's last real time column is masked out, as the rule treats patches as ordered by time alone,
                although mel rows vary first. With `"convolution"`, the mask means the same as `attention_mask`.
            output_attentions (`bool`, *optional*):
                Whether to return the attention weights, which are always computed by the eager implementation.
            output_hidden_states (`bool`, *optional*):
                Whether to return the hidden states of all layers.
            return_dict (`bool`, *optional*):
                Whether to return a [`~transformers.utils.ModelOutput`] rather than a tuple.

        Returns:
            A [`BeatsModelOutput`].

        Raises:
            ValueError: If an argument has the wrong shape, both masks are given, or a mask leaves no patch of a clip.
                Compiled and exported models skip the last check; their results for such clips are finite but
                meaningless.
        """
        self.check_inputs(input_values, attention_mask, padding_mask)
        return self.encoder(
            self.embeddings(input_values),
            self.patch_mask(input_values.shape[1], attention_mask, padding_mask),
            self.config.output_attentions if output_attentions is None else output_attentions,
            self.config.output_hidden_states if output_hidden_states is None else output_hidden_states,
        )


class BeatsForAudioClassification(BeatsPreTrainedModel):
    """BEATs with a linear classifier whose logits are averaged over the real patches of a clip.

    This is the head of the public fine-tuned checkpoints (527 AudioSet classes, multi-label:
    `problem_type="multi_label_classification"`, probabilities by sigmoid) and of the DCASE 2024 teachers (ten scenes,
    softmax). Averaging the features before the linear layer is equivalent and cheaper.
    """

    pipeline_class = BeatsAudioClassificationPipeline
    """Class to pass to `transformers.pipeline(..., pipeline_class=...)` to read audio files without ffmpeg."""

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__(config)
        assert config.num_labels is not None
        self.num_labels = config.num_labels
        self.beats = BeatsModel(config)
        self.dropout = nn.Dropout(config.classifier_dropout)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def freeze_encoder(self) -> None:
        """Train only the classifier: disable gradients, dropout and layer drop in the encoder.

        The encoder stays in evaluation mode, even after `train()`, as long as none of its parameters requires
        gradients. To undo this, call `model.beats.requires_grad_(True)` before the next `train()`.
        """
        self.beats.requires_grad_(False)
        self.beats.eval()

    def train(self, mode: bool = True) -> "BeatsForAudioClassification":
        """Set training mode, except for a frozen encoder."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.beats.parameters()):
            self.beats.eval()
        return self

    def check_labels(self, labels: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Return the labels in the type that the loss expects, or raise an error if they do not fit the logits."""
        batch_size, num_labels = logits.shape
        multi_label = self.config.problem_type == "multi_label_classification"
        if self.config.problem_type is None:
            multi_label = labels.is_floating_point()
        shape = (batch_size, num_labels) if multi_label else (batch_size,)
        if labels.shape != shape:
            kind = "a number per clip and class" if multi_label else "a class index per clip"
            raise ValueError(f"labels has shape {tuple(labels.shape)}, but must be {shape}: {kind}.")
        if multi_label:
            return labels.to(logits.dtype)
        if labels.device.type == "cpu" and not torch.compiler.is_compiling():  # on a GPU, reading values would block
            wrong = labels[(labels != -100) & ((labels < 0) | (labels >= num_labels))]
            if len(wrong):
                raise ValueError(f"labels contains {wrong[0].item()}, but the classes are 0 to {num_labels - 1}.")
        return labels.long()

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        padding_mask: torch.Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
    ) -> SequenceClassifierOutput:
        r"""Classify clips.

        Args:
            input_values (`torch.Tensor` of shape `(batch, frames, num_mel_bins)`):
                Normalised filter banks from [`BeatsFeatureExtractor`].
            attention_mask (`torch.Tensor` of shape `(batch, frames)`, *optional*):
                1 for real frames, 0 for padding, see [`~BeatsModel.forward`].
            labels (`torch.Tensor` of shape `(batch,)` or `(batch, num_labels)`, *optional*):
                Class indices for a cross-entropy loss, or a number from 0 to 1 per class for a binary cross-entropy
                loss with `problem_type="multi_label_classification"`.
            padding_mask (`torch.BoolTensor` of shape `(batch, samples)` or `(batch, frames)`, *optional*):
                `True` for padding, by the rule of `config.padding_rule`, see [`~BeatsModel.forward`].
            output_attentions (`bool`, *optional*):
                Whether to return the attention weights.
            output_hidden_states (`bool`, *optional*):
                Whether to return the hidden states of all layers.
            return_dict (`bool`, *optional*):
                Whether to return a [`~transformers.utils.ModelOutput`] rather than a tuple.

        Returns:
            A [`~transformers.modeling_outputs.SequenceClassifierOutput`] with `logits` of shape `(batch, num_labels)`,
            `loss` if there are labels, and `hidden_states` and `attentions` on request.

        Raises:
            ValueError: If an argument has the wrong shape, both masks are given, a mask leaves no patch of a clip, or
                a label is not a class.
        """
        outputs = self.beats(input_values, attention_mask, padding_mask, output_attentions, output_hidden_states)
        features = self.dropout(outputs.last_hidden_state)
        if outputs.patch_mask is None:
            pooled = features.mean(dim=1)
        else:
            mask = outputs.patch_mask.unsqueeze(-1)
            pooled = features.masked_fill(~mask, 0.0).sum(dim=1) / mask.sum(dim=1).clamp(min=1)
        logits = self.classifier(pooled)

        loss = None
        if labels is not None:
            loss = self.loss_function(self.check_labels(labels, logits), logits, self.config)
        return SequenceClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


__all__ = ["BeatsForAudioClassification", "BeatsModel", "BeatsModelOutput", "BeatsPreTrainedModel"]

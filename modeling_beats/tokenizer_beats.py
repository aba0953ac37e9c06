"""Acoustic tokenizers of BEATs, which map each patch of a filter bank to a code (arXiv 2212.09058, section 3.2)."""

import math
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput
from transformers.utils import can_return_tuple

from .configuration_beats import BeatsConfig
from .modeling_beats import BeatsEncoder, BeatsModel, BeatsPreTrainedModel, encoder_linear


KMEANS_ROUNDS = 10


@dataclass
class BeatsTokenizerOutput(ModelOutput):
    """Output of the tokenizers.

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*, if there are targets):
            `1 - similarity + commitment_loss`.
        codes (`torch.LongTensor` of shape `(batch, patches)`):
            Code of each patch, from 0 to `codebook_size - 1`; meaningless for padding.
        patch_mask (`torch.BoolTensor` of shape `(batch, patches)`, *optional*, if a mask was given):
            `True` for real patches, `False` for padding.
        similarity (`torch.FloatTensor` of shape `()`, *optional*, if there are targets):
            Cosine similarity of estimate and target, averaged over the real patches.
        commitment_loss (`torch.FloatTensor` of shape `()`, *optional*, if there are targets):
            Mean squared error between the normalised encoder vectors and their code vectors.
    """

    loss: torch.Tensor | None = None
    codes: torch.Tensor | None = None
    patch_mask: torch.Tensor | None = None
    similarity: torch.Tensor | None = None
    commitment_loss: torch.Tensor | None = None


def nearest_codes(vectors: torch.Tensor, codebook: torch.Tensor) -> torch.Tensor:
    """Return the index of the code nearest to each vector in Euclidean distance: (..., dim), (codes, dim) to (...)."""
    # |v - e|^2 without |v|^2, which is equal for all codes.
    return (codebook.square().sum(dim=1) - 2 * vectors @ codebook.T).argmin(dim=-1)


def process_of() -> tuple[int, int]:
    """Return the rank of this process and the number of processes in distributed training, or 0 and 1."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def sum_over_processes(value: torch.Tensor) -> torch.Tensor:
    """Replace `value` by its sum over all processes and return it."""
    if process_of()[1] > 1:
        dist.all_reduce(value)
    return value


def sizes_and_means(sums: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Split the result of [`BeatsQuantizer.cluster_sums`] into cluster sizes (codes,) and unit means (codes, dim)."""
    return sums[:, -1], F.normalize(sums[:, :-1], dim=1)


class BeatsRandomQuantizer(nn.Module):
    """Quantizer with a frozen random projection of patches and a frozen random codebook."""

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        self.patch_size = config.patch_size
        size = (config.codebook_dim, config.patch_size**2)
        self.projection = nn.Parameter(torch.empty(size), requires_grad=False)
        self.codebook = nn.Parameter(torch.empty(config.codebook_size, config.codebook_dim), requires_grad=False)

    def forward(self, input_values: torch.Tensor) -> torch.Tensor:
        """Map (batch, frames, num_mel_bins) to time-major codes (batch, patches)."""
        size = self.patch_size
        with torch.autocast(input_values.device.type, enabled=False):
            patches = input_values.to(self.projection.dtype).unfold(1, size, size).unfold(2, size, size)
            patches = F.layer_norm(patches.flatten(3).flatten(1, 2), (size**2,))
            return nearest_codes(patches @ self.projection.T, self.codebook)


class BeatsQuantizer(nn.Module):
    """Vector quantizer whose codes are moving averages on the unit sphere.

    Each L2-normalised vector is replaced by the nearest code, with straight-through gradients. The codes are not
    trained by gradients: the first training batch initialises them by k-means with cosine similarity, and after each
    batch, every used code moves towards the normalised mean of its vectors, `decay * code + (1 - decay) * mean`, and
    is normalised again. In distributed training, the codes are updated from the vectors of all processes and stay
    equal. With gradient accumulation, set `accumulation_steps` to the number of accumulated batches: the codes are
    then updated once for all of them, as for one large batch.
    """

    codebook: torch.Tensor
    cluster_size: torch.Tensor
    initialized: torch.Tensor

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        self.decay = config.codebook_decay
        self.accumulation_steps = 1
        self.pending: list[torch.Tensor] = []
        self.register_buffer("codebook", torch.empty(config.codebook_size, config.codebook_dim))
        self.register_buffer("cluster_size", torch.empty(config.codebook_size))
        self.register_buffer("initialized", torch.empty(1))

    def forward(
        self, hidden_states: torch.Tensor, patch_mask: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Quantize vectors and, in training, update the codes afterwards.

        Args:
            hidden_states (`torch.Tensor` of shape `(batch, patches, codebook_dim)`):
                Vectors, not necessarily normalised.
            patch_mask (`torch.BoolTensor` of shape `(batch, patches)`, *optional*):
                `True` for real patches. Others affect neither the codes nor the loss.

        Returns:
            The code vectors, of the same shape; their indices `(batch, patches)`; and the commitment loss, the mean
            squared error between normalised vectors and code vectors, with gradients for the former.
        """
        with torch.autocast(hidden_states.device.type, enabled=False):
            vectors = F.normalize(hidden_states.to(self.codebook.dtype), dim=-1)
            counted = ... if patch_mask is None else patch_mask
            learned = vectors.detach()[counted].flatten(0, -2)
            if self.training and not self.initialized:
                self.initialize(learned)
            codes = nearest_codes(vectors.detach(), self.codebook)
            quantized = F.embedding(codes, self.codebook)
            if self.training:
                self.update(learned, codes[counted].flatten())
            commitment_loss = F.mse_loss(vectors[counted], quantized[counted])
            return vectors + (quantized - vectors).detach(), codes, commitment_loss

    @torch.no_grad()
    def initialize(self, vectors: torch.Tensor) -> None:
        """Set the codes to the k-means centres of normalised vectors (number, dim) by cosine similarity.

        The initial centres are randomly drawn vectors, repeated if there are too few. Centres without vectors remain
        unchanged.
        """
        num_codes = len(self.codebook)
        rank, world_size = process_of()
        counts = torch.zeros(world_size, dtype=torch.long, device=vectors.device)
        counts[rank] = len(vectors)
        total = int(sum_over_processes(counts).sum())
        chosen = torch.randperm(total)[:num_codes] if total >= num_codes else torch.randint(total, (num_codes,))
        chosen = chosen.to(vectors.device)
        if world_size > 1:
            dist.broadcast(chosen, 0)
        own = chosen - counts[:rank].sum()
        is_own = (own >= 0) & (own < len(vectors))
        centres = torch.zeros_like(self.codebook)
        centres[is_own] = vectors[own[is_own]]
        sum_over_processes(centres)
        for _ in range(KMEANS_ROUNDS):
            sizes, means = sizes_and_means(self.cluster_sums(vectors, nearest_codes(vectors, centres)))
            centres = torch.where(sizes.unsqueeze(1) > 0, means, centres)
        self.codebook.copy_(centres)
        self.initialized.fill_(1)

    @torch.no_grad()
    def update(self, vectors: torch.Tensor, codes: torch.Tensor) -> None:
        """Move the codes with indices (number,) towards their normalised vectors (number, dim)."""
        self.pending.append(self.cluster_sums(vectors, codes))
        if len(self.pending) < self.accumulation_steps:
            return
        sizes, means = sizes_and_means(torch.stack(self.pending).sum(dim=0))
        self.pending.clear()
        moved = F.normalize(self.codebook.lerp(means, 1 - self.decay), dim=1)
        self.codebook.copy_(torch.where(sizes.unsqueeze(1) > 0, moved, F.normalize(self.codebook, dim=1)))
        self.cluster_size.lerp_(sizes, 1 - self.decay)

    def cluster_sums(self, vectors: torch.Tensor, codes: torch.Tensor) -> torch.Tensor:
        """Return the sum of each code's vectors over all processes and, in the last column, their number."""
        num_codes, dim = self.codebook.shape
        sums = vectors.new_zeros(num_codes, dim + 1)
        sums.index_add_(0, codes, torch.cat([vectors, vectors.new_ones(len(vectors), 1)], dim=1))
        return sum_over_processes(sums)


class BeatsTokenizerPreTrainedModel(BeatsPreTrainedModel):
    """Base class of the tokenizers, which initialises their quantizers."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, BeatsRandomQuantizer):
            init.normal_(module.projection, std=1 / math.sqrt(module.projection.shape[1]))
            init.copy_(module.codebook, F.normalize(torch.randn_like(module.codebook), dim=1))
        elif isinstance(module, BeatsQuantizer):
            init.copy_(module.codebook, F.normalize(torch.randn_like(module.codebook), dim=1))
            init.zeros_(module.cluster_size)
            init.zeros_(module.initialized)
        else:
            super()._init_weights(module)


class BeatsRandomProjectionTokenizer(BeatsTokenizerPreTrainedModel):
    """Tokenizer of the first iteration: the random code vector nearest to a random projection of each patch.

    Projection and codes are frozen. Patches are first normalised to zero mean and unit variance, and the code vectors
    have unit length, as in BEST-RQ (arXiv 2202.01855); otherwise the loudness of a patch would mostly determine its
    code, and few codes would be used.
    """

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__(config)
        self.quantizer = BeatsRandomQuantizer(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        padding_mask: torch.Tensor | None = None,
    ) -> BeatsTokenizerOutput:
        """Return the codes of the patches as [`BeatsTokenizerOutput`]; arguments as in [`~BeatsModel.forward`]."""
        self.check_inputs(input_values, attention_mask, padding_mask)
        return BeatsTokenizerOutput(
            codes=self.quantizer(input_values),
            patch_mask=self.patch_mask(input_values.shape[1], attention_mask, padding_mask),
        )


class BeatsTokenizerModel(BeatsTokenizerPreTrainedModel):
    """Trained tokenizer: a BEATs encoder, a projection to the dimension of the codes, and the quantizer."""

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__(config)
        self.beats = BeatsModel(config)
        self.quantize_layer = nn.Sequential(
            encoder_linear(config, config.hidden_size, config.hidden_size),
            nn.Tanh(),
            encoder_linear(config, config.hidden_size, config.codebook_dim),
        )
        self.quantizer = BeatsQuantizer(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        padding_mask: torch.Tensor | None = None,
    ) -> BeatsTokenizerOutput:
        """Return the codes of the patches as [`BeatsTokenizerOutput`]; arguments as in [`~BeatsModel.forward`]."""
        encoded = self.beats(input_values, attention_mask, padding_mask)
        _, codes, _ = self.quantizer(self.quantize_layer(encoded.last_hidden_state), encoded.patch_mask)
        return BeatsTokenizerOutput(codes=codes, patch_mask=encoded.patch_mask)


class BeatsEstimator(nn.Module):
    """Shallow Transformer that estimates the teacher's output from code vectors."""

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__()
        self.input = encoder_linear(config, config.codebook_dim, config.hidden_size)
        self.encoder = BeatsEncoder(config.with_layers(config.num_estimator_layers))
        self.output = encoder_linear(config, config.hidden_size, config.estimator_size or config.hidden_size)

    def forward(self, quantized: torch.Tensor, patch_mask: torch.Tensor | None) -> torch.Tensor:
        """Map (batch, patches, codebook_dim) to (batch, patches, estimator_size)."""
        return self.output(self.encoder(self.input(quantized), patch_mask).last_hidden_state)


class BeatsForTokenizerTraining(BeatsTokenizerModel):
    """Tokenizer with an estimator for training by distillation (self-distilled tokenizer, section 3.2.2).

    From the codes of a clip, the estimator predicts the teacher's output for each patch. The loss is one minus the
    cosine similarity of the two, plus the commitment loss. The estimator is dropped after training: load the folder as
    [`BeatsTokenizerModel`].
    """

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__(config)
        self.estimator = BeatsEstimator(config)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        targets: torch.Tensor | None = None,
    ) -> BeatsTokenizerOutput:
        r"""Compute the codes of patches and the loss of the teacher's output estimated from them.

        Args:
            input_values (`torch.Tensor` of shape `(batch, frames, num_mel_bins)`):
                Normalised filter banks from [`BeatsFeatureExtractor`].
            attention_mask (`torch.Tensor` of shape `(batch, frames)`, *optional*):
                1 for real frames, 0 for padding, see [`~BeatsModel.forward`].
            targets (`torch.Tensor` of shape `(batch, patches, estimator_size)`, *optional*):
                Output of the teacher for each patch, required for the loss.
            return_dict (`bool`, *optional*):
                Whether to return a [`~transformers.utils.ModelOutput`] rather than a tuple.

        Returns:
            A [`BeatsTokenizerOutput`].

        Raises:
            ValueError: If an argument has the wrong shape.
        """
        encoded = self.beats(input_values, attention_mask)
        vectors = self.quantize_layer(encoded.last_hidden_state)
        quantized, codes, commitment_loss = self.quantizer(vectors, encoded.patch_mask)
        output = BeatsTokenizerOutput(codes=codes, patch_mask=encoded.patch_mask)
        if targets is not None:
            estimate = self.estimator(quantized, encoded.patch_mask)
            if targets.shape != estimate.shape:
                raise ValueError(
                    f"targets has shape {tuple(targets.shape)}, but must be (batch, patches, estimator_size), here "
                    f"{tuple(estimate.shape)}."
                )
            cosine = F.cosine_similarity(estimate.float(), targets.float(), dim=-1)
            similarity = cosine.mean() if encoded.patch_mask is None else cosine[encoded.patch_mask].mean()
            output.similarity = similarity
            output.commitment_loss = commitment_loss
            output.loss = 1 - similarity + commitment_loss
        return output


__all__ = [
    "BeatsForTokenizerTraining",
    "BeatsQuantizer",
    "BeatsRandomProjectionTokenizer",
    "BeatsTokenizerModel",
    "BeatsTokenizerOutput",
]

"""Pre-training of BEATs: masked audio modelling with discrete labels (Chen et al., arXiv 2212.09058, section 3.1)."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from transformers.modeling_outputs import ModelOutput
from transformers.utils import can_return_tuple

from .configuration_beats import BeatsConfig
from .modeling_beats import BeatsEncoder, BeatsModel, BeatsPreTrainedModel, encoder_linear


@dataclass
class BeatsForPreTrainingOutput(ModelOutput):
    """Output of [`BeatsForPreTraining`].

    Args:
        loss (`torch.FloatTensor` of shape `()`, *optional*, if there are labels):
            Cross-entropy of the labels, averaged over the masked patches.
        logits (`torch.FloatTensor` of shape `(batch, patches, codebook_size)`):
            Logits of the codes for each patch.
        bool_masked_pos (`torch.BoolTensor` of shape `(batch, patches)`):
            `True` for masked patches, which never include padding.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    bool_masked_pos: torch.Tensor | None = None


def mask_patches(noise: torch.Tensor, mask_ratio: float, patch_mask: torch.Tensor | None = None) -> torch.Tensor:
    """Mask the same fraction of the patches of each clip: those with the least noise.

    Args:
        noise (`torch.Tensor` of shape `(batch, patches)`):
            Uniform random numbers in [0, 1), drawn by the caller.
        mask_ratio (`float`):
            Fraction of a clip's real patches to mask. At least one is masked and at least one remains visible.
        patch_mask (`torch.BoolTensor` of shape `(batch, patches)`, *optional*):
            `True` for real patches, `False` for padding.

    Returns:
        `torch.BoolTensor` of shape `(batch, patches)`, `True` for `round(mask_ratio * real)` patches of each clip.
    """
    num_real = torch.full((len(noise), 1), noise.shape[1], device=noise.device)
    if patch_mask is not None:
        noise = noise.masked_fill(~patch_mask, 2.0)
        num_real = patch_mask.sum(dim=1, keepdim=True)
    num_masked = torch.minimum((mask_ratio * num_real).round().long().clamp(min=1), num_real - 1)
    return noise.argsort(dim=1).argsort(dim=1) < num_masked


class BeatsForPreTraining(BeatsPreTrainedModel):
    """BEATs with a label predictor for pre-training on the codes of an acoustic tokenizer.

    The encoder processes only the visible patches, at their positions in the clip: distances between patches are those
    in the clip, and the positional convolution sees zeros at masked positions, as it does at padding. The label
    predictor, a shallow Transformer of the same kind, receives the encoder's output at visible positions and zeros at
    masked ones, and predicts the code of each patch. It is dropped after pre-training: `BeatsModel.from_pretrained`
    and `BeatsForAudioClassification.from_pretrained` load only the encoder.
    """

    def __init__(self, config: BeatsConfig) -> None:
        super().__init__(config)
        self.beats = BeatsModel(config)
        self.predictor = BeatsEncoder(config.with_layers(config.num_predictor_layers))
        self.label_head = encoder_linear(config, config.hidden_size, config.codebook_size)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        input_values: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        bool_masked_pos: torch.Tensor | None = None,
    ) -> BeatsForPreTrainingOutput:
        r"""Predict the codes of masked patches from the visible ones.

        Args:
            input_values (`torch.Tensor` of shape `(batch, frames, num_mel_bins)`):
                Normalised filter banks from [`BeatsFeatureExtractor`], not masked.
            attention_mask (`torch.Tensor` of shape `(batch, frames)`, *optional*):
                1 for real frames, 0 for padding, see [`~BeatsModel.forward`].
            labels (`torch.LongTensor` of shape `(batch, patches)`, *optional*):
                Code of each patch, from a tokenizer. Only masked patches contribute to the loss.
            bool_masked_pos (`torch.BoolTensor` of shape `(batch, patches)`, *optional*):
                `True` for patches to mask; by default, a random fraction `config.mask_ratio` of each clip.
            return_dict (`bool`, *optional*):
                Whether to return a [`~transformers.utils.ModelOutput`] rather than a tuple.

        Returns:
            A [`BeatsForPreTrainingOutput`].

        Raises:
            ValueError: If an argument has the wrong shape, a clip has no visible patch, or no patch is masked.
        """
        self.check_inputs(input_values, attention_mask, None)
        patch_mask = self.patch_mask(input_values.shape[1], attention_mask, None)
        hidden_states = self.beats.embeddings(input_values)
        shape = hidden_states.shape[:2]
        for name, value in (("labels", labels), ("bool_masked_pos", bool_masked_pos)):
            if value is not None and value.shape != shape:
                raise ValueError(
                    f"{name} has shape {tuple(value.shape)}, but must be (batch, patches), here {tuple(shape)}."
                )
        if bool_masked_pos is None:
            noise = torch.rand(shape, device=hidden_states.device)
            masked = mask_patches(noise, self.config.mask_ratio, patch_mask)
        else:
            masked = bool_masked_pos if patch_mask is None else bool_masked_pos & patch_mask
        is_visible = ~masked if patch_mask is None else ~masked & patch_mask
        counts = is_visible.sum(dim=1)
        if counts.min() == 0 or not masked.any():
            raise ValueError(
                "bool_masked_pos must mask at least one patch and leave at least one visible in each clip."
            )

        # Visible patches in order. Clips with fewer than others are padded with hidden ones, which the mask excludes.
        visible = is_visible.int().argsort(dim=1, descending=True, stable=True)[:, : counts.max()]
        encoded = self.beats.encoder(hidden_states, is_visible, visible=visible)
        features = encoded.last_hidden_state.masked_fill(~encoded.patch_mask.unsqueeze(-1), 0.0)
        features = torch.zeros_like(hidden_states, dtype=features.dtype).scatter(
            1, visible.unsqueeze(-1).expand_as(features), features
        )
        logits = self.label_head(self.predictor(features, patch_mask).last_hidden_state)

        loss = None
        if labels is not None:
            loss = F.cross_entropy(logits[masked].float(), labels[masked].long())
        return BeatsForPreTrainingOutput(loss=loss, logits=logits, bool_masked_pos=masked)


__all__ = ["BeatsForPreTraining", "BeatsForPreTrainingOutput", "mask_patches"]

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
            Cross-entropy of the labels, the mean over the masked patches.
        logits (`torch.FloatTensor` of shape `(batch, patches, codebook_size)`):
            Scores of the codes of every patch.
        bool_masked_pos (`torch.BoolTensor` of shape `(batch, patches)`):
            `True` for the patches that were masked, none of which is padding.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    bool_masked_pos: torch.Tensor | None = None


def mask_patches(noise: torch.Tensor, mask_ratio: float, patch_mask: torch.Tensor | None = None) -> torch.Tensor:
    """Chooses the patches to mask: in each clip the same share, those with the least noise.

    Args:
        noise (`torch.Tensor` of shape `(batch, patches)`): Uniform in [0, 1); decides, so that the caller can seed it.
        mask_ratio (`float`): Share of a clip's real patches. At least one is masked, and one left.
        patch_mask (`torch.BoolTensor` of shape `(batch, patches)`, *optional*): `True` = real, `False` = padding.

    Returns:
        `torch.BoolTensor` of shape `(batch, patches)`, `True` = masked; in each clip `round(mask_ratio * real)`.
    """
    num_real = torch.full((len(noise), 1), noise.shape[1], device=noise.device)
    if patch_mask is not None:
        noise = noise.masked_fill(~patch_mask, 2.0)
        num_real = patch_mask.sum(dim=1, keepdim=True)
    num_masked = torch.minimum((mask_ratio * num_real).round().long().clamp(min=1), num_real - 1)
    return noise.argsort(dim=1).argsort(dim=1) < num_masked


class BeatsForPreTraining(BeatsPreTrainedModel):
    """BEATs with a label predictor, to be trained on the labels that an acoustic tokenizer gives to audio.

    The encoder works on the visible patches only, each at its place in the clip: distances between patches are those
    in the clip, and the positional convolution sees zeros at the masked places, as it does where a clip is padded. The
    label predictor, a shallow Transformer of the same kind, gets what the encoder made of the visible patches at their
    places and zeros at the masked ones, and names the code of each patch. It is dropped after pre-training:
    `BeatsModel.from_pretrained` and `BeatsForAudioClassification.from_pretrained` take the encoder alone.
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
        r"""Predicts the codes of masked patches from the visible ones.

        Args:
            input_values (`torch.Tensor` of shape `(batch, frames, num_mel_bins)`):
                Normalised filter banks as [`BeatsFeatureExtractor`] makes them, not masked.
            attention_mask (`torch.Tensor` of shape `(batch, frames)`, *optional*):
                1 for real frames, 0 for padding, see [`BeatsModel`].
            labels (`torch.LongTensor` of shape `(batch, patches)`, *optional*):
                Code of each patch, from a tokenizer. Only those of masked patches count.
            bool_masked_pos (`torch.BoolTensor` of shape `(batch, patches)`, *optional*):
                `True` for patches to mask; by default a random share `config.mask_ratio` of every clip.
            return_dict (`bool`, *optional*):
                Whether to return a [`~transformers.utils.ModelOutput`] rather than a tuple.

        Returns:
            [`BeatsForPreTrainingOutput`]

        Raises:
            ValueError: An argument has the wrong shape, a clip is left without a visible patch, or no patch is masked.
        """
        self.check_inputs(input_values, attention_mask, None)
        patch_mask = self.patch_mask(input_values.shape[1], attention_mask, None)
        hidden_states = self.beats.embeddings(input_values)
        shape = hidden_states.shape[:2]
        for name, value in (("labels", labels), ("bool_masked_pos", bool_masked_pos)):
            if value is not None and value.shape != shape:
                raise ValueError(
                    f"{name} has shape {tuple(value.shape)}, but has to be (batch, patches), here {tuple(shape)}."
                )
        if bool_masked_pos is None:
            noise = torch.rand(shape, device=hidden_states.device)
            masked = mask_patches(noise, self.config.mask_ratio, patch_mask)
        else:
            masked = bool_masked_pos if patch_mask is None else bool_masked_pos & patch_mask
        is_visible = ~masked if patch_mask is None else ~masked & patch_mask
        counts = is_visible.sum(dim=1)
        if counts.min() == 0 or not masked.any():
            raise ValueError("bool_masked_pos has to mask a patch, and to leave a visible one in every clip.")

        # The visible patches in their order. Clips with fewer than others are filled up; the encoder's mask knows.
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

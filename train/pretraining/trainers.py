"""Trainers on segments of audio: masked audio modelling, and tokenizers."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import PreTrainedModel
from transformers.feature_extraction_utils import FeatureExtractionMixin

from dataset_script.waveforms import FULL_SCALE
from modeling_beats import BeatsForAudioClassification, mask_patches
from train.common.distributed import BatchRows
from train.common.resumable import ResumableTrainer, derived_seed
from train.pretraining.crops import SegmentBatches, SegmentCollator, Segments, StreamedSegments


class CodeWindow:
    """Which codes came up since the last summary, and the means of other figures, over all processes.

    Args:
        num_codes (`int`): Size of the codebook.
        figures (`tuple[str]`): Names of the other figures.
        device (`torch.device`): Where the sums are kept, so that nothing waits for it.
    """

    def __init__(self, num_codes: int, figures: tuple[str, ...], device: torch.device):
        self.figures = figures
        self.histogram = torch.zeros(num_codes, dtype=torch.long, device=device)
        self.sums = torch.zeros(len(figures), device=device)

    def add(self, codes: Tensor, *means: Tensor) -> None:
        """Count `codes` `(number,)`, and figures that are means over as many patches."""
        self.histogram += torch.bincount(codes, minlength=len(self.histogram))
        self.sums += len(codes) * torch.stack([mean.detach().float() for mean in means])

    def summary(self) -> dict[str, float]:
        """Return the figures of the window, and begin a new one; all processes must call this.

        `codebook_usage` is the share of the codes that came up at all, `perplexity` the exponential of their entropy,
        and `largest_share` the share of the most frequent code, which is the accuracy of naming it always.
        """
        values = torch.cat([self.histogram.float(), self.sums])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(values)
        counts, sums = values.cpu().double().split([len(self.histogram), len(self.sums)])
        self.histogram.zero_()
        self.sums.zero_()
        total = counts.sum().clamp(min=1)
        shares = counts / total
        return {
            **dict(zip(self.figures, (sums / total).tolist(), strict=True)),
            "codebook_usage": (counts > 0).double().mean().item(),
            "perplexity": torch.special.entr(shares).sum().exp().item(),
            "largest_share": shares.max().item(),
        }


class SegmentTrainer(ResumableTrainer):
    """Train for a number of steps on segments of audio, which are read while training goes on.

    A step is a function of weights, optimizer state, seed, step and micro-step alone, so that an interrupted run
    continues to the same weights. Without dropout several processes compute the same as one, up to rounding.

    Args:
        model (`PreTrainedModel`): To be trained.
        args (`PretrainingArguments`): Recipe of the run.
        feature_extractor (`FeatureExtractionMixin`): Makes filter banks. Saved with the model.
        train_dataset (`Segments` or `StreamedSegments`): Audio.
        data_collator (`SegmentCollator`): Makes batches with `waveform` and perhaps `num_samples`.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: Any,
        feature_extractor: FeatureExtractionMixin,
        train_dataset: Segments | StreamedSegments,
        data_collator: SegmentCollator,
    ):
        self.rows = BatchRows(args.world_size, args.process_index)
        self.rows.resize(args.batch_size)
        self.feature_extractor = feature_extractor
        # Layer drop leaves parameters without a gradient, which DDP must then look for.
        args.ddp_find_unused_parameters = bool(model.config.layerdrop)
        super().__init__(
            model=model,
            args=args,
            data_collator=data_collator,
            train_dataset=train_dataset,
            processing_class=feature_extractor,
        )

    def get_train_dataloader(self) -> DataLoader:
        """Return a loader that gives each process its rows of every batch of the run, which is one long epoch."""
        args = self.args
        options = {
            "collate_fn": self.data_collator,
            "pin_memory": args.dataloader_pin_memory and args.device.type == "cuda",
        }
        if isinstance(self.train_dataset, StreamedSegments):
            workers = min(args.dataloader_num_workers, 1)  # more would each read the whole stream
            return DataLoader(self.train_dataset, batch_size=self.rows.count, num_workers=workers, **options)
        num_batches = args.max_steps * args.gradient_accumulation_steps
        dataset = self.train_dataset
        batches = SegmentBatches(
            len(dataset), args.batch_size, num_batches, args.seed, self.rows, getattr(dataset, "weights", None)
        )
        return DataLoader(
            self.train_dataset, batch_sampler=batches, num_workers=args.dataloader_num_workers, **options
        )

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Do one forward and backward pass on this process' rows; returns the detached loss."""
        seed = self.next_seed()
        torch.manual_seed(derived_seed(seed, self.args.process_index))  # for dropout
        self._generator = torch.Generator().manual_seed(seed)  # for what all processes draw alike
        return super().training_step(model, inputs, num_items_in_batch)

    @torch.no_grad()
    def features(self, waveform: Tensor, num_samples: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return filter banks, and the attention mask if clips differ in length."""
        features = self.feature_extractor.fbank(waveform / FULL_SCALE)
        if num_samples is None:
            return features, None
        extractor = self.feature_extractor
        num_frames = 1 + (num_samples - extractor.frame_length) // extractor.hop_length
        mask = torch.arange(features.shape[1], device=features.device) < num_frames.unsqueeze(1)
        return features.masked_fill(~mask.unsqueeze(2), extractor.padding_value), mask.long()

    def noise(self, clips: int) -> dict[str, Tensor]:
        """Return a batch of full length, as the collator makes them, to measure what a step costs."""
        samples = round(self.args.segment_seconds * self.feature_extractor.sampling_rate)
        return {"waveform": torch.randint(-FULL_SCALE, FULL_SCALE, (clips, samples), dtype=torch.int16)}


class PretrainingTrainer(SegmentTrainer):
    """Train on unlabelled audio, guided by a frozen model.

    The loss is the mean over the patches of all processes, also where clips differ in length.

    Args:
        model, args, feature_extractor, train_dataset: As for [`SegmentTrainer`].
        guide (`PreTrainedModel`): The tokenizer that gives the labels, or the teacher of a tokenizer.
    """

    figures: tuple[str, ...]
    """What is logged beside the loss and the use of the codes."""

    def __init__(
        self,
        model: PreTrainedModel,
        args: Any,
        feature_extractor: FeatureExtractionMixin,
        guide: PreTrainedModel,
        train_dataset: Segments | StreamedSegments,
    ):
        shortest = feature_extractor.frame_length + (model.config.patch_size - 1) * feature_extractor.hop_length
        super().__init__(model, args, feature_extractor, train_dataset, SegmentCollator(shortest))
        self.guide = guide.to(args.device).eval().requires_grad_(False)
        self.window = CodeWindow(model.config.codebook_size, self.figures, args.device)

    def batch_loss(
        self, model: nn.Module, features: Tensor, attention_mask: Tensor | None
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Return the mean loss over some patches, their codes `(number,)`, and the means of `figures` over them."""
        raise NotImplementedError

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Return the loss of a batch of the collator."""
        features, attention_mask = self.features(inputs["waveform"], inputs.get("num_samples"))
        loss, codes, means = self.batch_loss(model, features, attention_mask)
        self.window.add(codes, *means)
        if self.args.world_size > 1:
            # DDP averages gradients over processes; processes with more patches have to count for more.
            total = torch.tensor(float(len(codes)), device=loss.device)
            dist.all_reduce(total)
            loss = loss * (len(codes) * self.args.world_size / total)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the loss with the figures of the window."""
        if "loss" in logs:
            logs = {**logs, **self.window.summary()}
        super().log(logs, start_time)


class MaskedModelingTrainer(PretrainingTrainer):
    """Train [`BeatsForPreTraining`] on the labels of a tokenizer, the guide."""

    figures = ("masked_accuracy",)

    def batch_loss(
        self, model: nn.Module, features: Tensor, attention_mask: Tensor | None
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Return the cross-entropy, the labels and the accuracy at the masked patches."""
        with torch.no_grad(), self.accelerator.autocast():
            tokens = self.guide(features, attention_mask)
        num_patches = tokens.codes.shape[1]
        # Noise for all rows at their greatest length, so that a row's mask does not depend on the rows beside it.
        noise = torch.rand(self.rows.total, self.args.max_patches(self.model.config), generator=self._generator)
        noise = noise[self.rows.work, :num_patches].to(features.device)
        masked = mask_patches(noise, self.model.config.mask_ratio, tokens.patch_mask)
        outputs = model(features, attention_mask, tokens.codes, masked)
        labels = tokens.codes[masked]
        accuracy = (outputs.logits[masked].argmax(dim=-1) == labels).float().mean()
        return outputs.loss, labels, (accuracy,)


class TokenizerTrainer(PretrainingTrainer):
    """Train [`BeatsForTokenizerTraining`] on the output of a teacher, the guide.

    A self-supervised teacher gives the features of its last layer, a fine-tuned one the probabilities of its classes
    at each patch.
    """

    figures = ("similarity", "commitment_loss")

    def __init__(self, model: PreTrainedModel, args: Any, *arguments: Any):
        super().__init__(model, args, *arguments)
        model.quantizer.accumulation_steps = args.gradient_accumulation_steps

    def batch_loss(
        self, model: nn.Module, features: Tensor, attention_mask: Tensor | None
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Return the loss, the codes, similarity and commitment loss at the real patches."""
        with torch.no_grad(), self.accelerator.autocast():
            targets = teacher_output(self.guide, features, attention_mask)
        outputs = model(features, attention_mask, targets)
        codes = outputs.codes.flatten() if outputs.patch_mask is None else outputs.codes[outputs.patch_mask]
        return outputs.loss, codes, (outputs.similarity, outputs.commitment_loss)


def teacher_output(teacher: PreTrainedModel, features: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Return what a tokenizer learns to estimate, `(batch, patches, size)`."""
    if not isinstance(teacher, BeatsForAudioClassification):
        return teacher(features, attention_mask).last_hidden_state
    logits = teacher.classifier(teacher.beats(features, attention_mask).last_hidden_state).float()
    if teacher.config.problem_type == "multi_label_classification":
        return logits.sigmoid()
    return F.softmax(logits, dim=-1)

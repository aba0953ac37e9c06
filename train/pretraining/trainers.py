"""Trainers on crops of audio: masked audio modelling, and tokenizers."""

import logging
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import PreTrainedModel

from dataset_script.errors import InputError
from dataset_script.waveforms import FULL_SCALE
from modeling_beats import (
    BeatsFeatureExtractor,
    BeatsForAudioClassification,
    BeatsForPreTraining,
    BeatsForTokenizerTraining,
    mask_patches,
)
from train.common.distributed import BatchRows
from train.common.resumable import ResumableTrainer
from train.common.seeds import derived_seed
from train.pretraining.crops import CropBatches, CropCollator, Crops, StreamedCrops
from train.pretraining.training_arguments import PretrainingArguments


logger = logging.getLogger(__name__)


class CodebookStatistics:
    """Use of the codes since the last summary, and means of other metrics, over all processes.

    Args:
        num_codes (`int`): Size of the codebook.
        metric_names (`tuple[str, ...]`): Names of the other metrics.
        device (`torch.device`): Device of the sums; that of the model avoids synchronisation.
    """

    def __init__(self, num_codes: int, metric_names: tuple[str, ...], device: torch.device):
        self.metric_names = metric_names
        self.histogram = torch.zeros(num_codes, dtype=torch.long, device=device)
        self.sums = torch.zeros(len(metric_names), device=device)

    def add(self, codes: Tensor, *means: Tensor) -> None:
        """Count codes, and add up metrics.

        Args:
            codes (`torch.LongTensor` of shape `(patches,)`): Codes of some patches.
            means (`torch.Tensor` of shape `()`): Mean of each of the other metrics over these patches.
        """
        self.histogram += torch.bincount(codes, minlength=len(self.histogram))
        self.sums += len(codes) * torch.stack([mean.detach().float() for mean in means])

    def summary(self) -> dict[str, float]:
        """Return the metrics since the last summary and start over; all processes must call this.

        Returns:
            `dict[str, float]`: The means of the other metrics; `codebook_usage`, the fraction of the codes that
            occurred; `perplexity`, the exponential of the codes' entropy; and `largest_share`, the fraction of the
            most frequent code, which is the accuracy of always predicting it.
        """
        values = torch.cat([self.histogram.float(), self.sums])
        if dist.is_available() and dist.is_initialized():
            dist.all_reduce(values)
        counts, sums = values.cpu().double().split([len(self.histogram), len(self.sums)])
        self.histogram.zero_()
        self.sums.zero_()
        total = counts.sum().clamp(min=1)
        fractions = counts / total
        return {
            **dict(zip(self.metric_names, (sums / total).tolist(), strict=True)),
            "codebook_usage": (counts > 0).double().mean().item(),
            "perplexity": torch.special.entr(fractions).sum().exp().item(),
            "largest_share": fractions.max().item(),
        }


class CropLoader(DataLoader):
    """`DataLoader` that raises errors of its workers as they are, without the traceback that torch adds to them."""

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override] # torch promises its private class
        try:
            yield from super().__iter__()
        except (InputError, OSError) as error:
            if "\n" not in str(error):
                raise
            last = str(error).strip().splitlines()[-1]
            raise type(error)(last.partition(": ")[2]) from error


class CropTrainer(ResumableTrainer):
    """Train for a number of steps on crops of audio, which are read during training.

    A step is a function of weights, optimizer state, seed, step and micro-step alone, so that an interrupted run
    resumes to the same weights. Of a stream, whose clips are shuffled by the workers that read them, this holds as
    long as the numbers of processes and workers stay the same. Without dropout several processes compute the same as
    one, up to rounding, except from a stream.

    Args:
        model (`PreTrainedModel`): The model to train.
        args (`PretrainingArguments`): Recipe of the run.
        feature_extractor (`BeatsFeatureExtractor`): Computes the filter banks. Saved with the model.
        train_dataset (`Crops` or `StreamedCrops`, *optional*): Audio; not needed to measure the cost of a step.
        min_samples (`int`): Shorter crops are repeated to this length.
    """

    model: PreTrainedModel
    args: PretrainingArguments
    train_dataset: Crops | StreamedCrops | None
    data_collator: CropCollator

    def __init__(
        self,
        model: PreTrainedModel,
        args: PretrainingArguments,
        feature_extractor: BeatsFeatureExtractor,
        train_dataset: Crops | StreamedCrops | None,
        min_samples: int,
    ):
        self.rows = BatchRows(args.world_size, args.process_index)
        self.rows.resize(args.batch_size)
        self.feature_extractor = feature_extractor
        # Layer drop leaves parameters without a gradient, which DDP must then look for.
        args.ddp_find_unused_parameters = bool(model.config.layerdrop)
        super().__init__(
            model=model,
            args=args,
            data_collator=CropCollator(feature_extractor, min_samples),
            train_dataset=train_dataset,
            processing_class=feature_extractor,
        )

    def get_train_dataloader(self) -> DataLoader:
        """Return a loader that gives each process its rows of every batch of the run, which is one long epoch."""
        args, dataset = self.args, self.train_dataset
        assert dataset is not None
        batches, batch_size, workers = None, 1, args.dataloader_num_workers
        if isinstance(dataset, StreamedCrops):
            batch_size = dataset.batch_size = self.rows.count
            if (workers := dataset.usable_workers(workers)) < args.dataloader_num_workers:
                logger.info(
                    "%d of %d workers read the stream, as its %d shards do not divide evenly among more.",
                    workers,
                    args.dataloader_num_workers,
                    dataset.source.num_shards,
                )
        else:
            num_batches = args.max_steps * args.gradient_accumulation_steps
            batches = CropBatches(len(dataset), args.batch_size, num_batches, args.seed, self.rows, dataset.weights)
        return CropLoader(
            dataset,
            batch_size=batch_size,
            batch_sampler=batches,
            num_workers=workers,
            collate_fn=self.data_collator,
            pin_memory=args.dataloader_pin_memory and args.device.type == "cuda",
        )

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Run the forward and backward pass of this process' rows and return the detached loss."""
        seed = self.next_seed()
        torch.manual_seed(derived_seed(seed, self.args.process_index))  # for dropout
        self._generator = torch.Generator().manual_seed(seed)  # for what all processes draw alike
        return super().training_step(model, inputs, num_items_in_batch)

    @torch.no_grad()
    def features(self, waveform: Tensor, num_frames: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Return the filter banks of a batch, and the attention mask if crops differ in length.

        Args:
            waveform (`torch.ShortTensor` of shape `(batch, samples)`): 16-bit samples.
            num_frames (`torch.LongTensor` of shape `(batch,)`, *optional*): Frames of each crop.
        """
        features = self.feature_extractor.features(waveform / FULL_SCALE)
        if num_frames is None:
            return features, None
        mask = torch.arange(features.shape[1], device=features.device) < num_frames.unsqueeze(1)
        return features.masked_fill(~mask.unsqueeze(2), self.feature_extractor.padding_value), mask.long()

    def noise(self, batch_size: int) -> dict[str, Tensor]:
        """Return a batch of crops of full length, to measure what a step costs."""
        samples = round(self.args.segment_seconds * self.feature_extractor.sampling_rate)
        return {"waveform": torch.randint(-FULL_SCALE, FULL_SCALE, (batch_size, samples), dtype=torch.int16)}


class PretrainingTrainer(CropTrainer):
    """Train on unlabelled audio, with the output of a frozen model as the target.

    The loss is the mean over the patches of all processes, also if crops differ in length.

    Args:
        model, args, feature_extractor, train_dataset: As for [`CropTrainer`].
        target_model (`nn.Module`): The tokenizer that labels the patches, or the teacher of a tokenizer.
    """

    metric_names: tuple[str, ...]
    """Metrics that are logged besides the loss and the use of the codes."""

    def __init__(
        self,
        model: PreTrainedModel,
        args: PretrainingArguments,
        feature_extractor: BeatsFeatureExtractor,
        target_model: nn.Module,
        train_dataset: Crops | StreamedCrops | None,
    ):
        patch = feature_extractor.frame_length + (model.config.patch_size - 1) * feature_extractor.hop_length
        super().__init__(model, args, feature_extractor, train_dataset, min_samples=patch)
        self.target_model = target_model.to(args.device).eval().requires_grad_(False)
        self.statistics = CodebookStatistics(model.config.codebook_size, self.metric_names, args.device)

    def batch_loss(
        self, model: nn.Module, features: Tensor, attention_mask: Tensor | None
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Return the loss of a batch, and what is logged of it.

        Args:
            model (`nn.Module`): The model, perhaps wrapped.
            features (`torch.Tensor` of shape `(batch, frames, num_mel_bins)`): Filter banks.
            attention_mask (`torch.LongTensor` of shape `(batch, frames)`, *optional*): 1 for the frames of a crop, 0
                for padding.

        Returns:
            `tuple`: The mean loss over the patches that count; their codes of shape `(patches,)`; and the mean of each
            of `metric_names` over them.
        """
        raise NotImplementedError

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor:
        """Return the loss of a batch of the collator."""
        features, attention_mask = self.features(inputs["waveform"], inputs.get("num_frames"))
        loss, codes, means = self.batch_loss(model, features, attention_mask)
        self.statistics.add(codes, *means)
        if self.args.world_size > 1:
            # DDP averages gradients over processes; processes with more patches must count for more.
            total = torch.tensor(float(len(codes)), device=loss.device)
            dist.all_reduce(total)
            loss = loss * (len(codes) * self.args.world_size / total)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log the loss together with the statistics of the codes."""
        if "loss" in logs:
            logs = {**logs, **self.statistics.summary()}
        super().log(logs, start_time)


class MaskedModelingTrainer(PretrainingTrainer):
    """Train [`BeatsForPreTraining`] to predict a tokenizer's codes of masked patches."""

    model: BeatsForPreTraining
    metric_names = ("masked_accuracy",)

    def batch_loss(
        self, model: nn.Module, features: Tensor, attention_mask: Tensor | None
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Return the cross-entropy, the codes and the accuracy at the masked patches."""
        with torch.no_grad(), self.accelerator.autocast():
            tokens = self.target_model(features, attention_mask)
        num_patches = tokens.codes.shape[1]
        config = self.model.config
        # Noise for all rows at their greatest length, so that a row's mask does not depend on the rows beside it.
        noise = torch.rand(self.rows.total, self.args.max_patches(config), generator=self._generator)
        noise = noise[self.rows.slice, :num_patches].to(features.device)
        masked = mask_patches(noise, config.mask_ratio, tokens.patch_mask)
        outputs = model(features, attention_mask, tokens.codes, masked)
        codes = tokens.codes[masked]
        accuracy = (outputs.logits[masked].argmax(dim=-1) == codes).float().mean()
        return outputs.loss, codes, (accuracy,)


class TokenizerTrainer(PretrainingTrainer):
    """Train [`BeatsForTokenizerTraining`] to reproduce the output of a teacher from its codes.

    The output is the last hidden state of a self-supervised teacher, or the class probabilities that a fine-tuned
    teacher assigns to each patch.
    """

    model: BeatsForTokenizerTraining
    metric_names = ("similarity", "commitment_loss")

    def __init__(
        self,
        model: BeatsForTokenizerTraining,
        args: PretrainingArguments,
        feature_extractor: BeatsFeatureExtractor,
        target_model: nn.Module,
        train_dataset: Crops | StreamedCrops | None,
    ):
        super().__init__(model, args, feature_extractor, target_model, train_dataset)
        model.quantizer.accumulation_steps = args.gradient_accumulation_steps

    def batch_loss(
        self, model: nn.Module, features: Tensor, attention_mask: Tensor | None
    ) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Return the loss, the codes, similarity and commitment loss at the real patches."""
        with torch.no_grad(), self.accelerator.autocast():
            targets = teacher_output(self.target_model, features, attention_mask)
        outputs = model(features, attention_mask, targets)
        codes = outputs.codes.flatten() if outputs.patch_mask is None else outputs.codes[outputs.patch_mask]
        return outputs.loss, codes, (outputs.similarity, outputs.commitment_loss)


def teacher_output(teacher: nn.Module, features: Tensor, attention_mask: Tensor | None) -> Tensor:
    """Return the targets of a tokenizer, of shape `(batch, patches, estimator_size)`."""
    if not isinstance(teacher, BeatsForAudioClassification):
        return teacher(features, attention_mask).last_hidden_state
    logits = teacher.classifier(teacher.beats(features, attention_mask).last_hidden_state).float()
    if teacher.config.problem_type == "multi_label_classification":
        return logits.sigmoid()
    return F.softmax(logits, dim=-1)

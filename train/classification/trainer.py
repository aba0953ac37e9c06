"""The trainer of students and teachers."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import EvalPrediction, PreTrainedModel, TrainerCallback
from transformers.feature_extraction_utils import FeatureExtractionMixin

from dataset_script.waveforms import FULL_SCALE
from train.classification import schedules
from train.classification.arguments import SceneTrainingArguments
from train.classification.data import SceneDataset
from train.common.augmentations import DeviceImpulseResponse, Mix
from train.common.distributed import BatchRows, synchronize_layers
from train.common.resumable import EpochShuffle, ResumableTrainer
from train.evaluation.metrics import scene_metrics


class DistillationTrainer(ResumableTrainer):
    """Train a scene classifier on waveforms, with augmentation on the training device, by labels and teachers.

    A step takes a batch of waveforms through device impulse responses, the model's feature extractor, Freq-MixStyle,
    SpecAugment and Soft Mixup (each if the arguments ask for it), then the model, then
    [`~train.classification.losses.DistillationLoss`]; rows without teacher logits are trained on with plain mixup. No
    gradient flows into the features. Evaluation uses clean clips and the cross-entropy.

    A step is a function of weights, optimizer state, seed, step and micro-step alone: a run that was interrupted
    continues to the same weights, and several processes compute the same as one, up to rounding. (Two exceptions,
    where the number of processes changes the draws but not their distribution: dropout inside fused attention, and
    dropout on CUDA.)

    Args:
        model (`PreTrainedModel`): Takes `input_values` and returns `logits`.
        args (`SceneTrainingArguments`): Recipe of the run.
        feature_extractor (`FeatureExtractionMixin`): Has `features(waveform (batch, samples)) -> input_values`; its
            `sampling_rate` is that of the datasets' waveforms. Saved with the model.
        train_dataset (`SceneDataset`): Clips to train on.
        eval_dataset (`SceneDataset`, *optional*): Clips to evaluate on after each epoch.

    Raises:
        FileNotFoundError, InputError: As [`~train.common.augmentations.DeviceImpulseResponse`].
    """

    def __init__(
        self,
        model: PreTrainedModel,
        args: SceneTrainingArguments,
        feature_extractor: FeatureExtractionMixin,
        train_dataset: SceneDataset,
        eval_dataset: SceneDataset | None = None,
    ):
        self.loss_function = args.loss_function()
        self.freq_mixstyle, self.spec_augment, self.soft_mixup = args.feature_augmentations()
        self.impulse_response = None
        if args.impulse_response_p:
            self.impulse_response = DeviceImpulseResponse(
                args.impulse_responses, feature_extractor.sampling_rate, args.impulse_response_p
            )
        self.feature_extractor = feature_extractor
        self.rows = BatchRows(args.world_size, args.process_index)
        if args.world_size > 1:
            synchronize_layers(model, self.rows)
        # Layer drop leaves parameters without a gradient, which DDP must then look for.
        args.ddp_find_unused_parameters = bool(getattr(model.config, "layerdrop", 0.0))
        super().__init__(
            model=model,
            args=args,
            data_collator=_as_read,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=feature_extractor,
            compute_metrics=self.compute_scene_metrics,
            callbacks=[_SetEpoch()],
        )

    def get_train_dataloader(self) -> DataLoader:
        """Return a loader that gives every process the whole batch: rows are cheap to read, the rest is shared."""
        if self.args.waveforms_on_device:
            self.train_dataset.move_waveforms(self.args.device)
        return DataLoader(
            self.train_dataset,
            batch_size=self.args.batch_size,
            sampler=EpochShuffle(len(self.train_dataset), self.args.seed),
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory
            and self.args.device.type == "cuda"
            and not self.args.waveforms_on_device,
        )

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Return all parameters: the recipes that use weight decay use plain AdamW, without exceptions."""
        return [name for name, _ in model.named_parameters()]

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Return the schedule of the recipe: a rate for each epoch, whatever makes up the steps of one."""
        args = self.args
        factor = {
            "sgdr": lambda epoch: schedules.sgdr(epoch, args.first_cycle, args.cycle_factor),
            "warmup_linear": lambda epoch: schedules.warmup_linear(
                epoch, round(args.num_train_epochs), args.warmup_epochs
            ),
            "constant": lambda epoch: 1.0,
        }[args.schedule]
        batches = -(-len(self.train_dataset) // args.batch_size)
        steps_per_epoch = -(-batches // args.gradient_accumulation_steps)
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer or self.optimizer, lambda step: factor(step // steps_per_epoch)
        )
        self._created_lr_scheduler = True
        return self.lr_scheduler

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Do one forward and backward pass on the global batch `inputs`; returns the detached loss of all of it."""
        seed = self.next_seed()
        torch.manual_seed(seed)  # for dropout
        self._generator = torch.Generator().manual_seed(seed)
        # DDP averages gradients over the processes, of which each has the part of its own rows: hence the factor.
        return super().training_step(model, inputs, num_items_in_batch) / self.args.world_size

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Return the loss of a batch of the collator: of the recipe in training, cross-entropy in evaluation."""
        if not model.training:
            features = self.feature_extractor.features(inputs["waveform"] / FULL_SCALE)
            outputs = {"logits": model(input_values=features).logits}
            loss = F.cross_entropy(outputs["logits"], inputs["labels"])
            return (loss, outputs) if return_outputs else loss
        features, mix = self.augmented_features(inputs["waveform"], inputs["device"])
        logits = self.rows.gather(model(input_values=features[self.rows.work]).logits)
        loss = self.loss_function(logits, inputs["labels"], inputs.get("teacher_logits"), mix)
        loss = loss * self.args.world_size
        return (loss, {"logits": logits}) if return_outputs else loss

    @torch.no_grad()
    def augmented_features(self, waveform: Tensor, device: Tensor) -> tuple[Tensor, Mix | None]:
        """Return the augmented features of the global batch, and how Soft Mixup mixed it.

        Args:
            waveform (`torch.ShortTensor` of shape `(batch_size, samples)`): 16-bit samples.
            device (`torch.LongTensor` of shape `(batch_size,)`): Recording device of each clip.
        """
        self.rows.resize(len(waveform))
        work = self.rows.work
        clips = waveform[work] / FULL_SCALE
        if self.impulse_response is not None:
            clips = self.impulse_response.apply(clips, self.impulse_response.draw(device, self._generator)[work])
        features = self.rows.gather(self.feature_extractor.features(clips))
        if self.freq_mixstyle is not None:
            features = self.freq_mixstyle(features, self._generator)
        if self.spec_augment is not None:
            features = self.spec_augment(features, self._generator)
        if self.soft_mixup is None:
            return features, None
        return self.soft_mixup(features, self._generator)

    def compute_scene_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Return the accuracies that are logged after an epoch."""
        labels, device = prediction.label_ids
        features = self.eval_dataset.scenes.features
        names = [features["device"].names[index] for index in device]
        result = scene_metrics(prediction.predictions, labels, devices=names)
        figures = {name: result[name] for name in ("accuracy", "macro_accuracy", "log_loss")}
        for name, group in result["device_groups"].items():
            figures[f"accuracy_{name}_devices"] = group["accuracy"]
        return figures


def _as_read(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """The batch as the dataset reads it, all rows at once."""
    return batch


class _SetEpoch(TrainerCallback):
    """Tells the sampler which epoch begins, also where a run goes on in the middle of one."""

    def on_epoch_begin(self, args: Any, state: Any, control: Any, train_dataloader: DataLoader, **kwargs: Any) -> None:
        train_dataloader.sampler.set_epoch(int(state.epoch))

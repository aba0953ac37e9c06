"""The trainer of students and teachers."""

import logging
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader
from transformers import (
    EarlyStoppingCallback,
    EvalPrediction,
    PreTrainedModel,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from dataset_script.errors import InputError
from dataset_script.waveforms import FULL_SCALE
from train.classification import schedules
from train.classification.data import MixedDataset, SceneDataset
from train.classification.training_arguments import SceneTrainingArguments
from train.common.augmentations import DeviceImpulseResponse, FrequencyMask, Mix, TimeRolling
from train.common.distributed import BatchRows, synchronize_layers
from train.common.encoders import encoder_of, layer_factors
from train.common.features import AnyFeatureExtractor, clip_spectrogram, input_rate, model_inputs
from train.common.resumable import ResumableTrainer
from train.common.seeds import derived_seed
from train.evaluation.metrics import scene_metrics


logger = logging.getLogger(__name__)


class DistillationTrainer(ResumableTrainer):
    """Trainer of scene classifiers on waveforms, labels and teacher logits, with augmentation on the training device.

    In a training step, the waveforms of a batch pass through time rolling, device impulse responses, the feature
    extractor, frequency masking, Freq-MixStyle, SpecAugment and Soft Mixup (those that the arguments switch on), the
    model, and [`~train.classification.losses.DistillationLoss`]. No gradient flows into the features. Evaluation uses
    clean clips and the cross-entropy.

    A step depends only on the weights, the optimizer state, the seed, the step and the micro-step: an interrupted run
    resumes to the same weights, and several processes compute the same as one, up to rounding. There are three
    exceptions, in which the number of processes changes the draws but not their distribution: dropout in fused
    attention, dropout on CUDA, and dropout that is not a module (in Whisper, whose checkpoints have none). With
    `separate_batches`, each process augments and normalises its part of a batch as a batch of its own: only gradients
    and running statistics, those of the first process, are exchanged.

    Args:
        model (`PreTrainedModel`): Model that maps its inputs to `logits`.
        args (`SceneTrainingArguments`): The run.
        feature_extractor (`FeatureExtractionMixin` or `WaveformFeatures`): Feature extractor of the model, for
            waveforms at the datasets' rate; saved with the model.
        train_dataset (`SceneDataset` or `MixedDataset`): Clips to train on.
        eval_dataset (`SceneDataset`, *optional*): Clips to evaluate on after each epoch.
        layer_decay (`float`, *optional*, defaults to 1.0): Factor of the learning rate from one layer of the encoder
            to the one below, see [`~train.common.encoders.layer_factors`].

    Raises:
        FileNotFoundError, InputError: As [`~train.common.augmentations.DeviceImpulseResponse`]; if impulse responses
            are switched on without a folder.
    """

    args: SceneTrainingArguments
    model: PreTrainedModel
    train_dataset: SceneDataset | MixedDataset
    eval_dataset: SceneDataset | None

    def __init__(
        self,
        model: PreTrainedModel,
        args: SceneTrainingArguments,
        feature_extractor: AnyFeatureExtractor,
        train_dataset: SceneDataset | MixedDataset,
        eval_dataset: SceneDataset | None = None,
        layer_decay: float = 1.0,
    ):
        self.loss_function = args.loss_function()
        self.freq_mixstyle, self.spec_augment, self.soft_mixup = args.feature_augmentations()
        rate = input_rate(feature_extractor)
        self.time_rolling = TimeRolling(round(args.time_rolling * rate)) if args.time_rolling else None
        self.frequency_mask = None
        if args.frequency_mask_size:
            silence = model_inputs(feature_extractor, torch.zeros(1, rate))[model.main_input_name]
            if silence.ndim != 4:
                raise InputError(
                    f"frequency_mask_size is {args.frequency_mask_size}, but a {model.config.model_type} model is not "
                    "a student: leave it out, or use spec_augment_size."
                )
            self.frequency_mask = FrequencyMask(args.frequency_mask_size, silence.min().item())
        self.impulse_response = None
        if args.impulse_response_p:
            if args.impulse_responses is None:
                raise InputError("impulse_response_p is set, but impulse_responses is not: set it to a folder.")
            self.impulse_response = DeviceImpulseResponse(args.impulse_responses, rate, args.impulse_response_p)
        self.feature_extractor = feature_extractor
        self.layer_decay = layer_decay
        self.parts = BatchRows(args.world_size, args.process_index)
        self.rows = BatchRows(1, 0) if args.separate_batches else self.parts
        if self.rows.num_processes > 1:
            synchronize_layers(model, self.rows)
        # Layer drop and models of transformers leave some parameters without a gradient, which DDP must detect.
        ours = hasattr(feature_extractor, "features")
        args.ddp_find_unused_parameters = not ours or bool(getattr(model.config, "layerdrop", 0.0))
        super().__init__(
            model=model,
            args=args,
            data_collator=_already_collated,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=feature_extractor,
            compute_metrics=self.compute_scene_metrics,
            callbacks=[_SetEpoch()],
        )

    def get_train_dataloader(self) -> DataLoader:
        """Return a loader of global batches: each process reads all rows, which is cheap, and computes its slice."""
        if self.args.waveforms_on_device:
            self.train_dataset.move_waveforms(self.args.device)
        return DataLoader(
            self.train_dataset,
            batch_size=self.args.batch_size,
            sampler=self.train_dataset.sampler(self.args.batch_size, self.args.seed),
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory
            and self.args.device.type == "cuda"
            and not self.args.waveforms_on_device,
        )

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Return the names of all parameters: the recipes use plain AdamW, without exceptions from weight decay."""
        return [name for name, _ in model.named_parameters()]

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Return the optimizer, with a group of parameters for each learning rate; the first one has the highest."""
        exists = self.optimizer is not None
        optimizer = super().create_optimizer(model)
        if exists or self.layer_decay == 1:
            return optimizer
        factors = layer_factors(self.model, self.layer_decay)
        parameters = {id(parameter): factors[name] for name, parameter in self.model.named_parameters()}
        optimizer.param_groups = [
            {**group, "params": members, "lr": group["lr"] * factor}
            for group in optimizer.param_groups
            for factor in sorted(set(factors.values()), reverse=True)
            if (members := [member for member in group["params"] if parameters[id(member)] == factor])
        ]
        return optimizer

    def create_scheduler(
        self, num_training_steps: int, optimizer: torch.optim.Optimizer | None = None
    ) -> torch.optim.lr_scheduler.LRScheduler:
        """Return the recipe's schedule, whose rate is constant within an epoch unless it is `warmup_cosine`."""
        args = self.args
        optimizer = optimizer or self.optimizer
        assert optimizer is not None
        self._created_lr_scheduler = True
        if args.schedule == "warmup_cosine":
            warmup_steps = min(args.get_warmup_steps(num_training_steps), num_training_steps // 2)
            if args.should_log and warmup_steps < args.warmup_steps:
                logger.warning("The warm-up is shortened to %d steps, half of the training.", warmup_steps)
            self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(
                optimizer, lambda step: schedules.warmup_cosine(step, num_training_steps, warmup_steps)
            )
            return self.lr_scheduler
        factor = {
            "sgdr": lambda epoch: schedules.sgdr(epoch, args.first_cycle, args.cycle_factor),
            "warmup_linear": lambda epoch: schedules.warmup_linear(
                epoch, round(args.num_train_epochs), args.warmup_epochs
            ),
            "constant": lambda epoch: 1.0,
        }[args.schedule]
        batches = math.ceil(len(self.train_dataset.sampler(args.batch_size, args.seed)) / args.batch_size)
        steps_per_epoch = math.ceil(batches / args.gradient_accumulation_steps)
        self.lr_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: factor(step // steps_per_epoch))
        return self.lr_scheduler

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Run the forward and backward pass of a global batch, and return its detached loss."""
        seed = self.next_seed()
        if self.args.separate_batches:
            seed = derived_seed(seed, self.args.process_index)
        torch.manual_seed(seed)  # for dropout
        self._generator = torch.Generator().manual_seed(seed)
        loss = super().training_step(model, inputs, num_items_in_batch)
        # `compute_loss` multiplies by the world size, because DDP averages the gradients of the processes' slices.
        return loss if self.args.separate_batches else loss / self.args.world_size

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Tensor],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Tensor | tuple[Tensor, Any]:
        """Return the loss of a batch: the recipe's loss in training, the cross-entropy in evaluation."""
        if not model.training:
            outputs = {"logits": model(**model_inputs(self.feature_extractor, inputs["waveform"] / FULL_SCALE)).logits}
            loss = F.cross_entropy(outputs["logits"], inputs["labels"])
            return (loss, outputs) if return_outputs else loss
        encoder = encoder_of(self.model)
        if encoder is not None and not any(parameter.requires_grad for parameter in encoder.parameters()):
            encoder.eval()  # a frozen encoder has no dropout
        weight: float = self.args.world_size
        if self.args.separate_batches:
            self.parts.resize(len(inputs["labels"]))
            weight *= self.parts.count / self.parts.total
            inputs = {name: values[self.parts.slice] for name, values in inputs.items()}
        augmented, mix = self.augmented_inputs(inputs["waveform"], inputs["device"])
        logits = self.rows.gather(model(**augmented).logits)
        loss = weight * self.loss_function(logits, inputs["labels"], inputs.get("teacher_logits"), mix)
        return (loss, {"logits": logits}) if return_outputs else loss

    @torch.no_grad()
    def augmented_inputs(self, waveform: Tensor, device: Tensor) -> tuple[dict[str, Tensor], Mix | None]:
        """Compute the features of the global batch, and augment them.

        Args:
            waveform (`torch.ShortTensor` of shape `(batch_size, samples)`): 16-bit samples.
            device (`torch.LongTensor` of shape `(batch_size,)`): Recording device of each clip.

        Returns:
            `tuple[dict[str, torch.Tensor], Mix]`: The inputs of the model for the rows of this process, and the mix of
                Soft Mixup, None if that is off.
        """
        self.rows.resize(len(waveform))
        clips = waveform[self.rows.slice] / FULL_SCALE
        if self.time_rolling is not None:
            shift = self.time_rolling.draw(len(waveform), self._generator)
            clips = self.time_rolling.apply(clips, shift[self.rows.slice])
        if self.impulse_response is not None:
            response = self.impulse_response.draw(device, self._generator)
            clips = self.impulse_response.apply(clips, response[self.rows.slice])
        inputs = model_inputs(self.feature_extractor, clips)
        name, mix = self.model.main_input_name, None
        features = self.rows.gather(inputs[name])
        if self.frequency_mask is not None:
            features = self.frequency_mask(features, self._generator)
        if self.freq_mixstyle is not None or self.spec_augment is not None:
            spectrogram = clip_spectrogram(self.feature_extractor, features, waveform.shape[1])
            augmented = spectrogram
            if self.freq_mixstyle is not None:
                augmented = self.freq_mixstyle(augmented, self._generator)
            if self.spec_augment is not None:
                augmented = self.spec_augment(augmented, self._generator)
            if spectrogram is features:
                features = augmented
            else:
                spectrogram.copy_(augmented)
        if self.soft_mixup is not None:
            features, mix = self.soft_mixup(features, self._generator)
        return {**inputs, name: features[self.rows.slice]}, mix

    def compute_scene_metrics(self, prediction: EvalPrediction) -> dict[str, float]:
        """Return the metrics to log after an epoch."""
        assert self.eval_dataset is not None
        labels, device = tuple(prediction.label_ids)
        device_names = self.eval_dataset.scenes.features["device"].names
        result = scene_metrics(prediction.predictions, labels, devices=[device_names[index] for index in device])
        metrics = {name: result[name] for name in ("accuracy", "macro_accuracy", "log_loss")}
        for name, group in result["device_groups"].items():
            metrics[f"accuracy_{name}_devices"] = group["accuracy"]
        return metrics


def _already_collated(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return the batch of [`SceneDataset`], which reads all rows at once."""
    return batch


class EarlyStopping(EarlyStoppingCallback):
    """`EarlyStoppingCallback` that counts in the history of the run, so that a resumed one stops at the same epoch."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count the epochs since the best one."""
        super().on_train_begin(args, state, control, **kwargs)
        metric = f"eval_{args.metric_for_best_model}"
        values = [entry[metric] for entry in state.log_history if metric in entry]
        if values:
            self.early_stopping_patience_counter = len(values) - 1 - values.index(max(values))
        control.should_training_stop = self.early_stopping_patience_counter >= self.early_stopping_patience


class _SetEpoch(TrainerCallback):
    """Callback that sets the epoch of the sampler, also if a run resumes in the middle of an epoch."""

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        kwargs["train_dataloader"].sampler.set_epoch(int(state.epoch or 0))

"""Training that can be interrupted at any point, and that stops when it diverges."""

import errno
import logging
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from accelerate.state import AcceleratorState
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from transformers import PreTrainedModel, PrinterCallback, ProgressCallback, Trainer
from transformers.trainer_utils import TrainOutput
from transformers.utils import SAFE_WEIGHTS_NAME

from dataset_script.errors import InputError, input_errors
from dataset_script.files import make_durable, write_json
from model_cards.results import RESULTS_FILE, RUN_FILE, provenance
from train.common.checkpoints import complete_checkpoint, find_checkpoints
from train.common.progress import MetricLines
from train.common.seeds import derived_seed
from train.common.training_arguments import ResumableTrainingArguments


logger = logging.getLogger(__name__)


class ResumableTrainer(Trainer):
    """`Trainer` whose random draws depend only on seed, step and micro-step, and which marks complete checkpoints.

    A micro-step is one of the passes whose gradients are accumulated in a step.
    """

    args: ResumableTrainingArguments

    def __init__(self, *args: Any, **kwargs: Any):
        AcceleratorState._reset_state()  # that of an earlier trainer in this process has its precision
        with input_errors():  # the base class checks the arguments again, against the machine and the model
            super().__init__(*args, **kwargs)
        for callback in (ProgressCallback, PrinterCallback):
            self.remove_callback(callback)
        quiet = self.args.log_level in ("warning", "error", "critical")
        if not (quiet and self.args.disable_tqdm):
            self.callback_handler.callbacks.insert(0, MetricLines(not self.args.disable_tqdm, not quiet))
        cores = torch.get_num_threads()
        threads = f" with {cores} thread{'s' * (cores > 1)}" if self.args.device.type == "cpu" else ""
        self.precision = {"no": "float32", "bf16": "bfloat16", "fp16": "float16"}[self.accelerator.mixed_precision]
        logger.info("Training on %s%s in %s.", self.args.device.type, threads, self.precision)
        self.model_accepts_loss_kwargs = False
        self._micro_step = (-1, 0)

    def next_seed(self) -> int:
        """Return the seed of the next pass, derived from the run's seed, the step and the micro-step."""
        step, micro_step = self.state.global_step, 0
        if self._micro_step[0] == step:
            micro_step = self._micro_step[1] + 1
        self._micro_step = (step, micro_step)
        return derived_seed(self.args.seed, step, micro_step)

    def floating_point_ops(self, inputs: dict[str, Tensor]) -> int:
        """Return 0: the base class counts tokens, but the inputs are waveforms."""
        return 0

    def train(self, *args: Any, **kwargs: Any) -> TrainOutput:
        """Train the model as the base class does; afterwards it computes in float32 again."""
        output = super().train(*args, **kwargs)
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        return output

    def training_step(
        self, model: nn.Module, inputs: dict[str, Tensor], num_items_in_batch: Tensor | int | None = None
    ) -> Tensor:
        """Do one forward and backward pass.

        Raises:
            InputError: If the loss is not finite.
        """
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            raise self._divergence(f"The loss is {loss.item()}")
        return loss

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if not self.control.should_training_stop:  # as early stopping had decided before the run was interrupted
            super()._run_epoch(*args, **kwargs)

    def _divergence(self, what: str) -> InputError:
        rate = self._get_learning_rate()
        checkpoints = find_checkpoints(self.args.output_dir)
        kept = f"the last checkpoint is {checkpoints[-1]}" if checkpoints else "there is no checkpoint yet"
        return InputError(
            f"{what} in epoch {self.state.epoch or 0:.2f} (step {self.state.global_step}) at a learning rate of "
            f"{rate:.3g}: lower --learning_rate and choose another --output_dir, or check the teachers' logits; "
            f"{kept}."
        )

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if not all(bool(torch.isfinite(weight).all()) for weight in model.parameters()):
            raise self._divergence("Weights are not finite")
        folder = Path(self.args.output_dir)
        with _full_disk_errors(folder):
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                complete_checkpoint(folder / f"checkpoint-{self.state.global_step}", folder / RUN_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        if not self._load_renamed(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        checkpoint = self.state.best_model_checkpoint
        if checkpoint is None or not self._load_renamed(checkpoint):
            super()._load_best_model()

    def _load_renamed(self, checkpoint: str) -> bool:
        """Load a checkpoint whose weights have other names than the model's, and return whether it is one.

        `save_pretrained` writes the weights of some models, such as ASTs, under the names of their first publication.
        `from_pretrained` renames them, but the base class does not: it would go on from other weights.
        """
        model, path = self.model, Path(checkpoint) / SAFE_WEIGHTS_NAME
        if not isinstance(model, PreTrainedModel) or not path.is_file():
            return False
        with safe_open(path, framework="pt") as file:
            if set(file.keys()) == set(model.state_dict()):
                return False
        saved = type(model).from_pretrained(checkpoint, config=model.config, dtype=model.dtype)
        model.load_state_dict(saved.state_dict())
        return True

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        with _foreign_pickle_errors(checkpoint):
            super()._load_optimizer_and_scheduler(checkpoint)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        with _foreign_pickle_errors(checkpoint):
            super()._load_rng_state(checkpoint)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model and its feature extractor, flushed to the disk and with ordinary permissions.

        Args:
            output_dir (`str`, *optional*): Folder; defaults to the output folder of the run.

        Raises:
            OSError: If the disk is full.
        """
        folder = Path(output_dir or self.args.output_dir)
        with _full_disk_errors(folder):
            super().save_model(output_dir, _internal_call)
            if self.args.should_save and not _internal_call:  # a checkpoint is flushed when it is complete
                for path in folder.iterdir():
                    if path.is_file():
                        make_durable(path)

    def finish(self, results: dict[str, Any]) -> dict[str, Any]:
        """Save the model and then its results; all processes must call this.

        Args:
            results (`dict`): The content of `results.json` except the precision and the provenance.

        Returns:
            `dict`: The results with the precision of the training, of its last part if it was resumed, and provenance.
        """
        self.save_model()
        results = {**results, "precision": self.precision, "provenance": provenance()}
        if self.args.should_save:
            write_json(Path(self.args.output_dir) / RESULTS_FILE, results)
        self.accelerator.wait_for_everyone()
        return results


@contextmanager
def _full_disk_errors(folder: Path) -> Iterator[None]:
    """Raise the libraries' errors about a full disk as an `OSError` that says so."""
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        full = isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        # torch and safetensors do not pass on the reason.
        full = full or any(words in str(error) for words in ("No space left", "File too large", "PytorchStreamWriter"))
        full = full or "inline_container" in str(error) or "os error 28" in str(error)
        if not full:
            raise
        raise OSError(
            f"No space left on the disk for {folder}: free some space and run the same command to resume."
        ) from error


@contextmanager
def _foreign_pickle_errors(checkpoint: str | None) -> Iterator[None]:
    """Say in one sentence that a file of a checkpoint contains more than tensors, which is never executed."""
    try:
        yield
    except pickle.UnpicklingError as error:
        raise InputError(
            f"{checkpoint} contains a file with other content than tensors and numbers, which is not loaded: delete "
            "that checkpoint and run the same command to resume from the one before."
        ) from error

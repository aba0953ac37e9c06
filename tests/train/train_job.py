"""A run small enough for tests, started in processes of its own: `python -m tests.train.train_job OUTPUT_DIR …`.

Further arguments are those of `SceneTrainingArguments`, as `name=value`, and `unlabelled`, a number of clips. It
computes in double precision, in which two correct ways to compute the same gradients differ by a billionth, not by as
much as small gradients themselves.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import PartialState
from torch import Tensor
from transformers import TrainerCallback

from tests.train.helpers import ExactFeatureExtractor, make_dataset, make_model, make_trainer
from train.classification.data import MixedDataset, UnlabelledBatches
from train.classification.trainer import DistillationTrainer
from train.common.checkpoints import last_complete_checkpoint
from train.common.runs import claim_output_folder
from train.evaluation.inference import compute_logits


def value(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


@contextmanager
def double_precision() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def make_job(output_dir, unlabelled=0, **arguments) -> DistillationTrainer:
    defaults = {
        "batch_size": 5,  # of 21 clips: the last batch of an epoch is a single clip
        "num_train_epochs": 4,
        "time_rolling": 0.1,
        "frequency_mask_size": 0.2,
        "freq_mixstyle_p": 0.8,
        "spec_augment_size": 0.2,
        "mixup_alpha": 0.3,
        "save_strategy": "steps",
        "save_steps": 3,
        "logging_strategy": "steps",
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    dataset = make_dataset(21, teachers=2)
    if unlabelled:  # two of the five clips of a batch
        others = make_dataset(unlabelled, teachers=2, seed=2)
        dataset = MixedDataset(dataset, UnlabelledBatches(others.waveforms, others.columns["teacher_logits"], 2))
    return make_trainer(
        output_dir,
        dataset,
        make_dataset(9, seed=1),
        make_model(),
        ExactFeatureExtractor(),
        **(defaults | arguments),
    )


class KeepGradients(TrainerCallback):
    """Keeps the gradients that each step of the optimizer starts from."""

    def __init__(self):
        self.steps: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, args, state, control, model, **others):
        gradients = {name.removeprefix("module."): value.grad.clone() for name, value in model.named_parameters()}
        self.steps.append(gradients)


@double_precision()
def main(output_dir, *settings: str) -> None:
    """Train, evaluate and predict; the main process writes what it measured to `measured.pt`."""
    arguments = {name: value(text) for name, text in (setting.split("=") for setting in settings)}
    trainer = make_job(output_dir, **arguments)
    gradients = KeepGradients()
    trainer.add_callback(gradients)
    claim_output_folder(output_dir, arguments)
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(output_dir))
    evaluation = trainer.evaluate()
    logits = compute_logits(make_model().eval(), ExactFeatureExtractor(), make_dataset(21).waveforms, 5)
    if trainer.args.should_save:
        measured = {
            f"gradient of {name} in step {step}": gradient
            for step, of_step in enumerate(gradients.steps)
            for name, gradient in of_step.items()
        }
        for entry in trainer.state.log_history:
            if "loss" in entry:
                measured[f"loss of step {entry['step']}"] = torch.tensor(entry["loss"])
        for name in ("eval_log_loss", "eval_macro_accuracy"):
            measured[name] = torch.tensor(evaluation[name])
        measured["logits"] = torch.from_numpy(logits)
        torch.save(measured, f"{output_dir}/measured.pt")
    trainer.save_model()
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])

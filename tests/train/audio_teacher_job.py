"""Runs of tiny teachers, started in processes of their own: `python -m tests.train.audio_teacher_job OUTPUT_DIR`."""

import sys
from pathlib import Path

import torch
from accelerate import PartialState
from torch import Tensor
from transformers import TrainerCallback, set_seed

from tests.train.audio_models import FAMILIES, save_model
from tests.train.helpers import SCENES, make_dataset
from train.classification.trainer import DistillationTrainer
from train.classification.training_arguments import SceneTrainingArguments
from train.common.encoders import freeze_encoder
from train.common.teachers import load_teacher


class KeepGradients(TrainerCallback):
    """Keeps the gradients that each step of the optimizer starts from."""

    def __init__(self):
        self.steps: list[dict[str, Tensor]] = []

    def on_pre_optimizer_step(self, args, state, control, model, **others):
        named = {name.removeprefix("module."): parameter.grad for name, parameter in model.named_parameters()}
        self.steps.append({name: gradient.clone() for name, gradient in named.items() if gradient is not None})


class Job(DistillationTrainer):
    measured: list[dict[str, Tensor]]


def make_job(kind: str, output_dir, measure: bool = False, freeze: bool = False, **arguments) -> Job:
    """Two epochs of three steps, from a model that is saved beside the output folder unless it is there."""
    folder = Path(output_dir).parent / f"{kind} start"
    if not folder.exists():
        save_model(kind, folder)
    set_seed(0)
    model, extractor = load_teacher(SCENES, str(folder), "layerdrop=0.3" if "wav2vec2" in kind else None)
    if freeze:
        freeze_encoder(model)
    spectrograms = {} if "wav2vec2" in kind else {"freq_mixstyle_p": 0.8, "spec_augment_size": 0.2}
    settings = {
        "batch_size": 5,
        "num_train_epochs": 2,
        "learning_rate": 1e-3,
        "schedule": "constant",
        "save_strategy": "steps",
        "save_steps": 2,
        "save_total_limit": 9,
        "mixup_alpha": 0.3,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
        **spectrograms,
    }
    args = SceneTrainingArguments(output_dir=str(output_dir), **(settings | arguments))
    job = Job(model, args, extractor, make_dataset(13, samples=4000), layer_decay=0.5)
    if measure:
        gradients = KeepGradients()
        job.add_callback(gradients)
        job.measured = gradients.steps
    return job


def measured_job(family: str, output_dir) -> Job:
    """Three steps from the same weights, which the learning rate is too small to change."""
    return make_job(family, output_dir, True, num_train_epochs=1, learning_rate=1e-30, save_strategy="no")


def main(output_dir: str) -> None:
    for family in FAMILIES:
        job = measured_job(family, Path(output_dir) / f"{family} two")
        job.train()
        if job.args.should_save:
            Path(job.args.output_dir).mkdir(exist_ok=True)
            torch.save(job.measured, Path(output_dir) / f"{family} two" / "measured.pt")
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])

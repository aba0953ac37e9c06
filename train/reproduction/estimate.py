"""What the runs behind a table will cost, from a short measurement on this machine."""

import time
from collections.abc import Sequence
from functools import cache

import torch

from train.classification.arguments import DataArguments, SceneTrainingArguments, StudentArguments, TeacherArguments
from train.common.models import load_config, new_student, new_teacher
from train.common.recipes import parse_arguments
from train.reproduction.sweep import Step


FORWARD_SHARE = 1 / 3
"""What a forward pass takes of a training step."""

QUANTIZATION_PASSES = 300
"""What rounding and comparing configurations takes, in training steps of a clip."""


def missing_checkpoints(steps: Sequence[Step]) -> list[str]:
    """Return the models that unfinished steps fine-tune and that cannot be loaded."""
    teachers = (step for step in steps if step.script == "finetune_teacher.py" and not step.done)
    starts = dict.fromkeys(_settings(step)[0].model_name_or_path for step in teachers)
    missing = []
    for start in filter(None, starts):
        try:
            load_config(start)
        except FileNotFoundError:
            missing.append(start)
    return missing


def estimate(step: Step, train_clips: int, test_clips: int) -> float:
    """Return the seconds that a step computes on this machine, in one process, by a short measurement of its network.

    Raises:
        FileNotFoundError, InputError: If the step's arguments are wrong.
    """
    if step.script == "evaluate_logits.py":
        return 0.0
    training = step.model or step
    is_teacher = training.script == "finetune_teacher.py"
    network_args, args = _settings(training)
    frozen = is_teacher and network_args.freeze_encoder
    passes = test_clips * FORWARD_SHARE
    if step.script == "quantize.py":
        passes += passes + QUANTIZATION_PASSES  # float and INT8 are both evaluated
    elif step is training:
        passes += train_clips * args.num_train_epochs
    elif "train" in step.arguments:
        passes = train_clips * FORWARD_SHARE
    return passes * seconds_per_clip(is_teacher, network_args.config_overrides, frozen)


def _settings(training: Step) -> tuple[TeacherArguments | StudentArguments, SceneTrainingArguments]:
    network = TeacherArguments if training.script == "finetune_teacher.py" else StudentArguments
    types = (network, DataArguments, SceneTrainingArguments)
    _, (network_args, _, args) = parse_arguments(types, "demo", list(training.arguments))
    return network_args, args


@cache
def seconds_per_clip(is_teacher: bool, config_overrides: str | None, frozen: bool, clips: int = 8) -> float:
    """Return the seconds of a training step for a clip of one second, features included, measured on this machine."""
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    labels = [str(index) for index in range(10)]
    if is_teacher:
        model, feature_extractor = new_teacher(labels, None, config_overrides)
        if frozen:
            model.freeze_encoder()
    else:
        model, feature_extractor = new_student(labels, config_overrides)
    model = model.to(device).train()
    waveform = torch.randn(clips, feature_extractor.sampling_rate, device=device) / 10
    for _ in range(2):  # the first pass sets up what the second finds ready
        start = time.perf_counter()
        loss = model(
            feature_extractor.features(waveform), labels=torch.zeros(clips, dtype=torch.long, device=device)
        ).loss
        loss.backward()
        loss.item()
        seconds = time.perf_counter() - start
    return seconds / clips

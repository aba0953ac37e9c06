"""Estimate the time of the runs behind a table from a short measurement on this machine."""

import time
from collections.abc import Sequence
from functools import cache
from typing import Literal, TypeVar

import torch

from modeling_beats import BeatsForAudioClassification
from train.classification.arguments import DataArguments, DistillationArguments, TeacherArguments
from train.classification.training_arguments import SceneTrainingArguments
from train.common.availability import DEMO_MODELS, is_missing_demo_model
from train.common.features import input_rate, model_inputs
from train.common.models import load_config, new_student, new_teacher
from train.common.recipes import load_recipe, parse_arguments
from train.reproduction.sweep import Step


NetworkArguments = TypeVar("NetworkArguments", TeacherArguments, DistillationArguments)

FORWARD_FRACTION = 1 / 3
"""Time of a forward pass relative to a training step."""

QUANTIZATION_PASSES = 300
"""Time of rounding and tuning, in training steps of a clip."""


def missing_checkpoints(steps: Sequence[Step]) -> list[str]:
    """Return the pretrained models of unfinished steps that cannot be loaded."""
    teachers = (step for step in steps if step.script == "finetune_teacher.py" and not step.done)
    starts = dict.fromkeys(_parse(step, TeacherArguments)[0].model_name_or_path for step in teachers)
    missing = []
    for start in filter(None, starts):
        if is_missing_demo_model(start):
            continue
        try:
            load_config(start)
        except FileNotFoundError:
            missing.append(start)
    return missing


def estimate(step: Step, train_clips: int, test_clips: int) -> float:
    """Estimate the time of a step on this machine in one process, by measuring its network.

    Args:
        step (`Step`): The step.
        train_clips (`int`): Number of training clips.
        test_clips (`int`): Number of test clips.

    Returns:
        `float`: The time in seconds, without starting Python.

    Raises:
        FileNotFoundError, InputError: If the arguments of the step are invalid.
    """
    if step.script == "evaluate_logits.py":
        return 0.0
    training = step.model or step
    if training.script == "finetune_teacher.py":
        teacher_args, args = _parse(training, TeacherArguments)
        overrides = teacher_args.config_overrides
        if teacher_args.model_name_or_path in DEMO_MODELS:
            overrides = load_recipe("demo_encoder")["config_overrides"]
        step_seconds = seconds_per_clip("teacher", overrides, teacher_args.freeze_encoder, bf16=args.bf16)
    else:
        student_args, args = _parse(training, DistillationArguments)
        step_seconds = seconds_per_clip(student_args.student, student_args.config_overrides, bf16=args.bf16)
    passes = test_clips * FORWARD_FRACTION
    if step.script == "quantize.py":
        passes += passes + QUANTIZATION_PASSES  # evaluates float and INT8
    elif step is training:
        passes += train_clips * args.num_train_epochs
    elif "train" in step.arguments:
        passes = train_clips * FORWARD_FRACTION
    return passes * step_seconds


def _parse(training: Step, network: type[NetworkArguments]) -> tuple[NetworkArguments, SceneTrainingArguments]:
    types = (network, DataArguments, SceneTrainingArguments)
    _, (network_args, _, args) = parse_arguments(types, ("demo",), list(training.arguments))
    return network_args, args


@cache
def seconds_per_clip(
    kind: Literal["teacher", "tfsepnet", "cpmobile"],
    config_overrides: str | None,
    frozen: bool = False,
    clips: int = 8,
    bf16: bool = False,
) -> float:
    """Measure the time of a training step on this machine, including the features.

    Args:
        kind (`str`): `"teacher"`, or the network of a student.
        config_overrides (`str`, *optional*): Settings of the network to override, as `"name=value,name=value"`.
        frozen (`bool`, *optional*, defaults to `False`): Whether the encoder of a teacher is frozen.
        clips (`int`, *optional*, defaults to 8): Clips of one second per step.
        bf16 (`bool`, *optional*, defaults to `False`): Whether the network computes in bfloat16.

    Returns:
        `float`: Seconds per clip.
    """
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    labels = [str(index) for index in range(10)]
    model, feature_extractor = (
        new_teacher(labels, None, config_overrides)
        if kind == "teacher"
        else new_student(labels, config_overrides, kind)
    )
    if isinstance(model, BeatsForAudioClassification) and frozen:
        model.freeze_encoder()
    network: torch.nn.Module = model.train()
    network.to(device)
    waveform = torch.randn(clips, input_rate(feature_extractor), device=device) / 10
    targets = torch.zeros(clips, dtype=torch.long, device=device)
    seconds = 0.0
    for _ in range(2):  # the first step includes one-time work
        start = time.perf_counter()
        inputs = model_inputs(feature_extractor, waveform)
        with torch.autocast(device.type, torch.bfloat16, enabled=bf16):
            loss = model(**inputs, labels=targets).loss
        loss.backward()
        loss.item()
        seconds = time.perf_counter() - start
    return seconds / clips

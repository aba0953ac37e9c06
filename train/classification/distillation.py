"""Distillation of teachers into a student, from the teachers' logits to the student's results."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import datasets
from transformers import set_seed

from dataset_script.errors import input_errors
from train.classification.arguments import DataArguments, SceneTrainingArguments, StudentArguments, TeacherArguments
from train.classification.training import find_impulse_responses, finetune_teacher, load_splits, run_training
from train.common.models import load_classifier, load_config, new_student
from train.common.recipes import is_recipe, recipe_arguments
from train.common.runs import describe_run, run_or_load
from train.evaluation.inference import predict_split


SHARED_WITH_STUDENT = (
    "impulse_responses",
    "use_cpu",
    "bf16",
    "fp16",
    "torch_compile",
    "log_level",
    "disable_tqdm",
    "dataloader_num_workers",
    "report_to",
)
"""Arguments of the student's run that hold for the fine-tuning of its teachers too."""


@dataclass
class Teacher:
    """One member of the ensemble.

    Attributes:
        name: Of its column of logits; letters, digits and underscores.
        source: What the user named.
        kind: "logits", "model" or "recipe".
        seed: Of its fine-tuning, if it is a recipe.
    """

    name: str
    source: str
    kind: str
    seed: int


def resolve_teachers(sources: Sequence[str], seed: int) -> list[Teacher]:
    """Tell logits datasets, models and recipes apart, and name them.

    A recipe that is named several times gives as many teachers, which differ by their seed.
    """
    teachers = []
    for source in sources:
        stem = re.sub(r"\W", "_", Path(source).name.removesuffix(".yaml"))
        repetition = sum(teacher.source == source for teacher in teachers)
        number = sum(re.fullmatch(rf"{stem}(_\d+)?", teacher.name) is not None for teacher in teachers)
        name = f"{stem}_{number + 1}" if number else stem
        if is_recipe(source):
            kind = "recipe"
        elif (Path(source) / "data").is_dir():
            kind = "logits"
        else:
            kind = "model"
        teachers.append(Teacher(name, source, kind, seed + repetition))
    return teachers


def teacher_arguments(
    teacher: Teacher, output_dir: str, data_args: DataArguments, args: SceneTrainingArguments
) -> tuple[TeacherArguments, DataArguments, SceneTrainingArguments]:
    """Return the arguments that fine-tune a teacher of kind "recipe" on the student's data and hardware.

    Args:
        teacher (`Teacher`): The teacher.
        output_dir (`str`): Where it goes.
        data_args (`DataArguments`): The student's clips.
        args (`SceneTrainingArguments`): The student's run.

    Raises:
        FileNotFoundError, InputError: As [`~train.common.recipes.recipe_arguments`].
    """
    shared = {name: getattr(args, name) for name in SHARED_WITH_STUDENT}
    start, data, teacher_args = recipe_arguments(
        (TeacherArguments, DataArguments, SceneTrainingArguments),
        teacher.source,
        **vars(data_args),
        **shared,
        output_dir=output_dir,
        seed=teacher.seed,
    )
    return start, data, teacher_args


def check_teachers(
    teachers: Sequence[Teacher],
    scenes: datasets.DatasetDict,
    data_args: DataArguments,
    args: SceneTrainingArguments,
    trust_remote_code: bool = False,
) -> None:
    """Check that every teacher is available and has the classes of the data, before any long work.

    Args:
        teachers (`Sequence[Teacher]`): The teachers.
        scenes (`datasets.DatasetDict`): The student's clips.
        data_args, args: As for [`teacher_arguments`].
        trust_remote_code (`bool`, *optional*, defaults to `False`): Whether code that comes with a teacher may run.

    Raises:
        FileNotFoundError, InputError: If a teacher is unavailable or has different classes.
    """
    for teacher in teachers:
        if teacher.kind == "model":
            load_classifier(teacher.source, scenes["train"].features["label"].names, trust_remote_code)
        elif teacher.kind == "recipe":
            start, _, teacher_args = teacher_arguments(teacher, args.output_dir, data_args, args)
            with input_errors(f"The recipe of the teacher {teacher.source!r} does not fit: "):
                find_impulse_responses(scenes, teacher_args)
            if model := start.model_name_or_path:
                try:
                    load_config(model)
                except FileNotFoundError:
                    raise FileNotFoundError(
                        f"The teacher {teacher.source!r} is fine-tuned from {model}, which does not exist: make it "
                        "with python -m modeling_beats.convert_beats, or give --teachers that are fine-tuned."
                    ) from None


def predict_teacher(
    teacher: Teacher,
    scenes: datasets.DatasetDict,
    data_args: DataArguments,
    args: SceneTrainingArguments,
    trust_remote_code: bool = False,
) -> str:
    """Return the logits dataset of a teacher, after fine-tuning and prediction if need be.

    Args:
        teacher (`Teacher`): The teacher.
        scenes, data_args, args, trust_remote_code: As for [`check_teachers`].
    """
    if teacher.kind == "logits":
        return teacher.source
    model_path = teacher.source
    if teacher.kind == "recipe":
        model_path = str(Path(args.output_dir) / "teachers" / teacher.name)
        finetune_teacher(Path(teacher.source).stem, *teacher_arguments(teacher, model_path, data_args, args))
    labels = scenes["train"].features["label"].names
    model, feature_extractor = load_classifier(model_path, labels, trust_remote_code)
    output_dir = Path(args.output_dir) / "logits" / teacher.name
    predict_split(
        model,
        feature_extractor,
        scenes["train"],
        output_dir,
        teacher.source,
        args.per_device_eval_batch_size,
        data_args.cache_dir,
    )
    return str(output_dir)


def distill(
    recipe: str, student_args: StudentArguments, data_args: DataArguments, args: SceneTrainingArguments
) -> dict[str, Any]:
    """Train a student from its teachers' logits, or without teachers, and leave a model folder in `args.output_dir`.

    Args:
        recipe (`str`): Name of the recipe, for the results.
        student_args (`StudentArguments`): The student and its teachers, which are fine-tuned and asked for their
            logits if need be.
        data_args (`DataArguments`): The clips.
        args (`SceneTrainingArguments`): The run.

    Returns:
        `dict`: The results, as in `results.json`; those of the folder if the run is already finished.

    Raises:
        FileExistsError, FileNotFoundError, InputError: If the data, a teacher or the output folder is wrong; before
            any long work.
    """
    trusted = student_args.trust_remote_code
    teachers = resolve_teachers(student_args.teachers, args.seed)
    ready = {teacher.name: teacher.source for teacher in teachers if teacher.kind == "logits"}
    scenes = load_splits(data_args, args, ready)
    check_teachers(teachers, scenes, data_args, args, trusted)
    label_names = scenes["train"].features["label"].names
    new_student(label_names, student_args.config_overrides)  # only to check the overrides
    run = describe_run(recipe, student_args, data_args, args)

    def work() -> dict[str, Any]:
        logits = {teacher.name: predict_teacher(teacher, scenes, data_args, args, trusted) for teacher in teachers}
        clips = scenes if logits == ready else load_splits(data_args, args, logits)
        set_seed(args.seed)
        model, feature_extractor = new_student(label_names, student_args.config_overrides)
        description = {"recipe": recipe, "teachers": student_args.teachers, "arguments": run}
        return run_training(model, feature_extractor, clips, data_args, args, description)

    return run_or_load(args.output_dir, run, work)

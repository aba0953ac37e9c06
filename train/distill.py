"""Distil teachers into TF-SepNet, or train it without.

    accelerate launch train/distill.py
    python train/distill.py --recipe s2 --dataset split25 --data_dir TAU --teachers outputs/ssl_star outputs/ssl …

Without arguments it runs the recipe `demo`: a small BEATs is trained on the synthetic demo corpus, predicts its
logits, and is distilled into a student, which is evaluated. The recipes `vanilla`, `s1`, `s2` and `s3` are the systems
of the report's Table 3. Every argument of a recipe can be overridden. The same command goes on after an interruption.
"""

import logging
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from transformers import set_seed

from train.arguments import DataArguments, SceneTrainingArguments
from train.experiment import describe_run, find_impulse_responses, load_splits, run_training
from train.finetune_teacher import TeacherArguments, finetune_teacher
from train.hub import take_over_push
from train.models import load_classifier, load_config, new_student
from train.predict_logits import predict_split
from train.recipes import as_command, is_recipe, parse_arguments
from train.run_eval import results_table
from train.runs import claim_output_folder, configure_logging, finished_results, run_script


logger = logging.getLogger(__name__)

DEFAULT_RECIPE = "demo"

SUMMARY = """
%s
The model, results.json, results.md and pictures are in %s. To use the model:

    from transformers import pipeline; pipeline("audio-classification", "%s", trust_remote_code=True)("clip.wav")
"""


@dataclass
class StudentArguments:
    """The student, and whom it learns from."""

    teachers: list[str] = field(
        default_factory=list,
        metadata={
            "help": "Teachers, whose logits are averaged: logits datasets; model folders or Hub ids, whose logits are "
            "predicted first; or recipes of teachers, which are fine-tuned first."
        },
    )
    config_overrides: str | None = field(
        default=None, metadata={"help": "Settings of the network to change, as name=value,name=value."}
    )
    trust_remote_code: bool = field(default=False, metadata={"help": "Allow code that comes with teachers to run."})


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


def resolve_teachers(sources: list[str], seed: int) -> list[Teacher]:
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


def check_teachers(
    teachers: list[Teacher],
    scenes: datasets.DatasetDict,
    student_args: StudentArguments,
    data_args: DataArguments,
    args: SceneTrainingArguments,
) -> None:
    """Raise `FileNotFoundError` or `ValueError` for a teacher that cannot be had or has other classes."""
    labels = scenes["train"].features["label"].names
    for teacher in teachers:
        if teacher.kind == "model":
            load_classifier(teacher.source, labels, student_args.trust_remote_code)
        elif teacher.kind == "recipe":
            command = teacher_command(teacher, args.output_dir, data_args, args)
            types = (TeacherArguments, DataArguments, SceneTrainingArguments)
            _, (start, _, teacher_args) = parse_arguments(types, teacher.source, command)
            try:
                find_impulse_responses(scenes, teacher_args)
            except ValueError as error:
                raise ValueError(f"The recipe of the teacher {teacher.source!r} does not fit: {error}") from None
            if model := start.model_name_or_path:
                try:
                    load_config(model)
                except FileNotFoundError:
                    raise FileNotFoundError(
                        f"The teacher {teacher.source!r} is fine-tuned from {model}, which is not there: make it with "
                        "python -m modeling_beats.convert_beats, or give --teachers that are fine-tuned."
                    ) from None


def teacher_logits(
    teacher: Teacher,
    scenes: datasets.DatasetDict,
    student_args: StudentArguments,
    data_args: DataArguments,
    args: SceneTrainingArguments,
) -> str:
    """Return the logits dataset of a teacher, after fine-tuning and prediction if need be."""
    if teacher.kind == "logits":
        return teacher.source
    model_path = teacher.source
    if teacher.kind == "recipe":
        model_path = str(Path(args.output_dir) / "teachers" / teacher.name)
        finetune_teacher(teacher_command(teacher, model_path, data_args, args))
    model, feature_extractor = load_classifier(
        model_path, scenes["train"].features["label"].names, student_args.trust_remote_code
    )
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


def teacher_command(
    teacher: Teacher, output_dir: str, data_args: DataArguments, args: SceneTrainingArguments
) -> list[str]:
    """Return the arguments that fine-tune a teacher on the student's data and hardware."""
    settings = {
        "recipe": teacher.source,
        "output_dir": output_dir,
        "seed": teacher.seed,
        "dataset": data_args.dataset,
        "data_dir": data_args.data_dir,
        "cache_dir": data_args.cache_dir,
        "validation_fraction": data_args.validation_fraction,
        "select_on_test": data_args.select_on_test,
        "impulse_responses": args.impulse_responses,
        "use_cpu": args.use_cpu,
        "bf16": args.bf16,
        "fp16": args.fp16,
        "torch_compile": args.torch_compile,
        "log_level": args.log_level,
        "disable_tqdm": args.disable_tqdm,
        "dataloader_num_workers": args.dataloader_num_workers,
        "report_to": args.report_to or ["none"],
    }
    return as_command(settings)


def distill(arguments: list[str] | None = None) -> dict[str, Any]:
    """Train a student and return its results.

    Args:
        arguments (`list[str]`, *optional*): Defaults to the command line.

    Raises:
        FileExistsError, FileNotFoundError, ValueError: If something about the arguments, the data, the teachers or the
            output folder is wrong; before any long work.
    """
    recipe, (student_args, data_args, args) = parse_arguments(
        (StudentArguments, DataArguments, SceneTrainingArguments), DEFAULT_RECIPE, arguments
    )
    configure_logging(args.log_level)
    push = take_over_push(args)
    teachers = resolve_teachers(student_args.teachers, args.seed)
    ready = {teacher.name: teacher.source for teacher in teachers if teacher.kind == "logits"}
    scenes = load_splits(data_args, args, ready)
    check_teachers(teachers, scenes, student_args, data_args, args)
    label_names = scenes["train"].features["label"].names
    new_student(label_names, student_args.config_overrides)
    run = describe_run(recipe, student_args, data_args, args)
    claim_output_folder(args.output_dir, run)

    results = finished_results(args.output_dir)
    if results is None:
        logits = {teacher.name: teacher_logits(teacher, scenes, student_args, data_args, args) for teacher in teachers}
        if logits != ready:
            scenes = load_splits(data_args, args, logits)
        set_seed(args.seed)
        model, feature_extractor = new_student(label_names, student_args.config_overrides)
        description = {"recipe": recipe, "teachers": student_args.teachers, "arguments": run}
        results = run_training(model, feature_extractor, scenes, data_args, args, description)
    logger.info(SUMMARY, results_table(results), args.output_dir, args.output_dir)
    push()
    return results


if __name__ == "__main__":
    run_script(distill)

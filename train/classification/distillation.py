"""Distillation: from the teachers to their logits, and to a student with its results."""

import copy
import hashlib
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import datasets
import numpy as np
from transformers import set_seed
from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from dataset_script import read_logits
from dataset_script.errors import InputError, input_errors
from model_cards.results import find_results
from train.classification.arguments import DataArguments, DistillationArguments, TeacherArguments
from train.classification.data import LOGITS_PREFIX, split_by_location
from train.classification.semi_supervised import find_sound, predict_unlabelled, unlabelled_batches
from train.classification.teacher_quality import compare_with_student, describe_teacher
from train.classification.training import (
    check_impulse_responses,
    check_training,
    choose_validation_fraction,
    finetune_teacher,
    impulse_response_folder,
    load_splits,
    run_training,
)
from train.classification.training_arguments import SceneTrainingArguments
from train.classification.unlabelled import UnlabelledClips, cache_unlabelled
from train.common.arguments import check_seed
from train.common.availability import check_available, check_start, is_missing_demo_model
from train.common.models import load_classifier, load_config, new_student, student_config
from train.common.recipes import is_recipe, recipe_arguments
from train.common.runs import describe_run, run_or_load
from train.common.sources import is_scenes
from train.evaluation.inference import model_revision, predict_split


logger = logging.getLogger(__name__)

LABELS_ALONE = "labels_alone"
"""Subfolder of a student's output for the student that it is compared with."""

SHARED_ARGUMENTS = (
    "impulse_responses",
    "use_cpu",
    "torch_compile",
    "log_level",
    "disable_tqdm",
    "dataloader_num_workers",
    "report_to",
)
"""Arguments of the student's run that are also used to fine-tune its teachers."""


@dataclass
class Teacher:
    """One teacher of the ensemble.

    Args:
        name (`str`): Suffix of its column of logits: letters, digits and underscores.
        source (`str`): A logits dataset, a model or a recipe, as given by the user.
        kind (`str`): `"logits"`, `"model"` or `"recipe"`.
        seed (`int`): Seed of its fine-tuning, if `source` is a recipe.
    """

    name: str
    source: str
    kind: Literal["logits", "model", "recipe"]
    seed: int


def resolve_teachers(sources: Sequence[str], seed: int) -> list[Teacher]:
    """Return a teacher for each source; those of the same recipe differ by their seed.

    Args:
        sources (`Sequence[str]`): Logits datasets, models and recipes.
        seed (`int`): Seed of the student's run.
    """
    teachers: list[Teacher] = []
    for source in sources:
        stem = re.sub(r"\W", "_", Path(source).resolve().name.removesuffix(".yaml"))
        stem = stem if stem[:1].isalpha() else f"t_{stem}"  # names of columns start with a letter
        repetition = sum(teacher.source == source for teacher in teachers)
        number = sum(re.fullmatch(rf"{stem}(_\d+)?", teacher.name) is not None for teacher in teachers)
        name = f"{stem}_{number + 1}" if number else stem
        teachers.append(Teacher(name, source, _kind(source), seed + repetition))
        if teachers[-1].kind == "recipe":
            check_seed(teachers[-1].seed)
    return teachers


def _kind(source: str) -> Literal["logits", "model", "recipe"]:
    if is_recipe(source):
        return "recipe"
    return "logits" if (Path(source) / "data").is_dir() else "model"


def teacher_arguments(
    teacher: Teacher, output_dir: str, data_args: DataArguments, args: SceneTrainingArguments
) -> tuple[TeacherArguments, DataArguments, SceneTrainingArguments]:
    """Return the arguments to fine-tune a teacher of kind "recipe" on the student's data and hardware.

    Args:
        teacher (`Teacher`): The teacher.
        output_dir (`str`): Its output folder.
        data_args (`DataArguments`): The student's clips.
        args (`SceneTrainingArguments`): The student's run.

    Returns:
        `tuple`: The arguments of [`~train.classification.training.finetune_teacher`], without the recipe's name.

    Raises:
        FileNotFoundError, InputError: As [`~train.common.recipes.recipe_arguments`].
    """
    shared = {name: getattr(args, name) for name in SHARED_ARGUMENTS}
    teacher_args, teacher_data_args, training_args = recipe_arguments(
        (TeacherArguments, DataArguments, SceneTrainingArguments),
        teacher.source,
        **vars(data_args),
        **shared,
        output_dir=output_dir,
        seed=teacher.seed,
    )
    return teacher_args, teacher_data_args, training_args


def check_teachers_exist(teachers: Sequence[Teacher], data_args: DataArguments, args: SceneTrainingArguments) -> None:
    """Raise an error if a teacher, or the model it is fine-tuned from, does not exist; before any other work.

    Args:
        teachers (`Sequence[Teacher]`): The teachers.
        data_args (`DataArguments`): The student's clips.
        args (`SceneTrainingArguments`): The student's run.

    Raises:
        FileNotFoundError: As [`~train.common.availability.check_available`].
        InputError: As [`teacher_arguments`].
    """
    for teacher in teachers:
        if teacher.kind == "model":
            check_available(teacher.source)
        elif teacher.kind == "recipe":
            model_args = teacher_arguments(teacher, args.output_dir, data_args, args)[0]
            start = model_args.model_name_or_path
            if start is None and model_args.config_overrides is None:
                raise InputError(
                    f"The recipe {teacher.source!r} is not one of a teacher, as it names no pretrained model: choose "
                    "another recipe for --teachers."
                )
            if start is not None:
                check_start(teacher.source, start, check_available)


def check_teachers(
    teachers: Sequence[Teacher],
    scenes: datasets.DatasetDict,
    data_args: DataArguments,
    args: SceneTrainingArguments,
    trust_remote_code: bool = False,
) -> dict[str, str]:
    """Check that every teacher is available and has the classes of the data, before anything is trained.

    Args:
        teachers (`Sequence[Teacher]`): The teachers.
        scenes (`datasets.DatasetDict`): The student's clips.
        data_args (`DataArguments`): The student's clips.
        args (`SceneTrainingArguments`): The student's run.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Whether to run the teachers' own code.

    Returns:
        `dict[str, str]`: For each teacher that exists already, a checksum of its logits or the revision of its model:
        a run with other logits or another model is another run.

    Raises:
        FileNotFoundError, InputError: If a teacher is unavailable or has different classes.
    """
    revisions = {}
    for teacher in teachers:
        if teacher.kind == "logits":
            revisions[teacher.name] = _fingerprint(scenes["train"], LOGITS_PREFIX + teacher.name)
        elif teacher.kind == "model":
            labels = scenes["train"].features["label"].names
            revisions[teacher.name] = model_revision(load_classifier(teacher.source, labels, trust_remote_code)[0])
        elif teacher.kind == "recipe":
            teacher_args, _, training_args = teacher_arguments(teacher, args.output_dir, data_args, args)
            with input_errors(f"The recipe of the teacher {teacher.source!r} does not fit: "):
                check_impulse_responses(scenes, training_args)
            start = teacher_args.model_name_or_path
            if start is not None and not is_missing_demo_model(start):
                load_config(start)
    return revisions


def _fingerprint(clips: datasets.Dataset, column: str) -> str:
    """Return a checksum of a column of logits, which depends on the values and on the clips that they belong to."""
    values = np.asarray(clips.with_format(None)[column][:], dtype=np.float32)
    names = "\n".join(clips["filename"][:]).encode()
    return hashlib.sha256(names + values.tobytes()).hexdigest()[:40]


def predict_teacher(
    teacher: Teacher,
    scenes: datasets.DatasetDict,
    data_args: DataArguments,
    args: SceneTrainingArguments,
    trust_remote_code: bool = False,
    unlabelled: UnlabelledClips | None = None,
) -> tuple[str, str]:
    """Fine-tune a teacher and predict its logits, as far as its kind requires.

    Args:
        teacher (`Teacher`): The teacher.
        scenes (`datasets.DatasetDict`): The student's clips.
        data_args (`DataArguments`): The student's clips.
        args (`SceneTrainingArguments`): The student's run.
        trust_remote_code (`bool`, *optional*, defaults to `False`): Whether to run the teacher's own code.
        unlabelled (`UnlabelledClips`, *optional*): Clips without labels, at the student's rate.

    Returns:
        `tuple[str, str]`: The logits datasets of the labelled clips and of those without labels.
    """
    if teacher.kind == "logits":
        return teacher.source, teacher.source
    model_path = teacher.source
    if teacher.kind == "recipe":
        model_path = teacher_folder(teacher, args.output_dir)
        finetune_teacher(Path(teacher.source).stem, *teacher_arguments(teacher, model_path, data_args, args))
    labels = scenes["train"].features["label"].names
    model, feature_extractor = load_classifier(model_path, labels, trust_remote_code)
    folders = [Path(args.output_dir) / kind / teacher.name for kind in ("logits", "unlabelled_logits")]
    batch_size = args.per_device_eval_batch_size
    predict_split(
        model, feature_extractor, scenes["train"], folders[0], teacher.source, batch_size, data_args.cache_dir
    )
    if unlabelled is not None:
        predict_unlabelled(
            model, feature_extractor, unlabelled, scenes["train"], folders[1], teacher.source, batch_size
        )
    return str(folders[0]), str(folders[1])


def describe_teachers(
    teachers: Sequence[Teacher],
    folders: Mapping[str, str],
    clips: datasets.DatasetDict,
    args: SceneTrainingArguments,
    dataset: str,
) -> list[dict[str, Any]]:
    """Measure all teachers as [`~train.classification.teacher_quality.describe_teacher`] does.

    The accuracy on the test split is that of the logits, if they cover it, or else that of the results that a teacher
    has in its folder.

    Args:
        teachers (`Sequence[Teacher]`): The teachers.
        folders (`Mapping[str, str]`): The logits dataset of each.
        clips (`datasets.DatasetDict`): The student's clips, with a column of logits for each teacher.
        args (`SceneTrainingArguments`): The student's run.
        dataset (`str`): Name of the corpus.

    Returns:
        `list[dict]`: The measures, with `source`, `teacher` and `revision` of each.
    """
    described = []
    for teacher in teachers:
        logits = read_logits(folders[teacher.name], clips["train"].features["label"].names)
        measures = describe_teacher(teacher.name, clips["train"], args.temperature, clips["test"])
        folder = teacher_folder(teacher, args.output_dir) if teacher.kind == "recipe" else teacher.source
        if measures["macro_accuracy"] is None and teacher.kind != "logits":
            results = find_results(folder) if Path(folder).is_dir() else None
            if results is not None and _have_one_test_split(results.dataset, dataset):
                names = ("macro_accuracy", "confidence_intervals")
                measures |= {name: results.metrics[name] for name in names if name in results.metrics}
        identity = {"source": teacher.source, "teacher": logits.teacher, "revision": logits.revision}
        described.append(measures | identity)
    return described


def _have_one_test_split(dataset: str, other: str) -> bool:
    """Return whether two corpora have the same test split: the same corpus, or subsets of the same scenes."""
    names = {name.rstrip("0123456789") if is_scenes(name) else name for name in (dataset, other)}
    return len(names) == 1


def teacher_folder(teacher: Teacher, output_dir: str) -> str:
    """Return the folder in which a teacher of kind "recipe" is fine-tuned.

    Args:
        teacher (`Teacher`): The teacher.
        output_dir (`str`): Output folder of the student.
    """
    return str(Path(output_dir) / "teachers" / teacher.name)


def train_on_labels_alone(
    recipe: str,
    distillation_args: DistillationArguments,
    data_args: DataArguments,
    args: SceneTrainingArguments,
    scenes: datasets.Dataset,
) -> str:
    """Train the student of a run without its teachers, for the same number of steps.

    Clips without labels take places in a batch, so the epochs of the run have more steps than those without them.

    Args:
        recipe (`str`): Name of the recipe, for the results.
        distillation_args (`DistillationArguments`): Those of the student with teachers.
        data_args (`DataArguments`): The clips.
        args (`SceneTrainingArguments`): The run of the student with teachers.
        scenes (`datasets.Dataset`): The training clips.

    Returns:
        `str`: The model folder.
    """
    logger.info("Training a student on the labels alone, to compare with.")
    per_batch = args.batch_size
    if distillation_args.unlabelled:
        per_batch -= distillation_args.unlabelled_per_batch(args.batch_size)
    clips = len(scenes)
    if data_args.validation_fraction:
        clips = len(split_by_location(scenes, data_args.validation_fraction, args.seed)[0])
    steps = math.ceil(clips / per_batch)
    longer = steps / math.ceil(clips / args.batch_size)
    alone = copy.copy(args)
    if not (data_args.validation_fraction or data_args.select_on_test):
        # Its epochs are short, and need not each be logged and saved.
        alone.logging_strategy, alone.logging_steps = IntervalStrategy.STEPS, steps
        alone.save_strategy, alone.save_steps = SaveStrategy.STEPS, steps
    alone.output_dir = str(Path(args.output_dir) / LABELS_ALONE)
    alone.num_train_epochs *= longer
    alone.first_cycle, alone.warmup_epochs = round(args.first_cycle * longer), round(args.warmup_epochs * longer)
    without = replace(distillation_args, teachers=[], unlabelled=[], labels_alone=False)
    distill(recipe, without, data_args, alone)
    return alone.output_dir


def distill(
    recipe: str,
    distillation_args: DistillationArguments,
    data_args: DataArguments,
    args: SceneTrainingArguments,
    prepare: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Train a student, from teachers or without, and write a model folder to `args.output_dir`; resume a run there.

    Args:
        recipe (`str`): Name of the recipe, for the results.
        distillation_args (`DistillationArguments`): The teachers, and the network of the student.
        data_args (`DataArguments`): The clips.
        args (`SceneTrainingArguments`): The run; `impulse_responses` is set to the corpus's folder if it is needed.
        prepare (`Callable[[], None]`, *optional*): Long work that the teachers need, done after all checks.

    Returns:
        `dict`: The results, as in `results.json`.

    Raises:
        FileExistsError, FileNotFoundError, InputError: If the data, a teacher or the output folder is invalid; before
            training.
    """
    trusted = distillation_args.trust_remote_code
    teachers = resolve_teachers(distillation_args.teachers, args.seed)
    available = {teacher.name: teacher.source for teacher in teachers if teacher.kind == "logits"}
    check_teachers_exist(teachers, data_args, args)
    scenes = load_splits(data_args, available)
    data_args.validation_fraction = choose_validation_fraction(scenes, data_args, args)
    check_training(scenes, data_args, args)
    args.impulse_responses = impulse_response_folder(scenes, args)
    revisions = check_teachers(teachers, scenes, data_args, args, trusted)
    label_names = scenes["train"].features["label"].names
    network = distillation_args.config_overrides, distillation_args.student
    student_config(label_names, *network)  # raises an error if the overrides are invalid
    sound = find_sound(scenes, distillation_args, data_args)
    run = describe_run(recipe, distillation_args, data_args, args)
    if revisions:
        run["teacher_revisions"] = revisions
    if sound is not None:
        run["unlabelled_sound"] = sound.key
    else:
        run = {name: value for name, value in run.items() if not name.startswith("unlabelled")}

    def work() -> dict[str, Any]:
        description: dict[str, Any] = {"recipe": recipe, "teachers": distillation_args.teachers, "arguments": run}
        prepare()
        set_seed(args.seed)
        model, feature_extractor = new_student(label_names, *network)
        heard = cache_unlabelled(sound, feature_extractor.sampling_rate, data_args.cache_dir) if sound else None
        folders = {
            teacher.name: predict_teacher(teacher, scenes, data_args, args, trusted, heard) for teacher in teachers
        }
        logits = {name: labelled for name, (labelled, _) in folders.items()}
        clips = scenes if logits == available else load_splits(data_args, logits)
        description["teacher_quality"] = describe_teachers(teachers, logits, clips, args, data_args.dataset)
        batches = None
        if heard is not None:
            unlabelled_logits = {name: folder for name, (_, folder) in folders.items()}
            batches = unlabelled_batches(heard, unlabelled_logits, label_names, distillation_args, args.batch_size)
            description["unlabelled"] = {
                "sources": distillation_args.unlabelled,
                "clips": len(batches.waveforms),
                "unsure": len(heard.filenames) - len(batches.waveforms),
                "unreadable_recordings": len(heard.faults),
                "per_batch": batches.per_batch,
            }
        reference = None
        if distillation_args.labels_alone:
            reference = train_on_labels_alone(recipe, distillation_args, data_args, args, scenes["train"])
            set_seed(args.seed)
        results = run_training(
            model, feature_extractor, clips, data_args, args, description, unlabelled=batches, reference=reference
        )
        compare_with_student(description["teacher_quality"], results["metrics"]["macro_accuracy"])
        return results

    return run_or_load(args.output_dir, run, work)

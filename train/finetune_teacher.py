"""Fine-tune BEATs on scenes, to become a teacher.

    python train/finetune_teacher.py --recipe ssl_star --dataset split25 --data_dir TAU

The recipes are those of the report's Table 1: `ssl_star` (frozen encoder), `ssl` and `ssl_sl` (unfrozen, from the
self-supervised and from the AudioSet-supervised checkpoint), which start from model folders made by
`python -m modeling_beats.convert_beats`; and `demo_teacher`, which starts from random weights. Every argument of a
recipe can be overridden. The same command goes on with an interrupted run.
"""

import logging
from dataclasses import dataclass, field
from typing import Any

from transformers import set_seed

from train.arguments import DataArguments, SceneTrainingArguments, StartArguments
from train.experiment import describe_run, load_splits, run_training
from train.hub import take_over_push
from train.models import new_teacher
from train.recipes import parse_arguments
from train.runs import claim_output_folder, configure_logging, finished_results, run_script


logger = logging.getLogger(__name__)

DEFAULT_RECIPE = "demo_teacher"


@dataclass
class TeacherArguments(StartArguments):
    """What the teacher starts from, and what of it is trained."""

    freeze_encoder: bool = field(default=False, metadata={"help": "Train the classifier only."})


def finetune_teacher(arguments: list[str] | None = None) -> dict[str, Any]:
    """Fine-tune a teacher and return its results.

    Args:
        arguments (`list[str]`, *optional*): Defaults to the command line.

    Raises:
        FileExistsError, FileNotFoundError, ValueError: If something about the arguments, the data, the checkpoint or
            the output folder is wrong; before any long work.
    """
    recipe, (teacher_args, data_args, args) = parse_arguments(
        (TeacherArguments, DataArguments, SceneTrainingArguments), DEFAULT_RECIPE, arguments
    )
    configure_logging(args.log_level)
    push = take_over_push(args)
    scenes = load_splits(data_args, args)
    set_seed(args.seed)
    model, feature_extractor = new_teacher(
        scenes["train"].features["label"].names, teacher_args.model_name_or_path, teacher_args.config_overrides
    )
    if teacher_args.freeze_encoder:
        model.freeze_encoder()
    run = describe_run(recipe, teacher_args, data_args, args)
    claim_output_folder(args.output_dir, run)
    if results := finished_results(args.output_dir):
        logger.info("The teacher in %s is finished.", args.output_dir)
    else:
        description = {"recipe": recipe, "arguments": run}
        results = run_training(model, feature_extractor, scenes, data_args, args, description)
    push()
    return results


if __name__ == "__main__":
    run_script(finetune_teacher)

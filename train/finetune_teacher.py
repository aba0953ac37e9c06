"""Fine-tune BEATs on scenes, to become a teacher.

    python train/finetune_teacher.py --recipe ssl_star --dataset split25 --data_dir TAU

The recipes are those of the report's Table 1: `ssl_star` (frozen encoder), `ssl` and `ssl_sl` (unfrozen, from the
self-supervised and from the AudioSet-supervised checkpoint), which start from model folders made by
`python -m modeling_beats.convert_beats`; and `demo_teacher`, which starts from random weights. Every value of a recipe
can be overridden. Run the same command to resume after an interruption.
"""

import logging
from collections.abc import Sequence
from typing import Any

from model_cards.tables import results_table
from train.classification.arguments import DataArguments, SceneTrainingArguments, TeacherArguments
from train.classification.training import finetune_teacher
from train.common.hub import take_over_push
from train.common.process import configure_logging, run_command
from train.common.recipes import parse_arguments


logger = logging.getLogger(__name__)

DEFAULT_RECIPE = "demo_teacher"


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Fine-tune a teacher and return its results.

    Args:
        arguments (`Sequence[str]`, *optional*): Defaults to the command line.

    Raises:
        FileExistsError, FileNotFoundError, InputError: As [`~train.classification.training.finetune_teacher`]; if an
            argument is wrong.
    """
    recipe, (teacher_args, data_args, args) = parse_arguments(
        (TeacherArguments, DataArguments, SceneTrainingArguments), DEFAULT_RECIPE, arguments
    )
    configure_logging(args.log_level)
    push = take_over_push(args)
    results = finetune_teacher(recipe, teacher_args, data_args, args)
    logger.info(
        "%s\nThe teacher, results.json, results.md and plots are in %s.", results_table(results), args.output_dir
    )
    push()
    return results


if __name__ == "__main__":
    run_command(main)

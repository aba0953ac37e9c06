"""Fine-tune a pretrained audio model on scenes, as a teacher.

    python train/finetune_teacher.py --recipe ssl_star --dataset split25 --data_dir TAU
    python train/finetune_teacher.py --recipe ast --dataset split25 --data_dir TAU

The recipes `ssl_star` (frozen encoder), `ssl` and `ssl_sl` (unfrozen, from the self-supervised checkpoint and from the
one supervised on AudioSet) are those of Table 1 of the report, for BEATs; their model folders are created by
`python -m modeling_beats.convert_beats`. `ast_star` (frozen) and `ast` are for the Audio Spectrogram Transformer,
`wav2vec2` for models of waveforms. `--model_name_or_path` takes BEATs and any model folder or Hub id that
`AutoModelForAudioClassification` of transformers can load. The default recipe `demo_teacher` starts from random
weights. Any value of a recipe can be overridden. Run the same command again to resume after an interruption.
"""

import logging
from collections.abc import Sequence
from typing import Any

import train  # noqa: F401 - first, for it checks the packages
from train.classification.arguments import DataArguments, SceneTrainingArguments, TeacherArguments
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
            argument is invalid.
    """
    recipe, (teacher_args, data_args, args) = parse_arguments(
        (TeacherArguments, DataArguments, SceneTrainingArguments), DEFAULT_RECIPE, arguments
    )
    # These take seconds to import, and a wrong argument is reported before.
    from model_cards.tables import results_table
    from train.classification.training import finetune_teacher
    from train.common.hub import take_over_push

    configure_logging(args.log_level, args.disable_tqdm)
    push = take_over_push(args)
    results = finetune_teacher(recipe, teacher_args, data_args, args)
    logger.info("%s\nThe teacher, its results and plots are in %s.", results_table(results), args.output_dir)
    push()
    return results


if __name__ == "__main__":
    run_command(main)

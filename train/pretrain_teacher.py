"""Pre-train BEATs on unlabelled audio, one stage at a time.

    python train/pretrain_teacher.py --recipe pretrain_iter1 --dataset AUDIO_FOLDER [--dry_run]

The stages of the paper, each a recipe that starts from the output of the one before: `pretrain_iter1` (labels of a
random projection), `pretrain_tokenizer` (a tokenizer learns from that model) and `pretrain_iter2` (labels of that
tokenizer). For a third iteration run the last two again, with other folders:

    python train/pretrain_teacher.py --recipe pretrain_tokenizer --dataset AUDIO_FOLDER \
        --teacher_name_or_path outputs/pretrain_iter2 --output_dir outputs/pretrain_tokenizer3
    python train/pretrain_teacher.py --recipe pretrain_iter2 --dataset AUDIO_FOLDER \
        --tokenizer_name_or_path outputs/pretrain_tokenizer3 --output_dir outputs/pretrain_iter3

A teacher that was fine-tuned (`train/finetune_audioset.py`) makes a tokenizer of "iteration 3+". `demo_pretrain_*` are
the same in small. `pretrain_scenes` goes on with the public model, on scenes without their labels:

    python train/pretrain_teacher.py --recipe pretrain_scenes --data_dir TAU

The output is a model folder to fine-tune (`train/finetune_teacher.py --model_name_or_path`). The same command goes on
with an interrupted run. `--dry_run` measures on this machine what the whole run costs, and trains nothing; it needs
neither audio nor the models of the stages before, and downloads no audio.
"""

import logging
from collections.abc import Sequence
from typing import Any

from dataset_script.errors import InputError
from train.common.hub import take_over_push
from train.common.process import configure_logging, run_command
from train.common.recipes import parse_arguments
from train.pretraining.arguments import AudioArguments, PretrainingArguments, StageArguments
from train.pretraining.stages import measure_stage, run_stage


logger = logging.getLogger(__name__)

DEFAULT_RECIPE = "demo_pretrain_iter1"


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run a stage and return its results; with `--dry_run`, measure and return its cost.

    Args:
        arguments (`Sequence[str]`, *optional*): Defaults to the command line.

    Raises:
        FileExistsError, FileNotFoundError, InputError: As [`~train.pretraining.stages.run_stage`]; if an argument is
            wrong.
    """
    recipe, (stage, audio, args) = parse_arguments(
        (StageArguments, AudioArguments, PretrainingArguments), DEFAULT_RECIPE, arguments
    )
    configure_logging(args.log_level)
    push = take_over_push(args)
    if args.dry_run:
        return measure_stage(stage, audio, args)
    if audio.dataset is None:
        raise InputError("There is no audio: give --dataset, a folder or a dataset.")
    results = run_stage(recipe, stage, audio, args)
    logger.info("The model and results.json are in %s.", args.output_dir)
    push()
    return results


if __name__ == "__main__":
    run_command(main)

"""Pre-train BEATs on unlabelled audio, one stage at a time.

    python train/pretrain_teacher.py --recipe pretrain_iter1 --dataset AUDIO_FOLDER [--dry_run]

Each stage of the paper is a recipe that starts from the output of the previous one: `pretrain_iter1` (codes of a
random projection), `pretrain_tokenizer` (a tokenizer learns from that model) and `pretrain_iter2` (codes of that
tokenizer). For a third iteration run the last two again with other folders:

    python train/pretrain_teacher.py --recipe pretrain_tokenizer --dataset AUDIO_FOLDER \
        --teacher_name_or_path outputs/pretrain_iter2 --output_dir outputs/pretrain_tokenizer3
    python train/pretrain_teacher.py --recipe pretrain_iter2 --dataset AUDIO_FOLDER \
        --tokenizer_name_or_path outputs/pretrain_tokenizer3 --output_dir outputs/pretrain_iter3

With a fine-tuned teacher (`train/finetune_audioset.py`) this is "iteration 3+". The `demo_pretrain_*` recipes are
small versions. `pretrain_scenes` continues from the public model, on scenes without their labels:

    python train/pretrain_teacher.py --recipe pretrain_scenes --data_dir TAU

The output is a model folder to fine-tune (`train/finetune_teacher.py --model_name_or_path`). The same command resumes
an interrupted run. `--dry_run` measures the cost of the whole run on this machine without training; it needs neither
audio nor the models of earlier stages, and downloads no audio.
"""

import logging
from collections.abc import Sequence
from typing import Any

import train  # noqa: F401 - first, for it checks the packages
from dataset_script.errors import InputError
from train.common.process import configure_logging, run_command
from train.common.recipes import parse_arguments
from train.pretraining.arguments import AudioArguments, PretrainingArguments, StageArguments


logger = logging.getLogger(__name__)

DEFAULT_RECIPE = "demo_pretrain_iter1"


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run a stage and return its results; with `--dry_run`, measure and return its cost.

    Args:
        arguments (`Sequence[str]`, *optional*): Defaults to the command line.

    Raises:
        FileExistsError, FileNotFoundError, InputError: As [`~train.pretraining.stages.run_stage`]; if an argument is
            invalid.
    """
    recipe, (stage, audio, args) = parse_arguments(
        (StageArguments, AudioArguments, PretrainingArguments), DEFAULT_RECIPE, arguments
    )
    # These take seconds to import, and a wrong argument is reported before.
    from train.common.hub import take_over_push
    from train.pretraining.stages import measure_stage, run_stage

    configure_logging(args.log_level, args.disable_tqdm)
    push = take_over_push(args)
    if args.dry_run:
        return measure_stage(stage, audio, args)
    if not audio.dataset:
        raise InputError("There is no audio: set --dataset to a folder or a dataset.")
    results = run_stage(recipe, stage, audio, args)
    logger.info("The model and results.json are in %s.", args.output_dir)
    push()
    return results


if __name__ == "__main__":
    run_command(main)

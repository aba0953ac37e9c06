"""Pre-train BEATs on unlabelled audio, one stage at a time.

    scenes pretrain --recipe pretrain_iter1 --dataset AUDIO_FOLDER [--dry_run]

Each stage of the paper is a recipe that starts from the output of the previous one: `pretrain_iter1` (codes of a
random projection), `pretrain_tokenizer` (a tokenizer learns from that model) and `pretrain_iter2` (codes of that
tokenizer). For a third iteration run the last two again with other folders:

    scenes pretrain --recipe pretrain_tokenizer --dataset AUDIO_FOLDER \
        --teacher_name_or_path outputs/pretrain_iter2 --output_dir outputs/pretrain_tokenizer3
    scenes pretrain --recipe pretrain_iter2 --dataset AUDIO_FOLDER \
        --tokenizer_name_or_path outputs/pretrain_tokenizer3 --output_dir outputs/pretrain_iter3

With a fine-tuned teacher (`train/finetune_audioset.py`) this is "iteration 3+". The `demo_pretrain_*` recipes are
small versions. `pretrain_scenes` continues from the public model, on scenes without their labels:

    scenes pretrain --recipe pretrain_scenes --data_dir TAU

The output is a model folder to fine-tune (`train/finetune_teacher.py --model_name_or_path`). The same command resumes
an interrupted run. `--dry_run` measures the cost of the whole run on this machine without training; it needs neither
audio nor the models of earlier stages, and downloads no audio.
"""

from collections.abc import Sequence
from typing import Any

import train  # noqa: F401 - first, for it checks the packages
from dataset_script.errors import InputError
from train.common.process import configure_logging, run_command
from train.common.recipes import check_arguments, parse_arguments
from train.pretraining.arguments import AudioArguments, PretrainingOptions, StageArguments


RECIPES = (
    "demo_encoder",
    "demo_pretrain_iter1",
    "demo_pretrain_tokenizer",
    "demo_pretrain_iter2",
    "pretrain_iter1",
    "pretrain_tokenizer",
    "pretrain_iter2",
    "pretrain_scenes",
)

MAIN_OPTIONS = (
    "recipe",
    "dataset",
    "data_dir",
    "model_name_or_path",
    "tokenizer_name_or_path",
    "teacher_name_or_path",
    "output_dir",
    "max_steps",
    "batch_size",
    "dry_run",
)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Run a stage and return its results; with `--dry_run`, measure and return its cost.

    Args:
        arguments (`Sequence[str]`, *optional*): Defaults to the command line.

    Raises:
        FileExistsError, FileNotFoundError, InputError: As [`~train.pretraining.stages.run_stage`]; if an argument is
            invalid.
    """
    check_arguments((StageArguments, AudioArguments, PretrainingOptions), RECIPES, arguments, MAIN_OPTIONS, __doc__)
    # These take seconds to import, and a wrong argument is reported before.
    from train.common.hub import take_over_push
    from train.common.summary import corpus_options, scenes_command, summarize
    from train.pretraining.stages import measure_stage, run_stage
    from train.pretraining.training_arguments import PretrainingArguments

    recipe, (stage, audio, args) = parse_arguments(
        (StageArguments, AudioArguments, PretrainingArguments), RECIPES, arguments, __doc__
    )
    configure_logging(args.log_level, args.disable_tqdm)
    push = take_over_push(args)
    if args.dry_run:
        return measure_stage(stage, audio, args)
    if not audio.dataset:
        raise InputError("There is no audio: set --dataset to a folder or a dataset.")
    results = run_stage(recipe, stage, audio, args)
    last = results["figures"]
    if stage.stage == "tokenizer":
        next_stage = {"recipe": "pretrain_iter2", "tokenizer_name_or_path": args.output_dir}
        next_command = scenes_command("pretrain", **next_stage, **corpus_options(audio))
    else:
        next_command = scenes_command("finetune-teacher", recipe="ssl", model_name_or_path=args.output_dir)
    summarize(
        f"The {stage.stage} and results.json are in {args.output_dir}.",
        f"Loss of the last {args.logging_steps} steps: {last['loss']:.4g}." if last else None,
        next_command=next_command,
    )
    push()
    return results


if __name__ == "__main__":
    run_command(main)

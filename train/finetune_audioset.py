"""Fine-tune BEATs on clips with any number of labels each, such as AudioSet, as the start of the SSL+SL teacher.

    scenes finetune-audioset --recipe audioset2m --model_name_or_path outputs/pretrain_iter2 \
        --dataset AUDIO_FOLDER --labels train.csv --test_labels eval.csv --class_names class_labels_indices.csv
    scenes finetune-audioset --recipe audioset20k --dataset agkphysics/AudioSet

The audio is a folder with lists of labels, such as AudioSet's own (files that do not exist are skipped), or a dataset
on the Hub with the columns `audio` and `labels`. Files in a folder are read in place during training: the two million
clips of AudioSet are 650 GB of 16-kHz WAV, or about half of that as FLAC. A dataset on the Hub takes twice its size,
downloaded and as prepared by `datasets`. It is not streamed, because drawing rare classes as often as common ones
requires the labels of all clips beforehand.

The output is a model folder: `train/finetune_teacher.py --recipe ssl_sl --model_name_or_path` replaces its classifier
by one of scenes, and `pretrain_tokenizer` uses it as a teacher ("iteration 3+"). The same command resumes an
interrupted run. `--dry_run` measures the cost of the whole run on this machine without training; it needs no model to
start from.
"""

from collections.abc import Sequence
from typing import Any

import train  # noqa: F401 - first, for it checks the packages
from train.common.arguments import ModelArguments
from train.common.process import configure_logging, run_command
from train.common.recipes import check_arguments, parse_arguments
from train.pretraining.arguments import TaggedDataArguments, TaggingOptions


RECIPES = ("demo_tagger", "audioset2m", "audioset20k")

MAIN_OPTIONS = (
    "recipe",
    "model_name_or_path",
    "dataset",
    "labels",
    "test_labels",
    "class_names",
    "output_dir",
    "max_steps",
    "batch_size",
    "dry_run",
)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Fine-tune and test a model and return the results; with `--dry_run`, measure and return the cost.

    Args:
        arguments (`Sequence[str]`, *optional*): Defaults to the command line.

    Raises:
        FileExistsError, FileNotFoundError, InputError: As [`~train.pretraining.audioset.finetune_tagger`]; if an
            argument is invalid.
    """
    check_arguments((ModelArguments, TaggedDataArguments, TaggingOptions), RECIPES, arguments, MAIN_OPTIONS, __doc__)
    # These take seconds to import, and a wrong argument is reported before.
    from train.common.hub import take_over_push
    from train.common.summary import scenes_command, summarize
    from train.pretraining.audioset import finetune_tagger
    from train.pretraining.demo import create_demo_model
    from train.pretraining.training_arguments import TaggingArguments

    recipe, (start, data, args) = parse_arguments(
        (ModelArguments, TaggedDataArguments, TaggingArguments), RECIPES, arguments, __doc__
    )
    configure_logging(args.log_level, args.disable_tqdm)
    push = take_over_push(args)
    if not args.dry_run:
        create_demo_model(start.model_name_or_path, data, args)
    results = finetune_tagger(recipe, start, data, args)
    if not args.dry_run:
        summarize(
            f"The model and results.json are in {args.output_dir}.",
            f"Mean average precision: {results['metrics']['map']:.4f} (chance: {results['metrics']['chance']:.4f}).",
            next_command=scenes_command("finetune-teacher", recipe="ssl_sl", model_name_or_path=args.output_dir),
        )
        push()
    return results


if __name__ == "__main__":
    run_command(main)

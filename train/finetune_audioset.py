"""Fine-tune BEATs on clips with any number of labels each, such as AudioSet, to start the SSL+SL teacher from.

    python train/finetune_audioset.py --recipe audioset2m --model_name_or_path outputs/pretrain_iter2 \
        --dataset AUDIO_FOLDER --labels train.csv --test_labels eval.csv --class_names class_labels_indices.csv
    python train/finetune_audioset.py --recipe audioset20k --dataset agkphysics/AudioSet

Audio comes from a folder and lists of labels, such as AudioSet's own lists of segments (clips that could not be
downloaded are left out), or from a dataset of the Hub with the columns `audio` and `labels`. Files in a folder are
read where they are, while training goes on: the two million clips of AudioSet are 650 GB of 16-kHz WAV, or about half
of that as FLAC. A dataset of the Hub takes its size twice, as downloaded and as `datasets` prepares it. It is not
streamed, since drawing rare classes as often as common ones takes the labels of all clips beforehand.

The output is a model folder: `train/finetune_teacher.py --recipe ssl_sl --model_name_or_path` puts a classifier of
scenes in the place of the one here, and `pretrain_tokenizer` takes it as a teacher ("iteration 3+"). The same command
goes on with an interrupted run. `--dry_run` measures on this machine what the whole run costs, and trains nothing; it
needs no model to start from.
"""

import logging
from collections.abc import Sequence
from typing import Any

from dataset_script.errors import InputError
from train.common.arguments import ModelArguments
from train.common.hub import take_over_push
from train.common.process import configure_logging, run_command
from train.common.recipes import parse_arguments
from train.pretraining.arguments import TaggedDataArguments, TaggingArguments
from train.pretraining.audioset import finetune_tagger


logger = logging.getLogger(__name__)

DEFAULT_RECIPE = "audioset2m"


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Fine-tune and test a model and return the results; with `--dry_run`, measure and return the cost.

    Args:
        arguments (`Sequence[str]`, *optional*): Defaults to the command line.

    Raises:
        FileExistsError, FileNotFoundError, InputError: As [`~train.pretraining.audioset.finetune_tagger`]; if an
            argument is wrong.
    """
    recipe, (start, data, args) = parse_arguments(
        (ModelArguments, TaggedDataArguments, TaggingArguments), DEFAULT_RECIPE, arguments
    )
    configure_logging(args.log_level)
    push = take_over_push(args)
    if data.dataset is None:
        raise InputError("There is no audio: give --dataset, a folder or a dataset.")
    results = finetune_tagger(recipe, start, data, args)
    if not args.dry_run:
        logger.info("The model and results.json are in %s.", args.output_dir)
        push()
    return results


if __name__ == "__main__":
    run_command(main)

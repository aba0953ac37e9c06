"""Distill teachers into a small network, or train it without teachers.

    accelerate launch train/distill.py
    python train/distill.py --recipe s2 --dataset split25 --data_dir TAU --teachers outputs/ssl_star outputs/ssl …

The default recipe `demo` trains a small BEATs model on the synthetic demo corpus, predicts its logits, distills them
into a student and evaluates it. The recipes `vanilla`, `s1`, `s2` and `s3` are the systems of Table 3 of the report,
whose student is TF-SepNet; `baseline` is the challenge's own, CP-Mobile, and `cpmobile_kd` distills into the latter.
Any value of a recipe can be overridden. Run the same command again to resume after an interruption.
"""

import logging
from collections.abc import Sequence
from typing import Any

import train  # noqa: F401 - first, for it checks the packages
from train.classification.arguments import DataArguments, DistillationArguments, SceneTrainingArguments
from train.common.process import configure_logging, run_command
from train.common.recipes import parse_arguments


logger = logging.getLogger(__name__)

DEFAULT_RECIPE = "demo"

SUMMARY = """
%s
The model, its results and plots are in %s. To use the model:

    from transformers import pipeline; pipeline("audio-classification", "%s", trust_remote_code=True)("clip.wav")
"""


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Train a student and return its results.

    Args:
        arguments (`Sequence[str]`, *optional*): Defaults to the command line.

    Raises:
        FileExistsError, FileNotFoundError, InputError: As [`~train.classification.distillation.distill`]; if an
            argument is invalid.
    """
    recipe, (distillation_args, data_args, args) = parse_arguments(
        (DistillationArguments, DataArguments, SceneTrainingArguments), DEFAULT_RECIPE, arguments
    )
    # These take seconds to import, and a wrong argument is reported before.
    from model_cards.tables import results_table
    from train.classification.distillation import distill
    from train.common.hub import take_over_push

    configure_logging(args.log_level, args.disable_tqdm)
    push = take_over_push(args)
    results = distill(recipe, distillation_args, data_args, args)
    logger.info(SUMMARY, results_table(results), args.output_dir, args.output_dir)
    push()
    return results


if __name__ == "__main__":
    run_command(main)

"""Fine-tune a student for each recording device of the training split.

    python train/adapt_devices.py --model_name_or_path outputs/s1_25 --dataset split25 --data_dir TAU \
        --teachers outputs/logits/ssl_25

The output folder contains the student, which is the general model, and in `devices/<device>` a model folder for each
device, which all other commands take. Loading the output folder loads the general model; `subfolder="devices/a"` loads
that of a device, and the pipeline takes `device_id="a"`. Unknown devices get the general model. The recipe
`adapt_devices` has the defaults. Run the same command again to resume after an interruption.
"""

import logging
from collections.abc import Sequence
from typing import Any

import train  # noqa: F401 - first, for it checks the packages
from train.classification.arguments import AdaptationArguments, SceneTrainingArguments
from train.common.arguments import CorpusArguments
from train.common.process import configure_logging, run_command
from train.common.recipes import parse_arguments


logger = logging.getLogger(__name__)

DEFAULT_RECIPE = "adapt_devices"

SUMMARY = """
%s
The models and their results are in %s. To use them:

    from transformers import pipeline
    pipeline("audio-classification", "%s", trust_remote_code=True)("clip.wav", device_id="%s")
"""


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Adapt a student to recording devices and return the results.

    Args:
        arguments (`Sequence[str]`, *optional*): Defaults to the command line.

    Raises:
        FileExistsError, FileNotFoundError, InputError: As [`~train.classification.adaptation.adapt_devices`]; if an
            argument is invalid.
    """
    recipe, (adaptation_args, corpus_args, args) = parse_arguments(
        (AdaptationArguments, CorpusArguments, SceneTrainingArguments), DEFAULT_RECIPE, arguments
    )
    # These take seconds to import, and a wrong argument is reported before.
    from model_cards.tables import device_models_table
    from train.classification.adaptation import adapt_devices
    from train.common.hub import take_over_push

    configure_logging(args.log_level, args.disable_tqdm)
    push = take_over_push(args)
    results = adapt_devices(recipe, adaptation_args, corpus_args, args)
    device = next(iter(results["device_models"]))
    logger.info(SUMMARY, device_models_table(results), args.output_dir, args.output_dir, device)
    push()
    return results


if __name__ == "__main__":
    run_command(main)

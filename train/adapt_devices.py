"""Fine-tune a student for each recording device of the training split.

    scenes adapt-devices --model_name_or_path outputs/s1_25 --dataset split25 --data_dir TAU \
        --teachers outputs/logits/ssl_25

The output folder contains the student, which is the general model, and in `devices/<device>` a model folder for each
device, which all other commands take. Loading the output folder loads the general model; `subfolder="devices/a"` loads
that of a device, and the pipeline takes `device_id="a"`. Unknown devices get the general model. The recipe
`adapt_devices` has the defaults. Run the same command again to resume after an interruption.
"""

from collections.abc import Sequence
from typing import Any

import train  # noqa: F401 - first, for it checks the packages
from train.classification.arguments import AdaptationArguments, SceneOptions
from train.common.arguments import CorpusArguments
from train.common.process import configure_logging, run_command
from train.common.recipes import check_arguments, parse_arguments


RECIPES = ("adapt_devices",)

MAIN_OPTIONS = (
    "recipe",
    "model_name_or_path",
    "dataset",
    "data_dir",
    "teachers",
    "trainable",
    "min_clips",
    "output_dir",
    "num_train_epochs",
    "batch_size",
    "learning_rate",
)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Adapt a student to recording devices and return the results.

    Args:
        arguments (`Sequence[str]`, *optional*): Defaults to the command line.

    Raises:
        FileExistsError, FileNotFoundError, InputError: As [`~train.classification.adaptation.adapt_devices`]; if an
            argument is invalid.
    """
    check_arguments((AdaptationArguments, CorpusArguments, SceneOptions), RECIPES, arguments, MAIN_OPTIONS, __doc__)
    # These take seconds to import, and a wrong argument is reported before.
    from model_cards.tables import device_models_table, percent
    from train.classification.adaptation import adapt_devices
    from train.classification.training_arguments import SceneTrainingArguments
    from train.common.hub import take_over_push
    from train.common.summary import scenes_command, summarize

    recipe, (adaptation_args, corpus_args, args) = parse_arguments(
        (AdaptationArguments, CorpusArguments, SceneTrainingArguments), RECIPES, arguments, __doc__
    )
    configure_logging(args.log_level, args.disable_tqdm)
    push = take_over_push(args)
    results = adapt_devices(recipe, adaptation_args, corpus_args, args)
    output = args.output_dir.rstrip("/")
    before, after = (percent(results[name]["macro_accuracy"]) for name in ("metrics", "metrics_with_device_models"))
    summarize(
        f"The general model is in {output}, the models of devices in {output}/devices.",
        f"Macro accuracy: {after} % with the models of devices, {before} % with the general model alone.",
        device_models_table(results),
        scenes_command("classify", "CLIP.wav", model=output, device_id=next(iter(results["device_models"]))),
    )
    push()
    return results


if __name__ == "__main__":
    run_command(main)

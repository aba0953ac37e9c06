"""Distill teachers into a small network, or train it without teachers.

    scenes distill
    scenes distill --recipe s1 --dataset split25 --data_dir TAU --teachers outputs/logits/ssl
    accelerate launch --num_processes 2 train/distill.py --recipe vanilla --dataset ./recordings

The default recipe `demo` is the whole way on synthetic sound: a small BEATs model is pre-trained, taught which sounds
are heard, and fine-tuned on a few labelled clips; a student learns from these clips and from what that teacher says
about sound without labels, and is compared with one that learned from the labels alone. The recipes `vanilla`, `s1`,
`s2` and `s3` are the systems of Table 3 of the report, whose student is TF-SepNet; `best` adds clips without labels to
`s1`; `baseline` is the challenge's own, CP-Mobile, and `cpmobile_kd` distills into the latter. Any value of a recipe
can be overridden. Run the same command again to resume after an interruption.
"""

from collections.abc import Sequence
from typing import Any

import train  # noqa: F401 - first, for it checks the packages
from train.classification.arguments import DataArguments, DistillationArguments, SceneOptions
from train.common.process import configure_logging, run_command
from train.common.recipes import check_arguments, is_recipe, load_recipe, parse_arguments


RECIPES = ("demo", "vanilla", "s1", "s2", "s3", "best", "baseline", "cpmobile_kd")

MAIN_OPTIONS = (
    "recipe",
    "dataset",
    "data_dir",
    "teachers",
    "student",
    "unlabelled",
    "labels_alone",
    "impulse_responses",
    "output_dir",
    "num_train_epochs",
    "batch_size",
    "learning_rate",
    "validation_fraction",
    "early_stopping_patience",
    "trust_remote_code",
)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Train a student and return its results.

    Args:
        arguments (`Sequence[str]`, *optional*): Defaults to the command line.

    Raises:
        FileExistsError, FileNotFoundError, InputError: As [`~train.classification.distillation.distill`]; if an
            argument is invalid.
    """
    check_arguments((DistillationArguments, DataArguments, SceneOptions), RECIPES, arguments, MAIN_OPTIONS, __doc__)
    # These take seconds to import, and a wrong argument is reported before.
    from model_cards.tables import comparison_table, results_table
    from train.classification.distillation import distill
    from train.classification.training_arguments import SceneTrainingArguments
    from train.common.hub import take_over_push
    from train.common.summary import corpus_options, main_result, scenes_command, summarize
    from train.pretraining.demo import create_demo_model

    recipe, (distillation_args, data_args, args) = parse_arguments(
        (DistillationArguments, DataArguments, SceneTrainingArguments), RECIPES, arguments, __doc__
    )
    configure_logging(args.log_level, args.disable_tqdm)
    push = take_over_push(args)

    def prepare() -> None:
        for teacher in filter(is_recipe, distillation_args.teachers):
            create_demo_model(load_recipe(teacher, data_args.dataset).get("model_name_or_path"), data_args, args)

    results = distill(recipe, distillation_args, data_args, args, prepare)
    output = args.output_dir.rstrip("/")
    summarize(
        f"The student, its results and plots are in {output}. To use it: "
        f"{scenes_command('classify', 'clip.wav', model=output)}",
        main_result(results),
        comparison_table(results) if "labels_alone" in results else results_table(results),
        scenes_command(
            "quantize", model_name_or_path=output, **corpus_options(data_args), output_dir=f"{output}-int8"
        ),
    )
    push()
    return results


if __name__ == "__main__":
    run_command(main)

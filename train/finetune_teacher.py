"""Fine-tune a pretrained audio model on scenes, as a teacher.

    scenes finetune-teacher --recipe ssl --dataset split25 --data_dir TAU --impulse_responses MicIRP
    scenes finetune-teacher --recipe ast --dataset split25 --data_dir TAU

The recipes `ssl_star` (frozen encoder), `ssl` and `ssl_sl` (unfrozen, from the self-supervised checkpoint and from the
one supervised on AudioSet) are those of Table 1 of the report, for BEATs; their model folders are created by
`python -m modeling_beats.convert_beats`. `ast_star` (frozen) and `ast` are for the Audio Spectrogram Transformer,
`wav2vec2` for models of waveforms. `--model_name_or_path` takes BEATs and any model folder or Hub id that
`AutoModelForAudioClassification` of transformers can load. The default recipe `demo_teacher` starts from a small BEATs
that is trained first. Any value of a recipe can be overridden. Run the same command again to resume after an
interruption.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import train  # noqa: F401 - first, for it checks the packages
from train.classification.arguments import DataArguments, SceneOptions, TeacherArguments
from train.common.process import configure_logging, run_command
from train.common.recipes import check_arguments, parse_arguments


RECIPES = ("demo_teacher", "ssl_star", "ssl", "ssl_sl", "ast_star", "ast", "wav2vec2")

MAIN_OPTIONS = (
    "recipe",
    "model_name_or_path",
    "dataset",
    "data_dir",
    "impulse_responses",
    "output_dir",
    "freeze_encoder",
    "layer_decay",
    "num_train_epochs",
    "batch_size",
    "learning_rate",
    "validation_fraction",
    "early_stopping_patience",
)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Fine-tune a teacher and return its results.

    Args:
        arguments (`Sequence[str]`, *optional*): Defaults to the command line.

    Raises:
        FileExistsError, FileNotFoundError, InputError: As [`~train.classification.training.finetune_teacher`]; if an
            argument is invalid.
    """
    check_arguments((TeacherArguments, DataArguments, SceneOptions), RECIPES, arguments, MAIN_OPTIONS, __doc__)
    # These take seconds to import, and a wrong argument is reported before.
    from model_cards.tables import results_table
    from train.classification.training import finetune_teacher
    from train.classification.training_arguments import SceneTrainingArguments
    from train.common.hub import take_over_push
    from train.common.summary import corpus_options, main_result, scenes_command, summarize
    from train.pretraining.demo import create_demo_model

    recipe, (teacher_args, data_args, args) = parse_arguments(
        (TeacherArguments, DataArguments, SceneTrainingArguments), RECIPES, arguments, __doc__
    )
    configure_logging(args.log_level, args.disable_tqdm)
    push = take_over_push(args)
    create_demo_model(teacher_args.model_name_or_path, data_args, args)
    results = finetune_teacher(recipe, teacher_args, data_args, args)
    output = args.output_dir.rstrip("/")
    summarize(
        f"The teacher, its results and plots are in {output}.",
        main_result(results),
        results_table(results),
        scenes_command(
            "predict-logits",
            model_name_or_path=output,
            **corpus_options(data_args),
            output_dir=f"outputs/logits/{Path(output).name}",
        ),
    )
    push()
    return results


if __name__ == "__main__":
    run_command(main)

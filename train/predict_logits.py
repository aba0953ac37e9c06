"""Predict the logits of a scene classifier for every clip of a split, and write them as a logits dataset.

    scenes predict-logits --model_name_or_path outputs/ssl_sl --dataset split25 --data_dir TAU \
        --output_dir outputs/logits/ssl_sl

Takes any `AutoModelForAudioClassification` model with the classes of the corpus. `accelerate launch
train/predict_logits.py` distributes the clips over processes; the logits do not depend on their number. Run the same
command to resume after an interruption.
"""

from collections.abc import Sequence

import train  # noqa: F401 - first, for it checks the packages
from train.common.arguments import CommandParser
from train.common.availability import check_paths
from train.common.process import configure_logging, run_command
from train.evaluation.arguments import PredictionArguments


def main(arguments: Sequence[str] | None = None) -> None:
    """Predict the logits of a split.

    Args:
        arguments (`Sequence[str]`, *optional*): Defaults to the command line.

    Raises:
        FileExistsError: If the output folder contains other logits.
        FileNotFoundError, InputError: If an argument, the corpus or the model is invalid.
    """
    (args,) = CommandParser(PredictionArguments, description=__doc__).parse(arguments)
    check_paths(args)
    # These take seconds to import, and a wrong argument is reported before.
    from train.common.hub import check_repository, push_predictions
    from train.common.summary import corpus_options, scenes_command, summarize
    from train.evaluation.inference import load_clips, predict_split

    configure_logging()
    check_repository(args.push_to_hub, args.hub_model_id)
    scenes, model, feature_extractor = load_clips(args)
    predict_split(
        model,
        feature_extractor,
        scenes[args.split],
        args.output_dir,
        args.model_name_or_path,
        args.batch_size,
        args.cache_dir,
    )
    if args.split == "train":
        use = scenes_command("distill", recipe="s1", teachers=args.output_dir, **corpus_options(args))
    else:
        output = f"{args.output_dir.rstrip('/')}-results"
        use = scenes_command("evaluate-logits", logits=args.output_dir, **corpus_options(args), output_dir=output)
    summarize(next_command=use)
    push_predictions(args, args.output_dir)


if __name__ == "__main__":
    run_command(main)

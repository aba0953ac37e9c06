"""Evaluate a scene classifier: accuracies, log loss, confusion matrix, complexity.

    python train/run_eval.py --model_name_or_path outputs/demo --dataset demo --output_dir outputs/demo/evaluation

Takes any model folder or Hub id. Writes `results.json`, `results.md` and plots. `accelerate launch` distributes the
clips over processes. `--push_to_hub True --hub_model_id user/name` pushes the model folder with a card that states
these results.
"""

import logging
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

import train  # noqa: F401 - first, for it checks the packages
from dataset_script import cache_waveforms, is_synthetic
from dataset_script.errors import InputError
from model_cards.complexity import measure_model
from model_cards.results import RESULTS_FILE, find_results, portable
from model_cards.tables import results_table
from train.common.arguments import CommandParser, HubArguments, InferenceArguments, check_bootstrap
from train.common.features import input_rate
from train.common.hub import check_repository, push_folder
from train.common.models import load_config
from train.common.process import configure_logging, run_command
from train.common.runs import hold_output_folder
from train.evaluation.inference import load_clips, model_revision
from train.evaluation.scoring import evaluate_classifier, unseen_devices, write_results


logger = logging.getLogger(__name__)


@dataclass
class EvaluationArguments(HubArguments, InferenceArguments):
    """`InferenceArguments`, the confidence intervals, and the repository that the model is pushed to."""

    bootstrap: int = field(
        default=1000, metadata={"help": "Number of resamples for the confidence intervals; 0 for none."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bootstrap(self.bootstrap)


def check_push(args: EvaluationArguments) -> None:
    """Raise `InputError` if the model should be pushed, but its card cannot state these results."""
    check_repository(args.push_to_hub, args.hub_model_id)
    if not args.push_to_hub:
        return
    folder = Path(args.model_name_or_path)
    if not folder.is_dir():
        raise InputError(f"push_to_hub needs a local model folder, but {folder} is not one.")
    if args.split != "test":
        raise InputError(f"Cards only state results on the test split: leave out --split {args.split} to push.")
    results = find_results(folder)
    if results is not None and results.dataset != portable(args.dataset):
        raise InputError(
            f"{folder} has results on {results.dataset}, which its card states: evaluate on --dataset "
            f"{results.dataset} to push."
        )


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Evaluate a model and return the results.

    Args:
        arguments (`Sequence[str]`, *optional*): Defaults to the command line.

    Returns:
        `dict`: The results, as in `results.json` without the provenance.

    Raises:
        FileExistsError: If the output folder contains another evaluation.
        FileNotFoundError, InputError: If an argument, the corpus or the model is invalid.
    """
    (args,) = CommandParser(EvaluationArguments).parse(arguments)
    configure_logging()
    check_push(args)
    scenes, model, feature_extractor = load_clips(args)
    clips = scenes[args.split]
    run = {"model": args.model_name_or_path, "revision": model_revision(model), "dataset": args.dataset}
    run["split"] = args.split
    with hold_output_folder(args.output_dir, run):
        waveforms = cache_waveforms(clips, input_rate(feature_extractor), args.cache_dir)
        unseen = unseen_devices(scenes["train"], clips)
        metrics = evaluate_classifier(
            model, feature_extractor, clips, waveforms, unseen, args.batch_size, args.bootstrap
        )
        stored_half = load_config(args.model_name_or_path, args.trust_remote_code).dtype == torch.float16
        if stored_half and args.dtype == "float32":
            model = model.half()  # to count its bytes: it was evaluated in float32 with its float16 values
        results = {
            **run,
            "synthetic": is_synthetic(clips),
            "metrics": metrics,
            "unseen_devices": unseen,
            "complexity": measure_model(model).as_results(),
        }
        if PartialState().is_main_process:
            write_results(args.output_dir, results)
            table = results_table(results)
            logger.info("%s\nResults and plots are in %s.", table, args.output_dir)
            if args.push_to_hub:
                if find_results(args.model_name_or_path) is None:
                    shutil.copy(Path(args.output_dir) / RESULTS_FILE, args.model_name_or_path)
                push_folder(args, args.model_name_or_path)
    return results


if __name__ == "__main__":
    run_command(main)

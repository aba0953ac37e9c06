"""Evaluate a scene classifier: accuracies, log loss, confusion matrix, complexity.

    scenes evaluate --model_name_or_path outputs/demo --dataset demo --output_dir outputs/demo/evaluation

Takes any model folder or Hub id. Writes `results.json`, `results.md` and plots. `accelerate launch train/run_eval.py`
distributes the clips over processes. `--push_to_hub --hub_model_id user/name` pushes the model folder with a card that
states these results.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import train  # noqa: F401 - first, for it checks the packages
from dataset_script.errors import InputError
from model_cards.results import RESULTS_FILE, find_results, portable
from train.common.arguments import CommandParser
from train.common.availability import check_paths
from train.common.process import configure_logging, run_command
from train.evaluation.arguments import EvaluationArguments


def check_push(args: EvaluationArguments) -> None:
    """Raise `InputError` if the model should be pushed, but its card cannot state these results."""
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
    (args,) = CommandParser(EvaluationArguments, description=__doc__).parse(arguments)
    check_paths(args)
    # These take seconds to import, and a wrong argument is reported before.
    from accelerate import PartialState

    from model_cards.tables import results_table
    from train.common.hub import check_repository, push_folder
    from train.common.summary import main_result, scenes_command, summarize
    from train.evaluation.runs import evaluate_model

    configure_logging()
    check_repository(args.push_to_hub, args.hub_model_id)
    check_push(args)
    results = evaluate_model(args)
    is_folder = Path(args.model_name_or_path).is_dir()
    summarize(
        f"The results and plots are in {args.output_dir}.",
        main_result(results),
        results_table(results),
        scenes_command("push", args.model_name_or_path, "USER/NAME") if is_folder else None,
    )
    if args.push_to_hub and PartialState().is_main_process:
        if find_results(args.model_name_or_path) is None:
            shutil.copy(Path(args.output_dir) / RESULTS_FILE, args.model_name_or_path)
        push_folder(args, args.model_name_or_path)
    return results


if __name__ == "__main__":
    run_command(main)

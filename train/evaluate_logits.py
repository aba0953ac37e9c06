"""Evaluate logits of the test split: those of one model, or the mean over several models.

    scenes evaluate-logits --logits outputs/logits/ssl-test outputs/logits/ssl_sl-test --dataset split25 \
        --data_dir TAU --output_dir outputs/ensemble

Writes `results.json`, `results.md` and plots, as train/run_eval.py does for a model.
"""

from collections.abc import Sequence
from typing import Any

import train  # noqa: F401 - first, for it checks the packages
from train.common.arguments import CommandParser
from train.common.availability import check_paths
from train.common.process import configure_logging, run_command
from train.evaluation.arguments import LogitsArguments


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Evaluate the mean of logits and return the results.

    Args:
        arguments (`Sequence[str]`, *optional*): Defaults to the command line.

    Returns:
        `dict`: The results, as in `results.json` without the provenance.

    Raises:
        FileExistsError: If the output folder contains another evaluation.
        FileNotFoundError, InputError: If an argument, the corpus or the logits are invalid.
    """
    (args,) = CommandParser(LogitsArguments, description=__doc__).parse(arguments)
    check_paths(args)
    # These take seconds to import, and a wrong argument is reported before.
    from model_cards.tables import results_table
    from train.common.summary import main_result, summarize
    from train.evaluation.runs import evaluate_mean

    configure_logging()
    results = evaluate_mean(args)
    summarize(f"The results and plots are in {args.output_dir}.", main_result(results), results_table(results))
    return results


if __name__ == "__main__":
    run_command(main)

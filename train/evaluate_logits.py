"""Evaluate logits of the test split: those of one model, or the mean over several models.

    python train/evaluate_logits.py --logits outputs/logits/ssl-test outputs/logits/ssl_sl-test --dataset split25 \
        --data_dir TAU --output_dir outputs/ensemble

Writes `results.json`, `results.md` and plots, as train/run_eval.py does for a model.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from accelerate import PartialState

import train  # noqa: F401 - first, for it checks the packages
from dataset_script import is_synthetic, load_scenes, read_logits
from dataset_script.logits import join_logits
from model_cards.tables import results_table
from train.classification.data import check_splits
from train.common.arguments import CommandParser, CorpusArguments, check_bootstrap
from train.common.process import configure_logging, run_command
from train.common.runs import hold_output_folder
from train.evaluation.scoring import score_logits, unseen_devices, write_results


logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class LogitsArguments(CorpusArguments):
    """The logits and their clips."""

    logits: list[str] = field(metadata={"help": "Logits datasets of the test split, whose mean is evaluated."})
    output_dir: str = field(metadata={"help": "Output folder."})
    bootstrap: int = field(
        default=1000, metadata={"help": "Number of resamples for the confidence intervals; 0 for none."}
    )

    def __post_init__(self) -> None:
        check_bootstrap(self.bootstrap)


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
    (args,) = CommandParser(LogitsArguments).parse(arguments)
    configure_logging()
    scenes = load_scenes(args.dataset, args.data_dir, cache_dir=args.cache_dir)
    check_splits(scenes, args.dataset)
    test = scenes["test"]
    labels = test.features["label"].names
    members = [read_logits(source, labels) for source in args.logits]
    columns = [
        join_logits(source, member, test["filename"][:]).to_pylist()
        for source, member in zip(args.logits, members, strict=True)
    ]
    described = [{"teacher": member.teacher, "revision": member.revision} for member in members]
    run = {"members": described, "dataset": args.dataset}
    with hold_output_folder(args.output_dir, run):
        unseen = unseen_devices(scenes["train"], test)
        metrics = score_logits(np.mean(columns, axis=0), test, unseen, args.bootstrap)
        results = {
            **run,
            "split": "test",
            "synthetic": is_synthetic(test),
            "metrics": metrics,
            "unseen_devices": unseen,
            "complexity": {},
        }
        if PartialState().is_main_process:
            write_results(args.output_dir, results)
            logger.info("%s\nResults and plots are in %s.", results_table(results), args.output_dir)
    return results


if __name__ == "__main__":
    run_command(main)

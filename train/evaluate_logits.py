"""Evaluate logits that were predicted on the test split: those of one model, or the mean of several.

    python train/evaluate_logits.py --logits outputs/logits/ssl-test outputs/logits/ssl_sl-test --dataset split25 \
        --data_dir TAU --output_dir outputs/ensemble

Writes `results.json`, `results.md` and pictures, as train/run_eval.py does for a model.
"""

import logging
from dataclasses import dataclass, field

import numpy as np

from dataset_script import is_synthetic, load_scenes, read_logits
from dataset_script.logits import join_logits
from train.data import check_splits
from train.recipes import ScriptParser
from train.run_eval import results_table, score_logits, unseen_devices, write_results
from train.runs import claim_output_folder, configure_logging, run_script


logger = logging.getLogger(__name__)


@dataclass
class LogitsArguments:
    """Which logits of which clips are evaluated."""

    logits: list[str] = field(metadata={"help": "Logits datasets of the test split, whose mean is evaluated."})
    output_dir: str = field(metadata={"help": "Where the results go."})
    dataset: str = field(default="demo", metadata={"help": "Configuration of the scenes, such as demo or split25."})
    data_dir: str | None = field(default=None, metadata={"help": "Folder with the corpus, extracted or as archives."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where prepared clips are kept."})
    bootstrap: int = field(default=1000, metadata={"help": "Resamples behind the confidence intervals; 0 is none."})


def main() -> None:
    """Evaluate as the command line asks for."""
    (args,) = ScriptParser(LogitsArguments).parse()
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
    claim_output_folder(args.output_dir, {"members": described, "dataset": args.dataset})
    unseen = unseen_devices(scenes["train"], test)
    metrics = score_logits(np.mean(columns, axis=0), test, unseen, args.bootstrap)
    results = {
        "members": described,
        "dataset": args.dataset,
        "split": "test",
        "synthetic": is_synthetic(test),
        "metrics": metrics,
        "unseen_devices": unseen,
        "complexity": {},
    }
    write_results(args.output_dir, results)
    logger.info("%s\nResults and pictures are in %s.", results_table(results), args.output_dir)


if __name__ == "__main__":
    run_script(main)

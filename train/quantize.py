"""Quantize a TF-SepNet to INT8 and measure what that costs.

    python train/quantize.py --model_name_or_path outputs/demo --dataset demo --output_dir outputs/demo-int8

Calibration clips come from the training subset, evenly by class; the test split is only read for the measurements.
Writes a model folder `model`, `results.json`, `results.md` and a plot of the error along the network.
"""

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model_cards.tables import quantization_table
from train.common.arguments import CommandParser
from train.common.hub import check_repository, push_folder
from train.common.process import configure_logging, run_command
from train.common.runs import run_or_load
from train.deployment.arguments import QuantizationArguments
from train.deployment.quantizer import INCQuantizer
from train.deployment.report import quantize_and_measure
from train.evaluation.inference import load_clips, model_revision


logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Quantize a model and return the results.

    Args:
        arguments (`Sequence[str]`, *optional*): Defaults to the command line.
    """
    (args,) = CommandParser(QuantizationArguments).parse(arguments)
    configure_logging()
    check_repository(args.push_to_hub, args.hub_model_id)
    scenes, model, extractor = load_clips(args)
    quantizer = INCQuantizer(model, extractor)
    source = {"model": args.model_name_or_path, "revision": model_revision(model), "dataset": args.dataset}
    source["qat_epochs"] = args.qat_epochs
    results = run_or_load(
        args.output_dir,
        {**source, "calibration_clips": args.calibration_clips, "seed": args.seed},
        lambda: quantize_and_measure(args, scenes, quantizer, source),
    )
    logger.info("%s\nThe model and plots are in %s.", quantization_table(results), args.output_dir)
    if args.push_to_hub:
        push_folder(args, Path(args.output_dir) / "model")
    return results


if __name__ == "__main__":
    run_command(main)

"""Store a trained student in half precision (float16), and evaluate it beside the float32 model.

    python train/half_precision.py --model_name_or_path outputs/demo --output_dir outputs/demo-float16

For networks of at most 64,000 parameters, which may be submitted to the challenge without quantization. Writes a model
folder `model` of half the size, `results.json` and `results.md`.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import train  # noqa: F401 - first, for it checks the packages
from dataset_script.errors import InputError
from model_cards.tables import half_precision_table
from train.common.arguments import CommandParser, HubArguments, InferenceArguments, check_bootstrap
from train.common.hub import check_repository, push_folder
from train.common.process import configure_logging, run_command
from train.common.runs import run_or_load
from train.deployment.half import convert_and_measure, to_half
from train.evaluation.inference import load_clips, model_revision


logger = logging.getLogger(__name__)


@dataclass
class HalfPrecisionArguments(HubArguments, InferenceArguments):
    """The float32 model, and the repository that the float16 model is pushed to."""

    bootstrap: int = field(
        default=1000, metadata={"help": "Number of resamples for the confidence intervals; 0 for none."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dtype != "float32" or self.torch_compile:
            raise InputError("The conversion starts from the float32 model: leave out dtype and torch_compile.")
        check_bootstrap(self.bootstrap)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Convert a model and return the results.

    Args:
        arguments (`Sequence[str]`, *optional*): Defaults to the command line.

    Returns:
        `dict`: The results, as in `results.json`.

    Raises:
        FileExistsError: If the output folder contains another run.
        FileNotFoundError, InputError: If an argument, the corpus or the model is invalid, or the float16 model would
            exceed a limit of the challenge.
    """
    (args,) = CommandParser(HalfPrecisionArguments).parse(arguments)
    configure_logging()
    check_repository(args.push_to_hub, args.hub_model_id)
    scenes, model, extractor = load_clips(args)
    half = to_half(model, args.model_name_or_path)
    source = {"model": args.model_name_or_path, "revision": model_revision(model), "dataset": args.dataset}
    results = run_or_load(
        args.output_dir,
        source,
        lambda: convert_and_measure(
            model,
            half,
            extractor,
            scenes,
            args.output_dir,
            source,
            split=args.split,
            cache_dir=args.cache_dir,
            batch_size=args.batch_size,
            bootstrap=args.bootstrap,
        ),
        model="model/model.safetensors",
    )
    logger.info("%s\nThe model is in %s.", half_precision_table(results), Path(args.output_dir) / "model")
    if args.push_to_hub:
        push_folder(args, Path(args.output_dir) / "model")
    return results


if __name__ == "__main__":
    run_command(main)

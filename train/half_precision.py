"""Store a trained student in half precision (float16), and evaluate it beside the float32 model.

    scenes half-precision --model_name_or_path outputs/demo --output_dir outputs/demo-float16

For networks of at most 64,000 parameters, which may be submitted to the challenge without quantization. Writes a model
folder `model` of half the size, `results.json` and `results.md`.
"""

from collections.abc import Sequence
from typing import Any

import train  # noqa: F401 - first, for it checks the packages
from train.common.arguments import CommandParser
from train.common.availability import check_paths
from train.common.process import configure_logging, run_command
from train.deployment.arguments import ConversionArguments


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
    (args,) = CommandParser(ConversionArguments, description=__doc__).parse(arguments)
    check_paths(args)
    # These take seconds to import, and a wrong argument is reported before.
    from model_cards.tables import half_precision_table, percent
    from train.common.hub import check_repository, push_folder
    from train.common.runs import run_or_load
    from train.common.summary import scenes_command, summarize
    from train.deployment.half import convert_and_measure, to_half
    from train.evaluation.inference import load_clips, model_revision

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
    output = args.output_dir.rstrip("/")
    before, after = (percent(results[name]["macro_accuracy"]) for name in ("float", "float16"))
    summarize(
        f"The float16 model is in {output}/model, its results in {output}.",
        f"Macro accuracy: {after} % as float16, {before} % as float32; "
        f"{results['complexity']['parameter_bytes']:,} bytes.",
        half_precision_table(results),
        scenes_command(
            "submit",
            edition="2025",
            label="NAME_INSTITUTE_task1_1",
            models=f"{output}/model",
            output_dir=f"{output}-package",
            write_about="about.yaml",
        ),
    )
    if args.push_to_hub:
        push_folder(args, f"{output}/model")
    return results


if __name__ == "__main__":
    run_command(main)

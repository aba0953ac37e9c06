"""Quantize a student to INT8, and compare it with the float model.

    scenes quantize --model_name_or_path outputs/demo --dataset demo --output_dir outputs/demo-int8

Calibrates with clips of the training subset, drawn evenly by class; the test split is only used for evaluation. Writes
a model folder `model`, `results.json`, `results.md` and a plot of the error of each layer. Needs Intel Neural
Compressor, the extra `quantize`.
"""

from collections.abc import Sequence
from typing import Any

import train  # noqa: F401 - first, for it checks the packages
from dataset_script.errors import InputError
from train.common.arguments import CommandParser
from train.common.availability import check_paths
from train.common.process import configure_logging, run_command
from train.deployment.arguments import QuantizationArguments


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Quantize a model and return the results.

    Args:
        arguments (`Sequence[str]`, *optional*): Defaults to the command line.

    Returns:
        `dict`: The results, as in `results.json`.

    Raises:
        FileExistsError: If the output folder contains another run.
        FileNotFoundError, InputError: If an argument, the corpus or the model is invalid, the INT8 model would exceed
            a limit of the challenge, or its accuracy drops too much; the model is kept then, too.
    """
    (args,) = CommandParser(QuantizationArguments, description=__doc__).parse(arguments)
    check_paths(args)
    # These take seconds to import, and a wrong argument is reported before.
    from model_cards.complexity import check_limits, measure_model
    from model_cards.tables import percent, quantization_table
    from train.common.hub import check_repository, push_folder
    from train.common.runs import run_or_load
    from train.common.summary import scenes_command, summarize
    from train.deployment.checks import require_packages

    require_packages("quantize", "neural_compressor.torch.quantization", "optimum.quantization_base", "torchao")
    from train.deployment.comparison import describe_loss
    from train.deployment.quantizer import INCQuantizer, new_int8_network
    from train.deployment.report import quantize_and_measure
    from train.evaluation.inference import load_clips, model_revision

    args.quantization_config()  # raises an error if a value is out of range
    configure_logging()
    check_repository(args.push_to_hub, args.hub_model_id)
    scenes, model, extractor = load_clips(args)
    quantizer = INCQuantizer(model, extractor)
    check_limits(measure_model(new_int8_network(model.config)), args.model_name_or_path, as_stored=True)
    source = {"model": args.model_name_or_path, "revision": model_revision(model), "dataset": args.dataset}
    source |= {"activation_bits": args.activation_bits, "qat_epochs": args.qat_epochs}
    results = run_or_load(
        args.output_dir,
        {**source, "calibration_clips": args.calibration_clips, "seed": args.seed},
        lambda: quantize_and_measure(args, scenes, quantizer, source),
        model="model/model.safetensors",
    )
    output = args.output_dir.rstrip("/")
    before, after = (percent(results[name]["macro_accuracy"]) for name in ("float", "int8"))
    summarize(
        f"The INT8 model is in {output}/model, its results and plots in {output}.",
        f"Macro accuracy: {after} % as INT8, {before} % as float; {results['complexity']['parameter_bytes']:,} bytes.",
        quantization_table(results),
        scenes_command("export", model_name_or_path=f"{output}/model", output=f"{output}.onnx", form="weights"),
    )
    if not results["calibration"]["tolerable"]:
        raise InputError(
            f"{describe_loss(results['calibration'], args.tolerable_loss)} The model is kept in {output}/model."
        )
    if args.push_to_hub:
        push_folder(args, f"{output}/model")
    return results


if __name__ == "__main__":
    run_command(main)

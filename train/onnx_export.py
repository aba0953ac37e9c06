"""Export a student, float or INT8, to an ONNX file that maps log-mel or waveforms to logits.

    scenes export --model_name_or_path outputs/demo-int8/model --output model.onnx --form weights

An INT8 model has two forms. `qdq` inserts QuantizeLinear and DequantizeLinear before the convolutions: it computes the
same as the INT8 model, and a runtime with integer kernels can use them. `weights` stores the weights and biases as
integers and does not round activations; runtimes convert the integers to float once, so the file is a quarter of the
size of a float one and just as fast. `--waveform` includes the front end.

The metadata of the file describe its input and output. Needs the extra `onnx`. Optimum's exporter is a
separate package that does not support transformers 5; `train/deployment/onnx_graph.py` explains why `torch.onnx` is
not used.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import train  # noqa: F401 - first, for it checks the packages
from dataset_script.errors import InputError
from train.common.arguments import CommandParser
from train.common.availability import check_paths
from train.common.process import configure_logging, run_command


@dataclass
class ExportArguments:
    """The model, the file and its form."""

    model_name_or_path: str = field(metadata={"help": "Float or INT8 student: model folder or Hub id."})
    output: str = field(metadata={"help": "ONNX file to write."})
    form: Literal["qdq", "weights"] = field(
        default="qdq",
        metadata={"help": "For INT8 models: qdq also rounds activations; weights only stores weights as integers."},
    )
    waveform: bool = field(default=False, metadata={"help": "Include the front end, so that the input is waveforms."})

    def __post_init__(self) -> None:
        path = Path(self.output)
        if path.is_dir():
            raise InputError(f"{path} is a folder: choose a file for --output, such as {path / 'model.onnx'}.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Export a model.

    Args:
        arguments (`Sequence[str]`, *optional*): Defaults to the command line.

    Raises:
        FileNotFoundError, InputError: If an argument or the model is invalid.
        OSError: If the file cannot be written.
    """
    (args,) = CommandParser(ExportArguments, description=__doc__).parse(arguments)
    check_paths(args)
    # These take seconds to import, and a wrong argument is reported before.
    from train.common.models import load_classifier
    from train.common.summary import summarize
    from train.deployment.checks import check_writable, require_packages

    require_packages("onnx", "onnx")
    from train.deployment.onnx_model import export_onnx

    check_writable(Path(args.output).absolute().parent, "--output")
    configure_logging()
    model, extractor = load_classifier(args.model_name_or_path)
    export_onnx(model, args.output, args.form, extractor, args.waveform)
    summarize(
        f"The network is in {args.output}. To use it: onnxruntime.InferenceSession({args.output!r})",
        f"{Path(args.output).stat().st_size:,} bytes.",
    )


if __name__ == "__main__":
    run_command(main)

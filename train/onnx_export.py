"""ONNX files of TF-SepNet models, float and INT8, from log-mel or from waveforms to logits.

    python train/onnx_export.py --model_name_or_path outputs/demo-int8/model --output model.onnx --form weights

An INT8 model has two forms. `qdq` puts QuantizeLinear and DequantizeLinear before its convolutions: it computes what
the INT8 model computes, and a runtime with integer kernels finds all it needs. `weights` keeps weights and biases as
integers and leaves activations alone; runtimes expand the integers once when they load the file, which is then as fast
as a float one, at a quarter of the size. With `--waveform True` the front end is in the file too.

The file's metadata tell what an application has to know. `optimum`'s exporter is a package of its own that does not
resolve beside transformers 5; why `torch.onnx` is not used is told in `train/onnx_graph.py`.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from train.common.arguments import CommandParser
from train.common.models import load_classifier
from train.common.process import configure_logging, run_command
from train.deployment.onnx_model import export_onnx


logger = logging.getLogger(__name__)


@dataclass
class ExportArguments:
    """What to export, and where to."""

    model_name_or_path: str = field(metadata={"help": "Float or INT8 TF-SepNet: model folder or Hub id."})
    output: str = field(metadata={"help": "ONNX file to write."})
    form: Literal["qdq", "weights"] = field(
        default="qdq",
        metadata={"help": "INT8 models: qdq rounds activations too; weights keeps the weights alone as integers."},
    )
    waveform: bool = field(default=False, metadata={"help": "Take waveforms: put the front end into the file."})


def main(arguments: Sequence[str] | None = None) -> None:
    """Export a model.

    Args:
        arguments (`Sequence[str]`, *optional*): Defaults to the command line.
    """
    (args,) = CommandParser(ExportArguments).parse(arguments)
    configure_logging()
    model, extractor = load_classifier(args.model_name_or_path)
    Path(args.output).parent.mkdir(parents=True, exist_ok=True)
    export_onnx(model, args.output, args.form, extractor, args.waveform)
    logger.info("Wrote %s (%d bytes).", args.output, Path(args.output).stat().st_size)


if __name__ == "__main__":
    run_command(main)

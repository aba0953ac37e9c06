"""Export a student for devices: networks of fixed shape, tables of the front end, golden vectors, memory.

    scenes edge-export --model_name_or_path outputs/demo --output_dir outputs/demo-edge

Writes ONNX files for one clip and, where the extra `edge` is installed, a LiteRT file of float models; the tables of
the front end and the weights, as NumPy arrays and C headers; inputs with the outputs that are expected, for tests on
the device; and the memory that the activations need. A README.md in the folder explains them. Needs the extra `onnx`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import train  # noqa: F401 - first, for it checks the packages
from dataset_script.errors import InputError
from train.common.arguments import CommandParser, check_seed
from train.common.availability import check_paths
from train.common.process import configure_logging, run_command


@dataclass
class EdgeArguments:
    """The model, the folder and the golden vectors."""

    model_name_or_path: str = field(metadata={"help": "Float or INT8 student: model folder or Hub id."})
    output_dir: str = field(metadata={"help": "Folder to write."})
    recordings: list[str] = field(
        default_factory=list, metadata={"help": "Audio files whose first second is added to the golden vectors."}
    )
    seed: int = field(default=0, metadata={"help": "Seed of the noise among the golden vectors."})

    def __post_init__(self) -> None:
        check_seed(self.seed)
        for recording in self.recordings:
            if not Path(recording).is_file():
                raise InputError(f"There is no file {recording}: correct --recordings.")


def main(arguments: Sequence[str] | None = None) -> dict[str, Any]:
    """Export a model and return the content of `edge.json`.

    Args:
        arguments (`Sequence[str]`, *optional*): Defaults to the command line.

    Returns:
        `dict`: Shapes, settings, layers, memory and differences.

    Raises:
        FileNotFoundError, InputError: If an argument, a recording or the model is invalid.
        OSError: If the folder cannot be written to.
    """
    (args,) = CommandParser(EdgeArguments, description=__doc__).parse(arguments)
    check_paths(args)
    # These take seconds to import, and a wrong argument is reported before.
    from train.common.models import load_classifier
    from train.common.summary import summarize
    from train.deployment.checks import check_writable, require_packages

    require_packages("onnx", "onnx", "onnxruntime")
    from train.deployment.edge import export_edge

    check_writable(Path(args.output_dir), "--output_dir")
    configure_logging()
    model, extractor = load_classifier(args.model_name_or_path)
    content = export_edge(model, extractor, args.output_dir, args.recordings, args.seed)
    differences = content["largest_differences_of_logits"]
    summarize(
        f"The files are in {args.output_dir}: see {Path(args.output_dir) / 'README.md'}.",
        "Largest difference of a logit: " + ", ".join(f"{name} {value:.1e}" for name, value in differences.items()),
    )
    return content


if __name__ == "__main__":
    run_command(main)

"""Classify acoustic scenes: train, evaluate, quantize and use small networks.

    scenes classify street.wav
    scenes distill
    scenes distill --help

`scenes COMMAND --help` describes a command. Each is a module that also runs alone: `scenes distill` is the same as
`python -m train.distill`, and `accelerate launch -m train.distill` runs it in several processes.
"""

import ast
import re
import runpy
import sys
from collections.abc import Sequence
from pathlib import Path

from acoustic_scenes import __version__
from acoustic_scenes.command_line import CommandLine
from acoustic_scenes.packages import quieten_libraries
from acoustic_scenes.suggestions import did_you_mean


COMMANDS = {
    "classify": "acoustic_scenes.classify",
    "check": "dataset_script.check",
    "make-demo": "dataset_script.make_demo",
    "convert": "modeling_beats.convert_beats",
    "convert-student": "modeling_tfsepnet.convert_tfsepnet",
    "convert-baseline": "modeling_cpmobile.convert_cpmobile",
    "pretrain": "train.pretrain_teacher",
    "finetune-audioset": "train.finetune_audioset",
    "finetune-teacher": "train.finetune_teacher",
    "predict-logits": "train.predict_logits",
    "distill": "train.distill",
    "adapt-devices": "train.adapt_devices",
    "evaluate": "train.run_eval",
    "evaluate-logits": "train.evaluate_logits",
    "quantize": "train.quantize",
    "half-precision": "train.half_precision",
    "export": "train.onnx_export",
    "edge-export": "train.edge_export",
    "submit": "train.submission",
    "reproduce": "train.reproduce",
    "card": "model_cards.card",
    "push": "model_cards.push",
}
"""The module of each command, in the order of the stages. Only the module that is called is imported, which is why
they are named and not imported here: all other packages build on this one."""

ROOT = Path(__file__).resolve().parents[1]
"""Folder of the packages."""


def docstring(module: str) -> str:
    """Return the docstring of a module without importing it.

    Args:
        module (`str`): Name of the module.
    """
    source = ROOT.joinpath(*module.split(".")).with_suffix(".py").read_text(encoding="utf-8")
    return str(ast.get_docstring(ast.parse(source)))


def summary(module: str) -> str:
    """Return the beginning of a module's docstring, up to a comma or colon, without importing the module.

    Args:
        module (`str`): Name of the module.
    """
    return re.split(r"[,:] |\.$", docstring(module).splitlines()[0])[0]


def check_converter(command: str, module: str, arguments: Sequence[str]) -> None:
    """Show the help of a converter if it is asked for, or else report what is wrong with its arguments.

    Its command line is a file of its own, which is run without importing the package: that would import torch, to
    register the network with transformers.

    Args:
        command (`str`): Name of the command.
        module (`str`): Its module.
        arguments (`Sequence[str]`): Its arguments.
    """
    package, name = module.split(".")
    command_line = runpy.run_path(str(ROOT / package / f"{name.replace('convert', 'arguments')}.py"))
    parser = CommandLine(f"scenes {command}", docstring(module))
    command_line["add_arguments"](parser)
    args = parser.parse(arguments)
    try:
        command_line["check_arguments"](args)
    except (OSError, ValueError) as error:
        parser.fail(str(error))


def help_text() -> str:
    """Return the help of `scenes`: all commands with their summaries."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{summary(module)}" for name, module in COMMANDS.items()]
    return "\n".join([str(__doc__), "Commands:", *lines])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command of this project.

    Args:
        arguments (`Sequence[str]`, *optional*): The command and its arguments; defaults to the command line.
    """
    command, *rest = list(sys.argv[1:] if arguments is None else arguments) or ["--help"]
    if command in ("-h", "--help", "help"):
        print(help_text())
        return
    if command == "--version":
        print(f"acoustic-scenes {__version__}")
        return
    if command not in COMMANDS:
        sys.exit(f"Error: There is no command {command!r}{did_you_mean(command, COMMANDS)}: see scenes --help.")
    if COMMANDS[command].startswith("modeling_"):
        check_converter(command, COMMANDS[command], rest)
    quieten_libraries()
    sys.argv = ["-m", *rest]  # as Python has it while it imports the packages of a module that it runs
    runpy.run_module(COMMANDS[command], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main()

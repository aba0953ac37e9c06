"""The packages that parts of this project need, and what they print."""

import importlib.util
import logging
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path


COMMANDS = Path(__file__).resolve().parents[1] / "train"
"""Folder of the scripts."""

NOISY_LOGGERS = ("neural_compressor", "torch.utils._pytree", "torchao", "transformers.trainer_utils")
NOISY_WARNINGS = (
    r".*isinstance\(treespec, LeafSpec\)",
    "The input of maxpool2d is not quantized",
    "`broadcast_buffers` is deprecated",
    "Grad strides do not match bucket view strides",
)
"""Loggers and warnings of libraries about absent hardware and their own future, which a user cannot change."""


def quieten_libraries() -> None:
    """Show only the errors of libraries that would otherwise warn of what a user cannot change."""
    for name in NOISY_LOGGERS:
        logging.getLogger(name).addFilter(_is_error)  # a level would be reset by the library
    for pattern in NOISY_WARNINGS:
        warnings.filterwarnings("ignore", pattern)


def _is_error(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def install_command(extra: str) -> str:
    """Return the command that installs an extra of this project: from the clone that this file is in, or the package.

    Args:
        extra (`str`): Name of the extra, such as `"train"`.
    """
    if (COMMANDS.parent / "pyproject.toml").is_file():
        return f"pip install -e '.[{extra}]'"
    return f"pip install 'acoustic-scenes[{extra}]'"


def check_packages(packages: Mapping[str, str]) -> None:
    """Name the first package that is missing.

    A command ends with this one line, without the traceback of an import; a program that imports the project gets an
    error.

    Args:
        packages (`Mapping[str, str]`): For the name of each module, the package to install.

    Raises:
        ImportError: If a package is missing.
    """
    missing = [package for name, package in packages.items() if importlib.util.find_spec(name) is None]
    if not missing:
        return
    message = f"The package {missing[0]} is missing: {install_command('train')}"
    # While `python -m` imports a package, that is all that it knows of the command.
    if sys.argv[0] == "-m" or Path(sys.argv[0]).resolve().parent == COMMANDS:
        sys.exit(f"Error: {message}")
    raise ImportError(message)

"""Whether the packages that a part of this project needs are installed."""

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path


COMMANDS = Path(__file__).resolve().parents[1] / "train"
"""Folder of the scripts."""


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
    message = f"The package {missing[0]} is missing: pip install -e '.[train]'"
    # While `python -m` imports a package, that is all that it knows of the command.
    if sys.argv[0] == "-m" or Path(sys.argv[0]).resolve().parent == COMMANDS:
        sys.exit(f"Error: {message}")
    raise ImportError(message)

"""The command line of the converter: reading it takes none of the imports of this package."""

import argparse
import os
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the converter to a parser."""
    parser.add_argument("checkpoint", type=Path, help="Lightning checkpoint, or a state dict as .pt or .safetensors.")
    parser.add_argument("output", type=Path, help="Folder to save the model in.")


def check_arguments(args: argparse.Namespace) -> None:
    """Raise an error if the checkpoint does not exist, or the output folder cannot be written."""
    if not args.checkpoint.is_file():
        raise FileNotFoundError(f"There is no checkpoint file {args.checkpoint}.")
    check_output(args.output)


def check_output(folder: Path) -> None:
    """Raise an error unless a folder can be written, or created."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    if not existing.is_dir():
        raise ValueError(f"{existing} is not a folder: name another output folder.")
    if not os.access(existing, os.W_OK):
        raise ValueError(f"{existing} is not writable: name another output folder.")

"""The command line of the converter: reading it takes none of the imports of this package."""

import argparse
import os
from pathlib import Path


PROBLEM_TYPES = {"multi-label": "multi_label_classification", "multi-class": "single_label_classification"}
"""Kinds of classifiers of ESPnet, and what transformers calls them."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of the converter to a parser."""
    parser.add_argument(
        "source",
        help="Checkpoint file, such as BEATs_iter3_plus_AS2M.pt, its folder, or a model on the Hub, such as "
        "espnet/BEATs-AS20K.",
    )
    parser.add_argument("output", type=Path, help="Folder to save the model in.")
    parser.add_argument("--revision", help="Branch, tag or commit of the model on the Hub.")
    parser.add_argument(
        "--base",
        help="config.yaml, checkpoint file, folder or Hub id of the encoder that an ESPnet model was fine-tuned from; "
        "for models on the Hub, it is found by their name.",
    )
    parser.add_argument(
        "--classification_type",
        choices=tuple(PROBLEM_TYPES),
        help="Kind of an ESPnet classifier, if its configuration does not tell.",
    )
    parser.add_argument("--fbank_mean", type=float, help="Mean of the filter banks, instead of the checkpoint's.")
    parser.add_argument("--fbank_std", type=float, help="Standard deviation of the filter banks, likewise.")


def check_arguments(args: argparse.Namespace) -> None:
    """Raise an error if the output folder cannot be written."""
    check_output(args.output)


def check_output(folder: Path) -> None:
    """Raise an error unless a folder can be written, or created."""
    existing = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    if not existing.is_dir():
        raise ValueError(f"{existing} is not a folder: name another output folder.")
    if not os.access(existing, os.W_OK):
        raise ValueError(f"{existing} is not writable: name another output folder.")

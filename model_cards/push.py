"""Push a model folder, or a logits dataset, to the Hub, with its card.

    python -m model_cards.push outputs/s2-split25 user/tfsepnet-64-split25 --results outputs/s2-split5 --private

One commit contains the weights, the feature extractor, the code, the card, the results behind it and the plots. The
challenge's limits are checked and the card is written before anything is sent. A push that fails leaves everything on
disk; run the same command to finish it.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from dataset_script import push_logits
from dataset_script.hub import check_repo_id, push_files
from model_cards.generator import add_card_arguments, run_command, write_card


PUSHED = (
    "README.md",
    "*config.json",
    "*.safetensors",
    "*.py",
    "*.png",
    "*.svg",
    "results.json",
    "results/*.json",
)
"""Files of a run's folder that are pushed: no checkpoints, no pickled arguments."""


def push_model(folder: str | Path, repo_id: str, *, private: bool | None = None, **card_options: Any) -> str:
    """Write the card of a model folder, and push the whole model in one commit.

    Args:
        folder (`str` or `Path`): Model folder, with its `results.json`.
        repo_id (`str`): The repository; created if it does not exist.
        private (`bool`, *optional*): Whether a new repository is private; defaults to the setting of the account.
        card_options: As for [`~model_cards.generator.write_card`].

    Returns:
        `str`: URL of the commit.

    Raises:
        ConnectionError: If the Hub cannot be reached or refuses; the folder is complete and can be pushed again.
        FileNotFoundError, InputError: As [`~model_cards.generator.write_card`]; nothing has been sent then.
    """
    check_repo_id(repo_id)
    folder = Path(folder)
    write_card(folder, repo_id=repo_id, **card_options)
    return push_files(folder, repo_id, PUSHED, message="Upload the model with its card and results", private=private)


def main(arguments: Sequence[str] | None = None) -> str:
    """Push a model or a logits dataset, and return the URL of the commit.

    Args:
        arguments (`Sequence[str]`, *optional*): Defaults to the command line.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_card_arguments(parser)
    parser.add_argument("repo_id", help="Repository on the Hub, as user/name.")
    parser.add_argument("--private", action="store_true", default=None, help="Make a new repository private.")
    args = vars(parser.parse_args(arguments))
    folder, repo_id, private = args.pop("folder"), args.pop("repo_id"), args.pop("private")
    if (Path(folder) / "data").is_dir():
        return push_logits(folder, repo_id, private)
    return push_model(folder, repo_id, private=private, **args)


if __name__ == "__main__":
    run_command(main)

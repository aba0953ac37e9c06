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

import modeling_beats
import modeling_tfsepnet
from dataset_script import push_logits
from dataset_script.hub import check_repo_id, push_files
from model_cards.complexity import read_config, weight_files
from model_cards.device_models import device_models
from model_cards.generator import add_card_arguments, run_command, write_card
from model_cards.results import RESULTS_FILE


CONFIGURATIONS = ("config.json", "preprocessor_config.json", "inc_config.json", "generation_config.json")

PLOTS = ("confusion_matrix", "classes", "devices", "learning_curve", "layers")

CODE = {"tfsepnet": modeling_tfsepnet, "beats": modeling_beats}
"""Packages whose modules a model folder has copies of, by the type of the model."""


def published_files(folder: Path) -> list[str]:
    """Return the files of a model folder that are pushed: those that this project writes, and no others.

    Checkpoints, pickled arguments and files of the user that lie in the folder stay where they are.

    Args:
        folder (`Path`): Model folder with its card.

    Raises:
        FileNotFoundError, InputError: If the folder is not a model folder of this project.
    """
    package = CODE.get(read_config(folder)["model_type"])  # None for models of transformers
    sources = Path(str(package.__file__)).parent.glob("*.py") if package else ()
    modules = [path.name for path in sources if path.name != "__init__.py"]
    plots = [f"{name}.{suffix}" for name in PLOTS for suffix in ("png", "svg")]
    weights = [path.name for path in weight_files(folder)]
    results = [f"results/{path.name}" for path in (folder / "results").glob("*.json")]
    index = "model.safetensors.index.json"
    # The code of the general model loads them too.
    devices = [
        f"{own.relative_to(folder).as_posix()}/{name}"
        for own in device_models(folder).values()
        for name in (*CONFIGURATIONS, *(path.name for path in weight_files(own)))
    ]
    names = ["README.md", RESULTS_FILE, *CONFIGURATIONS, *weights, index, *modules, *plots, *results, *devices]
    return [name for name in names if (folder / name).exists()]


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
    return push_files(
        folder, repo_id, published_files(folder), message="Upload the model with its card and results", private=private
    )


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

"""Push a model folder or a logits dataset to the Hub, with its card.

    scenes push outputs/s2-split25 user/tfsepnet-64-split25 --results outputs/s2-split5 --private

One commit contains the weights, the feature extractor, the code, the card, the results behind it and the plots. A
second one pins the snippets of the card to the first, so that readers run the code that was pushed. The challenge's
limits are checked and the card is written before anything is sent. A push that fails leaves everything on disk; run
the same command to finish it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from acoustic_scenes.command_line import CommandLine
from dataset_script.files import atomic_path
from dataset_script.hub import check_repo_id, push_files
from model_cards.command_line import add_card_arguments, run_command
from model_cards.device_models import device_models
from model_cards.results import RESULTS_FILE
from model_cards.snippets import pin_revision


CONFIGURATIONS = ("config.json", "preprocessor_config.json", "inc_config.json", "generation_config.json")

PLOTS = ("confusion_matrix", "classes", "devices", "comparison", "learning_curve", "layers")

CODE = {"tfsepnet": "modeling_tfsepnet", "cpmobile": "modeling_cpmobile", "beats": "modeling_beats"}
"""Packages whose modules a model folder has copies of, by the type of the model."""


def published_files(folder: Path) -> list[str]:
    """Return the files of a model folder that are pushed: those that this project writes, and no others.

    Checkpoints, pickled arguments and files of the user that lie in the folder stay where they are.

    Args:
        folder (`Path`): Model folder with its card.

    Raises:
        FileNotFoundError, InputError: If the folder is not a model folder of this project.
    """
    from model_cards.complexity import read_config, weight_files

    package = CODE.get(read_config(folder)["model_type"])  # None for models of transformers
    sources = (Path(__file__).parents[1] / package).glob("*.py") if package else ()
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
    names = ["README.md", RESULTS_FILE, *CONFIGURATIONS, *weights, index, "model.onnx", *modules, *plots, *results]
    names += devices
    return [name for name in names if (folder / name).exists()]


def push_model(folder: str | Path, repo_id: str, *, private: bool | None = None, **card_options: Any) -> str:
    """Write the card of a model folder, push the whole model in one commit, and pin the card to it in another.

    Args:
        folder (`str` or `Path`): Model folder, with its `results.json`.
        repo_id (`str`): The repository; created if it does not exist.
        private (`bool`, *optional*): Whether a new repository is private; defaults to the setting of the account.
        card_options: As for [`~model_cards.generator.write_card`].

    Returns:
        `str`: URL of the commit of the model.

    Raises:
        ConnectionError: If the Hub cannot be reached or refuses; the folder is complete and can be pushed again.
        FileNotFoundError, InputError: As [`~model_cards.generator.write_card`]; nothing has been sent then.
    """
    from model_cards.generator import write_card  # takes seconds, after which a wrong argument would be reported late

    check_repo_id(repo_id)
    folder = Path(folder)
    card = write_card(folder, repo_id=repo_id, **card_options)
    files, message = published_files(folder), "Upload the model with its card and results"
    url = push_files(folder, repo_id, files, message=message, private=private)
    pinned = pin_revision(card.content, url.rpartition("/")[2])
    with atomic_path(folder / "README.md") as part:
        part.write_text(pinned, encoding="utf-8")
    push_files(folder, repo_id, ["README.md"], message="Pin the snippets of the card to the upload", private=private)
    return url


def main(arguments: Sequence[str] | None = None) -> str:
    """Push a model or a logits dataset, and return the URL of the commit.

    Args:
        arguments (`Sequence[str]`, *optional*): Defaults to the command line.
    """
    parser = CommandLine("scenes push", __doc__)
    add_card_arguments(parser)
    parser.add_argument("repo_id", help="Repository on the Hub, as user/name.")
    parser.add_argument("--private", action="store_true", default=None, help="Make a new repository private.")
    args = vars(parser.parse(arguments))
    folder, repo_id, private = args.pop("folder"), args.pop("repo_id"), args.pop("private")
    check_repo_id(repo_id)
    if (Path(folder) / "data").is_dir():
        from dataset_script import push_logits

        return push_logits(folder, repo_id, private)
    return push_model(folder, repo_id, private=private, **args)


if __name__ == "__main__":
    run_command(main)

"""Whether a pretrained model is available, found out before any other work and without waiting for a network."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huggingface_hub import constants, get_session, try_to_load_from_cache
from huggingface_hub.errors import HTTPError


OUTPUT_FOLDERS = ("checkpoints", "outputs")
"""Where the commands of this project put models: paths that begin with these are never ids on the Hub."""

DOWNLOADS = {
    "ast-finetuned-audioset-10-10-0.4593": "MIT/ast-finetuned-audioset-10-10-0.4593",
    "wav2vec2-base": "facebook/wav2vec2-base",
}
"""Ids on the Hub of the checkpoints that the recipes start from, by the name of their folder."""

CONVERSIONS = {
    r"BEATs_iter\d\w*": "",
    r"BEATs-base-AS2M-iter\d": "jaeyeonkim99/",
    r"BEATs-AS20K": "espnet/",
    r"OpenBEATs-(Base|Large)-i\d": "shikhar7ssu/",
    r"OpenBEATS-(Base|Large)-i\d-[\w.-]+": "espnet/",
}
"""Owners on the Hub of BEATs to convert, by a pattern for the name; Microsoft's are files and have none."""

DEMO_MODELS = ("outputs/demo_encoder", "outputs/demo_tagger")
"""Models of the default job, which are trained when a command needs them."""

SECONDS_TO_ANSWER = 5.0


FOLDERS = ("data_dir", "impulse_responses")
MODELS = ("model_name_or_path", "teacher_name_or_path", "tokenizer_name_or_path")
"""Arguments whose values are existing folders, and models."""


def check_paths(arguments: Any) -> None:
    """Raise `FileNotFoundError` if a folder or the path of a model in the arguments of a command does not exist.

    Args:
        arguments: Has the arguments as attributes, and may lack some of them.
    """
    for name in MODELS:
        model = getattr(arguments, name, None)
        if model is not None and not (getattr(arguments, "dry_run", False) or is_missing_demo_model(model)):
            check_exists(model)  # a dry run needs no models
    for name in FOLDERS:
        folder = getattr(arguments, name, None)
        if folder is not None and not Path(folder).expanduser().exists():
            raise FileNotFoundError(f"The folder {folder} does not exist: correct --{name}.")


def check_exists(model_name_or_path: str) -> None:
    """Raise `FileNotFoundError` if a model is a path that does not exist."""
    if not Path(model_name_or_path).exists() and is_path(model_name_or_path):
        raise FileNotFoundError(f"{model_name_or_path} does not exist: {_remedy(model_name_or_path)}.")


def check_start(teacher: str, model_name_or_path: str, check: Callable[[str], None]) -> None:
    """Raise `FileNotFoundError` if the model that a teacher is fine-tuned from is missing and not trained by itself.

    Args:
        teacher (`str`): The recipe of the teacher.
        model_name_or_path (`str`): Model folder or Hub id.
        check (`Callable`): [`check_exists`] or [`check_available`].
    """
    if is_missing_demo_model(model_name_or_path):
        return
    try:
        check(model_name_or_path)
    except FileNotFoundError as error:
        fault = str(error).rstrip(".")
        raise FileNotFoundError(
            f"The teacher {teacher!r} is fine-tuned from a model that is missing: {fault}; or set --teachers to "
            "fine-tuned models."
        ) from None


def is_missing_demo_model(model_name_or_path: str) -> bool:
    """Return whether a model is one of the default job that is not trained yet, or not to its end."""
    return model_name_or_path in DEMO_MODELS and not (Path(model_name_or_path) / "results.json").is_file()


def check_available(model_name_or_path: str) -> None:
    """Raise an error if a model is neither a local path nor can be loaded from the Hub.

    Args:
        model_name_or_path (`str`): Model folder or Hub id.

    Raises:
        FileNotFoundError: If a path does not exist, or an id is not in the cache and the Hub does not answer.
    """
    check_exists(model_name_or_path)
    if Path(model_name_or_path).exists():
        return
    if isinstance(try_to_load_from_cache(model_name_or_path, "config.json"), str):
        return
    try:
        get_session().head(constants.ENDPOINT, timeout=SECONDS_TO_ANSWER)
    except (HTTPError, ConnectionError):  # the second one in offline mode
        raise FileNotFoundError(
            f"{model_name_or_path} is not a folder, not in the cache, and {constants.ENDPOINT} cannot be reached: "
            "download it where there is a network, or choose a model folder."
        ) from None


def is_path(model_name_or_path: str) -> bool:
    """Return whether a name is a path, which need not exist, and not an id on the Hub of the form `user/name`."""
    parts = Path(model_name_or_path).parts
    return (
        len(parts) != 2
        or parts[0] in OUTPUT_FOLDERS
        or parts[0].startswith((".", "~", "/"))
        or "\\" in model_name_or_path
        or Path(parts[0]).is_dir()
    )


def _remedy(path: str) -> str:
    """Return how to create a model folder that is missing."""
    name = Path(path).name
    for pattern, owner in CONVERSIONS.items():
        if re.fullmatch(pattern, name):
            command = "create it with python -m modeling_beats.convert_beats"
            if owner:
                return f"{command} {owner}{name} {path}"
            return (
                f"{command} {name}.pt {path} from Microsoft's file "
                "(https://github.com/microsoft/unilm/tree/master/beats), or with a BEATs model on the Hub, which the "
                "README's table of teachers lists, instead of the file"
            )
    if name in DOWNLOADS:
        return f"create it with hf download {DOWNLOADS[name]} --local-dir {path}"
    return "run the command that creates it first, or choose another model folder or Hub id"

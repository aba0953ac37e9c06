"""Whether a pretrained model is available, found out before any other work and without waiting for a network."""

import re
from pathlib import Path

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

SECONDS_TO_ANSWER = 5.0


def check_available(model_name_or_path: str) -> None:
    """Raise an error if a model is neither a local path nor can be loaded from the Hub.

    Args:
        model_name_or_path (`str`): Model folder or Hub id.

    Raises:
        FileNotFoundError: If a path does not exist, or an id is not in the cache and the Hub does not answer.
    """
    if Path(model_name_or_path).exists():
        return
    if is_path(model_name_or_path):
        raise FileNotFoundError(f"{model_name_or_path} does not exist: {_remedy(model_name_or_path)}.")
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

"""Files to the Hub in one commit, or one sentence on why not."""

import os
from collections.abc import Sequence
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi
from huggingface_hub.errors import HTTPError  # of whichever HTTP client the installed version uses
from huggingface_hub.utils import validate_repo_id

from dataset_script.errors import InputError, input_errors


def check_repo_id(repo_id: str) -> None:
    """Raise `InputError` if `repo_id` is not of the form `user/name`, which cards and loading need."""
    if repo_id.count("/") != 1:
        raise InputError(f"{repo_id!r} is no repository: give it as user/name.")
    with input_errors():
        validate_repo_id(repo_id)


def push_files(
    folder: str | os.PathLike,
    repo_id: str,
    patterns: Sequence[str],
    *,
    message: str,
    repo_type: str = "model",
    private: bool | None = None,
) -> str:
    """Push files of a folder to a repository, which is made if there is none, and return the address of the commit.

    Args:
        folder: Where the files are.
        repo_id: The repository, as `user/name`.
        patterns: Which files, as for `Path.glob`.
        message: Of the commit.
        repo_type: "model" or "dataset".
        private: Whether a new repository is private; defaults to what the account has set.

    Raises:
        ConnectionError: The Hub cannot be reached or refuses. Nothing in the folder has changed, and what was uploaded
            is not uploaded again by the next call.
        InputError: `repo_id` is none, or the Hub does not accept the card.
    """
    check_repo_id(repo_id)
    folder = Path(folder)
    paths = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    operations = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in paths]
    api = HfApi()
    try:
        api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True)
        return api.create_commit(repo_id, operations, repo_type=repo_type, commit_message=message).commit_url
    except (OSError, HTTPError) as error:
        told = getattr(error, "server_message", None) or str(error).strip() or type(error).__name__
        raise ConnectionError(
            f"The push to {repo_id} failed ({told.splitlines()[0].rstrip('.')}); everything is in {folder}, and the "
            "same command finishes it."
        ) from error
    except ValueError as error:  # of the Hub's validator, which has a line for each fault
        raise InputError(f"The Hub does not accept {folder / 'README.md'}: {' '.join(str(error).split())}") from error

"""Pushing files to the Hub in one commit, with one-line errors."""

import os
from collections.abc import Sequence
from json import JSONDecodeError
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, get_session
from huggingface_hub.errors import HTTPError  # of whichever HTTP client the installed version uses
from huggingface_hub.utils import validate_repo_id

from dataset_script.errors import InputError, input_errors


SECONDS_TO_ANSWER = 60.0
"""Longest silence of the Hub before a push fails."""


def check_repo_id(repo_id: str) -> None:
    """Raise an error if a repository id is not of the form `user/name`, which cards and loading need.

    Args:
        repo_id (`str`): The repository id.

    Raises:
        InputError: If it is not of that form, or the Hub does not allow it.
    """
    if repo_id.count("/") != 1:
        raise InputError(f"{repo_id!r} is not a repository id: use the form user/name.")
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
    """Push files of a folder to a repository in one commit; a missing repository is created.

    Args:
        folder (`str` or `os.PathLike`): Folder of the files.
        repo_id (`str`): The repository, as `user/name`.
        patterns (`Sequence[str]`): Patterns of the files, as for `Path.glob`.
        message (`str`): Commit message.
        repo_type (`str`, *optional*, defaults to `"model"`): `"model"` or `"dataset"`.
        private (`bool`, *optional*): Whether a new repository is private, defaults to the setting of the account.

    Returns:
        `str`: The URL of the commit.

    Raises:
        ConnectionError: If the Hub is unreachable or refuses. The folder is unchanged, and the next call does not
            upload again what has arrived.
        InputError: If `repo_id` is invalid, a file is a link, or the Hub rejects the dataset or model card.
    """
    check_repo_id(repo_id)
    folder = Path(folder)
    paths = sorted({path for pattern in patterns for path in folder.glob(pattern)})
    for path in paths:
        if path.is_symlink() or not path.resolve().is_relative_to(folder.resolve()):
            raise InputError(f"{path} is a link, which is not pushed: replace it by a copy of the file, or remove it.")
    operations = [CommitOperationAdd(path.relative_to(folder).as_posix(), path) for path in paths]
    api = HfApi()
    session = get_session()
    waiting_time, session.timeout = session.timeout, SECONDS_TO_ANSWER  # by default it waits forever
    try:
        api.create_repo(repo_id, repo_type=repo_type, private=private, exist_ok=True)
        return api.create_commit(repo_id, operations, repo_type=repo_type, commit_message=message).commit_url
    except (OSError, HTTPError) as error:
        reason = getattr(error, "server_message", None) or str(error).strip() or type(error).__name__
        raise _push_failed(repo_id, folder, reason.splitlines()[0].rstrip(".")) from error
    except JSONDecodeError as error:
        raise _push_failed(repo_id, folder, f"{api.endpoint} does not answer like a Hub: check the network") from error
    except ValueError as error:  # from the Hub's validator, one line per fault
        raise InputError(f"The Hub rejects {folder / 'README.md'}: {' '.join(str(error).split())}") from error
    finally:
        session.timeout = waiting_time


def _push_failed(repo_id: str, folder: Path, reason: str) -> ConnectionError:
    return ConnectionError(
        f"The push to {repo_id} failed ({reason}); everything is in {folder}, and the same command finishes it."
    )

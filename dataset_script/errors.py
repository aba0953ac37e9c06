"""Error for what a user can fix."""

from collections.abc import Iterator
from contextlib import contextmanager


class InputError(ValueError):
    """Invalid user input, such as an argument, a file, a label or a model folder.

    Its message is one sentence that names the offending thing and the fix. The commands print it without a traceback;
    any other `ValueError` is a bug and keeps its traceback.
    """


@contextmanager
def input_errors(what: str = "") -> Iterator[None]:
    """Raise every `ValueError` of the body as an [`InputError`].

    For bodies that only check what the user gave, such as the construction of a configuration.

    Args:
        what (`str`, *optional*, defaults to `""`): Prefix of the message, such as `"The recipe 's1' is invalid: "`.

    Raises:
        InputError: If the body raises `ValueError`.
    """
    try:
        yield
    except ValueError as error:
        raise InputError(f"{what}{error}") from error


__all__ = ["InputError", "input_errors"]

"""What a misspelt word was probably meant to be."""

import difflib
from collections.abc import Iterable


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return the known word that resembles another one most, as `" (did you mean 'split25'?)"`.

    Args:
        word (`str`): The word that is not known.
        known (`Iterable[str]`): The words that are.

    Returns:
        `str`: The question in parentheses, after a space; empty if no word is similar.
    """
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""

"""Text of users in Markdown: names of classes, devices and files are shown as text, whatever they contain."""

import re
from collections.abc import Iterable, Sequence


_SPECIAL = str.maketrans(
    {"&": "&amp;", "<": "&lt;", ">": "&gt;"} | {character: f"\\{character}" for character in "\\`*[]|~$"}
)


def plain(text: str) -> str:
    r"""Escape a text, so that Markdown shows it as it is, in one line.

    Args:
        text (`str`): Any text, such as the name of a class.

    Example:
        >>> plain("a|b <img src=x>")
        'a\\|b &lt;img src=x&gt;'
    """
    return " ".join(text.split()).translate(_SPECIAL)


def code(text: str) -> str:
    """Return a text as a code span of one line, which may contain backticks and stand in a table.

    Args:
        text (`str`): Any text, such as the value of an argument.
    """
    text = " ".join(text.split()).replace("|", "\\|")
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if "`" in text else ""
    return f"{fence}{space}{text}{space}{fence}" if text else ""


def code_block(text: str, language: str = "") -> str:
    """Return a text as a fenced code block, which may contain fences itself.

    Args:
        text (`str`): Any text, such as a command.
        language (`str`, *optional*, defaults to `""`): For highlighting.
    """
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table whose first column is left-aligned and whose others are right-aligned.

    Args:
        header (`Sequence[str]`): Titles of the columns.
        rows (`Iterable[Sequence[str]]`): Cells in Markdown, as many as titles in each row; text of users has to be
            escaped by [`plain`] or [`code`].
    """
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)

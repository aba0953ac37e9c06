"""How a command ends: what it made, its main result, where it is, and what can be done with it."""

import logging
import shlex
import sys
from collections.abc import Mapping
from typing import Any

from model_cards.tables import accuracy_text
from train.common.arguments import CorpusArguments


logger = logging.getLogger(__name__)


def summarize(
    made: str | None = None, result: str | None = None, table: str | None = None, next_command: str | None = None
) -> None:
    """Log the last lines of a command, on the main process.

    Args:
        made (`str`, *optional*): One sentence about the output and its place.
        result (`str`, *optional*): The main result, which stands out on a terminal.
        table (`str`, *optional*): All results.
        next_command (`str`, *optional*): A command that uses the output.
    """
    if result is not None and sys.stderr.isatty():
        result = f"\033[1m{result}\033[0m"
    use = None if next_command is None else f"Next: {next_command}"
    logger.info("\n".join(line for line in (table, result, made, use) if line is not None))


def main_result(results: Mapping[str, Any]) -> str:
    """Return the metric that scene classifiers are ranked by, in a sentence.

    Args:
        results (`Mapping`): The content of `results.json` of a scene classifier.
    """
    metrics, synthetic = results["metrics"], ", synthetic" if results["synthetic"] else ""
    return f"Macro accuracy: {accuracy_text(metrics, 'macro_accuracy')} on {metrics['clips']:,} clips{synthetic}."


def corpus_options(args: CorpusArguments) -> dict[str, str | None]:
    """Return the options that name the corpus of a command, for the next one."""
    return {"dataset": args.dataset, "data_dir": args.data_dir}


def scenes_command(name: str, *words: str, **options: Any) -> str:
    """Return a command line of `scenes`.

    Args:
        name (`str`): The sub-command.
        words (`str`): Its positional arguments.
        options: Its options; those that are None are left out.

    Example:
        >>> scenes_command("quantize", model_name_or_path="outputs/my run", data_dir=None)
        "scenes quantize --model_name_or_path 'outputs/my run'"
    """
    given = [word for option, value in options.items() if value is not None for word in (f"--{option}", str(value))]
    return shlex.join(["scenes", name, *words, *given])

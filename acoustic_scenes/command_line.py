"""The parser of commands without recipes."""

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from acoustic_scenes.suggestions import did_you_mean


class CommandLine(argparse.ArgumentParser):
    """`ArgumentParser` without abbreviations, which ends a command with one sentence.

    Args:
        name (`str`): Name of the command, such as `"scenes push"`.
        description (`str`): The docstring of its module.
    """

    def __init__(self, name: str, description: str | None):
        formatter = argparse.RawDescriptionHelpFormatter
        super().__init__(prog=name, description=description, formatter_class=formatter, allow_abbrev=False)

    def parse(self, arguments: Sequence[str] | None = None) -> argparse.Namespace:
        """Parse the arguments of a command; they default to the command line."""
        given = sys.argv[1:] if arguments is None else list(arguments)
        for argument in given:
            option = argument.split("=")[0]
            if option.startswith("--") and option not in self._option_string_actions:
                meant = did_you_mean(option, self._option_string_actions)
                self.fail(f"Unknown argument {option}{meant}: see --help.")
        return self.parse_args(given)

    def error(self, message: str) -> NoReturn:
        """End the command with argparse's message, without printing the usage."""
        self.fail(f"{message[0].upper()}{message[1:]}: see --help.")

    def fail(self, message: str) -> NoReturn:
        """End the command with a sentence."""
        self.exit(1, f"Error: {message}\n")

"""What the commands of this package share."""

import argparse
import sys
from collections.abc import Callable

from dataset_script.errors import InputError


def add_card_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of [`write_card`] to a command line."""
    parser.add_argument("folder", help="Model folder, with its results.json.")
    parser.add_argument(
        "--results", nargs="+", default=[], help="Results of the same recipe on other subsets or with other seeds."
    )
    parser.add_argument("--counterpart", help="Results of the INT8 or float16 form of a float model, or vice versa.")
    parser.add_argument("--base_model", help="Id on the Hub of the model that this one was converted or tuned from.")
    parser.add_argument("--dataset_name", help="Name of the data, unless it is TAU or the demo corpus.")
    parser.add_argument("--dataset_license", help="Its licence, as the Hub names it, such as cc-by-4.0.")
    parser.add_argument(
        "--allow_over_limit", action="store_true", help="Accept a student that exceeds a limit; its card says so."
    )


def run_command(main: Callable[[], str]) -> None:
    """Run the `main` of a command and print what it returns; an error that the user can fix ends it with one line."""
    try:
        print(main())
    except (InputError, OSError) as error:
        sys.exit(f"Error: {error}")

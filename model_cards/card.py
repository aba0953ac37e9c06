"""Write the card of a model folder from its results files.

    scenes card outputs/s2-split25 --results outputs/s2-split5 outputs/s2-split50

writes `README.md` into the model folder. The folder's own results are those of the model; `--results` adds runs of the
same recipe on other subsets or with other seeds.
"""

from collections.abc import Sequence
from pathlib import Path

from acoustic_scenes.command_line import CommandLine
from model_cards.command_line import add_card_arguments, run_command


def main(arguments: Sequence[str] | None = None) -> str:
    """Write a card and return its path.

    Args:
        arguments (`Sequence[str]`, *optional*): Defaults to the command line.
    """
    parser = CommandLine("scenes card", __doc__)
    add_card_arguments(parser)
    args = vars(parser.parse(arguments))
    # It takes seconds to import, and a wrong argument is reported before.
    from model_cards.generator import write_card

    folder = args.pop("folder")
    write_card(folder, **args)
    return str(Path(folder) / "README.md")


if __name__ == "__main__":
    run_command(main)

"""Check a corpus folder: every clip, table and rule.

    scenes check --data_dir TAU

Prints one line per check and a table of clip counts. Stops at the first fault, prints it and exits with status 1.
"""

import sys

from acoustic_scenes.command_line import CommandLine
from dataset_script.errors import InputError
from dataset_script.export import count_table
from dataset_script.tau_urban_2022 import TAUUrban2022


def main(arguments: list[str] | None = None) -> int:
    """Run the checks.

    Args:
        arguments (`list[str]`, *optional*): Command-line arguments, defaults to those of the process.

    Returns:
        `int`: The exit status, 0 if the corpus is valid.
    """
    parser = CommandLine("scenes check", __doc__)
    parser.add_argument("--data_dir", required=True, help="folder of the extracted corpus or of its archives")
    parser.add_argument(
        "--config",
        default="full",
        choices=[config.name for config in TAUUrban2022.BUILDER_CONFIGS],
        help="configuration whose clips are checked (default: full, all of meta.csv); tables are always checked",
    )
    args = parser.parse(arguments)
    builder = TAUUrban2022(config_name=args.config, data_dir=args.data_dir)
    try:
        builder.read_splits(report=lambda title, summary: print(f"ok    {title}: {summary}"))
    except (OSError, InputError) as error:
        print(f"FAIL  {error}")
        return 1
    if builder.corpus is not None:
        listed = {name: builder.corpus.meta.loc[table["filename"]] for name, table in builder.corpus.tables.items()}
        print(f"\n{count_table(listed | {'meta.csv': builder.corpus.meta})}\n")
    print("The corpus is valid.")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Check a corpus folder: `python -m dataset_script.check --data_dir D`.

Prints a line for every check and the numbers of clips. Stops at the first fault, names it, and exits with 1.
"""

import argparse
import sys

from dataset_script.errors import InputError
from dataset_script.export import count_table
from dataset_script.tau_urban_2022 import TAUUrban2022


def main(arguments: list[str] | None = None) -> int:
    """Run the checks; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m dataset_script.check", description=__doc__.splitlines()[0])
    parser.add_argument("--data_dir", required=True, help="folder with the corpus extracted, or with its archives")
    parser.add_argument(
        "--config",
        default="full",
        choices=[config.name for config in TAUUrban2022.BUILDER_CONFIGS],
        help="configuration whose clips are checked, by default all clips of meta.csv; tables are checked in any case",
    )
    args = parser.parse_args(arguments)
    builder = TAUUrban2022(config_name=args.config, data_dir=args.data_dir)
    try:
        builder.read_splits(report=lambda title, summary: print(f"ok    {title}: {summary}"))
    except (OSError, InputError) as error:
        print(f"FAIL  {error}")
        return 1
    if builder.corpus is not None:
        listed = {name: builder.corpus.meta.loc[table["filename"]] for name, table in builder.corpus.tables.items()}
        print(f"\n{count_table(listed | {'meta.csv': builder.corpus.meta})}\n")
    print("The corpus is in order.")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Write the demo corpus: `python -m dataset_script.make_demo --out D [--seed 0]`.

The demo configurations of the builder make it by themselves.
"""

import argparse

from dataset_script.demo import make_demo
from dataset_script.errors import InputError


def main(arguments: list[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m dataset_script.make_demo", description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, help="folder to write, which must be absent or empty")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives the same bytes (default: 0)")
    args = parser.parse_args(arguments)
    try:
        make_demo(args.out, args.seed)
    except (OSError, InputError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()

"""Write the demo corpus: `python -m dataset_script.make_demo --out D [--seed 0]`.

`load_scenes("demo")` makes the same corpus in the cache.
"""

import argparse

from dataset_script.demo import make_demo
from dataset_script.errors import InputError


def main(arguments: list[str] | None = None) -> None:
    """Write the demo corpus.

    Args:
        arguments (`list[str]`, *optional*): Command-line arguments, defaults to those of the process.
    """
    parser = argparse.ArgumentParser(prog="python -m dataset_script.make_demo", description=__doc__.splitlines()[0])
    parser.add_argument("--out", required=True, help="output folder, must not exist or be empty")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives identical files (default: 0)")
    args = parser.parse_args(arguments)
    try:
        make_demo(args.out, args.seed)
    except (OSError, InputError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()

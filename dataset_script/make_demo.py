"""Write the demo corpus, which is synthetic.

    scenes make-demo --out demo_corpus

`load_scenes("demo")` makes the same corpus in the cache.
"""

from acoustic_scenes.command_line import CommandLine
from dataset_script.demo import make_demo
from dataset_script.errors import InputError


def main(arguments: list[str] | None = None) -> None:
    """Write the demo corpus.

    Args:
        arguments (`list[str]`, *optional*): Command-line arguments, defaults to those of the process.
    """
    parser = CommandLine("scenes make-demo", __doc__)
    parser.add_argument("--out", required=True, help="output folder, must not exist or be empty")
    parser.add_argument("--seed", type=int, default=0, help="the same seed gives identical files (default: 0)")
    args = parser.parse(arguments)
    try:
        make_demo(args.out, args.seed)
    except (OSError, InputError) as error:
        parser.fail(str(error))
    print(f"The demo corpus is in {args.out}.\nNext: scenes distill --data_dir {args.out}")


if __name__ == "__main__":
    main()

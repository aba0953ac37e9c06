"""Name the acoustic scene of recordings.

    scenes classify rain.wav
    scenes classify *.wav --model outputs/demo --top_k 1

Without --model, the classifier of ten kinds of sound that comes with this project is used: crackling fire, crying
baby, rain and others, one of which it always names.
"""

from collections.abc import Sequence
from pathlib import Path

from acoustic_scenes.command_line import CommandLine


SHIPPED_MODEL = Path(__file__).resolve().parents[1] / "model_cards" / "esc10"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the most probable classes of each recording.

    Args:
        arguments (`Sequence[str]`, *optional*): Defaults to the command line.
    """
    parser = CommandLine("scenes classify", __doc__)
    parser.add_argument("recordings", nargs="+", help="Audio files of any length and rate: WAV, FLAC, OGG or MP3.")
    parser.add_argument("--model", default=str(SHIPPED_MODEL), help="Model folder or Hub id.")
    parser.add_argument("--top_k", type=int, default=3, help="Classes to print.")
    parser.add_argument("--trust_remote_code", action="store_true", help="Run the model's own code.")
    args = parser.parse(arguments)
    if missing := [name for name in args.recordings if not Path(name).is_file()]:
        parser.fail(f"There is no file {missing[0]}: correct its name.")
    # These take seconds to import, and a wrong argument is reported before.
    from transformers import pipeline
    from transformers.utils.logging import disable_progress_bar

    import modeling_beats  # noqa: F401 - registers the model, so that its code is not loaded from the folder
    import modeling_tfsepnet  # noqa: F401

    disable_progress_bar()
    try:
        classify = pipeline("audio-classification", model=args.model, trust_remote_code=args.trust_remote_code)
        for name in args.recordings:
            scores = classify(name, top_k=args.top_k)
            print(f"{name}: " + ", ".join(f"{entry['label']} {100 * entry['score']:.1f} %" for entry in scores))
    except (OSError, ValueError) as error:
        parser.fail(str(error))


if __name__ == "__main__":
    main()

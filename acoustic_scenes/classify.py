"""Name the acoustic scene of recordings.

    scenes classify rain.wav
    scenes classify *.wav --model outputs/demo --top_k 1
    scenes classify day.flac --timeline

Without --model, the classifier of ten kinds of sound that comes with this project is used: crackling fire, crying
baby, rain and others, one of which it always names.
"""

from collections.abc import Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

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
    parser.add_argument("--device_id", help="Recording device, for models that have one for each.")
    parser.add_argument("--timeline", action="store_true", help="Also print which class is heard from when to when.")
    parser.add_argument("--trust_remote_code", action="store_true", help="Run the model's own code.")
    args = parser.parse(arguments)
    if missing := [name for name in args.recordings if not Path(name).is_file()]:
        parser.fail(f"There is no file {missing[0]}: correct its name.")
    if args.top_k < 1:
        parser.fail(f"--top_k is {args.top_k}: choose at least 1.")
    # These take seconds to import, and a wrong argument is reported before.
    from transformers import pipeline
    from transformers.utils.logging import disable_progress_bar

    import modeling_beats  # noqa: F401 - registers the model, so that its code is not loaded from the folder
    import modeling_cpmobile  # noqa: F401
    import modeling_tfsepnet  # noqa: F401

    disable_progress_bar()
    try:
        classify = pipeline("audio-classification", model=args.model, trust_remote_code=args.trust_remote_code)
        device = {} if args.device_id is None else {"device_id": args.device_id}
        for name in args.recordings:
            found: Any = classify(name, top_k=args.top_k, return_timestamps=args.timeline, **device)
            if args.timeline and not isinstance(found, Mapping):  # the pipelines of other models ignore the argument
                parser.fail(f"{args.model} does not classify each second: use a student, or leave out --timeline.")
            scores = found["labels"] if args.timeline else found
            print(f"{name}: " + ", ".join(f"{entry['label']} {100 * entry['score']:.1f} %" for entry in scores))
            if args.timeline:
                print("\n".join(timeline(found["chunks"])))
    except (OSError, ValueError) as error:
        parser.fail(str(error))


def timeline(chunks: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return a line for each run of windows with the same most probable class.

    Args:
        chunks (`Sequence[Mapping]`): Windows with `timestamp` and `labels`, from a pipeline with `return_timestamps`.

    Returns:
        `list[str]`: Start and end, class, and the mean of the windows' scores of it. A run starts where the one before
        it ends, although the last window may start earlier.
    """
    lines, start = [], 0.0
    width = max(len(chunk["labels"][0]["label"]) for chunk in chunks)
    for label, run in groupby(chunks, key=lambda chunk: chunk["labels"][0]["label"]):
        windows = list(run)
        end = windows[-1]["timestamp"][1]
        score = sum(chunk["labels"][0]["score"] for chunk in windows) / len(windows)
        lines.append(f"  {clock(start)} - {clock(end)}  {label:{width}}  {100 * score:5.1f} %")
        start = end
    return lines


def clock(seconds: float) -> str:
    """Return seconds as hours, minutes and seconds."""
    tenths = round(10 * seconds)
    return f"{tenths // 36_000}:{tenths // 600 % 60:02}:{tenths // 10 % 60:02}.{tenths % 10}"


if __name__ == "__main__":
    main()

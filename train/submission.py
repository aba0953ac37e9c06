"""Write a submission to DCASE 2024 or 2025 Task 1.

    python train/submission.py --label Cai_XJTLU_task1_1 --data_dir EVALUATION_SET --output_dir outputs/submission \
        --models outputs/s2-split5-int8/model outputs/s2-split10-int8/model outputs/s2-split25-int8/model \
        outputs/s2-split50-int8/model outputs/s2-split100-int8/model --about about.yaml

The 2024 edition has a model for each training subset: the command predicts the evaluation set with each and writes
`<label>.zip` with the five CSV files and the metadata, and the weights. The 2025 edition has an inference package,
which runs without this project:

    python train/submission.py --edition 2025 --label Cai_XJTLU_task1_1 --data_dir TAU --output_dir outputs/package \
        --models outputs/s2-split25-int8/model --device_models a=outputs/device_a b=outputs/device_b --about about.yaml

The `results.json` of a model fills the metadata. `--write_about about.yaml` writes a file with the other values, such
as the authors, to fill in. Without them, or with a model missing, nothing is written.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import train  # noqa: F401 - first, for it checks the packages
from dataset_script import load_scenes
from dataset_script.errors import InputError
from train.common.arguments import CommandParser
from train.common.process import configure_logging, run_command
from train.deployment import edition_2024, edition_2025
from train.deployment.challenge import check_finished, read_about, write_template
from train.deployment.checks import check_writable


logger = logging.getLogger(__name__)


@dataclass
class SubmissionArguments:
    """The models and the metadata of a submission."""

    models: list[str] = field(
        metadata={"help": "Student folders with results: one for each training subset, or (2025) the general model."}
    )
    label: str = field(metadata={"help": "Label of the submission: <LastName>_<Institute>_task1_<1 to 4>."})
    output_dir: str = field(metadata={"help": "Output folder."})
    edition: Literal["2024", "2025"] = field(default="2024", metadata={"help": "Edition of the challenge."})
    data_dir: str | None = field(
        default=None, metadata={"help": "Folder of the evaluation set, or (2025) of the development set."}
    )
    device_models: list[str] = field(
        default_factory=list,
        metadata={"help": "Models of devices (2025), as <device id>=<folder>; other devices get the general model."},
    )
    about: str | None = field(default=None, metadata={"help": "YAML file with values for the metadata."})
    write_about: str | None = field(
        default=None, metadata={"help": "Write a YAML file with the values that are missing, to fill in, and stop."}
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Folder of resampled clips."})
    batch_size: int = field(default=256, metadata={"help": "Clips per forward pass."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the models' own code."})

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"batch_size is {self.batch_size}: choose at least one clip per forward pass.")
        if not re.fullmatch(r"[^\W\d_][^\W_]*_[^\W_]+_task1_[1-4]", self.label):
            raise InputError(
                f"label is {self.label!r}, but must be <LastName>_<Institute>_task1_<1 to 4>, such as "
                "Cai_XJTLU_task1_1."
            )
        if self.edition == "2024" and self.device_models:
            raise InputError("The 2024 edition has no device_models: leave them out, or add --edition 2025.")
        if self.edition == "2024" and self.data_dir is None and self.write_about is None:
            raise InputError("The evaluation set is missing: set data_dir to its folder.")


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a submission.

    Args:
        arguments (`Sequence[str]`, *optional*): Defaults to the command line.

    Raises:
        FileExistsError, FileNotFoundError, InputError: If an argument, a model, the metadata or the data is invalid or
            incomplete.
        OSError: If the output folder is not writable.
    """
    (args,) = CommandParser(SubmissionArguments).parse(arguments)
    configure_logging()
    check_writable(Path(args.output_dir), "--output_dir")
    (submit_2024 if args.edition == "2024" else submit_2025)(args)


def submit_2024(args: SubmissionArguments) -> None:
    """Write a submission to the 2024 edition; arguments and errors as for [`main`]."""
    models = edition_2024.read_models(args.models)
    content = edition_2024.metadata(args.label, models, read_about(args.about))
    if args.write_about is not None:
        finish_template(args.write_about, content)
        return
    edition_2024.check_subsets(models)
    check_finished(content)
    clips = load_scenes("evaluation", args.data_dir, cache_dir=args.cache_dir)["test"]
    edition_2024.write_submission(
        args.output_dir, args.label, models, content, clips, args.cache_dir, args.batch_size, args.trust_remote_code
    )


def submit_2025(args: SubmissionArguments) -> None:
    """Write a submission to the 2025 edition; arguments and errors as for [`main`]."""
    model, device_models = edition_2025.read_system(args.models, args.device_models)
    about = read_about(args.about)
    content = edition_2025.metadata(args.label, model, device_models, None, about)
    if args.write_about is not None:
        finish_template(args.write_about, content)
        return
    check_finished(content)
    scenes = load_scenes(model.results.dataset, args.data_dir, cache_dir=args.cache_dir)
    if device_models:
        metrics = edition_2025.evaluate_system(
            model.folder, device_models, scenes, args.cache_dir, args.batch_size, args.trust_remote_code
        )
        content = edition_2025.metadata(args.label, model, device_models, metrics, about)
    edition_2025.write_package(args.output_dir, args.label, model, device_models, content, scenes["test"])


def finish_template(path: str, content: dict[str, object]) -> None:
    """Write the file for `--write_about`, and say what to do with it."""
    write_template(path, content)
    logger.info("Wrote %s: replace each TODO in it, and pass it to --about.", path)


if __name__ == "__main__":
    run_command(main)

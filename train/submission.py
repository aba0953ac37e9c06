"""Submission files of DCASE 2024 Task 1: predictions on the evaluation set, and the system's metadata.

    python train/submission.py --label Cai_XJTLU_task1_1 --data_dir EVALUATION_SET --output_dir outputs/submission \
        --models outputs/s2-split5-int8/model outputs/s2-split10-int8/model outputs/s2-split25-int8/model \
        outputs/s2-split50-int8/model outputs/s2-split100-int8/model

writes `<label>.output.split_<percentage>.csv` for each model and `<label>.meta.yaml`. Every model comes with its
`results.json`, which tells the subset that it was trained on and fills the metadata. What no file can tell, such as
the authors, is given as a YAML file with `--about`; what is missing stays marked `TODO`.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from dataset_script import load_scenes
from dataset_script.errors import InputError
from train.common.arguments import CommandParser
from train.common.process import configure_logging, run_command
from train.deployment.challenge import read_about, read_models, write_submission


logger = logging.getLogger(__name__)


@dataclass
class SubmissionArguments:
    """Which models are submitted, and as what."""

    models: list[str] = field(metadata={"help": "Student folders, one for each training subset, with results.json."})
    label: str = field(metadata={"help": "Label of the submission: <LastName>_<Institute>_task1_<1 to 4>."})
    data_dir: str = field(metadata={"help": "Folder of the evaluation set."})
    output_dir: str = field(metadata={"help": "Where the files go."})
    about: str | None = field(default=None, metadata={"help": "YAML file whose values go into the metadata."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where resampled clips are kept."})
    batch_size: int = field(default=256, metadata={"help": "Clips of a forward pass."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Allow code that comes with a model to run."})

    def __post_init__(self):
        if not re.fullmatch(r"[^\W_]+_[^\W_]+_task1_[1-4]", self.label):
            raise InputError(
                f"label is {self.label!r}, but has to be <LastName>_<Institute>_task1_<1 to 4>, such as "
                "Cai_XJTLU_task1_1."
            )


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the files of a submission.

    Args:
        arguments (`Sequence[str]`, *optional*): Defaults to the command line.
    """
    (args,) = CommandParser(SubmissionArguments).parse(arguments)
    configure_logging()
    models = read_models(args.models)
    about = read_about(args.about)
    clips = load_scenes("evaluation", args.data_dir, cache_dir=args.cache_dir)["test"]
    write_submission(
        args.output_dir, args.label, models, about, clips, args.cache_dir, args.batch_size, args.trust_remote_code
    )


if __name__ == "__main__":
    run_command(main)

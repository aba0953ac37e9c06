"""Write the files of a submission to DCASE 2024 Task 1: predictions on the evaluation set, and metadata.

    python train/submission.py --label Cai_XJTLU_task1_1 --data_dir EVALUATION_SET --output_dir outputs/submission \
        --models outputs/s2-split5-int8/model outputs/s2-split10-int8/model outputs/s2-split25-int8/model \
        outputs/s2-split50-int8/model outputs/s2-split100-int8/model

Writes `<label>.output.split_<percentage>.csv` for each model, and `<label>.meta.yaml`. The `results.json` of a model
determines its training subset and fills the metadata. Pass other metadata, such as the authors, as a YAML file with
`--about`; missing values are marked `TODO`.
"""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import train  # noqa: F401 - first, for it checks the packages
from dataset_script.errors import InputError
from train.common.arguments import CommandParser
from train.common.process import configure_logging, run_command


logger = logging.getLogger(__name__)


@dataclass
class SubmissionArguments:
    """The models and the metadata of a submission."""

    models: list[str] = field(metadata={"help": "Student folders with results.json, one for each training subset."})
    label: str = field(metadata={"help": "Label of the submission: <LastName>_<Institute>_task1_<1 to 4>."})
    data_dir: str = field(metadata={"help": "Folder of the evaluation set."})
    output_dir: str = field(metadata={"help": "Output folder."})
    about: str | None = field(default=None, metadata={"help": "YAML file with values for the metadata."})
    cache_dir: str | None = field(default=None, metadata={"help": "Folder of resampled clips."})
    batch_size: int = field(default=256, metadata={"help": "Clips per forward pass."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the models' own code."})

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"batch_size is {self.batch_size}: choose at least one clip per forward pass.")
        if not re.fullmatch(r"[^\W_]+_[^\W_]+_task1_[1-4]", self.label):
            raise InputError(
                f"label is {self.label!r}, but must be <LastName>_<Institute>_task1_<1 to 4>, such as "
                "Cai_XJTLU_task1_1."
            )


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the files of a submission.

    Args:
        arguments (`Sequence[str]`, *optional*): Defaults to the command line.

    Raises:
        FileNotFoundError, InputError: If an argument, a model, the metadata or the evaluation set is invalid.
        OSError: If the output folder is not writable.
    """
    (args,) = CommandParser(SubmissionArguments, description=__doc__).parse(arguments)
    # These take seconds to import, and a wrong argument is reported before.
    from dataset_script import load_scenes
    from train.deployment.challenge import read_about, read_models, write_submission

    configure_logging()
    models = read_models(args.models)
    about = read_about(args.about)
    clips = load_scenes("evaluation", args.data_dir, cache_dir=args.cache_dir)["test"]
    write_submission(
        args.output_dir, args.label, models, about, clips, args.cache_dir, args.batch_size, args.trust_remote_code
    )


if __name__ == "__main__":
    run_command(main)

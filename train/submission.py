"""Write a submission to DCASE 2024 or 2025 Task 1.

    scenes submit --label Cai_XJTLU_task1_1 --data_dir EVALUATION_SET --output_dir outputs/submission \
        --models outputs/s2-split5-int8/model outputs/s2-split10-int8/model outputs/s2-split25-int8/model \
        outputs/s2-split50-int8/model outputs/s2-split100-int8/model --about about.yaml

The 2024 edition has a model for each training subset: the command predicts the evaluation set with each and writes
`<label>.zip` with the five CSV files and the metadata, and the weights. The 2025 edition has an inference package,
which runs without this project:

    scenes submit --edition 2025 --label Cai_XJTLU_task1_1 --data_dir TAU --output_dir outputs/package \
        --models outputs/s2-split25-int8/model --device_models a=outputs/device_a b=outputs/device_b --about about.yaml

The `results.json` of a model fills the metadata. `--write_about about.yaml` writes a file with the other values, such
as the authors, to fill in. Without them, or with a model missing, nothing is written.
"""

from collections.abc import Sequence
from pathlib import Path

import train  # noqa: F401 - first, for it checks the packages
from train.common.arguments import CommandParser
from train.common.process import configure_logging, run_command
from train.deployment.arguments import SubmissionArguments


def main(arguments: Sequence[str] | None = None) -> None:
    """Write a submission.

    Args:
        arguments (`Sequence[str]`, *optional*): Defaults to the command line.

    Raises:
        FileExistsError, FileNotFoundError, InputError: If an argument, a model, the metadata or the data is invalid or
            incomplete.
        OSError: If the output folder is not writable.
    """
    (args,) = CommandParser(SubmissionArguments, description=__doc__).parse(arguments)
    # These take seconds to import, and a wrong argument is reported before.
    from train.deployment.checks import check_writable
    from train.deployment.submission import submit_2024, submit_2025

    configure_logging()
    check_writable(Path(args.output_dir), "--output_dir")
    (submit_2024 if args.edition == "2024" else submit_2025)(args)


if __name__ == "__main__":
    run_command(main)

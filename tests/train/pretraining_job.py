"""Runs of the pre-training script in processes of their own: `python -m tests.train.pretraining_job ARGUMENTS …`.

Each of the arguments is a command line of the script as a JSON list; the runs follow one another.
"""

import json
import sys

from train.pretrain_teacher import main as pretrain_teacher


if __name__ == "__main__":
    for arguments in sys.argv[1:]:
        pretrain_teacher(json.loads(arguments))

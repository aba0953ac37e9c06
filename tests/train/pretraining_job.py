"""Run the pre-training command in a process of its own: `python -m tests.train.pretraining_job ARGUMENTS …`.

Each argument is a command line as a JSON list; the runs follow one another.
"""

import json
import sys

from train.pretrain_teacher import main as pretrain_teacher


if __name__ == "__main__":
    for arguments in sys.argv[1:]:
        pretrain_teacher(json.loads(arguments))

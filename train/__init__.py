"""Training, distillation and evaluation: one command for each stage, and the library of the commands."""

import sys
from pathlib import Path

import dataset_script  # checks its packages
from acoustic_scenes.packages import COMMANDS, check_packages, quieten_libraries


quieten_libraries()
check_packages(
    {
        "accelerate": "accelerate",
        "evaluate": "evaluate",
        "matplotlib": "matplotlib",
        "scipy": "scipy",
        "sklearn": "scikit-learn",
        "yaml": "pyyaml",
    }
)
_COMMAND = Path(sys.argv[0]).resolve()
if _COMMAND.parent.name == "train" and _COMMAND.parent != COMMANDS and (_COMMAND.parent / "recipes").is_dir():
    sys.exit(
        f"Error: {_COMMAND} would run the code in {COMMANDS}, which is the one installed: run `pip install -e .` in "
        f"{_COMMAND.parents[1]}, or set PYTHONPATH to it."
    )

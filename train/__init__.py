"""Training, distillation and evaluation: one command for each stage, and the library of the commands."""

import importlib.util
import logging
import sys
from pathlib import Path


# transformers imports torchao if it is installed, which warns about kernels for absent hardware.
logging.getLogger("torchao").setLevel(logging.ERROR)
logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)

_REQUIRED = {
    "accelerate": "accelerate",
    "datasets": "datasets",
    "evaluate": "evaluate",
    "matplotlib": "matplotlib",
    "scipy": "scipy",
    "sklearn": "scikit-learn",
    "soundfile": "soundfile",
    "soxr": "soxr",
    "yaml": "pyyaml",
}
_HERE = Path(__file__).resolve().parent
_COMMAND = Path(sys.argv[0]).resolve()

if _missing := [package for name, package in _REQUIRED.items() if importlib.util.find_spec(name) is None]:
    _message = f"The package {_missing[0]} is missing: pip install -e '.[train]'"
    if _COMMAND.parent == _HERE:
        sys.exit(f"Error: {_message}")  # without the traceback of an import
    raise ImportError(_message)
if _COMMAND.parent.name == "train" and _COMMAND.parent != _HERE and (_COMMAND.parent / "recipes").is_dir():
    sys.exit(
        f"Error: {_COMMAND} would run the code in {_HERE}, which is the one installed: run `pip install -e .` in "
        f"{_COMMAND.parents[1]}, or set PYTHONPATH to it."
    )

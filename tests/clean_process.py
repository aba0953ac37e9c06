"""Running Python where this project is not importable, as on a user's machine that has only a model folder."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any


PREAMBLE = """
import importlib.util, json, sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in str(finder)]
for name in ("modeling_tfsepnet", "modeling_cpmobile", "modeling_beats", "train", "dataset_script"):
    assert importlib.util.find_spec(name) is None, f"{name} must not be importable here"
for name in BLOCKED:
    sys.modules[name] = None
"""


def run_in_clean_process(code: str, folder: Path, blocked: tuple[str, ...] = (), **environment: str) -> Any:
    """Run code in `folder`, without the project, and return what it passes to `report(...)`, as JSON.

    Args:
        code: Python source; it may call `report(value)` once.
        folder: Working directory, also for transformers' copy of remote code.
        blocked: Modules that cannot be imported there.
        **environment: Environment variables to set.
    """
    report = folder / "report.json"
    report.unlink(missing_ok=True)
    source = f"BLOCKED = {blocked!r}\nREPORT = {str(report)!r}\n{PREAMBLE}"
    source += "def report(value):\n    open(REPORT, 'w').write(json.dumps(value))\n\n" + code
    # An empty search path for programs: reading audio must not depend on ffmpeg.
    offline = {"HF_MODULES_CACHE": str(folder / "modules"), "HF_HUB_OFFLINE": "1", "PATH": ""}
    variables = os.environ | offline | environment
    variables.pop("PYTHONPATH", None)
    result = subprocess.run(
        [sys.executable, "-c", source], cwd=folder, env=variables, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr
    return json.loads(report.read_text()) if report.exists() else None

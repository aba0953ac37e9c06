import os
from pathlib import Path

import pytest


# Tests never reach for the network: a missing file must fail, not download.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Small networks lose by threads, the cores belong to the tests side by side, and sums come out the same everywhere.
os.environ["OMP_NUM_THREADS"] = "1"

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder beside the checkout with golden tensors of the reference implementations and real recordings."""
    if not SHARED.is_dir():
        pytest.skip("needs the reference data (folder 'shared' beside the checkout), which is not distributed")
    return SHARED

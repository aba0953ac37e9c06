from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of excerpts of the reference data, small enough to be distributed."""
    return Path(__file__).resolve().parents[1] / "golden" / "tfsepnet"


@pytest.fixture(scope="session")
def reference(shared) -> Path:
    """Folder of the reference data itself, which is not distributed."""
    return shared / "reference" / "tfsepnet_golden"

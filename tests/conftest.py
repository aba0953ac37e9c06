import logging
import os
from pathlib import Path

import pytest


# Tests never reach for the network: a missing file must fail, not download.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Threads slow small networks down, and the cores are for tests that run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")

SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder beside the checkout with golden tensors of the reference implementations and real recordings."""
    if not SHARED.is_dir():
        pytest.skip("needs the reference data (folder 'shared' beside the checkout), which is not distributed")
    return SHARED


@pytest.fixture(scope="session")
def demo_corpus(tmp_path_factory) -> Path:
    """Folder of the demo corpus, which all processes share; tests must not change it."""
    from dataset_script import demo  # not needed by the tests of models

    folder = tmp_path_factory.getbasetemp()
    return demo.demo_corpus(folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder)


@pytest.fixture(scope="session")
def demo_cache(tmp_path_factory) -> Path:
    """Cache folder of the demo corpus."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def fresh_log_levels() -> None:
    """Undo what commands of earlier tests set, so that a test sees the same messages in any order."""
    for name in ("train", "dataset_script", "model_cards", "__main__"):
        logging.getLogger(name).setLevel(logging.NOTSET)

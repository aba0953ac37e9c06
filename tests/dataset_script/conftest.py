import gzip
import os
import shutil
import subprocess
import sys
from pathlib import Path

import datasets
import pytest

from dataset_script import load_scenes


datasets.disable_progress_bars()


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def demo_root(cache) -> Path:
    """The demo corpus as the builder makes it by itself. Not to be changed: link_corpus gives a copy."""
    scenes = load_scenes("demo", cache_dir=cache)
    return Path(scenes["train"][0]["audio"]["path"]).parents[1]


@pytest.fixture(scope="session")
def recorded_root(shared, tmp_path_factory) -> Path:
    """Real recordings in the layout of TAU: 692 clips for training and 347 for testing."""
    root = tmp_path_factory.mktemp("recorded") / "corpus"
    tool = [sys.executable, shared / "tools" / "make_tau_layout.py", "--out", root]
    sources = ["--esc10", shared / "real/esc10", "--impulse-responses", shared / "real/impulse_responses"]
    subprocess.run([*tool, *sources], check=True, capture_output=True)
    return root


@pytest.fixture(scope="session")
def tau_tables(shared, tmp_path_factory) -> Path:
    """A folder with the official tables and no audio."""
    root = tmp_path_factory.mktemp("tau")
    files = {
        "meta": "meta.csv",
        "fold1_train_2022": "evaluation_setup/fold1_train.csv",
        "test": "split_setup/test.csv",
    }
    files |= {f"split{percent}": f"split_setup/split{percent}.csv" for percent in (5, 10, 25, 50)}
    for source, target in files.items():
        (root / target).parent.mkdir(exist_ok=True)
        compressed = (shared / "reference/tau2022_splits" / f"{source}.csv.gz").read_bytes()
        (root / target).write_bytes(gzip.decompress(compressed))
    return root


def link_corpus(source: Path, target: Path) -> Path:
    """A copy of a corpus whose clips are links: replace them, never write into them."""
    link_audio = lambda path, copy: os.link(path, copy) if path.endswith(".wav") else shutil.copy(path, copy)  # noqa: E731
    shutil.copytree(source, target, copy_function=link_audio)
    return target


@pytest.fixture
def corpus(demo_root, tmp_path) -> Path:
    return link_corpus(demo_root, tmp_path / "corpus")

import shutil
from pathlib import Path

import pytest

from modeling_tfsepnet import TFSepNetConfig, TFSepNetForAudioClassification
from tests.model_cards.helpers import make_student, save_results


@pytest.fixture(scope="session")
def tiny():
    """The network of `student`, for results of it."""
    return TFSepNetForAudioClassification(TFSepNetConfig(base_channels=8, num_mel_bins=64))


@pytest.fixture(scope="session")
def finished_student(tmp_path_factory) -> Path:
    return make_student(tmp_path_factory.mktemp("models") / "student")


@pytest.fixture
def student(finished_student, tmp_path) -> Path:
    """A finished run on demo10 of the recipe s2."""
    return shutil.copytree(finished_student, tmp_path / "student")


@pytest.fixture
def smaller(tiny, tmp_path) -> Path:
    """Results of the same recipe on demo5."""
    return save_results(tmp_path / "smaller", tiny, "demo5", seed=1)

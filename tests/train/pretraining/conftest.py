import datasets
import pytest
import torch

from tests.train.pretraining.helpers import (
    TINY,
    pretraining_command,
    tagging_command,
    tokenizer_options,
    write_tagged_corpus,
)
from train.common.models import new_teacher
from train.finetune_audioset import main as finetune_audioset
from train.pretrain_teacher import main as pretrain_teacher


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """`datasets` waits five seconds at the end of every pass over a shuffled stream."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)


@pytest.fixture(scope="session")
def first_iteration(audio, tmp_path_factory):
    """Folder and results of a model that learned the codes of a random projection."""
    folder = tmp_path_factory.mktemp("first") / "run"
    return folder, pretrain_teacher(pretraining_command(folder, audio))


@pytest.fixture(scope="session")
def tokenizer(audio, first_iteration, tmp_path_factory):
    """Folder and results of a tokenizer that learned from that model."""
    folder = tmp_path_factory.mktemp("tokenizer") / "run"
    options = (*tokenizer_options(first_iteration[0]), "max_steps", "4")
    return folder, pretrain_teacher(pretraining_command(folder, audio, *options))


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """Folder with a corpus of [`write_tagged_corpus`]."""
    folder = tmp_path_factory.mktemp("tagged")
    write_tagged_corpus(folder, 160)
    return folder


@pytest.fixture(scope="session")
def start(tmp_path_factory):
    """Folder of an encoder to start fine-tuning from, as the recipes expect."""
    folder = tmp_path_factory.mktemp("start")
    torch.manual_seed(0)
    model, extractor = new_teacher(["x", "y"], config_overrides=TINY)
    extractor.feature_size = 32
    model.beats.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def short_run(corpus, start, tmp_path_factory):
    """Folder and results of a few steps of fine-tuning."""
    folder = tmp_path_factory.mktemp("short") / "run"
    return folder, finetune_audioset(tagging_command(corpus, folder, "model_name_or_path", start))

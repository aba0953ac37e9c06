import datasets
import numpy as np
import pytest
import soundfile

from tests.train.pretraining.helpers import RECORDINGS


@pytest.fixture(scope="session")
def audio(tmp_path_factory):
    """Folder of recordings of several formats, rates, lengths and channels."""
    folder = tmp_path_factory.mktemp("audio")
    (folder / "b").mkdir()
    for index, (name, (rate, samples)) in enumerate(RECORDINGS.items()):
        noise = np.random.default_rng(index).normal(size=(samples, 2 if name.endswith("flac") else 1))
        soundfile.write(folder / name, np.clip(noise / 10, -1, 1), rate)
    (folder / "notes.txt").write_text("no audio")
    return folder


@pytest.fixture(scope="session")
def parquet(audio, tmp_path_factory):
    """Folder with a table of the same recordings."""
    path = tmp_path_factory.mktemp("table") / "train.parquet"
    content = [{"bytes": (audio / name).read_bytes(), "path": name} for name in RECORDINGS]
    table = datasets.Dataset.from_dict({"audio": content, "caption": list(RECORDINGS)})
    table.cast_column("audio", datasets.Audio(decode=False)).to_parquet(str(path))
    return path.parent


@pytest.fixture
def stream(parquet):
    """The table as a stream of encoded audio."""
    source = datasets.load_dataset("parquet", data_files=str(parquet / "train.parquet"), split="train", streaming=True)
    return source.cast_column("audio", datasets.Audio(decode=False))

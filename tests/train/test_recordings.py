"""Training on recordings of one's own."""

import json
import logging

import numpy as np
import pytest
import soundfile

from train.distill import main as distill


@pytest.fixture
def recordings(tmp_path):
    """Folder with twenty recordings of a second of each of two classes for training, and four for testing."""
    for split, count in (("train", 20), ("test", 4)):
        for label, frequency in (("hum", 100), ("whistle", 3000)):
            folder = tmp_path / "recordings" / split / label
            folder.mkdir(parents=True)
            for index in range(count):
                tone = np.sin(2 * np.pi * frequency * (1 + index / 50) * np.arange(8000) / 8000)
                soundfile.write(folder / f"{index}.wav", tone / 4, 8000)
    return tmp_path / "recordings"


def test_a_tenth_of_the_recordings_measures_each_epoch(recordings, tmp_path, caplog, capsys):
    """By default; `--validation_fraction 0` trains on all clips."""
    network = ["--config_overrides", "base_channels=8,num_mel_bins=64", "--batch_size", "12"]
    command = ["--recipe", "vanilla", "--impulse_response_p", "0", "--dataset", str(recordings), *network]
    command += ["--cache_dir", str(tmp_path / "cache"), "--use_cpu", "True", "--report_to", "none"]
    command += ["--disable_tqdm", "True", "--num_train_epochs", "1", "--first_cycle", "1"]
    with caplog.at_level(logging.INFO, "train"):
        held_out = distill([*command, "--output_dir", str(tmp_path / "held_out")])
    assert "4 of 40 training clips are held out, as whole recordings" in caplog.text
    assert "held-out macro accuracy" in capsys.readouterr().out
    table = (tmp_path / "held_out" / "results.md").read_text()
    assert "| class hum |" in table and "device" not in table and "city" not in table, "neither is known"
    assert {path.stem for path in (tmp_path / "held_out").glob("*.svg")} == {
        "classes",
        "confusion_matrix",
        "learning_curve",
    }
    assert (held_out["selection"], held_out["training_clips"]) == ("best epoch on held-out training locations", 36)
    assert held_out["arguments"]["validation_fraction"] == 0.1, "the identity of the run"
    again = distill([*command, "--output_dir", str(tmp_path / "held_out")])
    assert again["metrics"] == held_out["metrics"], "the same run, which is finished"

    everything = distill([*command, "--validation_fraction", "0", "--output_dir", str(tmp_path / "all")])
    assert (everything["selection"], everything["training_clips"]) == ("last epoch", 40)
    assert json.loads((tmp_path / "all" / "run.json").read_text())["validation_fraction"] == 0

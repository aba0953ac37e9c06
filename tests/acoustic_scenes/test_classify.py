"""Classification of files from the command line."""

import numpy as np
import pytest
import soundfile

from acoustic_scenes import classify
from acoustic_scenes.command_line import CommandLine
from modeling_beats import BeatsFeatureExtractor, BeatsForAudioClassification
from modeling_cpmobile import CPMobileConfig, CPMobileFeatureExtractor, CPMobileForAudioClassification
from tests.modeling_beats.helpers import tiny_config


@pytest.fixture
def recording(tmp_path):
    noise = np.random.default_rng(0).normal(size=(44_100, 2)) / 10
    soundfile.write(tmp_path / "noise.wav", noise, 44_100)
    return tmp_path / "noise.wav"


def test_the_shipped_model_names_a_sound(recording, capsys):
    """White noise of any rate and number of channels sounds like rain."""
    classify.main([str(recording), "--top_k", "2"])
    assert capsys.readouterr().out.startswith(f"{recording}: rain ")


def test_timeline(tmp_path, capsys):
    """Noise sounds like rain; a siren does not, and the last window, which is shifted back, is rain again."""
    noise = np.random.default_rng(0).normal(size=32_000 * 4) / 10
    phase = np.cumsum(600 + 400 * np.sin(2 * np.pi * np.arange(32_000 * 3) / 32_000)) / 32_000
    audio = np.concatenate([noise, np.sin(2 * np.pi * phase) / 2, noise[: 32_000 * 2 + 8_000]])
    soundfile.write(tmp_path / "street.wav", audio, 32_000)
    classify.main([str(tmp_path / "street.wav"), "--timeline", "--top_k", "1"])
    first, *lines = capsys.readouterr().out.splitlines()
    assert first.startswith(f"{tmp_path / 'street.wav'}: rain ")
    assert lines[0].startswith("  0:00:00.0 - 0:00:04.0  rain  ")
    assert lines[-1].startswith("  0:00:07.0 - 0:00:09.2  rain  ")
    assert len(lines) > 2 and not any("rain" in line for line in lines[1:-1])


def test_timeline_merges_windows():
    def chunk(start, end, label, score):
        return {"timestamp": (start, end), "labels": [{"label": label, "score": score}, {"label": "x", "score": 0}]}

    chunks = [chunk(second, second + 1, "sea_waves", 0.5 + 0.1 * (second % 2)) for second in range(3600)]
    chunks += [chunk(3600, 3601, "rain", 1.0), chunk(3600.46, 3601.46, "sea_waves", 0.25)]
    assert classify.timeline(chunks) == [
        "  0:00:00.0 - 1:00:00.0  sea_waves   55.0 %",
        "  1:00:00.0 - 1:00:01.0  rain       100.0 %",
        "  1:00:01.0 - 1:00:01.5  sea_waves   25.0 %",
    ]


def test_timeline_needs_a_student(recording, tmp_path, capsys):
    teacher = str(tmp_path / "teacher")
    BeatsForAudioClassification(tiny_config()).save_pretrained(teacher)
    BeatsFeatureExtractor(feature_size=32).save_pretrained(teacher)
    with pytest.raises(SystemExit):
        classify.main([str(recording), "--timeline", "--model", teacher])
    message = f"Error: {teacher} does not classify each second: use a student, or leave out --timeline.\n"
    assert capsys.readouterr() == ("", message)
    classify.main([str(recording), "--model", teacher])


def test_cpmobile_needs_no_remote_code(recording, tmp_path, capsys):
    CPMobileForAudioClassification(CPMobileConfig(base_channels=8)).save_pretrained(tmp_path / "model")
    CPMobileFeatureExtractor().save_pretrained(tmp_path / "model")
    classify.main([str(recording), "--timeline", "--model", str(tmp_path / "model")])
    assert "  0:00:00.0 - 0:00:01.0  " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.wav"], "Error: There is no file nowhere.wav: correct its name.\n"),
        (["a.wav", "--top"], "Error: Unknown argument --top (did you mean '--top_k'?): see --help.\n"),
        ([__file__, "--top_k", "0"], "Error: --top_k is 0: choose at least 1.\n"),
        ([], "Error: The following arguments are required: recordings: see --help.\n"),
    ],
)
def test_wrong_arguments_end_with_one_sentence(capsys, arguments, message):
    with pytest.raises(SystemExit):
        classify.main(arguments)
    assert capsys.readouterr().err == message


def test_something_that_is_not_audio(tmp_path, capsys):
    (tmp_path / "notes.wav").write_text("not audio")
    with pytest.raises(SystemExit):
        classify.main([str(tmp_path / "notes.wav")])
    assert "notes.wav" in capsys.readouterr().err


def test_options_are_not_abbreviated(capsys):
    parser = CommandLine("scenes test", "A test.")
    parser.add_argument("--folder")
    assert parser.parse(["--folder=a"]).folder == "a"
    with pytest.raises(SystemExit):
        parser.parse(["--fold", "a"])
    assert "did you mean '--folder'?" in capsys.readouterr().err

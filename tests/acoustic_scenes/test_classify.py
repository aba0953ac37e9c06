"""Classification of files from the command line."""

import numpy as np
import pytest
import soundfile

from acoustic_scenes import classify
from acoustic_scenes.command_line import CommandLine


@pytest.fixture
def recording(tmp_path):
    noise = np.random.default_rng(0).normal(size=(44_100, 2)) / 10
    soundfile.write(tmp_path / "noise.wav", noise, 44_100)
    return tmp_path / "noise.wav"


def test_the_shipped_model_names_a_sound(recording, capsys):
    """White noise of any rate and number of channels sounds like rain."""
    classify.main([str(recording), "--top_k", "2"])
    assert capsys.readouterr().out.startswith(f"{recording}: rain ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere.wav"], "Error: There is no file nowhere.wav: correct its name.\n"),
        (["a.wav", "--top"], "Error: Unknown argument --top (did you mean '--top_k'?): see --help.\n"),
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

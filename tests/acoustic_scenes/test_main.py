"""The command `scenes`: it finds the commands by name, and helps with misspelt ones."""

import sys

import pytest

from acoustic_scenes import __main__ as scenes
from acoustic_scenes import __version__


@pytest.fixture
def started(monkeypatch):
    """The modules that would have been run, each with the command line that it would have seen."""
    calls = []
    monkeypatch.setattr(sys, "argv", ["scenes"])
    monkeypatch.setattr("runpy.run_module", lambda name, **settings: calls.append((name, sys.argv[1:])))
    return calls


def test_commands_are_run_by_name(started):
    scenes.main(["distill", "--recipe", "s1"])
    scenes.main(["push", "outputs/demo", "user/name"])
    assert started == [("train.distill", ["--recipe", "s1"]), ("model_cards.push", ["outputs/demo", "user/name"])]


def test_a_misspelt_command_is_answered_by_a_suggestion(started):
    with pytest.raises(SystemExit, match=r"no command 'distil' \(did you mean 'distill'\?\): see scenes --help"):
        scenes.main(["distil"])
    assert not started


class TestConverters:
    """Commands of packages that import torch, whose arguments are checked before."""

    @pytest.mark.parametrize("command", ["convert", "convert-student", "convert-baseline"])
    def test_help(self, started, capsys, command):
        with pytest.raises(SystemExit) as end:
            scenes.main([command, "--help"])
        shown = capsys.readouterr().out
        assert not end.value.code and not started
        assert f"usage: scenes {command} " in shown and f"    scenes {command} " in shown
        assert "Folder to save the model in." in shown

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["convert", "a.pt", "b", "--fbank_men", "3"], "--fbank_men (did you mean '--fbank_mean'?): see --help"),
            (["convert", "a.pt"], "The following arguments are required: output: see --help"),
            (["convert", "a.pt", "{file}"], "{file} is not a folder: name another output folder"),
            (["convert-student", "nowhere.ckpt", "b"], "There is no checkpoint file nowhere.ckpt"),
            (["convert-student", "{file}", "{file}"], "{file} is not a folder: name another output folder"),
            (["convert-baseline", "nowhere.ckpt", "b"], "There is no checkpoint file nowhere.ckpt"),
        ],
    )
    def test_refusals(self, started, capsys, tmp_path, arguments, message):
        (tmp_path / "file").write_text("")
        with pytest.raises(SystemExit):
            scenes.main([argument.format(file=tmp_path / "file") for argument in arguments])
        error = capsys.readouterr().err
        assert error.startswith("Error: ") and error.count("\n") == 1
        assert message.format(file=tmp_path / "file") in error
        assert not started

    def test_right_arguments_are_passed_on(self, started):
        arguments = ["espnet/BEATs-AS20K", "outputs/new", "--revision", "main"]
        scenes.main(["convert", *arguments])
        assert started == [("modeling_beats.convert_beats", arguments)]


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_lists_every_command(capsys, arguments):
    scenes.main(arguments)
    shown = capsys.readouterr().out
    for name, module in scenes.COMMANDS.items():
        assert f"  {name} " in shown and len(scenes.summary(module)) > 10
    assert len(shown.splitlines()) < 40


def test_version(capsys):
    scenes.main(["--version"])
    assert capsys.readouterr().out == f"acoustic-scenes {__version__}\n"


@pytest.mark.parametrize("module", scenes.COMMANDS.values())
def test_every_command_runs_as_a_module(module):
    source = scenes.ROOT.joinpath(*module.split(".")).with_suffix(".py").read_text()
    assert 'if __name__ == "__main__":' in source

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

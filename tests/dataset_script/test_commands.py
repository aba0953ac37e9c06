"""The command lines: what a user can fix is printed in one sentence, and a bug keeps its traceback."""

import pytest

from dataset_script import check, make_demo
from dataset_script.errors import InputError
from dataset_script.hub import check_repo_id


ARGUMENTS = {check: ["--data_dir", "corpus"], make_demo: ["--out", "corpus"]}


def fail_with(monkeypatch, command, error):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(check.TAUUrban2022, "read_splits", fail)
    monkeypatch.setattr(make_demo, "make_demo", fail)
    return command.main(ARGUMENTS[command])


@pytest.mark.parametrize("error", [InputError("fix the corpus"), OSError("the disk is full")], ids=["input", "disk"])
def test_check_prints_what_a_user_can_fix(monkeypatch, capsys, error):
    assert fail_with(monkeypatch, check, error) == 1
    assert capsys.readouterr().out == f"FAIL  {error}\n"


@pytest.mark.parametrize("error", [InputError("fix the seed"), OSError("the disk is full")], ids=["input", "disk"])
def test_make_demo_prints_what_a_user_can_fix(monkeypatch, capsys, error):
    with pytest.raises(SystemExit):
        fail_with(monkeypatch, make_demo, error)
    assert capsys.readouterr().err.endswith(f"Error: {error}\n")


@pytest.mark.parametrize("command", [check, make_demo])
def test_bugs_keep_their_traceback(monkeypatch, command):
    with pytest.raises(ValueError, match="a bug"):
        fail_with(monkeypatch, command, ValueError("a bug"))


@pytest.mark.parametrize("repo_id", ["name", "user/name/more", "user/..", "user/na me"])
def test_repository_names_are_checked(repo_id):
    with pytest.raises(InputError):
        check_repo_id(repo_id)

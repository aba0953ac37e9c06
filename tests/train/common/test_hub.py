"""`--push_to_hub`: once, at the end, with the card."""

import pytest

from train.classification.training_arguments import SceneTrainingArguments
from train.common import hub
from train.distill import main as distill
from train.finetune_teacher import main as finetune_teacher
from train.pretrain_teacher import main as pretrain_teacher


@pytest.fixture
def pushes(monkeypatch):
    calls = []
    monkeypatch.setattr(
        hub, "push_model", lambda folder, repo, private: calls.append((folder, repo, private)) or "url"
    )
    return calls


def arguments(tmp_path, **changes):
    return SceneTrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", **changes)


def test_a_run_is_pushed_once_and_not_by_the_trainer(tmp_path, pushes):
    args = arguments(tmp_path, push_to_hub=True, hub_model_id="user/scenes", hub_private_repo=True)
    push = hub.take_over_push(args)
    assert args.push_to_hub is False and pushes == []
    push()
    assert pushes == [(str(tmp_path), "user/scenes", True)]


def test_nothing_is_pushed_unasked(tmp_path, pushes):
    hub.take_over_push(arguments(tmp_path, hub_model_id="user/scenes"))()
    assert pushes == []


def test_the_repository_is_named_first(tmp_path):
    with pytest.raises(ValueError, match="set --hub_model_id user/name"):
        hub.take_over_push(arguments(tmp_path, push_to_hub=True))


@pytest.mark.parametrize("script", [distill, finetune_teacher, pretrain_teacher])
def test_every_training_script_asks_for_the_repository_first(script, tmp_path):
    with pytest.raises(ValueError, match="set --hub_model_id user/name"):
        script(["--push_to_hub", "True", "--use_cpu", "True", "--output_dir", str(tmp_path / "out")])
    assert not (tmp_path / "out").exists()

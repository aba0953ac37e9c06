"""Pushing to a Hub on this machine, and loading from it where this code is not installed."""

import json
import socket
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
from huggingface_hub import HfApi
from huggingface_hub.errors import HTTPError
from transformers import pipeline

from dataset_script import write_logits
from model_cards import push
from model_cards.generator import write_card
from tests.clean_process import run_in_clean_process
from tests.hub_server import Handler, hub_environment, hub_server


LOADED = """
from transformers import pipeline
classifier = pipeline("audio-classification", model="user/scenes", revision=REVISION, trust_remote_code=True)
report({"scores": classifier(WAV, top_k=None), "module": type(classifier.model).__module__})
"""


def push_command(hub, tmp_path, *arguments):
    command = [sys.executable, "-m", "model_cards.push", *map(str, arguments)]
    environment = hub_environment(hub, tmp_path / "home")
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def content(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_interrupted_push_and_back(student, smaller, tmp_path, monkeypatch):
    """The Hub fails once; the same command finishes the push; the model comes back in a clean process."""
    commits = []

    def commit(handler, **where):
        commits.append(where)
        if len(commits) == 1:
            handler.answer({"error": "out of order"}, 500)
        else:
            original(handler, **where)

    original = Handler.commit
    monkeypatch.setattr(Handler, "commit", commit)
    wav = tmp_path / "clip.wav"
    soundfile.write(wav, np.random.default_rng(0).normal(scale=0.1, size=44_100), 44_100, subtype="PCM_24")
    with hub_server() as hub:
        failed = push_command(hub, tmp_path, student, "user/scenes", "--results", smaller)
        assert failed.returncode == 1
        assert "Error: The push to user/scenes failed" in failed.stderr
        assert failed.stderr.strip().splitlines()[-1].endswith("and the same command finishes it.")
        before = content(student)
        assert "README.md" in before and hub.files("models", "user/scenes") == {}

        pushed = push_command(hub, tmp_path, student, "user/scenes", "--results", smaller)
        assert pushed.returncode == 0, pushed.stderr
        _, uploaded, pinned = hub.repositories["models", "user/scenes"].commits  # the first one is empty
        assert pushed.stdout.strip().endswith(f"/commit/{uploaded}")
        files = hub.files("models", "user/scenes")
        assert hub.repositories["models", "user/scenes"].head == pinned
        assert set(files) == {
            "README.md",
            "config.json",
            "model.safetensors",
            "preprocessor_config.json",
            "configuration_tfsepnet.py",
            "feature_extraction_tfsepnet.py",
            "modeling_tfsepnet.py",
            "pipeline_tfsepnet.py",
            "inference_tfsepnet.py",
            "training_tfsepnet.py",
            "quantization_tfsepnet.py",
            *(f"{name}.{ending}" for name in ("classes", "confusion_matrix", "devices") for ending in ("png", "svg")),
            "results.json",
            "results/demo5-0.json",
        }
        card = before.pop("README.md").replace(b'revision="main"', f'revision="{uploaded}"'.encode())
        assert card.count(uploaded.encode()) == 3  # the pipeline, the feature extractor and the network
        before["README.md"] = card
        assert content(student) == before
        assert all(files[name] == before[name] for name in files)
        assert any("validate-yaml" in request for request in hub.requests)
        uploads = [request for request in hub.requests if request.startswith("PUT /lfs/")]
        assert len(uploads) == 1  # the weights went up the first time; only the commit was missing

        clean = tmp_path / "clean"
        clean.mkdir()
        environment = {**hub_environment(hub, clean / "home"), "HF_HUB_OFFLINE": "0", "PATH": ""}
        back = run_in_clean_process(f"WAV = {str(wav)!r}; REVISION = {uploaded!r}\n" + LOADED, clean, **environment)
    assert back["module"].startswith("transformers_modules.")
    assert back["scores"] == pipeline("audio-classification", model=str(student))(str(wav), top_k=None)


def test_the_limits_come_first(student, monkeypatch):
    config = json.loads((student / "config.json").read_text())
    (student / "config.json").write_text(json.dumps({**config, "base_channels": 80}))
    monkeypatch.setattr("dataset_script.hub.HfApi", lambda: pytest.fail("the Hub was asked"))
    with pytest.raises(ValueError, match="exceeds a limit"):
        push.push_model(student, "user/scenes")


def test_only_files_of_the_model_are_pushed(student, tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    for name in ("my_notes.py", "secret.safetensors", "secret_config.json", "notes.png", "optimizer.pt", ".env"):
        (student / name).write_text("secret")
    (student / "results").mkdir()
    (student / "results" / "notes.txt").write_text("secret")
    write_card(student)
    names = push.published_files(student)
    assert "model.safetensors" in names and "README.md" in names and "modeling_tfsepnet.py" in names
    assert not [name for name in names if "secret" in name or "notes" in name or name in ("optimizer.pt", ".env")]


@pytest.mark.parametrize("name", ["classes.png", "modeling_tfsepnet.py", "config.json"])
def test_links_are_not_pushed(student, tmp_path, monkeypatch, name):
    monkeypatch.setattr("dataset_script.hub.HfApi", lambda: pytest.fail("the Hub was asked"))
    (tmp_path / "secret").write_bytes((student / name).read_bytes())
    (student / name).unlink()
    (student / name).symlink_to(tmp_path / "secret")
    with pytest.raises(ValueError, match=f"{name} is a link, which is not pushed"):
        push.push_model(student, "user/scenes")


@pytest.mark.parametrize("repo_id", ["scenes", "user/my/scenes", "user/my scenes"])
def test_wrong_repository(student, monkeypatch, repo_id):
    monkeypatch.setattr("dataset_script.hub.HfApi", lambda: pytest.fail("the Hub was asked"))
    with pytest.raises(ValueError, match=f"(?i)repo.*{repo_id}|{repo_id}.*repo"):
        push.push_model(student, repo_id)
    assert not (student / "README.md").exists()


def test_what_the_hub_says(student, tmp_path, monkeypatch):
    """A refused token, and a card with two faults."""
    with hub_server() as hub:
        with monkeypatch.context() as patch:
            answer = {"error": "Invalid username or password."}
            patch.setattr(Handler, "create", lambda handler, **where: handler.answer(answer, 401))
            refused = push_command(hub, tmp_path, student, "user/scenes")
        errors = {"errors": [{"message": "no such license"}, {"message": "no such task"}]}
        monkeypatch.setattr(Handler, "validate", lambda handler, **where: handler.answer(errors, 400))
        invalid = push_command(hub, tmp_path, student, "user/scenes")
    assert "failed (Invalid username or password); everything is in" in refused.stderr.splitlines()[-1]
    assert invalid.stderr.splitlines()[-1].endswith("README.md. - no such license - no such task")
    assert (refused.returncode, invalid.returncode) == (1, 1)


@pytest.mark.slow
def test_something_that_is_not_a_hub(student, tmp_path, monkeypatch):
    """A page that asks for a login, and a server that accepts the connection and is silent."""
    page = b"<html>Welcome to the hotel</html>"
    with hub_server() as hub, monkeypatch.context() as patch:
        for action in ("create", "validate"):
            patch.setattr(
                Handler, action, lambda handler, **where: handler.send(page, 200, {"Content-Type": "text/html"})
            )
        portal = push_command(hub, tmp_path, student, "user/scenes")
    assert portal.returncode == 1
    assert "does not answer like a Hub: check the network" in portal.stderr.splitlines()[-1]
    monkeypatch.setattr("dataset_script.hub.SECONDS_TO_ANSWER", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(HfApi, "__init__", _with_endpoint(f"http://127.0.0.1:{silent.getsockname()[1]}"))
        with pytest.raises(ConnectionError, match="The push to user/scenes failed"):
            push.push_model(student, "user/scenes")


def _with_endpoint(url):
    original = HfApi.__init__
    return lambda api, *arguments, **options: original(api, *arguments, **{**options, "endpoint": url})


def test_logits(tmp_path):
    write_logits(tmp_path / "logits", ["audio/0.wav"], np.eye(10)[:1], teacher="ssl", revision="1", synthetic=True)
    refused = push_command(SimpleNamespace(url="http://127.0.0.1:1"), tmp_path, tmp_path / "logits", "user/logits")
    assert refused.returncode == 1
    assert refused.stderr.strip().splitlines()[-1].startswith("Error: The push to user/logits failed")
    with hub_server() as hub:
        result = push_command(hub, tmp_path, tmp_path / "logits", "user/logits")
        assert result.returncode == 0, result.stderr
        assert set(hub.files("datasets", "user/logits")) == {"README.md", "data/train-00000-of-00001.parquet"}


@pytest.mark.parametrize("private", [None, True])
def test_private_is_the_accounts_business_unless_told(student, monkeypatch, private):
    made = {}
    monkeypatch.setattr(HfApi, "create_repo", lambda api, repo_id, **options: made.update(options))
    monkeypatch.setattr(
        HfApi, "create_commit", lambda api, repo_id, operations, **options: SimpleNamespace(commit_url="there")
    )
    assert push.push_model(student, "user/scenes", private=private) == "there"
    assert made["private"] is private


def test_unreachable_hub(student, monkeypatch):
    def create_repo(*arguments, **options):
        raise HTTPError("Connection refused\nand more")

    monkeypatch.setattr(HfApi, "create_repo", create_repo)
    with pytest.raises(ConnectionError, match=r"failed \(Connection refused\); everything is in .*student") as error:
        push.push_model(student, "user/scenes")
    assert "\n" not in str(error.value)
    assert (student / "README.md").is_file()

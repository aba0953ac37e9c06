"""Models that are missing: named at once, with the command that creates them."""

import subprocess
import sys
import time

import huggingface_hub
import pytest

from tests.hub_server import hub_environment, hub_server
from train.common import availability
from train.common.availability import check_available, is_path
from train.distill import main as distill
from train.finetune_teacher import main as finetune_teacher


@pytest.mark.parametrize(
    "name, path",
    [
        ("checkpoints/BEATs_iter3_plus_AS2M", True),
        ("outputs/ssl", True),
        ("./teacher", True),
        ("../teachers/ssl", True),
        ("~/teacher", True),
        ("/data/teacher", True),
        ("a/b/c", True),
        ("teacher", True),
        ("C:\\teachers\\ssl", True),
        ("MIT/ast-finetuned-audioset-10-10-0.4593", False),
        ("user/teacher", False),
    ],
)
def test_paths_are_told_from_ids(name, path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert is_path(name) == path


def test_folder_that_exists_makes_a_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "user").mkdir()
    assert is_path("user/teacher")


@pytest.mark.parametrize("command", [finetune_teacher, distill])
@pytest.mark.parametrize(
    "recipe, checkpoint, remedy",
    [
        ("ssl", "BEATs_iter3_plus_AS2M", "python -m modeling_beats.convert_beats BEATs_iter3_plus_AS2M"),
        ("ssl_star", "BEATs_iter3_plus_AS2M", "python -m modeling_beats.convert_beats BEATs_iter3_plus_AS2M"),
        (
            "ssl_sl",
            "BEATs_iter3_plus_AS2M_finetuned_on_AS2M_cpt2",
            "python -m modeling_beats.convert_beats BEATs_iter3_plus_AS2M",
        ),
        ("ast", "ast-finetuned-audioset-10-10-0.4593", "hf download MIT/ast-finetuned-audioset-10-10-0.4593"),
        ("ast_star", "ast-finetuned-audioset-10-10-0.4593", "hf download MIT/ast-finetuned-audioset-10-10-0.4593"),
        ("wav2vec2", "wav2vec2-base", "hf download facebook/wav2vec2-base"),
    ],
)
def test_missing_checkpoint_of_a_recipe(command, recipe, checkpoint, remedy, tmp_path, monkeypatch):
    """Also if the corpus, which is not looked at yet, does not exist; the network is not asked."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(availability, "get_session", None)
    options = ["--recipe", recipe] if command is finetune_teacher else ["--recipe", "vanilla", "--teachers", recipe]
    with pytest.raises(FileNotFoundError) as error:
        command([*options, "--dataset", "split25", "--data_dir", "nowhere", "--use_cpu", "True"])
    text = str(error.value)
    assert f"checkpoints/{checkpoint} does not exist: create it with {remedy}" in text
    assert text.count(f"checkpoints/{checkpoint}") == 2 and "\n" not in text
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    "source",
    [
        "jaeyeonkim99/BEATs-base-AS2M-iter1",
        "espnet/BEATs-AS20K",
        "shikhar7ssu/OpenBEATs-Large-i2",
        "espnet/OpenBEATS-Base-i3-as2m",
    ],
)
def test_missing_beats_of_the_hub(source, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = f"checkpoints/{source.split('/')[1]}"
    with pytest.raises(FileNotFoundError) as error:
        check_available(folder)
    assert str(error.value) == (
        f"{folder} does not exist: create it with python -m modeling_beats.convert_beats {source} {folder}."
    )


@pytest.mark.parametrize("recipe", ["s1", "s2", "s3"])
def test_missing_checkpoint_of_a_students_teachers(recipe, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"The teacher '\w+' is fine-tuned from a model that is missing: "):
        distill(["--recipe", recipe, "--dataset", "split25", "--data_dir", "nowhere", "--use_cpu", "True"])


class TestHub:
    NAME = "user/model-that-is-not-here"

    def test_offline(self):
        with pytest.raises(FileNotFoundError, match=rf"{self.NAME} is not a folder, not in the cache, and .* reached"):
            check_available(self.NAME)

    def test_no_network(self, monkeypatch):
        monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(availability.constants, "ENDPOINT", "http://127.0.0.1:9")  # nobody listens there
        huggingface_hub.close_session()
        start = time.monotonic()
        try:
            with pytest.raises(FileNotFoundError, match="cannot be reached: download it"):
                check_available(self.NAME)
        finally:
            huggingface_hub.close_session()
        assert time.monotonic() - start < 5, "it should not try again and again"

    def test_no_such_model(self, tmp_path):
        code = f"from train.common.models import load_config; load_config({self.NAME!r})"
        with hub_server() as hub:
            environment = hub_environment(hub, tmp_path)
            result = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
        assert result.stderr.splitlines()[-1] == (
            f"FileNotFoundError: {self.NAME} is neither a local folder nor a model on the Hub that you have access "
            "to: check its spelling, or run `hf auth login`."
        )

    def test_cached_model_needs_no_network(self, monkeypatch):
        monkeypatch.setattr(availability, "try_to_load_from_cache", lambda *_: "/cache/config.json")
        check_available(self.NAME)

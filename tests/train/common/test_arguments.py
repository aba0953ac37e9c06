"""What is refused among arguments: secrets, and what cannot work on this machine."""

import os
import subprocess
import sys

import pytest

from dataset_script.errors import InputError
from model_cards.results import provenance
from tests.train.helpers import REPOSITORY
from train.common.arguments import CommandParser
from train.common.training_arguments import ResumableTrainingArguments


def parse(tmp_path, *arguments):
    return CommandParser(ResumableTrainingArguments).parse(["--output_dir", str(tmp_path), "--use_cpu", *arguments])[0]


def test_tokens_are_refused_and_not_repeated(tmp_path):
    with pytest.raises(InputError, match=r"hub_token is recorded with the run: .*hf auth login.*HF_TOKEN") as error:
        parse(tmp_path, "--hub_token", "hf_abcdefgh")
    assert "hf_abcdefgh" not in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--seed", "4294967296"], "seed is 4294967296: choose a number from 0 to 4294967295"),
        (["--seed", "-1"], "seed is -1"),
        (["--fp16"], "fp16 has no effect on a CPU"),
        (["--report_to", "wandbb"], "report_to is 'wandbb': choose from"),
        (["--save_total_limit", "1"], "choose 2 or more"),
        (["--optim", "galore_adamw"], "optimizer galore_adamw cannot be created .*galore_torch"),
        (["--optim_args", "junk"], "optimizer adamw_torch.* cannot be created"),
        (["--adam_beta1", "1.5"], "optimizer adamw_torch.* cannot be created .*1.5"),
        (["--save_strategy", "steps", "--save_steps", "0"], "save_steps is 0"),
        (["--fsdp", "full_shard"], "fsdp has no effect here: leave it out"),
        (["--save_only_model"], "save_only_model leaves nothing to resume from"),
        (["--learning_rat", "1"], r"Unknown argument --learning_rat \(did you mean '--learning_rate'\?\): see --help"),
        (["--learning_rate", "fast"], "(?i)invalid .*fast"),
    ],
)
def test_what_cannot_work_is_refused_in_one_sentence(tmp_path, arguments, message):
    with pytest.raises(InputError, match=message) as error:
        parse(tmp_path, *arguments)
    assert "\n" not in str(error.value)


def test_secrets_are_not_recorded(monkeypatch):
    command = ["train/run_eval.py", "--hub_token", "hf_one", "--wandb_api_key=two", "--note", "see hf_three"]
    command += ["--seed", "4"]
    monkeypatch.setattr("sys.argv", command)
    recorded = provenance()["command"]
    assert not [secret for secret in ("hf_one", "two", "hf_three") if secret in recorded]
    assert recorded.endswith("--seed 4") and "--hub_token" in recorded


def run(code):
    return subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("package", "command"),
    [
        ("datasets", ["train/distill.py"]),
        ("accelerate", ["train/quantize.py"]),
        ("soundfile", ["-m", "dataset_script.check"]),
        ("matplotlib", ["-m", "model_cards.push"]),
    ],
)
def test_missing_packages_are_named_with_the_extra(tmp_path, package, command):
    """A command without its packages ends with one line, a program that imports the library with an ImportError."""
    hide = "import importlib.util, sys; spec = importlib.util.find_spec; sys.modules[{0!r}] = None\n"
    hide += "importlib.util.find_spec = lambda name, *a: None if name == {0!r} else spec(name, *a)\n"
    (tmp_path / "sitecustomize.py").write_text(hide.format(package))
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)])}
    missing = f"The package {package} is missing: pip install -e '.[train]'"
    for arguments in ([*command, "--help"], ["-c", "import train, model_cards"]):
        result = subprocess.run(
            [sys.executable, *arguments], cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False
        )
        assert result.returncode == 1
        expected = f"ImportError: {missing}" if "-c" in arguments else f"Error: {missing}"
        assert result.stderr.splitlines()[-1] == expected
        assert ("Traceback" in result.stderr) == ("-c" in arguments)


def test_another_clone_is_noticed(tmp_path):
    other = tmp_path / "clone" / "train"
    (other / "recipes").mkdir(parents=True)
    (other / "distill.py").write_text("import train")
    (other / "__init__.py").write_text("")
    command = [sys.executable, str(other / "distill.py")]
    result = subprocess.run(command, env={"PYTHONPATH": str(REPOSITORY)}, capture_output=True, text=True, check=False)
    assert result.returncode == 1
    assert "pip install -e" in result.stderr and str(REPOSITORY / "train") in result.stderr


def test_commands_know_their_arguments_before_they_import_their_library():
    """Importing models and the trainer of transformers takes seconds, which a typing error should not cost."""
    code = "import sys, train.distill, train.finetune_teacher, train.pretrain_teacher, train.finetune_audioset\n"
    code += "import train.predict_logits\n"
    code += "print(sorted({'transformers.trainer', 'transformers.modeling_utils', 'matplotlib'} & set(sys.modules)))"
    result = run(code)
    assert result.stdout == "[]\n", result.stderr

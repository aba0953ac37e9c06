"""Help and refusals of the commands: short, complete, and without waiting for torch."""

import shlex
import subprocess
import sys
from dataclasses import fields
from importlib import import_module

import pytest
from transformers import TrainingArguments

from acoustic_scenes.__main__ import COMMANDS
from dataset_script.errors import InputError
from tests.train.helpers import REPOSITORY
from train.common.recipes import FOLDER, training_argument_names
from train.common.summary import scenes_command


MODULES = [name for name in COMMANDS.values() if name.startswith("train.")]
WITH_RECIPES = [
    "train.distill",
    "train.adapt_devices",
    "train.finetune_teacher",
    "train.pretrain_teacher",
    "train.finetune_audioset",
]


def show_help(module, capsys, monkeypatch, option="--help"):
    monkeypatch.setenv("COLUMNS", "100")
    with pytest.raises(SystemExit) as end:
        import_module(module).main([option])
    assert not end.value.code
    return capsys.readouterr().out


@pytest.mark.parametrize("module", MODULES)
def test_help_is_one_screen_with_examples(module, capsys, monkeypatch):
    shown = show_help(module, capsys, monkeypatch)
    assert shown.startswith(import_module(module).__doc__.splitlines()[0])
    assert "    scenes " in shown or module == "train.submission"
    assert 10 < len(shown.splitlines()) <= 60


def test_required_options_are_marked_and_defaults_shown(capsys, monkeypatch):
    shown = " ".join(show_help("train.run_eval", capsys, monkeypatch).split())
    assert "Model folder or Hub id of the classifier (required)" in shown
    assert "Clips per forward pass (default: 256)" in shown
    assert "None" not in shown and "False" not in shown


def test_defaults_are_those_of_the_recipe(capsys, monkeypatch):
    assert "(default: 0.006)" in show_help("train.distill", capsys, monkeypatch)
    with pytest.raises(SystemExit):
        import_module("train.distill").main(["--recipe", "s1", "--dataset", "split25", "--help"])


def test_the_rest_of_the_options_is_named(capsys, monkeypatch):
    shown = show_help("train.distill", capsys, monkeypatch)
    assert "--help-all also describes cache_dir, config_overrides" in shown
    assert "--kd_lambda" not in shown and " kd_lambda," in shown


@pytest.mark.parametrize("module", WITH_RECIPES)
def test_all_options_are_those_that_are_accepted(module, capsys, monkeypatch):
    """The help of a training command lists all arguments of `TrainingArguments` but those that are refused."""
    shown = {line.split()[0] for line in show_help(module, capsys, monkeypatch, "--help-all").splitlines() if line}
    assert {"--seed", "--report_to", "--recipe", "--batch_size", "--output_dir", "--push_to_hub"} <= shown
    refused = {"--per_device_train_batch_size", "--hub_token", "--fsdp", "--eval_strategy", "--resume_from_checkpoint"}
    assert not refused & shown
    by_steps = module in ("train.pretrain_teacher", "train.finetune_audioset")
    assert ("--num_train_epochs" if by_steps else "--lr_scheduler_type") not in shown


def test_names_of_training_arguments_are_read_without_importing_them():
    assert training_argument_names() == {field.name for field in fields(TrainingArguments)}


def test_every_recipe_belongs_to_one_command():
    listed = [name for module in WITH_RECIPES for name in import_module(module).RECIPES]
    assert sorted(listed) == sorted(path.stem for path in FOLDER.glob("*.yaml"))


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        (
            "train.distill",
            ["--recipe", "vanila"],
            r"no recipe 'vanila' \(did you mean 'vanilla'\?\): choose one of demo,",
        ),
        ("train.finetune_teacher", ["--recipe", "ss1"], r"\(did you mean 'ssl'\?\): choose one of demo_teacher,"),
        ("train.distill", ["--recipe", "ssl"], "sets model_name_or_path, which this command does not have"),
        ("train.pretrain_teacher", ["--max_step", "3"], r"--max_step \(did you mean '--max_steps'\?\)"),
        ("train.distill", ["--data_dir", "nowhere"], "The folder nowhere does not exist: correct --data_dir"),
        ("train.distill", ["--teachers", "outputs/nobody"], "outputs/nobody does not exist"),
        ("train.distill", ["--early_stopping_patience", "3"], "set --validation_fraction as well"),
        ("train.distill", ["--recipe", "vanilla", "--dataset", "splt25"], r"\(did you mean 'split25'\?\)"),
        ("train.run_eval", ["--model", "x"], r"--model \(did you mean"),
        ("train.run_eval", ["--model_name_or_path", "outputs/x", "--output_dir", "y"], "outputs/x does not exist"),
        ("train.reproduce", ["--table", "3", "--systems", "vanila"], r"\(did you mean 'vanilla'\?\): choose from"),
        ("train.onnx_export", [], r"required: --model_name_or_path, --output: see --help"),
        ("train.edge_export", [], r"required: --model_name_or_path, --output_dir: see --help"),
        (
            "train.edge_export",
            ["--model_name_or_path", "outputs/x", "--output_dir", "y", "--recordings", "nowhere.wav"],
            "There is no file nowhere.wav: correct --recordings",
        ),
    ],
)
def test_wrong_arguments_are_answered_with_the_fix(module, arguments, message):
    with pytest.raises((InputError, FileNotFoundError), match=message):
        import_module(module).main(arguments)


def test_help_and_misspelt_arguments_do_not_wait_for_torch():
    """In a process of its own, in which nothing else has imported it."""
    code = "import contextlib, io, sys\n"
    code += "from acoustic_scenes.__main__ import main\n"
    code += "for name in sys.argv[1:]:\n"
    code += "    for option in ('--help', '--learning_rat'):\n"
    code += "        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):\n"
    code += "            with contextlib.suppress(SystemExit, ValueError):\n"
    code += "                main([name, option])\n"
    code += "        slow = {'torch', 'accelerate', 'matplotlib', 'transformers.trainer'} & set(sys.modules)\n"
    code += "        assert not slow, (name, option, slow)\n"
    command = [sys.executable, "-c", code, *COMMANDS]
    result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_next_command_can_be_pasted():
    command = scenes_command("quantize", model_name_or_path="outputs/my run", data_dir=None, output_dir="x")
    assert shlex.split(command) == [
        "scenes",
        "quantize",
        "--model_name_or_path",
        "outputs/my run",
        "--output_dir",
        "x",
    ]


class TestLastLines:
    """What a command made, its main result, and what comes next."""

    @pytest.fixture
    def last_lines(self, caplog):
        def run(module, *arguments):
            caplog.clear()
            import_module(module).main([*arguments, "--use_cpu"])
            lines = caplog.messages[-1].splitlines()
            name = shlex.split(lines[-1].removeprefix("Next: "))[1]
            assert lines[-1].startswith("Next: scenes ") and name in COMMANDS
            return lines

        return run

    @pytest.fixture
    def results(self):
        metrics = {"clips": 90, "macro_accuracy": 0.711, "accuracy": 0.7, "log_loss": 1.0}
        metrics["confidence_intervals"] = {"macro_accuracy": [0.62, 0.798]}
        return {"metrics": metrics, "synthetic": True, "complexity": {}}

    @pytest.mark.parametrize(
        ("module", "function", "made"),
        [
            ("train.distill", "distillation.distill", "The student, its results and plots are in out."),
            ("train.finetune_teacher", "training.finetune_teacher", "The teacher, its results and plots are in out."),
        ],
    )
    def test_classifiers(self, module, function, made, results, last_lines, monkeypatch):
        monkeypatch.setattr(f"train.classification.{function}", lambda *arguments: results)
        recipe = "vanilla" if module == "train.distill" else "demo_teacher"
        lines = last_lines(module, "--recipe", recipe, "--dataset", "split25", "--output_dir", "out")
        assert lines[-3] == "Macro accuracy: 71.1 % (62.0 to 79.8) on 90 clips, synthetic."
        assert lines[-2].startswith(made)
        assert "--model_name_or_path out --dataset split25" in lines[-1]

    @pytest.mark.parametrize(
        ("recipe", "option"),
        [
            ("demo_pretrain_iter1", "--model_name_or_path out"),
            ("demo_pretrain_tokenizer", "--tokenizer_name_or_path out"),
        ],
    )
    def test_stages_of_pretraining(self, recipe, option, last_lines, monkeypatch, tmp_path):
        monkeypatch.setattr("train.pretraining.stages.run_stage", lambda *arguments: {"figures": {"loss": 6.543}})
        models = ["--model_name_or_path", "me/a", "--teacher_name_or_path", "me/b"] if "tokenizer" in recipe else []
        lines = last_lines("train.pretrain_teacher", "--recipe", recipe, *models, "--output_dir", "out")
        assert "6.543" in lines[-3] and "out" in lines[-2] and option in lines[-1]

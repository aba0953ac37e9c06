"""Interrupted runs end with the weights of an uninterrupted one, and two processes compute the same as one."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
import transformers
from safetensors.torch import load_file

from tests.train import train_job
from tests.train.helpers import REPOSITORY


def run_until_killed(function, *arguments) -> int:
    """Call `function` in a forked process, with one thread; returns the signal that ended it, or 0."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            torch.set_num_threads(1)  # a forked process waits forever for threads that its parent has started
            function(*arguments)
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    assert not os.WIFEXITED(status) or os.waitstatus_to_exitcode(status) == 0
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def kill_at(monkeypatch, owner, method: str, step: int, call: int = 1) -> None:
    """Make the process kill itself when it enters a method of a trainer at an optimizer step for the given time."""
    original = getattr(owner, method)
    calls = []

    def dying(self, *args, **kwargs):
        calls.append(self.state.global_step)
        if calls.count(step) == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(owner, method, dying)


def assert_equal_weights(folder, expected: dict[str, torch.Tensor]) -> None:
    weights = load_file(folder / "model.safetensors")
    assert weights.keys() == expected.keys()
    for name, value in expected.items():
        difference = (weights[name] - value).abs().max().item()
        assert difference == 0, f"{name} should be that of the uninterrupted run, but is off by {difference:.1e}"


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    assert run_until_killed(train_job.main, folder / "run") == 0
    return load_file(folder / "run" / "model.safetensors")


@pytest.mark.parametrize(
    "method, step, checkpoint",
    [
        ("training_step", 2, 0),  # before the first checkpoint
        ("training_step", 7, 6),  # in the middle of an epoch
        ("_save_optimizer_and_scheduler", 9, 6),  # between the files of a checkpoint
        ("_save_rng_state", 6, 3),
        ("evaluate", 20, 20),  # when training is done
    ],
)
def test_killed_run_resumes_to_the_same_weights(tmp_path, monkeypatch, uninterrupted, method, step, checkpoint):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        kill_at(patch, train_job.DistillationTrainer, method, step)
        assert run_until_killed(train_job.main, run) == signal.SIGKILL
    assert not (run / "model.safetensors").exists()

    assert run_until_killed(train_job.main, run) == 0

    measured = torch.load(run / "measured.pt")
    steps = sum(name.startswith("gradient of classifier.bias") for name in measured)
    assert steps == 20 - checkpoint, f"the run should resume from step {checkpoint}, not repeat {steps} of 20 steps"
    assert_equal_weights(run, uninterrupted)


def test_run_killed_again_and_again(tmp_path, monkeypatch, uninterrupted):
    run = tmp_path / "run"
    for step in (4, 5, 11, 13):
        with monkeypatch.context() as patch:
            kill_at(patch, transformers.Trainer, "_save_optimizer_and_scheduler", 3 * (step // 3))
            kill_at(patch, train_job.DistillationTrainer, "training_step", step)
            assert run_until_killed(train_job.main, run) == signal.SIGKILL
    assert run_until_killed(train_job.main, run) == 0
    assert_equal_weights(run, uninterrupted)


def test_run_killed_between_accumulated_passes(tmp_path, monkeypatch):
    """Three steps in an epoch of two, two and one passes; the last checkpoint is in the middle of the epoch."""
    settings = ["gradient_accumulation_steps=2", "save_steps=2"]
    assert run_until_killed(train_job.main, tmp_path / "uninterrupted", *settings) == 0
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        kill_at(patch, train_job.DistillationTrainer, "training_step", 4, call=2)
        assert run_until_killed(train_job.main, run, *settings) == signal.SIGKILL
    assert run_until_killed(train_job.main, run, *settings) == 0
    assert_equal_weights(run, load_file(tmp_path / "uninterrupted" / "model.safetensors"))


@pytest.mark.processor
def test_two_processes_equal_one(tmp_path):
    """In each step from the same weights, which the learning rate is too small to change.

    Steps of an optimizer such as Adam turn the rounding of small gradients into differences of any size.
    """
    responses = tmp_path / "responses"
    responses.mkdir()
    for index in range(2):
        pulse = np.random.default_rng(index).normal(size=50) / 10
        soundfile.write(responses / f"{index}.wav", pulse, 32000, subtype="FLOAT")
    settings = ["learning_rate=1e-30", "gradient_accumulation_steps=2", "num_train_epochs=2"]
    settings += [f"impulse_responses={responses}", "impulse_response_p=0.5"]
    train_job.main(tmp_path / "one", *settings)

    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command = [*launch, "--main_process_port", "0", "-m", "tests.train.train_job", str(tmp_path / "two"), *settings]
    result = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]

    one, two = (
        torch.load(tmp_path / run / "measured.pt") | load_file(tmp_path / run / "model.safetensors")
        for run in ("one", "two")
    )
    assert one.keys() == two.keys()
    assert sum(name.startswith("gradient") for name in one) > 6
    for name, value in one.items():
        tolerance = {torch.float64: 1e-9, torch.float32: 1e-6, torch.int64: 0}[value.dtype]
        assert tolerance < 1e-6 or name == "logits", f"The {name} should be in double precision."
        difference = ((two[name] - value).abs().max() / value.abs().max().clamp(min=1e-300)).item()
        assert difference <= tolerance, (
            f"The {name} of two processes should be that of one, but is off by {difference:.1e} of its largest value."
        )

"""Interrupted runs, and runs on two processes, end like an uninterrupted run on one."""

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
    """Call `function` in a forked process; returns the signal that ended it, or 0."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            function(*arguments)
            status = 0
        finally:
            os._exit(status)
    _, status = os.waitpid(pid, 0)
    assert not os.WIFEXITED(status) or os.waitstatus_to_exitcode(status) == 0
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0


def kill_at(monkeypatch, owner, method: str, step: int) -> None:
    """Make the process kill itself when it enters a method of a trainer at an optimizer step."""
    original = getattr(owner, method)

    def dying(self, *args, **kwargs):
        if self.state.global_step == step:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(self, *args, **kwargs)

    monkeypatch.setattr(owner, method, dying)


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uninterrupted")
    train_job.main(folder / "run")
    return load_file(folder / "run" / "model.safetensors")


@pytest.mark.parametrize(
    "method, step",
    [
        ("training_step", 2),  # before the first checkpoint
        ("training_step", 7),  # in the middle of an epoch
        ("_save_optimizer_and_scheduler", 9),  # between the files of a checkpoint
        ("_save_rng_state", 6),
        ("evaluate", 20),  # when training is done
    ],
)
def test_killed_run_goes_on_to_the_same_weights(tmp_path, monkeypatch, uninterrupted, method, step):
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        kill_at(patch, train_job.DistillationTrainer, method, step)
        assert run_until_killed(train_job.main, run) == signal.SIGKILL
    assert not (run / "model.safetensors").exists()

    assert run_until_killed(train_job.main, run) == 0

    weights = load_file(run / "model.safetensors")
    assert weights.keys() == uninterrupted.keys()
    for name, value in uninterrupted.items():
        assert torch.equal(weights[name], value), name


def test_run_killed_again_and_again(tmp_path, monkeypatch, uninterrupted):
    run = tmp_path / "run"
    for step in (4, 5, 11, 13):
        with monkeypatch.context() as patch:
            kill_at(patch, transformers.Trainer, "_save_optimizer_and_scheduler", 3 * (step // 3))
            kill_at(patch, train_job.DistillationTrainer, "training_step", step)
            assert run_until_killed(train_job.main, run) == signal.SIGKILL
    assert run_until_killed(train_job.main, run) == 0
    weights = load_file(run / "model.safetensors")
    assert all(torch.equal(weights[name], value) for name, value in uninterrupted.items())


def test_two_processes_equal_one(tmp_path):
    responses = tmp_path / "responses"
    responses.mkdir()
    for index in range(2):
        pulse = np.random.default_rng(index).normal(size=50) / 10
        soundfile.write(responses / f"{index}.wav", pulse, 32000, subtype="FLOAT")
    settings = ["gradient_accumulation_steps=2", f"impulse_responses={responses}", "impulse_response_p=0.5"]
    train_job.main(tmp_path / "one", *settings)

    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command = [*launch, "--main_process_port", "0", "-m", "tests.train.train_job", str(tmp_path / "two"), *settings]
    result = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]

    one, two = (load_file(tmp_path / run / "model.safetensors") for run in ("one", "two"))
    assert one.keys() == two.keys()
    for name, value in one.items():
        torch.testing.assert_close(two[name], value, rtol=0, atol=1e-7, msg=name)
    assert np.array_equal(*(np.load(tmp_path / run / "logits.npy") for run in ("one", "two")))

"""Interrupted runs end with the weights of an uninterrupted one, and two processes compute the same as one."""

import os
import signal
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import transformers
from safetensors.torch import load_file

from dataset_script.errors import InputError
from tests.train import train_job
from tests.train.helpers import make_dataset, make_trainer, run_two_processes
from train.common.checkpoints import last_complete_checkpoint
from train.common.distributed import BatchRows
from train.common.seeds import derived_seed


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


def test_run_with_clips_without_labels(tmp_path, monkeypatch):
    """Killed in the second of two epochs of seven batches, in the middle of a pass over the clips without labels."""
    settings = ["unlabelled=9", "num_train_epochs=2"]
    assert run_until_killed(train_job.main, tmp_path / "uninterrupted", *settings) == 0
    run = tmp_path / "run"
    with monkeypatch.context() as patch:
        kill_at(patch, train_job.DistillationTrainer, "training_step", 10)
        assert run_until_killed(train_job.main, run, *settings) == signal.SIGKILL
    assert run_until_killed(train_job.main, run, *settings) == 0
    assert_equal_weights(run, load_file(tmp_path / "uninterrupted" / "model.safetensors"))


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
@pytest.mark.parametrize("unlabelled", [pytest.param(0, marks=pytest.mark.slow), 9])
def test_two_processes_equal_one(tmp_path, unlabelled):
    """In each step from the same weights, which the learning rate is too small to change.

    Steps of an optimizer such as Adam turn the rounding of small gradients into differences of any size.
    """
    responses = tmp_path / "responses"
    responses.mkdir()
    for index in range(2):
        pulse = np.random.default_rng(index).normal(size=50) / 10
        soundfile.write(responses / f"{index}.wav", pulse, 32000, subtype="FLOAT")
    settings = ["learning_rate=1e-30", "gradient_accumulation_steps=2", "num_train_epochs=2"]
    settings += [f"impulse_responses={responses}", "impulse_response_p=0.5", f"unlabelled={unlabelled}"]
    train_job.main(tmp_path / "one", *settings)

    run_two_processes("-m", "tests.train.train_job", str(tmp_path / "two"), *settings)

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


@pytest.mark.processor
def test_separate_batches(tmp_path):
    """The gradient of the first step is the sum of those of both parts, two clips and three, weighted by clips."""
    settings = ["separate_batches=1", "num_train_epochs=1"]
    run_two_processes("-m", "tests.train.train_job", str(tmp_path / "two"), *settings)
    measured = torch.load(tmp_path / "two" / "measured.pt")
    with train_job.double_precision():
        trainer = train_job.make_job(tmp_path / "one", separate_batches=1)
        trainer.model.train()
        batch = next(iter(trainer.get_train_dataloader()))
        for index in range(2):
            trainer.parts = BatchRows(2, index)
            seed = derived_seed(derived_seed(trainer.args.seed, 0, 0), index)
            torch.manual_seed(seed)
            trainer._generator = torch.Generator().manual_seed(seed)
            trainer.compute_loss(trainer.model, batch).backward()
    for name, parameter in trainer.model.named_parameters():
        gradient = measured[f"gradient of {name} in step 0"]
        torch.testing.assert_close(gradient, parameter.grad, rtol=1e-9, atol=1e-9 * parameter.grad.abs().max().item())


class TestDivergence:
    def test_a_run_ends_at_the_first_loss_that_is_not_finite(self, tmp_path):
        trainer = make_trainer(tmp_path, make_dataset(24), save_strategy="epoch", num_train_epochs=6)
        good = trainer.loss_function

        def loss_function(*arguments):
            loss = good(*arguments)
            return loss * float("nan") if trainer.state.global_step == 7 else loss

        trainer.loss_function = loss_function
        with pytest.raises(InputError, match=r"loss is nan in epoch 2\.33 \(step 7\) at a learning rate of") as error:
            trainer.train()
        kept = last_complete_checkpoint(tmp_path)
        assert kept == str(tmp_path / "checkpoint-6") and kept in str(error.value)
        tensors = load_file(tmp_path / "checkpoint-6" / "model.safetensors")
        assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors.values())

    def test_weights_that_are_not_finite_are_never_saved(self, tmp_path):
        trainer = make_trainer(tmp_path, make_dataset(24), save_strategy="epoch")
        with torch.no_grad():
            trainer.model.classifier.bias[0] = float("inf")
        with pytest.raises(InputError, match=r"(Weights are not finite|The loss is)"):
            trainer.train()
        assert not list(tmp_path.glob("checkpoint-*"))


def test_a_full_disk_is_named(tmp_path, monkeypatch):
    def save(*arguments, **settings):
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0")

    trainer = make_trainer(tmp_path, make_dataset(24), save_strategy="epoch")
    monkeypatch.setattr("transformers.Trainer._save_optimizer_and_scheduler", save)
    with pytest.raises(OSError, match=rf"No space left on the disk for {tmp_path}: free some space and run the same"):
        trainer.train()


def test_pickles_with_code_are_not_loaded(tmp_path):
    """A checkpoint that somebody else made complete: its code does not run, and one sentence names it."""
    trainer = make_trainer(tmp_path, make_dataset(24), save_strategy="epoch", num_train_epochs=1)
    trainer.train()
    checkpoint = tmp_path / "checkpoint-3"
    torch.save({"state": _Trap(tmp_path / "ran")}, checkpoint / "optimizer.pt")
    again = make_trainer(tmp_path, make_dataset(24), save_strategy="epoch", num_train_epochs=2)
    with pytest.raises(InputError, match="other content than tensors and numbers, which is not loaded") as error:
        again.train(resume_from_checkpoint=str(checkpoint))
    assert "weights_only" not in str(error.value) and not (tmp_path / "ran").exists()


class _Trap:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)

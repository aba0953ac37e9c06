import math

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import TrainerCallback

from modeling_tfsepnet.convert_tfsepnet import convert_key, convert_state_dict, infer_config
from tests.train.helpers import make_dataset, make_extractor, make_model, make_trainer
from train.classification.schedules import sgdr, warmup_linear
from train.classification.trainer import DistillationTrainer
from train.common import training_arguments
from train.common.augmentations import Mix
from train.common.seeds import EpochShuffle


ALL_AUGMENTATIONS = {"freq_mixstyle_p": 0.8, "spec_augment_size": 0.2, "mixup_alpha": 0.3}


def test_training_learns_and_evaluates(tmp_path):
    trainer = make_trainer(
        tmp_path,
        make_dataset(60),
        make_dataset(30, seed=1),
        model=make_model(dropout=0.0),
        batch_size=20,
        num_train_epochs=20,
        learning_rate=0.005,
    )
    trainer.train()
    metrics = trainer.evaluate()
    assert metrics["eval_macro_accuracy"] > 0.7  # chance is 0.33
    assert {"eval_accuracy_seen_devices", "eval_accuracy_unseen_devices", "eval_log_loss"} <= set(metrics)
    assert metrics["eval_loss"] == pytest.approx(metrics["eval_log_loss"], abs=1e-5)


def test_same_seed_same_weights_and_another_seed_others(tmp_path):
    weights = []
    for run, seed in enumerate((1, 1, 2)):
        trainer = make_trainer(tmp_path / str(run), make_dataset(20, teachers=2), seed=seed, **ALL_AUGMENTATIONS)
        trainer.train()
        weights.append(torch.cat([parameter.flatten() for parameter in trainer.model.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    "arguments, steps_per_epoch",
    [
        ({"batch_size": 7}, 3),
        ({"batch_size": 16}, 2),
        ({"batch_size": 32}, 1),
        ({"batch_size": 4, "gradient_accumulation_steps": 3}, 2),  # five batches
        ({"batch_size": 4, "num_train_epochs": 3, "max_steps": 741}, 5),
    ],
)
def test_learning_rate_of_every_epoch(tmp_path, arguments, steps_per_epoch):
    """Warm restarts at epochs 10, 30 and 70, in each step that the optimizer takes."""
    rates = []

    class Listen(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, optimizer, **kwargs):
            rates.append(optimizer.param_groups[0]["lr"])

    trainer = make_trainer(tmp_path, make_dataset(20), **{"num_train_epochs": 150, **arguments})
    trainer.add_callback(Listen())
    trainer.training_step = lambda *inputs: torch.tensor(0.0)  # the schedule is all that counts
    trainer.train()

    cycles = [(0, 10), (10, 20), (30, 40), (70, 80)]
    factors = [(1 + math.cos(math.pi * epoch / length)) / 2 for _, length in cycles for epoch in range(length)]
    expected = [0.004 * factor for factor in factors for _ in range(steps_per_epoch)]
    assert rates == pytest.approx(expected[: arguments.get("max_steps")], abs=1e-9), (
        f"the rate should change after every epoch of {steps_per_epoch} steps"
    )


@pytest.mark.parametrize(
    "arguments, factors",
    [
        ({"first_cycle": 2, "cycle_factor": 3}, [sgdr(epoch, 2, 3) for epoch in range(6)]),
        ({"schedule": "warmup_linear", "warmup_epochs": 2}, [warmup_linear(epoch, 6, 2) for epoch in range(6)]),
        ({"schedule": "constant"}, [1.0] * 6),
    ],
)
def test_schedule_gets_its_arguments(tmp_path, arguments, factors):
    trainer = make_trainer(tmp_path, make_dataset(20), batch_size=7, num_train_epochs=6, **arguments)
    scheduler = trainer.create_scheduler(18, torch.optim.SGD(trainer.model.parameters(), lr=1.0))
    rates = []
    for _ in range(18):
        rates.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([factor for factor in factors for _ in range(3)])


def test_waveforms_on_the_device_train_the_same(tmp_path):
    states = []
    for on_device in (False, True):
        trainer = make_trainer(tmp_path / str(on_device), make_dataset(19), waveforms_on_device=on_device)
        trainer.train()
        assert isinstance(trainer.train_dataset.waveforms, torch.Tensor) == on_device
        states.append(trainer.model.state_dict())
    for name, values in states[0].items():
        assert torch.equal(values, states[1][name]), name


def test_bf16(tmp_path, monkeypatch):
    monkeypatch.setattr(training_arguments, "computes_bfloat16", lambda device: True)
    trainer = make_trainer(tmp_path, make_dataset(12, teachers=1), bf16=True, **ALL_AUGMENTATIONS)
    trainer.train()
    assert trainer.accelerator.mixed_precision == "bf16"
    assert trainer.state.log_history[-1]["train_loss"] > 0
    assert next(trainer.model.parameters()).dtype == torch.float32


def test_precision_of_one_run_is_not_that_of_another(tmp_path, monkeypatch):
    """A student can be trained in another precision than its teacher, and both are evaluated in float32."""
    monkeypatch.setattr(training_arguments, "computes_bfloat16", lambda device: True)
    dataset = make_dataset(12, teachers=1)
    arguments = {name: make_trainer(tmp_path / name, dataset, bf16=name == "bf16").args for name in ("no", "bf16")}
    for name, args in arguments.items():  # which are all known before the first run, as those of a student
        trainer = DistillationTrainer(make_model(), args, make_extractor(), dataset)
        trainer.train()
        results = trainer.finish({})
        assert trainer.accelerator.mixed_precision == name
        assert results["precision"] == {"no": "float32", "bf16": "bfloat16"}[name]
        model = type(trainer.model).from_pretrained(tmp_path / name)
        log_mel = torch.randn(3, 1, model.config.num_mel_bins, 64)
        with torch.no_grad():
            assert torch.equal(trainer.model.eval()(log_mel).logits, model(log_mel).logits)


def test_bf16_is_left_to_hardware_that_computes_it(tmp_path, monkeypatch):
    monkeypatch.setattr(training_arguments, "computes_bfloat16", lambda device: False)
    trainer = make_trainer(tmp_path, make_dataset(12), bf16=True)
    assert trainer.accelerator.mixed_precision == "no"


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"batch_size": 1}, "batch_size"),
        ({"save_total_limit": 1}, "save_total_limit"),
        ({"impulse_response_p": 0.4, "impulse_responses": "/nowhere"}, "/nowhere"),
        ({"temperature": -1.0}, "temperature"),
        ({"per_device_train_batch_size": 4}, "use batch_size"),
        ({"lr_scheduler_type": "cosine"}, "use schedule"),
        ({"freq_mixstyle_p": 2.0}, "Freq-MixStyle"),
        ({"waveforms_on_device": True, "dataloader_num_workers": 1}, "leave out one"),
    ],
)
def test_bad_arguments_are_named(tmp_path, arguments, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        make_trainer(tmp_path, make_dataset(8), **arguments)


@pytest.fixture(scope="module")
def reference(shared):
    return load_file(shared / "reference" / "tfsepnet_golden" / "train_step.safetensors")


@pytest.mark.processor
class TestReferenceSteps:
    """One forward pass and four Adam steps of the public code, in double precision, on a mixed batch of six."""

    @pytest.fixture
    def trainer(self, reference, tmp_path, request):
        state_dict = {
            name.removeprefix("state_dict."): value for name, value in reference.items() if "state_dict." in name
        }
        model = convert_state_dict(state_dict, infer_config(state_dict, dropout=0.0)).double()
        model.load_state_dict({convert_key(name, 17): value for name, value in state_dict.items()})
        trainer = make_trainer(
            tmp_path,
            make_dataset(6),
            model=model,
            batch_size=6,
            max_steps=4,
            schedule="constant",
            logging_strategy="steps",
            logging_steps=1,
            **request.param,
        )
        mix = Mix(reference["lam"].item(), reference["perm"])
        trainer.augmented_inputs = lambda *_: ({"input_values": mix(reference["input"])}, mix)
        trainer.rows.resize(6)
        batch = {name: reference[name] for name in ("labels", "teacher_logits")} | {"waveform": None, "device": None}
        trainer.get_train_dataloader = lambda: DataLoader([batch], batch_size=None, sampler=EpochShuffle(1, 0))
        return trainer

    VARIANTS = pytest.mark.parametrize(
        "variant, trainer",
        [("report", {}), ("code", {"kd_reduction": "mean", "mixup_targets": "losses"})],
        indirect=["trainer"],
    )

    @VARIANTS
    def test_loss_gradient_and_statistics(self, reference, trainer, variant):
        model = trainer.model.train()
        batch = next(iter(trainer.get_train_dataloader()))
        loss, outputs = trainer.compute_loss(model, batch, return_outputs=True)
        loss.backward()
        torch.testing.assert_close(outputs["logits"].detach(), reference["train_logits"], rtol=1e-8, atol=1e-12)
        torch.testing.assert_close(loss.detach(), reference[f"{variant}.loss"], rtol=1e-8, atol=0)
        parameters, buffers = dict(model.named_parameters()), dict(model.named_buffers())
        gradients = {name: value for name, value in reference.items() if name.startswith(f"{variant}.grad.")}
        assert len(gradients) == len(parameters)
        for name, gradient in gradients.items():
            parameter = parameters[convert_key(name.removeprefix(f"{variant}.grad."), 17)]
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-8, atol=1e-12, msg=name)
        for name, value in reference.items():
            if name.startswith("after."):
                buffer = buffers[convert_key(name.removeprefix("after."), 17)]
                torch.testing.assert_close(buffer, value, rtol=1e-8, atol=1e-12, msg=name)

    @VARIANTS
    def test_losses_of_four_adam_steps(self, reference, trainer, variant):
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        assert losses == pytest.approx(reference[f"{variant}.adam_losses"].tolist(), abs=1e-6)

"""What a training step does: the clips it takes, what becomes of them, and the gradient that it ends with."""

import copy
import math
from dataclasses import dataclass, field

import numpy as np
import pytest
import soundfile
import torch
from torch.nn import functional as F
from transformers import TrainerCallback

from tests.train.helpers import DEVICES, ExactFeatureExtractor, make_dataset, make_extractor, make_model, make_trainer
from train.common.augmentations import DeviceImpulseResponse, FreqMixStyle, SoftMixup, SpecAugment
from train.evaluation.metrics import scene_metrics


ACTIVE = {
    "impulse responses": {"impulse_response_p": 0.7},
    "Freq-MixStyle": {"freq_mixstyle_alpha": 0.6, "freq_mixstyle_p": 0.7},
    "SpecAugment": {"spec_augment_size": 0.3},
    "Soft Mixup": {"mixup_alpha": 0.5},
}
"""Arguments that switch each augmentation on; none of them is a default value."""

ALL = {name: value for arguments in ACTIVE.values() for name, value in arguments.items()}


@pytest.fixture(scope="module")
def responses(tmp_path_factory):
    """Impulse responses at twice the clips' rate of 4 kHz."""
    folder = tmp_path_factory.mktemp("responses")
    for index in range(3):
        pulse = np.random.default_rng(index).normal(size=60) / 5
        soundfile.write(folder / f"{index}.wav", pulse, 8000, subtype="FLOAT")
    return str(folder)


@dataclass
class Pass:
    """One forward and backward pass of a run."""

    step: int
    batch: dict[str, torch.Tensor]
    seeds: list[int] = field(default_factory=list)
    features: torch.Tensor | None = None
    random_state: torch.Tensor | None = None


def record_passes(trainer) -> list[Pass]:
    """Fill the returned list with the passes of a run: the batch, its seed, and what the network got."""
    passes = []
    training_step, next_seed = trainer.training_step, trainer.next_seed

    def recorded_step(model, batch, *others):
        passes.append(Pass(trainer.state.global_step, batch))
        return training_step(model, batch, *others)

    def recorded_seed():
        passes[-1].seeds.append(next_seed())
        return passes[-1].seeds[-1]

    def before_forward(model, arguments, inputs):
        if passes and passes[-1].features is None:
            passes[-1].features = inputs["input_values"]
            passes[-1].random_state = torch.get_rng_state()

    trainer.training_step, trainer.next_seed = recorded_step, recorded_seed
    trainer.model.register_forward_pre_hook(before_forward, with_kwargs=True)
    return passes


def trained_passes(*arguments, **settings) -> list[Pass]:
    """Return the passes of a short run."""
    trainer = make_trainer(*arguments, **settings)
    passes = record_passes(trainer)
    trainer.train()
    return passes


def rows_of(passes, dataset) -> list[int]:
    """Return which rows of a dataset the passes took, in their order."""
    rows = {bytes(waveform): row for row, waveform in enumerate(dataset.waveforms)}
    return [rows[bytes(waveform.numpy())] for one in passes for waveform in one.batch["waveform"]]


class TestOrder:
    @pytest.mark.parametrize("clips, batch_size", [(30, 8), (9, 4)])
    def test_every_epoch_takes_all_clips_in_an_order_of_its_own(self, tmp_path, clips, batch_size):
        orders = {}
        for run, seed in enumerate((1, 1, 2)):
            dataset = make_dataset(clips)
            settings = {"batch_size": batch_size, "num_train_epochs": 4, "seed": seed}
            rows = rows_of(trained_passes(tmp_path / str(run), dataset, **settings), dataset)
            epochs = [tuple(rows[start : start + clips]) for start in range(0, len(rows), clips)]
            assert len(epochs) == 4 and all(sorted(epoch) == list(range(clips)) for epoch in epochs), (
                "every epoch should take every clip once, the last batch included"
            )
            assert len(set(epochs)) == 4, "every epoch should take the clips in another order"
            orders[run] = epochs
        assert orders[0] == orders[1], "the same seed should give the same orders"
        assert not set(orders[0]) & set(orders[2]), "another seed should give other orders"


FIVE_PASSES_IN_AN_EPOCH = {"batch_size": 4, "gradient_accumulation_steps": 3}
"""Of 20 clips: a step of three passes, and one of two."""


class TestSeeds:
    def test_every_pass_draws_from_a_seed_of_its_own(self, tmp_path):
        seeds = []
        for run, seed in enumerate((1, 1, 2)):
            passes = trained_passes(tmp_path / str(run), make_dataset(20), seed=seed, **FIVE_PASSES_IN_AN_EPOCH)
            assert [one.step for one in passes] == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]
            assert all(len(one.seeds) == 1 for one in passes), "a pass should take one seed"
            seeds.append([one.seeds[0] for one in passes])
            assert len(set(seeds[-1])) == len(passes), (
                "no two passes should share a seed, nor those whose gradients are accumulated for one step"
            )
        assert seeds[0] == seeds[1], "the same seed of the run should give the same seeds of the passes"
        assert not set(seeds[0]) & set(seeds[2]), "another seed of the run should give other seeds of the passes"

    def test_dropout_draws_from_the_seed_of_the_pass(self, tmp_path, responses):
        for one in trained_passes(
            tmp_path, make_dataset(20), impulse_responses=responses, **FIVE_PASSES_IN_AN_EPOCH, **ALL
        ):
            expected = torch.Generator().manual_seed(one.seeds[0]).get_state()
            assert torch.equal(one.random_state, expected), (
                "the forward pass should start from the seed of the pass, whatever was drawn before"
            )

    def test_partners_differ_in_every_pass(self, tmp_path):
        """With inputs that are unit vectors, mixed inputs are rows of the matrix that mixed them."""

        class UnitVectors(ExactFeatureExtractor):
            def features(self, waveform):
                return torch.eye(len(waveform), 64)[:, None, :, None].expand(-1, 1, 64, 64)

        trainer = make_trainer(
            tmp_path, make_dataset(40), extractor=UnitVectors(), mixup_alpha=50.0, num_train_epochs=3
        )
        passes = record_passes(trainer)
        trainer.train()
        partners = []
        for one in passes:
            matrix = one.features[:, 0, :8, 0]
            assert matrix.diag().min() < 0.9, "every batch should be mixed"
            matrix = matrix - matrix.diag().min() * torch.eye(8)
            partners.append(tuple(matrix.argmax(1).tolist()))
            assert sorted(partners[-1]) == list(range(8)), "every clip should be the partner of one clip"
        assert len(set(partners)) == len(passes) == 15, "partners should be drawn anew in every pass"
        for clip in range(8):
            chosen = {order[clip] for order in partners}
            assert len(chosen) > 3, f"clip {clip} should get many partners, not only {chosen}"


def augmented(batch, generator, active, responses, extractor):
    """The batch as section 3 of the report has it, and how it was mixed: each part in its place, written out."""
    waveform, mix = batch["waveform"] / 32768, None
    if "impulse responses" in active:
        waveform = DeviceImpulseResponse(responses, 4000, 0.7)(waveform, batch["device"], generator)
    features = extractor.features(waveform)
    if "Freq-MixStyle" in active:
        features = FreqMixStyle(0.6, 0.7)(features, generator)
    if "SpecAugment" in active:
        features = SpecAugment(0.3)(features, generator)
    if "Soft Mixup" in active:
        features, mix = SoftMixup(0.5)(features, generator)
    return features, mix


@pytest.mark.parametrize("active", [[], *([name] for name in ACTIVE), list(ACTIVE)], ids=" and ".join)
def test_the_network_gets_the_augmented_batch(tmp_path, responses, active):
    settings = {name: value for augmentation in active for name, value in ACTIVE[augmentation].items()}
    dataset, extractor = make_dataset(24), make_extractor()
    assert set(dataset.columns["device"]) == set(range(len(DEVICES)))
    passes = trained_passes(
        tmp_path, dataset, impulse_responses=responses, gradient_accumulation_steps=2, batch_size=7, **settings
    )
    assert len(passes) == 8
    changed = 0
    for number, one in enumerate(passes):
        generator = torch.Generator().manual_seed(one.seeds[0])
        expected, _ = augmented(one.batch, generator, active, responses, extractor)
        plain = extractor.features(one.batch["waveform"] / 32768)
        changed += not torch.equal(expected, plain)
        wanted = f"the features of the clips after {', '.join(active) or 'no augmentation'}"

        def explain(difference, wanted=f"Pass {number} should get {wanted}."):
            return f"{wanted}\n{difference}"

        torch.testing.assert_close(one.features, expected, msg=explain)
    assert changed >= (5 if active else 0), f"{active} should change most of {len(passes)} batches, not {changed}"


LOSSES = pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 3.0, "kd_lambda": 0.3},
        {"temperature": 1.5, "kd_lambda": 0.1, "kd_reduction": "mean", "mixup_targets": "losses"},
    ],
    ids=["report", "public code"],
)


def distillation_loss(logits, labels, teacher, mix, settings):
    """The recipe's loss, written out for one clip after the other."""
    temperature, clips = settings["temperature"], range(len(logits))

    def cross_entropy(clip, label):
        return -logits[clip].log_softmax(-1)[label]

    def divergence(clip, teacher_logits):
        target = (teacher_logits / temperature).softmax(-1)
        return (target * (target.log() - (logits[clip] / temperature).log_softmax(-1))).sum()

    def mixed(value_of):
        return [mix.lam * value_of(clip, clip) + (1 - mix.lam) * value_of(clip, mix.perm[clip]) for clip in clips]

    label_loss = sum(mixed(lambda clip, source: cross_entropy(clip, labels[source]))) / len(logits)
    if settings.get("mixup_targets") == "losses":
        divergences = mixed(lambda clip, source: divergence(clip, teacher[source]))
    else:
        mixed_logits = mixed(lambda clip, source: teacher[source])
        divergences = [divergence(clip, mixed_logits[clip]) for clip in clips]
    kd_loss = temperature**2 * sum(divergences) / len(logits)
    if settings.get("kd_reduction") == "mean":
        kd_loss = kd_loss / logits.shape[1]
    return settings["kd_lambda"] * label_loss + (1 - settings["kd_lambda"]) * kd_loss


@pytest.mark.processor
@LOSSES
def test_loss_and_gradient_of_every_step(tmp_path, responses, settings):
    """Of all steps, with three passes each and with the two that are left at the end of an epoch.

    The learning rate is too small to change a weight, so every step starts from the same ones.
    """
    dataset, extractor = make_dataset(20, teachers=3), ExactFeatureExtractor(sampling_rate=4000)
    model = make_model(dropout=0.0).double()
    trainer = make_trainer(
        tmp_path,
        dataset,
        model=model,
        extractor=extractor,
        impulse_responses=responses,
        learning_rate=1e-30,
        logging_strategy="steps",
        logging_steps=1,
        **settings,
        **FIVE_PASSES_IN_AN_EPOCH,
        **ALL,
    )
    gradients = []

    class KeepGradients(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, **others):
            gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})

    trainer.add_callback(KeepGradients())
    passes = record_passes(trainer)
    start = copy.deepcopy(model)
    trainer.train()

    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    teachers = np.mean([dataset.scenes[f"teacher_logits_t{index}"] for index in range(3)], axis=0)
    assert len(gradients) == len(losses) == 4
    for step, measured in enumerate(gradients):
        of_step = [one for one in passes if one.step == step]
        assert len(of_step) == (2 if step % 2 else 3)
        expected = 0.0
        for one in of_step:
            generator = torch.Generator().manual_seed(one.seeds[0])
            features, mix = augmented(one.batch, generator, list(ACTIVE), responses, extractor)
            rows = rows_of([one], dataset)
            labels = torch.as_tensor(np.asarray(dataset.scenes["label"])[rows])
            teacher = torch.as_tensor(teachers[rows])
            logits = start.train()(input_values=features).logits
            expected = expected + distillation_loss(logits, labels, teacher, mix, settings) / len(of_step)
        assert losses[step] == pytest.approx(expected.item(), rel=1e-6), (
            f"the loss of step {step} should be the recipe's, with targets mixed as the inputs, and the teachers' mean"
        )
        start.zero_grad()
        expected.backward()
        for name, parameter in start.named_parameters():
            largest = parameter.grad.abs().max().item()
            difference = (measured[name] - parameter.grad).abs().max().item() / largest
            assert difference < 1e-6, f"step {step}: the gradient of {name} is off by {difference:.1e} of its largest"


def test_weight_decay_is_for_all_parameters(tmp_path):
    trainer = make_trainer(tmp_path, make_dataset(8), weight_decay=0.25, adam_beta1=0.8, adam_beta2=0.98)
    groups = trainer.create_optimizer().param_groups
    decayed = sum(parameter.numel() for group in groups for parameter in group["params"] if group["weight_decay"])
    assert decayed == trainer.model.num_parameters(), "all parameters should decay"
    assert {group["weight_decay"] for group in groups if group["params"]} == {0.25}
    assert {group["betas"] for group in groups} == {(0.8, 0.98)}


class TestEvaluation:
    """Of clean clips, by the network in evaluation mode, whatever the recipe does to clips in training."""

    @pytest.fixture
    def trainer(self, tmp_path, responses):
        arguments = ALL | {"impulse_response_p": 1.0, "freq_mixstyle_p": 1.0}
        trainer = make_trainer(
            tmp_path,
            make_dataset(24, teachers=1),
            make_dataset(20, seed=1),
            model=make_model(dropout=0.5),
            impulse_responses=responses,
            per_device_eval_batch_size=6,
            **arguments,
        )
        trainer.args.eval_strategy = "epoch"
        trainer.train()
        return trainer

    def logits(self, trainer) -> torch.Tensor:
        clean = make_extractor().features(torch.as_tensor(trainer.eval_dataset.waveforms) / 32768)
        with torch.no_grad():
            return copy.deepcopy(trainer.model).eval()(input_values=clean).logits

    def test_logits_are_those_of_the_clean_clips(self, trainer):
        for _ in range(2):
            torch.testing.assert_close(
                torch.as_tensor(trainer.predict(trainer.eval_dataset).predictions),
                self.logits(trainer),
                rtol=1e-4,
                atol=1e-5,
                msg=lambda difference: f"Evaluation should predict clean clips in evaluation mode.\n{difference}",
            )

    def test_nothing_is_learned(self, trainer):
        before = copy.deepcopy(trainer.model.state_dict())
        trainer.evaluate()
        for name, value in trainer.model.state_dict().items():
            assert torch.equal(value, before[name]), f"evaluation should leave {name} alone"

    def test_metrics_of_an_epoch_are_those_of_its_weights(self, trainer):
        logged = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
        assert [entry["epoch"] for entry in logged] == [1, 2]
        scenes, logits = trainer.eval_dataset.scenes, self.logits(trainer)
        devices = [DEVICES[index] for index in scenes["device"]]
        expected = scene_metrics(logits, scenes["label"], devices=devices)
        measured = {name.removeprefix("eval_"): value for name, value in logged[-1].items()}
        loss = F.cross_entropy(logits, torch.as_tensor(list(scenes["label"]))).item()
        for name, value in {
            "accuracy": expected["accuracy"],
            "macro_accuracy": expected["macro_accuracy"],
            "log_loss": expected["log_loss"],
            "loss": loss,
            "accuracy_seen_devices": expected["device_groups"]["seen"]["accuracy"],
            "accuracy_unseen_devices": expected["device_groups"]["unseen"]["accuracy"],
        }.items():
            assert measured[name] == pytest.approx(value, rel=1e-4), name
        assert not math.isclose(expected["accuracy"], expected["macro_accuracy"], rel_tol=1e-4)

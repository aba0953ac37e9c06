"""Training of the challenge's baseline: steps of its public code, schedule and augmentations."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import set_seed

from dataset_script.waveforms import FULL_SCALE
from modeling_cpmobile import CPMobileConfig, CPMobileFeatureExtractor, CPMobileForAudioClassification
from modeling_cpmobile.convert_cpmobile import convert_state_dict, infer_config
from tests.model_cards.helpers import TINY_BEATS
from tests.train.helpers import SCENES, make_dataset, make_trainer
from train.classification.schedules import warmup_cosine
from train.common.augmentations import FreqMixStyle, FrequencyMask, Mix, TimeRolling, freq_mixstyle
from train.common.models import new_teacher
from train.common.recipes import load_recipe
from train.common.seeds import EpochShuffle


GOLDEN = Path(__file__).parents[2] / "golden" / "cpmobile"

BASELINE = {
    "schedule": "warmup_cosine",
    "warmup_steps": 3,
    "learning_rate": 0.005,
    "weight_decay": 1e-4,
    "time_rolling": 0.1,
    "frequency_mask_size": 0.1875,
    "freq_mixstyle_alpha": 0.3,
    "freq_mixstyle_p": 1.0,
    "freq_mixstyle_per_clip": True,
}
"""Arguments of the recipe, but with few steps of warm-up, and Freq-MixStyle in every batch."""


def make_student(**config):
    set_seed(0)
    return CPMobileForAudioClassification(CPMobileConfig(base_channels=8, id2label=dict(enumerate(SCENES)), **config))


def make_extractor():
    return CPMobileFeatureExtractor(feature_size=64, sampling_rate=4000, n_fft=512, win_length=400, hop_length=62)


def baseline_trainer(output_dir, dataset, model=None, **arguments):
    return make_trainer(
        output_dir, dataset, model=model or make_student(), extractor=make_extractor(), **{**BASELINE, **arguments}
    )


def test_arguments_are_those_of_the_recipe():
    recipe = load_recipe("baseline", "split5")
    assert {name: recipe[name] for name in BASELINE} == BASELINE | {"warmup_steps": 2000, "freq_mixstyle_p": 0.4}


@pytest.mark.processor
@pytest.mark.parametrize("schedule", ["constant", "warmup_cosine"])
def test_losses_of_six_adamw_steps(tmp_path, schedule):
    """The distributed inputs are in single precision, and AdamW amplifies rounding, hence the tolerance."""
    reference = load_file(GOLDEN / "train_step.safetensors")
    state_dict = {
        name.removeprefix("state_dict."): value for name, value in reference.items() if "state_dict." in name
    }
    arguments = {"max_steps": 10, "batch_size": 6, "schedule": schedule, "logging_strategy": "steps"}
    arguments |= {"warmup_steps": 3 if schedule == "warmup_cosine" else 0, "logging_steps": 1}
    model = convert_state_dict(state_dict, infer_config(state_dict)).double()
    trainer = baseline_trainer(tmp_path, make_dataset(6), model, **arguments)
    mixed = freq_mixstyle(reference["input"].double(), Mix(reference["lam"], reference["perm"]))
    trainer.augmented_inputs = lambda *_: ({"input_values": mixed}, None)
    trainer.rows.resize(6)
    batch = {"labels": reference["labels"], "waveform": None, "device": None}
    trainer.get_train_dataloader = lambda: DataLoader([batch], batch_size=None, sampler=EpochShuffle(1, 0))
    trainer.train()
    history = [entry for entry in trainer.state.log_history if "loss" in entry][:6]
    assert [entry["loss"] for entry in history] == pytest.approx(reference[f"{schedule}.losses"].tolist(), abs=1e-5)


@pytest.mark.parametrize("warmup_steps", [3, 0.2, 0])
def test_rate_changes_with_every_step(tmp_path, warmup_steps):
    trainer = baseline_trainer(tmp_path, make_dataset(20), warmup_steps=warmup_steps)
    scheduler = trainer.create_scheduler(15, torch.optim.SGD(trainer.model.parameters(), lr=1.0))
    rates = []
    for _ in range(15):
        rates.append(scheduler.get_last_lr()[0])
        scheduler.optimizer.step()
        scheduler.step()
    steps = 3 if warmup_steps else 0  # a fifth of 15 is 3
    assert rates == pytest.approx([warmup_cosine(step, 15, steps) for step in range(15)])


def test_a_long_warmup_is_shortened(tmp_path, caplog):
    trainer = baseline_trainer(tmp_path, make_dataset(20), warmup_steps=2000)
    with caplog.at_level("WARNING"):
        scheduler = trainer.create_scheduler(15, torch.optim.SGD(trainer.model.parameters(), lr=1.0))
    assert "The warm-up is shortened to 7 steps, half of the training." in caplog.text
    assert scheduler.lr_lambdas[0](7) == 1.0


def test_order_of_the_augmentations(tmp_path):
    """Clips are rolled, bands masked in the log-mel of the rolled clips, and statistics mixed last."""
    dataset = make_dataset(8)
    trainer = baseline_trainer(tmp_path, dataset)
    batch = dataset.__getitems__(list(range(8)))
    trainer._generator = torch.Generator().manual_seed(3)
    inputs, mix = trainer.augmented_inputs(batch["waveform"], batch["device"])
    assert mix is None
    generator, extractor = torch.Generator().manual_seed(3), make_extractor()
    rolling = TimeRolling(400)
    clips = rolling.apply(batch["waveform"] / FULL_SCALE, rolling.draw(8, generator))
    features = FrequencyMask(0.1875, torch.tensor(1e-5).log().item())(extractor.features(clips), generator)
    expected = FreqMixStyle(0.3, 1.0, per_clip=True)(features, generator)
    torch.testing.assert_close(inputs["input_values"], expected, atol=1e-5, rtol=0)


def test_masks_are_for_students(tmp_path):
    overrides = ",".join(f"{name}={value}" for name, value in TINY_BEATS.items())
    teacher, extractor = new_teacher(SCENES, None, overrides)
    with pytest.raises(ValueError, match=r"frequency_mask_size is 0\.2, but a beats model is not a student"):
        make_trainer(tmp_path, make_dataset(8), model=teacher, extractor=extractor, frequency_mask_size=0.2)


def test_training_learns(tmp_path):
    dataset, other = make_dataset(60), make_dataset(30, seed=1)
    settings = {"batch_size": 20, "num_train_epochs": 20, "freq_mixstyle_p": 0.0}
    trainer = baseline_trainer(tmp_path, dataset, **settings)
    trainer.eval_dataset = other
    trainer.train()
    assert trainer.evaluate()["eval_macro_accuracy"] > 0.7  # chance is 0.33

"""Runs: which clips are trained and selected on, which epoch is kept, and what is reported of it."""

import io
import json
import logging
import math

import datasets
import numpy as np
import pytest
import soundfile
import torch
from safetensors.torch import load_file

from dataset_script.errors import InputError
from dataset_script.splits import SCENES as TAU_SCENES
from modeling_tfsepnet import TFSepNetForAudioClassification
from tests.train.helpers import DEVICES, SCENES, make_dataset, make_extractor, make_model
from train.classification import training
from train.classification.arguments import DataArguments
from train.classification.data import split_by_location
from train.classification.training import (
    choose_validation_fraction,
    impulse_response_folder,
    run_training,
    warn_of_unfinished_cycle,
)
from train.classification.training_arguments import SceneTrainingArguments
from train.evaluation.metrics import scene_metrics


def with_audio(dataset) -> datasets.Dataset:
    """The scenes of a dataset with their waveforms as WAV files."""
    audio = []
    for waveform in dataset.waveforms:
        file = io.BytesIO()
        soundfile.write(file, waveform, 4000, format="WAV")
        audio.append({"bytes": file.getvalue(), "path": None})
    return dataset.scenes.add_column("audio", audio).cast_column("audio", datasets.Audio(decode=False))


@pytest.fixture(scope="module")
def scenes() -> datasets.DatasetDict:
    """Clips for training, with the logits of two teachers, and for tests, which have one device more."""
    dataset = make_dataset(60, teachers=2)
    seen = [row for row, device in enumerate(dataset.scenes["device"]) if DEVICES[device] != "s4"]
    splits = {"train": dataset.subset(seen), "test": make_dataset(22, seed=1)}
    return datasets.DatasetDict({split: with_audio(dataset) for split, dataset in splits.items()})


@pytest.fixture
def run(tmp_path, scenes, monkeypatch):
    """Function that runs training; returns the trainer and the results."""
    trainers = []

    class Trainer(training.DistillationTrainer):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            trainers.append(self)

    monkeypatch.setattr(training, "DistillationTrainer", Trainer)

    def run(policy, **arguments):
        settings = {
            "batch_size": 8,
            "num_train_epochs": 2,
            "use_cpu": True,
            "report_to": "none",
            "save_total_limit": 9,
        }
        args = SceneTrainingArguments(output_dir=str(tmp_path / "run"), **settings | arguments)
        data_args = DataArguments(cache_dir=str(tmp_path / "cache"), **policy)
        model = make_model(dropout=0.3)
        results = run_training(model, make_extractor(), scenes, data_args, args, {"recipe": "mine"})
        return trainers[-1], results

    return run


POLICIES = {"validation_fraction": 0.3, "select_on_test": True}


@pytest.mark.parametrize("policy", [*POLICIES, "last epoch"])
def test_weights_of_the_selected_epoch_are_kept(tmp_path, run, monkeypatch, policy):
    """Accuracies are scripted: epoch 3 has the best macro accuracy, and others the best of the other metrics."""
    scripted = {
        "macro_accuracy": [0.4, 0.1, 0.9, 0.5, 0.3],
        "accuracy": [0.9, 0.8, 0.1, 0.2, 0.3],
        "log_loss": [0.3, 0.9, 0.5, 0.1, 0.2],
    }
    epochs = iter(zip(*scripted.values(), strict=True))
    monkeypatch.setattr(
        training.DistillationTrainer,
        "compute_scene_metrics",
        lambda self, prediction: dict(zip(scripted, next(epochs), strict=True)),
    )
    run({policy: POLICIES[policy]} if policy in POLICIES else {}, num_train_epochs=5, first_cycle=100)

    folder = tmp_path / "run"
    checkpoints = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    assert len(checkpoints) == 5, "every epoch should have a checkpoint"
    kept = load_file(folder / "model.safetensors")
    same = [
        all(torch.equal(value, kept[name]) for name, value in load_file(checkpoint / "model.safetensors").items())
        for checkpoint in checkpoints
    ]
    selected = 3 if policy in POLICIES else 5
    assert [epoch for epoch, equal in enumerate(same, 1) if equal] == [selected], (
        f"the weights of epoch {selected} should be kept with {policy}"
    )


class TestEarlyStopping:
    """Macro accuracies are scripted: epoch 2 is the best of the first five, and later ones would be better."""

    SCRIPTED = (0.4, 0.6, 0.5, 0.6, 0.1, 0.9, 0.9, 0.9)

    @pytest.fixture
    def script(self, monkeypatch):
        def metrics(trainer, prediction):
            return {"macro_accuracy": self.SCRIPTED[round(trainer.state.epoch) - 1]}

        monkeypatch.setattr(training.DistillationTrainer, "compute_scene_metrics", metrics)

    def test_stops_after_epochs_without_a_better_one(self, script, run, tmp_path, caplog):
        caplog.set_level(logging.INFO, "train")
        policy = {"validation_fraction": 0.3, "early_stopping_patience": 3}
        trainer, _ = run(policy, num_train_epochs=8, first_cycle=100)
        assert trainer.state.epoch == 5, "epochs 3, 4 and 5 are not better than epoch 2"
        assert "No better epoch in 3: training stopped early." in caplog.text
        best = tmp_path / "run" / trainer.state.best_model_checkpoint / "model.safetensors"
        assert best.read_bytes() == (tmp_path / "run" / "model.safetensors").read_bytes()

    @pytest.mark.parametrize("epoch", [4, 5])
    def test_a_resumed_run_stops_at_the_same_epoch(self, script, run, tmp_path, monkeypatch, epoch):
        """Also if it was interrupted between the last epoch and the results."""
        policy = {"validation_fraction": 0.3, "early_stopping_patience": 3}
        original = training.DistillationTrainer._save_checkpoint

        def interrupted(trainer, *arguments):
            original(trainer, *arguments)
            if round(trainer.state.epoch) == epoch:
                raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(training.DistillationTrainer, "_save_checkpoint", interrupted)
            with pytest.raises(KeyboardInterrupt):
                run(policy, num_train_epochs=8, first_cycle=100)
        trainer, _ = run(policy, num_train_epochs=8, first_cycle=100)
        assert trainer.state.epoch == 5

    @pytest.mark.parametrize(
        ("policy", "message"),
        [
            ({"early_stopping_patience": 2}, "set --validation_fraction as well"),
            ({"early_stopping_patience": 0, "validation_fraction": 0.1}, "early_stopping_patience is 0"),
        ],
    )
    def test_needs_clips_to_measure_on(self, policy, message):
        with pytest.raises(InputError, match=message):
            DataArguments(**policy)


def test_final_metrics_reach_the_services(run, monkeypatch):
    """As logs of the trainer, which its callbacks for TensorBoard, trackio and W&B report."""
    logged = []
    monkeypatch.setattr(
        "transformers.integrations.TensorBoardCallback.on_log",
        lambda self, args, state, control, logs, **others: logged.append(dict(logs)),
    )
    _, results = run({}, report_to="tensorboard", num_train_epochs=1)
    final = {f"test_{name}": results["metrics"][name] for name in ("macro_accuracy", "accuracy", "log_loss")}
    assert final.items() <= logged[-1].items()


@pytest.mark.parametrize("policy", [*POLICIES, "last epoch"])
def test_clips_of_training_and_of_selection(run, scenes, policy):
    trainer, results = run({policy: POLICIES[policy]} if policy in POLICIES else {}, num_train_epochs=1, seed=5)
    rows, selection = range(len(scenes["train"])), None
    if policy == "validation_fraction":
        rows, held_out = split_by_location(scenes["train"], POLICIES[policy], seed=5)
        selection = scenes["train"].select(held_out)
    elif policy == "select_on_test":
        selection = scenes["test"]
    assert results["training_clips"] == len(rows), "the other clips should be trained on"
    assert list(trainer.train_dataset.scenes["filename"]) == [scenes["train"]["filename"][row] for row in rows]
    teachers = np.mean([scenes["train"][f"teacher_logits_t{index}"] for index in range(2)], axis=0)[list(rows)]
    trained_on = trainer.train_dataset.__getitems__(list(range(len(rows))))
    np.testing.assert_allclose(trained_on["teacher_logits"], teachers, rtol=1e-6, err_msg="the teachers' mean logits")
    if selection is None:
        assert trainer.eval_dataset is None
        return
    selected_on = trainer.eval_dataset.__getitems__(list(range(len(selection))))
    assert list(trainer.eval_dataset.scenes["filename"]) == list(selection["filename"]), "clips of the selection"
    assert selected_on["labels"].tolist() == list(selection["label"])
    assert set(selected_on) == {"waveform", "labels", "device"}, "teachers should play no part in the selection"


@pytest.mark.parametrize("policy", [{}, {"select_on_test": True}], ids=["last epoch", "first epoch"])
def test_results_are_those_of_the_saved_weights_on_the_test_split(tmp_path, run, scenes, monkeypatch, policy):
    """Of clean clips, by the network in evaluation mode."""
    accuracies = iter([0.9, 0.1])
    monkeypatch.setattr(
        training.DistillationTrainer,
        "compute_scene_metrics",
        lambda self, prediction: {"macro_accuracy": next(accuracies)},
    )
    _, results = run(policy, freq_mixstyle_p=1.0, mixup_alpha=0.3, spec_augment_size=0.3)
    assert json.loads((tmp_path / "run" / "results.json").read_text())["metrics"] == results["metrics"]
    waveforms = np.stack([soundfile.read(io.BytesIO(audio["bytes"]))[0] for audio in scenes["test"]["audio"]])
    model = TFSepNetForAudioClassification.from_pretrained(tmp_path / "run").eval()
    with torch.no_grad():
        logits = model(make_extractor().features(torch.tensor(waveforms, dtype=torch.float32))).logits
    test = scenes["test"]
    cities = [test.features["city"].names[index] for index in test["city"]]
    expected = scene_metrics(
        logits,
        test["label"],
        labels=SCENES,
        devices=[DEVICES[index] for index in test["device"]],
        cities=cities,
        unseen_devices=["s4"],
        bootstrap=1000,
        clusters=[f"{city}-{location}" for city, location in zip(cities, test["location"], strict=True)],
    )
    assert results["metrics"].keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, float):
            value = pytest.approx(value, rel=1e-4)
        elif name in ("device_wise", "device_groups", "city_wise", "class_wise"):
            value = {group: pytest.approx(metrics, rel=1e-4) for group, metrics in value.items()}
        assert results["metrics"][name] == value, f"{name} should be that of the saved weights on clean test clips"
    assert results["unseen_devices"] == ["s4"]
    assert (results["training_clips"], results["split"], results["recipe"]) == (len(scenes["train"]), "test", "mine")


def test_interrupted_run_resumes_from_its_checkpoint(run, scenes, monkeypatch):
    steps_per_epoch, steps, training_step = (
        math.ceil(len(scenes["train"]) / 8),
        [],
        training.DistillationTrainer.training_step,
    )

    def interrupted_once(self, *arguments):
        steps.append(self.state.global_step)
        if len(steps) == steps_per_epoch + 3:
            raise KeyboardInterrupt
        return training_step(self, *arguments)

    monkeypatch.setattr(training.DistillationTrainer, "training_step", interrupted_once)
    with pytest.raises(KeyboardInterrupt):
        run({})
    steps.clear()
    run({})
    assert steps == list(range(steps_per_epoch, 2 * steps_per_epoch)), "the second epoch alone should be repeated"


class TestDefaultValidationFraction:
    """Own recordings are held out where that costs little; the corpora of the report are trained on as a whole."""

    def fraction(self, tmp_path, clips_by_recording, labels=("rain", "sea"), policy=None, **settings):
        """The fraction for recordings of two classes, by their numbers of clips."""
        rows = [(label, location) for location, (label, clips) in enumerate(clips_by_recording) for _ in range(clips)]
        features = {
            "label": datasets.ClassLabel(names=list(labels)),
            "city": datasets.ClassLabel(names=["unknown"]),
            "location": datasets.Value("int32"),
        }
        columns = {"label": [row[0] for row in rows], "city": [0] * len(rows), "location": [row[1] for row in rows]}
        scenes = {"train": datasets.Dataset.from_dict(columns, features=datasets.Features(features))}
        args = SceneTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **settings)
        return choose_validation_fraction(scenes, DataArguments(**policy or {}), args)

    def recordings(self, *counts, clips=5):
        return [(label, clips) for label, count in enumerate(counts) for _ in range(count)]

    @pytest.mark.parametrize(
        ("counts", "expected"), [((20, 20), 0.1), ((20, 300), 0.1), ((19, 300), 0.0), ((1, 1), 0.0)]
    )
    def test_each_class_needs_twenty_recordings(self, tmp_path, caplog, counts, expected):
        with caplog.at_level(logging.INFO, "train"):
            assert self.fraction(tmp_path, self.recordings(*counts)) == expected
        assert ("which takes 20 of each class: the last one is kept" in caplog.text) == (expected == 0)

    def test_a_long_recording_is_not_held_out(self, tmp_path):
        """Where the seed takes it first, half of the class would be gone; elsewhere two others are."""
        long_one = [(0, 100), *self.recordings(20, 20)]
        fractions = [self.fraction(tmp_path, long_one, seed=seed) for seed in range(30)]
        assert 0 < fractions.count(0.0) < 15 and set(fractions) == {0.0, 0.1}

    def test_classes_of_tau_are_trained_on_as_a_whole(self, tmp_path):
        recordings = self.recordings(*[20] * len(TAU_SCENES))
        assert self.fraction(tmp_path, recordings, labels=sorted(TAU_SCENES)) == 0.0

    @pytest.mark.parametrize("fraction", [0.0, 0.3])
    def test_the_argument_decides(self, tmp_path, fraction):
        policy = {"validation_fraction": fraction}
        assert self.fraction(tmp_path, self.recordings(20, 20), policy=policy) == fraction

    def test_other_choices_of_the_epoch(self, tmp_path):
        recordings = self.recordings(20, 20)
        assert self.fraction(tmp_path, recordings, policy={"select_on_test": True}) == 0.0
        assert self.fraction(tmp_path, recordings, save_strategy="no") == 0.0, "there are no epochs to choose from"


class TestImpulseResponses:
    """Those of the arguments, or else those beside the clips."""

    @pytest.fixture
    def corpus(self, tmp_path):
        (tmp_path / "corpus" / "audio").mkdir(parents=True)
        path = str(tmp_path / "corpus" / "audio" / "clip.wav")
        return {"train": [{"audio": {"bytes": None, "path": path}}]}

    def arguments(self, tmp_path, **settings):
        return SceneTrainingArguments(output_dir=str(tmp_path / "run"), use_cpu=True, **settings)

    def test_folder_of_the_corpus_is_the_default(self, tmp_path, corpus):
        folder = tmp_path / "corpus" / "impulse_responses"
        folder.mkdir()
        assert impulse_response_folder(corpus, self.arguments(tmp_path, impulse_response_p=0.5)) == str(folder)
        assert impulse_response_folder(corpus, self.arguments(tmp_path)) is None

    @pytest.mark.parametrize("p", [0.0, 0.5])
    def test_named_folder_is_used(self, tmp_path, corpus, p):
        (tmp_path / "corpus" / "impulse_responses").mkdir()
        args = self.arguments(tmp_path, impulse_response_p=p, impulse_responses="mine")
        assert impulse_response_folder(corpus, args) == "mine"

    def test_no_folder(self, tmp_path, corpus):
        embedded = {"train": [{"audio": {"bytes": b"RIFF", "path": None}}]}
        for scenes in (corpus, embedded):
            with pytest.raises(ValueError, match=r"impulse_response_p is set, but .*set --impulse_responses"):
                impulse_response_folder(scenes, self.arguments(tmp_path, impulse_response_p=0.5))


class TestUnfinishedCycle:
    def warnings(self, tmp_path, caplog, **settings):
        args = SceneTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **settings)
        with caplog.at_level(logging.WARNING, "train"):
            warn_of_unfinished_cycle(args)
        return [record.getMessage() for record in caplog.records]

    @pytest.mark.parametrize(
        "settings, percentage, first_cycle, epochs",
        [
            ({"num_train_epochs": 20}, 50, 20, "10, 30, 70 or 150"),
            ({"num_train_epochs": 5}, 50, 5, "10, 30, 70 or 150"),
            ({"num_train_epochs": 99.5}, 69, 100, "70, 150, 310 or 630"),
            ({"num_train_epochs": 7, "first_cycle": 3, "cycle_factor": 1}, 75, 7, "6, 9, 12 or 15"),
        ],
    )
    def test_warning_names_the_rate_and_the_fix(self, tmp_path, caplog, settings, percentage, first_cycle, epochs):
        assert self.warnings(tmp_path, caplog, **settings) == [
            f"The learning rate ends at {percentage} % of its initial value, in the middle of a cycle: set "
            f"first_cycle to {first_cycle}, or num_train_epochs to {epochs}."
        ]

    @pytest.mark.parametrize(
        "settings",
        [
            {"num_train_epochs": 10},
            {"num_train_epochs": 150},
            {"num_train_epochs": 12, "first_cycle": 4, "cycle_factor": 2},
            {"num_train_epochs": 20, "schedule": "warmup_linear"},
            {"num_train_epochs": 20, "schedule": "constant"},
            {"num_train_epochs": 20, "max_steps": 500},
        ],
    )
    def test_finished_cycles_are_fine(self, tmp_path, caplog, settings):
        assert self.warnings(tmp_path, caplog, **settings) == []

"""Students that learn from sound without labels: batches, targets, rules and whole runs."""

import json

import datasets
import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import TrainerState

from dataset_script import load_scenes, write_logits
from dataset_script.errors import InputError
from model_cards.tables import comparison_table
from train.classification.arguments import DataArguments, DistillationArguments
from train.classification.data import NO_LABEL, MixedDataset, SceneDataset, UnlabelledBatches
from train.classification.losses import DistillationLoss
from train.classification.semi_supervised import find_sound, unlabelled_batches
from train.classification.unlabelled import UnlabelledClips
from train.common.augmentations import Mix
from train.common.seeds import MixedShuffle
from train.common.waveforms import Resampled, Shards
from train.distill import main as distill


class TestBatches:
    @pytest.mark.parametrize(
        ("rows", "others", "batch", "per_batch"), [(46, 646, 32, 24), (10, 3, 8, 2), (7, 5, 7, 6)]
    )
    def test_every_batch_has_its_part(self, rows, others, batch, per_batch):
        sampler = MixedShuffle(rows, others, batch, per_batch, seed=0)
        epochs = []
        for epoch in range(6):
            sampler.set_epoch(epoch)
            epochs.append(list(sampler))
            assert len(epochs[-1]) == len(sampler)
            assert sorted(row for row in epochs[-1] if row < rows) == list(range(rows))
            batches = [epochs[-1][start : start + batch] for start in range(0, len(epochs[-1]), batch)]
            for number, members in enumerate(batches):
                labelled = sum(row < rows for row in members)
                if number < len(batches) - 1:
                    assert labelled == batch - per_batch
                else:
                    assert abs((len(members) - labelled) - labelled * per_batch / (batch - per_batch)) <= 0.5
        counts = np.bincount([row - rows for epoch in epochs for row in epoch if row >= rows], minlength=others)
        assert counts.max() - counts.min() <= 1  # all are used equally often, over the ends of epochs
        assert epochs[0] != epochs[1]

    def test_an_epoch_does_not_depend_on_those_before(self):
        sampler, fresh = (MixedShuffle(46, 646, 32, 24, seed=3) for _ in range(2))
        for epoch in range(4):
            sampler.set_epoch(epoch)
            last = list(sampler)
        fresh.set_epoch(3)
        assert list(fresh) == last

    def test_rows_of_both_kinds(self):
        columns = {"label": [2, 0, 1], "device": [0, 1, 2], "filename": ["a", "b", "c"]}
        scenes = datasets.Dataset.from_dict(columns)
        labelled = SceneDataset(scenes, np.arange(len(scenes) * 4, dtype=np.int16).reshape(-1, 4))
        labelled.columns["teacher_logits"] = np.zeros((len(scenes), 3), np.float32)
        waveforms, logits = np.full((5, 4), 7, np.int16), np.arange(15, dtype=np.float32).reshape(5, 3)
        mixed = MixedDataset(labelled, UnlabelledBatches(waveforms, logits, per_batch=2))
        first = len(labelled)
        batch = mixed.__getitems__([1, first + 4, 0, first])
        assert batch["labels"].tolist() == [scenes["label"][1], scenes["label"][0], NO_LABEL, NO_LABEL]
        assert batch["device"][2:].tolist() == [-1, -1]
        np.testing.assert_array_equal(batch["waveform"], [*labelled.waveforms[[1, 0]], *waveforms[:2]])
        np.testing.assert_array_equal(batch["teacher_logits"][2:], logits[[4, 0]])
        before = {name: value.clone() for name, value in batch.items()}
        mixed.move_waveforms(torch.device("cpu"))
        after = mixed.__getitems__([1, first + 4, 0, first])
        assert all(torch.equal(after[name], value) for name, value in before.items())


class TestLoss:
    def test_clips_without_labels_have_the_distillation_term_only(self):
        generator = torch.Generator().manual_seed(0)
        student, teacher = torch.randn(2, 6, 4, generator=generator)
        labels = torch.tensor([0, 1, 2, NO_LABEL, NO_LABEL, NO_LABEL])
        loss = DistillationLoss(temperature=2.0, kd_lambda=0.3)(student, labels, teacher)
        divergence = F.kl_div(F.log_softmax(student / 2, 1), F.softmax(teacher / 2, 1), reduction="none").sum(1) * 4
        entropy = F.cross_entropy(student[:3], labels[:3], reduction="sum")
        torch.testing.assert_close(loss, (0.3 * entropy + 0.7 * divergence.sum()) / 6)

    def test_partners_keep_their_part_of_the_label_loss(self):
        student = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
        mix = Mix(0.25, torch.tensor([1, 0]))
        loss = DistillationLoss().label_loss(student, torch.tensor([2, NO_LABEL]), mix)
        expected = -(0.25 * F.log_softmax(student, 1)[0, 2] + 0.75 * F.log_softmax(student, 1)[1, 2]) / 2
        torch.testing.assert_close(loss, expected)


class TestTargets:
    @pytest.fixture
    def clips(self):
        return UnlabelledClips(["a", "b#0", "b#1"], Shards([np.arange(12, dtype=np.int16).reshape(3, 4)]), 4, [])

    def write(self, folder, logits, names=("b#1", "a", "b#0")):
        write_logits(
            folder, list(names), np.array(logits, np.float32), teacher="t", revision="1", label_names=["x", "y"]
        )
        return str(folder)

    def test_teachers_are_averaged_by_name(self, clips, tmp_path):
        first = self.write(tmp_path / "1", [[6, 0], [0, 2], [3, 3]])
        second = self.write(tmp_path / "2", [[0, 2], [2, 2], [1, 5]])
        args = DistillationArguments(teachers=["t"])
        batches = unlabelled_batches(clips, {"one": first, "two": second}, ["x", "y"], args, 32)
        np.testing.assert_array_equal(batches.teacher_logits, [[1, 2], [2, 4], [3, 1]])
        assert batches.per_batch == 24

    def test_unsure_clips_are_left_out(self, clips, tmp_path, caplog):
        folder = self.write(tmp_path / "1", [[6, 0], [0, 0.1], [0, 3]])
        args = DistillationArguments(teachers=["t"], unlabelled_confidence=0.9)
        batches = unlabelled_batches(clips, {"one": folder}, ["x", "y"], args, 32)
        np.testing.assert_array_equal(batches.teacher_logits, [[0, 3], [6, 0]])
        np.testing.assert_array_equal(batches.waveforms[:], clips.waveforms[[1, 2]])
        args.unlabelled_confidence = 0.999
        with pytest.raises(InputError, match=r"not as confident as unlabelled_confidence 0\.999 .*0\.998.* at most"):
            unlabelled_batches(clips, {"one": folder}, ["x", "y"], args, 32)

    def test_a_missing_clip_is_named(self, clips, tmp_path):
        folder = self.write(tmp_path / "1", [[6, 0], [0, 1]], names=("a", "b#0"))
        with pytest.raises(InputError, match=r"no row for b#1"):
            unlabelled_batches(clips, {"one": folder}, ["x", "y"], DistillationArguments(teachers=["t"]), 32)

    def test_resampled_rows(self):
        time = np.arange(8000) / 8000
        tone = np.rint(8000 * np.sin(2 * np.pi * 440 * time)).astype(np.int16)
        rows = Resampled(Shards([np.stack([tone, -tone])]), 8000, 16_000)[[1, 0]]
        expected = 8000 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
        np.testing.assert_allclose(rows[1, 500:-500], expected[500:-500], atol=2)
        np.testing.assert_allclose(rows[0], -rows[1], atol=1)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"teachers": []}, "there are none: set --teachers"),
        ({"teachers": [], "unlabelled": [], "labels_alone": True}, "with and without teachers: set --teachers"),
        ({"unlabelled_fraction": 1.0}, r"unlabelled_fraction is 1\.0"),
        ({"unlabelled_clips": 0}, "unlabelled_clips is 0"),
        ({"unlabelled_confidence": 1.0}, r"unlabelled_confidence is 1\.0"),
    ],
)
def test_what_cannot_work_is_refused(settings, message):
    with pytest.raises(InputError, match=message):
        DistillationArguments(**{"teachers": ["t"], "unlabelled": ["sound"], **settings})


class TestRuns:
    @pytest.fixture
    def command(self, demo_corpus, demo_cache, tmp_path):
        """Distillation on a tenth of the demo corpus, of logits of all its clips."""
        scenes = load_scenes("demo", demo_corpus, cache_dir=demo_cache)["train"]
        logits = np.random.default_rng(0).normal(size=(len(scenes), 10))
        write_logits(tmp_path / "logits", scenes["filename"][:], logits, teacher="t", revision="1", synthetic=True)
        common = [
            "--recipe",
            "s1",
            "--dataset",
            "demo10",
            "--data_dir",
            str(demo_corpus),
            "--cache_dir",
            str(demo_cache),
        ]
        common += ["--use_cpu", "--disable_tqdm", "True", "--report_to", "none", "--impulse_response_p", "0"]
        common += ["--config_overrides", "base_channels=4,num_mel_bins=32", "--batch_size", "16"]
        return [*common, "--num_train_epochs", "2", "--first_cycle", "2", "--teachers", str(tmp_path / "logits")]

    def test_a_run_learns_from_both(self, command, tmp_path, caplog):
        caplog.set_level("INFO", "train")
        results = distill([*command, "--unlabelled", "demo", "--output_dir", str(tmp_path / "run")])
        clips = results["training_clips"]
        assert results["unlabelled"]["clips"] == 220 - clips and results["unlabelled"]["per_batch"] == 12
        assert f"all {clips} labelled clips once, with {round(clips * 3)} of {220 - clips}" in caplog.text
        run = json.loads((tmp_path / "run" / "run.json").read_text())
        assert run["unlabelled"] == ["demo"] and run["unlabelled_fraction"] == 0.75
        assert distill([*command, "--unlabelled", "demo", "--output_dir", str(tmp_path / "run")])["metrics"]
        assert "already finished" in caplog.text

    def test_labels_alone_for_as_many_steps(self, command, tmp_path):
        """The comparison is with the model that the command without teachers trains for as many steps."""
        options = ["--unlabelled", "demo", "--labels_alone", "--output_dir", str(tmp_path / "run")]
        results = distill([*command, *options])
        alone = tmp_path / "run" / "labels_alone"
        states = [TrainerState.load_from_json(str(path)) for path in tmp_path.glob("run/**/trainer_state.json")]
        # 20 labelled clips: 5 batches of 4 and 12 others, or 2 batches of 16 and 4.
        assert {state.max_steps for state in states} == {10} and len(list(alone.glob("checkpoint-*"))) > 0
        run = json.loads((alone / "run.json").read_text())
        assert (run["num_train_epochs"], run["first_cycle"], run["teachers"]) == (5, 5, [])
        its_own = json.loads((alone / "results.json").read_text())["metrics"]
        compared = results["labels_alone"]
        assert compared["macro_accuracy"] == its_own["macro_accuracy"]
        assert compared["confidence_intervals"] == its_own["confidence_intervals"]
        gain = results["metrics"]["macro_accuracy"] - its_own["macro_accuracy"]
        assert compared["difference"]["difference"] == pytest.approx(gain, abs=1e-12)
        assert "| student, labels alone |" in comparison_table(results)
        assert (tmp_path / "run" / "comparison.png").is_file()
        by_itself = distill([*command, "--unlabelled", "demo", "--output_dir", str(tmp_path / "by_itself")])
        assert by_itself["metrics"] == results["metrics"]

    def test_rules_of_the_challenge(self, command, tmp_path):
        with pytest.raises(InputError, match=r"demo has clips of TAU outside of demo10, such as audio/.* DCASE 2024"):
            distill([*command, "--unlabelled", "demo", "--edition", "2024", "--output_dir", str(tmp_path / "run")])
        assert not (tmp_path / "run").exists()
        args = DistillationArguments(edition="2025")
        with pytest.raises(InputError, match=r"DCASE 2025 are those of split25, not of split10: change --dataset"):
            find_sound({}, args, DataArguments(dataset="split10"))
        assert find_sound({}, args, DataArguments(dataset="split25")) is None

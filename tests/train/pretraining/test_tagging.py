"""Fine-tuning on clips with several labels: lists of any form, weights, mean average precision, resuming."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import soundfile
import torch
from sklearn.metrics import average_precision_score

from modeling_beats import BeatsForAudioClassification, BeatsModel
from tests.train.common.test_resumable import kill_at, run_until_killed
from tests.train.helpers import REPOSITORY
from tests.train.pretraining.test_pretraining import assert_equal_weights, weights
from train.common.distributed import BatchRows
from train.common.models import new_teacher
from train.common.recipes import load_recipe
from train.finetune_audioset import main as finetune_audioset
from train.pretraining.crops import SegmentBatches
from train.pretraining.labels import class_indices, load_class_names, load_tagged
from train.pretraining.tagging import TaggedSegments, tagging_metrics
from train.pretraining.trainers import SegmentTrainer, teacher_output


TINY = (
    "num_mel_bins=32,num_hidden_layers=2,hidden_size=32,embedding_size=32,num_attention_heads=2,intermediate_size=32,"
    "num_conv_pos_embeddings=4,num_conv_pos_embedding_groups=2,layerdrop=0.0,hidden_dropout=0.0,attention_dropout=0.0,"
    "embedding_dropout=0.0,classifier_dropout=0.0"
)
TONES = {"/m/low": 300, "/m/mid": 1100, "/m/high": 3500, "/m/top": 6500}
"""Labels, and the frequency in Hz of the tone that a clip with that label holds."""


def write_corpus(folder: Path, clips: int) -> None:
    """Clips with one to three tones in noise, and lists of labels as AudioSet's: three quarters to train on."""
    rng = np.random.default_rng(0)
    (folder / "audio").mkdir(parents=True)
    lines = []
    for clip in range(clips):
        labels = sorted(rng.choice(list(TONES), size=rng.integers(1, 4), replace=False))
        seconds = rng.choice([0.4, 0.5, 0.7])
        time = np.arange(int(16_000 * seconds)) / 16_000
        sound = sum(np.sin(2 * np.pi * TONES[label] * time + rng.uniform(0, 6)) for label in labels)
        soundfile.write(folder / "audio" / f"Y{clip:03d}.wav", 0.1 * sound + 0.02 * rng.normal(size=len(time)), 16_000)
        lines.append(f'{clip:03d}, 30.000, 40.000, "{",".join(labels)}"\n')
    head = "# Segments\n# num_ytids=0\n# YTID, start_seconds, end_seconds, positive_labels\n"
    (folder / "train.csv").write_text(head + "".join(lines[clips // 4 :]) + 'gone, 0.000, 10.000, "/m/low"\n')
    (folder / "test.csv").write_text(head + "".join(lines[: clips // 4]))
    names = "".join(f"{index},{label},Tone {hertz}\n" for index, (label, hertz) in enumerate(TONES.items()))
    (folder / "classes.csv").write_text("index,mid,display_name\n" + names)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tagged")
    write_corpus(folder, 160)
    return folder


def arguments(corpus, folder, *options) -> list[str]:
    defaults = {
        "recipe": "audioset20k",
        "dataset": str(corpus / "audio"),
        "labels": str(corpus / "train.csv"),
        "test_labels": str(corpus / "test.csv"),
        "class_names": str(corpus / "classes.csv"),
        "output_dir": str(folder),
        "config_overrides": TINY,
        "segment_seconds": "0.5",
        "batch_size": "12",
        "gradient_accumulation_steps": "1",
        "max_steps": "6",
        "warmup_steps": "2",
        "learning_rate": "3e-3",
        "save_steps": "2",
        "logging_steps": "2",
        "dataloader_num_workers": "0",
        "bf16": "False",
        "use_cpu": "True",
        "disable_tqdm": "True",
        "report_to": "none",
        "log_level": "warning",
    }
    defaults |= dict(zip(options[::2], options[1::2], strict=True))
    return [text for name, value in defaults.items() for text in (f"--{name}", value)]


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """An encoder to start from, which the recipe expects."""
    folder = tmp_path_factory.mktemp("start")
    torch.manual_seed(0)
    model, extractor = new_teacher(["x", "y"], config_overrides=TINY)
    extractor.feature_size = 32
    model.beats.save_pretrained(folder)
    extractor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def short_run(corpus, start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("short") / "run"
    return folder, finetune_audioset(arguments(corpus, folder, "model_name_or_path", start))


@pytest.fixture(scope="module")
def trained(corpus, start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained") / "run"
    options = ("model_name_or_path", start, "max_steps", "150", "warmup_steps", "15", "save_steps", "150")
    return folder, finetune_audioset(arguments(corpus, folder, *options))


class TestLists:
    def test_of_audioset(self, corpus, caplog):
        """Comments, blanks after commas, several labels, an absent clip, and files that are called Y and the id."""
        files, tags = load_tagged(str(corpus / "audio"), str(corpus / "train.csv"))
        with (corpus / "train.csv").open() as stream:
            rows = list(csv.reader(stream, skipinitialspace=True))[3:-1]
        assert [file.name for file in files] == [f"Y{row[0]}.wav" for row in rows]
        assert tags == [row[-1].split(",") for row in rows]
        assert "1 of 121 files" in caplog.text and "gone" in caplog.text

    @pytest.mark.parametrize("name", ["deep/one.wav", "one.wav", "one.mp3", "one"])
    def test_of_ones_own(self, tmp_path, name):
        (tmp_path / "deep").mkdir()
        soundfile.write(tmp_path / "deep" / "one.wav", np.zeros(100), 16_000)
        (tmp_path / "list.csv").write_text(f'fname,labels,split\n{name},"rain, wind",train\n')
        assert load_tagged(str(tmp_path), str(tmp_path / "list.csv"))[1] == [["rain", "wind"]]

    def test_ambiguous_names_are_refused(self, tmp_path):
        for folder in ("a", "b"):
            (tmp_path / folder).mkdir()
            soundfile.write(tmp_path / folder / "one.wav", np.zeros(100), 16_000)
        (tmp_path / "list.csv").write_text("one,rain\n")
        with pytest.raises(ValueError, match=r"'one', which is .*a/one\.wav and .*b/one\.wav: give paths"):
            load_tagged(str(tmp_path), str(tmp_path / "list.csv"))
        (tmp_path / "list.csv").write_text("b/one.wav,rain\n")
        assert load_tagged(str(tmp_path), str(tmp_path / "list.csv"))[0] == [tmp_path / "b" / "one.wav"]

    @pytest.mark.parametrize("feature", [datasets.Value("string"), datasets.ClassLabel(names=["rain", "wind"])])
    def test_of_the_hub(self, tmp_path, feature):
        values = [["wind"], ["rain", "wind"]]
        columns = {"audio": [{"bytes": b"", "path": "x"}] * 2, "labels": values, "caption": ["", ""]}
        features = datasets.Features(
            {
                "audio": {"bytes": datasets.Value("binary"), "path": datasets.Value("string")},
                "labels": datasets.List(feature),
                "caption": datasets.Value("string"),
            }
        )
        datasets.Dataset.from_dict(columns, features).to_parquet(str(tmp_path / "train.parquet"))
        loaded, tags = load_tagged(str(tmp_path))
        assert tags == values
        assert loaded.column_names == ["audio"]

    def test_classes_of_audioset(self, corpus, tmp_path):
        assert load_class_names(str(corpus / "classes.csv")) == {label: f"Tone {hz}" for label, hz in TONES.items()}
        (tmp_path / "wrong.csv").write_text("a,b\n1,2\n")
        with pytest.raises(ValueError, match="lacks the columns index, mid and display_name"):
            load_class_names(str(tmp_path / "wrong.csv"))

    def test_unknown_labels_are_refused(self):
        with pytest.raises(ValueError, match="1 labels are not among the 2 classes to train, such as 'c'"):
            class_indices([["a"], ["c", "b"]], ["a", "b"])


class TestMetrics:
    def test_by_hand(self):
        """One class ranked perfectly, one with its only clip second of four, one that does not occur."""
        targets = np.array([[1, 0, 0], [1, 1, 0], [0, 0, 0], [0, 0, 0]])
        logits = np.array([[3.0, 9.0, 0.0], [2.0, 5.0, 0.0], [1.0, 1.0, 0.0], [0.0, 2.0, 0.0]])
        metrics = tagging_metrics(logits, targets, ["a", "b", "c"])
        assert metrics["average_precision"] == {"a": 1.0, "b": 0.5, "c": None}
        assert metrics["map"] == 0.75
        assert metrics["chance"] == pytest.approx((2 / 4 + 1 / 4) / 2)

    def test_is_the_macro_average_of_scikit_learn(self):
        rng = np.random.default_rng(0)
        targets, logits = rng.integers(2, size=(50, 6)), rng.normal(size=(50, 6))
        metrics = tagging_metrics(logits, targets, list("abcdef"))
        assert metrics["map"] == pytest.approx(average_precision_score(targets, logits, average="macro"))


class TestBalance:
    def test_classes_come_up_equally_often(self, tmp_path):
        """99 clips of one class and one of another: each is half of what is drawn (six standard deviations)."""
        soundfile.write(tmp_path / "x.wav", np.zeros(4000), 16_000)
        tags = [[0]] * 99 + [[1]]
        dataset = TaggedSegments([tmp_path / "x.wav"] * 100, tags, 2, 0.25, 16_000, seed=0, balanced=True)
        batches = SegmentBatches(100, 10, 200, 0, BatchRows(1, 0), dataset.weights)
        rare = np.mean([row == 99 for batch in batches for _, row in batch])
        assert abs(rare - 0.5) < 6 * (0.25 / 2000) ** 0.5
        assert dataset[0, 99][1].tolist() == [0, 1]


class TestTraining:
    def test_learns_the_labels(self, trained, corpus):
        """The mean average precision is that of the saved model, and far above chance."""
        folder, results = trained
        metrics = results["metrics"]
        assert metrics["map"] > 0.95 > 0.7 > metrics["chance"]
        assert list(metrics["average_precision"]) == [f"Tone {hertz}" for hertz in TONES.values()]
        assert json.loads((folder / "results.json").read_text()) == results
        assert results["training_clips"] == 120 and metrics["clips"] == 40
        model = BeatsForAudioClassification.from_pretrained(folder)
        assert model.config.problem_type == "multi_label_classification"
        assert model.config.id2label == {index: f"Tone {hertz}" for index, hertz in enumerate(TONES.values())}

    def test_starts_a_teacher_of_scenes(self, trained):
        """The encoder is kept, the classifier is new, several labels are no more."""
        torch.manual_seed(0)
        teacher, extractor = new_teacher(["airport", "bus", "park"], str(trained[0]))
        encoder = BeatsModel.from_pretrained(trained[0])
        for name, value in encoder.state_dict().items():
            assert torch.equal(teacher.beats.state_dict()[name], value), name
        assert teacher.classifier.weight.shape == (3, 32)
        assert teacher.config.problem_type == "single_label_classification"
        assert extractor.feature_size == 32

    def test_is_a_teacher_of_a_tokenizer(self, trained):
        """What a tokenizer learns from it are probabilities of the classes for each patch."""
        model = BeatsForAudioClassification.from_pretrained(trained[0])
        features = torch.randn(2, 32, 32)
        targets = teacher_output(model, features, None)
        expected = model.classifier(model.beats(features).last_hidden_state).sigmoid()
        torch.testing.assert_close(targets, expected)
        assert targets.shape == (2, 4, 4)

    def test_first_loss_is_that_of_the_start(self, corpus, start, tmp_path):
        """Without augmentation it is the binary cross-entropy of the first batch over all clips and classes."""
        options = ("model_name_or_path", start, "max_steps", "1", "spec_augment_size", "0", "mixup_alpha", "0")
        options += ("batch_size", "120", "learning_rate", "0", "logging_steps", "1")
        results = finetune_audioset(arguments(corpus, tmp_path / "run", *options))
        state = json.loads((tmp_path / "run" / "checkpoint-1" / "trainer_state.json").read_text())
        assert results["arguments"]["mixup_alpha"] == 0
        model = BeatsForAudioClassification.from_pretrained(tmp_path / "run")
        files, tags = load_tagged(str(corpus / "audio"), str(corpus / "train.csv"))
        dataset = TaggedSegments(files, class_indices(tags, list(TONES)), 4, 0.5, 16_000, seed=42)
        segments, targets = zip(*(dataset[0, row] for row in range(120)), strict=True)
        waveform = torch.from_numpy(np.stack([np.resize(segment, 8000) for segment in segments])) / 2**15
        extractor = new_teacher(["x", "y"], config_overrides=TINY)[1]
        extractor.feature_size = 32
        logits = model(extractor.fbank(waveform)).logits.double()
        targets = torch.from_numpy(np.stack(targets)).double()
        expected = -(targets * logits.sigmoid().log() + (1 - targets) * (-logits).sigmoid().log()).mean()
        assert state["log_history"][0]["loss"] == pytest.approx(expected.item(), abs=1e-4)

    def test_killed_run_goes_on_to_the_same_weights(self, corpus, start, short_run, tmp_path, monkeypatch):
        command = arguments(corpus, tmp_path / "run", "model_name_or_path", start)
        with monkeypatch.context() as patch:
            kill_at(patch, SegmentTrainer, "training_step", 3)
            assert run_until_killed(finetune_audioset, command) == signal.SIGKILL
        assert run_until_killed(finetune_audioset, command) == 0
        assert_equal_weights(tmp_path / "run", short_run[0])
        assert finetune_audioset(command)["metrics"] == short_run[1]["metrics"]

    def test_two_processes_equal_one(self, corpus, start, short_run, tmp_path):
        """Also with an odd batch; mixup and SpecAugment are drawn for the whole batch."""
        options = ("model_name_or_path", start, "max_steps", "3", "batch_size", "7", "balanced", "True")
        one = finetune_audioset(arguments(corpus, tmp_path / "one", *options))
        command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
        command += ["--main_process_port", "0", "train/finetune_audioset.py"]
        environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
        result = subprocess.run(
            [*command, *arguments(corpus, tmp_path / "two", *options)],
            cwd=REPOSITORY,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert result.returncode == 0, result.stderr[-3000:]
        first, second = weights(tmp_path / "one"), weights(tmp_path / "two")
        for name, value in first.items():
            if not name.endswith("k_proj.bias"):  # whose gradient is nothing but rounding error
                torch.testing.assert_close(second[name], value, rtol=0, atol=1e-6, msg=name)
        two = json.loads((tmp_path / "two" / "results.json").read_text())
        assert two["metrics"]["map"] == pytest.approx(one["metrics"]["map"], abs=1e-3)


def test_cost_is_measured_before_anything_is_written(corpus, tmp_path, capsys):
    """Also before there is a model to start from."""
    options = ("model_name_or_path", "no/such", "max_steps", "50000", "gradient_accumulation_steps", "5")
    cost = finetune_audioset([*arguments(corpus, tmp_path / "run", *options), "--dry_run"])
    assert (cost["steps"], cost["segments_per_step"]) == (50_000, 60)
    seconds = 60 / cost["segments_per_second"] + cost["optimizer_seconds"]
    assert cost["days"] == pytest.approx(50_000 * seconds / 86_400)
    assert cost["read_per_second"] > 0
    assert "50,000 steps of 60 segments of 0.5 s" in capsys.readouterr().out
    assert not (tmp_path / "run").exists()


class TestArguments:
    def test_recipes(self):
        for name, clips, steps, rate in (("audioset2m", 1000, 50_000, 1e-4), ("audioset20k", 80, 80_000, 3e-5)):
            recipe = load_recipe(name)
            assert recipe["batch_size"] * recipe["gradient_accumulation_steps"] == clips
            assert (recipe["max_steps"], recipe["warmup_steps"]) == (steps, steps // 10)
            assert recipe["learning_rate"] == rate
            assert recipe["model_name_or_path"] == load_recipe("pretrain_iter2")["output_dir"]
            assert recipe.get("balanced", False) == (name == "audioset2m")

    @pytest.mark.parametrize(
        ("options", "error", "message"),
        [
            (("test_labels", "none.csv"), FileNotFoundError, "There is no list of labels none.csv"),
            (("class_names", "none.csv"), FileNotFoundError, "There is no list of classes none.csv"),
            (("dataset", "no/such"), FileNotFoundError, "no/such is no folder"),
            (("model_name_or_path", "no/such"), FileNotFoundError, "no/such is no model"),
            (("mixup_alpha", "-1"), ValueError, "alpha of Soft Mixup is -1.0"),
            (("spec_augment_size", "2"), ValueError, "size of SpecAugment is 2.0"),
        ],
    )
    def test_wrong_arguments(self, corpus, start, tmp_path, options, error, message):
        with pytest.raises(error, match=message):
            finetune_audioset(arguments(corpus, tmp_path / "run", "model_name_or_path", start, *options))
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize(
        ("content", "error", "message"),
        [
            ("000\n", ValueError, "gives '000' no label"),
            ('000,0,1," "\n', ValueError, "gives '000' no label"),
            ("file,split,labels\n000,test\n", ValueError, "gives '000' no label"),
            ("other,rain\n", FileNotFoundError, "holds none of the 1 files"),
            ("", FileNotFoundError, "lists no files"),
            ("000,/m/none\n", ValueError, "not among the 4 classes to train, such as '/m/none'"),
        ],
    )
    def test_wrong_lists(self, corpus, start, tmp_path, content, error, message):
        (tmp_path / "list.csv").write_text(content)
        options = ("model_name_or_path", start, "test_labels", str(tmp_path / "list.csv"))
        with pytest.raises(error, match=message):
            finetune_audioset(arguments(corpus, tmp_path / "run", *options))
        assert not (tmp_path / "run").exists()

    @pytest.mark.parametrize("part", ["train", "test"])
    def test_damaged_clips_are_named_before_training(self, part, corpus, start, tmp_path):
        shutil.copytree(corpus, tmp_path / "corpus")
        name = "159" if part == "train" else "000"
        (tmp_path / "corpus" / "audio" / f"Y{name}.wav").write_bytes(b"no sound")
        with pytest.raises(ValueError, match=rf"Y{name}\.wav cannot be decoded .*: mend it"):
            finetune_audioset(arguments(tmp_path / "corpus", tmp_path / "run", "model_name_or_path", start))
        assert not (tmp_path / "run").exists()

    def test_folder_without_lists(self, corpus):
        with pytest.raises(ValueError, match="audio is a folder of audio files: name the lists of their labels"):
            load_tagged(str(corpus / "audio"))

    def test_hub_dataset_without_lists(self, tmp_path):
        columns = {"audio": [{"bytes": b"", "path": "x"}], "labels": ["rain"]}
        datasets.Dataset.from_dict(columns).to_parquet(str(tmp_path / "train.parquet"))
        with pytest.raises(ValueError, match="has no column 'labels' with a list"):
            load_tagged(str(tmp_path))

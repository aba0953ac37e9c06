"""Pre-training from the command line's point of view: audio of any kind, all stages, resuming, processes, cost."""

import errno
import io
import json
import os
import re
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
from datasets.exceptions import DatasetGenerationError
from safetensors.torch import load_file

from modeling_beats import (
    BeatsFeatureExtractor,
    BeatsForAudioClassification,
    BeatsForTokenizerTraining,
    BeatsModel,
    BeatsRandomProjectionTokenizer,
    BeatsTokenizerModel,
)
from modeling_beats.convert_beats import convert
from tests.modeling_beats.helpers import load_case
from tests.train.common.test_resumable import kill_at, run_until_killed
from tests.train.helpers import REPOSITORY
from train.common.distributed import BatchRows
from train.common.models import override
from train.common.recipes import FOLDER, load_recipe
from train.pretrain_teacher import main as pretrain_teacher
from train.pretraining.crops import (
    SegmentBatches,
    SegmentCollator,
    Segments,
    StreamedSegments,
    load_unlabelled,
    read_segment,
)
from train.pretraining.trainers import CodeWindow, PretrainingTrainer


TINY = (
    "num_mel_bins=32,num_hidden_layers=2,hidden_size=16,embedding_size=16,num_attention_heads=2,intermediate_size=16,"
    "num_conv_pos_embeddings=4,num_conv_pos_embedding_groups=2,num_predictor_layers=1,num_estimator_layers=1,"
    "codebook_size=16,codebook_dim=8,layerdrop=0.0,hidden_dropout=0.0,attention_dropout=0.0,embedding_dropout=0.0"
)
LENGTHS = {
    "a.wav": (8_000, 16_000),
    "b/c.flac": (44_100, 100_000),
    "b/d.ogg": (22_050, 20_000),
    "e.wav": (16_000, 900),
}
"""Files: rate in Hz, samples. The last one is shorter than a patch."""


@pytest.fixture(scope="module")
def audio(tmp_path_factory):
    """Folder of recordings of several formats, rates, lengths and channels."""
    folder = tmp_path_factory.mktemp("audio")
    (folder / "b").mkdir()
    for index, (name, (rate, samples)) in enumerate(LENGTHS.items()):
        noise = np.random.default_rng(index).normal(size=(samples, 2 if name.endswith("flac") else 1))
        soundfile.write(folder / name, np.clip(noise / 10, -1, 1), rate)
    (folder / "notes.txt").write_text("no audio")
    return folder


@pytest.fixture(scope="module")
def parquet(audio, tmp_path_factory):
    """The same recordings in a table."""
    path = tmp_path_factory.mktemp("table") / "train.parquet"
    content = [{"bytes": (audio / name).read_bytes(), "path": name} for name in LENGTHS]
    table = datasets.Dataset.from_dict({"audio": content, "caption": list(LENGTHS)})
    table.cast_column("audio", datasets.Audio(decode=False)).to_parquet(str(path))
    return path.parent


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    """`datasets` waits five seconds at the end of every pass over a shuffled stream."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0)


def arguments(folder, dataset, *options) -> list[str]:
    defaults = {
        "dataset": str(dataset),
        "output_dir": str(folder),
        "config_overrides": TINY,
        "segment_seconds": "0.5",
        "batch_size": "4",
        "max_steps": "6",
        "warmup_steps": "2",
        "save_steps": "2",
        "logging_steps": "2",
        "use_cpu": "True",
        "disable_tqdm": "True",
        "report_to": "none",
        "log_level": "warning",
    }
    defaults |= dict(zip(options[::2], options[1::2], strict=True))
    return [text for name, value in defaults.items() for text in (f"--{name}", value)]


def of_tokenizer(teacher) -> tuple[str, ...]:
    """Options of the recipe whose tokenizer learns from `teacher`, and starts from its encoder."""
    folder = str(teacher)
    return ("recipe", "demo_pretrain_tokenizer", "teacher_name_or_path", folder, "model_name_or_path", folder)


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


def assert_equal_weights(folder, other) -> None:
    one, two = weights(folder), weights(other)
    assert one.keys() == two.keys()
    for name, value in one.items():
        assert torch.equal(value, two[name]), name


@pytest.fixture(scope="module")
def first_iteration(audio, tmp_path_factory):
    folder = tmp_path_factory.mktemp("first") / "run"
    return folder, pretrain_teacher(arguments(folder, audio))


@pytest.fixture(scope="module")
def tokenizer(audio, first_iteration, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer") / "run"
    return folder, pretrain_teacher(arguments(folder, audio, *of_tokenizer(first_iteration[0]), "max_steps", "4"))


class TestAudio:
    def test_folder(self, audio):
        files = load_unlabelled(str(audio))
        assert [str(path.relative_to(audio)) for path in files] == ["a.wav", "b/c.flac", "b/d.ogg", "e.wav"]

    def test_long_recordings_have_several_rows(self, audio):
        segments = Segments(load_unlabelled(str(audio)), 0.5, 16_000, seed=0)
        assert segments.clips.tolist() == [0] * 4 + [1] * 4 + [2, 3]
        assert [len(segments[3, row]) for row in range(10)] == [8000] * 9 + [900]

    def test_segments_stay_in_their_part_and_move_with_the_epoch(self, tmp_path):
        """A ramp tells where a segment was taken."""
        samples = np.linspace(0, 0.9, 16_000)
        soundfile.write(tmp_path / "ramp.wav", samples, 16_000, subtype="FLOAT")
        segments = Segments([tmp_path / "ramp.wav"], 0.25, 16_000, seed=0)
        starts = np.array([[segments[epoch, row][0] for row in range(4)] for epoch in range(20)]) / 2**15 / 0.9
        for row in range(4):
            low, high = row / 4 * 0.75, (row + 1) / 4 * 0.75
            assert ((low - 1e-3 <= starts[:, row]) & (starts[:, row] <= high + 1e-3)).all()
            assert len(set(starts[:, row])) > 15
        assert np.array_equal(segments[3, 1], Segments(segments.source, 0.25, 16_000, seed=0)[3, 1])

    def test_channels_are_averaged_and_rates_converted(self, tmp_path):
        time = np.arange(44_100) / 44_100
        left = 0.5 * np.sin(2 * np.pi * 440 * time)
        soundfile.write(tmp_path / "tone.wav", np.stack([left, np.zeros_like(left)], axis=1), 44_100, subtype="FLOAT")
        segment = read_segment({"path": str(tmp_path / "tone.wav")}, 1.0, 16_000, 0.0) / 2**15
        expected = 0.25 * np.sin(2 * np.pi * 440 * np.arange(16_000) / 16_000)
        assert len(segment) == 16_000
        assert np.abs(segment - expected)[200:-200].max() < 1e-3

    def test_table_and_stream_give_the_same_clips(self, parquet):
        loaded = datasets.load_dataset("parquet", data_files=str(parquet / "train.parquet"), split="train")
        stream = datasets.load_dataset(
            "parquet", data_files=str(parquet / "train.parquet"), split="train", streaming=True
        )
        raw = [source.cast_column("audio", datasets.Audio(decode=False)) for source in (loaded, stream)]
        segments = Segments(raw[0], 2.0, 16_000, seed=0)
        streamed = iter(StreamedSegments(raw[1], 2.0, 16_000, seed=0))
        whole = {segments[0, row].tobytes() for row in range(4) if len(segments[0, row]) < 32_000}
        assert whole < {next(streamed).tobytes() for _ in range(4)}

    @pytest.mark.parametrize("streaming", [False, True])
    def test_folder_of_tables(self, parquet, streaming):
        """As it is downloaded from the Hub."""
        rows = list(load_unlabelled(str(parquet), streaming=streaming))
        assert [list(row) for row in rows] == [["audio"]] * len(LENGTHS)
        assert len(read_segment(rows[0]["audio"], 0.5, 16_000, 0.0)) == 8000

    def test_stream_goes_on_where_it_stopped(self, parquet):
        source = datasets.load_dataset(
            "parquet", data_files=str(parquet / "train.parquet"), split="train", streaming=True
        )
        source = source.cast_column("audio", datasets.Audio(decode=False))
        everything = iter(StreamedSegments(source, 0.5, 16_000, seed=0))
        everything = [next(everything) for _ in range(11)]
        rest = iter(StreamedSegments(source, 0.5, 16_000, seed=0, first=6))
        assert all(np.array_equal(next(rest), expected) for expected in everything[6:])

    @pytest.mark.parametrize(("num_shards", "lengths"), [(4, [3, 7]), (3, [3, 3])], ids=["shards", "every other clip"])
    def test_processes_share_a_stream(self, num_shards, lengths):
        """Shards of 1, 2, … clips. Passes that are over are not read again, up to the one whose length tells."""
        read = []

        def clips(shards):
            for shard in shards:
                for clip in range(1 + shard):
                    read.append(10 * shard + clip)
                    content = io.BytesIO()
                    soundfile.write(content, np.full(8000, read[-1], dtype=np.int16), 16_000, format="WAV")
                    yield {"audio": {"bytes": content.getvalue(), "path": None}}

        source = datasets.IterableDataset.from_generator(clips, gen_kwargs={"shards": list(range(num_shards))})
        passes = []
        for process, length in enumerate(lengths):
            segments = iter(StreamedSegments(source, 0.5, 16_000, 0, 2, process))
            everything = [int(next(segments)[0]) for _ in range(7 * length)]
            passes.append([everything[start : start + length] for start in range(0, len(everything), length)])
            assert len(set(map(tuple, passes[-1]))) > 1
            read.clear()
            rest = iter(StreamedSegments(source, 0.5, 16_000, 0, 2, process, first=5 * length + 1))
            assert [int(next(rest)[0]) for _ in range(length)] == everything[5 * length + 1 : 6 * length + 1]
            assert len(read) <= 3 * sum(lengths)
        for one, two in zip(*passes, strict=True):
            assert sorted(one + two) == [10 * shard + clip for shard in range(num_shards) for clip in range(1 + shard)]

    def test_short_clips_are_repeated_and_padded_ones_known(self):
        batch = SegmentCollator(10)([np.arange(4, dtype=np.int16), np.arange(12, dtype=np.int16)])
        assert batch["waveform"].tolist()[0] == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 0, 0]
        assert batch["num_samples"].tolist() == [10, 12]

    def test_every_row_once_an_epoch_and_processes_share_a_batch(self):
        whole = list(SegmentBatches(13, 4, 7, 0, BatchRows(1, 0)))
        parts = [list(SegmentBatches(13, 4, 7, 0, BatchRows(3, index))) for index in range(3)]
        assert [first + second + third for first, second, third in zip(*parts, strict=True)] == whole
        assert [index[0] for batch in whole for index in batch] == [0] * 12 + [1] * 12 + [2] * 4
        assert all(len({row for batch in whole[start : start + 3] for _, row in batch}) == 12 for start in (0, 3))
        assert whole[:3] != [[(0, row) for _, row in batch] for batch in whole[3:6]]

    def test_accumulated_batches_are_the_large_batch(self):
        large = list(SegmentBatches(16, 8, 2, 0, BatchRows(1, 0)))
        small = list(SegmentBatches(16, 4, 4, 0, BatchRows(1, 0)))
        assert [small[0] + small[1], small[2] + small[3]] == large

    @pytest.mark.parametrize(
        ("content", "fault"),
        [(b"", "cannot be decoded"), (b"RIFF....", "cannot be decoded"), (None, "has no samples")],
    )
    def test_damaged_files_are_named(self, tmp_path, content, fault):
        path = tmp_path / "x.wav"
        if content is None:
            soundfile.write(path, np.zeros(0), 16_000)
        else:
            path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"x\.wav {fault}"):
            Segments(load_unlabelled(str(tmp_path)), 1.0, 16_000, seed=0)

    def test_all_damaged_files_are_counted(self, tmp_path):
        soundfile.write(tmp_path / "a.wav", np.zeros(100), 16_000)
        for name in ("b.wav", "c.flac", "d.mp3"):
            (tmp_path / name).write_bytes(b"no sound")
        with pytest.raises(ValueError, match=r"b\.wav cannot be decoded .* \(and 2 of the other 3 files\): mend it"):
            Segments(load_unlabelled(str(tmp_path)), 1.0, 16_000, seed=0)

    def test_truncated_files_are_named(self, tmp_path):
        """What the head of a file promises may be missing; that is found when it is read."""
        soundfile.write(tmp_path / "x.flac", np.random.default_rng(0).normal(size=160_000) / 10, 16_000)
        content = (tmp_path / "x.flac").read_bytes()
        (tmp_path / "x.flac").write_bytes(content[: len(content) // 2])
        segments = Segments([tmp_path / "x.flac"], 1.0, 16_000, seed=0)
        with pytest.raises(ValueError, match=r"x\.flac (cannot be decoded|has no samples)"):
            [segments[0, row] for row in range(len(segments))]

    def test_values_that_are_not_finite_are_named(self, tmp_path):
        soundfile.write(tmp_path / "x.wav", np.array([0.0, np.nan] * 8000), 16_000, subtype="FLOAT")
        with pytest.raises(ValueError, match=r"x\.wav holds NaN"):
            Segments(load_unlabelled(str(tmp_path)), 1.0, 16_000, seed=0)

    def test_no_audio(self, tmp_path):
        (tmp_path / "._x.wav").write_bytes(b"what a Mac leaves")
        (tmp_path / "folder.wav").mkdir()
        with pytest.raises(FileNotFoundError, match=r"is a folder without audio files.*: give a folder"):
            load_unlabelled(str(tmp_path))
        with pytest.raises(FileNotFoundError, match="no/such is no folder"):
            load_unlabelled("no/such")
        (tmp_path / "notes.txt").write_text("no audio")
        with pytest.raises(ValueError, match="has neither audio files nor a column 'audio', only text: give"):
            load_unlabelled(str(tmp_path), cache_dir=str(tmp_path / "cache"))

    @pytest.mark.parametrize(
        "fault", [OSError("Not enough disk space. Needed: 1 TB"), OSError(errno.ENOSPC, "No space")]
    )
    def test_full_disks_are_named(self, parquet, fault, monkeypatch):
        """Before a download `datasets` compares sizes; while it writes the disk may still become full."""

        def load_dataset(*_, **__):
            raise DatasetGenerationError("An error occurred") from fault

        monkeypatch.setattr("train.pretraining.crops.datasets.load_dataset", load_dataset)
        with pytest.raises(OSError, match=r"some/set does not fit on the disk, where it needs twice .*--cache_dir"):
            load_unlabelled("some/set")


class TestWindow:
    def test_figures(self):
        window = CodeWindow(8, ("accuracy",), torch.device("cpu"))
        window.add(torch.tensor([0, 0, 1, 1]), torch.tensor(0.5))
        window.add(torch.tensor([2, 2, 3, 3, 3, 3, 3, 3]), torch.tensor(0.25))
        summary = window.summary()
        assert summary["accuracy"] == pytest.approx((4 * 0.5 + 8 * 0.25) / 12)
        assert summary["codebook_usage"] == 0.5
        assert summary["largest_share"] == 0.5
        shares = np.array([2, 2, 2, 6]) / 12
        assert summary["perplexity"] == pytest.approx(np.exp(-(shares * np.log(shares)).sum()))
        window.add(torch.tensor([7]), torch.tensor(1.0))
        assert window.summary()["perplexity"] == 1


class TestStages:
    def test_first_iteration(self, first_iteration):
        folder, results = first_iteration
        figures = results["figures"]
        assert {"loss", "masked_accuracy", "codebook_usage", "perplexity", "largest_share"} <= figures.keys()
        assert figures["step"] == 6
        labels = BeatsRandomProjectionTokenizer.from_pretrained(folder / "tokenizer")
        assert labels.quantizer.codebook.shape == (16, 8)
        model = BeatsModel.from_pretrained(folder)
        saved = weights(folder)
        assert torch.equal(
            model.encoder.layers[1].feed_forward.fc1.weight, saved["beats.encoder.layers.1.feed_forward.fc1.weight"]
        )
        assert BeatsForAudioClassification.from_pretrained(folder, num_labels=10).config.num_mel_bins == 32

    def test_tokenizer(self, tokenizer):
        folder, results = tokenizer
        assert {"similarity", "commitment_loss", "codebook_usage"} <= results["figures"].keys()
        saved = BeatsTokenizerModel.from_pretrained(folder)
        assert saved.quantizer.initialized
        assert saved.quantizer.cluster_size.sum() > 0

    def test_second_iteration(self, audio, tokenizer, tmp_path):
        options = ("recipe", "demo_pretrain_iter2", "tokenizer_name_or_path", str(tokenizer[0]), "max_steps", "2")
        results = pretrain_teacher(arguments(tmp_path / "run", audio, *options))
        assert results["figures"]["step"] == 2
        assert not (tmp_path / "run" / "tokenizer").exists()

    def test_classifier_as_teacher(self, audio, first_iteration, tmp_path):
        """The estimator learns the classes of a fine-tuned teacher."""
        BeatsForAudioClassification.from_pretrained(first_iteration[0], num_labels=3).save_pretrained(
            tmp_path / "teacher"
        )
        BeatsFeatureExtractor(feature_size=32).save_pretrained(tmp_path / "teacher")
        options = of_tokenizer(tmp_path / "teacher")
        pretrain_teacher(arguments(tmp_path / "run", audio, *options, "max_steps", "1"))
        assert BeatsForTokenizerTraining.from_pretrained(tmp_path / "run").estimator.output.out_features == 3

    def test_continues_from_an_encoder(self, audio, first_iteration, tmp_path):
        options = ("model_name_or_path", str(first_iteration[0]), "max_steps", "1", "learning_rate", "0.0")
        pretrain_teacher(arguments(tmp_path / "run", audio, *options))
        assert_equal_weights(tmp_path / "run", first_iteration[0])

    def test_continues_with_labels_of_another_tokenizer(self, audio, first_iteration, tmp_path):
        """Which has fewer codes: the encoder is kept, and the head is new."""
        config = override(BeatsModel.from_pretrained(first_iteration[0]).config, "codebook_size=5")
        BeatsRandomProjectionTokenizer(config).save_pretrained(tmp_path / "tokenizer")
        options = ("model_name_or_path", str(first_iteration[0]), "max_steps", "1", "learning_rate", "0.0")
        options += ("tokenizer_name_or_path", str(tmp_path / "tokenizer"))
        pretrain_teacher(arguments(tmp_path / "run", audio, *options))
        before, after = weights(first_iteration[0]), weights(tmp_path / "run")
        assert len(after["label_head.weight"]) == 5
        assert all(torch.equal(after[name], value) for name, value in before.items() if name.startswith("beats."))

    def test_continues_from_public_checkpoints(self, shared, audio, tmp_path):
        """The recipe for scenes, from a model and a tokenizer as the original implementation saves them."""
        for name, case in (("encoder", "case_a_public_like"), ("tokenizer", "tokenizer_a")):
            model = convert(load_case(shared, case)[1])
            model.save_pretrained(tmp_path / name)
            BeatsFeatureExtractor(feature_size=model.config.num_mel_bins).save_pretrained(tmp_path / name)
        options = ("recipe", "pretrain_scenes", "model_name_or_path", str(tmp_path / "encoder"), "max_steps", "1")
        options += ("tokenizer_name_or_path", str(tmp_path / "tokenizer"), "learning_rate", "0.0", "bf16", "False")
        options += ("config_overrides", "num_predictor_layers=1")
        options += ("gradient_accumulation_steps", "1", "dataloader_num_workers", "0")
        pretrain_teacher(arguments(tmp_path / "run", audio, *options))
        before, after = weights(tmp_path / "encoder"), weights(tmp_path / "run")
        for name, value in before.items():
            assert torch.equal(after[f"beats.{name}"], value), name
        assert len(after["label_head.weight"]) == convert(load_case(shared, "tokenizer_a")[1]).config.codebook_size

    def test_scenes(self, tmp_path, monkeypatch):
        """A configuration of the scenes is read through their builder."""
        rows = datasets.Dataset.from_dict({"audio": [{"bytes": None, "path": "x.wav"}], "label": [0]})
        monkeypatch.setattr("train.pretraining.crops.load_scenes", lambda name, *_, **__: {"train": rows})
        assert load_unlabelled("demo").column_names == ["audio"]
        with pytest.raises(ValueError, match="no split 'validation'"):
            load_unlabelled("demo", split="validation")


class TestResume:
    @pytest.mark.parametrize("stage", ["model", "tokenizer"])
    def test_killed_run_goes_on_to_the_same_weights(
        self, stage, audio, first_iteration, tokenizer, tmp_path, monkeypatch
    ):
        expected, options = first_iteration[0], ()
        if stage == "tokenizer":
            expected = tokenizer[0]
            options = (*of_tokenizer(first_iteration[0]), "max_steps", "4")
        command = arguments(tmp_path / "run", audio, *options)
        with monkeypatch.context() as patch:
            kill_at(patch, PretrainingTrainer, "training_step", 3)
            assert run_until_killed(pretrain_teacher, command) == signal.SIGKILL
        assert run_until_killed(pretrain_teacher, command) == 0
        assert_equal_weights(tmp_path / "run", expected)

    def test_stream(self, parquet, tmp_path, monkeypatch):
        source = datasets.load_dataset(
            "parquet", data_files=str(parquet / "train.parquet"), split="train", streaming=True
        )
        monkeypatch.setattr("train.pretraining.crops.datasets.load_dataset", lambda *_, **__: source)
        options = ("streaming", "True", "gradient_accumulation_steps", "2")
        pretrain_teacher(arguments(tmp_path / "one", "some/stream", *options))
        command = arguments(tmp_path / "two", "some/stream", *options)
        with monkeypatch.context() as patch:
            kill_at(patch, PretrainingTrainer, "training_step", 5)
            assert run_until_killed(pretrain_teacher, command) == signal.SIGKILL
        assert run_until_killed(pretrain_teacher, command) == 0
        assert_equal_weights(tmp_path / "one", tmp_path / "two")

    def test_finished_run_is_left_alone(self, audio, first_iteration, monkeypatch):
        monkeypatch.setattr(PretrainingTrainer, "training_step", None)
        assert pretrain_teacher(arguments(first_iteration[0], audio)) == first_iteration[1]


def test_two_processes_equal_one(audio, first_iteration, tmp_path):
    """Both stages, with clips of unequal length, so that the processes have unequal numbers of patches."""
    common = ["max_steps", "3", "batch_size", "5"]
    stages = {"model": common, "tokenizer": [*common, *of_tokenizer(first_iteration[0])]}
    for stage, options in stages.items():
        pretrain_teacher(arguments(tmp_path / "one" / stage, audio, *options))
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true"}
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--main_process_port", "0", "-m", "tests.train.pretraining_job"]
    command += [json.dumps(arguments(tmp_path / "two" / stage, audio, *options)) for stage, options in stages.items()]
    result = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    for stage in stages:
        one, two = weights(tmp_path / "one" / stage), weights(tmp_path / "two" / stage)
        for name, value in one.items():
            if not name.endswith("k_proj.bias"):  # whose gradient is nothing but rounding error
                torch.testing.assert_close(two[name], value, rtol=0, atol=1e-6, msg=name)


class TestCost:
    def test_full_recipe_needs_no_audio(self, capsys, monkeypatch, tmp_path):
        """The paper's schedule, with a network small enough for tests."""
        options = ["--recipe", "pretrain_iter1", "--dry_run"]
        monkeypatch.chdir(tmp_path)
        cost = pretrain_teacher([*options, "--config_overrides", TINY, "--report_to", "none"])
        report = capsys.readouterr().out
        assert "400,000 steps of 560 segments of 10 s (5,600 s of audio a step" in report
        assert cost["steps"] == 400_000
        seconds = 560 / cost["segments_per_second"] + cost["optimizer_seconds"]
        assert cost["days"] == pytest.approx(400_000 * seconds / 86_400)
        assert f"{cost['days']:,.1f} days" in report
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize(
        ("recipe", "guide"),
        [
            ("pretrain_tokenizer", BeatsModel),
            ("pretrain_iter2", BeatsTokenizerModel),
            ("pretrain_scenes", BeatsTokenizerModel),
        ],
    )
    def test_later_stages_need_no_models_either(self, recipe, guide, monkeypatch, tmp_path):
        """Random weights stand for what the stages before would have made; a run of the same refuses to start.

        Nor is the audio loaded that a recipe names.
        """
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("train.pretraining.crops.load_scenes", None)
        guides = []
        monkeypatch.setattr("train.pretrain_teacher.print_cost", lambda trainer: guides.append(trainer.guide))
        options = ["--recipe", recipe, "--config_overrides", TINY, "--report_to", "none"]
        pretrain_teacher([*options, "--dry_run"])
        assert [type(model) for model in guides] == [guide]
        assert guides[0].config.hidden_size == 16
        soundfile.write(tmp_path / "x.wav", np.zeros(16_000), 16_000)
        with pytest.raises(FileNotFoundError, match=r"is no model that can be loaded \(.*\): run what makes it first"):
            pretrain_teacher([*options, "--dataset", str(tmp_path)])
        assert [path.name for path in tmp_path.iterdir()] == ["x.wav"]

    def test_reading_is_measured_too(self, audio, tmp_path, capsys):
        cost = pretrain_teacher([*arguments(tmp_path / "run", audio), "--dry_run", "True"])
        assert cost["read_per_second"] > 0
        report = capsys.readouterr().out
        needed = int(re.search(r"by a worker: --dataloader_num_workers (\d+) keeps up", report).group(1))
        assert needed - 1 < cost["segments_per_second"] / cost["read_per_second"] <= needed
        assert f"{24 * cost['days']:.2f} hours" in report
        assert not (tmp_path / "run").exists()


class TestArguments:
    def test_recipes_of_the_paper(self):
        for name in ("pretrain_iter1", "pretrain_iter2", "pretrain_tokenizer"):
            recipe = load_recipe(name)
            assert (recipe["warmup_steps"], recipe["lr_scheduler_type"]) == (32_000, "linear")
            assert (recipe["adam_beta1"], recipe["adam_beta2"], recipe["weight_decay"]) == (0.9, 0.98, 0.01)
            seconds = recipe["segment_seconds"] * recipe["batch_size"] * recipe["gradient_accumulation_steps"]
            assert recipe["max_steps"] == 400_000
            assert seconds == (1400 if name == "pretrain_tokenizer" else 5600)
            assert recipe["learning_rate"] == (5e-5 if name == "pretrain_tokenizer" else 5e-4)
        assert load_recipe("pretrain_tokenizer")["teacher_name_or_path"] == load_recipe("pretrain_iter1")["output_dir"]
        assert (
            load_recipe("pretrain_iter2")["tokenizer_name_or_path"] == load_recipe("pretrain_tokenizer")["output_dir"]
        )
        assert len(list(FOLDER.glob("*pretrain*.yaml"))) == 7

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (("max_steps", "0"), "max_steps is 0"),
            (("segment_seconds", "0.1"), "segment_seconds is 0.1"),
            (("save_total_limit", "1"), "save_total_limit is 1"),
            (("stage", "tokenizer"), "A tokenizer needs a teacher"),
            (("config_overrides", "mask_ratio=1.5"), "mask_ratio is 1.5"),
            (("streaming", "True"), "needs no streaming"),
        ],
    )
    def test_wrong_arguments(self, audio, tmp_path, options, message):
        with pytest.raises(ValueError, match=message):
            pretrain_teacher(arguments(tmp_path / "run", audio, *options))
        assert not (tmp_path / "run").exists()

    def test_wrong_models(self, audio, first_iteration, tokenizer, tmp_path):
        model = str(first_iteration[0])
        for options, message in (
            (("tokenizer_name_or_path", model), "is a BeatsForPreTraining: give a tokenizer"),
            (
                ("tokenizer_name_or_path", str(tokenizer[0]), "config_overrides", "num_mel_bins=64"),
                "has num_mel_bins 32",
            ),
            (("model_name_or_path", model, "config_overrides", "hidden_size=32"), "no weights that fit"),
            (("config_overrides", "hidden_size=17"), "num_attention_heads is"),
            (("config_overrides", "hidden=16"), "config_overrides is 'hidden=16'"),
        ):
            with pytest.raises(ValueError, match=message):
                pretrain_teacher(arguments(tmp_path / "run", audio, *options))
        for folder, fault in (("damaged", "incomplete metadata"), ("unfinished", "no file named model.safetensors")):
            shutil.copytree(model, tmp_path / folder, ignore=shutil.ignore_patterns("checkpoint-*"))
            if folder == "damaged":
                content = (tmp_path / folder / "model.safetensors").read_bytes()
                (tmp_path / folder / "model.safetensors").write_bytes(content[: len(content) // 2])
            else:
                (tmp_path / folder / "model.safetensors").unlink()
            for options in (("model_name_or_path", str(tmp_path / folder)), of_tokenizer(tmp_path / folder)):
                with pytest.raises(ValueError, match=rf"{folder} cannot be loaded \(.*{fault}.*: finish the run"):
                    pretrain_teacher(arguments(tmp_path / "run", audio, *options))
        options = ("stage", "tokenizer", "teacher_name_or_path", str(first_iteration[0] / "tokenizer"))
        with pytest.raises(ValueError, match=r"tokenizer has no weights that fit \d+ parameters of a BeatsModel"):
            pretrain_teacher(arguments(tmp_path / "run", audio, *options))
        torch.save({}, tmp_path / "BEATs.pt")
        for option in ("model_name_or_path", "tokenizer_name_or_path"):
            with pytest.raises(ValueError, match=r"BEATs\.pt is a file, not a model folder: .*convert_beats"):
                pretrain_teacher(arguments(tmp_path / "run", audio, option, str(tmp_path / "BEATs.pt")))
        with pytest.raises(FileNotFoundError, match="no/such is no folder"):
            pretrain_teacher(arguments(tmp_path / "run", "no/such"))
        assert not (tmp_path / "run").exists()
        with pytest.raises(FileNotFoundError, match="is no model"):
            pretrain_teacher(arguments(tmp_path / "run", audio, "tokenizer_name_or_path", str(tmp_path)))

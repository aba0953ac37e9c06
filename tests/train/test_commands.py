"""The commands on the demo corpus with tiny networks, and their errors for invalid input."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForSequenceClassification, pipeline

from dataset_script import SCENES, decode_clip, load_scenes, read_logits, write_logits
from dataset_script.errors import InputError
from modeling_beats import BeatsConfig, BeatsFeatureExtractor, BeatsForAudioClassification
from tests.model_cards.helpers import TINY_BEATS
from train import predict_logits, run_eval
from train.classification.distillation import resolve_teachers
from train.common import models
from train.common.models import label_maps, load_classifier, new_student
from train.common.process import run_command
from train.distill import main as distill
from train.evaluation import inference
from train.evaluation.arguments import EvaluationArguments, PredictionArguments
from train.finetune_teacher import main as finetune_teacher


QUICK = ["--use_cpu", "True", "--disable_tqdm", "True", "--report_to", "none", "--num_train_epochs", "1"]


@pytest.fixture(scope="module")
def corpus(demo_corpus):
    return demo_corpus


@pytest.fixture(scope="module")
def cache(demo_cache):
    return demo_cache


@pytest.fixture(scope="module")
def data(corpus, cache):
    return ["--dataset", "demo10", "--data_dir", str(corpus), "--cache_dir", str(cache)]


@pytest.fixture
def student(data, tmp_path):
    """Arguments of a student small enough to be trained in a second."""
    network = "base_channels=8,num_mel_bins=64"
    output = ["--output_dir", str(tmp_path / "student"), "--config_overrides", network, "--batch_size", "10"]
    return ["--recipe", "s1", *data, *QUICK, *output]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """A model folder of a BEATs that knows the scenes."""
    return save_teacher(tmp_path_factory.mktemp("teacher") / "beats")


def save_teacher(folder, labels=SCENES):
    BeatsForAudioClassification(BeatsConfig(**TINY_BEATS, **label_maps(labels))).save_pretrained(folder)
    BeatsFeatureExtractor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def logits(tmp_path_factory, corpus, cache):
    """Logits of the clips of demo10."""
    filenames = load_scenes("demo10", corpus, cache_dir=cache)["train"]["filename"]
    folder = tmp_path_factory.mktemp("logits") / "random"
    values = np.random.default_rng(0).normal(size=(len(filenames), 10))
    write_logits(folder, filenames, values, teacher="random", revision="0")
    return folder


def files(folder):
    return {path.relative_to(folder): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_the_whole_chain(student, teacher, logits, corpus, tmp_path):
    """Three kinds of teachers, the student, its results, and the same command once more."""
    tiny = tmp_path / "tiny.yaml"
    overrides = ",".join(f"{name}={value}" for name, value in TINY_BEATS.items())
    tiny.write_text(yaml.safe_dump({"config_overrides": overrides, "batch_size": 10, "num_train_epochs": 1}))
    command = [*student, "--teachers", str(tiny), str(teacher), str(logits), str(tiny)]
    before = files(corpus), files(logits)

    results = distill(command)

    output = tmp_path / "student"
    assert json.loads((output / "results.json").read_text())["metrics"] == results["metrics"]
    assert results["metrics"]["clips"] == 180
    assert results["unseen_devices"] == ["s4", "s5", "s6"]
    assert results["selection"] == "last epoch"
    assert results["synthetic"] is True
    for name in ("confusion_matrix.svg", "devices.png", "learning_curve.png", "results.md", "model.safetensors"):
        assert (output / name).stat().st_size > 0, name
    table = (output / "results.md").read_text()
    airport = " | ".join(map(str, results["metrics"]["confusion_matrix"][0]))
    assert f"| airport | {airport} |" in table
    for city, figures in results["metrics"]["city_wise"].items():
        assert f"| city {city}" in table and figures["clips"] > 0
    assert {path.name for path in (output / "logits").iterdir()} == {"tiny", "beats", "tiny_2"}
    seeds = [json.loads((output / "teachers" / name / "run.json").read_text())["seed"] for name in ("tiny", "tiny_2")]
    assert seeds == [42, 43]
    assert (files(corpus), files(logits)) == before

    finished = files(output)
    assert distill(command)["metrics"] == results["metrics"]
    assert files(output) == finished
    with pytest.raises(FileExistsError, match="learning_rate"):
        distill([*command, "--learning_rate", "0.5"])

    clip = next((corpus / "audio").iterdir())
    answer = pipeline("audio-classification", str(output), trust_remote_code=True)(str(clip))
    assert answer[0]["label"] in SCENES


def test_validation_and_selection_on_test(student, logits, tmp_path):
    command = [*student, "--teachers", str(logits), "--num_train_epochs", "2"]
    held_out = distill([*command, "--validation_fraction", "0.4"])
    assert held_out["selection"] == "best epoch on held-out training locations"
    on_test = distill([*command, "--select_on_test", "True", "--output_dir", str(tmp_path / "other")])
    assert on_test["selection"] == "best epoch on the test split"
    assert held_out["training_clips"] < on_test["training_clips"]


class TestStart:
    """What training starts from."""

    @pytest.fixture
    def starts(self, monkeypatch):
        """Models and scenes that training would have started with."""
        calls = []

        def start(model, feature_extractor, scenes, *others, **settings):
            calls.append((model, scenes))
            raise KeyboardInterrupt

        for module in ("distillation", "training"):
            monkeypatch.setattr(f"train.classification.{module}.run_training", start)
        return calls

    @pytest.mark.parametrize("script", [distill, finetune_teacher])
    def test_seed_decides_the_first_weights(self, script, data, student, starts, tmp_path):
        overrides = ",".join(f"{name}={value}" for name, value in TINY_BEATS.items())
        command = (
            [*student, "--recipe", "vanilla"]
            if script is distill
            else ["--recipe", str(tmp_path / "new.yaml"), *data, *QUICK, "--config_overrides", overrides]
        )
        (tmp_path / "new.yaml").write_text("learning_rate: 1.0e-3\n")  # random weights
        for run, seed in enumerate((1, 1, 2)):
            with pytest.raises(KeyboardInterrupt):
                script([*command, "--seed", str(seed), "--output_dir", str(tmp_path / str(run))])
        first, same, other = (model.state_dict() for model, _ in starts)
        assert all(torch.equal(value, same[name]) for name, value in first.items()), "the same seed, the same weights"
        assert not all(torch.equal(value, other[name]) for name, value in first.items()), "another seed, other weights"

    def test_student_gets_the_logits_of_every_teacher(self, student, teacher, logits, starts, tmp_path):
        with pytest.raises(KeyboardInterrupt):
            distill([*student, "--teachers", str(teacher), str(logits)])
        clips = starts[0][1]["train"]
        for name, folder in (("beats", tmp_path / "student" / "logits" / "beats"), ("random", logits)):
            written = read_logits(folder)
            values = dict(zip(written.filenames, np.asarray(written.values), strict=True))
            expected = [values[filename] for filename in clips["filename"]]
            np.testing.assert_array_equal(clips[f"teacher_logits_{name}"], np.asarray(expected, np.float32))


def test_frozen_encoder_stays_as_it_is(data, teacher, tmp_path):
    output = tmp_path / "frozen"
    folders = ["--model_name_or_path", str(teacher), "--output_dir", str(output)]
    finetune_teacher(["--recipe", "ssl_star", *data, *QUICK, *folders, "--batch_size", "10"])
    before = BeatsForAudioClassification.from_pretrained(teacher).state_dict()
    after = BeatsForAudioClassification.from_pretrained(output).state_dict()
    changed = {name for name, value in after.items() if not value.equal(before[name])}
    assert changed == {"classifier.weight", "classifier.bias"}


class TestPredictLogits:
    def command(self, data, teacher, output):
        return [
            *data,
            "--use_cpu",
            "--model_name_or_path",
            str(teacher),
            "--output_dir",
            str(output),
        ]

    def test_logits_are_the_models(self, data, teacher, corpus, cache, tmp_path, monkeypatch):
        predict_logits.main(
            [*self.command(data, teacher, tmp_path / "out"), "--batch_size", "8", "--dtype", "float32"]
        )
        written = read_logits(tmp_path / "out")
        scenes = load_scenes("demo10", corpus, cache_dir=cache)["train"]
        assert written.filenames == list(scenes["filename"])
        assert not (tmp_path / "out" / "parts").exists()
        model = BeatsForAudioClassification.from_pretrained(teacher).eval()
        waveform, rate = decode_clip(scenes[3]["audio"])
        inputs = BeatsFeatureExtractor()(waveform, sampling_rate=rate, return_tensors="pt")
        expected = model(**inputs).logits[0].detach().numpy()
        np.testing.assert_allclose(written.values[3], expected, atol=2e-3)  # 16-bit waveforms

    def test_damaged_output_is_written_again(self, data, teacher, tmp_path, caplog):
        command = self.command(data, teacher, tmp_path / "out")
        predict_logits.main(command)
        (path,) = (tmp_path / "out" / "data").glob("*.parquet")
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        predict_logits.main(command)
        assert "Predicting the logits again" in caplog.text
        np.testing.assert_allclose(
            read_logits(tmp_path / "out").values,
            pq.read_table(pa.BufferReader(whole))["logits"].to_pylist(),
            rtol=1e-5,
        )

    def test_lower_precision(self, data, teacher, tmp_path, monkeypatch):
        command, values = self.command(data, teacher, tmp_path / "out"), {}
        for dtype in ("float32", "bfloat16", "int8"):
            predict_logits.main([*command[:-1], str(tmp_path / dtype), "--dtype", dtype])
            values[dtype] = np.asarray(read_logits(tmp_path / dtype).values)
        for dtype in ("bfloat16", "int8"):
            error = np.abs(values[dtype] - values["float32"]).max() / np.abs(values["float32"]).max()
            assert 0 < error < 0.05  # one number is off by up to 0.4 %
            with pytest.raises(FileExistsError, match="another run"):  # not half of the clips in each
                predict_logits.main([*command[:-1], str(tmp_path / "float32"), "--dtype", dtype])

    @pytest.mark.parametrize("fast", [True, False])
    def test_precision_that_suits(self, teacher, tmp_path, monkeypatch, fast):
        monkeypatch.setattr(models, "computes_bfloat16", lambda device: fast)
        dtype = torch.bfloat16 if fast else torch.float32
        assert load_classifier(str(teacher), dtype="auto")[0].dtype == dtype
        network, extractor = new_student(SCENES, "base_channels=16,num_mel_bins=64")
        network.save_pretrained(tmp_path)
        extractor.save_pretrained(tmp_path)
        assert load_classifier(str(tmp_path), dtype="auto")[0].dtype == torch.float32
        assert PredictionArguments(model_name_or_path="", output_dir="").dtype == "auto"
        assert EvaluationArguments(model_name_or_path="", output_dir="").dtype == "float32"

    def test_int8_is_for_linear_layers(self, tmp_path):
        network, extractor = new_student(SCENES, "base_channels=16,num_mel_bins=64")
        network.save_pretrained(tmp_path)
        extractor.save_pretrained(tmp_path)
        with pytest.raises(ValueError, match=r"no linear layers.*train/quantize\.py"):
            load_classifier(str(tmp_path), dtype="int8")

    def test_an_interrupted_run_resumes(self, data, teacher, tmp_path, monkeypatch):
        command = [*self.command(data, teacher, tmp_path / "out"), "--batch_size", "4"]
        monkeypatch.setattr(inference, "CLIPS_PER_PART", 8)
        original, calls = inference.compute_logits, []

        def interrupted(*arguments):
            calls.append(len(arguments[2]))
            if len(calls) == 2:
                raise KeyboardInterrupt
            return original(*arguments)

        monkeypatch.setattr(inference, "compute_logits", interrupted)
        with pytest.raises(KeyboardInterrupt):
            predict_logits.main(command)
        assert not (tmp_path / "out" / "README.md").exists()
        predict_logits.main(command)
        clips = len(read_logits(tmp_path / "out").filenames)
        assert sum(calls) - calls[1] == clips  # every part was computed once
        predict_logits.main(command)
        assert sum(calls) - calls[1] == clips

    def test_a_model_that_has_diverged(self, data, tmp_path, monkeypatch):
        diverged = save_teacher(tmp_path / "diverged")
        tensors = load_file(diverged / "model.safetensors")
        tensors["classifier.bias"][3] = float("nan")
        save_file(tensors, diverged / "model.safetensors", {"format": "pt"})
        with pytest.raises(ValueError, match=r"diverged gives audio/.*wav a logit that is not finite: train it again"):
            predict_logits.main(self.command(data, diverged, tmp_path / "out"))
        assert not (tmp_path / "out" / "README.md").exists()

    def test_logits_of_another_model_are_not_overwritten(self, data, teacher, tmp_path, monkeypatch):
        other = save_teacher(tmp_path / "other")
        for model, expectation in ((teacher, None), (other, FileExistsError)):
            command = self.command(data, model, tmp_path / "out")
            if expectation is None:
                predict_logits.main(command)
            else:
                with pytest.raises(expectation, match="another run"):
                    predict_logits.main(command)


def test_run_eval(data, teacher, tmp_path, monkeypatch):
    output = tmp_path / "evaluation"
    command = [*data, "--use_cpu", "--model_name_or_path", str(teacher), "--output_dir", str(output)]
    run_eval.main(command)
    run_eval.main(command)  # the same evaluation may be repeated, another one needs a folder of its own
    with pytest.raises(FileExistsError, match="split is 'test' there and 'train' here"):
        run_eval.main([*command, "--split", "train"])
    results = json.loads((output / "results.json").read_text())
    assert results["metrics"]["clips"] == 180
    assert set(results["metrics"]["device_wise"]) == {"a", "b", "c", "s1", "s2", "s3", "s4", "s5", "s6"}
    assert results["complexity"]["parameters"] == BeatsForAudioClassification.from_pretrained(teacher).num_parameters()
    low, high = results["metrics"]["confidence_intervals"]["macro_accuracy"]
    assert low <= results["metrics"]["macro_accuracy"] <= high
    assert (output / "confusion_matrix.png").is_file()


class TestPushOfTheEvaluatedModel:
    """`run_eval --push_to_hub`: a model folder without results gets those of the evaluation, and its card."""

    @pytest.fixture
    def command(self, data, teacher, tmp_path):
        shutil.copytree(teacher, tmp_path / "model")
        command = [
            *data,
            "--use_cpu",
            "--bootstrap",
            "10",
            "--push_to_hub",
            "--hub_model_id",
            "user/beats",
        ]
        return [*command, "--model_name_or_path", str(tmp_path / "model"), "--output_dir", str(tmp_path / "out")]

    def test_results_of_the_evaluation(self, command, tmp_path, monkeypatch):
        pushed = []
        monkeypatch.setattr(
            "train.common.hub.push_model", lambda folder, repo, private: pushed.append((str(folder), repo))
        )
        run_eval.main(command)
        assert pushed == [(str(tmp_path / "model"), "user/beats")]
        results, own = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("out", "model"))
        assert own == results

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            (["--split", "train"], "on the test split: leave out --split train"),
            (["--model_name_or_path", "user/model"], "user/model is not one"),
            (["--hub_model_id", ""], "set --hub_model_id user/name"),
            (["--bootstrap", "-1"], "bootstrap is -1"),
        ],
    )
    def test_refusals_come_first(self, command, monkeypatch, change, message):
        monkeypatch.setattr("train.evaluation.runs.load_clips", lambda args: pytest.fail("clips were loaded"))
        with pytest.raises(ValueError, match=message):
            run_eval.main([*command, *change])


def test_teachers_are_told_apart_and_named():
    teachers = resolve_teachers(["ssl", "runs/ssl", "ssl", "user/my-model", "my/ssl_star.yaml"], seed=7)
    assert [teacher.name for teacher in teachers] == ["ssl", "ssl_2", "ssl_3", "my_model", "ssl_star"]
    assert [teacher.kind for teacher in teachers] == ["recipe", "model", "recipe", "model", "recipe"]
    assert [teacher.seed for teacher in teachers] == [7, 7, 8, 7, 7]


class TestWrongInput:
    """One sentence, before anything is trained or written."""

    @pytest.fixture(autouse=True)
    def nothing_is_trained(self, monkeypatch):
        def train(*arguments, **settings):
            raise AssertionError("training began")

        monkeypatch.setattr("train.classification.trainer.DistillationTrainer.train", train)

    def refuse(self, command, message, tmp_path):
        with pytest.raises((InputError, OSError), match=message) as error:
            distill(command)
        text = str(error.value)
        assert "\n" not in text and text.endswith((".", ")."))
        assert not (tmp_path / "student").exists()

    def test_missing_corpus(self, student, tmp_path):
        self.refuse([*student, "--recipe", "vanilla", "--data_dir", str(tmp_path / "nowhere")], "nowhere", tmp_path)

    def test_unknown_recipe(self, student, tmp_path):
        self.refuse([*student, "--recipe", "s9"], "no recipe 's9'", tmp_path)

    def test_unknown_dataset(self, student, tmp_path):
        self.refuse([*student, "--recipe", "vanilla", "--dataset", "demo7"], "7", tmp_path)

    def test_logits_of_another_subset(self, student, logits, tmp_path):
        self.refuse([*student, "--dataset", "demo50", "--teachers", str(logits)], "no row for audio/", tmp_path)

    def test_no_such_teacher(self, student, tmp_path):
        self.refuse([*student, "--teachers", str(tmp_path / "nobody")], "nobody", tmp_path)

    @pytest.mark.parametrize("labels", [[*SCENES[1:], SCENES[0]], SCENES[:9], [*SCENES[:9], "kitchen"]])
    def test_teacher_with_other_labels(self, student, tmp_path, labels):
        other = save_teacher(tmp_path / "other", labels)
        self.refuse([*student, "--teachers", str(other)], "same classes in the same order", tmp_path)

    def test_logits_with_another_order_of_labels(self, student, corpus, cache, tmp_path):
        filenames = load_scenes("demo10", corpus, cache_dir=cache)["train"]["filename"]
        labels = [*SCENES[1:], SCENES[0]]
        values = np.zeros((len(filenames), 10))
        write_logits(tmp_path / "moved", filenames, values, teacher="t", revision="0", label_names=labels)
        self.refuse([*student, "--teachers", str(tmp_path / "moved")], "order", tmp_path)

    def test_missing_checkpoint_of_a_teachers_recipe(self, student, tmp_path):
        self.refuse([*student, "--teachers", "ssl"], "convert_beats", tmp_path)

    @pytest.mark.parametrize("damage", ["garbage", "absent", "incomplete", "of another size", "no extractor"])
    def test_damaged_teacher(self, student, tmp_path, damage):
        damaged = save_teacher(tmp_path / "damaged")
        weights = damaged / "model.safetensors"
        if damage == "garbage":
            weights.write_bytes(b"{}")
        elif damage == "absent":
            weights.unlink()
        elif damage == "incomplete":
            tensors = load_file(weights)
            del tensors["classifier.weight"]
            save_file(tensors, weights, {"format": "pt"})
        elif damage == "of another size":
            BeatsConfig.from_pretrained(damaged, intermediate_size=64).save_pretrained(damaged)
        else:
            (damaged / "preprocessor_config.json").unlink()
        self.refuse([*student, "--teachers", str(damaged)], "damaged cannot be loaded", tmp_path)

    def test_teacher_that_hears_nothing(self, student, tmp_path):
        labels = BertConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, **label_maps(SCENES))
        BertForSequenceClassification(labels).save_pretrained(tmp_path / "bert")
        self.refuse(
            [*student, "--teachers", str(tmp_path / "bert")],
            "for this kind of AutoModel",
            tmp_path,
        )

    @pytest.mark.parametrize(
        "recipe, message",
        [
            ("learning_rat: 1", "sets learning_rat"),
            ("learning_rate: -1", "learning_rate is -1"),
            ("impulse_response_p: 7", "The recipe .*mine.yaml.* is invalid: impulse_response_p is 7.0"),
        ],
    )
    def test_wrong_recipe_of_a_teacher(self, student, tmp_path, recipe, message):
        (tmp_path / "mine.yaml").write_text(recipe)
        self.refuse([*student, "--teachers", str(tmp_path / "mine.yaml")], message, tmp_path)

    def test_students_recipe_for_a_teacher(self, student, tmp_path):
        self.refuse([*student, "--teachers", "s1"], "'s1' sets teachers, which this command does not have", tmp_path)
        self.refuse([*student, "--teachers", "vanilla"], "'vanilla' is not one of a teacher", tmp_path)

    def test_batch_of_one(self, student, tmp_path):
        self.refuse([*student, "--recipe", "vanilla", "--batch_size", "1"], "batch_size is 1", tmp_path)

    def test_empty_impulse_response_folder(self, student, logits, tmp_path):
        (tmp_path / "empty").mkdir()
        command = [*student, "--teachers", str(logits), "--impulse_responses", str(tmp_path / "empty")]
        self.refuse(command, "contains no WAV file", tmp_path)

    def test_wrong_probability_of_impulse_responses(self, student, logits, tmp_path):
        self.refuse([*student, "--teachers", str(logits), "--impulse_response_p", "1.5"], "is 1.5", tmp_path)

    @pytest.mark.parametrize("selection", [["--validation_fraction", "0.4"], ["--select_on_test", "True"]])
    def test_no_checkpoints_to_choose_from(self, student, logits, tmp_path, selection):
        command = [*student, "--teachers", str(logits), "--save_strategy", "no", *selection]
        self.refuse(command, "save_strategy is no", tmp_path)

    def test_nothing_to_hold_out(self, student, tmp_path):
        for split in ("train", "test"):
            for label in ("rain", "sea"):
                (tmp_path / "own" / split / label).mkdir(parents=True)
                soundfile.write(tmp_path / "own" / split / label / "only.wav", np.zeros(96_000), 32_000)
        command = [*student, "--recipe", "vanilla", "--dataset", str(tmp_path / "own"), "--impulse_response_p", "0"]
        self.refuse([*command, "--validation_fraction", "0.5"], "only one location", tmp_path)

    @pytest.mark.parametrize(
        "overrides", ["base_channels=5", "depth=3", "colour=red", "base_channels", "num_labels=5"]
    )
    def test_impossible_network(self, student, logits, tmp_path, overrides):
        command = [*student, "--teachers", str(logits), "--config_overrides", overrides]
        self.refuse(command, overrides.split("=")[0], tmp_path)

    def test_full_output_folder(self, student, logits, tmp_path):
        (tmp_path / "other").mkdir()
        (tmp_path / "other" / "thesis.tex").write_text("precious")
        command = [*student, "--teachers", str(logits), "--output_dir", str(tmp_path / "other")]
        self.refuse(command, "contains no run", tmp_path)

    def test_output_folder_that_cannot_be_made(self, student, logits, tmp_path):
        (tmp_path / "file").write_text("precious")
        command = [*student, "--teachers", str(logits), "--output_dir", str(tmp_path / "file" / "run")]
        self.refuse(command, "is not writable", tmp_path)

    def test_student_is_no_teacher_to_fine_tune(self, data, student, teacher, tmp_path):
        with pytest.raises(FileNotFoundError, match="nowhere"):
            finetune_teacher(["--recipe", "ssl", *data, *QUICK, "--model_name_or_path", str(tmp_path / "nowhere")])

    def test_an_interrupted_script_says_what_to_do(self):
        def main():
            raise KeyboardInterrupt

        with pytest.raises(SystemExit, match="run the same command to resume"):
            run_command(main)

    def test_a_script_ends_with_the_sentence_alone(self, capsys):
        def main():
            raise InputError("The fault and the fix.")

        with pytest.raises(SystemExit, match=r"^Error: The fault and the fix\.$"):
            run_command(main)

    def test_a_bug_keeps_its_traceback(self):
        def main():
            raise ValueError("shapes do not match")

        with pytest.raises(ValueError, match="shapes do not match"):
            run_command(main)

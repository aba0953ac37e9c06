import json
import shutil

import evaluate
import numpy as np
import pytest
from safetensors.numpy import load_file
from sklearn import metrics as sklearn_metrics

from tests.train.helpers import REPOSITORY
from train.evaluation.metrics import SceneClassification, macro_accuracy_difference, scene_metrics


SCENES = [f"scene{index}" for index in range(10)]
DEVICES = ["a", "b", "c", "s1", "s2", "s3", "s4", "s5", "s6"]


def random_clips(clips: int, seed: int = 0, classes: int = 10):
    rng = np.random.default_rng(seed)
    references = rng.integers(classes, size=clips)
    logits = rng.normal(size=(clips, classes)) + 1.5 * np.eye(classes)[references]
    return logits, references, rng


def test_agrees_with_scikit_learn():
    logits, references, rng = random_clips(2000)
    devices, cities = rng.choice(DEVICES, 2000), rng.choice(["lyon", "paris"], 2000)

    result = scene_metrics(logits, references, labels=SCENES, devices=devices, cities=cities)

    predicted = logits.argmax(1)
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert result["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(references, predicted))
    assert result["macro_accuracy"] == pytest.approx(sklearn_metrics.balanced_accuracy_score(references, predicted))
    assert result["log_loss"] == pytest.approx(sklearn_metrics.log_loss(references, probabilities))
    assert result["confusion_matrix"] == sklearn_metrics.confusion_matrix(references, predicted).tolist()
    recalls = sklearn_metrics.recall_score(references, predicted, average=None)
    assert [result["class_wise"][name]["accuracy"] for name in SCENES] == pytest.approx(recalls)
    for name, groups in (("device_wise", devices), ("city_wise", cities)):
        for group, scores in result[name].items():
            chosen = groups == group
            assert scores["clips"] == chosen.sum()
            assert scores["accuracy"] == pytest.approx(
                sklearn_metrics.accuracy_score(references[chosen], predicted[chosen])
            )
            assert scores["log_loss"] == pytest.approx(
                sklearn_metrics.log_loss(references[chosen], probabilities[chosen], labels=range(10))
            )
    unseen = np.isin(devices, ["s4", "s5", "s6"])
    assert result["device_groups"]["unseen"]["accuracy"] == pytest.approx((predicted == references)[unseen].mean())
    assert result["device_groups"]["seen"]["clips"] == (~unseen).sum()


def test_missing_class_is_none_and_left_out_of_the_macro_average():
    logits, references, _ = random_clips(300)
    keep = references != 4
    result = scene_metrics(logits[keep], references[keep], labels=SCENES)
    assert result["class_wise"]["scene4"] is None
    present = [scores["accuracy"] for scores in result["class_wise"].values() if scores]
    assert len(present) == 9
    assert result["macro_accuracy"] == pytest.approx(np.mean(present))
    assert sum(result["confusion_matrix"][4]) == 0


@pytest.mark.parametrize("seed", range(8))
def test_agrees_with_scikit_learn_on_degenerate_data(seed):
    """One clip to a few; most classes, devices and predictions do not occur."""
    rng = np.random.default_rng(seed)
    clips = (1, 1, 2, 3, 5, 8, 13, 30)[seed]
    references = rng.choice(rng.choice(10, size=1 + seed % 4, replace=False), size=clips)
    logits = 5 * rng.normal(size=(clips, 10))
    devices = rng.choice(DEVICES[:: 1 + seed % 3], size=clips)
    result = scene_metrics(logits, references, labels=SCENES, devices=devices, bootstrap=20)

    predicted, present = logits.argmax(1), np.unique(references)
    assert result["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(references, predicted))
    recalls = sklearn_metrics.recall_score(references, predicted, labels=present, average=None, zero_division=0)
    assert result["macro_accuracy"] == pytest.approx(recalls.mean())
    found = {name: scores["accuracy"] for name, scores in result["class_wise"].items() if scores}
    assert found == pytest.approx({SCENES[index]: recall for index, recall in zip(present, recalls, strict=True)})
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert result["log_loss"] == pytest.approx(sklearn_metrics.log_loss(references, probabilities, labels=range(10)))
    confusion = sklearn_metrics.confusion_matrix(references, predicted, labels=range(10))
    assert result["confusion_matrix"] == confusion.tolist()
    assert set(result["device_wise"]) == set(devices)
    for bounds in result["confidence_intervals"].values():
        assert 0 <= bounds[0] <= bounds[1] <= 1


def test_missing_devices_are_absent():
    logits, references, _ = random_clips(50)
    result = scene_metrics(logits, references, devices=["s5"] * 50)
    assert list(result["device_wise"]) == ["s5"]
    assert list(result["device_groups"]) == ["unseen"]


def test_one_clip():
    result = scene_metrics([[0.0, 1.0]], [1], devices=["a"], cities=["oslo"], bootstrap=20)
    assert result["clips"] == 1
    assert result["accuracy"] == result["macro_accuracy"] == 1.0
    assert result["log_loss"] == pytest.approx(np.log1p(np.exp(-1)))
    assert result["confidence_intervals"] == {"accuracy": [1.0, 1.0], "macro_accuracy": [1.0, 1.0]}


def test_uniform_logits_have_the_log_loss_of_chance():
    result = scene_metrics(np.full((20, 10), 3.0), np.arange(20) % 10)
    assert result["log_loss"] == pytest.approx(np.log(10))
    assert result["macro_accuracy"] == pytest.approx(0.1)


def test_huge_logits_do_not_overflow():
    assert scene_metrics([[1e4, -1e4]], [1])["log_loss"] == pytest.approx(2e4)


class TestConfidenceIntervals:
    def test_clips_on_their_own_give_the_binomial_interval(self):
        logits, references, _ = random_clips(3000)
        result = scene_metrics(logits, references, bootstrap=2000)
        accuracy = result["accuracy"]
        half_width = 1.96 * np.sqrt(accuracy * (1 - accuracy) / 3000)
        low, high = result["confidence_intervals"]["accuracy"]
        assert (low, high) == pytest.approx((accuracy - half_width, accuracy + half_width), abs=0.1 * half_width)

    def test_identical_clips_in_clusters_widen_it_as_expected(self):
        """Ten copies of each clip carry the information of one: the interval is that of the clips before copying."""
        logits, references, _ = random_clips(400)
        single = scene_metrics(logits, references, bootstrap=1500)["confidence_intervals"]
        copies = scene_metrics(
            logits.repeat(10, 0), references.repeat(10), bootstrap=1500, clusters=np.arange(400).repeat(10)
        )["confidence_intervals"]
        assert copies["accuracy"] == pytest.approx(single["accuracy"])
        assert copies["macro_accuracy"] == pytest.approx(single["macro_accuracy"])

    def test_same_seed_same_interval(self):
        logits, references, _ = random_clips(200)
        first, second, other = (
            scene_metrics(logits, references, bootstrap=50, seed=seed)["confidence_intervals"] for seed in (1, 1, 2)
        )
        assert first == second != other


class TestMetric:
    @pytest.mark.parametrize(
        "make", [SceneClassification, lambda: evaluate.load(str(REPOSITORY / "train" / "evaluation" / "metrics.py"))]
    )
    def test_equals_the_function(self, make, tmp_path, monkeypatch):
        monkeypatch.setattr(evaluate.config, "HF_METRICS_CACHE", tmp_path)
        logits, references, _ = random_clips(200)
        devices = ["a", "s5"] * 100
        result = make().compute(
            predictions=logits, references=references, labels=SCENES, devices=devices, bootstrap=10
        )
        assert result == scene_metrics(logits, references, labels=SCENES, devices=devices, bootstrap=10)

    def test_a_copy_is_a_folder_for_evaluate(self, tmp_path):
        (tmp_path / "scenes").mkdir()
        shutil.copy(REPOSITORY / "train" / "evaluation" / "metrics.py", tmp_path / "scenes" / "scenes.py")
        logits, references, _ = random_clips(30)
        metric = evaluate.load(str(tmp_path / "scenes"), cache_dir=str(tmp_path / "cache"))
        assert type(metric).__module__.startswith("evaluate_modules")
        assert metric.compute(predictions=logits, references=references) == scene_metrics(logits, references)
        with pytest.raises(ValueError, match="clip 2 contain NaN or infinity"):
            logits[2, 0] = np.nan
            metric.compute(predictions=logits, references=references)

    def test_batches_add_up(self, tmp_path):
        logits, references, _ = random_clips(200)
        metric = SceneClassification(cache_dir=str(tmp_path))
        for start in range(0, 200, 64):
            metric.add_batch(predictions=logits[start : start + 64], references=references[start : start + 64])
        assert metric.compute() == scene_metrics(logits, references)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"predictions": np.zeros((0, 10)), "references": []}, "predictions"),
        ({"predictions": np.zeros(3), "references": [0, 1, 2]}, "predictions"),
        ({"predictions": [[0, 1], [1]], "references": [0, 1]}, "predictions is not an array of numbers"),
        ({"predictions": np.zeros((2, 3)), "references": [0, 1], "bootstrap": -1}, "bootstrap is -1"),
        ({"predictions": np.zeros((2, 3)), "references": [0]}, "references"),
        ({"predictions": np.zeros((2, 3)), "references": [0, 3]}, "references"),
        ({"predictions": np.zeros((2, 3)), "references": [0.5, 1.0]}, "references"),
        ({"predictions": [[0, 1], [np.nan, 1]], "references": [0, 1]}, "clip 1"),
        ({"predictions": np.zeros((2, 3)), "references": [0, 1], "devices": ["a"]}, "devices"),
        ({"predictions": np.zeros((2, 3)), "references": [0, 1], "labels": ["x", "y"]}, "labels"),
    ],
)
def test_bad_input_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        scene_metrics(**arguments)


def test_metrics_are_those_of_the_baseline():
    """The accuracies that the challenge's baseline logs, and its losses of each class and device."""
    golden = REPOSITORY / "tests" / "golden" / "cpmobile"
    reference = json.loads((golden / "evaluation.json").read_text())
    tensors, expected = load_file(golden / "evaluation.safetensors"), reference["expected"]
    devices = [name.rpartition("-")[2].removesuffix(".wav") for name in reference["files"]]
    result = scene_metrics(tensors["logits"], tensors["labels"], labels=reference["labels"], devices=devices)
    assert result["accuracy"] == pytest.approx(expected["acc"], abs=1e-5)
    assert result["macro_accuracy"] == pytest.approx(expected["macro_avg_acc"], abs=1e-5)
    assert result["device_groups"]["unseen"]["accuracy"] == pytest.approx(expected["acc.unseen"], abs=1e-5)
    for group in ("class_wise", "device_wise"):
        for name, scores in result[group].items():
            assert scores["accuracy"] == pytest.approx(expected[f"acc.{name}"], abs=1e-5), name
            assert scores["clips"] == expected[f"cnt.{name}"], name
        # Not the baseline's own mean, in which the clips of its last batch weigh more.
        losses = [expected[f"cnt.{name}"] * expected[f"loss.{name}"] for name in result[group]]
        assert result["log_loss"] == pytest.approx(sum(losses) / len(devices), abs=1e-5)


class TestDifference:
    @pytest.fixture
    def clips(self):
        rng = np.random.default_rng(0)
        truth, clusters = rng.integers(4, size=300), rng.integers(60, size=300)
        easy = 2 * rng.normal(size=(300, 1)) * np.eye(4)[truth]  # what is hard for one is hard for the other
        first, second = (easy + rng.normal(size=(300, 4)) + gain * np.eye(4)[truth] for gain in (1.5, 1.0))
        return first, second, truth, clusters

    def test_is_that_of_the_macro_accuracies(self, clips):
        first, second, truth, clusters = clips
        found = macro_accuracy_difference(first, second, truth, clusters)
        separate = [scene_metrics(logits, truth)["macro_accuracy"] for logits in (first, second)]
        assert found["difference"] == pytest.approx(separate[0] - separate[1], abs=1e-12)
        reverse = macro_accuracy_difference(second, first, truth, clusters)
        assert reverse["confidence_interval"] == pytest.approx(
            [-bound for bound in found["confidence_interval"][::-1]]
        )

    def test_interval_is_that_of_resampled_differences(self, clips):
        first, second, truth, clusters = clips
        rng = np.random.default_rng(1)
        gains = []
        for _ in range(2000):
            rows = np.concatenate([np.flatnonzero(clusters == drawn) for drawn in rng.integers(60, size=60)])
            separate = [scene_metrics(logits[rows], truth[rows])["macro_accuracy"] for logits in (first, second)]
            gains.append(separate[0] - separate[1])
        found = macro_accuracy_difference(first, second, truth, clusters, bootstrap=4000)["confidence_interval"]
        assert found == pytest.approx(np.quantile(gains, [0.025, 0.975]), abs=0.01)

    def test_equal_models(self, clips):
        first, _, truth, clusters = clips
        assert macro_accuracy_difference(first, 3 * first, truth, clusters) == {
            "difference": 0.0,
            "confidence_interval": [0.0, 0.0],
        }

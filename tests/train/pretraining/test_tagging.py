"""Clips with several labels: how often they are drawn, and mean average precision."""

import numpy as np
import pytest
import soundfile
from sklearn.metrics import average_precision_score

from train.common.distributed import BatchRows
from train.pretraining.crops import CropBatches
from train.pretraining.tagging import TaggedCrops, tagging_metrics


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
    def fraction_of(self, dataset, rows):
        """Fraction of 2000 draws that are among `rows`."""
        batches = CropBatches(len(dataset), 10, 200, 0, BatchRows(1, 0), dataset.weights)
        return np.mean([row in rows for batch in batches for _, row in batch])

    def test_classes_are_drawn_equally_often(self, tmp_path):
        """99 clips of one class and one of another: each is half of what is drawn (six standard deviations)."""
        soundfile.write(tmp_path / "x.wav", np.zeros(4000), 16_000)
        labels = [[0]] * 99 + [[1]]
        dataset = TaggedCrops([tmp_path / "x.wav"] * 100, labels, 2, 0.25, 16_000, seed=0, balanced=True)
        assert abs(self.fraction_of(dataset, {99}) - 0.5) < 6 * (0.25 / 2000) ** 0.5
        assert dataset[0, 99]["labels"].tolist() == [0, 1]

    def test_long_recordings_count_by_their_crops(self, tmp_path):
        """A recording of 30 crops is of one class, ten of one crop are of another."""
        soundfile.write(tmp_path / "long.wav", np.zeros(30 * 4000), 16_000)
        soundfile.write(tmp_path / "short.wav", np.zeros(4000), 16_000)
        files = [tmp_path / "long.wav", *[tmp_path / "short.wav"] * 10]
        dataset = TaggedCrops(files, [[0], *[[1]] * 10], 2, 0.25, 16_000, seed=0, balanced=True)
        assert len(dataset) == 40
        assert abs(self.fraction_of(dataset, set(range(30))) - 0.5) < 6 * (0.25 / 2000) ** 0.5

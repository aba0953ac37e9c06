"""Plots: what is drawn, read from the SVG, whose text is text."""

import re

import matplotlib
import numpy as np
import pytest
from PIL import Image
from scipy.stats import binomtest

from model_cards import plots


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """Draw a plot and return its words."""

    def draw(function, *arguments):
        with matplotlib.rc_context({"svg.fonttype": "none"}):
            function(*arguments[:1], tmp_path / "plot", *arguments[1:])
        assert Image.open(tmp_path / "plot.png").width > 500
        return re.findall(r"<text[^>]*>([^<]*)</text>", (tmp_path / "plot.svg").read_text())

    return draw


@pytest.mark.parametrize(("hits", "clips"), [(0, 10), (3, 10), (10, 10), (1234, 2970)])
def test_wilson_interval(hits, clips):
    expected = binomtest(hits, clips).proportion_ci(method="wilson")
    assert plots.wilson_interval(hits, clips) == pytest.approx((expected.low, expected.high), abs=1e-6)


def test_classes_are_sorted_and_counted(drawn):
    classes = {"bus": {"clips": 20, "accuracy": 0.5}, "park": {"clips": 10, "accuracy": 0.9}, "tram": None}
    words = drawn(plots.plot_classes, classes, "s2 on TAU")
    assert words.index("park (10)") < words.index("bus (20)") and "tram" not in " ".join(words)
    assert "macro average, 70.0 %" in words and "s2 on TAU" in words and {"90.0", "50.0"} <= set(words)


def test_devices_have_the_means_of_seen_and_unseen(drawn):
    devices = {
        "a": {"clips": 30, "accuracy": 0.8},
        "b": {"clips": 10, "accuracy": 0.4},
        "s4": {"clips": 10, "accuracy": 0.3},
    }
    words = drawn(plots.plot_devices, devices, "s2 on TAU", ["s4"])
    assert "mean of the clips, seen, 70.0 %" in words and "mean of the clips, unseen, 30.0 %" in words
    assert words.count("(10)") == 2 and words.count("(30)") == 1
    words = drawn(plots.plot_devices, devices, "s2 on TAU")
    assert "mean of the clips, 62.0 %" in words and not re.search("seen", " ".join(words))


def test_confusion_is_in_percent_with_counts(drawn):
    def plot(confusion, path):
        plots.plot_confusion_matrix(confusion, ["bus", "park"], path, "s2 on TAU")

    words = drawn(plot, [[3, 1], [0, 4]])
    assert {"75", "25", "100", "bus (4)", "park (4)"} <= set(words)


def test_kept_epoch_is_that_of_the_best_accuracy(drawn):
    training = [{"epoch": epoch, "loss": 1.0, "learning_rate": 0.1} for epoch in (1, 2, 3)]
    held_out = [
        {"epoch": epoch, "eval_loss": 1.0, "eval_macro_accuracy": accuracy}
        for epoch, accuracy in ((1, 0.4), (2, 0.6), (3, 0.6))
    ]
    words = drawn(plots.plot_learning_curve, training + held_out, "s2")
    assert words.count("kept: epoch 2") == 2 and "macro accuracy, %" in words
    assert "kept: epoch 3" in drawn(plots.plot_learning_curve, training, "s2")


def test_layers_say_what_long_means(drawn):
    words = drawn(plots.plot_layers, {"tfsepnet.stem.0": 40.0, "classifier": 30.5}, "s2")
    assert "higher is better: SQNR in dB" in words and "largest error: 30.5 dB" in words and "stem 0" in words


def test_plots_are_readable_in_grey(tmp_path):
    """Seen and unseen devices differ by a hatch, not only by their colour."""
    devices = {name: {"clips": 10, "accuracy": 0.5} for name in ("a", "s4")}
    plots.plot_devices(devices, tmp_path / "devices", "s2", ["s4"])
    grey = np.asarray(Image.open(tmp_path / "devices.png").convert("L")).astype(int)
    row = grey[int(0.62 * len(grey))]  # through both bars
    changes = [np.abs(np.diff(half)).sum() for half in np.array_split(row, 2)]
    assert changes[1] > 3 * changes[0]

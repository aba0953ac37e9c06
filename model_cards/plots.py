"""Plots of results, each as PNG and SVG, drawn without a display."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator


BLUE, ORANGE, GREY = "#3b6ea5", "#d9822b", "#8a8a8a"


def plot_confusion_matrix(confusion: Sequence[Sequence[int]], labels: Sequence[str], path: str | Path) -> None:
    """Draw the confusion matrix: predictions (columns) in percent of each true class (rows).

    Args:
        confusion (array of shape `(classes, classes)`): Clips, by true and predicted class.
        labels (`Sequence[str]`): Names of the classes.
        path (`str` or `Path`): File to write, without its suffix.
    """
    counts = np.asarray(confusion, dtype=float)
    percent = 100 * counts / np.maximum(counts.sum(1, keepdims=True), 1)
    figure = Figure(figsize=(1.6 + 0.62 * len(labels), 1.2 + 0.55 * len(labels)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(percent, cmap="Blues", vmin=0, vmax=100)
    for row, column in np.ndindex(percent.shape):
        if counts[row, column]:
            color = "white" if percent[row, column] > 55 else "black"
            axes.text(column, row, f"{percent[row, column]:.0f}", ha="center", va="center", color=color, fontsize=9)
    names = [_text(label) for label in labels]
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set(xlabel="predicted", ylabel="true", title="percent of the true class")
    save_figure(figure, path)


def plot_groups(groups: Mapping[str, Mapping[str, Any] | None], path: str | Path, unseen: Sequence[str] = ()) -> None:
    """Draw the accuracy of each group of clips, such as the recording devices, as bars.

    Args:
        groups (`Mapping`): `device_wise`, `class_wise` or `city_wise` of [`~train.evaluation.metrics.scene_metrics`].
        path (`str` or `Path`): File to write, without its suffix.
        unseen (`Sequence[str]`, *optional*): Groups that are not in the training data, drawn in another colour.
    """
    scores = {name: group for name, group in groups.items() if group is not None}
    figure = Figure(figsize=(1.5 + 0.62 * len(scores), 3.6), layout="constrained")
    axes = figure.subplots()
    heights = [100 * group["accuracy"] for group in scores.values()]
    bars = axes.bar(range(len(scores)), heights, color=[ORANGE if name in unseen else BLUE for name in scores])
    axes.bar_label(bars, fmt="%.0f", padding=2, fontsize=9)
    rotation = 40 if max(map(len, scores)) > 4 else 0
    names = [_text(name) for name in scores]
    axes.set_xticks(range(len(scores)), names, rotation=rotation, ha="right" if rotation else "center")
    axes.set(ylabel="accuracy, %", ylim=(0, 110))
    if set(unseen) & set(scores):
        axes.set_title("orange: not in the training data", fontsize=10)
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def plot_learning_curve(log_history: Sequence[Mapping[str, float]], path: str | Path) -> None:
    """Draw loss and learning rate, and the accuracy on held-out clips if there are any, over the epochs.

    Args:
        log_history (`Sequence[Mapping]`): `trainer.state.log_history`.
        path (`str` or `Path`): File to write, without its suffix.
    """
    training = [entry for entry in log_history if "loss" in entry]
    evaluation = [entry for entry in log_history if "eval_macro_accuracy" in entry]
    panels = [("loss", [(training, "loss", "training", BLUE), (evaluation, "eval_loss", "held out", ORANGE)])]
    if evaluation:
        panels.append(("macro accuracy", [(evaluation, "eval_macro_accuracy", "held out", ORANGE)]))
    panels.append(("learning rate", [(training, "learning_rate", "", GREY)]))
    figure = Figure(figsize=(6.4, 2.2 * len(panels)), layout="constrained")
    for axes, (title, curves) in zip(
        figure.subplots(len(panels), sharex=True, squeeze=False)[:, 0], panels, strict=True
    ):
        for entries, name, label, color in curves:
            if entries:
                axes.plot([e["epoch"] for e in entries], [e[name] for e in entries], color=color, label=label)
        axes.set_ylabel(title)
        axes.grid(alpha=0.3)
        if len(curves) > 1 and evaluation:
            axes.legend()
    axes.set_xlabel("epoch")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    save_figure(figure, path)


def plot_layers(decibels: Mapping[str, float], path: str | Path) -> None:
    """Draw what each layer of an INT8 network costs; a longer bar means a smaller error.

    Args:
        decibels (`Mapping[str, float]`): Signal-to-quantization-noise ratio of the logits with one layer in INT8, by
            its name, in the order of the layers.
        path (`str` or `Path`): File to write, without its suffix.
    """
    figure = Figure(figsize=(7, 0.19 * len(decibels) + 1), layout="constrained")
    axes = figure.subplots()
    worst = min(decibels, key=lambda name: decibels[name])
    colors = [ORANGE if name == worst else BLUE for name in decibels]
    axes.barh(range(len(decibels)), list(decibels.values()), color=colors)
    axes.set_yticks(range(len(decibels)), [name.partition(".")[2] or name for name in decibels], fontsize=7)
    axes.set_ylim(len(decibels) - 0.4, -0.6)
    axes.set(
        xlabel="SQNR of the logits with this layer alone in INT8, dB",
        title="Error by layer: longer is better",
    )
    axes.spines[["top", "right"]].set_visible(False)
    save_figure(figure, path)


def save_figure(figure: Figure, path: str | Path) -> None:
    """Write a figure as PNG and SVG, with the same bytes every time.

    Args:
        figure (`Figure`): The figure.
        path (`str` or `Path`): File to write, without its suffix.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": path.name}):
        figure.savefig(f"{path}.svg", metadata={"Date": None})
    figure.savefig(f"{path}.png", dpi=150)


def _text(name: str) -> str:
    """Return the name of a class or device as matplotlib draws it, without mathematical notation."""
    return " ".join(name.replace("_", " ").split()).replace("$", r"\$")

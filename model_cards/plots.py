"""Plots of results, each as PNG and SVG, drawn without a display.

Accuracies are in percent. Colours come with hatches, markers or line styles, so that prints in grey are readable.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator


BLUE, ORANGE, GREY = "#3b6ea5", "#d9822b", "#8a8a8a"
HATCH = "///"

INTERVAL_NOTE = "95 % Wilson intervals, as if clips were independent"


def plot_results(metrics: Mapping[str, Any], folder: str | Path, title: str, unseen: Sequence[str] = ()) -> None:
    """Draw the plots of an evaluated model: `confusion_matrix`, `classes` and, of several devices, `devices`.

    Args:
        metrics (`Mapping`): As of [`~train.evaluation.metrics.scene_metrics`].
        folder (`str` or `Path`): Folder to write to.
        title (`str`): Model and data.
        unseen (`Sequence[str]`, *optional*): Devices that are not in the training data.
    """
    folder = Path(folder)
    plot_confusion_matrix(metrics["confusion_matrix"], list(metrics["class_wise"]), folder / "confusion_matrix", title)
    plot_classes(metrics["class_wise"], folder / "classes", title)
    if len(metrics["device_wise"]) > 1:
        plot_devices(metrics["device_wise"], folder / "devices", title, unseen)


def plot_confusion_matrix(
    confusion: Sequence[Sequence[int]], labels: Sequence[str], path: str | Path, title: str
) -> None:
    """Draw the confusion matrix: predictions (columns) in percent of each true class (rows).

    Args:
        confusion (array of shape `(classes, classes)`): Clips, by true and predicted class.
        labels (`Sequence[str]`): Names of the classes.
        path (`str` or `Path`): File to write, without its suffix.
        title (`str`): Model and data.
    """
    counts = np.asarray(confusion, dtype=float)
    clips = counts.sum(1)
    percent = 100 * counts / np.maximum(clips[:, None], 1)
    figure = Figure(figsize=(2.4 + 0.62 * len(labels), 1.9 + 0.55 * len(labels)), layout="constrained")
    axes = figure.subplots()
    axes.imshow(percent, cmap="Blues", vmin=0, vmax=100, aspect="auto")
    for row, column in np.ndindex(percent.shape):
        if counts[row, column]:
            color = "white" if percent[row, column] > 55 else "black"
            axes.text(column, row, f"{percent[row, column]:.0f}", ha="center", va="center", color=color, fontsize=9)
    names = [_text(label) for label in labels]
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), [f"{name} ({count:,.0f})" for name, count in zip(names, clips, strict=True)])
    axes.set(xlabel="predicted class", ylabel="true class (clips)")
    set_title(figure, title, "percent of the clips of each true class, rounded")
    save_figure(figure, path)


def plot_classes(classes: Mapping[str, Mapping[str, Any] | None], path: str | Path, title: str) -> None:
    """Draw the accuracy of each class with its interval, best class first.

    Args:
        classes (`Mapping`): `class_wise` of [`~train.evaluation.metrics.scene_metrics`].
        path (`str` or `Path`): File to write, without its suffix.
        title (`str`): Model and data.
    """
    scores = sorted(
        ((name, group) for name, group in classes.items() if group), key=lambda item: -float(item[1]["accuracy"])
    )
    figure = Figure(figsize=(6.4, 1.5 + 0.3 * len(scores)), layout="constrained")
    axes = figure.subplots()
    rows = np.arange(len(scores))
    accuracy, errors = _accuracies([group for _, group in scores])
    axes.barh(rows, accuracy, color=BLUE, xerr=errors, error_kw={"capsize": 2, "lw": 1})
    for row, value in zip(rows, accuracy, strict=True):
        axes.text(101, float(row), f"{value:.1f}", va="center", fontsize=9)
    mean = accuracy.mean()
    axes.axvline(mean, color="black", linestyle="--", lw=1, label=f"macro average, {mean:.1f} %")
    axes.set_yticks(rows, [f"{_text(name)} ({group['clips']:,})" for name, group in scores])
    axes.set_ylim(len(scores) - 0.4, -0.6)
    axes.set(xlabel="accuracy, %", ylabel="class (clips)", xlim=(0, 100))
    _finish(figure, axes, title)
    save_figure(figure, path)


def plot_devices(
    devices: Mapping[str, Mapping[str, Any]], path: str | Path, title: str, unseen: Sequence[str] = ()
) -> None:
    """Draw the accuracy of each recording device with its interval, and the means of seen and unseen devices.

    Args:
        devices (`Mapping`): `device_wise` of [`~train.evaluation.metrics.scene_metrics`].
        path (`str` or `Path`): File to write, without its suffix.
        title (`str`): Model and data.
        unseen (`Sequence[str]`, *optional*): Devices that are not in the training data.
    """
    figure = Figure(figsize=(max(4.8, 1.8 + 0.62 * len(devices)), 4), layout="constrained")
    axes = figure.subplots()
    accuracy, errors = _accuracies(list(devices.values()))
    clips = np.array([group["clips"] for group in devices.values()])
    hidden = np.array([name in unseen for name in devices])
    for chosen, kind, color, hatch, line in (
        (~hidden, "seen", BLUE, "", "--"),
        (hidden, "unseen", ORANGE, HATCH, ":"),
    ):
        if chosen.any():
            places = np.flatnonzero(chosen)
            mean = np.average(accuracy[chosen], weights=clips[chosen])
            axes.bar(
                places,
                accuracy[chosen],
                color=color,
                hatch=hatch,
                edgecolor="white",
                yerr=errors[:, chosen],
                error_kw={"capsize": 2, "lw": 1},
                label=f"{kind} in training" if hidden.any() else None,
            )
            label = f"mean of the clips, {kind}, {mean:.1f} %" if hidden.any() else f"mean of the clips, {mean:.1f} %"
            axes.hlines(mean, places[0] - 0.5, places[-1] + 0.5, color="black", linestyle=line, lw=1.2, label=label)
    names = [f"{_text(name)}\n({group['clips']:,})" for name, group in devices.items()]
    axes.set_xticks(range(len(names)), names)
    axes.set(xlabel="device (clips)", ylabel="accuracy, %", ylim=(0, 100))
    _finish(figure, axes, title)
    save_figure(figure, path)


def plot_comparison(rows: Sequence[tuple[str, Mapping[str, Any]]], path: str | Path, title: str) -> None:
    """Draw the macro accuracies of models on the same clips with their intervals, one below the other.

    Args:
        rows (`Sequence`): For each model its name and its metrics, of which the interval over recording locations may
            be absent.
        path (`str` or `Path`): File to write, without its suffix.
        title (`str`): Model and data.
    """
    figure = Figure(figsize=(6.4, 1.2 + 0.45 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, (_, scores) in enumerate(rows):
        accuracy = 100 * scores["macro_accuracy"]
        low, high = scores.get("confidence_intervals", {}).get("macro_accuracy", [scores["macro_accuracy"]] * 2)
        errors = [[accuracy - 100 * low], [100 * high - accuracy]]
        last = place == len(rows) - 1
        color, hatch = (BLUE, "") if last else (GREY, HATCH)
        axes.barh(place, accuracy, color=color, hatch=hatch, edgecolor="white", xerr=errors, error_kw={"capsize": 3})
        axes.text(101, place, f"{accuracy:.1f}", va="center", fontsize=9, fontweight="bold" if last else "normal")
    axes.set_yticks(range(len(rows)), [_text(name) for name, _ in rows])
    axes.set(xlabel="macro accuracy, %", xlim=(0, 100))
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    set_title(figure, title, "95 % intervals over recording locations")
    save_figure(figure, path)


def plot_learning_curve(log_history: Sequence[Mapping[str, float]], path: str | Path, title: str) -> None:
    """Draw loss and learning rate, and the accuracy on held-out clips if there are any, over the epochs.

    The epoch whose weights were kept is marked: that with the best accuracy on held-out clips, or else the last one.

    Args:
        log_history (`Sequence[Mapping]`): `trainer.state.log_history`.
        path (`str` or `Path`): File to write, without its suffix.
        title (`str`): Model and data.
    """
    training = [entry for entry in log_history if "loss" in entry]
    evaluation = [entry for entry in log_history if "eval_macro_accuracy" in entry]
    curves = [("loss", training, "loss", "training", BLUE, "-", 1.0)]
    if evaluation:
        curves += [("loss", evaluation, "eval_loss", "held out", ORANGE, "--", 1.0)]
        curves += [("macro accuracy, %", evaluation, "eval_macro_accuracy", "held out", ORANGE, "--", 100.0)]
    curves.append(("learning rate", training, "learning_rate", "", GREY, "-", 1.0))
    panels = list(dict.fromkeys(panel for panel, *_ in curves))
    figure = Figure(figsize=(6.4, 2.2 * len(panels)), layout="constrained")
    heights = [1 if panel == "learning rate" else 2 for panel in panels]
    grid = figure.subplots(len(panels), sharex=True, squeeze=False, height_ratios=heights)[:, 0]
    for panel, entries, name, label, color, line, unit in curves:
        axes = grid[panels.index(panel)]
        values = [(entry["epoch"], unit * entry[name]) for entry in entries if name in entry]
        if values:
            axes.plot(*zip(*values, strict=True), line, color=color, label=label or None)
    kept = max(evaluation, key=lambda entry: entry["eval_macro_accuracy"]) if evaluation else (training or [{}])[-1]
    for panel, axes in zip(panels, grid, strict=True):
        axes.set_ylabel(panel)
        axes.grid(alpha=0.3)
        if "epoch" in kept:
            axes.axvline(kept["epoch"], color="black", linestyle=":", lw=1.2, label=f"kept: epoch {kept['epoch']:g}")
        if panel != "learning rate":
            axes.legend(fontsize=8)
    grid[-1].set_xlabel("epoch")
    grid[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    set_title(figure, title)
    save_figure(figure, path)


def plot_layers(decibels: Mapping[str, float], path: str | Path, title: str) -> None:
    """Draw how little each layer of an INT8 network changes the logits; higher is better.

    Args:
        decibels (`Mapping[str, float]`): Signal-to-quantization-noise ratio of the logits with one layer in INT8, by
            its name, in the order of the layers.
        path (`str` or `Path`): File to write, without its suffix.
        title (`str`): Model and data.
    """
    figure = Figure(figsize=(7, 0.19 * len(decibels) + 1.8), layout="constrained")
    axes = figure.subplots()
    worst = min(decibels, key=lambda name: decibels[name])
    bars = axes.barh(range(len(decibels)), list(decibels.values()), color=BLUE)
    bar = bars[list(decibels).index(worst)]
    bar.set(facecolor=ORANGE, hatch=HATCH, edgecolor="white")
    names = [name.partition(".")[2] or name for name in decibels]  # without that of the network
    names = [name.replace("stages", "stage").replace("blocks", "block").replace(".", " ") for name in names]
    axes.set_yticks(range(len(decibels)), [_text(name) for name in names], fontsize=7)
    axes.set_ylim(len(decibels) - 0.4, -0.6)
    axes.set(xlabel="SQNR of the logits with only this layer in INT8, dB")
    label = f"largest error: {decibels[worst]:.1f} dB"
    figure.legend(handles=[Patch(facecolor=ORANGE, hatch=HATCH, edgecolor="white", label=label)], **_LEGEND)
    axes.spines[["top", "right"]].set_visible(False)
    set_title(figure, title, "higher is better: SQNR in dB")
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
    figure.savefig(f"{path}.png", dpi=150, pil_kwargs={"optimize": True})


def wilson_interval(hits: float, clips: int, z: float = 1.959964) -> tuple[float, float]:
    """Return the Wilson interval of a fraction of clips; 95 % by default.

    Args:
        hits (`float`): Clips that are right.
        clips (`int`): All clips, at least one.
        z (`float`, *optional*, defaults to 1.959964): Quantile of the normal distribution.
    """
    fraction, spread = hits / clips, z**2 / clips
    centre = (fraction + spread / 2) / (1 + spread)
    half = z / (1 + spread) * (fraction * (1 - fraction) / clips + spread / (4 * clips)) ** 0.5
    return max(0.0, centre - half), min(1.0, centre + half)


_LEGEND: dict[str, Any] = {"loc": "outside lower center", "ncols": 2, "fontsize": 8, "frameon": False}


def _accuracies(groups: Sequence[Mapping[str, Any]]) -> tuple[np.ndarray, np.ndarray]:
    """Return the accuracies of groups in percent, and how far their intervals extend below and above."""
    accuracy = np.array([100 * group["accuracy"] for group in groups])
    bounds = np.array([wilson_interval(group["accuracy"] * group["clips"], group["clips"]) for group in groups])
    return accuracy, np.abs(100 * bounds.T - accuracy)


def _finish(figure: Figure, axes: Axes, title: str) -> None:
    """Add the legend and the title of a plot of accuracies."""
    axes.spines[["top", "right"]].set_visible(False)
    figure.legend(**_LEGEND)
    set_title(figure, title, INTERVAL_NOTE)


def set_title(figure: Figure, title: str, note: str = "") -> None:
    """Centre a title over the whole figure, with a note below it."""
    figure.suptitle("\n".join([_text(title), note]).strip(), fontsize=10)


def _text(name: str) -> str:
    """Return the name of a class or device as matplotlib draws it, without mathematical notation."""
    return " ".join(name.replace("_", " ").split()).replace("$", r"\$")

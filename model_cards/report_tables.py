"""The report's tables from results files: ours beside the published results, as Markdown and as a plot."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from dataset_script.errors import InputError
from dataset_script.markdown import markdown_table
from model_cards.corpora import TAU
from model_cards.evidence import identify_corpus
from model_cards.plots import BLUE, GREY, ORANGE, save_figure, set_title
from model_cards.published import PUBLISHED_ROWS, published, published_row
from model_cards.results import RunResults
from model_cards.tables import mean_interval, mean_metric


Cells = Mapping[str, Mapping[str, Mapping[int, Sequence[RunResults]]]]
"""Results of finished runs: by system, number format and percentage of the training clips, one for each seed."""

SUBSETS = (5, 10, 25, 50, 100)
TITLES = {system: row for system, (_, row) in PUBLISHED_ROWS.items()}
STYLES = ((BLUE, "o"), (ORANGE, "s"), ("#4f9d5d", "^"), ("#9a5aa8", "D"), ("#b5493b", "v"))
"""Colour and marker of each system in a plot."""


def comparable(cells: Cells) -> bool:
    """Return whether all results are on TAU, so that they are comparable with the published ones."""
    return all(_is_tau(run) for runs in _finished(cells) for run in runs)


def _finished(cells: Cells) -> list[Sequence[RunResults]]:
    """Return the runs of each cell that has any, one for each seed."""
    return [runs for formats in cells.values() for subsets in formats.values() for runs in subsets.values()]


def _other_data(cells: Cells) -> str:
    """Return what to call the data of results that are not on TAU."""
    synthetic = any(run.synthetic for runs in _finished(cells) for run in runs)
    return "the **synthetic** demo corpus" if synthetic else "recordings other than TAU"


def _is_tau(run: RunResults) -> bool:
    try:
        return identify_corpus(run).kind == "tau"
    except InputError:
        return False


def report_table(number: int, cells: Cells) -> str:
    """Return a table of the report with a block of rows for each system.

    Accuracies are macro averages in percent, the mean over seeds, with the 95 % interval of the test recordings. The
    difference is between results in the same number format.

    Args:
        number (`int`): 1 (teachers, float32) or 3 (students, INT8).
        cells (`Cells`): The finished runs, at least one; other cells are left empty.
    """
    table = published()["teachers" if number == 1 else "student"]
    on_tau = comparable(cells)
    rows = []
    if number == 1 and "baseline" not in cells:
        rows.append([TITLES["baseline"], "published", *_row(published_row("baseline"))])
    for system, formats in cells.items():
        for number_format, subsets in formats.items():
            macro = {percentage: 100 * mean_metric(runs) for percentage, runs in subsets.items()}
            intervals = {percentage: bounds for percentage, runs in subsets.items() if (bounds := mean_interval(runs))}
            rows.append([TITLES[system], number_format, *_row(macro)])
            if intervals:
                texts = {p: f"{100 * low:.1f} to {100 * high:.1f}" for p, (low, high) in intervals.items()}
                rows.append(["", "95 % interval", *(texts.get(percentage, "") for percentage in SUBSETS), ""])
            if on_tau and number_format == _published_format(system):
                reference = published_row(system)
                difference = {percentage: macro[percentage] - reference[percentage] for percentage in macro}
                rows.append(["", "− published", *_row(difference, "+.1f")])
        rows.append([TITLES[system], f"published, {_published_format(system)}", *_row(published_row(system))])
    seeds = [len(runs) for runs in _finished(cells)]
    runs_per_cell = f"{max(seeds)} seed{'s' * (max(seeds) > 1)}"
    if min(seeds) < max(seeds):
        runs_per_cell = f"{min(seeds)} to {runs_per_cell}"
    notes = [f"Macro-averaged accuracy in percent; our results are means over {runs_per_cell}."]
    if not on_tau:
        notes.append(
            f"Ours are on {_other_data(cells)}, the published results on TAU: they are not comparable, and no "
            "difference is given."
        )
    notes.append(f"Published: {table['source']}.")
    if any(system.startswith("ensemble") for system in cells):
        notes.append("Our ensembles are BEATs (SSL+SL) with different seeds; the report does not list its members.")
    header = ["system", "", *(f"{percentage} %" for percentage in SUBSETS), "average"]
    return f"{markdown_table(header, rows)}\n\n{' '.join(notes)}\n"


def _published_format(system: str) -> str:
    """Return the number format of a system's published results."""
    return str(published()[PUBLISHED_ROWS[system][0]]["number_format"])


def _row(values: Mapping[int, float], spec: str = ".1f") -> list[str]:
    """Return the cells of all subsets, empty where there is no value, and the average if there is one for each."""
    cells = [format(values[percentage], spec) if percentage in values else "" for percentage in SUBSETS]
    return [*cells, "" if "" in cells else format(sum(values.values()) / len(SUBSETS), spec)]


def plot_accuracy_by_fraction(table_number: int, cells: Cells, path: str | Path) -> None:
    """Draw macro accuracy against the fraction of the training clips.

    A system has one colour and marker: filled and solid with 95 % intervals for ours, hollow and dashed for the
    published results.

    Args:
        table_number (`int`): Of the report, 1 or 3.
        cells (`Cells`): As for [`report_table`].
        path (`str` or `Path`): File to write, without its suffix.
    """
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    axes = figure.subplots()
    if table_number == 1 and "baseline" not in cells:
        reference = published_row("baseline")
        axes.plot(SUBSETS, [reference[p] for p in SUBSETS], "--", color=GREY, label="Baseline, published")
    styles = iter(STYLES)
    for number, (system, formats) in enumerate(cells.items()):
        color, marker = (GREY, "X") if system == "baseline" else next(styles)
        reference = published_row(system)
        hollow: dict[str, Any] = {
            "color": color,
            "marker": marker,
            "markerfacecolor": "white",
            "linestyle": "--",
            "alpha": 0.7,
        }
        label = f"{TITLES[system]}, {_published_format(system)}, published"
        axes.plot(SUBSETS, [reference[p] for p in SUBSETS], label=label, **hollow)
        number_format = "INT8" if formats.get("INT8") else "float32"
        if not (subsets := formats.get(number_format)):
            continue
        beside = 1.03 ** (number - (len(cells) - 1) / 2)  # so that intervals do not cover each other
        places = [percentage * beside for percentage in subsets]
        accuracy = [100 * mean_metric(runs) for runs in subsets.values()]
        axes.plot(places, accuracy, f"{marker}-", color=color, label=f"{TITLES[system]}, {number_format}, ours")
        for place, bounds in zip(places, map(mean_interval, subsets.values()), strict=True):
            if bounds:
                axes.plot([place, place], [100 * bound for bound in bounds], "_-", color=color, alpha=0.7)
    axes.set_xscale("log")
    axes.set_xticks(SUBSETS, [str(percentage) for percentage in SUBSETS])
    axes.minorticks_off()
    axes.set(xlabel="training clips, %", ylabel="macro accuracy, %")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    systems = "Teachers" if table_number == 1 else "Students"
    title, note = f"{systems} on {TAU.name}", "bars: 95 % intervals over recording locations"
    if not comparable(cells):
        title = f"{systems}: ours on {_other_data(cells).replace('*', '')}, published on TAU: not comparable"
    set_title(figure, title, note)
    save_figure(figure, path)

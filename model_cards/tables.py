"""Tables of results, in Markdown."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from model_cards.complexity import ModelComplexity
from model_cards.results import PUBLISHED_ROWS, Corpus, percentage, published, published_row
from modeling_tfsepnet.complexity import MAX_MACS, MAX_PARAMETER_BYTES


def quantization_table(results: Mapping[str, Any]) -> str:
    """Return the main figures as a Markdown table of float beside INT8."""
    before, after = results["float"], results["int8"]
    lines = [
        f"| {name.replace('_', ' ')} | {accuracy_text(before, name)} | {accuracy_text(after, name)} |"
        for name in ("macro_accuracy", "accuracy")
    ]
    for group, title in (("device_groups", "{} devices"), ("device_wise", "device {}"), ("class_wise", "class {}")):
        lines += [
            f"| {title.format(name)} | {accuracy_text(figures, 'accuracy')} | "
            f"{accuracy_text(after[group][name], 'accuracy')} |"
            for name, figures in before[group].items()
            if figures
        ]
    latency = results["latency_ms"]
    lines.append(f"| one clip, one thread (torch) | {latency['float']:.1f} ms | {latency['int8']:.1f} ms |")
    size = results["size"]
    lines += [
        f"| parameters | | {size['parameters']:,} in {size['parameter_bytes']:,} bytes |",
        f"| scales and zero points | | {size['scale_bytes']:,} bytes |",
        f"| multiply-accumulates | | {size['macs']:,} |",
        f"| equal decisions | | {100 * results['agreement']:.1f} % |",
        f"| logits' SQNR | | {results['sqnr_db']:.1f} dB |",
    ]
    return "\n".join(["| figure | float | INT8 |", "|---|---|---|", *lines]) + "\n"


def confusion_table(confusion: Sequence[Sequence[int]], labels: Sequence[str]) -> str:
    """Return the numbers of clips by true class (row) and predicted class (column) as a Markdown table."""
    rows = [[label, *map(str, counts)] for label, counts in zip(labels, confusion, strict=True)]
    lines = [["true / predicted", *labels], ["---"] * (len(labels) + 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def accuracy_text(metrics: Mapping[str, Any], name: str) -> str:
    """Return an accuracy as text, with its confidence interval if there is one."""
    text = f"{100 * metrics[name]:.1f} %"
    if name in metrics.get("confidence_intervals", {}):
        low, high = metrics["confidence_intervals"][name]
        text += f" ({100 * low:.1f} to {100 * high:.1f})"
    return text


def results_table(results: dict[str, Any]) -> str:
    """Return the main figures of `results` as a Markdown table."""
    metrics = results["metrics"]
    rows = [
        ("clips", f"{metrics['clips']:,}" + (", synthetic" if results["synthetic"] else "")),
        *([("selected", results["selection"])] if "selection" in results else []),
        ("macro accuracy", accuracy_text(metrics, "macro_accuracy")),
        ("accuracy", accuracy_text(metrics, "accuracy")),
        ("log loss", f"{metrics['log_loss']:.3f}"),
        *(
            (f"{name} devices", f"{100 * figures['accuracy']:.1f} %")
            for name, figures in metrics["device_groups"].items()
        ),
        *(
            (f"device {name}", f"{100 * figures['accuracy']:.1f} %")
            for name, figures in metrics["device_wise"].items()
        ),
        *(
            (f"class {name}", f"{100 * figures['accuracy']:.1f} %" if figures else "no clips")
            for name, figures in metrics["class_wise"].items()
        ),
        *(
            (f"city {name}", f"{100 * figures['accuracy']:.1f} %")
            for name, figures in metrics.get("city_wise", {}).items()
        ),
        *((name, f"{value:,}") for name, value in results["complexity"].items()),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"| {name:<{width}} | {value} |" for name, value in rows]
    return "\n".join([f"| {'figure':<{width}} | value |", f"|{'-' * (width + 2)}|---|", *lines]) + "\n"


Subsets = Mapping[str, Sequence[Mapping[str, Any]]]
"""Results of the runs on each configuration of the data."""

ELSEWHERE = {"cache_dir", "config_overrides", "data_dir", "dataset", "impulse_responses", "recipe", "teachers"}
"""Arguments of a run that are no hyperparameters, or stand elsewhere in a card."""

OF_DISTILLATION = {"kd_lambda", "kd_reduction", "temperature"}
"""Hyperparameters that do nothing without teachers."""


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a Markdown table whose first column is left-aligned and whose others are right-aligned."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def mean_accuracy(runs: Sequence[Mapping[str, Any]], name: str = "macro_accuracy") -> float:
    """Return the mean over runs of a figure of their metrics."""
    return statistics.fmean(run["metrics"][name] for run in runs)


def mean_interval(runs: Sequence[Mapping[str, Any]], name: str = "macro_accuracy") -> tuple[float, float] | None:
    """Return the mean 95 % interval of an accuracy over runs, or None if a run has none.

    It tells how much the choice of the test recordings matters, which is the same for all runs; so it does not become
    narrower with their number.
    """
    intervals = [run["metrics"].get("confidence_intervals", {}).get(name) for run in runs]
    if None in intervals:
        return None
    low, high = zip(*intervals, strict=True)
    return statistics.fmean(low), statistics.fmean(high)


def summary_table(subsets: Subsets, recipe: str | None, corpus: Corpus, number_format: str) -> str:
    """Return the table of a card with a row for each training subset.

    The published accuracies stand beside results on TAU only, and only where they are of the same number format.
    """
    reference = None
    if corpus.kind == "tau" and recipe in PUBLISHED_ROWS:
        table = published()[PUBLISHED_ROWS[recipe][0]]
        reference = published_row(recipe) if table["number_format"] == number_format else None
    header = ["training clips", "macro accuracy, %", "95 % interval", "accuracy, %", "log loss", "runs"]
    rows = []
    for subset, runs in subsets.items():
        interval = mean_interval(runs)
        macro = percent(mean_accuracy(runs))
        if len(runs) > 1:
            macro += f" ± {percent(statistics.stdev(run['metrics']['macro_accuracy'] for run in runs))}"
        row = [
            f"{percentage(subset)} % (`{subset}`)",
            macro,
            f"{percent(interval[0])} to {percent(interval[1])}" if interval else "",
            percent(mean_accuracy(runs, "accuracy")),
            f"{mean_accuracy(runs, 'log_loss'):.3f}",
            str(len(runs)),
        ]
        rows.append([*row, f"{reference[percentage(subset)]:.1f}"] if reference else row)
    if reference:
        header.append(f"published ({table['source'].rsplit(', ', 1)[1]}), %")
    return markdown_table(header, rows)


def group_table(subsets: Subsets, grouping: str) -> str:
    """Return the accuracies of `class_wise` or `device_wise`, with a column for each training subset."""
    unseen = {device for runs in subsets.values() for run in runs for device in run["unseen_devices"]}
    names = dict.fromkeys(name for runs in subsets.values() for run in runs for name in run["metrics"][grouping])
    rows = []
    for name in names:
        row = [f"{name} (not in training)" if grouping == "device_wise" and name in unseen else name]
        for runs in subsets.values():
            figures = [run["metrics"][grouping].get(name) for run in runs]
            row.append("no clips" if None in figures else percent(statistics.fmean(f["accuracy"] for f in figures)))
        rows.append(row)
    title = {"class_wise": "class", "device_wise": "device"}[grouping]
    return markdown_table([f"{title}, accuracy in %", *(f"{percentage(subset)} %" for subset in subsets)], rows)


def complexity_table(
    complexity: ModelComplexity, own: Mapping[str, Any], counterpart: Mapping[str, Any] | None
) -> str:
    """Return what a model takes beside what it reaches, as stored and as INT8, with the limits of the challenge."""
    quantized = complexity.number_format == "INT8"
    own_column, other_column = complexity.number_format, "float32" if quantized else "INT8"
    measured = (counterpart or {}).get("size", {})  # of train/quantize.py
    other_bytes = complexity.parameters * 4 if quantized else measured.get("parameter_bytes", complexity.parameters)
    is_student = complexity.macs is not None
    show_other = is_student or counterpart is not None
    rows = [
        ["parameters", f"{complexity.parameters:,}", f"{complexity.parameters:,}", ""],
        [
            "bytes of parameters",
            marked(complexity.parameter_bytes, MAX_PARAMETER_BYTES if is_student else None),
            marked(other_bytes, MAX_PARAMETER_BYTES if is_student else None),
            f"{MAX_PARAMETER_BYTES:,}" if is_student else "",
        ],
        ["bytes of the file", f"{complexity.file_bytes:,}", "", ""],
    ]
    if is_student:
        macs = marked(complexity.macs, MAX_MACS)
        rows.append(["MACs for one second", macs, macs, f"{MAX_MACS:,}"])
    accuracy = percent(mean_accuracy([counterpart])) if counterpart else "not measured"
    rows.append(["macro accuracy, %", percent(mean_accuracy([own])), accuracy, ""])
    header = ["", f"{own_column} (this model)", other_column, "limit"]
    if not show_other:
        header, rows = header[:2], [row[:2] for row in rows]
    return markdown_table(header, rows)


def hyperparameter_table(arguments: Mapping[str, Any]) -> str:
    """Return the hyperparameters of a run, those that are off, zero, unset or without effect left out."""
    left_out = ELSEWHERE if arguments.get("teachers") else ELSEWHERE | OF_DISTILLATION
    rows = [
        [f"`{name}`", f"`{value}`"]
        for name, value in arguments.items()
        if name not in left_out and (value or name == "seed") and not (name == "max_steps" and value < 0)
    ]
    return markdown_table(["argument", "value"], rows) if rows else ""


def percent(share: float) -> str:
    """Return a share from 0 to 1 in percent, with one decimal."""
    return f"{100 * share:.1f}"


def marked(value: int, limit: int | None) -> str:
    """Return a number, which says so if it exceeds its limit."""
    return f"{value:,} (**over the limit**)" if limit is not None and value > limit else f"{value:,}"

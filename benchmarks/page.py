"""Plot the results of `benchmarks` and `benchmarks.latency` over versions, on one self-contained HTML page.

python -m benchmarks.page FILES_OR_FOLDERS... [--out build/benchmarks.html]
"""

import argparse
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from benchmarks.machine import hardware, software
from dataset_script.errors import InputError
from dataset_script.files import atomic_path


COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#8a6d00")
MARKERS = {"o": "●", "s": "■", "^": "▲", "D": "◆", "v": "▼"}
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 1160px; margin: 2em auto;
  padding: 0 1em; }
h1 { margin: 0; } h2 { margin: 1.6em 0 .4em; } h2 small, .note { color: #666; }
.plots { display: grid; grid-template-columns: repeat(auto-fill, minmax(340px, 1fr)); gap: 1em; }
figure { margin: 0; padding: .7em; border: 1px solid #ddd; border-radius: 6px; }
figcaption { font-size: 13px; line-height: 1.35; min-height: 4em; }
svg { display: block; width: 100%; height: auto; }
div { overflow-x: auto; } table { border-collapse: collapse; font-size: 13px; width: 100%; }
th, td { text-align: left; vertical-align: top; padding: .3em .9em .3em 0; border-bottom: 1px solid #e4e4e4; }
th { border-color: #888; } .number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.faster { color: #00704e; font-weight: 600; } .slower { color: #b03a00; font-weight: 600; }
"""
INTRODUCTION = """Points are medians in milliseconds (lower is better); bars span the middle half of the rounds.
Versions are in the order of their first measurement. Only runs of the same machine are joined by a line and compared.
Ratios above 1 are faster; they are coloured if the middle halves of at least five rounds each do not overlap.
Before is the previous run on the machine; the other is the other implementation, which took turns in the same run."""

Machine = tuple[str, ...]
"""What [`~benchmarks.machine.hardware`] returns."""


class Measurement(NamedTuple):
    """What was measured and how: a plot."""

    section: str
    name: str
    what: str
    setting: str


class Point(NamedTuple):
    """Times of a measurement in one run, in milliseconds, and the ratio to the other implementation."""

    version: str
    low: float
    median: float
    high: float
    rounds: int
    ratio: float | None


class Run(NamedTuple):
    """A results file."""

    date: str
    machine: Machine
    software: str
    version: str
    points: dict[Measurement, Point]


def read_runs(paths: Iterable[Path]) -> list[Run]:
    """Read the results in files and folders, in the order of time.

    Raises:
        FileNotFoundError: If a path does not exist or a folder contains no JSON file.
        InputError: If a file is not a result of a benchmark, or was written before results had a date.
    """
    files: set[Path] = set()
    for path in paths:
        found = list(path.glob("*.json")) if path.is_dir() else [path] if path.exists() else []
        if not found:
            raise FileNotFoundError(f"{path} is missing or contains no JSON file: write one with a benchmark's --out.")
        files.update(file.resolve() for file in found)
    return sorted(map(read_run, sorted(files)), key=lambda run: run.date)


def read_run(file: Path) -> Run:
    """Read a results file; see [`read_runs`]."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        rows, machine = content["rows"], content["machine"]
        if "date" in content:
            version = " ".join(filter(None, (machine["version"], machine["commit"])))
            points = {}
            for measurement, seconds, ratio in _measurements(rows):
                low, median, high = 1e3 * np.percentile(seconds, (25, 50, 75))
                points[measurement] = Point(version, low, median, high, len(seconds), ratio)
            return Run(str(content["date"]), hardware(machine), software(machine), version, points)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        raise InputError(f"{file} is not a result of `benchmarks` or `benchmarks.latency`: leave it out.") from None
    raise InputError(f"{file} was written before results had a date: measure again.")


def _measurements(rows: Iterable[Mapping[str, Any]]) -> Iterator[tuple[Measurement, list[float], float | None]]:
    for row in rows:
        setting = f"{row['threads']} thread{'s' * (row['threads'] != 1)}"
        if "stage" in row:
            setting += ", freed memory kept" * ("ours" in row["keep_freed_memory"])
            yield Measurement("Stages", row["stage"], row["what"], setting), row["seconds"]["ours"], row["ratio"]
        else:
            for clips, seconds in row["seconds"].items():
                yield Measurement("Forms of the network", row["form"], clips, setting), seconds, None


def collect(runs: Sequence[Run]) -> tuple[list[str], dict[Measurement, dict[Machine, list[Point]]]]:
    """Return the versions, and for each measurement and machine its points, by version and then by time."""
    versions = list(dict.fromkeys(run.version for run in runs))
    lines: dict[Measurement, dict[Machine, list[Point]]] = {}
    for run in sorted(runs, key=lambda run: versions.index(run.version)):
        for measurement, point in run.points.items():
            lines.setdefault(measurement, {}).setdefault(run.machine, []).append(point)
    return versions, lines


def draw(machines: Mapping[Machine, Sequence[Point]], order: Sequence[Machine], versions: Sequence[str]) -> str:
    """Return a plot as SVG: a line for each machine."""
    figure = Figure(figsize=(4.2, 2.3), layout="constrained")
    axes = figure.subplots()
    for machine, points in machines.items():
        color, marker = _style(order.index(machine))
        x = [versions.index(point.version) for point in points]
        low, median, high = np.array([(point.low, point.median, point.high) for point in points]).T
        spread = (median - low, high - median)
        axes.errorbar(x, median, spread, color=color, marker=marker, markersize=5, capsize=3, elinewidth=1)
    shown = range(len(versions) - 1, -1, -(1 + (len(versions) - 1) // 6))  # at most six labels fit
    axes.set_xticks(shown, [versions[position].replace(" ", "\n").replace("-", "\n") for position in shown])
    axes.set(xlim=(-0.5, len(versions) - 0.5), ylabel="ms")
    axes.set_ylim(bottom=0)
    axes.tick_params(labelsize=8)
    axes.grid(axis="y", color="#eeeeee")
    axes.spines[["top", "right"]].set_visible(False)
    with matplotlib.rc_context({"svg.hashsalt": "benchmarks", "svg.fonttype": "none"}):
        svg = io.StringIO()
        figure.savefig(svg, format="svg", metadata=dict.fromkeys(("Creator", "Date", "Format", "Type")))
    return svg.getvalue()[svg.getvalue().index("<svg") :]


def _style(index: int) -> tuple[str, str]:
    return COLOURS[index % len(COLOURS)], list(MARKERS)[index % len(MARKERS)]


def _name(index: int) -> str:
    color, marker = _style(index)
    return f'<span style="color:{color}">{MARKERS[marker]}</span>&nbsp;{index + 1}'


def _table(header: Sequence[str], rows: Iterable[Sequence[str]], numbers: int = 0) -> str:
    """Return a table of HTML cells, whose last columns are `numbers`."""
    text = len(header) - numbers
    kinds = [""] * text + [' class="number"'] * numbers
    lines = ["".join(f"<th{kind}>{cell}</th>" for kind, cell in zip(kinds, header, strict=True))]
    lines += ["".join(f"<td{kind}>{cell}</td>" for kind, cell in zip(kinds, row, strict=True)) for row in rows]
    return f"<div><table>{''.join(f'<tr>{line}</tr>' for line in lines)}</table></div>"


def newest(points: Sequence[Point]) -> list[str]:
    """Return the cells of a line's newest point: version, times, and how many times as fast it is."""
    *earlier, now = points
    previous = "-"
    if earlier:
        before = earlier[-1]
        kind = "faster" if now.high < before.low else "slower" if now.low > before.high else "same"
        kind = kind if min(before.rounds, now.rounds) >= 5 else "same"
        previous = f'<span class="{kind}">{before.median / now.median:.2f}</span> ({escape(before.version)})'
    spread, ratio = f"{now.low:.2f} to {now.high:.2f}", f"{now.ratio:.2f}" if now.ratio else "-"
    return [escape(now.version), f"{now.median:.2f}", spread, previous, ratio]


def render(runs: Sequence[Run]) -> str:
    """Return the page."""
    versions, lines = collect(runs)
    order = list(dict.fromkeys(run.machine for run in runs))
    body = [f'<h1>Benchmarks of acoustic-scenes</h1><p class="note">{INTRODUCTION}</p><h2>Machines</h2>']
    machines = ([_name(index), *map(escape, machine)] for index, machine in enumerate(order))
    body.append(_table(("machine", "processor", "cores", "vector instructions", "memory", "GPU"), machines))
    for section in dict.fromkeys(measurement.section for measurement in lines):
        body.append(f'<h2>{section} <small>over versions</small></h2><div class="plots">')
        rows = []
        for measurement, found in lines.items():
            if measurement.section == section:
                _, name, what, setting = map(escape, measurement)
                name, detail = f"<b>{name}</b>", f'<span class="note">{what}</span>'
                caption = f"<figcaption>{name}, {setting}<br>{detail}</figcaption>"
                body.append(f"<figure>{caption}{draw(found, order, versions)}</figure>")
                indices = sorted(map(order.index, found))
                rows += [[f"{name} {detail}", setting, _name(i), *newest(found[order[i]])] for i in indices]
        body.append(f"</div><h2>{section} <small>newest values</small></h2>")
        header = ("measurement", "setting", "machine", "version", "median, ms", "middle half, ms")
        body.append(_table((*header, "times as fast as before", "as the other"), rows, numbers=4))
    cells = ([run.date, _name(order.index(run.machine)), escape(run.software)] for run in runs)
    body.append("<h2>Runs</h2>" + _table(("date (UTC)", "machine", "software"), cells))
    head = f'<meta charset="utf-8"><title>Benchmarks of acoustic-scenes</title><style>{STYLE}</style>'
    return "\n".join([f'<!DOCTYPE html><html lang="en"><head>{head}</head><body>', *body, "</body></html>\n"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", nargs="+", type=Path, help="JSON files of benchmarks, or folders of them.")
    parser.add_argument("--out", type=Path, default=Path("build/benchmarks.html"), help="HTML file to write.")
    args = parser.parse_args(arguments)
    try:
        runs = read_runs(args.results)
        with atomic_path(args.out) as part:
            part.write_text(render(runs), encoding="utf-8")
    except (OSError, InputError) as error:
        parser.error(str(error))
    print(f"Page written to {args.out}.")


if __name__ == "__main__":
    main()

"""Table of the distillation benchmark, from the logits of its students."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import datasets
import numpy as np
from scipy.stats import t

from dataset_script.markdown import markdown_table
from model_cards.results import portable
from train.evaluation.scoring import score_logits


HEADER = (
    "row",
    "seeds",
    "macro accuracy",
    "95 % by location",
    "difference to labels alone",
    "95 % over seeds",
    "log loss",
    "seen devices",
    "unseen devices",
    "steps (epochs)",
    "minutes a run",
)


def t_interval(values: Sequence[float]) -> list[float] | None:
    """Return the 95 % interval of the mean by Student's distribution, or None for fewer than two values."""
    if len(values) < 2:
        return None
    half = t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return [statistics.mean(values) - half, statistics.mean(values) + half]


def summarize(
    logits: Mapping[int, np.ndarray], clips: datasets.Dataset, unseen: Sequence[str], bootstrap: int = 1000
) -> dict[str, Any]:
    """Compute the metrics of one row of the table: means over its seeds.

    Args:
        logits (`Mapping[int, np.ndarray]`): Logits of the test clips by seed.
        clips (`datasets.Dataset`): The test clips.
        unseen (`Sequence[str]`): Devices that are not in the training clips.
        bootstrap (`int`, *optional*, defaults to 1000): Resamples of the locations, each with all seeds.

    Returns:
        `dict[str, Any]`: `macro_accuracy` by seed, its `mean`, its standard deviation `sd` (None for one seed) and the
        `interval` of the mean by location; `log_loss`, `seen` and `unseen`.
    """
    by_seed = {
        seed: score_logits(values, clips, unseen, bootstrap=0)["macro_accuracy"] for seed, values in logits.items()
    }
    # Every seed has the same clips, so the metrics of all predictions together are the means over the seeds, and
    # resampled locations take the predictions of all seeds with them.
    repeated = datasets.concatenate_datasets([clips] * len(logits))
    together = score_logits(np.concatenate(list(logits.values())), repeated, unseen, bootstrap)
    groups = together["device_groups"]
    accuracies = list(by_seed.values())
    return {
        "macro_accuracy": by_seed,
        "mean": together["macro_accuracy"],
        "sd": statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        "interval": together["confidence_intervals"]["macro_accuracy"] if bootstrap else None,
        "log_loss": together["log_loss"],
        "seen": groups["seen"]["accuracy"] if "seen" in groups else None,
        "unseen": groups["unseen"]["accuracy"] if "unseen" in groups else None,
    }


def difference(row: Mapping[int, float], baseline: Mapping[int, float]) -> dict[str, Any] | None:
    """Return the mean difference of a row to a baseline over their common seeds; None if they have none.

    Args:
        row (`Mapping[int, float]`): Macro accuracy by seed.
        baseline (`Mapping[int, float]`): The same for the baseline.

    Returns:
        `dict[str, Any]`: `seeds` (their number), `mean` and `interval` (95 %, None for one seed), or None.
    """
    values = [row[seed] - baseline[seed] for seed in row if seed in baseline]
    if not values:
        return None
    return {"seeds": len(values), "mean": statistics.mean(values), "interval": t_interval(values)}


def format_table(results: Mapping[str, Any]) -> str:
    """Return the results of the benchmark as Markdown.

    Args:
        results (`Mapping`): Content of `results.json`.
    """
    settings = results["settings"]
    options = ", ".join(settings["student_options"])
    other_sound = f" (other sound: {portable(settings['other_sound'])})" if settings["other_sound"] else ""
    lines = [
        f"# Distillation with few labels: {results['data']}",
        "",
        f"Teacher: {results['teacher']} (revision `{results['revision']}`). Students: TF-SepNet{options and ', '}"
        f"{options}, {settings['steps']:,} optimizer steps each, {settings['batch_size']} clips a step, initial "
        f"learning rate {settings['learning_rate']:g}, one cosine cycle; unlabelled clips{other_sound}, where used, "
        f"are {100 * settings['unlabelled_fraction']:g} % of each step. {results['training_clips']:,} training clips, "
        f"{results['test_clips']:,} test clips.",
        "",
        "Macro accuracy in %, mean ± standard deviation over seeds. Its interval resamples the test locations; that "
        "of the paired difference is Student's over seeds. The table says nothing of other data, teachers or lengths "
        "of training.",
    ]
    for subset, content in results["subsets"].items():
        teacher, test = content["teacher"], content["teacher"]["test"]
        lines += [
            "",
            f"## {subset}: {content['clips']:,} labelled clips",
            "",
            f"The teacher: {_percent(test['mean'])} % on test ({_interval(test['interval'])} by location), log loss "
            f"{test['log_loss']:.2f}, seen devices {_percent(test['seen'])}, unseen {_percent(test['unseen'])}; "
            f"{_percent(teacher['labelled'])} % of the labelled clips, {_percent(teacher['unlabelled'])} % of the "
            f"others; mean confidence on the labelled clips {teacher['confidence']:.2f} at temperature "
            f"{settings['temperature']:g}.",
            "",
        ]
        lines.append(markdown_table(HEADER, [_cells(row) for row in content["rows"].values()]))
        lines += [f"\nNot run: {row} ({reason})." for row, reason in content["refused"].items()]
    versions = ", ".join(f"{name} {number}" for name, number in results["versions"].items())
    origin = f"{results['date']}, commit {results['commit']}, {results['machine']}; {versions}."
    return "\n".join([*lines, "", origin, ""])


def _cells(row: Mapping[str, Any]) -> list[str]:
    paired = row["difference"]
    interval = paired["interval"] if paired else None
    return [
        row["title"],
        str(len(row["macro_accuracy"])),
        _percent(row["mean"]) + (f" ± {_percent(row['sd'])}" if row["sd"] is not None else ""),
        _interval(row["interval"]),
        f"{100 * paired['mean']:+.1f}" if paired else "-",
        f"{100 * interval[0]:+.1f} to {100 * interval[1]:+.1f}" if interval else "-",
        f"{row['log_loss']:.2f}",
        _percent(row["seen"]),
        _percent(row["unseen"]),
        f"{row['steps']:,} ({row['epochs']:,})",
        f"{row['seconds'] / 60:.1f}" if row["seconds"] is not None else "-",
    ]


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None else f"{100 * fraction:.1f}"


def _interval(interval: Sequence[float] | None) -> str:
    return "-" if interval is None else f"{_percent(interval[0])} to {_percent(interval[1])}"

"""The published results of the report, beside which ours stand."""

from functools import cache
from pathlib import Path
from typing import Any

import yaml


PUBLISHED_ROWS = {
    "baseline": ("teachers", "Baseline"),
    "ssl_star": ("teachers", "BEATs (SSL)*"),
    "ssl": ("teachers", "BEATs (SSL)"),
    "ssl_sl": ("teachers", "BEATs (SSL+SL)"),
    "ensemble5": ("teachers", "5 Ensemble"),
    "ensemble10": ("teachers", "10 Ensemble"),
    "vanilla": ("student", "Vanilla"),
    "s1": ("student", "S1"),
    "s2": ("student", "S2"),
    "s3": ("student", "S3"),
}
"""Table and row of the report in which a recipe's accuracies are published."""


@cache
def published() -> dict[str, Any]:
    """Return the published accuracies (percent) with their sources, of `published/dcase2024_task1.yaml`."""
    path = Path(__file__).with_name("published") / "dcase2024_task1.yaml"
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def published_row(recipe: str) -> dict[int, float]:
    """Return the published accuracies of a recipe's system, in percent, by the subset's percentage.

    Raises:
        KeyError: If the report has no system of that name, see `PUBLISHED_ROWS`.
    """
    table, system = PUBLISHED_ROWS[recipe]
    (row,) = (row for row in published()[table]["rows"] if row["system"] == system)
    return {percentage: row[percentage] for percentage in published()["splits"]}

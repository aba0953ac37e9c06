"""The hyperparameters of a run, from its arguments."""

from collections.abc import Mapping
from typing import Any

from dataset_script.markdown import code, markdown_table


NOT_HYPERPARAMETERS = {
    "cache_dir",
    "config_overrides",
    "data_dir",
    "dataset",
    "impulse_responses",
    "model_revision",
    "recipe",
    "student",
    "teacher_revisions",
    "teachers",
    "unlabelled",
    "unlabelled_sound",
}
"""Arguments of a run that are not hyperparameters, or are elsewhere in a card."""

DISTILLATION_ONLY = {"kd_lambda", "kd_reduction", "temperature"}
"""Hyperparameters without effect if there are no teachers."""


def hyperparameter_table(arguments: Mapping[str, Any]) -> str:
    """Return the hyperparameters of a run that are neither off, zero, unset nor without effect.

    Args:
        arguments (`Mapping`): Arguments of the run.
    """
    omitted = NOT_HYPERPARAMETERS if arguments.get("teachers") else NOT_HYPERPARAMETERS | DISTILLATION_ONLY
    rows = [
        [code(name), code(str(value))]
        for name, value in arguments.items()
        if name not in omitted and (value or name == "seed") and not (name == "max_steps" and value < 0)
    ]
    return markdown_table(["argument", "value"], rows) if rows else ""

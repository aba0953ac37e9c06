"""Recipes: YAML files with every hyperparameter of a system, and how they meet the command line."""

import argparse
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser


FOLDER = Path(__file__).parent / "recipes"


def is_recipe(name: str) -> bool:
    """Return whether `name` stands for a recipe: one of this package by its name, or a YAML file."""
    return name.endswith(".yaml") or ("/" not in name and (FOLDER / f"{name}.yaml").is_file())


def load_recipe(name: str, dataset: str | None = None) -> dict[str, Any]:
    """Return the arguments that a recipe sets.

    A value may depend on the size of the training subset: a mapping from percentages to values, of which the one for
    the chosen `dataset` is taken.

    Args:
        name (`str`): Name of a recipe of this package, or path of a YAML file.
        dataset (`str`, *optional*): Configuration of the data, such as `"split25"`; defaults to the recipe's own.

    Raises:
        FileNotFoundError: If there is no such recipe.
        ValueError: If the file is not a mapping, or has no value for the subset.
    """
    path = Path(name) if name.endswith(".yaml") else FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(path.stem for path in FOLDER.glob("*.yaml")))
        raise FileNotFoundError(f"There is no recipe {name!r}: give one of {known}, or a YAML file.")
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"The recipe {path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(recipe, dict):
        raise ValueError(f"The recipe {path} must be a mapping from arguments to values.")
    percentage = subset_percentage(dataset or recipe.get("dataset", ""))
    for argument, value in recipe.items():
        if isinstance(value, dict):
            if percentage not in value:
                raise ValueError(
                    f"The recipe {name!r} has {argument} for subsets of {', '.join(map(str, value))} %, but not of "
                    f"{percentage} %: choose one of these, or a recipe of your own."
                )
            recipe[argument] = value[percentage]
    return recipe


def subset_percentage(dataset: str) -> int:
    """Return the share of the training set in a configuration's name, in percent: `"split25"` has 25, `"demo"` 100."""
    digits = re.search(r"\d+$", dataset)
    return int(digits.group()) if digits else 100


def parse_arguments(
    dataclass_types: Iterable[type], default_recipe: str, arguments: list[str] | None = None
) -> tuple[str, tuple[Any, ...]]:
    """Read a script's arguments: defaults of the dataclasses, then the recipe, then the command line.

    The output folder defaults to `outputs/<recipe>-<dataset>`.

    Args:
        dataclass_types (`Iterable[type]`): Dataclasses, as for `HfArgumentParser`.
        default_recipe (`str`): Used without `--recipe`.
        arguments (`list[str]`, *optional*): Defaults to the command line.

    Returns:
        The recipe's name and an instance of each dataclass.

    Raises:
        FileNotFoundError, ValueError: As [`load_recipe`]; if the recipe sets an argument the script does not have; if
            an argument on the command line is unknown.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--recipe", default=default_recipe, help="Recipe of the run: a name, or a YAML file.")
    first.add_argument("--dataset")
    chosen, _ = first.parse_known_args(arguments)

    parser = HfArgumentParser(dataclass_types)
    parser.allow_abbrev = False
    parser.add_argument("--recipe", help="Name of a recipe of this package, or path of a YAML file.")
    recipe = load_recipe(chosen.recipe, chosen.dataset)
    known = {action.dest for action in parser._actions}
    name = Path(chosen.recipe).stem
    if unknown := [argument for argument in recipe if argument not in known]:
        raise ValueError(f"The recipe {chosen.recipe!r} sets {unknown[0]}, which this script does not have.")
    output_dir = f"outputs/{name}-{chosen.dataset or recipe.get('dataset', 'demo')}"
    parser.set_defaults(**{"output_dir": output_dir, **recipe})
    *instances, _ = parser.parse_args_into_dataclasses(arguments, look_for_args_file=False)
    return name, tuple(instances)

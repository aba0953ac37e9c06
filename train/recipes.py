"""Recipes: YAML files with every hyperparameter of a system, and how they meet the command line."""

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, NoReturn

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
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"The recipe {path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(recipe, dict):
        raise ValueError(f"The recipe {path} must be a mapping from arguments to values.")
    percentage = subset_percentage(dataset or str(recipe.get("dataset", "")))
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
    """Return the percentage of the training set in a configuration's name: 25 of `"split25"`; 100 if there is none."""
    subset = re.fullmatch(r"(?:split|demo)(\d+)", dataset)
    return int(subset[1]) if subset else 100


def as_command(arguments: Mapping[str, Any]) -> list[str]:
    """Return arguments as a command line has them; those that are None or an empty list are left out."""
    command = []
    for name, value in arguments.items():
        if isinstance(value, list) and value:
            command += [f"--{name}", *map(str, value)]
        elif value not in (None, []):
            command.append(f"--{name}={value}")
    return command


class ScriptParser(HfArgumentParser):
    """`HfArgumentParser` that takes no abbreviations, and answers wrong input with one sentence.

    Args:
        dataclass_types (`type` or `Iterable[type]`, *optional*): As for `HfArgumentParser`.
        settings: As for `argparse.ArgumentParser`.
    """

    def __init__(self, dataclass_types: type | Iterable[type] = (), **settings: Any):
        super().__init__(dataclass_types, allow_abbrev=False, **settings)

    def parse(self, arguments: Sequence[str] | None = None) -> list[Any]:
        """Return an instance of each dataclass, and a namespace if there are arguments of none.

        Args:
            arguments (`Sequence[str]`, *optional*): Defaults to the command line.

        Raises:
            ValueError: If an argument is unknown or missing, or its value is none that it takes.
        """
        *instances, unknown = self.parse_args_into_dataclasses(
            arguments, return_remaining_strings=True, look_for_args_file=False
        )
        if unknown:
            option = unknown[0].split("=")[0]
            close = difflib.get_close_matches(option, self._option_string_actions, n=1, cutoff=0.75)
            raise ValueError(f"There is no argument {option}: {f'use {close[0]}' if close else 'see --help'}.")
        return instances

    def error(self, message: str) -> NoReturn:
        """Raise `ValueError` with argparse's message, without the usage, which is as long as a screen."""
        message = re.sub(r"/--[\w-]+", "", message).rstrip(".")  # the other spelling of an argument's name
        raise ValueError(f"{message[0].upper()}{message[1:]}: see --help.")


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
        FileNotFoundError, ValueError: As [`load_recipe`] and [`ScriptParser`]; if the recipe sets an argument that the
            script does not have, or to a value of another type.
    """
    first = ScriptParser(add_help=False)
    first.add_argument("--recipe", default=default_recipe)
    first.add_argument("--dataset")
    chosen, _ = first.parse_known_args(arguments)
    recipe = load_recipe(chosen.recipe, chosen.dataset)

    parser = ScriptParser(dataclass_types)
    parser.add_argument("--recipe", help="Name of a recipe of this package, or path of a YAML file.")
    known = {field.name for dataclass_type in dataclass_types for field in fields(dataclass_type)}
    if unknown := [argument for argument in recipe if argument not in known]:
        raise ValueError(f"The recipe {chosen.recipe!r} sets {unknown[0]}, which this script does not have.")
    try:
        values = parser.parse_args(as_command(recipe))
    except ValueError as error:
        raise ValueError(f"The recipe {chosen.recipe!r} cannot be used: {error}") from None
    name = Path(chosen.recipe).stem
    dataset = Path(chosen.dataset or str(recipe.get("dataset", "demo"))).resolve().name
    parser.set_defaults(output_dir=f"outputs/{name}-{dataset}")
    parser.set_defaults(**{argument: getattr(values, argument) for argument in recipe})
    *instances, _ = parser.parse(arguments)
    return name, tuple(instances)

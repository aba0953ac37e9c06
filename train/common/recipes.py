"""Recipes: YAML files with every hyperparameter of a system, and how they meet the command line."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml

from dataset_script.errors import InputError, input_errors
from dataset_script.splits import subset_percentage
from train.common.arguments import CommandParser


FOLDER = Path(__file__).parents[1] / "recipes"


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
        InputError: If the file is not a mapping, or has no value for the subset.
    """
    path = Path(name) if name.endswith(".yaml") else FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(path.stem for path in FOLDER.glob("*.yaml")))
        raise FileNotFoundError(f"There is no recipe {name!r}: give one of {known}, or a YAML file.")
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"The recipe {path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(recipe, dict):
        raise InputError(f"The recipe {path} must be a mapping from arguments to values.")
    percentage = subset_percentage(dataset or str(recipe.get("dataset", "")))
    for argument, value in recipe.items():
        if isinstance(value, dict):
            if percentage not in value:
                raise InputError(
                    f"The recipe {name!r} has {argument} for subsets of {', '.join(map(str, value))} %, but not of "
                    f"{percentage} %: choose one of these, or a recipe of your own."
                )
            recipe[argument] = value[percentage]
    return recipe


def _as_command(arguments: Mapping[str, Any]) -> list[str]:
    """Return arguments as a command line has them; those that are None or an empty list are left out."""
    command = []
    for name, value in arguments.items():
        if isinstance(value, list) and value:
            command += [f"--{name}", *map(str, value)]
        elif value not in (None, []):
            command.append(f"--{name}={value}")
    return command


def parse_arguments(
    dataclass_types: Sequence[type], default_recipe: str, arguments: Sequence[str] | None = None
) -> tuple[str, tuple[Any, ...]]:
    """Read a command's arguments: defaults of the dataclasses, then the recipe, then the command line.

    The output folder defaults to `outputs/<recipe>-<dataset>`.

    Args:
        dataclass_types (`Sequence[type]`): Dataclasses, as for `HfArgumentParser`.
        default_recipe (`str`): Used without `--recipe`.
        arguments (`Sequence[str]`, *optional*): Defaults to the command line.

    Returns:
        `tuple`: The recipe's name, and an instance of each dataclass.

    Raises:
        FileNotFoundError, InputError: As [`load_recipe`] and [`~train.common.arguments.CommandParser`]; if the recipe
            sets an argument that the command does not have, or to a value of another type.
    """
    first = CommandParser(add_help=False)
    first.add_argument("--recipe", default=default_recipe)
    first.add_argument("--dataset")
    arguments = sys.argv[1:] if arguments is None else arguments
    chosen, _ = first.parse_known_args(arguments)
    recipe = load_recipe(chosen.recipe, chosen.dataset)
    name = Path(chosen.recipe).stem
    dataset = Path(chosen.dataset or str(recipe.get("dataset", "demo"))).resolve().name
    parser = CommandParser(dataclass_types)
    parser.add_argument("--recipe", help="Name of a recipe of this package, or path of a YAML file.")
    values = _typed(parser, chosen.recipe, recipe, dataclass_types)
    parser.set_defaults(output_dir=f"outputs/{name}-{dataset}")
    parser.set_defaults(**values)
    *instances, _ = parser.parse(arguments)
    return name, tuple(instances)


def recipe_arguments(dataclass_types: Sequence[type], recipe: str, dataset: str, **settings: Any) -> tuple[Any, ...]:
    """Return the arguments of a recipe as objects, without a command line.

    Args:
        dataclass_types (`Sequence[type]`): Dataclasses, as for `HfArgumentParser`.
        recipe (`str`): As for [`load_recipe`].
        dataset (`str`): Configuration of the data, which may decide values of the recipe.
        settings: Values of any fields of the dataclasses; they override the recipe.

    Raises:
        FileNotFoundError, InputError: As [`parse_arguments`].
    """
    parser = CommandParser(dataclass_types)
    values = _typed(parser, recipe, load_recipe(recipe, dataset), dataclass_types) | {"dataset": dataset} | settings
    with input_errors(f"The recipe {recipe!r} is not usable: "):
        return tuple(
            cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})
            for cls in dataclass_types
        )


def _typed(
    parser: CommandParser, name: str, recipe: Mapping[str, Any], dataclass_types: Sequence[type]
) -> dict[str, Any]:
    """Return the values of a recipe with the types of the dataclasses' fields, checked as on a command line."""
    known = {field.name for dataclass_type in dataclass_types for field in fields(dataclass_type)}
    if unknown := [argument for argument in recipe if argument not in known]:
        raise InputError(f"The recipe {name!r} sets {unknown[0]}, which this command does not have.")
    with input_errors(f"The recipe {name!r} is not usable: "):
        values = parser.parse_args(_as_command(recipe))
    return {argument: getattr(values, argument) for argument in recipe}

"""Recipes: YAML files with all hyperparameters of a system, and their combination with the command line."""

import re
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

COMMAND_LINE_ONLY = re.compile(
    r"trust_remote_code|push_to_hub.*|hub_.*|.*_token|report_to|trackio_.*|project|run_name|deepspeed|output_dir"
    r"|logging_dir|cache_dir|resume_from_checkpoint|overwrite_.*"
)
"""Arguments that decide whose code runs and where files go: recipes are files that people pass around."""


def is_recipe(name: str) -> bool:
    """Return whether `name` is a recipe: the name of one in this package, or a YAML file."""
    return name.endswith(".yaml") or ("/" not in name and (FOLDER / f"{name}.yaml").is_file())


def load_recipe(name: str, dataset: str | None = None) -> dict[str, Any]:
    """Load the arguments of a recipe.

    A value can depend on the size of the training subset: a mapping from percentages to values.

    Args:
        name (`str`): Name of a recipe in this package, or path of a YAML file.
        dataset (`str`, *optional*): Configuration of the data, such as `"split25"`; defaults to the recipe's own.

    Returns:
        `dict`: The arguments, with the values for this subset.

    Raises:
        FileNotFoundError: If the recipe does not exist.
        InputError: If the file is not a mapping, has no value for the subset, or sets an argument that is only taken
            from the command line.
    """
    path = Path(name) if name.endswith(".yaml") else FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = ", ".join(sorted(path.stem for path in FOLDER.glob("*.yaml")))
        raise FileNotFoundError(f"There is no recipe {name!r}: choose one of {known}, or a YAML file.")
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"The recipe {path} is not valid YAML: {' '.join(str(error).split())}.") from None
    if not isinstance(recipe, dict):
        raise InputError(f"The recipe {path} is not a mapping: write one argument per line, as name: value.")
    is_ours = path.parent == FOLDER
    for argument in recipe:
        if COMMAND_LINE_ONLY.fullmatch(str(argument)) and not (is_ours and argument == "output_dir"):
            raise InputError(
                f"The recipe {name!r} sets {argument}, which is only taken from the command line: remove it there, "
                f"and add --{argument} to the command if you want it."
            )
    percentage = subset_percentage(dataset or str(recipe.get("dataset", "")))
    for argument, value in recipe.items():
        if isinstance(value, dict):
            if percentage not in value:
                raise InputError(
                    f"The recipe {name!r} has {argument} for subsets of {', '.join(map(str, value))} %, but not of "
                    f"{percentage} %: choose one of these, or write your own recipe."
                )
            recipe[argument] = value[percentage]
    return recipe


def _as_command(arguments: Mapping[str, Any]) -> list[str]:
    """Convert arguments to a command line, without those that are None or an empty list."""
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
    """Parse the arguments of a command: the command line overrides the recipe, which overrides the defaults.

    The output folder defaults to `outputs/<recipe>-<dataset>`.

    Args:
        dataclass_types (`Sequence[type]`): Dataclasses, as for `HfArgumentParser`.
        default_recipe (`str`): Recipe if the command line has no `--recipe`.
        arguments (`Sequence[str]`, *optional*): Defaults to the command line.

    Returns:
        `tuple`: The recipe's name, and an instance of each dataclass.

    Raises:
        FileNotFoundError, InputError: As [`load_recipe`] and [`~train.common.arguments.CommandParser.parse`]; if the
            recipe sets an argument that the command does not have, or a value of the wrong type.
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
    parser.add_argument("--recipe", help="Name of a recipe in this package, or path of a YAML file.")
    values = _typed(parser, chosen.recipe, recipe, dataclass_types)
    parser.set_defaults(output_dir=f"outputs/{name}-{dataset}")
    parser.set_defaults(**values)
    *instances, _ = parser.parse(arguments)
    return name, tuple(instances)


def recipe_arguments(dataclass_types: Sequence[type], recipe: str, dataset: str, **settings: Any) -> tuple[Any, ...]:
    """Return the arguments of a recipe as dataclasses, without a command line.

    Args:
        dataclass_types (`Sequence[type]`): Dataclasses, as for `HfArgumentParser`.
        recipe (`str`): Name or file, as for [`load_recipe`].
        dataset (`str`): Configuration of the data, on which values of the recipe can depend.
        settings: Values of any fields of the dataclasses, which override the recipe.

    Returns:
        `tuple`: An instance of each dataclass.

    Raises:
        FileNotFoundError, InputError: As [`parse_arguments`].
    """
    parser = CommandParser(dataclass_types)
    values = _typed(parser, recipe, load_recipe(recipe, dataset), dataclass_types) | {"dataset": dataset} | settings
    with input_errors(f"The recipe {recipe!r} is invalid: "):
        return tuple(
            cls(**{field.name: values[field.name] for field in fields(cls) if field.name in values})
            for cls in dataclass_types
        )


def _typed(
    parser: CommandParser, name: str, recipe: Mapping[str, Any], dataclass_types: Sequence[type]
) -> dict[str, Any]:
    """Convert the values of a recipe to the types of the dataclasses' fields, with the checks of a command line."""
    known = {field.name for dataclass_type in dataclass_types for field in fields(dataclass_type)}
    if unknown := [argument for argument in recipe if argument not in known]:
        raise InputError(f"The recipe {name!r} sets {unknown[0]}, which this command does not have: remove it.")
    with input_errors(f"The recipe {name!r} is invalid: "):
        values = parser.parse_args(_as_command(recipe))
    return {argument: getattr(values, argument) for argument in recipe}

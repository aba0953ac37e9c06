"""Recipes: YAML files with all hyperparameters of a system, and their combination with the command line."""

import ast
import re
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import fields
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import yaml

from acoustic_scenes.suggestions import did_you_mean
from dataset_script.errors import InputError, input_errors
from dataset_script.splits import subset_percentage
from train.common.arguments import CommandParser
from train.common.availability import check_exists, check_paths, check_start


FOLDER = Path(__file__).parents[1] / "recipes"

COMMAND_LINE_ONLY = re.compile(
    r"trust_remote_code|push_to_hub.*|hub_.*|.*_token|report_to|trackio_.*|project|run_name|deepspeed|output_dir"
    r"|logging_dir|cache_dir|resume_from_checkpoint|overwrite_.*"
)
"""Arguments that decide whose code runs and where files go: recipes are files that people pass around."""


def is_recipe(name: str) -> bool:
    """Return whether `name` is a recipe: the name of one in this package, or a YAML file."""
    return name.endswith(".yaml") or ("/" not in name and (FOLDER / f"{name}.yaml").is_file())


def load_recipe(name: str, dataset: str | None = None, known: Sequence[str] = ()) -> dict[str, Any]:
    """Load the arguments of a recipe.

    A value can depend on the size of the training subset: a mapping from percentages to values.

    Args:
        name (`str`): Name of a recipe in this package, or path of a YAML file.
        dataset (`str`, *optional*): Configuration of the data, such as `"split25"`; defaults to the recipe's own.
        known (`Sequence[str]`, *optional*): Recipes to suggest if it does not exist; defaults to all in this package.

    Returns:
        `dict`: The arguments, with the values for this subset.

    Raises:
        FileNotFoundError: If the recipe does not exist.
        InputError: If the file is not a mapping, has no value for the subset, or sets an argument that is only taken
            from the command line.
    """
    path = Path(name) if name.endswith(".yaml") else FOLDER / f"{name}.yaml"
    if not path.is_file():
        known = known or sorted(path.stem for path in FOLDER.glob("*.yaml"))
        raise FileNotFoundError(
            f"There is no recipe {name!r}{did_you_mean(name, known)}: choose one of {', '.join(known)}, or a YAML "
            "file."
        )
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


def check_arguments(
    options: Sequence[type],
    recipes: Sequence[str],
    arguments: Sequence[str] | None = None,
    main_options: Sequence[str] = (),
    description: str | None = None,
) -> None:
    """Show the help of a training command if it is asked for, or else report what is wrong without importing torch.

    Args:
        options (`Sequence[type]`): Dataclasses of the command's arguments, without those of `TrainingArguments`.
        recipes (`Sequence[str]`): Recipes of the command; the first one is the default.
        arguments (`Sequence[str]`, *optional*): Defaults to the command line.
        main_options (`Sequence[str]`, *optional*): As for [`~train.common.arguments.CommandParser`].
        description (`str`, *optional*): The docstring of the command.

    Raises:
        FileNotFoundError: If the recipe or a path does not exist.
        InputError: If there is no argument of a name, here or in the recipe, or a value has the wrong type.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--help-all" in arguments:
        return  # shown by `parse_arguments`
    parser = _parser(options, recipes, main_options, description)
    training_arguments = training_argument_names()
    parser.check_names(arguments, training_arguments)
    chosen, recipe = _chosen_recipe(recipes, arguments)
    ours = {action.dest for action in parser._actions}
    if unknown := [argument for argument in recipe if argument not in training_arguments | ours]:
        raise _unknown_argument(chosen.recipe, unknown[0])
    parser.set_defaults(output_dir="outputs/<recipe>-<dataset>")
    parser.set_defaults(**{name: value for name, value in recipe.items() if name in ours})
    values, _ = parser.parse_known_args(arguments)
    with input_errors():
        parser.parse_args_into_dataclasses(arguments, return_remaining_strings=True, look_for_args_file=False)
    for teacher in getattr(values, "teachers", []):
        start = load_recipe(teacher, values.dataset).get("model_name_or_path") if is_recipe(teacher) else None
        if start is not None:
            check_start(teacher, start, check_exists)
        elif not is_recipe(teacher):
            check_exists(teacher)
    check_paths(values)


def training_argument_names() -> set[str]:
    """Return the names of the arguments of `TrainingArguments`, from its source, as its import takes seconds."""
    package = find_spec("transformers")
    assert package is not None and package.origin is not None
    source = Path(package.origin).with_name("training_args.py").read_text(encoding="utf-8")
    classes = [node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    body = next(node.body for node in classes if node.name == "TrainingArguments")
    return {node.target.id for node in body if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)}


def parse_arguments(
    dataclass_types: Sequence[type],
    recipes: Sequence[str],
    arguments: Sequence[str] | None = None,
    description: str | None = None,
) -> tuple[str, tuple[Any, ...]]:
    """Parse the arguments of a command: the command line overrides the recipe, which overrides the defaults.

    The output folder defaults to `outputs/<recipe>-<dataset>`.

    Args:
        dataclass_types (`Sequence[type]`): Dataclasses, as for `HfArgumentParser`.
        recipes (`Sequence[str]`): Recipes of the command; the first one is the default.
        arguments (`Sequence[str]`, *optional*): Defaults to the command line.
        description (`str`, *optional*): The docstring of the command, for its help.

    Returns:
        `tuple`: The recipe's name, and an instance of each dataclass.

    Raises:
        FileNotFoundError, InputError: As [`load_recipe`] and [`~train.common.arguments.CommandParser.parse`]; if the
            recipe sets an argument that the command does not have, or a value of the wrong type.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    chosen, recipe = _chosen_recipe(recipes, arguments)
    name = Path(chosen.recipe).stem
    dataset = Path(chosen.dataset or str(recipe.get("dataset", "demo"))).resolve().name
    parser = _parser(dataclass_types, recipes, description=description)
    values = _typed(parser, chosen.recipe, recipe, dataclass_types)
    parser.set_defaults(output_dir=f"outputs/{name}-{dataset}")
    parser.set_defaults(**values)
    *instances, _ = parser.parse(arguments)
    return name, tuple(instances)


def _parser(
    dataclass_types: Sequence[type],
    recipes: Sequence[str],
    main_options: Sequence[str] = (),
    description: str | None = None,
) -> CommandParser:
    """Return the parser of a training command."""
    parser = CommandParser(dataclass_types, main_options, description=description)
    parser.add_argument(
        "--recipe", default=recipes[0], help=f"One of {', '.join(recipes)}, or a YAML file with values of arguments."
    )
    return parser


def _chosen_recipe(recipes: Sequence[str], arguments: Sequence[str]) -> tuple[Namespace, dict[str, Any]]:
    """Return the recipe and the dataset that a command line names, and the content of the recipe."""
    first = CommandParser(add_help=False)
    first.add_argument("--recipe", default=recipes[0])
    first.add_argument("--dataset")
    chosen, _ = first.parse_known_args(arguments)
    return chosen, load_recipe(chosen.recipe, chosen.dataset, recipes)


def _unknown_argument(recipe: str, argument: str) -> InputError:
    return InputError(
        f"The recipe {recipe!r} sets {argument}, which this command does not have: remove it there, or choose another "
        "recipe."
    )


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
        raise _unknown_argument(name, unknown[0])
    with input_errors(f"The recipe {name!r} is invalid: "):
        values = parser.parse_args(_as_command(recipe))
    return {argument: getattr(values, argument) for argument in recipe}

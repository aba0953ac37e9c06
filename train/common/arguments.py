"""Arguments that several commands share, and the parser of all commands."""

import argparse
import re
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, NoReturn, TypeAlias

from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from acoustic_scenes.suggestions import did_you_mean
from dataset_script.errors import InputError, input_errors


class CommandParser(HfArgumentParser):
    """`HfArgumentParser` without abbreviations, which reports invalid input in one sentence.

    A flag is set by its name alone (`--push_to_hub`), or with a value (`--push_to_hub True`). `--help` describes the
    main options on one screen, `--help-all` all of them; neither shows options that are refused.

    Args:
        dataclass_types (`type` or `Iterable[type]`, *optional*): As for `HfArgumentParser`. The keys of a class
            attribute `unsupported` are the names of arguments that are refused.
        main_options (`Sequence[str]`, *optional*): Names of the main options, in the order of the help; defaults to
            all options.
        settings: Further arguments of `argparse.ArgumentParser`, such as `description`, the docstring of the command.
    """

    def __init__(
        self, dataclass_types: Any = (), main_options: Sequence[str] = (), add_help: bool = True, **settings: Any
    ):
        settings = {"formatter_class": _OptionFormatter, **settings}
        super().__init__(dataclass_types, allow_abbrev=False, add_help=False, **settings)
        self.main_options = main_options
        for action in self._actions:
            if action.type is string_to_bool:  # also for those that default to None
                action.nargs, action.const = "?", True
        if add_help:
            suppress = argparse.SUPPRESS
            self.add_argument("-h", "--help", "--help-all", action=_Help, nargs=0, dest=suppress, default=suppress)

    def parse(self, arguments: Sequence[str] | None = None) -> list[Any]:
        """Parse the arguments of a command.

        Args:
            arguments (`Sequence[str]`, *optional*): Defaults to the command line.

        Returns:
            `list`: An instance of each dataclass, and a namespace of the arguments that belong to none.

        Raises:
            InputError: If an argument is unknown or missing, or its value is invalid.
        """
        given = sys.argv[1:] if arguments is None else list(arguments)
        self.check_names(given)
        _, unknown = self.parse_known_args(given)
        if unknown:
            raise InputError(f"Unknown argument {unknown[0]}: see --help.")
        with input_errors():
            instances = list(self.parse_args_into_dataclasses(given, look_for_args_file=False))
        return instances

    def check_names(self, arguments: Sequence[str], others: Iterable[str] = ()) -> None:
        """Raise `InputError` for the first option that does not exist.

        Args:
            arguments (`Sequence[str]`): The command line.
            others (`Iterable[str]`, *optional*): Names of arguments that exist besides those of this parser.
        """
        names = {*others, *(action.dest for action in self._actions)}
        spellings = {f"--{prefix}{name}" for name in names for prefix in ("", "no_")}
        known = {*self._option_string_actions, *spellings, *(name.replace("_", "-") for name in spellings)}
        for argument in arguments:
            option = argument.split("=")[0]
            if option.startswith("--") and " " not in option and option not in known:
                suggestion = did_you_mean(option, [f"--{name}" for name in names - self._refused()])
                raise InputError(f"Unknown argument {option}{suggestion}: see --help.")

    def _refused(self) -> set[str]:
        """Return the names of the arguments that exist, but are refused."""
        unsupported = {name for cls in self.dataclass_types for name in getattr(cls, "unsupported", {})}
        return unsupported | {action.dest for action in self._actions if action.dest.endswith("_token")}

    def format_help(self, complete: bool = True) -> str:
        """Return the help.

        Args:
            complete (`bool`, *optional*, defaults to `True`): Whether to describe all options, not only the main ones.
        """
        refused = self._refused()
        options = {
            action.dest: action
            for action in self._actions
            if f"--{action.dest}" == action.option_strings[0] and action.dest not in refused
        }
        declared = {
            name
            for cls in self.dataclass_types
            for parent in cls.__mro__
            if not parent.__module__.startswith("transformers.")
            for name in vars(parent).get("__annotations__", {})
        }
        inherited = [name for name in options if name not in {"recipe", *declared}]
        shown = [name for name in options if name not in inherited]
        title, rest = "Options", []
        if self.main_options and not complete:
            title, rest = "Main options", [name for name in shown if name not in self.main_options]
            shown = list(self.main_options)
        formatter = self._get_formatter()
        formatter.add_text(self.description)
        for heading, names in ((title, shown), ("Options of transformers' TrainingArguments", inherited)):
            formatter.start_section(heading)
            formatter.add_arguments(options[name] for name in names)
            formatter.end_section()
        if rest:
            others = "the arguments of transformers' TrainingArguments, such as seed, use_cpu and report_to."
            hidden = f"--help-all also describes {', '.join(sorted(rest))}, and {others}"
            formatter.add_text(textwrap.fill(hidden, shutil.get_terminal_size().columns - 2))
        return formatter.format_help()

    def error(self, message: str) -> NoReturn:
        """Raise `InputError` with argparse's message, without printing the usage, which fills a screen."""
        message = re.sub(r"/--[\w-]+", "", message).rstrip(".")  # the other spelling of an argument's name
        raise InputError(f"{message[0].upper()}{message[1:]}: see --help.")


class _Help(argparse.Action):
    """Action of `--help` and `--help-all`."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option_string: str | None = None
    ) -> NoReturn:
        assert isinstance(parser, CommandParser)
        print(parser.format_help(complete=option_string == "--help-all"), end="")
        parser.exit()


class _OptionFormatter(argparse.RawDescriptionHelpFormatter):
    """Formatter that shows one spelling of each option, and whether it is required or has a default."""

    def __init__(self, prog: str):
        super().__init__(prog, max_help_position=32)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        name = action.option_strings[0]
        if action.nargs == "?":  # a flag
            return name
        value = "NUMBER" if action.type in (int, float) else "VALUE"
        if action.choices:
            value = "{" + ",".join(map(str, action.choices)) + "}"
        return f"{name} {value}{' ...' if action.nargs in ('+', '*') else ''}"

    def _get_help_string(self, action: argparse.Action) -> str:
        text = str(action.help or "").rstrip(".")
        if action.required:
            return f"{text} (required)"
        default = action.default
        if default in (None, False, "", []):
            return text
        return f"{text} (default: {' '.join(map(str, default)) if isinstance(default, list) else default})"


@dataclass
class CorpusArguments:
    """The corpus."""

    dataset: str = field(
        default="demo",
        metadata={
            "help": "demo, demo5 ... demo50; split5 ... split100 of TAU 2022; or your own recordings: a folder, or "
            "the id of a dataset on the Hub."
        },
    )
    data_dir: str | None = field(default=None, metadata={"help": "Folder with the corpus, extracted or as archives."})
    cache_dir: str | None = field(default=None, metadata={"help": "Folder of prepared and resampled clips."})


Precision: TypeAlias = Literal["auto", "float32", "bfloat16", "int8"]

PRECISION_HELP = (
    "Precision of the network (features are float32): auto is bfloat16 for teachers where the hardware computes it, "
    "and float32 otherwise; int8 is for linear layers on the CPU."
)


@dataclass(kw_only=True)
class InferenceArguments(CorpusArguments):
    """The model, the clips and the output of inference."""

    model_name_or_path: str = field(metadata={"help": "Model folder or Hub id of the classifier."})
    output_dir: str = field(metadata={"help": "Output folder."})
    split: str = field(default="test", metadata={"help": "train or test."})
    batch_size: int = field(default=256, metadata={"help": "Clips per forward pass."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the model's own code."})
    use_cpu: bool = field(default=False, metadata={"help": "Do not use an accelerator."})
    dtype: Precision = field(default="float32", metadata={"help": PRECISION_HELP})
    torch_compile: bool = field(
        default=False, metadata={"help": "Compile the network, which takes at least half a minute."}
    )

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"batch_size is {self.batch_size}: choose at least one clip per forward pass.")
        if self.dtype == "int8" and self.torch_compile:
            raise InputError("INT8 layers are precompiled: leave out torch_compile, or choose another dtype.")


@dataclass
class HubArguments:
    """The repository to push the output to, with the names of `TrainingArguments`."""

    push_to_hub: bool = field(default=False, metadata={"help": "Push the output to the Hub."})
    hub_model_id: str | None = field(default=None, metadata={"help": "Repository on the Hub, as user/name."})
    hub_private_repo: bool | None = field(
        default=None, metadata={"help": "Whether a new repository is private; defaults to the account's setting."}
    )


@dataclass
class ModelArguments:
    """The BEATs model that training starts from."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "BEATs model folder or Hub id to start from; defaults to random weights."}
    )
    config_overrides: str | None = field(
        default=None, metadata={"help": "Settings of the network to override, as name=value,name=value."}
    )


UNSUPPORTED_ARGUMENTS = {
    "auto_find_batch_size": "set batch_size, because the results depend on it",
    "batch_eval_metrics": "leave it out",
    "data_seed": "use seed",
    "dataloader_drop_last": "leave it out",
    "deepspeed": "leave it out, because these models fit on one device",
    "enable_jit_checkpoint": "leave it out, because the same command resumes by itself",
    "eval_on_start": "leave it out",
    "fsdp": "leave it out, because these models fit on one device",
    "gradient_checkpointing": "lower batch_size, or raise gradient_accumulation_steps",
    "ignore_data_skip": "leave it out, because a resumed run never repeats data",
    "label_names": "leave it out",
    "label_smoothing_factor": "leave it out",
    "load_best_model_at_end": "leave it out",
    "lr_scheduler_kwargs": "leave it out",
    "metric_for_best_model": "leave it out",
    "neftune_noise_alpha": "leave it out, because it is for language models",
    "parallelism_config": "leave it out, because these models fit on one device",
    "per_device_train_batch_size": "use batch_size",
    "prediction_loss_only": "leave it out",
    "remove_unused_columns": "leave it out, because the loss needs the columns",
    "restore_callback_states_from_checkpoint": "leave it out, because the same command resumes by itself",
    "resume_from_checkpoint": "leave it out, because the same command resumes by itself",
    "train_sampling_strategy": "leave it out, because each epoch has a random order",
    "use_liger_kernel": "leave it out, because it is for language models",
}
"""Arguments of `TrainingArguments` that have no effect here, and what to do instead."""


@dataclass
class RunOptions:
    """The options of a training run that this project adds to `TrainingArguments`, or changes.

    Declared apart from `TrainingArguments`, so that `--help` and wrong arguments need not wait for torch.
    """

    unsupported: ClassVar[dict[str, str]] = UNSUPPORTED_ARGUMENTS

    output_dir: str = field(default="trainer_output", metadata={"help": "Output folder of the run."})
    batch_size: int = field(default=256, metadata={"help": "Rows per forward pass, summed over all processes."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep, at least two."})


def check_seed(seed: int) -> None:
    """Raise `InputError` if `seed` is not one that NumPy accepts."""
    if not 0 <= seed < 2**32:
        raise InputError(f"seed is {seed}: choose a number from 0 to {2**32 - 1}.")


def check_bootstrap(bootstrap: int) -> None:
    """Raise `InputError` if `bootstrap` is negative."""
    if bootstrap < 0:
        raise InputError(f"bootstrap is {bootstrap}: choose the number of resamples, or 0 for none.")

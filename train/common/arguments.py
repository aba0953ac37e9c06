"""Arguments that several commands share, and the parser of all of them."""

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

from transformers import HfArgumentParser, TrainingArguments

from dataset_script.errors import InputError, input_errors


class CommandParser(HfArgumentParser):
    """`HfArgumentParser` that accepts no abbreviations, and answers wrong input with one sentence.

    A flag is set by its name alone (`--push_to_hub`), or with a value (`--push_to_hub True`).

    Args:
        dataclass_types (`type` or `Iterable[type]`, *optional*): As for `HfArgumentParser`.
        settings: As for `argparse.ArgumentParser`.
    """

    def __init__(self, dataclass_types: Any = (), **settings: Any):
        super().__init__(dataclass_types, allow_abbrev=False, **settings)

    def parse(self, arguments: Sequence[str] | None = None) -> list[Any]:
        """Return an instance of each dataclass, and a namespace for arguments that belong to none.

        Args:
            arguments (`Sequence[str]`, *optional*): Defaults to the command line.

        Raises:
            InputError: If an argument is unknown or missing, or its value is invalid.
        """
        with input_errors():
            *instances, unknown = self.parse_args_into_dataclasses(
                list(arguments) if arguments is not None else None,
                return_remaining_strings=True,
                look_for_args_file=False,
            )
        if unknown:
            option = unknown[0].split("=")[0]
            close = difflib.get_close_matches(option, self._option_string_actions, n=1, cutoff=0.75)
            raise InputError(f"There is no argument {option}: {f'use {close[0]}' if close else 'see --help'}.")
        return instances

    def error(self, message: str) -> NoReturn:
        """Raise `InputError` with argparse's message, without the usage, which fills a screen."""
        message = re.sub(r"/--[\w-]+", "", message).rstrip(".")  # the other spelling of an argument's name
        raise InputError(f"{message[0].upper()}{message[1:]}: see --help.")


@dataclass
class CorpusArguments:
    """Which clips are used."""

    dataset: str = field(
        default="demo",
        metadata={
            "help": "demo, demo5 ... demo50; split5 ... split100 of TAU 2022; or your own recordings: a folder, or "
            "the id of a dataset on the Hub."
        },
    )
    data_dir: str | None = field(default=None, metadata={"help": "Folder with the corpus, extracted or as archives."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where prepared and resampled clips are kept."})


@dataclass(kw_only=True)
class InferenceArguments(CorpusArguments):
    """Which model runs on which clips, and where its output goes."""

    model_name_or_path: str = field(metadata={"help": "Model folder or Hub id of the classifier."})
    output_dir: str = field(metadata={"help": "Output folder."})
    split: str = field(default="test", metadata={"help": "train or test."})
    batch_size: int = field(default=256, metadata={"help": "Clips per forward pass."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run code that comes with the model."})
    use_cpu: bool = field(default=False, metadata={"help": "Do not use an accelerator."})
    dtype: Literal["float32", "bfloat16", "int8"] = field(
        default="float32",
        metadata={"help": "Precision of the network; int8 is for linear layers on the CPU. Features are float32."},
    )
    torch_compile: bool = field(
        default=False, metadata={"help": "Compile the network, which takes half a minute or more at first."}
    )

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise InputError(f"batch_size is {self.batch_size}: choose at least one clip per forward pass.")
        if self.dtype == "int8" and self.torch_compile:
            raise InputError("INT8 layers are already compiled: leave out torch_compile, or choose another dtype.")


@dataclass
class HubArguments:
    """Where a script's outcome is pushed; named as in `TrainingArguments`."""

    push_to_hub: bool = field(default=False, metadata={"help": "Push the outcome to the Hub."})
    hub_model_id: str | None = field(default=None, metadata={"help": "Repository on the Hub, as user/name."})
    hub_private_repo: bool | None = field(
        default=None, metadata={"help": "Whether a new repository is private; defaults to what the account has set."}
    )


@dataclass
class ModelArguments:
    """The BEATs that training starts from."""

    model_name_or_path: str | None = field(
        default=None, metadata={"help": "BEATs model folder or Hub id to start from; without it, random weights."}
    )
    config_overrides: str | None = field(
        default=None, metadata={"help": "Settings of the network to change, as name=value,name=value."}
    )


@dataclass
class ResumableTrainingArguments(TrainingArguments):
    """`TrainingArguments` of runs that can be interrupted, and that are the same on any number of processes.

    One process drives one device; several devices are several processes, started by accelerate.
    """

    batch_size: int = field(default=256, metadata={"help": "Rows per forward pass, over all processes together."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep, at least two."})

    def __post_init__(self) -> None:
        if self.save_total_limit is not None and self.save_total_limit < 2:
            raise InputError(
                f"save_total_limit is {self.save_total_limit}, but a run that is killed while it writes its only "
                "checkpoint could not resume: choose 2 or more."
            )
        if self.batch_size < 1:
            raise InputError(f"batch_size is {self.batch_size}: choose at least one row per forward pass.")
        super().__post_init__()
        self._n_gpu = min(self.n_gpu, 1)  # reading n_gpu first sets it up
        self.per_device_train_batch_size = math.ceil(self.batch_size / self.world_size)
        self.ddp_broadcast_buffers = False


def check_bootstrap(bootstrap: int) -> None:
    """Raise `InputError` unless `bootstrap` is a number of resamples."""
    if bootstrap < 0:
        raise InputError(f"bootstrap is {bootstrap}: choose the number of resamples, or 0 for none.")

"""Arguments that several commands share, and the parser of all commands."""

import difflib
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any, ClassVar, Literal, NoReturn

import torch
from transformers import HfArgumentParser, TrainingArguments
from transformers.training_args import OptimizerNames

from dataset_script.errors import InputError, input_errors


class CommandParser(HfArgumentParser):
    """`HfArgumentParser` without abbreviations, which reports invalid input in one sentence.

    A flag is set by its name alone (`--push_to_hub`), or with a value (`--push_to_hub True`).

    Args:
        dataclass_types (`type` or `Iterable[type]`, *optional*): As for `HfArgumentParser`.
        settings: Further arguments of `argparse.ArgumentParser`.
    """

    def __init__(self, dataclass_types: Any = (), **settings: Any):
        super().__init__(dataclass_types, allow_abbrev=False, **settings)

    def parse(self, arguments: Sequence[str] | None = None) -> list[Any]:
        """Parse the arguments of a command.

        Args:
            arguments (`Sequence[str]`, *optional*): Defaults to the command line.

        Returns:
            `list`: An instance of each dataclass, and a namespace of the arguments that belong to none.

        Raises:
            InputError: If an argument is unknown or missing, or its value is invalid.
        """
        given = list(arguments) if arguments is not None else None
        _, unknown = self.parse_known_args(given)
        if unknown:
            option = unknown[0].split("=")[0]
            close = difflib.get_close_matches(option, self._option_string_actions, n=1, cutoff=0.75)
            raise InputError(f"Unknown argument {option}: {f'use {close[0]}' if close else 'see --help'}.")
        with input_errors():
            instances = list(self.parse_args_into_dataclasses(given, look_for_args_file=False))
        return instances

    def error(self, message: str) -> NoReturn:
        """Raise `InputError` with argparse's message, without printing the usage, which fills a screen."""
        message = re.sub(r"/--[\w-]+", "", message).rstrip(".")  # the other spelling of an argument's name
        raise InputError(f"{message[0].upper()}{message[1:]}: see --help.")


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


@dataclass(kw_only=True)
class InferenceArguments(CorpusArguments):
    """The model, the clips and the output of inference."""

    model_name_or_path: str = field(metadata={"help": "Model folder or Hub id of the classifier."})
    output_dir: str = field(metadata={"help": "Output folder."})
    split: str = field(default="test", metadata={"help": "train or test."})
    batch_size: int = field(default=256, metadata={"help": "Clips per forward pass."})
    trust_remote_code: bool = field(default=False, metadata={"help": "Run the model's own code."})
    use_cpu: bool = field(default=False, metadata={"help": "Do not use an accelerator."})
    dtype: Literal["float32", "bfloat16", "int8"] = field(
        default="float32",
        metadata={"help": "Precision of the network (features are float32); int8 is for linear layers on the CPU."},
    )
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
class ResumableTrainingArguments(TrainingArguments):
    """`TrainingArguments` of runs that can be interrupted and do not depend on the number of processes.

    Each process uses one device; `accelerate launch` starts several.
    """

    unsupported: ClassVar[dict[str, str]] = UNSUPPORTED_ARGUMENTS

    output_dir: str = field(default="trainer_output", metadata={"help": "Output folder of the run."})
    batch_size: int = field(default=256, metadata={"help": "Rows per forward pass, summed over all processes."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep, at least two."})

    def __post_init__(self) -> None:
        self._check_support()
        if self.save_total_limit is not None and self.save_total_limit < 2:
            raise InputError(
                f"save_total_limit is {self.save_total_limit}, but a run that is killed while writing its only "
                "checkpoint could not resume: choose 2 or more."
            )
        if self.batch_size < 1:
            raise InputError(f"batch_size is {self.batch_size}: choose at least one row per forward pass.")
        if self.save_only_model:
            raise InputError("save_only_model leaves nothing to resume from: leave it out.")
        if self.save_strategy == "steps" and self.save_steps <= 0:
            raise InputError(f"save_steps is {self.save_steps}: choose a number above 0.")
        check_seed(self.seed)
        self._check_secrets()
        self._check_integrations()
        super().__post_init__()
        self._check_optimizer()
        if self.fp16 and self.device.type == "cpu":
            raise InputError("fp16 has no effect on a CPU: leave it out, or use bf16 if the processor supports it.")
        self._n_gpu = min(self.n_gpu, 1)  # the property n_gpu initializes _n_gpu
        self.per_device_train_batch_size = math.ceil(self.batch_size / self.world_size)
        self.ddp_broadcast_buffers = False

    def _check_secrets(self) -> None:
        """Raise `InputError` for a token: arguments are recorded with the run, and published with its results."""
        for name in (item.name for item in fields(self) if item.name.endswith("_token")):
            if getattr(self, name) is not None:
                raise InputError(
                    f"{name} is recorded with the run: leave it out, and log in with `hf auth login` or set the "
                    "environment variable HF_TOKEN."
                )

    def _check_integrations(self) -> None:
        services = [self.report_to] if isinstance(self.report_to, str) else list(self.report_to or [])
        services = [service for service in services if service not in ("all", "none")]
        if not services:
            return
        from transformers.integrations import INTEGRATION_TO_CALLBACK, get_available_reporting_integrations

        known = set(INTEGRATION_TO_CALLBACK)
        for service in services:
            if service not in known:
                raise InputError(f"report_to is {service!r}: choose from {', '.join(sorted(known))}, all or none.")
            if service not in get_available_reporting_integrations():
                raise InputError(f"report_to is {service!r}, whose package is missing: pip install {service}")

    def _check_support(self) -> None:
        """Raise `InputError` if an argument is set that has no effect."""
        for argument in fields(self):
            if argument.name in self.unsupported and getattr(self, argument.name) != argument.default:
                raise InputError(f"{argument.name} has no effect here: {self.unsupported[argument.name]}.")

    def _check_optimizer(self) -> None:
        """Raise `InputError` if the optimizer cannot be created with its arguments."""
        from transformers import Trainer  # takes seconds, after which a typing error would be reported late

        try:
            optimizer_class, settings = Trainer.get_optimizer_cls_and_kwargs(self)
            optimizer_class([torch.nn.Parameter(torch.zeros(1))], **settings)
        except (ImportError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"The optimizer {OptimizerNames(self.optim).value} cannot be created ({error}): change optim, "
                "optim_args, or the arguments that start with adam_."
            ) from None


def check_seed(seed: int) -> None:
    """Raise `InputError` if `seed` is not one that NumPy accepts."""
    if not 0 <= seed < 2**32:
        raise InputError(f"seed is {seed}: choose a number from 0 to {2**32 - 1}.")


def check_bootstrap(bootstrap: int) -> None:
    """Raise `InputError` if `bootstrap` is negative."""
    if bootstrap < 0:
        raise InputError(f"bootstrap is {bootstrap}: choose the number of resamples, or 0 for none.")

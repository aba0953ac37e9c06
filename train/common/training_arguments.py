"""`TrainingArguments` of runs that can be interrupted; importing them takes seconds."""

import math
from dataclasses import dataclass, fields

import torch
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from dataset_script.errors import InputError
from train.common.arguments import RunOptions, check_seed
from train.common.precision import computes_bfloat16


@dataclass
class ResumableTrainingArguments(RunOptions, TrainingArguments):  # type: ignore[misc] # output_dir is never None here
    """`TrainingArguments` of runs that can be interrupted and do not depend on the number of processes.

    Each process uses one device; `accelerate launch` starts several.
    """

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
        self._choose_precision()
        super().__post_init__()
        self._check_optimizer()
        if self.fp16 and self.device.type == "cpu":
            raise InputError("fp16 has no effect on a CPU: leave it out, or use bf16 if the processor supports it.")
        if self.device.type == "cpu":
            self.dataloader_pin_memory = False  # of which torch would warn in each epoch
        self._n_gpu = min(self.n_gpu, 1)  # the property n_gpu initializes _n_gpu
        self.per_device_train_batch_size = math.ceil(self.batch_size / self.world_size)
        self.ddp_broadcast_buffers = False

    def _choose_precision(self) -> None:
        """Leave out bfloat16, which some recipes use, on hardware that only emulates it."""
        device = None if self.use_cpu else torch.accelerator.current_accelerator(check_available=True)
        self.use_cpu = device is None  # without it, the base class refuses bfloat16 on a CPU
        if self.bf16 and not computes_bfloat16(device or torch.device("cpu")):
            self.bf16 = False

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

"""The cost of a run on crops of audio, measured on the machine that is to run it."""

import math
import platform
import time
from typing import Any

import torch

from dataset_script.errors import InputError
from train.pretraining.crops import Crops
from train.pretraining.trainers import CropTrainer


SECONDS = 10.0
"""The batch is doubled only if a measurement with it should take less time than this."""

CROPS_TO_READ = 16


def measure_cost(trainer: CropTrainer) -> dict[str, Any]:
    """Measure training steps on noise of full length, and the reading of audio if the trainer has a dataset.

    An accelerator is measured with the batch of the run. On a CPU, where time grows with the batch, it is doubled from
    one crop until a forward and backward pass takes a few seconds.

    Args:
        trainer (`CropTrainer`): A trainer that has not started.

    Returns:
        `dict[str, Any]`: `steps`, `parameters`, `device`, `threads` (None on an accelerator), `processes`,
        `crops_per_step`, `measured_crops`, `crops_per_second` (over all processes), `optimizer_seconds`, `peak_memory`
        in bytes (None on a CPU), `read_per_second` (crops by one worker, None without audio), and `days` of
        computation.

    Raises:
        InputError: If the batch does not fit into the accelerator's memory.
    """
    args, device = trainer.args, trainer.args.device
    model = trainer.accelerator.prepare(trainer.model)
    trainer.model_wrapped = model
    optimizer = trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = args.gradient_accumulation_steps  # as `train` sets it
    largest = trainer.rows.count

    def timed(batch_size: int) -> float:
        trainer.rows.resize(batch_size * args.world_size)
        inputs = trainer.noise(batch_size)
        start = time.perf_counter()
        trainer.training_step(model, inputs)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    try:
        batch_size = largest if device.type == "cuda" else 1
        # The first pass and step allocate what later ones reuse, and leave as little free memory as there will be.
        timed(batch_size)
        optimizer.step()
        seconds = timed(batch_size)
        while batch_size < largest and seconds < SECONDS / 2:
            batch_size = min(2 * batch_size, largest)
            seconds = timed(batch_size)
        start = time.perf_counter()
        optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        optimizer_seconds = time.perf_counter() - start
    except torch.OutOfMemoryError:
        raise InputError(
            f"{largest} crops of {args.segment_seconds:g} s do not fit into the memory of {device}: divide "
            "--batch_size and multiply --gradient_accumulation_steps by the same number."
        ) from None
    read_per_second = None
    if isinstance(dataset := trainer.train_dataset, Crops):
        count = min(CROPS_TO_READ, len(dataset))
        start = time.perf_counter()
        for row in range(count):
            dataset[0, row * len(dataset) // count]
        read_per_second = count / (time.perf_counter() - start)
    crops_per_step = args.batch_size * args.gradient_accumulation_steps
    step_seconds = crops_per_step / (batch_size * args.world_size / seconds) + optimizer_seconds
    return {
        "steps": args.max_steps,
        "parameters": trainer.model.num_parameters(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU",
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "processes": args.world_size,
        "crops_per_step": crops_per_step,
        "measured_crops": batch_size,
        "crops_per_second": batch_size * args.world_size / seconds,
        "optimizer_seconds": optimizer_seconds,
        "peak_memory": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        "read_per_second": read_per_second,
        "days": args.max_steps * step_seconds / 86_400,
    }


def duration(days: float) -> str:
    """Return a number of days in hours, days or years."""
    if days < 1:
        return f"{24 * days:.2f} hours"
    return f"{days:,.1f} days" if days < 1000 else f"{days / 365.25:,.0f} years"


def print_cost(trainer: CropTrainer) -> dict[str, Any]:
    """Measure the cost of a run, print it on the main process, and return it.

    Args:
        trainer (`CropTrainer`): A trainer that has not started.

    Returns:
        `dict[str, Any]`: As returned by [`measure_cost`].

    Raises:
        InputError: If the batch does not fit into the accelerator's memory.
    """
    cost = measure_cost(trainer)
    seconds = trainer.args.segment_seconds
    threads = f", {cost['threads']} threads each" if cost["threads"] else ""
    hours = cost["steps"] * cost["crops_per_step"] * seconds / 3600
    rate = cost["crops_per_second"]
    lines = [
        f"Network     {cost['parameters']:,} parameters to train",
        f"Schedule    {cost['steps']:,} steps of {cost['crops_per_step']:,} crops of {seconds:g} s "
        f"({cost['crops_per_step'] * seconds:,.0f} s of audio per step, {hours:,.0f} hours in total)",
        f"Machine     {cost['processes']} × {cost['device']}{threads}",
        f"Measured    {rate:.3g} crops/s ({rate * seconds:.3g} times real time; {cost['measured_crops']} crops per "
        f"pass and process), {cost['optimizer_seconds']:.2f} s per step for the optimizer",
    ]
    if cost["peak_memory"]:
        lines.append(f"Memory      {cost['peak_memory'] / 2**30:.1f} GiB of the accelerator")
    if cost["read_per_second"]:
        needed = rate / cost["processes"] / cost["read_per_second"]
        lines.append(
            f"Reading     {cost['read_per_second']:.1f} crops/s per worker: --dataloader_num_workers "
            f"{math.ceil(needed)} keeps up"
        )
    lines.append(f"Cost        {duration(cost['days'])}")
    if trainer.args.process_index == 0:
        print("\n".join(lines))
    return cost

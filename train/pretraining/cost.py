"""What a run on segments of audio will cost, measured on the machine that is to run it."""

import math
import platform
import time
from typing import Any

import torch

from dataset_script.errors import InputError
from train.pretraining.crops import Segments
from train.pretraining.trainers import SegmentTrainer


SECONDS = 10.0
"""A measurement that takes this long is not repeated with more segments."""

SEGMENTS_TO_READ = 16


def measure_cost(trainer: SegmentTrainer) -> dict[str, Any]:
    """Measure training steps on noise of full length, and the reading of audio if the trainer has some.

    On an accelerator the batch is that of the run. On a CPU, where time grows with the segments, it is doubled from
    one until a forward and backward pass takes a few seconds.

    Returns:
        `steps`, `parameters`, `device`, `processes`, `segments_per_step`, `measured_segments`, `segments_per_second`
        (over all processes), `optimizer_seconds`, `peak_memory` in bytes (None on a CPU), `read_per_second` (segments
        by one worker, None without audio), and `days`, for computing alone.

    Raises:
        InputError: If the batch does not fit into the accelerator's memory.
    """
    args, device = trainer.args, trainer.args.device
    model = trainer.accelerator.prepare(trainer.model)
    trainer.model_wrapped = model
    trainer.create_optimizer()
    trainer.current_gradient_accumulation_steps = args.gradient_accumulation_steps  # as `train` sets it
    largest = trainer.rows.count

    def timed(clips: int) -> float:
        trainer.rows.resize(clips * args.world_size)
        inputs = trainer.noise(clips)
        start = time.perf_counter()
        trainer.training_step(model, inputs)
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - start

    try:
        clips = largest if device.type == "cuda" else 1
        # The first pass and step set up what later ones find ready, and leave as little memory as there will be.
        timed(clips)
        trainer.optimizer.step()
        seconds = timed(clips)
        while clips < largest and seconds < SECONDS / 2:
            clips = min(2 * clips, largest)
            seconds = timed(clips)
        start = time.perf_counter()
        trainer.optimizer.step()
        if device.type == "cuda":
            torch.cuda.synchronize()
        optimizer_seconds = time.perf_counter() - start
    except torch.OutOfMemoryError:
        raise InputError(
            f"{largest} segments of {args.segment_seconds:g} s do not fit into the memory of {device}: lower "
            "--batch_size and raise --gradient_accumulation_steps by as much."
        ) from None
    read_per_second = None
    if isinstance(trainer.train_dataset, Segments):
        count = min(SEGMENTS_TO_READ, len(trainer.train_dataset))
        start = time.perf_counter()
        for row in range(count):
            trainer.train_dataset[0, row * len(trainer.train_dataset) // count]
        read_per_second = count / (time.perf_counter() - start)
    segments_per_step = args.batch_size * args.gradient_accumulation_steps
    step_seconds = segments_per_step / (clips * args.world_size / seconds) + optimizer_seconds
    return {
        "steps": args.max_steps,
        "parameters": trainer.model.num_parameters(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else f"{platform.machine()} CPU",
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "processes": args.world_size,
        "segments_per_step": segments_per_step,
        "measured_segments": clips,
        "segments_per_second": clips * args.world_size / seconds,
        "optimizer_seconds": optimizer_seconds,
        "peak_memory": torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
        "read_per_second": read_per_second,
        "days": args.max_steps * step_seconds / 86_400,
    }


def print_cost(trainer: SegmentTrainer) -> dict[str, Any]:
    """Measure the cost, print it on the main process, and return it; see [`measure_cost`]."""
    cost = measure_cost(trainer)
    seconds = trainer.args.segment_seconds
    threads = f", threads of each: {cost['threads']}" if cost["threads"] else ""
    hours = cost["steps"] * cost["segments_per_step"] * seconds / 3600
    rate = cost["segments_per_second"]
    lines = [
        f"Network     {cost['parameters']:,} parameters to train",
        f"Schedule    {cost['steps']:,} steps of {cost['segments_per_step']:,} segments of {seconds:g} s "
        f"({cost['segments_per_step'] * seconds:,.0f} s of audio a step, {hours:,.0f} hours in all)",
        f"Machine     {cost['processes']} × {cost['device']}{threads}",
        f"Measured    {rate:.3g} segments/s ({rate * seconds:.3g} times real time; {cost['measured_segments']} "
        f"segments a pass and process), {cost['optimizer_seconds']:.2f} s a step for the optimizer",
    ]
    if cost["peak_memory"]:
        lines.append(f"Memory      {cost['peak_memory'] / 2**30:.1f} GiB of the accelerator")
    if cost["read_per_second"]:
        needed = rate / cost["processes"] / cost["read_per_second"]
        lines.append(
            f"Reading     {cost['read_per_second']:.1f} segments/s by a worker: --dataloader_num_workers "
            f"{math.ceil(needed)} keeps up"
        )
    days = cost["days"]
    lines.append(f"Cost        {days:,.1f} days" if days >= 1 else f"Cost        {24 * days:.2f} hours")
    if trainer.args.process_index == 0:
        print("\n".join(lines))
    return cost

"""Run everything behind a table of the report, and print the table: ours beside the published figures.

    python train/reproduce.py --table 3 --data_dir TAU --dry_run True
    python train/reproduce.py --table 3 --data_dir TAU --num_processes 4

Table 1 has the teachers, Table 3 the students. Without `--data_dir` it runs on the synthetic demo corpus, and the
table says so. A run whose results are there is not repeated: the same command goes on after an interruption, and the
tables share their teachers. Any part can be run alone: `--systems vanilla s2 --subsets 5 25`.
"""

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Literal

from dataset_script import load_scenes
from dataset_script.errors import InputError
from model_cards.report_tables import SUBSETS, plot_accuracy_by_fraction, report_table
from train.common.arguments import CommandParser
from train.common.process import configure_logging, run_command
from train.common.runs import claim_output_folder
from train.reproduction.estimate import estimate, missing_checkpoints
from train.reproduction.sweep import FIRST_SEED, SYSTEMS, Step, Sweep, collect, run_steps


@dataclass
class ReproductionArguments:
    """Which part of which table is run, on what."""

    table: Literal[1, 3] = field(metadata={"help": "Table of the report: 1 (teachers) or 3 (students)."})
    data_dir: str | None = field(default=None, metadata={"help": "Folder of TAU; the demo corpus without it."})
    cache_dir: str | None = field(default=None, metadata={"help": "Where prepared and resampled clips are kept."})
    output_dir: str = field(default="outputs/reproduction", metadata={"help": "Folder of all runs and tables."})
    systems: list[str] = field(default_factory=list, metadata={"help": "Rows of the table; all without it."})
    subsets: list[int] = field(
        default_factory=lambda: list(SUBSETS), metadata={"help": "Columns of the table: 5, 10, 25, 50, 100."}
    )
    seeds: int = field(default=1, metadata={"help": "Runs of every cell, with different seeds."})
    int8: bool = field(default=True, metadata={"help": "Quantize the students of Table 3, as the report does."})
    num_processes: int = field(default=1, metadata={"help": "Processes of a run, through accelerate."})
    use_cpu: bool = field(default=False, metadata={"help": "Do not use an accelerator."})
    teacher_arguments: str = field(default="", metadata={"help": "Arguments that override the teachers' recipes."})
    student_arguments: str = field(default="", metadata={"help": "Arguments that override the students' recipes."})
    dry_run: bool = field(default=False, metadata={"help": "Print the plan and what it costs, and stop."})
    collect_only: bool = field(default=False, metadata={"help": "Print the table of what is finished, and stop."})

    def __post_init__(self):
        self.systems = self.systems or list(SYSTEMS[self.table])
        for name, given, known in (
            ("systems", self.systems, SYSTEMS[self.table]),
            ("subsets", self.subsets, SUBSETS),
        ):
            if wrong := [value for value in given if value not in known]:
                raise InputError(
                    f"Table {self.table} has no {name} {wrong[0]!r}: choose from {', '.join(map(str, known))}."
                )
        for name in ("teacher_arguments", "student_arguments"):
            try:
                shlex.split(getattr(self, name))
            except ValueError as error:
                raise InputError(f"{name} is {getattr(self, name)!r}, which is no command line ({error}).") from None
        if self.seeds < 1 or self.num_processes < 1:
            raise InputError("seeds and num_processes have to be 1 or more.")


def plan(args: ReproductionArguments) -> tuple[Sweep, dict[tuple[str, int], list[list[Step]]]]:
    """Return all steps, and those of each cell: for each seed the one in float32 and perhaps the one in INT8."""
    sweep = Sweep(
        Path(args.output_dir) / ("demo" if args.data_dir is None else "corpus"),
        args.data_dir,
        args.cache_dir,
        args.use_cpu,
        shlex.split(args.teacher_arguments),
        shlex.split(args.student_arguments),
        args.int8,
    )
    cells = {
        (system, percentage): [sweep.add(system, percentage, FIRST_SEED + number) for number in range(args.seeds)]
        for percentage in sorted(args.subsets)
        for system in args.systems
    }
    return sweep, cells


def print_plan(args: ReproductionArguments, sweep: Sweep) -> None:
    """Print every step with what it costs, measured on this machine: starting Python, and its network.

    Raises:
        FileNotFoundError, InputError: If the corpus, a checkpoint or an argument is wrong.
    """
    clips = {}
    for dataset in dict.fromkeys(step.dataset for step in sweep.steps):
        scenes = load_scenes(dataset, args.data_dir, cache_dir=args.cache_dir)
        clips[dataset] = (len(scenes["train"]), len(scenes["test"]))
    start = time.process_time()  # what this script has needed to come this far, every step needs too
    total = 0.0
    for step in sweep.steps:
        seconds = start + estimate(step, *clips[step.dataset]) / args.num_processes
        total += 0 if step.done else seconds
        state = "done" if step.done else str(timedelta(seconds=round(seconds)))
        print(f"{state:>18}  {step.script:<20} {step.folder.relative_to(args.output_dir)}")
    left = sum(not step.done for step in sweep.steps)
    print(f"{left} of {len(sweep.steps)} steps are left: about {timedelta(seconds=round(total))} on this machine.")
    if missing := missing_checkpoints(sweep.steps):
        raise FileNotFoundError(
            f"The teachers start from {' and '.join(missing)}, which cannot be loaded: make them with python -m "
            "modeling_beats.convert_beats, or give another start by --teacher_arguments."
        )


def main(arguments: Sequence[str] | None = None) -> str:
    """Run what the arguments ask for, and return the table.

    Args:
        arguments (`Sequence[str]`, *optional*): Defaults to the command line.

    Raises:
        ChildProcessError: If a step fails, at once, or after the table if a student could not be quantized; the same
            call goes on from there.
        FileExistsError: If the output folder has runs on other data or with other arguments, or another call is at
            work in it.
        FileNotFoundError, InputError: If the corpus, a checkpoint or an argument is wrong; before anything is run.
    """
    (args,) = CommandParser(ReproductionArguments).parse(arguments)
    configure_logging()
    sweep, cells = plan(args)
    refused: list[ChildProcessError] = []
    if not args.collect_only:
        print_plan(args, sweep)
        if args.dry_run:
            return ""
        decisive = ("data_dir", "teacher_arguments", "student_arguments")
        claim_output_folder(sweep.root, {name: getattr(args, name) for name in decisive})
        with sweep.lock():
            refused = run_steps(sweep.steps, args.num_processes)
    results = collect(cells)
    if not any(results.values()):
        raise FileNotFoundError(f"No run of these parts has finished in {sweep.root}: leave out --collect_only.")
    table = report_table(args.table, results)
    path = sweep.root / f"table{args.table}"
    path.with_suffix(".md").write_text(table, encoding="utf-8")
    plot_accuracy_by_fraction(args.table, results, path)
    print(table)
    if refused:
        raise ChildProcessError(" ".join(map(str, refused)))
    return table


if __name__ == "__main__":
    run_command(main)

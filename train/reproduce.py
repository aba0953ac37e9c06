"""Reproduce a table of the report: run everything behind it, and print it beside the published results.

    scenes reproduce --table 3 --data_dir TAU --dry_run
    scenes reproduce --table 3 --data_dir TAU --num_processes 4

Table 1 contains the teachers, Table 3 the students, and both the challenge's baseline. Without `--data_dir` the runs
use the synthetic demo corpus, which the table states. Finished runs are not repeated: the same command resumes after
an interruption, and the tables share their teachers. To run a part of a table: `--systems vanilla s2 --subsets 5 25`.
"""

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Literal

import train  # noqa: F401 - first, for it checks the packages
from acoustic_scenes.suggestions import did_you_mean
from dataset_script.errors import InputError
from dataset_script.splits import PERCENTAGES
from train.common.arguments import CommandParser
from train.common.availability import check_paths
from train.common.process import configure_logging, run_command
from train.reproduction.sweep import FIRST_SEED, SYSTEMS, Step, Sweep, collect, run_steps


@dataclass
class ReproductionArguments:
    """The part of a table, and the settings of its runs."""

    table: Literal[1, 3] = field(metadata={"help": "Table of the report: 1 (teachers) or 3 (students)."})
    data_dir: str | None = field(default=None, metadata={"help": "Folder of TAU; defaults to the demo corpus."})
    cache_dir: str | None = field(default=None, metadata={"help": "Folder of prepared and resampled clips."})
    output_dir: str = field(default="outputs/reproduction", metadata={"help": "Folder of all runs and tables."})
    systems: list[str] = field(default_factory=list, metadata={"help": "Rows of the table; defaults to all."})
    subsets: list[int] = field(
        default_factory=lambda: list(PERCENTAGES), metadata={"help": "Columns of the table: 5, 10, 25, 50, 100."}
    )
    seeds: int = field(default=1, metadata={"help": "Number of runs per cell, with different seeds."})
    int8: bool = field(default=True, metadata={"help": "Quantize the students of Table 3, as in the report."})
    num_processes: int = field(default=1, metadata={"help": "Number of processes per run, started by accelerate."})
    use_cpu: bool = field(default=False, metadata={"help": "Do not use an accelerator."})
    teacher_arguments: str = field(default="", metadata={"help": "Arguments that override the teachers' recipes."})
    student_arguments: str = field(default="", metadata={"help": "Arguments that override the students' recipes."})
    dry_run: bool = field(default=False, metadata={"help": "Only print the plan with estimated times."})
    collect_only: bool = field(default=False, metadata={"help": "Only print the table of the finished runs."})

    def __post_init__(self) -> None:
        self.systems = self.systems or list(SYSTEMS[self.table])
        parts: tuple[tuple[str, Sequence[str | int], Sequence[str | int]], ...] = (
            ("system", self.systems, SYSTEMS[self.table]),
            ("subset", self.subsets, PERCENTAGES),
        )
        for name, chosen, known in parts:
            if unknown := [value for value in chosen if value not in known]:
                meant = did_you_mean(str(unknown[0]), map(str, known))
                raise InputError(
                    f"Table {self.table} has no {name} {unknown[0]!r}{meant}: choose from "
                    f"{', '.join(map(str, known))}."
                )
        for name in ("teacher_arguments", "student_arguments"):
            try:
                shlex.split(getattr(self, name))
            except ValueError as error:
                raise InputError(
                    f"{name} is {getattr(self, name)!r} ({error}): write it as on a command line."
                ) from None
        for name in ("seeds", "num_processes"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}: choose 1 or more.")


def plan(args: ReproductionArguments) -> tuple[Sweep, dict[tuple[str, int], list[list[Step]]]]:
    """Plan the runs behind a table.

    Args:
        args (`ReproductionArguments`): The table.

    Returns:
        `tuple`: All steps, and for each system and percentage the steps whose results its cell shows, by seed.
    """
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
    """Print the steps with their estimated times on this machine.

    Args:
        args (`ReproductionArguments`): The table.
        sweep (`Sweep`): Its steps.

    Raises:
        FileNotFoundError, InputError: If the corpus, a checkpoint or an argument is invalid.
    """
    from dataset_script import load_scenes
    from train.reproduction.estimate import estimate, missing_checkpoints

    clips = {}
    for dataset in dict.fromkeys(step.dataset for step in sweep.steps):
        scenes = load_scenes(dataset, args.data_dir, cache_dir=args.cache_dir)
        clips[dataset] = (len(scenes["train"]), len(scenes["test"]))
    start = time.process_time()  # every step starts Python and loads the corpus, as this process has
    total = 0.0
    for step in sweep.steps:
        seconds = start + estimate(step, *clips[step.dataset]) / args.num_processes
        total += 0 if step.done else seconds
        state = "done" if step.done else str(timedelta(seconds=round(seconds)))
        print(f"{state:>18}  {step.script:<20} {step.folder.relative_to(args.output_dir)}")
    left = sum(not step.done for step in sweep.steps)
    print(f"{left} of {len(sweep.steps)} steps are left, about {timedelta(seconds=round(total))} on this machine.")
    if missing := missing_checkpoints(sweep.steps):
        raise FileNotFoundError(
            f"The teachers start from {' and '.join(missing)}, which cannot be loaded: convert the checkpoints with "
            "python -m modeling_beats.convert_beats, or choose others with --teacher_arguments."
        )


def main(arguments: Sequence[str] | None = None) -> str:
    """Run the steps behind a table, and return the table.

    Args:
        arguments (`Sequence[str]`, *optional*): Defaults to the command line.

    Returns:
        `str`: The table; empty after a dry run.

    Raises:
        ChildProcessError: If a step fails; failed quantizations are only raised after the table is written.
        FileExistsError: If the output folder contains runs with another corpus or other arguments, or another call is
            running there.
        FileNotFoundError, InputError: If the corpus, a checkpoint or an argument is invalid, before any step runs.
    """
    (args,) = CommandParser(ReproductionArguments, description=__doc__).parse(arguments)
    check_paths(args)
    # These take seconds to import, and a wrong argument is reported before.
    from model_cards.report_tables import plot_accuracy_by_fraction, report_table
    from train.common.runs import claim_output_folder

    configure_logging()
    sweep, cells = plan(args)
    failed: list[ChildProcessError] = []
    if not args.collect_only:
        print_plan(args, sweep)
        if args.dry_run:
            return ""
        decisive = ("data_dir", "teacher_arguments", "student_arguments")
        claim_output_folder(sweep.root, {name: getattr(args, name) for name in decisive})
        with sweep.lock():
            failed = run_steps(sweep.steps, args.num_processes)
    results = collect(cells)
    if not any(results.values()):
        raise FileNotFoundError(f"No run of these cells is finished in {sweep.root}: leave out --collect_only.")
    table = report_table(args.table, results)
    path = sweep.root / f"table{args.table}"
    path.with_suffix(".md").write_text(table, encoding="utf-8")
    plot_accuracy_by_fraction(args.table, results, path)
    print(f"{table}\nThe table is in {path}.md, a plot of it in {path}.png.")
    if failed:
        raise ChildProcessError(" ".join(map(str, failed)))
    return table


if __name__ == "__main__":
    run_command(main)

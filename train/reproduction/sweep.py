"""The runs behind a table of the report: calls of the scripts, in an order in which each finds what it needs."""

import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from model_cards.report_tables import Cells
from model_cards.results import RunResults, load_results
from train.common.recipes import load_recipe


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


logger = logging.getLogger(__name__)

TEACHERS = ("ssl_star", "ssl", "ssl_sl")
ENSEMBLES = {"ensemble5": 5, "ensemble10": 10}
STUDENTS = ("vanilla", "s1", "s2", "s3")

SYSTEMS = {1: (*TEACHERS, *ENSEMBLES), 3: STUDENTS}
"""Systems of the tables, by the table's number."""

FIRST_SEED = 42

COMMANDS = Path(__file__).parents[1]
"""Folder of the commands."""

DEMO_TEACHER = ("--recipe", "demo_teacher")

DEMO_STUDENT = ("--num_train_epochs", "30", "--batch_size", "32")
"""What stands in for the recipes on the demo corpus, which is small and for which no checkpoint is of use."""

QUANTIZATION = ("--tolerable_loss", "0.05")
"""A table tells what INT8 loses, which on few clips is above 1 % by chance alone."""


@dataclass(frozen=True)
class Step:
    """A call of a script, and the folder that it fills.

    Attributes:
        script: File name in train/.
        arguments: What it is called with, without `--output_dir`.
        folder: Its output.
        dataset: Configuration of the data.
        model: The step whose model it uses, if it trains none itself.
    """

    script: str
    arguments: tuple[str, ...]
    folder: Path
    dataset: str
    model: "Step | None" = None

    @property
    def done(self) -> bool:
        """Whether the folder is finished."""
        return (self.folder / ("README.md" if self.script == "predict_logits.py" else "results.json")).is_file()

    def run(self, num_processes: int) -> None:
        """Call the script, which goes on where it was interrupted.

        Raises:
            ChildProcessError: If it fails.
        """
        path = str(COMMANDS / self.script)
        launcher = [sys.executable]
        if num_processes > 1 and self.script != "evaluate_logits.py":
            launcher += ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(num_processes)]
        command = [*launcher, path, *self.arguments, "--output_dir", str(self.folder)]
        on_cpu = {} if torch.accelerator.is_available() else {"ACCELERATE_USE_CPU": "true"}
        # The child keeps the sweep's lock, which is inheritable, also if this process is killed.
        code = subprocess.run(command, env=os.environ | on_cpu, check=False, close_fds=False).returncode
        if code:
            raise ChildProcessError(
                f"{self.folder} came to no end (exit code {code} of {shlex.join(command)}): see above; after that the "
                "same command goes on."
            )


class Sweep:
    """All steps behind some systems of a table, each once, in order.

    Args:
        root (`Path`): Folder of all outputs.
        data_dir (`str`, *optional*): Folder of the corpus; without it the demo corpus is used.
        cache_dir (`str`, *optional*): Where prepared clips are kept.
        use_cpu (`bool`): Whether to do without an accelerator.
        teacher_arguments, student_arguments (`Sequence[str]`): Arguments that override the recipes.
        int8 (`bool`): Whether students are quantized.
    """

    def __init__(
        self,
        root: Path,
        data_dir: str | None,
        cache_dir: str | None,
        use_cpu: bool,
        teacher_arguments: Sequence[str],
        student_arguments: Sequence[str],
        int8: bool,
    ):
        self.root = root
        self.demo = data_dir is None
        self.folders = (
            *(("--data_dir", data_dir) if data_dir else ()),
            *(("--cache_dir", cache_dir) if cache_dir else ()),
        )
        self.hardware = ("--use_cpu", "True") if use_cpu else ()
        self.teacher_arguments = (*(DEMO_TEACHER if self.demo else ()), *teacher_arguments)
        self.student_arguments = (*(DEMO_STUDENT if self.demo else ()), *student_arguments)
        self.int8 = int8
        self.steps: list[Step] = []

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Keep other sweeps out of the root, until neither this process nor a step that it has started is alive.

        Raises:
            FileExistsError: If another sweep is at work there, or a step of one that was killed.
        """
        with open(self.root / ".lock", "w") as file:
            try:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FileExistsError(
                    f"A run of an earlier call is still at work in {self.root}: wait until it has ended, or end it."
                ) from None
            os.set_inheritable(file.fileno(), True)
            yield

    def dataset(self, percentage: int) -> str:
        """Return the configuration of the data for a share of the training clips."""
        if self.demo:
            return "demo" if percentage == 100 else f"demo{percentage}"
        return f"split{percentage}"

    def add(self, system: str, percentage: int, seed: int) -> list[Step]:
        """Add what a cell of a table takes, and return the steps whose results it shows: float32, and perhaps INT8."""
        dataset = self.dataset(percentage)
        if system in TEACHERS:
            return [self._teacher(system, dataset, seed)]
        if system in ENSEMBLES:
            # The report does not list the members.
            members = [self._teacher("ssl_sl", dataset, seed + number) for number in range(ENSEMBLES[system])]
            logits = [str(self._logits(member, "test").folder) for member in members]
            arguments = ("--logits", *logits, "--dataset", dataset, *self.folders)
            return [self._step("evaluate_logits.py", arguments, f"ensembles/{system}-seed{seed}", dataset)]
        members = load_recipe(system, "split100").get("teachers", [])
        teachers = [
            self._teacher(member, dataset, FIRST_SEED + members[:number].count(member))
            for number, member in enumerate(members)
        ]
        logits = [str(self._logits(teacher, "train").folder) for teacher in teachers]
        arguments = ("--recipe", system, "--seed", str(seed), *self._data(dataset), *self.student_arguments)
        arguments = (*arguments, *(("--teachers", *logits) if logits else ()))
        student = self._step("distill.py", arguments, f"students/{system}-seed{seed}", dataset)
        if not self.int8:
            return [student]
        arguments = ("--model_name_or_path", str(student.folder), *self._data(dataset), *QUANTIZATION)
        return [student, self._step("quantize.py", arguments, f"int8/{system}-seed{seed}", dataset, student)]

    def _teacher(self, name: str, dataset: str, seed: int) -> Step:
        arguments = ("--recipe", name, *self._data(dataset), *self.teacher_arguments)
        # On the demo corpus the three kinds share a recipe, and differ by the seed alone.
        own_seed = seed + 100 * TEACHERS[::-1].index(name) if self.demo else seed
        return self._step(
            "finetune_teacher.py", (*arguments, "--seed", str(own_seed)), f"teachers/{name}-seed{seed}", dataset
        )

    def _logits(self, teacher: Step, split: str) -> Step:
        arguments = ("--model_name_or_path", str(teacher.folder), "--split", split, *self._data(teacher.dataset))
        return self._step(
            "predict_logits.py", arguments, f"logits/{teacher.folder.parent.name}-{split}", teacher.dataset, teacher
        )

    def _data(self, dataset: str) -> tuple[str, ...]:
        return ("--dataset", dataset, *self.folders, *self.hardware)

    def _step(
        self, script: str, arguments: tuple[str, ...], name: str, dataset: str, model: Step | None = None
    ) -> Step:
        step = Step(script, arguments, self.root / name / dataset, dataset, model)
        if step not in self.steps:
            self.steps.append(step)
        return step


def collect(cells: dict[tuple[str, int], list[list[Step]]]) -> Cells:
    """Return the results of what is finished, for [`~model_cards.report_tables.report_table`]."""
    results: dict[str, dict[str, dict[int, list[RunResults]]]] = {}
    for (system, percentage), seeds in cells.items():
        formats = results.setdefault(system, {})
        for steps in seeds:
            for number_format, step in zip(("float32", "INT8"), steps, strict=False):
                if step.done:
                    formats.setdefault(number_format, {}).setdefault(percentage, []).append(load_results(step.folder))
    return results


def run_steps(steps: Sequence[Step], num_processes: int) -> list[ChildProcessError]:
    """Run what is not done, and return how students failed to be quantized, on which no other step waits.

    Raises:
        ChildProcessError: If another step fails.
    """
    refused = []
    for step in steps:
        if step.done:
            continue
        logger.info("%s: %s", step.script, step.folder)
        try:
            step.run(num_processes)
        except ChildProcessError as error:
            if step.script != "quantize.py":
                raise
            refused.append(error)
    return refused

"""The runs behind a table of the report, as calls of the commands in order of dependency."""

import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from model_cards.results import RunResults, load_results
from train.common.recipes import load_recipe


if TYPE_CHECKING:
    from model_cards.report_tables import Cells

fcntl: ModuleType | None
try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


logger = logging.getLogger(__name__)

TEACHERS = ("ssl_star", "ssl", "ssl_sl")
ENSEMBLES = {"ensemble5": 5, "ensemble10": 10}
STUDENTS = ("vanilla", "s1", "s2", "s3")

BASELINE = "baseline"
"""System of the challenge's organisers, in both tables; it is not quantized."""

SYSTEMS = {1: (BASELINE, *TEACHERS, *ENSEMBLES), 3: (BASELINE, *STUDENTS)}
"""Systems by the number of their table."""

FIRST_SEED = 42

COMMANDS = Path(__file__).parents[1]
"""Folder of the commands."""

DEMO_TEACHER = ("--recipe", "demo_teacher")
"""Arguments that override a teacher's recipe on the demo corpus, for which there are no checkpoints."""

DEMO_STUDENT = ("--num_train_epochs", "30", "--batch_size", "32")
"""Arguments that override a student's recipe on the demo corpus, which is small."""

QUANTIZATION = ("--tolerable_loss", "0.05")
"""The table shows the loss of INT8, which on few clips exceeds 1 % by chance."""


@dataclass(frozen=True)
class Step:
    """A call of a command.

    Attributes:
        script (`str`): File name in train/.
        arguments (`tuple[str, ...]`): Arguments without `--output_dir`.
        folder (`Path`): Output folder.
        dataset (`str`): Configuration of the corpus.
        model (`Step` or `None`): The step that trains the model it uses, if it does not train one itself.
    """

    script: str
    arguments: tuple[str, ...]
    folder: Path
    dataset: str
    model: "Step | None" = None

    @property
    def done(self) -> bool:
        """Whether the output is complete."""
        return (self.folder / ("README.md" if self.script == "predict_logits.py" else "results.json")).is_file()

    def run(self, num_processes: int) -> None:
        """Call the command, which resumes after an interruption.

        Args:
            num_processes (`int`): Number of processes, started by accelerate.

        Raises:
            ChildProcessError: If the command fails.
        """
        import torch  # takes seconds, after which a wrong argument would be reported late

        path = str(COMMANDS / self.script)
        launcher = [sys.executable]
        if num_processes > 1 and self.script != "evaluate_logits.py":
            launcher += ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", str(num_processes)]
        command = [*launcher, path, *self.arguments, "--output_dir", str(self.folder)]
        on_cpu = {} if torch.accelerator.is_available() else {"ACCELERATE_USE_CPU": "true"}
        # The child inherits the sweep's lock and keeps it even if this process is killed.
        code = subprocess.run(command, env=os.environ | on_cpu, check=False, close_fds=False).returncode
        if code:
            raise ChildProcessError(
                f"{self.folder} is incomplete (exit code {code} of {shlex.join(command)}): fix the error above and "
                "run the same command to resume."
            )


class Sweep:
    """The steps behind the cells of a table, without duplicates, in order of dependency.

    Args:
        root (`Path`): Folder of all outputs.
        data_dir (`str` or `None`): Folder of TAU; `None` for the demo corpus.
        cache_dir (`str` or `None`): Folder of prepared and resampled clips.
        use_cpu (`bool`): Whether to use no accelerator.
        teacher_arguments (`Sequence[str]`): Arguments that override the teachers' recipes.
        student_arguments (`Sequence[str]`): Arguments that override the students' recipes.
        int8 (`bool`): Whether to quantize the students.
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
        """Lock the root folder until this process and the steps that it started have ended.

        Raises:
            FileExistsError: If another sweep, or a step of a killed one, is running there.
        """
        with open(self.root / ".lock", "w") as file:
            try:
                if fcntl is not None:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise FileExistsError(
                    f"An earlier call is still running in {self.root}: wait until it ends, or stop it."
                ) from None
            os.set_inheritable(file.fileno(), True)
            yield

    def dataset(self, percentage: int) -> str:
        """Return the configuration of the corpus for a percentage of the training clips."""
        if self.demo:
            return "demo" if percentage == 100 else f"demo{percentage}"
        return f"split{percentage}"

    def add(self, system: str, percentage: int, seed: int) -> list[Step]:
        """Add the steps behind a cell of a table.

        Args:
            system (`str`): Row of the table.
            percentage (`int`): Column of the table.
            seed (`int`): Seed of the run.

        Returns:
            `list[Step]`: The steps whose results the cell shows: float32, and INT8 for quantized students.
        """
        dataset = self.dataset(percentage)
        if system in TEACHERS:
            return [self._teacher(system, dataset, seed)]
        if system in ENSEMBLES:
            # The report does not specify the members.
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
        if not self.int8 or system == BASELINE:
            return [student]
        arguments = ("--model_name_or_path", str(student.folder), *self._data(dataset), *QUANTIZATION)
        return [student, self._step("quantize.py", arguments, f"int8/{system}-seed{seed}", dataset, student)]

    def _teacher(self, name: str, dataset: str, seed: int) -> Step:
        arguments = ("--recipe", name, *self._data(dataset), *self.teacher_arguments)
        # On the demo corpus all kinds share a recipe and only differ in their seeds.
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


def collect(cells: Mapping[tuple[str, int], Sequence[Sequence[Step]]]) -> "Cells":
    """Load the results of finished steps.

    Args:
        cells (`Mapping`): For each system and percentage the steps of each seed, as returned by [`Sweep.add`].

    Returns:
        `dict`: The results, for [`~model_cards.report_tables.report_table`].
    """
    results: dict[str, dict[str, dict[int, list[RunResults]]]] = {}
    for (system, percentage), seeds in cells.items():
        formats = results.setdefault(system, {})
        for steps in seeds:
            for number_format, step in zip(("float32", "INT8"), steps, strict=False):
                if step.done:
                    formats.setdefault(number_format, {}).setdefault(percentage, []).append(load_results(step.folder))
    return results


def run_steps(steps: Sequence[Step], num_processes: int) -> list[ChildProcessError]:
    """Run the steps that are not done.

    Args:
        steps (`Sequence[Step]`): The steps, in order of dependency.
        num_processes (`int`): Number of processes of a step.

    Returns:
        `list[ChildProcessError]`: Errors of quantizations, on which no other step depends.

    Raises:
        ChildProcessError: If any other step fails.
    """
    failed = []
    for step in steps:
        if step.done:
            continue
        logger.info("%s: %s", step.script, step.folder)
        try:
            step.run(num_processes)
        except ChildProcessError as error:
            if step.script != "quantize.py":
                raise
            failed.append(error)
    return failed

"""The runs behind a table of the report: calls of the scripts, in an order in which each finds what it needs."""

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch


try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

from train.arguments import DataArguments, SceneTrainingArguments
from train.distill import StudentArguments
from train.finetune_teacher import TeacherArguments
from train.models import load_config, new_student, new_teacher
from train.recipes import load_recipe, parse_arguments


TEACHERS = ("ssl_star", "ssl", "ssl_sl")
ENSEMBLES = {"ensemble5": 5, "ensemble10": 10}
STUDENTS = ("vanilla", "s1", "s2", "s3")
SYSTEMS = {1: (*TEACHERS, *ENSEMBLES), 3: STUDENTS}
"""Systems of the tables, by the table's number."""

FIRST_SEED = 42

DEMO_TEACHER = ("--recipe", "demo_teacher")
DEMO_STUDENT = ("--num_train_epochs", "30", "--batch_size", "32")
"""What stands in for the recipes on the demo corpus, which is small and for which no checkpoint is of use."""

QUANTIZATION = ("--tolerable_loss", "0.05")
"""A table tells what INT8 loses, which on few clips is above 1 % by chance alone."""

FORWARD_SHARE = 1 / 3
"""What a forward pass takes of a training step."""

QUANTIZATION_PASSES = 300
"""What rounding and comparing configurations takes, in training steps of a clip."""


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
        path = str(Path(__file__).with_name(self.script))
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


def missing_checkpoints(steps: Sequence[Step]) -> list[str]:
    """Return the models that unfinished steps fine-tune and that cannot be loaded."""
    teachers = (step for step in steps if step.script == "finetune_teacher.py" and not step.done)
    starts = dict.fromkeys(_settings(step)[0].model_name_or_path for step in teachers)
    missing = []
    for start in filter(None, starts):
        try:
            load_config(start)
        except FileNotFoundError:
            missing.append(start)
    return missing


def estimate(step: Step, train_clips: int, test_clips: int) -> float:
    """Return the seconds that a step computes on this machine, in one process, by a short measurement of its network.

    Raises:
        FileNotFoundError, ValueError: If the step's arguments are wrong.
    """
    if step.script == "evaluate_logits.py":
        return 0.0
    training = step.model or step
    is_teacher = training.script == "finetune_teacher.py"
    network_args, args = _settings(training)
    frozen = is_teacher and network_args.freeze_encoder
    passes = test_clips * FORWARD_SHARE
    if step.script == "quantize.py":
        passes += passes + QUANTIZATION_PASSES  # float and INT8 are both evaluated
    elif step is training:
        passes += train_clips * args.num_train_epochs
    elif "train" in step.arguments:
        passes = train_clips * FORWARD_SHARE
    return passes * seconds_per_clip(is_teacher, network_args.config_overrides, frozen)


def _settings(training: Step) -> tuple[TeacherArguments | StudentArguments, SceneTrainingArguments]:
    network = TeacherArguments if training.script == "finetune_teacher.py" else StudentArguments
    types = (network, DataArguments, SceneTrainingArguments)
    _, (network_args, _, args) = parse_arguments(types, "demo", list(training.arguments))
    return network_args, args


@cache
def seconds_per_clip(is_teacher: bool, config_overrides: str | None, frozen: bool, clips: int = 8) -> float:
    """Return the seconds of a training step for a clip of one second, features included, measured on this machine."""
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    labels = [str(index) for index in range(10)]
    if is_teacher:
        model, feature_extractor = new_teacher(labels, None, config_overrides)
        if frozen:
            model.freeze_encoder()
    else:
        model, feature_extractor = new_student(labels, config_overrides)
    model = model.to(device).train()
    waveform = torch.randn(clips, feature_extractor.sampling_rate, device=device) / 10
    for _ in range(2):  # the first pass sets up what the second finds ready
        start = time.perf_counter()
        loss = model(
            feature_extractor.features(waveform), labels=torch.zeros(clips, dtype=torch.long, device=device)
        ).loss
        loss.backward()
        loss.item()
        seconds = time.perf_counter() - start
    return seconds / clips

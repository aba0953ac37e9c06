"""Measure what distillation adds with few labels, for any corpus in TAU's layout and any pre-trained teacher.

    python -m benchmarks.distillation --data_dir TAU --teacher outputs/ssl_sl-{subset} [--steps 20000] [--dry_run]
    python -m benchmarks.distillation --data_dir TAU --teacher yamnet.safetensors [--other_sound FOLDER]

The rows of the table, of which each seed is trained for the same number of optimizer steps in one cosine cycle:

    labels_alone   the labelled clips of the subset, without a teacher
    own_clips      with the logits of the teacher for these clips, as in the report
    cross_fitted   the same, each clip by a teacher that has not heard its location (YAMNet only)
    smoothed       no teacher: labels smoothed to the teacher's mean confidence
    unlabelled     with the teacher's logits for these and for the other training clips, whose labels are not used
    other_sound    the same with recordings of another kind, from the folder `--other_sound`
    all_labels     the labels of all training clips, without a teacher

The teacher is a model folder, in which `{subset}` stands for the subset (it must not be trained on other clips), or a
file of YAMNet's weights, whose frozen embeddings get a linear head that is fitted to the labelled clips only. Run the
same command again to resume after an interruption; seeds, rows and subsets can be added later.
"""

import datetime
import logging
import math
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import TrainerState

from benchmarks.distillation_table import difference, format_table, summarize
from benchmarks.teachers import (
    TEMPERATURE,
    UNLABELLED_CLIPS,
    Corpus,
    Teacher,
    load_corpus,
    load_teacher,
    mean_confidence,
    write_teachers,
)
from dataset_script import SUBSETS, read_logits
from dataset_script.errors import InputError
from dataset_script.files import atomic_path, write_json
from dataset_script.logits import join_logits
from model_cards.results import portable, provenance, read_json
from train.common.arguments import CommandParser, check_seed
from train.common.checkpoints import last_complete_checkpoint
from train.common.models import load_classifier
from train.common.process import processor_name, run_command
from train.common.runs import hold_output_folder
from train.distill import main as distill
from train.evaluation.inference import predict_split
from train.evaluation.scoring import unseen_devices
from train.reproduction.estimate import seconds_per_clip


ROWS = {
    "labels_alone": "labels alone",
    "own_clips": "teacher, own clips",
    "cross_fitted": "cross-fitted own clips",
    "smoothed": "smoothed labels",
    "unlabelled": "unlabelled",
    "other_sound": "unlabelled, other sound",
    "all_labels": "all labels",
}
"""Rows of the table and their titles."""

WITHOUT_TEACHER = ("labels_alone", "all_labels")
WITH_UNLABELLED = ("unlabelled", "other_sound")

CHECKPOINTS = 4
"""Checkpoints of a run, from which it resumes."""

EPOCHS_OF_A_CYCLE = 10
"""Epochs below which the steps of the learning rate, which changes between epochs, are coarse."""

log = logging.getLogger("benchmarks").info


@dataclass(frozen=True)
class Run:
    """A student.

    Attributes:
        subset (`str`): The labelled clips.
        row (`str`): Row of the table.
        seed (`int`): Seed of the run.
    """

    subset: str
    row: str
    seed: int

    @property
    def folder(self) -> Path:
        """Its folder below the output folder's `students` and `logits`."""
        return Path(self.subset) / self.row / f"seed{self.seed}"


@dataclass(kw_only=True)
class BenchmarkArguments:
    """The corpus, the teacher and the students."""

    data_dir: str = field(metadata={"help": "Folder of the corpus, in TAU's layout."})
    teacher: str = field(metadata={"help": "Model folder, {subset} in it for the subset, or YAMNet's .safetensors."})
    output_dir: str = field(default="build/distillation", metadata={"help": "Output folder."})
    subsets: list[str] = field(default_factory=lambda: ["split5", "split25"], metadata={"help": "Labelled subsets."})
    rows: list[str] = field(
        default_factory=lambda: [row for row in ROWS if row != "other_sound"], metadata={"help": ", ".join(ROWS)}
    )
    seeds: list[int] = field(default_factory=lambda: list(range(5)), metadata={"help": "Seeds of the students."})
    steps: int = field(default=1000, metadata={"help": "Optimizer steps of every student."})
    batch_size: int = field(default=32, metadata={"help": "Clips per step."})
    learning_rate: float = field(default=0.006, metadata={"help": "Initial learning rate."})
    unlabelled_fraction: float = field(default=0.75, metadata={"help": "Fraction of a batch without labels."})
    other_sound: str | None = field(default=None, metadata={"help": "Folder of recordings, adds the row other_sound."})
    student_options: list[str] = field(
        default_factory=list, metadata={"help": "Other arguments of train/distill.py for every student, name=value."}
    )
    cache_dir: str | None = field(default=None, metadata={"help": "Folder of prepared and resampled clips."})
    dry_run: bool = field(default=False, metadata={"help": "Print the runs and their estimated time, and exit."})

    def __post_init__(self) -> None:
        for name, chosen, known in (("subsets", self.subsets, SUBSETS[:-1]), ("rows", self.rows, tuple(ROWS))):
            if unknown := [item for item in chosen if item not in known]:
                raise InputError(f"{unknown[0]!r} is not one of the {name}: choose from {', '.join(known)}.")
        if self.other_sound is not None:
            self.rows = [row for row in ROWS if row in (*self.rows, "other_sound")]
            if not Path(self.other_sound).is_dir():
                raise InputError(f"other_sound is {self.other_sound}, which is not a folder: choose another one.")
        elif "other_sound" in self.rows:
            raise InputError("The row other_sound needs recordings: set --other_sound to their folder.")
        for seed in self.seeds:
            check_seed(seed)
        if self.steps < 1:
            raise InputError(f"steps is {self.steps}: choose at least 1.")
        if self.batch_size < 2:
            raise InputError(f"batch_size is {self.batch_size}: choose at least 2 clips.")
        if not 0 < self.learning_rate < math.inf:
            raise InputError(f"learning_rate is {self.learning_rate}: choose a number above 0.")
        if not 0 < self.unlabelled_fraction < 1 or not 0 < labelled_per_batch(self) < self.batch_size:
            raise InputError(
                f"unlabelled_fraction is {self.unlabelled_fraction}: choose a fraction that leaves clips of both "
                f"kinds in a batch of {self.batch_size}."
            )
        for option in self.student_options:
            name, separator, _ = option.partition("=")
            if not separator:
                raise InputError(f"The student option {option!r} has no value: write it as name=value.")
            if name in student_arguments(self, Run("split5", "unlabelled", 0), 1, "", with_options=False):
                raise InputError(f"student_options sets {name}, which the benchmark sets itself: leave it out.")


def plan(args: BenchmarkArguments) -> list[Run]:
    """Return the runs: those of one seed together, so that pairs are complete early."""
    runs = []
    for seed in args.seeds:
        for row in args.rows:
            subsets = ["split100"] if row == "all_labels" else args.subsets
            runs += [Run(subset, row, seed) for subset in subsets]
    return runs


def labelled_per_batch(args: BenchmarkArguments) -> int:
    """Return the number of labelled clips in a batch that has clips without labels."""
    return args.batch_size - round(args.batch_size * args.unlabelled_fraction)


def count_epochs(args: BenchmarkArguments, row: str, clips: int) -> int:
    """Return the epochs, passes over the labelled clips, that the steps of a run reach into."""
    per_step = labelled_per_batch(args) if row in WITH_UNLABELLED else args.batch_size
    return math.ceil(args.steps / math.ceil(clips / per_step))


def student_arguments(
    args: BenchmarkArguments, run: Run, epochs: int, teacher: str | None, with_options: bool = True
) -> dict[str, Any]:
    """Return the arguments of `distill.py` for a run.

    Args:
        args (`BenchmarkArguments`): The benchmark.
        run (`Run`): The run.
        epochs (`int`): Its epochs, which are the only cycle of the learning rate.
        teacher (`str` or `None`): Its teacher, a logits dataset or a model.
        with_options (`bool`, *optional*, defaults to `True`): Whether to add `student_options`.
    """
    arguments: dict[str, Any] = {
        "recipe": "vanilla" if run.row in WITHOUT_TEACHER else "s1",
        "dataset": run.subset,
        "data_dir": args.data_dir,
        "output_dir": str(Path(args.output_dir) / "students" / run.folder),
        "seed": run.seed,
        "batch_size": args.batch_size,
        "learning_rate": args.learning_rate,
        "temperature": TEMPERATURE,
        "max_steps": args.steps,
        "schedule": "sgdr",
        "first_cycle": epochs,
        "save_strategy": "steps",
        "save_steps": math.ceil(args.steps / CHECKPOINTS),
        "logging_strategy": "steps",
        "logging_steps": math.ceil(args.steps / 20),
        "log_level": "error",
        "disable_tqdm": True,
        "report_to": "none",
    }
    if run.row not in WITHOUT_TEACHER:
        arguments["teachers"] = teacher
    if run.row in WITH_UNLABELLED:
        arguments["unlabelled"] = args.other_sound if run.row == "other_sound" else "split100"
        arguments["unlabelled_fraction"] = args.unlabelled_fraction
        arguments["unlabelled_clips"] = UNLABELLED_CLIPS
    if args.cache_dir is not None:
        arguments["cache_dir"] = args.cache_dir
    if with_options:
        arguments |= dict(option.split("=", 1) for option in args.student_options)
    return arguments


def run_student(args: BenchmarkArguments, run: Run, corpus: Corpus, teacher: str | None) -> dict[str, Any]:
    """Train a student and predict its logits of the test clips, or return the record of an earlier call.

    Args:
        args (`BenchmarkArguments`): The benchmark.
        run (`Run`): The run.
        corpus (`Corpus`): The clips.
        teacher (`str` or `None`): Its teacher, a logits dataset or a model.

    Returns:
        `dict[str, Any]`: `steps`, `epochs`, and `seconds`, which is None if the run was interrupted.

    Raises:
        InputError: As `distill.py`; if the run had another number of epochs than the cycle of its learning rate.
    """
    record = record_path(args, run)
    if record.is_file():
        return read_json(record)
    clips = len(corpus.train if run.subset == "split100" else corpus.subsets[run.subset])
    epochs = count_epochs(args, run.row, clips)
    arguments = student_arguments(args, run, epochs, teacher)
    folder = arguments["output_dir"]
    is_new, start = not Path(folder).exists(), time.perf_counter()
    distill([f"--{name}={value}" for name, value in arguments.items()])
    seconds = time.perf_counter() - start
    checkpoint = last_complete_checkpoint(folder)
    assert checkpoint is not None  # the run has just finished
    state = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json"))
    if state.num_train_epochs != epochs:
        raise InputError(
            f"{folder} had {state.num_train_epochs} epochs in a cycle of {epochs}: choose other --steps, or a "
            "--batch_size that is a multiple of four."
        )
    model, feature_extractor = load_classifier(folder, corpus.label_names)
    predict_split(model, feature_extractor, corpus.test, record.parent, "student", cache_dir=corpus.cache_dir)
    content = {"steps": state.global_step, "epochs": epochs, "seconds": seconds if is_new else None}
    write_json(record, content)
    return content


def record_path(args: BenchmarkArguments, run: Run) -> Path:
    """Return the file that is written last, beside the student's logits of the test clips."""
    return Path(args.output_dir) / "logits" / run.folder / "student.json"


def run_all(args: BenchmarkArguments, corpus: Corpus, teacher: Teacher) -> dict[str, Any]:
    """Write the teachers, run the students, and write the table after each seed; return its content."""
    folder = Path(args.output_dir) / "teachers"
    sources, refused = {}, {}
    for subset in args.subsets:
        log("Writing the logits of the teacher for %s.", subset)
        sources[subset], refused[subset] = write_teachers(
            teacher, subset, args.rows, folder / subset, args.other_sound
        )
        for row, reason in refused[subset].items():
            log("%s: %s is not run (%s).", subset, ROWS[row], reason)
    runs = [run for run in plan(args) if run.row not in refused.get(run.subset, {})]
    remaining = [run for run in runs if not record_path(args, run).is_file()]
    results = {}
    per_run: list[float] = []
    for seed in args.seeds:
        for run in (run for run in remaining if run.seed == seed):
            start = time.perf_counter()
            run_student(args, run, corpus, sources.get(run.subset, {}).get(run.row))
            per_run.append(time.perf_counter() - start)
            number = len(per_run)
            log(
                "[%d/%d] %s, %s, seed %d: %.1f min; about %.0f min left.",
                number,
                len(remaining),
                run.subset,
                ROWS[run.row],
                seed,
                per_run[-1] / 60,
                statistics.median(per_run) * (len(remaining) - number) / 60,
            )
        results = collect(args, corpus, teacher, refused)
        write_json(Path(args.output_dir) / "results.json", results)
        with atomic_path(Path(args.output_dir) / "results.md") as part:
            part.write_text(format_table(results), encoding="utf-8")
    return results


def collect(
    args: BenchmarkArguments, corpus: Corpus, teacher: Teacher, refused: dict[str, dict[str, str]]
) -> dict[str, Any]:
    """Return the content of `results.json` from the runs that are finished."""
    unseen = unseen_devices(corpus.train, corpus.test)
    finished = [run for run in plan(args) if record_path(args, run).is_file()]
    names = corpus.test["filename"][:]

    def test_logits(path: Path) -> np.ndarray:
        return np.array(join_logits(str(path), read_logits(path, corpus.label_names), names).to_pylist())

    summaries: dict[tuple[str, str], dict[str, Any]] = {}
    for subset, row in dict.fromkeys((run.subset, run.row) for run in finished):
        runs = [run for run in finished if (run.subset, run.row) == (subset, row)]
        records = [read_json(record_path(args, run)) for run in runs]
        times = [record["seconds"] for record in records if record["seconds"] is not None]
        summaries[subset, row] = {
            "title": ROWS[row],
            **summarize({run.seed: test_logits(record_path(args, run).parent) for run in runs}, corpus.test, unseen),
            **{name: records[0][name] for name in ("steps", "epochs")},
            "seconds": statistics.median(times) if times else None,
        }
    content = {}
    for subset in args.subsets:
        keys = {row: ("split100" if row == "all_labels" else subset, row) for row in args.rows}
        rows = {row: dict(summaries[key]) for row, key in keys.items() if key in summaries}
        for row, summary in rows.items():
            paired = row != "labels_alone" and "labels_alone" in rows
            baseline = rows["labels_alone"]["macro_accuracy"] if paired else {}
            summary["difference"] = difference(summary["macro_accuracy"], baseline)
        folder = Path(args.output_dir) / "teachers" / subset
        content[subset] = {
            "clips": len(corpus.subsets[subset]),
            "teacher": {
                "test": summarize({0: test_logits(folder / "test")}, corpus.test, unseen),
                **describe_teacher(corpus, subset, read_logits(folder / "train", corpus.label_names).values),
            },
            "rows": rows,
            "refused": {ROWS[row]: reason for row, reason in refused[subset].items()},
        }
    processor = f"{processor_name()} with {torch.get_num_threads()} threads"
    return {
        "data": Path(args.data_dir).resolve().name,
        "training_clips": len(corpus.train),
        "test_clips": len(corpus.test),
        "teacher": portable(teacher.name),
        "revision": teacher.revision,
        "settings": settings(args),
        "subsets": content,
        "date": datetime.date.today().isoformat(),
        "machine": torch.cuda.get_device_name() if torch.cuda.is_available() else processor,
        **provenance(),
    }


def describe_teacher(corpus: Corpus, subset: str, logits: np.ndarray) -> dict[str, float | None]:
    """Return a teacher's accuracy on labelled and other training clips, and its confidence on the former."""
    correct = logits.argmax(axis=1) == corpus.labels
    labelled = np.isin(np.arange(len(correct)), corpus.subsets[subset])
    return {
        "labelled": float(correct[labelled].mean()),
        "unlabelled": float(correct[~labelled].mean()) if not labelled.all() else None,
        "confidence": mean_confidence(logits[labelled]),
    }


def settings(args: BenchmarkArguments) -> dict[str, Any]:
    """Return the arguments that all rows have in common, which cannot be changed in an output folder."""
    names = ("steps", "batch_size", "learning_rate", "unlabelled_fraction", "other_sound", "student_options")
    return {name: getattr(args, name) for name in names} | {"temperature": TEMPERATURE}


def log_plan(args: BenchmarkArguments, corpus: Corpus) -> None:
    """Print the runs and an estimate of their time, from finished ones or a few training steps on this machine."""
    runs = plan(args)
    records = [read_json(record_path(args, run)) for run in runs if record_path(args, run).is_file()]
    remaining = len(runs) - len(records)
    if times := [record["seconds"] for record in records if record["seconds"] is not None]:
        seconds = statistics.median(times)
    else:
        overrides = dict(option.split("=", 1) for option in args.student_options).get("config_overrides")
        # The machine may be busy with something else during some of the measurements.
        sizes = (args.batch_size, args.batch_size + 1, args.batch_size + 2)
        per_clip = min(seconds_per_clip("tfsepnet", overrides, clips=size) for size in sizes)
        seconds = args.steps * args.batch_size * per_clip
    log(
        "%d runs of %s steps, %d of them finished; about %.1f min each, %.1f h for the others, without the teacher.",
        len(runs),
        f"{args.steps:,}",
        len(records),
        seconds / 60,
        seconds * remaining / 3600,
    )
    clips = {subset: len(rows) for subset, rows in corpus.subsets.items()} | {"split100": len(corpus.train)}
    for subset, row in dict.fromkeys((run.subset, run.row) for run in runs):
        epochs = count_epochs(args, row, clips[subset])
        coarse = ", too few for a smooth learning rate" if epochs < EPOCHS_OF_A_CYCLE else ""
        log("  %s, %s: %s clips, epochs: %d%s", subset, ROWS[row], f"{clips[subset]:,}", epochs, coarse)


def main(arguments: Sequence[str] | None = None) -> dict[str, Any] | None:
    """Run the benchmark and return the content of `results.json`, or None for a dry run.

    Args:
        arguments (`Sequence[str]`, *optional*): Defaults to the command line.

    Raises:
        FileExistsError: If the output folder contains a benchmark with other settings.
        FileNotFoundError, InputError: If an argument, the corpus or the teacher is invalid.
    """
    (args,) = CommandParser(BenchmarkArguments).parse(arguments)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("benchmarks").setLevel(logging.INFO)
    corpus = load_corpus(args.data_dir, args.subsets, args.cache_dir)
    log_plan(args, corpus)
    if args.dry_run:
        return None
    teacher = load_teacher(args.teacher, corpus, Path(args.output_dir) / "teachers")
    identity = {"corpus": corpus.checksum(), "teacher": teacher.identity, **settings(args)}
    with hold_output_folder(args.output_dir, identity):
        results = run_all(args, corpus, teacher)
    log("\n%s\nThe table is in %s, with results.json.", format_table(results), Path(args.output_dir) / "results.md")
    return results


if __name__ == "__main__":
    run_command(main)

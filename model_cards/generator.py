"""Model cards, made from results files alone: every number on a card is in a file that is published with it.

The folder's own results are those of the model; others are runs of the same recipe on other subsets or with other
seeds.
"""

import json
import re
import shlex
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from dataset_script import SCENES
from dataset_script.errors import InputError
from dataset_script.files import atomic_path, write_json
from dataset_script.markdown import code, code_block, plain
from dataset_script.splits import subset_percentage
from model_cards.complexity import (
    SUBMITTED_FORMATS,
    check_limits,
    measure_folder,
    peak_activations,
    read_config,
    stored_integers,
    weight_files,
)
from model_cards.encoder_cards import make_encoder_card
from model_cards.evidence import NETWORK_COUNTS, Evidence, collect_evidence, plot_title
from model_cards.hyperparameters import hyperparameter_table
from model_cards.inputs import input_table
from model_cards.links import (
    TEMPLATES,
    base_model_metadata,
    citations,
    code_url,
    commit_link,
    data_ids,
    reference_link,
)
from model_cards.plots import plot_results
from model_cards.results import RESULTS_FILE, RunResults, configuration, portable, read_results
from model_cards.snippets import usage
from model_cards.students import STUDENTS, Student
from model_cards.tables import (
    activation_bits,
    comparison_table,
    complexity_table,
    device_models_table,
    group_table,
    int8_table,
    latency_results,
    mean_metric,
    summary_table,
)


RUN_PLOTS = {
    "comparison.png": "Teachers and student",
    "learning_curve.png": "Learning curves",
    "layers.png": "SQNR of the logits with one layer in INT8",
}
"""Plots that a card shows if the run has left them beside its results, with their captions."""


def make_card(
    model_dir: str | Path,
    evidence: Evidence,
    repo_id: str | None = None,
    allow_over_limit: bool = False,
    base_model: str | None = None,
) -> ModelCard:
    """Return the card of a model folder.

    Args:
        model_dir (`str` or `Path`): A student in any number format, a BEATs, or an audio classifier of transformers.
        evidence (`Evidence`): The results that it states.
        repo_id (`str`, *optional*): Where the model will be on the Hub; defaults to the path of the folder.
        allow_over_limit (`bool`, *optional*, defaults to `False`): Make the card of a student that exceeds a limit of
            the challenge; it says so.
        base_model (`str`, *optional*): Id on the Hub of the model that this one was quantized or fine-tuned from;
            defaults to what the run has recorded, if that is an id.

    Raises:
        FileNotFoundError: If the folder is incomplete.
        InputError: If a limit is exceeded, the results are of another network, or a student has a base model.
    """
    model_dir = Path(model_dir)
    complexity = measure_folder(model_dir)
    if not allow_over_limit:
        advice = "use a smaller network, or pass --allow_over_limit for a card that says so"
        check_limits(complexity, model_dir, advice=advice)
    own, training, corpus = evidence.own, evidence.training, evidence.corpus
    for name in NETWORK_COUNTS:
        stated = own.complexity.get(name)
        if stated is not None and (counted := getattr(complexity, name)) != stated:
            raise InputError(
                f"The results in {model_dir} are of a network with {stated} {name}, but the one there has {counted}: "
                "evaluate it again."
            )
    config = read_config(model_dir)
    labels = list(own.metrics["class_wise"])
    of_scenes = labels == list(SCENES)
    name = model_name(model_dir, repo_id)
    of_tau = corpus.kind == "tau"
    student = STUDENTS.get(config["model_type"])
    foreign = student is None and config["model_type"] != "beats"
    stored = stored_integers(model_dir) if complexity.number_format == "INT8" else {}
    network = student.config.from_pretrained(model_dir) if student else None
    license_of_data = "apache-2.0" if corpus.kind == "synthetic" else corpus.license
    card_data = ModelCardData(
        license="other" if of_tau or foreign else license_of_data,
        license_name=corpus.license if of_tau else "that-of-the-pretrained-model" if foreign else None,
        license_link=corpus.license_link if of_tau else "README.md#training-data-and-licence" if foreign else None,
        library_name="transformers",
        pipeline_tag="audio-classification",
        tags=[
            "acoustic-scene-classification" if of_scenes else "environmental-sound-classification",
            *(["dcase"] if of_tau or corpus.kind == "synthetic" else []),
            config["model_type"],
            *([complexity.number_format.lower()] if complexity.number_format in SUBMITTED_FORMATS else []),
            *(["knowledge-distillation"] if training.teachers else []),
            *(["synthetic-data"] if corpus.kind == "synthetic" else []),
        ],
        metrics=["accuracy"],
        datasets=data_ids(training, model_dir) or None,
        **base_model_metadata(model_dir, own, training, student is not None, base_model),
        model_name=name,
        eval_results=evaluation_results(evidence),
    )
    return ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATES / "model.md"),
        student=student,
        architecture=config["architectures"][0] if foreign else None,
        classes="ten acoustic scenes" if of_scenes else f"{len(labels)} classes of sound",
        name=name,
        model_id=shlex.quote(repo_id or portable(str(model_dir))),
        usage=usage(model_dir, config, repo_id or portable(str(model_dir)), repo_id is not None),
        inputs=input_table(model_dir),
        code_url=code_url(),
        commit_link=commit_link,
        reference=lambda reference: reference_link(reference, model_dir),
        plain=plain,
        code=code,
        code_block=code_block,
        corpus=corpus,
        complexity=complexity,
        excesses=complexity.excesses(),
        own=own,
        subset=subset_percentage(own.dataset),
        training=training,
        other_subsets=len(evidence.by_subset) > 1,
        intervals=any("confidence_intervals" in run.metrics for run in evidence.runs.values()),
        optimistic=any(run.selection == "best epoch on the test split" for run in evidence.runs.values()),
        summary_table=summary_table(evidence.by_subset, training.recipe, corpus, complexity.number_format),
        class_table=group_table(evidence.by_subset, "class_wise"),
        device_table=group_table(evidence.by_subset, "device_wise") if has_devices(own) else "",
        device_models_table=device_models_table(own.content) if own.content.get("device_models") else "",
        device_id=json.dumps(next(iter(own.content.get("device_models", {})), None)),
        adaptation=hyperparameter_table(own.arguments),
        comparison_table=comparison_table(training.content) if "labels_alone" in training.content else "",
        complexity_table=complexity_table(
            complexity,
            own,
            evidence.counterpart,
            (stored_bytes(model_dir), counterpart_bytes(evidence)),
            onnx.stat().st_size if (onnx := model_dir / "model.onnx").is_file() else None,
            peak_activations(network) if network else None,
        ),
        activation_bits=activation_bits(own, evidence.counterpart),
        latency=latency_results(own, evidence.counterpart),
        int8_table=int8_table(own, complexity, stored) if stored else "",
        stored=sum(stored.values()),
        hyperparameters=hyperparameter_table(training.arguments),
        files=list(evidence.files),
        plots=result_plots(own) | {path.name: RUN_PLOTS[path.name] for path in run_plots(own)},
        teacher_command=None if student else teacher_command(training),
        citations=citations(*cited(student, training, config["model_type"], of_tau)),
    )


def cited(student: Student | None, training: RunResults, model_type: str, of_tau: bool) -> list[str]:
    """Return the keys of the publications behind a model.

    Args:
        student (`Student`, *optional*): The network; `None` for a teacher.
        training (`RunResults`): How it was trained.
        model_type (`str`): Type of its configuration.
        of_tau (`bool`): Whether it was trained on TAU.
    """
    keys = [student.citation if student else "cai2024data"]
    keys += ["cai2024data"] if student and training.teachers else []
    keys += ["chen2023beats"] if model_type == "beats" or taught_by_beats(training) else []
    keys += ["heittola2020acoustic"] if of_tau else []
    return list(dict.fromkeys(keys))


def model_name(model_dir: Path, repo_id: str | None) -> str:
    """Return the name of a model: that of its repository, or else of its folder or, of a converted one, the run's."""
    folder = model_dir.resolve()
    return (repo_id or (folder.parent if folder.name == "model" else folder).name).split("/")[-1]


def has_devices(results: RunResults) -> bool:
    """Return whether the clips are of several recording devices."""
    return len(results.metrics["device_wise"]) > 1


def stored_bytes(model_dir: Path) -> int:
    """Return the size of the files with the weights of a model."""
    return sum(file.stat().st_size for file in weight_files(model_dir))


def counterpart_bytes(evidence: Evidence) -> int | None:
    """Return the size of the model in the other number format, if its folder is here."""
    own, other = evidence.own, evidence.counterpart
    if other is None or other.path == own.path:  # of the same conversion: the float model itself may be elsewhere
        folders = [Path(own.float_model)] if own.float_model else []
    else:
        folders = [other.path.parent / "model", other.path.parent]
    return next((stored_bytes(folder) for folder in folders if any(folder.glob("model*.safetensors"))), None)


def taught_by_beats(training: RunResults) -> bool:
    """Return whether a student has a teacher that is a BEATs, by what the teachers are called."""
    return any(re.search(r"beats|\bssl", teacher, re.IGNORECASE) for teacher in training.teacher_names)


def teacher_command(training: RunResults) -> str | None:
    """Return the command that trains a teacher that was trained on the way to a student, or None for other models."""
    arguments = training.arguments
    if not training.recipe or "distill" not in training.provenance["command"]:
        return None
    names = ("model_name_or_path", "config_overrides", "seed")
    given = [part for name in names if arguments.get(name) is not None for part in (f"--{name}", str(arguments[name]))]
    command = ["scenes", "finetune-teacher", "--recipe", training.recipe, "--dataset", training.dataset]
    return shlex.join([*command, *given, "--output_dir", "outputs/teacher"])


def result_plots(results: RunResults) -> dict[str, str]:
    """Return the plots of a card that are drawn from its results, with their captions."""
    devices = {"devices.png": "Accuracy by device"} if has_devices(results) else {}
    return {"confusion_matrix.png": "Confusion matrix on the test split", "classes.png": "Accuracy by class"} | devices


def run_plots(results: RunResults) -> list[Path]:
    """Return the plots of `RUN_PLOTS` that are beside the results: outside the folder of a converted model."""
    return [path for name in RUN_PLOTS if (path := results.path.parent / name).is_file()]


def evaluation_results(evidence: Evidence) -> list[EvalResult]:
    """Return the entries of the `model-index`: accuracies for each training subset.

    These are the accuracy and the macro-averaged one, or only the latter where both are the same, as in a test split
    with as many clips of each class. The folder `.eval_results/`, the Hub's newer place for results, is not written:
    the Hub only takes results there on datasets that it has listed as benchmarks, and none of these is.
    """
    names = {"accuracy": "Accuracy", "macro_accuracy": "Macro-averaged accuracy"}
    of_scenes = list(evidence.own.metrics["class_wise"]) == list(SCENES)
    data = data_ids(evidence.own, evidence.own.path.parent)
    return [
        EvalResult(
            task_type="audio-classification",
            task_name="Acoustic scene classification" if of_scenes else "Audio classification",
            dataset_type=data[0] if data else evidence.corpus.hub_type,
            dataset_name=evidence.corpus.name,
            dataset_config=configuration(subset),
            dataset_split="test",
            metric_type="accuracy",
            metric_name=f"{name}, trained on {subset_percentage(subset)} % of the training clips",
            metric_value=value,
        )
        for subset, runs in evidence.by_subset.items()
        for value, name in {round(mean_metric(runs, key), 4): name for key, name in names.items()}.items()
    ]


def write_card(
    model_dir: str | Path,
    results: Iterable[str | Path] = (),
    *,
    counterpart: str | Path | None = None,
    repo_id: str | None = None,
    dataset_name: str | None = None,
    dataset_license: str | None = None,
    allow_over_limit: bool = False,
    base_model: str | None = None,
) -> ModelCard:
    """Write the card of a model folder into it, as `README.md`, with its plots and all results behind it.

    None of these files, the model's own `results.json` included, contains a local path afterwards: they are made to be
    published.

    Args:
        model_dir (`str` or `Path`): A model as for [`make_card`], with its `results.json`; also a BEATs that was
            pre-trained only, whose card is that of [`~model_cards.encoder_cards.make_encoder_card`].
        results (`Iterable[str | Path]`): Results of the same recipe on other subsets, or with other seeds: files, or
            folders with a `results.json`.
        counterpart (`str` or `Path`, *optional*): Results of the same network in the other number format.
        repo_id (`str`, *optional*): As for [`make_card`].
        dataset_name (`str`, *optional*): As for [`~model_cards.evidence.identify_corpus`].
        dataset_license (`str`, *optional*): As for [`~model_cards.evidence.identify_corpus`].
        allow_over_limit (`bool`, *optional*, defaults to `False`): As for [`make_card`].
        base_model (`str`, *optional*): As for [`make_card`].

    Raises:
        FileNotFoundError, InputError: As [`make_card`] and [`collect_evidence`]; nothing is written then.
    """
    if dataset_license is not None and not re.fullmatch(r"[a-z0-9.+-]+", dataset_license):
        raise InputError(
            f"dataset_license is {dataset_license!r}: use the Hub's name of it, such as cc-by-4.0 or other."
        )
    model_dir = Path(model_dir)
    own = read_results(model_dir)
    if own.is_encoder:
        card = make_encoder_card(model_dir, own, repo_id, dataset_name, dataset_license)
        _save(card, model_dir, {RESULTS_FILE: own})
        return card
    evidence = collect_evidence(own, results, counterpart, dataset_name, dataset_license)
    card = make_card(model_dir, evidence, repo_id, allow_over_limit, base_model)
    title = plot_title(model_name(model_dir, repo_id), evidence.own, evidence.corpus)
    plot_results(evidence.own.metrics, model_dir, title, evidence.own.unseen_devices)
    for path in run_plots(evidence.own):
        if path.parent.resolve() != model_dir.resolve():
            shutil.copy(path, model_dir)
    shutil.rmtree(model_dir / "results", ignore_errors=True)
    _save(card, model_dir, evidence.files)
    return card


def _save(card: ModelCard, model_dir: Path, results: Mapping[str, RunResults]) -> None:
    for path, run in results.items():
        write_json(model_dir / path, run.content)
    text = re.sub(r"\n{3,}", "\n\n", card.text).strip("\n") + "\n"  # conditions of the template leave empty lines
    card.text = text
    with atomic_path(model_dir / "README.md") as part:
        card.save(part)

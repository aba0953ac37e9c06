"""Model cards, made from results files alone: every number on a card is in a file that is published with it.

    python -m model_cards.generator outputs/s2-split25 --results outputs/s2-split5 outputs/s2-split50

writes `README.md` into the model folder. The folder's own results are those of the model; `--results` adds runs of the
same recipe on other subsets or with other seeds.
"""

import argparse
import json
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from dataset_script import SCENES
from dataset_script.errors import InputError
from dataset_script.files import atomic_path, write_json
from dataset_script.markdown import code, code_block, plain
from dataset_script.splits import subset_percentage
from model_cards.complexity import check_limits, measure_folder, read_config, weight_files
from model_cards.encoder_cards import TEMPLATES, make_encoder_card
from model_cards.evidence import NETWORK_COUNTS, Evidence, collect_evidence
from model_cards.plots import plot_confusion_matrix, plot_groups
from model_cards.results import RESULTS_FILE, RunResults, configuration, read_results
from model_cards.tables import (
    complexity_table,
    device_models_table,
    group_table,
    hyperparameter_table,
    mean_metric,
    summary_table,
)


REDRAWN_PLOTS = {"confusion_matrix.png": "Confusion matrix on the test split", "devices.png": "Accuracy by device"}
"""Plots of a card that are drawn from its results, with their captions."""

RUN_PLOTS = {"learning_curve.png": "Learning curves", "layers.png": "What each layer costs in INT8"}
"""Plots that a card shows if the run has left them beside its results, with their captions."""


def make_card(
    model_dir: str | Path, evidence: Evidence, repo_id: str | None = None, allow_over_limit: bool = False
) -> ModelCard:
    """Return the card of a model folder.

    Args:
        model_dir (`str` or `Path`): A TF-SepNet (float or INT8), a BEATs, or an audio classifier of transformers.
        evidence (`Evidence`): The results that it states.
        repo_id (`str`, *optional*): Where the model will be on the Hub; defaults to the path of the folder.
        allow_over_limit (`bool`, *optional*, defaults to `False`): Make the card of a student that exceeds a limit of
            the challenge; it says so.

    Raises:
        FileNotFoundError: If the folder is incomplete.
        InputError: If a limit is exceeded, or the results are of another network.
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
    file_bytes = sum(file.stat().st_size for file in weight_files(model_dir))
    labels = list(own.metrics["class_wise"])
    name = (repo_id or model_dir.resolve().name).split("/")[-1]
    of_tau = corpus.kind == "tau"
    foreign = config["model_type"] not in ("tfsepnet", "beats")
    license_of_data = "apache-2.0" if corpus.kind == "synthetic" else corpus.license
    card_data = ModelCardData(
        license="other" if of_tau or foreign else license_of_data,
        license_name=corpus.license if of_tau else "that-of-the-pretrained-model" if foreign else None,
        license_link=corpus.license_link if of_tau else "README.md#training-data-and-licence" if foreign else None,
        library_name="transformers",
        pipeline_tag="audio-classification",
        tags=[
            "acoustic-scene-classification",
            "dcase",
            config["model_type"],
            *(["int8"] if complexity.number_format == "INT8" else []),
            *(["knowledge-distillation"] if training.teachers else []),
            *(["synthetic-data"] if corpus.kind == "synthetic" else []),
        ],
        metrics=["accuracy"],
        model_name=name,
        eval_results=evaluation_results(evidence),
    )
    return ModelCard.from_template(
        card_data,
        template_path=str(TEMPLATES / "model.md"),
        student=complexity.macs is not None,
        architecture=config["architectures"][0] if foreign else None,
        classes="ten acoustic scenes" if labels == list(SCENES) else f"{len(labels)} classes of sound",
        name=name,
        model_id=json.dumps(repo_id or str(model_dir), ensure_ascii=False),
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
        device_table=group_table(evidence.by_subset, "device_wise"),
        device_models_table=device_models_table(own.content) if own.content.get("device_models") else "",
        device_id=json.dumps(next(iter(own.content.get("device_models", {})), None)),
        adaptation=hyperparameter_table(own.arguments),
        complexity_table=complexity_table(complexity, file_bytes, own, evidence.counterpart),
        hyperparameters=hyperparameter_table(training.arguments),
        files=list(evidence.files),
        plots=REDRAWN_PLOTS | {path.name: RUN_PLOTS[path.name] for path in run_plots(own)},
        citations=(TEMPLATES / "citations.bib").read_text(encoding="utf-8").strip(),
    )


def run_plots(results: RunResults) -> list[Path]:
    """Return the plots of `RUN_PLOTS` that are beside the results, which for an INT8 model is not in its folder."""
    return [path for name in RUN_PLOTS if (path := results.path.parent / name).is_file()]


def evaluation_results(evidence: Evidence) -> list[EvalResult]:
    """Return the entries of the `model-index`: accuracy and macro-averaged accuracy for each training subset."""
    names = {"accuracy": "Accuracy", "macro_accuracy": "Macro-averaged accuracy"}
    return [
        EvalResult(
            task_type="audio-classification",
            task_name="Acoustic scene classification",
            dataset_type=evidence.corpus.hub_type,
            dataset_name=evidence.corpus.name,
            dataset_config=configuration(subset),
            dataset_split="test",
            metric_type="accuracy",
            metric_name=f"{name}, trained on {subset_percentage(subset)} % of the training clips",
            metric_value=round(mean_metric(runs, key), 4),
        )
        for subset, runs in evidence.by_subset.items()
        for key, name in names.items()
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
    card = make_card(model_dir, evidence, repo_id, allow_over_limit)
    metrics = evidence.own.metrics
    plot_confusion_matrix(metrics["confusion_matrix"], list(metrics["class_wise"]), model_dir / "confusion_matrix")
    plot_groups(metrics["device_wise"], model_dir / "devices", evidence.own.unseen_devices)
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


def add_card_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of [`write_card`] to a command line."""
    parser.add_argument("folder", help="Model folder, with its results.json.")
    parser.add_argument(
        "--results", nargs="+", default=[], help="Results of the same recipe on other subsets or with other seeds."
    )
    parser.add_argument("--counterpart", help="Results of the INT8 form of a float model, or vice versa.")
    parser.add_argument("--dataset_name", help="Name of the data, unless it is TAU or the demo corpus.")
    parser.add_argument("--dataset_license", help="Its licence, as the Hub names it, such as cc-by-4.0.")
    parser.add_argument(
        "--allow_over_limit", action="store_true", help="Accept a student that exceeds a limit; its card says so."
    )


def run_command(main: Callable[[], str]) -> None:
    """Run the `main` of a command and print what it returns; an error that the user can fix ends it with one line."""
    try:
        print(main())
    except (InputError, OSError) as error:
        sys.exit(f"Error: {error}")


def main(arguments: Sequence[str] | None = None) -> str:
    """Write a card and return its path.

    Args:
        arguments (`Sequence[str]`, *optional*): Defaults to the command line.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_card_arguments(parser)
    args = vars(parser.parse_args(arguments))
    folder = args.pop("folder")
    write_card(folder, **args)
    return str(Path(folder) / "README.md")


if __name__ == "__main__":
    run_command(main)

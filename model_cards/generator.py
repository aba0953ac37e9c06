"""Model cards, made from results files alone: every figure in a card is in a file that goes with it.

    python -m model_cards.generator outputs/s2-split25 --results outputs/s2-split5 outputs/s2-split50

writes `README.md` into the model folder. The results of the folder itself are those of the model; further results are
of runs of the same recipe on other subsets or with other seeds.
"""

import argparse
import re
import shutil
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from huggingface_hub import EvalResult, ModelCard, ModelCardData

from dataset_script import SCENES
from dataset_script.errors import InputError
from dataset_script.files import write_json
from model_cards.complexity import check_limits, measure_model, read_config
from model_cards.encoder_cards import TEMPLATES, is_encoder, make_encoder_card
from model_cards.evidence import COUNTERPART_FILE, Evidence, collect_evidence
from model_cards.plots import plot_confusion_matrix, plot_groups
from model_cards.results import RESULTS_FILE, configuration, percentage, portable, read_json, results_path
from model_cards.tables import complexity_table, group_table, hyperparameter_table, mean_accuracy, summary_table


DRAWN = {"confusion_matrix.png": "Confusion matrix on the test split", "devices.png": "Accuracy by device"}
"""Pictures of a card that are drawn from the results."""

FOUND = {"learning_curve.png": "Learning curves", "layers.png": "What each layer costs in INT8"}
"""Pictures that a card shows if the run has left them beside its results."""


def make_card(
    model_dir: str | Path, evidence: Evidence, repo_id: str | None = None, allow_over_limit: bool = False
) -> ModelCard:
    """Return the card of a model folder.

    Args:
        model_dir (`str` or `Path`): A TF-SepNet (float or INT8) or BEATs.
        evidence (`Evidence`): The results that it states.
        repo_id (`str`, *optional*): Where the model will be on the Hub; defaults to the path of the folder.
        allow_over_limit (`bool`, *optional*, defaults to `False`): Make the card of a student that exceeds a limit of
            the challenge; it says so.

    Raises:
        FileNotFoundError: If the folder is incomplete.
        InputError: If a limit is exceeded, or the results are of another network.
    """
    model_dir = Path(model_dir)
    complexity = measure_model(model_dir)
    check_limits(complexity, model_dir, allow_over_limit)
    for name, stated in evidence.own["complexity"].items():
        if (counted := getattr(complexity, name)) != stated:
            raise InputError(
                f"The results in {model_dir} are of a network with {stated} {name}, but the one there has {counted}: "
                "evaluate it again."
            )
    config = read_config(model_dir)
    corpus, training = evidence.corpus, evidence.training
    labels = list(evidence.own["metrics"]["class_wise"])
    name = (repo_id or model_dir.resolve().name).split("/")[-1]
    of_tau = corpus.kind == "tau"
    card_data = ModelCardData(
        license="other" if of_tau else "apache-2.0" if corpus.kind == "synthetic" else corpus.license,
        license_name=corpus.license if of_tau else None,
        license_link=corpus.license_link if of_tau else None,
        library_name="transformers",
        pipeline_tag="audio-classification",
        tags=[
            "acoustic-scene-classification",
            "dcase",
            config["model_type"],
            *(["int8"] if complexity.number_format == "INT8" else []),
            *(["knowledge-distillation"] if training.get("teachers") else []),
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
        classes="ten acoustic scenes" if labels == list(SCENES) else f"{len(labels)} classes of sound",
        name=name,
        model_id=repo_id or str(model_dir),
        corpus=corpus,
        complexity=complexity,
        excesses=complexity.excesses(),
        own=evidence.own,
        subset=percentage(evidence.own["dataset"]),
        training=training,
        other_subsets=len(evidence.by_subset) > 1,
        intervals=any("confidence_intervals" in run["metrics"] for run in evidence.runs.values()),
        optimistic=any(run.get("selection") == "best epoch on the test split" for run in evidence.runs.values()),
        summary_table=summary_table(evidence.by_subset, training.get("recipe"), corpus, complexity.number_format),
        class_table=group_table(evidence.by_subset, "class_wise"),
        device_table=group_table(evidence.by_subset, "device_wise"),
        complexity_table=complexity_table(complexity, evidence.own, evidence.counterpart),
        hyperparameters=hyperparameter_table(training.get("arguments", {})),
        files=[*evidence.runs, *([COUNTERPART_FILE] if evidence.counterpart else [])],
        pictures={**DRAWN, **{path.name: FOUND[path.name] for path in found_pictures(model_dir)}},
        citations=(TEMPLATES / "citations.bib").read_text(encoding="utf-8").strip(),
    )


def found_pictures(model_dir: Path) -> list[Path]:
    """Return the pictures of [`FOUND`] that are beside the results, which for an INT8 model is not in its folder."""
    return [path for name in FOUND if (path := results_path(model_dir).parent / name).is_file()]


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
            metric_name=f"{name}, trained on {percentage(subset)} % of the training clips",
            metric_value=round(mean_accuracy(runs, key), 4),
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
    """Write the card of a model folder into it, as `README.md`, with its pictures and all results that it states.

    None of these files, the model's own `results.json` included, has a path of this machine afterwards: they are made
    to be published.

    Args:
        model_dir (`str` or `Path`): A TF-SepNet (float or INT8) or BEATs, with its `results.json`; also a BEATs that
            was pre-trained only, whose card is that of [`~model_cards.encoder_cards.make_encoder_card`].
        results (`Iterable[str | Path]`): Results of the same recipe on other subsets, or with other seeds: files, or
            folders with a `results.json`.
        counterpart (`str` or `Path`, *optional*): Results of the same network in the other number format.
        repo_id, allow_over_limit: As for [`make_card`].
        dataset_name, dataset_license: As for [`~model_cards.results.identify_corpus`].

    Raises:
        FileNotFoundError, InputError: As [`make_card`] and [`collect_evidence`]; nothing is written then.
    """
    if dataset_license is not None and not re.fullmatch(r"[a-z0-9.+-]+", dataset_license):
        raise InputError(
            f"dataset_license is {dataset_license!r}: name it as the Hub does, such as cc-by-4.0 or other."
        )
    model_dir = Path(model_dir)
    if is_encoder(content := portable(read_json(results_path(model_dir)))):
        card = make_encoder_card(model_dir, repo_id, dataset_name, dataset_license)
        _save(card, model_dir, {RESULTS_FILE: content})
        return card
    evidence = collect_evidence(model_dir, results, counterpart, dataset_name, dataset_license)
    card = make_card(model_dir, evidence, repo_id, allow_over_limit)
    files = dict(evidence.runs)
    if evidence.counterpart is not None:
        files[COUNTERPART_FILE] = evidence.counterpart
    metrics = evidence.own["metrics"]
    plot_confusion_matrix(metrics["confusion_matrix"], list(metrics["class_wise"]), model_dir / "confusion_matrix")
    plot_groups(metrics["device_wise"], model_dir / "devices", evidence.own["unseen_devices"])
    for path in found_pictures(model_dir):
        if path.parent != model_dir:
            shutil.copy(path, model_dir)
    shutil.rmtree(model_dir / "results", ignore_errors=True)
    _save(card, model_dir, files)
    return card


def _save(card: ModelCard, model_dir: Path, results: dict[str, dict[str, Any]]) -> None:
    for path, content in results.items():
        write_json(model_dir / path, content)
    card.text = re.sub(r"\n{3,}", "\n\n", card.text).strip("\n") + "\n"  # conditions leave empty lines behind
    card.save(model_dir / "README.md")


def add_card_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of [`write_card`] to a command line."""
    parser.add_argument("folder", help="Model folder, with its results.json.")
    parser.add_argument(
        "--results", nargs="+", default=[], help="Results of the same recipe on other subsets, or with other seeds."
    )
    parser.add_argument("--counterpart", help="Results of the INT8 form of a float model, or the other way round.")
    parser.add_argument("--dataset_name", help="Name of the data if they are neither TAU nor the demo corpus.")
    parser.add_argument("--dataset_license", help="Their licence, as the Hub identifies it, such as cc-by-4.0.")
    parser.add_argument(
        "--allow_over_limit", action="store_true", help="Accept a student over a limit; its card says so."
    )


def run_command(command: Callable[[], str]) -> None:
    """Run a command and print what it returns; wrong input ends it with one sentence."""
    try:
        print(command())
    except (ValueError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


def main() -> str:
    """Write the card that the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_card_arguments(parser)
    args = vars(parser.parse_args())
    folder = args.pop("folder")
    write_card(folder, **args)
    return str(Path(folder) / "README.md")


if __name__ == "__main__":
    run_command(main)

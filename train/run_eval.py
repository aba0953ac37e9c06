"""Evaluate a scene classifier: accuracies, log loss, confusion matrix, complexity.

    python train/run_eval.py --model_name_or_path outputs/demo --dataset demo --output_dir outputs/demo/evaluation

Takes any model folder or Hub id. Writes `results.json`, `results.md` and pictures. Under `accelerate launch` the clips
are shared among the processes. With `--push_to_hub True --hub_model_id user/name` the model folder is pushed with a
card of these results.
"""

import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
from accelerate import PartialState
from transformers import PreTrainedModel
from transformers.feature_extraction_utils import FeatureExtractionMixin

from dataset_script import cache_waveforms, is_synthetic
from model_cards.results import load_results, portable, results_path
from modeling_tfsepnet import TFSepNetForAudioClassification
from modeling_tfsepnet.complexity import count_complexity
from train.arguments import InferenceArguments
from train.data import SceneDataset
from train.hub import HubArguments, check_repository, push_folder
from train.metrics import scene_metrics
from train.plots import plot_confusion_matrix, plot_groups
from train.predict_logits import compute_logits, load_clips, model_revision
from train.recipes import ScriptParser
from train.runs import (
    RESULTS_FILE,
    claim_output_folder,
    configure_logging,
    provenance,
    run_script,
    write_json,
)


logger = logging.getLogger(__name__)


@dataclass
class EvaluationArguments(HubArguments, InferenceArguments):
    """`InferenceArguments`, how sure the figures are, and where the evaluated model is pushed."""

    bootstrap: int = field(default=1000, metadata={"help": "Resamples behind the confidence intervals; 0 is none."})

    def __post_init__(self):
        super().__post_init__()
        if self.bootstrap < 0:
            raise ValueError(f"bootstrap is {self.bootstrap}: give the number of resamples, or 0 for none.")


def evaluate_classifier(
    model: PreTrainedModel,
    feature_extractor: FeatureExtractionMixin,
    dataset: SceneDataset,
    unseen_devices: Sequence[str],
    batch_size: int = 256,
    bootstrap: int = 1000,
) -> dict[str, Any]:
    """Return the figures of [`~train.metrics.scene_metrics`] for a model; all processes must call this.

    The confidence intervals resample whole recording locations, whose clips resemble each other.

    Args:
        model (`PreTrainedModel`): With the classes of `dataset`.
        feature_extractor (`FeatureExtractionMixin`): Of the model.
        dataset (`SceneDataset`): Clips at the feature extractor's rate.
        unseen_devices (`Sequence[str]`): Devices that training did not have.
        batch_size (`int`, *optional*, defaults to 256): Clips of a forward pass.
        bootstrap (`int`, *optional*, defaults to 1000): Resamples behind the confidence intervals.
    """
    logits = compute_logits(model.eval(), feature_extractor, dataset.waveforms, batch_size)
    return score_logits(logits, dataset.scenes, unseen_devices, bootstrap)


def score_logits(
    logits: np.ndarray, clips: datasets.Dataset, unseen_devices: Sequence[str], bootstrap: int
) -> dict[str, Any]:
    """Return the figures of [`~train.metrics.scene_metrics`] for logits `(clips, classes)` of clips in their order."""
    features = clips.features
    devices, cities = ([features[name].names[index] for index in clips[name]] for name in ("device", "city"))
    return scene_metrics(
        logits,
        clips["label"],
        labels=features["label"].names,
        devices=devices,
        cities=cities,
        unseen_devices=unseen_devices,
        bootstrap=bootstrap,
        clusters=[f"{city}-{location}" for city, location in zip(cities, clips["location"], strict=True)],
    )


def complexity(model: PreTrainedModel) -> dict[str, int]:
    """Return the parameters of a model and, for TF-SepNet, its multiply-accumulates for one second (DCASE's count)."""
    if isinstance(model, TFSepNetForAudioClassification):
        return count_complexity(model.config)._asdict()
    return {"parameters": model.num_parameters()}


def unseen_devices(train: Any, test: Any) -> list[str]:
    """Return the devices of the clips in `test` that no clip in `train` was recorded by."""
    names = test.features["device"].names
    return [names[index] for index in sorted(set(test["device"]) - set(train["device"]))]


def write_results(folder: str | Path, results: dict[str, Any]) -> None:
    """Write results as JSON, table and pictures; the JSON is last, so where it is the rest is too.

    Args:
        folder (`str` or `Path`): Where they go.
        results (`dict`): `metrics` of [`evaluate_classifier`], `unseen_devices`, and whatever describes the run.
    """
    folder = Path(folder)
    metrics = results["metrics"]
    labels = list(metrics["class_wise"])
    plot_confusion_matrix(metrics["confusion_matrix"], labels, folder / "confusion_matrix")
    plot_groups(metrics["class_wise"], folder / "classes")
    plot_groups(metrics["device_wise"], folder / "devices", results["unseen_devices"])
    tables = f"{results_table(results)}\n{confusion_table(metrics['confusion_matrix'], labels)}"
    (folder / "results.md").write_text(tables, encoding="utf-8")
    write_json(folder / RESULTS_FILE, {**results, "provenance": provenance()})


def confusion_table(confusion: Sequence[Sequence[int]], labels: Sequence[str]) -> str:
    """Return the numbers of clips by true class (row) and predicted class (column) as a Markdown table."""
    rows = [[label, *map(str, counts)] for label, counts in zip(labels, confusion, strict=True)]
    lines = [["true / predicted", *labels], ["---"] * (len(labels) + 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def percent(metrics: Mapping[str, Any], name: str) -> str:
    """Return an accuracy as text, with its confidence interval if there is one."""
    text = f"{100 * metrics[name]:.1f} %"
    if name in metrics.get("confidence_intervals", {}):
        low, high = metrics["confidence_intervals"][name]
        text += f" ({100 * low:.1f} to {100 * high:.1f})"
    return text


def results_table(results: dict[str, Any]) -> str:
    """Return the main figures of `results` as a Markdown table."""
    metrics = results["metrics"]
    rows = [
        ("clips", f"{metrics['clips']:,}" + (", synthetic" if results["synthetic"] else "")),
        *([("selected", results["selection"])] if "selection" in results else []),
        ("macro accuracy", percent(metrics, "macro_accuracy")),
        ("accuracy", percent(metrics, "accuracy")),
        ("log loss", f"{metrics['log_loss']:.3f}"),
        *(
            (f"{name} devices", f"{100 * figures['accuracy']:.1f} %")
            for name, figures in metrics["device_groups"].items()
        ),
        *(
            (f"device {name}", f"{100 * figures['accuracy']:.1f} %")
            for name, figures in metrics["device_wise"].items()
        ),
        *(
            (f"class {name}", f"{100 * figures['accuracy']:.1f} %" if figures else "no clips")
            for name, figures in metrics["class_wise"].items()
        ),
        *(
            (f"city {name}", f"{100 * figures['accuracy']:.1f} %")
            for name, figures in metrics.get("city_wise", {}).items()
        ),
        *((name, f"{value:,}") for name, value in results["complexity"].items()),
    ]
    width = max(len(name) for name, _ in rows)
    lines = [f"| {name:<{width}} | {value} |" for name, value in rows]
    return "\n".join([f"| {'figure':<{width}} | value |", f"|{'-' * (width + 2)}|---|", *lines]) + "\n"


def check_push(args: EvaluationArguments) -> None:
    """Raise `ValueError` if the evaluated model is to be pushed, but cannot have a card of these results."""
    check_repository(args.push_to_hub, args.hub_model_id)
    if not args.push_to_hub:
        return
    folder = Path(args.model_name_or_path)
    if not folder.is_dir():
        raise ValueError(f"push_to_hub pushes a model folder of this machine, but {folder} is none.")
    if args.split != "test":
        raise ValueError(f"Cards state results on the test split: leave out --split {args.split} to push.")
    if results_path(folder).is_file() and (dataset := load_results(folder)["dataset"]) != portable(args.dataset):
        raise ValueError(
            f"{folder} has results on {dataset}, which its card states: evaluate on --dataset {dataset} to push."
        )


def main() -> None:
    """Evaluate as the command line asks for."""
    (args,) = ScriptParser(EvaluationArguments).parse()
    configure_logging()
    check_push(args)
    scenes, model, feature_extractor = load_clips(args)
    clips = scenes[args.split]
    run = {"model": args.model_name_or_path, "revision": model_revision(model)}
    claim_output_folder(args.output_dir, {**run, "dataset": args.dataset, "split": args.split})
    waveforms = cache_waveforms(clips, feature_extractor.sampling_rate, args.cache_dir)
    dataset = SceneDataset(clips, waveforms, with_teachers=False)
    unseen = unseen_devices(scenes["train"], clips)
    metrics = evaluate_classifier(model, feature_extractor, dataset, unseen, args.batch_size, args.bootstrap)
    if PartialState().is_main_process:
        results = {
            **run,
            "dataset": args.dataset,
            "split": args.split,
            "synthetic": is_synthetic(clips),
            "metrics": metrics,
            "unseen_devices": unseen,
            "complexity": complexity(model),
        }
        write_results(args.output_dir, results)
        logger.info("%s\nResults and pictures are in %s.", results_table(results), args.output_dir)
        if args.push_to_hub:
            if not results_path(args.model_name_or_path).is_file():
                shutil.copy(Path(args.output_dir) / RESULTS_FILE, args.model_name_or_path)
            push_folder(args, args.model_name_or_path)


if __name__ == "__main__":
    run_script(main)

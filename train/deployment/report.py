"""Quantization of a trained student, and its evaluation beside the float model."""

import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from dataset_script import cache_waveforms, is_synthetic
from dataset_script.files import write_json
from dataset_script.waveforms import FULL_SCALE
from model_cards.complexity import measure_folder
from model_cards.evidence import plot_title
from model_cards.plots import plot_layers
from model_cards.results import RESULTS_FILE, RunResults, provenance
from model_cards.tables import quantization_table
from train.classification.data import SceneDataset
from train.common.process import processor_name
from train.deployment.arguments import QuantizationArguments
from train.deployment.comparison import agreement, layer_sqnr
from train.deployment.quantizer import INCQuantizer
from train.evaluation.inference import compute_logits
from train.evaluation.scoring import score_logits, unseen_devices


CLIPS_PER_STEP = 32
"""Clips per step of fine-tuning; also the largest number of clips for the SQNR of the layers."""


def choose_evenly(labels: np.ndarray, clips: int, seed: int) -> np.ndarray:
    """Draw clips evenly by class.

    Args:
        labels (`np.ndarray` of shape `(rows,)`): Class of each clip.
        clips (`int`): Number of clips to draw, or all if there are fewer.
        seed (`int`): Seed of the draw.

    Returns:
        `np.ndarray`: Their rows, ascending. The numbers of clips per class differ by at most one, unless a class has
        too few.
    """
    order = np.random.default_rng(seed).permutation(len(labels))
    rank = np.empty(len(labels), dtype=int)  # number of preceding clips of the same class
    for label in np.unique(labels):
        rank[order[labels[order] == label]] = np.arange((labels == label).sum())
    return np.sort(order[np.argsort(rank[order], kind="stable")][:clips])


@torch.no_grad()
def measure_latency(models: Mapping[str, nn.Module], example: torch.Tensor, repetitions: int = 30) -> dict[str, float]:
    """Measure the time of one clip on one thread, taking turns between the models.

    Args:
        models (`Mapping[str, nn.Module]`): Models by name.
        example (`torch.Tensor` of shape `(1, 1, mel_bins, frames)`): Input of the models.
        repetitions (`int`, *optional*, defaults to 30): Number of measurements.

    Returns:
        `dict[str, float]`: Median time in ms by name.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times: dict[str, list[float]] = {name: [] for name in models}
    for _ in range(repetitions):
        for name, model in models.items():
            start = time.perf_counter()
            model(example)
            times[name].append(1000 * (time.perf_counter() - start))
    torch.set_num_threads(threads)
    return {name: float(np.median(values)) for name, values in times.items()}


def quantize_and_measure(
    args: QuantizationArguments, scenes: datasets.DatasetDict, quantizer: INCQuantizer, run: Mapping[str, Any]
) -> dict[str, Any]:
    """Quantize a student, evaluate it beside the float model, and write a model folder, results, a table and a plot.

    Args:
        args (`QuantizationArguments`): Settings and output folder.
        scenes (`datasets.DatasetDict`): The splits `train`, which provides the calibration clips, and `args.split`,
            which is evaluated.
        quantizer ([`~train.deployment.quantizer.INCQuantizer`]): Quantizer of the float model.
        run (`Mapping`): Entries of the results that identify the run.

    Returns:
        `dict`: The results, as in `results.json`.
    """
    model, extractor, output = quantizer.model, quantizer.feature_extractor, Path(args.output_dir)
    shutil.rmtree(output / "model", ignore_errors=True)  # of the same run, interrupted before its results
    waveforms = {
        split: cache_waveforms(scenes[split], extractor.sampling_rate, args.cache_dir)
        for split in {"train", args.split}
    }
    training = SceneDataset(scenes["train"], waveforms["train"], with_teachers=False)
    labels = training.columns["label"]
    chosen = choose_evenly(labels, args.calibration_clips, args.seed)
    chosen_waveforms = torch.from_numpy(waveforms["train"][chosen]) / FULL_SCALE
    calibration = {"input_values": extractor.features(chosen_waveforms), "labels": labels[chosen]}
    batches = DataLoader(
        training,
        CLIPS_PER_STEP,
        shuffle=True,
        generator=torch.Generator().manual_seed(args.seed),
        # torch's annotation leaves out datasets that return a whole batch at once, here as a dictionary.
        collate_fn=lambda clips: extractor.features(clips["waveform"] / FULL_SCALE)[:, 0],  # type: ignore[call-overload]
        drop_last=len(labels) > CLIPS_PER_STEP,
    )
    quantized = quantizer.quantize(args.quantization_config(), calibration, output / "model", training_batches=batches)
    assert quantizer.folded is not None

    logits = {
        name: compute_logits(network.eval(), extractor, waveforms[args.split], args.batch_size)
        for name, network in (("float", model), ("int8", quantized))
    }
    unseen = unseen_devices(scenes["train"], scenes[args.split])
    metrics = {
        name: score_logits(values, scenes[args.split], unseen, args.bootstrap) for name, values in logits.items()
    }
    windows = calibration["input_values"][:, 0]
    decibels = layer_sqnr(quantizer.folded, quantized.cpu(), windows[:: 1 + len(windows) // CLIPS_PER_STEP])
    complexity = measure_folder(output / "model")
    results = {
        **run,
        "split": args.split,
        "synthetic": is_synthetic(scenes[args.split]),
        "calibration_clips": len(chosen),
        "calibration": quantizer.calibration,
        **metrics,
        "unseen_devices": unseen,
        **agreement(torch.from_numpy(logits["float"]), torch.from_numpy(logits["int8"])),
        "layer_sqnr_db": decibels,
        "latency_ms": measure_latency({"float": model.cpu(), "int8": quantized}, windows[:1].unsqueeze(1)),
        "processor": processor_name(),
        "complexity": complexity.as_results() | {"scale_bytes": complexity.scale_bytes},
        "provenance": provenance(),
    }
    evaluated = RunResults(output, {**results, "metrics": metrics["int8"]})
    plot_layers(decibels, output / "layers", plot_title(output.resolve().name, evaluated))
    (output / "results.md").write_text(quantization_table(results), encoding="utf-8")
    write_json(output / RESULTS_FILE, results)
    return results

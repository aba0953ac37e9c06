"""Quantize a TF-SepNet to INT8 and report what that cost.

    python train/quantize.py --model_name_or_path outputs/demo --dataset demo --output_dir outputs/demo-int8

Calibration clips come from the training subset, evenly by class; the test split is only read for the report. Writes a
model folder `model`, `results.json`, `results.md` and a picture of the error along the network.
"""

import logging
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader

from dataset_script import cache_waveforms, is_synthetic
from dataset_script.waveforms import FULL_SCALE
from train.arguments import InferenceArguments
from train.data import SceneDataset
from train.hub import HubArguments, check_repository, push_folder
from train.plots import plot_layers
from train.predict_logits import compute_logits, load_clips, model_revision
from train.quantization import INCConfig, INCQuantizer, agreement, check_compliance, layer_sqnr
from train.recipes import ScriptParser
from train.run_eval import percent, score_logits, unseen_devices
from train.runs import (
    RESULTS_FILE,
    claim_output_folder,
    configure_logging,
    finished_results,
    provenance,
    run_script,
    write_json,
)


logger = logging.getLogger(__name__)

CLIPS_PER_STEP = 32


@dataclass
class QuantizationArguments(HubArguments, InferenceArguments):
    """`InferenceArguments`, and how to quantize."""

    calibration_clips: int = field(default=300, metadata={"help": "Clips of the training subset to calibrate on."})
    tolerable_loss: float = field(default=0.01, metadata={"help": "Largest relative loss of accuracy on them."})
    max_trials: int = field(default=100, metadata={"help": "Most configurations that the tuning tries."})
    qat_epochs: int = field(
        default=0, metadata={"help": "Epochs of quantization-aware fine-tuning on the training subset; 0 is none."}
    )
    seed: int = field(default=0, metadata={"help": "Chooses the calibration clips, and the order of training ones."})
    bootstrap: int = field(default=1000, metadata={"help": "Resamples behind the confidence intervals; 0 is none."})

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.dtype != "float32" or self.torch_compile:
            raise ValueError("The integers are found for float32 as it is: leave out dtype and torch_compile.")
        if self.calibration_clips < 1:
            raise ValueError(f"calibration_clips is {self.calibration_clips}: give some hundred.")
        self.quantization_config()

    def quantization_config(self) -> INCConfig:
        """What is asked of the quantizer; raises `ValueError` if a value is out of range."""
        return INCConfig(tolerable_loss=self.tolerable_loss, max_trials=self.max_trials, qat_epochs=self.qat_epochs)


def choose_evenly(labels: np.ndarray, clips: int, seed: int) -> np.ndarray:
    """Return row numbers, ascending, of as many clips of every class as there are, up to `clips` in all."""
    order = np.random.default_rng(seed).permutation(len(labels))
    rank = np.empty(len(labels), dtype=int)  # how many clips of the same class come before
    for label in np.unique(labels):
        rank[order[labels[order] == label]] = np.arange((labels == label).sum())
    return np.sort(order[np.argsort(rank[order], kind="stable")][:clips])


@torch.no_grad()
def measure_latency(models: Mapping[str, nn.Module], example: torch.Tensor, repetitions: int = 30) -> dict[str, float]:
    """Return the median time of each model for one clip on one thread, in ms, taken in turn."""
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


def results_table(results: Mapping[str, Any]) -> str:
    """Return the main figures as a Markdown table of float beside INT8."""
    before, after = results["float"], results["int8"]
    lines = [
        f"| {name.replace('_', ' ')} | {percent(before, name)} | {percent(after, name)} |"
        for name in ("macro_accuracy", "accuracy")
    ]
    for group, title in (("device_groups", "{} devices"), ("device_wise", "device {}"), ("class_wise", "class {}")):
        lines += [
            f"| {title.format(name)} | {percent(figures, 'accuracy')} | {percent(after[group][name], 'accuracy')} |"
            for name, figures in before[group].items()
            if figures
        ]
    latency = results["latency_ms"]
    lines.append(f"| one clip, one thread (torch) | {latency['float']:.1f} ms | {latency['int8']:.1f} ms |")
    size = results["size"]
    lines += [
        f"| parameters | | {size['parameters']:,} in {size['parameter_bytes']:,} bytes |",
        f"| scales and zero points | | {size['scale_bytes']:,} bytes |",
        f"| multiply-accumulates | | {size['macs']:,} |",
        f"| equal decisions | | {100 * results['agreement']:.1f} % |",
        f"| logits' SQNR | | {results['sqnr_db']:.1f} dB |",
    ]
    return "\n".join(["| figure | float | INT8 |", "|---|---|---|", *lines]) + "\n"


def main() -> None:
    """Quantize as the command line asks for."""
    (args,) = ScriptParser(QuantizationArguments).parse()
    configure_logging()
    check_repository(args.push_to_hub, args.hub_model_id)
    scenes, model, extractor = load_clips(args)
    quantizer = INCQuantizer(model, extractor)
    output = Path(args.output_dir)
    run = {"model": args.model_name_or_path, "revision": model_revision(model), "dataset": args.dataset}
    run["qat_epochs"] = args.qat_epochs
    claim_output_folder(output, {**run, "calibration_clips": args.calibration_clips, "seed": args.seed})
    results = finished_results(output) or report(args, scenes, quantizer, run)
    logger.info("%s\nThe model and pictures are in %s.", results_table(results), output)
    if args.push_to_hub:
        push_folder(args, output / "model")


def report(
    args: QuantizationArguments, scenes: datasets.DatasetDict, quantizer: INCQuantizer, run: Mapping[str, Any]
) -> dict[str, Any]:
    """Quantize, evaluate, and write the results, which are returned."""
    model, extractor, output = quantizer.model, quantizer.feature_extractor, Path(args.output_dir)
    shutil.rmtree(output / "model", ignore_errors=True)  # of this very run, interrupted before its report
    data = {
        split: SceneDataset(
            scenes[split], cache_waveforms(scenes[split], extractor.sampling_rate, args.cache_dir), with_teachers=False
        )
        for split in {"train", args.split}
    }

    labels = data["train"].columns["label"]
    chosen = choose_evenly(labels, args.calibration_clips, args.seed)
    waveforms = torch.from_numpy(np.stack([data["train"].waveforms[row] for row in chosen])) / FULL_SCALE
    calibration = {"input_values": extractor.features(waveforms), "labels": labels[chosen]}
    batches = DataLoader(
        data["train"],
        CLIPS_PER_STEP,
        shuffle=True,
        generator=torch.Generator().manual_seed(args.seed),
        collate_fn=lambda clips: extractor.features(clips["waveform"] / FULL_SCALE)[:, 0],
        drop_last=len(labels) > CLIPS_PER_STEP,
    )
    quantized = quantizer.quantize(args.quantization_config(), calibration, output / "model", training_batches=batches)

    test = data[args.split]
    logits = {
        name: compute_logits(network.eval(), extractor, test.waveforms, args.batch_size)
        for name, network in (("float", model), ("int8", quantized))
    }
    unseen = unseen_devices(scenes["train"], scenes[args.split])
    metrics = {name: score_logits(values, test.scenes, unseen, args.bootstrap) for name, values in logits.items()}
    windows = calibration["input_values"][:, 0]
    decibels = layer_sqnr(quantizer.folded, quantized.cpu(), windows[:: 1 + len(windows) // CLIPS_PER_STEP])
    plot_layers(decibels, output / "layers")
    results = {
        **run,
        "split": args.split,
        "synthetic": is_synthetic(scenes[args.split]),
        "calibration_clips": len(chosen),
        **metrics,
        "unseen_devices": unseen,
        **agreement(torch.from_numpy(logits["float"]), torch.from_numpy(logits["int8"])),
        "layer_sqnr_db": decibels,
        "latency_ms": measure_latency({"float": model.cpu(), "int8": quantized}, windows[:1].unsqueeze(1)),
        "size": check_compliance(output / "model")._asdict(),
        "provenance": provenance(),
    }
    (output / "results.md").write_text(results_table(results), encoding="utf-8")
    write_json(output / RESULTS_FILE, results)
    return results


if __name__ == "__main__":
    run_script(main)

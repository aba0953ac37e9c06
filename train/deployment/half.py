"""Conversion of a trained student to half precision, and its evaluation beside the float32 model."""

import copy
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate import PartialState
from transformers import PreTrainedModel

from dataset_script import cache_waveforms, is_synthetic
from dataset_script.errors import InputError
from dataset_script.files import atomic_path, write_json
from model_cards.complexity import check_limits, measure_folder, measure_model
from model_cards.results import RESULTS_FILE, provenance
from model_cards.tables import half_precision_table
from train.common.features import AnyFeatureExtractor, input_rate
from train.evaluation.inference import compute_logits
from train.evaluation.scoring import score_logits, unseen_devices


def to_half(model: PreTrainedModel, name: str) -> PreTrainedModel:
    """Return a copy of a student with float16 parameters and running statistics.

    Args:
        model (`PreTrainedModel`): The float32 model.
        name (`str`): What messages call it.

    Raises:
        InputError: If the model is not a float student, a value is too large for float16, or a limit of the challenge
            is exceeded.
    """
    complexity = measure_model(model)
    if complexity.macs is None or complexity.number_format != "float32":
        kind = "a teacher" if complexity.macs is None else f"stored as {complexity.number_format}"
        raise InputError(f"{name} is {kind}: convert a float32 student.")
    half = copy.deepcopy(model).half()
    infinite = [key for key, tensor in half.state_dict().items() if not torch.isfinite(tensor).all()]
    if infinite:
        raise InputError(f"{name} has values beyond 65,504, the largest of float16, in {infinite[0]}: train it again.")
    advice = "quantize it with train/quantize.py, or use a smaller network"
    check_limits(measure_model(half), name, as_stored=True, advice=advice)
    return half


def convert_and_measure(
    model: PreTrainedModel,
    half: PreTrainedModel,
    feature_extractor: AnyFeatureExtractor,
    scenes: datasets.DatasetDict,
    output_dir: str | Path,
    run: Mapping[str, Any],
    *,
    split: str = "test",
    cache_dir: str | None = None,
    batch_size: int = 256,
    bootstrap: int = 1000,
) -> dict[str, Any]:
    """Evaluate a float16 model beside the float32 model, and write a model folder, results and a table.

    On a CPU, the float16 model computes in float32 with its float16 values, since CPUs are several times slower in
    half precision; on other devices, it computes in float16. The entry `arithmetic` of the results says which.

    Args:
        model (`PreTrainedModel`): The float32 model.
        half (`PreTrainedModel`): The float16 model, from [`to_half`].
        feature_extractor (`FeatureExtractionMixin` or `WaveformFeatures`): Feature extractor of the model.
        scenes (`datasets.DatasetDict`): The splits `train` and `split`.
        output_dir (`str` or `Path`): Output folder.
        run (`Mapping`): Entries of the results that identify the run.
        split (`str`, *optional*, defaults to `"test"`): Split to evaluate.
        cache_dir (`str`, *optional*): Folder of resampled clips.
        batch_size (`int`, *optional*, defaults to 256): Clips per forward pass.
        bootstrap (`int`, *optional*, defaults to 1000): Number of resamples for the confidence intervals.

    Returns:
        `dict`: The results, as in `results.json`.
    """
    output, clips = Path(output_dir), scenes[split]
    shutil.rmtree(output / "model", ignore_errors=True)  # of the same run, interrupted before its results
    with atomic_path(output / "model") as part:
        half.save_pretrained(part)
        feature_extractor.save_pretrained(part)
    computed = half.float() if PartialState().device.type == "cpu" else half
    arithmetic = str(computed.dtype).removeprefix("torch.")
    waveforms = cache_waveforms(clips, input_rate(feature_extractor), cache_dir)
    logits = {
        name: compute_logits(network.eval(), feature_extractor, waveforms, batch_size)
        for name, network in (("float", model), ("float16", computed))
    }
    unseen = unseen_devices(scenes["train"], clips)
    results = {
        **run,
        "split": split,
        "synthetic": is_synthetic(clips),
        **{name: score_logits(values, clips, unseen, bootstrap) for name, values in logits.items()},
        "unseen_devices": unseen,
        "arithmetic": arithmetic,
        "agreement": float((logits["float"].argmax(1) == logits["float16"].argmax(1)).mean()),
        "largest_difference": float(np.abs(logits["float"] - logits["float16"]).max()),
        "complexity": measure_folder(output / "model").as_results(),
        "provenance": provenance(),
    }
    (output / "results.md").write_text(half_precision_table(results), encoding="utf-8")
    write_json(output / RESULTS_FILE, results)
    return results

"""Evaluations of a model, or of the mean of logits, that are written to a folder."""

from typing import Any

import numpy as np
import torch
from accelerate import PartialState

from dataset_script import cache_waveforms, is_synthetic, load_scenes, read_logits
from dataset_script.logits import join_logits
from model_cards.complexity import measure_model
from train.classification.data import check_splits
from train.common.features import input_rate
from train.common.models import load_config
from train.common.runs import hold_output_folder
from train.evaluation.arguments import EvaluationArguments, LogitsArguments
from train.evaluation.inference import load_clips, model_revision
from train.evaluation.scoring import evaluate_classifier, score_logits, unseen_devices, write_results


def evaluate_model(args: EvaluationArguments) -> dict[str, Any]:
    """Evaluate a model, and write results and plots to `args.output_dir`; all processes must call this.

    Args:
        args (`EvaluationArguments`): The model, the clips and the output folder.

    Returns:
        `dict`: The results, as in `results.json` without the provenance.

    Raises:
        FileExistsError: If the output folder contains another evaluation.
        FileNotFoundError, InputError: If the corpus or the model is invalid.
    """
    scenes, model, feature_extractor = load_clips(args)
    clips = scenes[args.split]
    run = {"model": args.model_name_or_path, "revision": model_revision(model), "dataset": args.dataset}
    run["split"] = args.split
    with hold_output_folder(args.output_dir, run):
        waveforms = cache_waveforms(clips, input_rate(feature_extractor), args.cache_dir)
        unseen = unseen_devices(scenes["train"], clips)
        metrics = evaluate_classifier(
            model, feature_extractor, clips, waveforms, unseen, args.batch_size, args.bootstrap
        )
        stored_half = load_config(args.model_name_or_path, args.trust_remote_code).dtype == torch.float16
        if stored_half and args.dtype == "float32":
            model = model.half()  # to count its bytes: it was evaluated in float32 with its float16 values
        results = {
            **run,
            "synthetic": is_synthetic(clips),
            "metrics": metrics,
            "unseen_devices": unseen,
            "complexity": measure_model(model).as_results(),
        }
        if PartialState().is_main_process:
            write_results(args.output_dir, results)
    return results


def evaluate_mean(args: LogitsArguments) -> dict[str, Any]:
    """Evaluate the mean of logits, and write results and plots to `args.output_dir`.

    Args:
        args (`LogitsArguments`): The logits, their clips and the output folder.

    Returns:
        `dict`: The results, as in `results.json` without the provenance.

    Raises:
        FileExistsError: If the output folder contains another evaluation.
        FileNotFoundError, InputError: If the corpus or the logits are invalid.
    """
    scenes = load_scenes(args.dataset, args.data_dir, cache_dir=args.cache_dir)
    check_splits(scenes, args.dataset)
    test = scenes["test"]
    labels = test.features["label"].names
    members = [read_logits(source, labels) for source in args.logits]
    columns = [
        join_logits(source, member, test["filename"][:]).to_pylist()
        for source, member in zip(args.logits, members, strict=True)
    ]
    described = [{"teacher": member.teacher, "revision": member.revision} for member in members]
    run = {"members": described, "dataset": args.dataset}
    with hold_output_folder(args.output_dir, run):
        unseen = unseen_devices(scenes["train"], test)
        metrics = score_logits(np.mean(columns, axis=0), test, unseen, args.bootstrap)
        results = {
            **run,
            "split": "test",
            "synthetic": is_synthetic(test),
            "metrics": metrics,
            "unseen_devices": unseen,
            "complexity": {},
        }
        if PartialState().is_main_process:
            write_results(args.output_dir, results)
    return results

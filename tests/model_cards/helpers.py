"""Model folders with results, without training."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

from dataset_script.splits import DEVICES, SCENES
from model_cards.complexity import measure_model
from model_cards.corpora import TAU_TEST_CLIPS, TAU_TRAINING_CLIPS
from modeling_beats import BeatsConfig, BeatsFeatureExtractor, BeatsForAudioClassification
from modeling_tfsepnet import TFSepNetConfig, TFSepNetFeatureExtractor, TFSepNetForAudioClassification
from train.common.models import label_maps
from train.evaluation.metrics import scene_metrics
from train.evaluation.scoring import write_results


TINY_BEATS = {
    "num_hidden_layers": 1,
    "hidden_size": 32,
    "embedding_size": 32,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "layerdrop": 0.0,
}


def make_results(model: torch.nn.Module, dataset: str = "demo10", seed: int = 0, **changes: Any) -> dict[str, Any]:
    """Results of a run whose logits are random, on as many clips as the demo corpus or TAU has."""
    rng = np.random.default_rng(seed)
    clips = TAU_TEST_CLIPS.values() if dataset.startswith("split") else [9] * 10
    truth = np.repeat(np.arange(10), list(clips))
    logits = rng.normal(size=(len(truth), 10)) + 1.5 * np.eye(10)[truth]
    devices = [DEVICES[index % 9] for index in range(len(truth))]
    metrics = scene_metrics(logits, truth, labels=SCENES, devices=devices, bootstrap=50)
    return {
        "recipe": "s2",
        "teachers": ["ssl_star", "ssl", "ssl_sl"],
        "arguments": {"recipe": "s2", "learning_rate": 0.004, "seed": 42 + seed, "validation_fraction": 0.0},
        "dataset": dataset,
        "split": "test",
        "synthetic": dataset.startswith("demo"),
        "selection": "last epoch",
        "training_clips": TAU_TRAINING_CLIPS.get(dataset, 20),
        "metrics": metrics,
        "unseen_devices": ["s4", "s5", "s6"],
        "complexity": measure_model(model).as_results(),
        **changes,
    }


def make_student(folder: Path, results: dict[str, Any] | None = None, **config: Any) -> Path:
    """A folder as train/distill.py leaves it."""
    config = {"base_channels": 8, "num_mel_bins": 64, **config}
    torch.manual_seed(0)
    model = TFSepNetForAudioClassification(TFSepNetConfig(**config))
    model.save_pretrained(folder)
    TFSepNetFeatureExtractor(feature_size=config["num_mel_bins"]).save_pretrained(folder)
    return finish(folder, results or make_results(model))


def make_teacher(folder: Path) -> Path:
    """A folder as train/finetune_teacher.py leaves it."""
    model = BeatsForAudioClassification(BeatsConfig(**TINY_BEATS, **label_maps(SCENES)))
    model.save_pretrained(folder)
    BeatsFeatureExtractor().save_pretrained(folder)
    arguments = {"recipe": "ssl", "model_name_or_path": "checkpoints/BEATs", "freeze_encoder": False}
    results = make_results(model, recipe="ssl", arguments=arguments)
    del results["teachers"]
    return finish(folder, results)


def make_foreign_teacher(folder: Path) -> Path:
    """A folder as train/finetune_teacher.py leaves it, of a model of transformers."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    model = ASTForAudioClassification(ASTConfig(**sizes, max_length=128, **label_maps(SCENES)))
    model.save_pretrained(folder)
    ASTFeatureExtractor(max_length=128).save_pretrained(folder)
    arguments = {"recipe": "ast", "model_name_or_path": "user/ast", "freeze_encoder": True, "layer_decay": 0.75}
    results = make_results(model, recipe="ast", arguments=arguments)
    del results["teachers"]
    return finish(folder, results)


def finish(folder: Path, results: dict[str, Any]) -> Path:
    write_results(folder, results)
    (folder / "checkpoint-2").mkdir()
    (folder / "checkpoint-2" / "model.safetensors").write_bytes(b"unfinished")
    (folder / "training_args.bin").write_bytes(b"a pickle")
    return folder


def save_results(folder: Path, model: torch.nn.Module, dataset: str, seed: int = 0, **changes: Any) -> Path:
    """A results file alone, as another run of the recipe leaves it."""
    folder.mkdir(parents=True)
    results = {**make_results(model, dataset, seed), **changes}
    provenance = {"command": "python train/distill.py", "commit": "0" * 40, "versions": {"torch": "2.13.0"}}
    (folder / "results.json").write_text(json.dumps({**results, "provenance": provenance}))
    return folder

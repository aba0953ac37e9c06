"""Small scenes and networks, for tests that train."""

import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import torch
from transformers import set_seed

from modeling_tfsepnet import TFSepNetConfig, TFSepNetFeatureExtractor, TFSepNetForAudioClassification
from train.classification.data import SceneDataset
from train.classification.trainer import DistillationTrainer
from train.classification.training_arguments import SceneTrainingArguments


REPOSITORY = Path(__file__).resolve().parents[2]
SCENES = ["airport", "bus", "metro"]
DEVICES = ["a", "b", "s4"]


def make_scenes(clips: int, teachers: int = 0, seed: int = 0) -> datasets.Dataset:
    """Rows like the builder's, without audio."""
    rng = np.random.default_rng(seed)
    features = datasets.Features(
        {
            "filename": datasets.Value("string"),
            "label": datasets.ClassLabel(names=SCENES),
            "device": datasets.ClassLabel(names=DEVICES),
            "city": datasets.ClassLabel(names=["lyon", "paris"]),
            "location": datasets.Value("int32"),
            **{
                f"teacher_logits_t{teacher}": datasets.List(datasets.Value("float32"), length=len(SCENES))
                for teacher in range(teachers)
            },
        }
    )
    columns = {
        "filename": [f"audio/{index}.wav" for index in range(clips)],
        "label": [index % 3 for index in range(clips)],
        "device": rng.integers(3, size=clips).tolist(),
        "city": [index % 2 for index in range(clips)],
        "location": [index // 4 for index in range(clips)],
        **{f"teacher_logits_t{teacher}": rng.normal(size=(clips, 3)).tolist() for teacher in range(teachers)},
    }
    return datasets.Dataset.from_dict(columns, features=features)


def make_dataset(clips: int, teachers: int = 0, samples: int = 4000, seed: int = 0) -> SceneDataset:
    """Noise with a tone whose frequency depends on the class."""
    scenes = make_scenes(clips, teachers, seed)
    noise = np.random.default_rng(seed).normal(size=(clips, samples))
    frequency = 300 + 500 * np.asarray(scenes["label"])[:, None]
    waveforms = 300 * noise + 1000 * np.sin(2 * np.pi * frequency * np.arange(samples) / 4000)
    return SceneDataset(scenes, waveforms.astype(np.int16))


def make_model(seed: int = 0, **config) -> TFSepNetForAudioClassification:
    set_seed(seed)
    labels = dict(enumerate(SCENES))
    return TFSepNetForAudioClassification(TFSepNetConfig(base_channels=8, id2label=labels, **config))


def make_extractor() -> TFSepNetFeatureExtractor:
    """64 bands in 65 frames of 4000 samples at 4 kHz: even a single clip has statistics in the last layer."""
    return TFSepNetFeatureExtractor(
        feature_size=64, sampling_rate=4000, n_fft=512, win_length=400, hop_length=62, window_length_s=1.0
    )


class ExactFeatureExtractor(TFSepNetFeatureExtractor):
    """Features in double precision that do not depend on the rest of the batch, to the last bit."""

    _auto_class = None

    def features(self, waveform: torch.Tensor) -> torch.Tensor:
        return 10 * waveform[:, : 64 * 62].double().reshape(-1, 1, 64, 62)


def make_trainer(
    output_dir, dataset: SceneDataset, eval_dataset=None, model=None, extractor=None, **arguments
) -> DistillationTrainer:
    defaults = {"batch_size": 8, "num_train_epochs": 2, "use_cpu": True, "report_to": "none", "save_strategy": "no"}
    args = SceneTrainingArguments(output_dir=str(output_dir), **(defaults | arguments))
    return DistillationTrainer(model or make_model(), args, extractor or make_extractor(), dataset, eval_dataset)


def run_two_processes(*command: str) -> None:
    """Run a Python command, such as `-m MODULE`, in two processes on the CPU, which must succeed."""
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    result = subprocess.run(
        [*launch, "--main_process_port", "0", *command],
        cwd=REPOSITORY,
        env={**os.environ, "ACCELERATE_USE_CPU": "true"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]

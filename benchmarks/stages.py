"""The timed stages, as this project runs them.

A stage is a function that takes [`~benchmarks.inputs.Inputs`], does the one-time preparation and returns the callable
to time. `STAGES` lists them in order. Another implementation is a folder with a `stages.py` that defines functions of
the same names, all or some of them.
"""

from collections.abc import Callable

import datasets
import torch

from benchmarks.inputs import RATE, Inputs, write_recordings
from dataset_script import SCENES, cache_waveforms
from modeling_beats import BeatsConfig, BeatsFeatureExtractor, BeatsForAudioClassification
from modeling_tfsepnet import TFSepNetConfig, TFSepNetFeatureExtractor, TFSepNetForAudioClassification
from train.classification.data import SceneDataset
from train.classification.losses import DistillationLoss
from train.classification.trainer import DistillationTrainer
from train.classification.training_arguments import SceneTrainingArguments
from train.common.augmentations import DeviceImpulseResponse, FreqMixStyle, SoftMixup
from train.common.precision import computes_bfloat16
from train.common.recipes import load_recipe


Call = Callable[[], object]

STAGES = {
    "log_mel": "log-mel of 64 clips",
    "impulse_responses": "impulse responses for a batch of 256 clips, 3 in 4 from device a",
    "forward": "forward pass of 64 clips",
    "forward_compiled": "forward pass of 64 clips, with torch.compile",
    "one_clip": "forward pass of 1 clip",
    "train_step": "training step of 256 clips, with augmentation and distillation",
    "train_step_bfloat16": "training step of 256 clips, in bfloat16 if the processor computes in it, as the recipes",
    "train_step_compiled": "the same with torch.compile",
    "epoch": "one epoch of recipe s1 on 1024 cached recordings, including the checkpoint",
    "beats_filter_banks": "BEATs filter banks of 16 clips",
    "beats_logits": "logits of 16 clips by BEATs (base size), from waveforms",
}


def log_mel(inputs: Inputs) -> Call:
    extractor = TFSepNetFeatureExtractor()
    waveform = inputs.waveform[:64]
    return lambda: extractor.log_mel(waveform)


def impulse_responses(inputs: Inputs) -> Call:
    augmentation = DeviceImpulseResponse(inputs.impulse_responses, sampling_rate=RATE, p=0.4)
    generator = torch.Generator().manual_seed(0)
    return lambda: augmentation(inputs.waveform, inputs.device, generator)


def forward(inputs: Inputs, batch_size: int = 64, compiled: bool = False) -> Call:
    model = TFSepNetForAudioClassification(TFSepNetConfig()).eval()
    run = torch.compile(model) if compiled else model
    log_mel = inputs.log_mel[:batch_size]

    @torch.no_grad()
    def call() -> torch.Tensor:
        return run(log_mel).logits

    return call


def forward_compiled(inputs: Inputs) -> Call:
    return forward(inputs, compiled=True)


def one_clip(inputs: Inputs) -> Call:
    return forward(inputs, batch_size=1)


def train_step(inputs: Inputs, bfloat16: bool = False, compiled: bool = False) -> Call:
    model = TFSepNetForAudioClassification(TFSepNetConfig()).train()
    run = torch.compile(model) if compiled else model
    extractor = TFSepNetFeatureExtractor()
    impulse_response = DeviceImpulseResponse(inputs.impulse_responses, sampling_rate=RATE, p=0.4)
    mixstyle, mixup, loss_function = FreqMixStyle(), SoftMixup(), DistillationLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.004)
    generator = torch.Generator().manual_seed(0)
    bfloat16 = bfloat16 and computes_bfloat16(torch.device("cpu"))

    def call() -> float:
        waveform = impulse_response(inputs.waveform, inputs.device, generator)
        features, mix = mixup(mixstyle(extractor.features(waveform), generator), generator)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=bfloat16):
            logits = run(features).logits
        loss = loss_function(logits.float(), inputs.labels, inputs.teacher_logits, mix)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return call


def train_step_bfloat16(inputs: Inputs) -> Call:
    return train_step(inputs, bfloat16=True)


def train_step_compiled(inputs: Inputs) -> Call:
    return train_step(inputs, bfloat16=True, compiled=True)


def epoch(inputs: Inputs) -> Call:
    paths = write_recordings(inputs.recordings)
    scenes = datasets.Dataset.from_dict(
        {
            "audio": [str(path) for path in paths],
            "filename": [path.name for path in paths],
            "label": inputs.labels.repeat(4).tolist(),
            "device": inputs.device.repeat(4).tolist(),
            "teacher_logits_ssl_sl": inputs.teacher_logits.repeat(4, 1).tolist(),
        }
    )
    recipe = load_recipe("s1", "split100") | {"num_train_epochs": 1}
    del recipe["teachers"]
    cache = inputs.recordings.parent / "cache"

    def call() -> object:
        waveforms = cache_waveforms(scenes, RATE, cache)
        arguments = SceneTrainingArguments(
            **recipe,
            output_dir=str(inputs.recordings.parent / "run"),
            impulse_responses=str(inputs.impulse_responses),
            use_cpu=True,
            report_to="none",
            disable_tqdm=True,
        )
        model = TFSepNetForAudioClassification(TFSepNetConfig())
        trainer = DistillationTrainer(model, arguments, TFSepNetFeatureExtractor(), SceneDataset(scenes, waveforms))
        return trainer.train()

    return call


def beats_filter_banks(inputs: Inputs) -> Call:
    extractor = BeatsFeatureExtractor()
    waveform = inputs.waveform[:16, ::2].contiguous()
    return lambda: extractor.fbank(waveform)


def beats_logits(inputs: Inputs) -> Call:
    extractor = BeatsFeatureExtractor()
    model = BeatsForAudioClassification(BeatsConfig(id2label=dict(enumerate(SCENES)))).eval()
    waveform = inputs.waveform[:16, ::2].contiguous()

    @torch.no_grad()
    def call() -> torch.Tensor:
        return model(extractor.fbank(waveform)).logits

    return call

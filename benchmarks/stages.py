"""The stages that are timed, as this project runs them.

A stage is a function that takes [`~benchmarks.inputs.Inputs`], prepares what is done once, and returns the callable to
time. `STAGES` names them in order, with their threads. Another implementation is a folder with a `stages.py` that
defines functions of the same names, as many of them as it has.
"""

from collections.abc import Callable

import torch

from benchmarks.inputs import Inputs
from modeling_beats import BeatsConfig, BeatsFeatureExtractor, BeatsForAudioClassification
from modeling_tfsepnet import TFSepNetConfig, TFSepNetFeatureExtractor, TFSepNetForAudioClassification
from train.augmentations import DeviceImpulseResponse, FreqMixStyle, SoftMixup
from train.losses import DistillationLoss


Call = Callable[[], object]

STAGES = {
    "log_mel": "log-mel of 64 clips",
    "impulse_responses": "impulse responses for a batch of 256 clips, of which 3 in 4 are of device a",
    "forward": "forward pass of 64 clips",
    "forward_compiled": "forward pass of 64 clips, with torch.compile",
    "one_clip": "forward pass of 1 clip",
    "train_step": "training step of 256 clips, with augmentation and distillation",
    "train_step_compiled": "training step of 256 clips, with torch.compile and bf16 where the processor has it",
    "beats_filter_banks": "filter banks of 16 clips for BEATs",
    "beats_logits": "teacher logits of 16 clips by BEATs of base size, from waveforms",
}


def log_mel(inputs: Inputs) -> Call:
    extractor = TFSepNetFeatureExtractor()
    waveform = inputs.waveform[:64]
    return lambda: extractor.log_mel(waveform)


def impulse_responses(inputs: Inputs) -> Call:
    augmentation = DeviceImpulseResponse(inputs.impulse_responses, sampling_rate=32_000, p=0.4)
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


def train_step(inputs: Inputs, compiled: bool = False) -> Call:
    model = TFSepNetForAudioClassification(TFSepNetConfig()).train()
    run = torch.compile(model) if compiled else model
    extractor = TFSepNetFeatureExtractor()
    impulse_response = DeviceImpulseResponse(inputs.impulse_responses, sampling_rate=32_000, p=0.4)
    mixstyle, mixup, loss_function = FreqMixStyle(), SoftMixup(), DistillationLoss()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.004)
    generator = torch.Generator().manual_seed(0)
    half_precision = compiled and torch.ops.mkldnn._is_mkldnn_bf16_supported()

    def call() -> float:
        waveform = impulse_response(inputs.waveform, inputs.device, generator)
        features, mix = mixup(mixstyle(extractor.features(waveform), generator), generator)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half_precision):
            logits = run(features).logits
        loss = loss_function(logits.float(), inputs.labels, inputs.teacher_logits, mix)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss.item()

    return call


def train_step_compiled(inputs: Inputs) -> Call:
    return train_step(inputs, compiled=True)


def beats_filter_banks(inputs: Inputs) -> Call:
    extractor = BeatsFeatureExtractor()
    waveform = inputs.waveform[:16, ::2].contiguous()
    return lambda: extractor.fbank(waveform)


def beats_logits(inputs: Inputs) -> Call:
    extractor = BeatsFeatureExtractor()
    model = BeatsForAudioClassification(BeatsConfig(num_labels=10)).eval()
    waveform = inputs.waveform[:16, ::2].contiguous()

    @torch.no_grad()
    def call() -> torch.Tensor:
        return model(extractor.fbank(waveform)).logits

    return call

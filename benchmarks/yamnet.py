"""YAMNet as a frozen teacher: the network, its front end, and a linear head on its embeddings.

Input is one second at 16 kHz. The weights are a file of safetensors in torch's layout: `stem`, `blocks.0` to
`blocks.12` and `classifier`, with batch norms that have no `weight`. Convolutions use TensorFlow's padding `SAME`:
with stride 2 on an even size one zero after, none before.

Source: Howard et al., "MobileNets", arXiv 1704.04861, on the log-mel patches of AudioSet; tensorflow/models.
"""

from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn import functional as F

from dataset_script.errors import InputError
from dataset_script.waveforms import FULL_SCALE
from train.common.waveforms import Waveforms


RATE = 16_000
FRAME, HOP, FFT, FRAMES, MELS = 400, 160, 512, 96, 64
LOWEST, HIGHEST = 125.0, 7500.0
OFFSET = 0.001
"""Added to the mel spectrum before the logarithm."""

STRIDES = (1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1)
WIDTHS = (64, 128, 128, 256, 256, *[512] * 6, 1024, 1024)
STEM_WIDTH, CLASSES = 32, 521

REGULARISATION = 1.0
"""Inverse strength `C` of the penalty of the head: the default of scikit-learn, so that nothing is chosen."""


def mel_matrix() -> Tensor:
    """Return the mel bands, of shape `(FFT // 2 + 1, MELS)`: HTK's triangles on the mel axis, not normalised."""
    lowest, highest = 1127 * np.log1p(np.array([LOWEST, HIGHEST]) / 700)
    edges = np.linspace(lowest, highest, MELS + 2)
    bins = 1127 * np.log1p(np.linspace(0, RATE / 2, FFT // 2 + 1) / 700)[:, None]
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    matrix = np.maximum(0, np.minimum(rising, falling))
    matrix[0] = 0
    return torch.from_numpy(matrix).float()


def log_mel(waveform: Tensor) -> Tensor:
    """Compute the log-mel patch of the start of each waveform.

    Args:
        waveform (`torch.Tensor` of shape `(batch, samples)`): At least 15,600 samples in [-1, 1], at 16 kHz.

    Returns:
        `torch.Tensor` of shape `(batch, 1, 96, 64)`: Frames from sample 0, without padding.
    """
    frames = waveform.unfold(1, FRAME, HOP)[:, :FRAMES] * torch.hann_window(FRAME)
    return torch.log(torch.fft.rfft(frames, FFT).abs() @ mel_matrix() + OFFSET)[:, None]


class SameConv(nn.Conv2d):
    """Bias-free 3x3 or 1x1 convolution with TensorFlow's padding `SAME`."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1, groups: int = 1):
        super().__init__(inputs, outputs, size, stride, groups=groups, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        padding: list[int] = []
        for length in reversed(x.shape[-2:]):
            stride = self.stride[0]
            total = max((-(-length // stride) - 1) * stride + self.kernel_size[0] - length, 0)
            padding += [total // 2, total - total // 2]
        return super().forward(F.pad(x, padding))


class ShiftNorm(nn.Module):
    """Batch norm in evaluation mode, with a shift but no scale, followed by a ReLU."""

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(F.batch_norm(x, self.running_mean, self.running_var, bias=self.bias, eps=1e-4))


class Block(nn.Module):
    """Depthwise and pointwise convolution, each with its norm."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.depthwise = SameConv(inputs, inputs, 3, stride, groups=inputs)
        self.depthwise_norm = ShiftNorm(inputs)
        self.pointwise = SameConv(inputs, outputs, 1)
        self.pointwise_norm = ShiftNorm(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise_norm(self.pointwise(self.depthwise_norm(self.depthwise(x))))


class YamNet(nn.Module):
    """The network; `forward` maps waveforms to embeddings of 1024 values, `classifier` these to 521 logits."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConv(1, STEM_WIDTH, 3, stride=2)
        self.stem_norm = ShiftNorm(STEM_WIDTH)
        inputs = (STEM_WIDTH, *WIDTHS[:-1])
        self.blocks = nn.Sequential(*map(Block, inputs, WIDTHS, STRIDES))
        self.classifier = nn.Linear(WIDTHS[-1], CLASSES)

    def forward(self, waveform: Tensor) -> Tensor:
        return self.blocks(self.stem_norm(self.stem(log_mel(waveform)))).mean(dim=(2, 3))


def load_yamnet(path: str | Path) -> YamNet:
    """Load the network from a file of weights.

    Raises:
        FileNotFoundError: If there is no such file.
        InputError: If it is not a file of YAMNet's weights.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} does not exist: pass YAMNet's weights as a file of safetensors.")
    network = YamNet()
    try:
        network.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        reason = str(error).splitlines()[0].rstrip(".: ")
        raise InputError(f"{path} does not have YAMNet's weights ({reason}): pass another file.") from None
    return network.eval()


@torch.inference_mode()
def embed(network: YamNet, clips: Waveforms, batch_size: int = 64) -> np.ndarray:
    """Return the embeddings of clips (int16 at 16 kHz), of shape `(len(clips), 1024)`."""
    starts = range(0, len(clips), batch_size)
    batches = [torch.from_numpy(np.array(clips[start : start + batch_size])) / FULL_SCALE for start in starts]
    return np.concatenate([network(batch).numpy() for batch in batches])


def head_logits(embeddings: np.ndarray, labels: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Fit a linear head to labelled embeddings, and return its logits for `queries`, one column per class.

    Logistic regression with an L2 penalty. The labels must contain every class.
    """
    head = LogisticRegression(C=REGULARISATION, max_iter=5000).fit(embeddings, labels)
    return head.decision_function(queries).astype(np.float32)

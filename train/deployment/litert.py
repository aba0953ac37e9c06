"""LiteRT (TensorFlow Lite) files of students, converted by LiteRT Torch."""

import contextlib
import copy
import io
from pathlib import Path

import litert_torch
import numpy as np
import torch
from ai_edge_litert.interpreter import Interpreter
from torch import Tensor, nn

from dataset_script.files import atomic_path
from model_cards.students import StudentModel


class PlainResidualNorm(nn.Module):
    """Residual norm of elementary operations, which run three times as fast as a layer norm of reshaped rows.

    Args:
        norm (`nn.Module`): The residual norm of a TF-SepNet.
    """

    scale: float
    eps: float

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        assert isinstance(norm.scale, float) and isinstance(norm.eps, float)
        self.scale, self.eps = norm.scale, norm.eps

    def forward(self, hidden_state: Tensor) -> Tensor:
        """Normalise a tensor (batch, channels, frequency, time)."""
        centred = hidden_state - hidden_state.mean(dim=(1, 3), keepdim=True)
        count = hidden_state.shape[1] * hidden_state.shape[3]
        variance = (centred * centred).sum(dim=(1, 3), keepdim=True) / (count - 1)
        return centred * (variance + self.eps).rsqrt() + hidden_state * self.scale


class _Logits(nn.Module):
    """A student that takes and returns plain tensors."""

    def __init__(self, model: StudentModel) -> None:
        super().__init__()
        self.model = copy.deepcopy(model).cpu()
        for name, module in list(self.model.named_modules()):
            if type(module).__name__ == "TFSepNetResidualNorm":  # remote code has its own copy of the class
                self.model.set_submodule(name, PlainResidualNorm(module))

    def forward(self, input_values: Tensor) -> Tensor:
        return self.model(input_values).logits


def export_litert(model: StudentModel, path: Path) -> None:
    """Write a float student as a LiteRT file for one clip, completely or not at all.

    Args:
        model (`StudentModel`): The student.
        path (`Path`): File to write. Its input has the shape `(1, 1, mel_bins, frames)`.
    """
    example = torch.zeros(1, 1, model.config.num_mel_bins, model.config.num_frames)
    with contextlib.redirect_stdout(io.StringIO()), atomic_path(path) as part:  # it prints its progress
        litert_torch.convert(_Logits(model).eval(), (example,)).export(str(part))


def run_litert(path: Path, inputs: np.ndarray) -> np.ndarray:
    """Run a LiteRT file on one input after the other.

    Args:
        path (`Path`): The file.
        inputs (`np.ndarray` of shape `(clips, 1, mel_bins, frames)`, float32): Log-mel of the clips.

    Returns:
        `np.ndarray` of shape `(clips, classes)`: The logits.
    """
    interpreter = Interpreter(str(path))
    interpreter.allocate_tensors()
    (given,), (output,) = interpreter.get_input_details(), interpreter.get_output_details()
    logits = []
    for values in inputs:
        interpreter.set_tensor(given["index"], values[None])
        interpreter.invoke()
        logits.append(interpreter.get_tensor(output["index"])[0])
    return np.stack(logits)

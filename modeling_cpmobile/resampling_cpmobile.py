"""Resampling by a windowed sinc, as in the public code of the baseline (torchaudio's default)."""

import math
from collections.abc import Iterable, Iterator
from functools import lru_cache

import torch

from .audio_cpmobile import resample, resampled_length


LOWPASS_WIDTH = 6
ROLLOFF = 0.99
# Largest kernel; the ratio of unusual rates, such as 44,101 Hz, needs one that does not fit in memory.
MAX_VALUES = 2**22


def resample_sinc(blocks: Iterable[torch.Tensor], source: float, target: int, name: str) -> Iterator[torch.Tensor]:
    """Resample the blocks of a clip from the rate `source` to `target`, in Hz, by a sinc with a Hann window.

    The result does not depend on the size of the blocks, and has as many samples as that of
    [`~modeling_cpmobile.audio_cpmobile.resample`], which takes over where the ratio of the rates consists of large
    numbers.
    """
    divisor = math.gcd(int(source), target)
    step, phases = int(source) // divisor, target // divisor
    if source == target or source != int(source) or step * phases > MAX_VALUES:
        yield from resample(blocks, source, target, name)
        return
    kernel, width = sinc_kernel(step, phases)
    size = kernel.shape[2]
    samples, num_samples, num_outputs = torch.zeros(width), 0, 0
    for block in blocks:
        num_samples += len(block)
        samples = torch.cat([samples.to(block.device), block])
        steps = (len(samples) - size) // step + 1
        if steps > 0:
            yield convolve(samples[: (steps - 1) * step + size], kernel, step)
            samples = samples[steps * step :]
            num_outputs += steps * phases
    rest = convolve(torch.nn.functional.pad(samples, (0, width + step)), kernel, step)
    yield rest[: resampled_length(num_samples, source, target) - num_outputs]


def convolve(samples: torch.Tensor, kernel: torch.Tensor, step: int) -> torch.Tensor:
    """Return the output samples of all whole steps of some input samples."""
    output = torch.nn.functional.conv1d(samples.view(1, 1, -1), kernel.to(samples.device), stride=step)
    return output[0].transpose(0, 1).flatten()


@lru_cache(maxsize=8)
def sinc_kernel(step: int, phases: int) -> tuple[torch.Tensor, int]:
    """Return the kernel, (phases, 1, taps), that maps `step` input samples to `phases` outputs, and its margin."""
    cutoff = min(step, phases) * ROLLOFF
    width = math.ceil(LOWPASS_WIDTH * step / cutoff)
    taps = torch.arange(-width, width + step, dtype=torch.float64) / step
    time = taps - torch.arange(phases).view(-1, 1, 1) / phases
    time = (time * cutoff).clamp(-LOWPASS_WIDTH, LOWPASS_WIDTH)
    window = torch.cos(time * math.pi / LOWPASS_WIDTH / 2) ** 2
    return (torch.sinc(time) * window * cutoff / step).float(), width

"""Sounds to try the page with, synthesized at its start: rain, sea waves and a chainsaw."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import soundfile


RATE = 32_000
SECONDS = 4


def write_examples(folder: str | Path) -> list[Path]:
    """Write the examples as WAV files, and return their paths."""
    rng = np.random.default_rng(0)
    paths = []
    for name, sound in (("rain", rain(rng)), ("sea waves", sea_waves(rng)), ("chainsaw", chainsaw(rng))):
        paths.append(Path(folder) / f"{name}.wav")
        soundfile.write(paths[-1], np.clip(sound, -1, 1), RATE, subtype="PCM_16")
    return paths


def noise(rng: np.random.Generator, points: Sequence[tuple[float, float]]) -> np.ndarray:
    """Return noise whose spectrum goes through points of frequency in Hz and level in dB."""
    samples = SECONDS * RATE
    frequencies = np.fft.rfftfreq(samples, 1 / RATE)
    hertz, levels = np.array(points).T
    gain = 10 ** (np.interp(np.log(np.maximum(frequencies, 1)), np.log(hertz), levels) / 20)
    return np.fft.irfft(np.fft.rfft(rng.standard_normal(samples)) * gain, samples)


def rain(rng: np.random.Generator) -> np.ndarray:
    """Return drops on top of a hiss."""
    sound = 0.05 * noise(rng, [(50, -20), (500, -8), (3_000, 0), (9_000, -2), (16_000, -8)])
    drop = np.exp(-np.arange(300) / 60)
    for start in rng.integers(0, len(sound) - 300, 400 * SECONDS):
        sound[start : start + 300] += rng.exponential(0.05) * drop * rng.standard_normal(300)
    return sound


def sea_waves(rng: np.random.Generator) -> np.ndarray:
    """Return one wave that comes and goes."""
    time = np.arange(SECONDS * RATE) / RATE
    surf = noise(rng, [(40, 0), (300, 0), (1_500, -8), (6_000, -20), (16_000, -35)])
    return 0.2 * surf * (0.35 + 0.65 * np.sin(np.pi * time / SECONDS) ** 2)


def chainsaw(rng: np.random.Generator) -> np.ndarray:
    """Return the harmonics of an engine whose speed changes."""
    time = np.arange(SECONDS * RATE) / RATE
    phase = 2 * np.pi * np.cumsum(110 * (1 + 0.1 * np.sin(2 * np.pi * 0.4 * time))) / RATE
    engine = sum(np.sin(k * phase + rng.uniform(0, 6)) / k**0.5 for k in range(1, 60))
    rough = 1 + 0.1 * rng.standard_normal(len(time))
    return 0.08 * engine * rough + 0.05 * noise(rng, [(100, -10), (1_500, 0), (6_000, 0), (16_000, -10)])

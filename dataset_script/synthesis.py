"""Sound synthesis for the demo corpus: ten scenes made of textures, events and rhythms, and recording devices.

All randomness comes from the caller's generators. Times are in seconds, frequencies in hertz, levels in decibels;
sounds are float64 arrays at `SAMPLE_RATE`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from dataset_script.clips import SAMPLE_RATE


RESPONSE_SAMPLES = 2_048
"""Length of the impulse response of a device, 46 ms."""

LEVEL_SPREAD = 4.0
"""Standard deviation of the level of each layer, so that the mixing ratio does not identify a scene."""

Layer = tuple[float, np.ndarray]
"""A level and a sound, which is scaled to that RMS level."""


@dataclass
class Place:
    """Effect of a location on its scene.

    Attributes:
        pitch (`float`): Factor of all pitches.
        pace (`float`): Factor of all rhythms.
        tilt (`float`): Spectral tilt, in dB per octave.
        decay (`float`): Reverberation time (60 dB).
        bustle (`float`): Level of events relative to textures.
    """

    pitch: float
    pace: float
    tilt: float
    decay: float
    bustle: float


def make_place(city: np.random.Generator, location: np.random.Generator) -> Place:
    """Draw a location, part of whose character is that of its city.

    Args:
        city (`np.random.Generator`): Generator of the city.
        location (`np.random.Generator`): Generator of the location.
    """
    return Place(
        pitch=2 ** (city.uniform(-0.3, 0.3) + location.uniform(-0.3, 0.3)),
        pace=2 ** (city.uniform(-0.3, 0.3) + location.uniform(-0.3, 0.3)),
        tilt=city.uniform(-1, 1) + location.uniform(-1, 1),
        decay=city.uniform(0.2, 0.7) * location.uniform(0.7, 1.4),
        bustle=city.uniform(-2, 2) + location.uniform(-4, 4),
    )


def render_scene(scene: str, place: Place, rng: np.random.Generator, seconds: int) -> np.ndarray:
    """Synthesize a segment of a scene, with a peak between -24 and -3 dB of full scale.

    Args:
        scene (`str`): Name of the scene.
        place ([`Place`]): Location of the segment.
        rng (`np.random.Generator`): Source of all random choices.
        seconds (`int`): Duration.
    """
    return _mix(RENDERERS[scene](place, rng, seconds * SAMPLE_RATE), place, rng)


def render_sounds(
    scene: str, place: Place, rng: np.random.Generator, seconds: int, presence: float
) -> tuple[np.ndarray, list[str]]:
    """Synthesize a recording as [`render_scene`] does, in which some sounds of the scene may be absent.

    Args:
        scene (`str`): Name of the scene.
        place ([`Place`]): Location of the recording.
        rng (`np.random.Generator`): Source of all random choices.
        seconds (`int`): Duration.
        presence (`float`): Probability of each sound but the first one, which is always there.

    Returns:
        `tuple`: The recording, and the names of its sounds.
    """
    layers = RENDERERS[scene](place, rng, seconds * SAMPLE_RATE)
    heard = [index for index in range(len(layers)) if index == 0 or rng.random() < presence]
    return _mix([layers[index] for index in heard], place, rng), [SOUNDS[scene][index] for index in heard]


def _mix(layers: Iterable[Layer], place: Place, rng: np.random.Generator) -> np.ndarray:
    """Add layers at random levels and give them the colour of a place."""
    sound = np.zeros(())
    for level, layer in layers:
        level += rng.normal(0, LEVEL_SPREAD)
        sound = sound + 10 ** (level / 20) * layer / np.sqrt((layer**2).mean() + 1e-12)
    sound = shape_spectrum(sound, [(50, -4.3 * place.tilt), (1_000, 0), (16_000, 4 * place.tilt)])
    return sound / np.abs(sound).max() * 10 ** (rng.uniform(-24, -3) / 20)


# Building blocks of scenes.


def shape_spectrum(sound: np.ndarray, points: Iterable[tuple[float, float]]) -> np.ndarray:
    """Apply a zero-phase filter through `(frequency, level)` points, interpolated over log frequency."""
    frequencies = np.fft.rfftfreq(len(sound), 1 / SAMPLE_RATE)
    hertz, levels = np.array(list(points)).T
    response = 10 ** (np.interp(np.log(np.maximum(frequencies, 1)), np.log(hertz), levels) / 20)
    return np.fft.irfft(np.fft.rfft(sound) * response, len(sound))


def noise(rng: np.random.Generator, samples: int, *points: tuple[float, float]) -> np.ndarray:
    """Generate stationary noise with a spectrum through `(frequency, level)` points."""
    return shape_spectrum(rng.standard_normal(samples), points)


def waver(rng: np.random.Generator, samples: int, rate: float, depth: float) -> np.ndarray:
    """Generate a gain that varies randomly by about `depth` dB, `rate` times per second."""
    knots = rng.standard_normal(int(samples / SAMPLE_RATE * rate) + 3)
    return 10 ** (depth / 20 * np.interp(np.arange(samples) * rate / SAMPLE_RATE, np.arange(len(knots)), knots))


def hum(rng: np.random.Generator, samples: int, pitch: float, slope: float, glide: float = 0.0) -> np.ndarray:
    """Generate up to 30 harmonics that fall by `slope` dB per octave and glide by `glide` octaves per second."""
    time = np.arange(samples) / SAMPLE_RATE
    phase = 2 * np.pi * np.cumsum(pitch * 2 ** (glide * time) * waver(rng, samples, 4, 0.05)) / SAMPLE_RATE
    fundamental = np.exp(1j * phase)
    harmonic, sound = np.ones(samples, complex), np.zeros(samples)
    for number in range(1, min(30, int(6_000 / pitch)) + 1):
        harmonic *= fundamental
        level = -slope * np.log2(number) + rng.normal(0, 3)
        amplitude = 10 ** (level / 20) * np.exp(1j * rng.uniform(0, 2 * np.pi))
        sound += amplitude.real * harmonic.real - amplitude.imag * harmonic.imag
    return sound


def scatter(samples: int, onsets: Iterable[float], event: Callable[[], np.ndarray]) -> np.ndarray:
    """Place a new `event` at every onset."""
    sound = np.zeros(samples)
    for onset in onsets:
        start = int(onset * SAMPLE_RATE)
        if start < samples:
            burst = event()[: samples - start]
            sound[start : start + len(burst)] += burst
    return sound


def beat(rng: np.random.Generator, samples: int, rate: float, jitter: float) -> np.ndarray:
    """Draw onsets, `rate` per second, with a random start and a `jitter` in periods."""
    count = int(samples / SAMPLE_RATE * rate) + 1
    return np.abs(np.arange(count) + rng.uniform(0, 1) + rng.normal(0, jitter, count)) / rate


def ring(rng: np.random.Generator, partials: Iterable[float], decay: float) -> np.ndarray:
    """Generate a struck sound with these partials that decays by 60 dB in `decay`."""
    time = np.arange(int(decay * SAMPLE_RATE)) / SAMPLE_RATE
    tones = sum(np.sin(2 * np.pi * partial * time) * rng.uniform(0.4, 1) for partial in partials)
    return tones * 10 ** (-3 * time / decay) * np.minimum(1, time * 500)


def click(rng: np.random.Generator, decay: float, *points: tuple[float, float]) -> np.ndarray:
    """Generate a noise burst that decays by 60 dB in `decay`."""
    samples = int(decay * SAMPLE_RATE)
    return noise(rng, samples, *points) * 10 ** (-3 * np.linspace(0, 1, samples)) * 10 ** (rng.normal(0, 3) / 20)


def chirp(rng: np.random.Generator, pitch: float, span: float, duration: float) -> np.ndarray:
    """Generate a note of birdsong that sweeps `span` octaves."""
    part = np.linspace(0, 1, int(duration * SAMPLE_RATE))
    bend = span * np.sin(np.pi * part * rng.uniform(0.5, 2) + rng.uniform(0, 2 * np.pi))
    return np.sin(2 * np.pi * np.cumsum(pitch * 2**bend) / SAMPLE_RATE) * np.sin(np.pi * part) ** 2


def babble(rng: np.random.Generator, samples: int, place: Place, voices: int) -> np.ndarray:
    """Generate simultaneous voices with pitch, vowel formants and the rhythm of syllables."""
    sound = np.zeros(samples)
    for _ in range(voices):
        voice = hum(rng, samples, rng.uniform(95, 240) * place.pitch, 4, rng.uniform(-0.3, 0.3))
        first, second = rng.uniform(300, 800), rng.uniform(1_000, 2_300)
        vowel = [(80, -20), (first, 0), (0.5 * (first + second), -12), (second, -4), (4_500, -25), (16_000, -60)]
        sound += shape_spectrum(voice, vowel) * waver(rng, samples, 5 * place.pace, 10) * rng.uniform(0.3, 1)
    return sound


def reverberate(rng: np.random.Generator, sound: np.ndarray, decay: float) -> np.ndarray:
    """Add the reverberation of a room with this reverberation time."""
    samples = int(decay * SAMPLE_RATE)
    tail = rng.standard_normal(samples) * 10 ** (-3 * np.arange(samples) / samples) * 0.03
    tail[0] = 1
    return convolve(sound, tail)


def convolve(sound: np.ndarray, response: np.ndarray) -> np.ndarray:
    """Convolve linearly; the result has the length of the sound."""
    size = 1 << (len(sound) + len(response) - 2).bit_length()
    return np.fft.irfft(np.fft.rfft(sound, size) * np.fft.rfft(response, size), size)[: len(sound)]


# The scenes: each maps a place, a generator and a number of samples to layers. Some share textures, like real scenes.


def _airport(place: Place, rng: np.random.Generator, n: int) -> list[Layer]:
    tone = 560 * place.pitch
    notes = iter([1.0, 0.8, 1.2, 1.0, 0.8, 1.2])
    onsets = rng.uniform(0, 0.5) + np.array([0, 0.35, 0.7])
    chime = scatter(n, onsets, lambda: ring(rng, [tone * (step := next(notes)), 2 * tone * step], 0.9))
    return [
        (0, noise(rng, n, (40, 6), (200, 0), (1_000, -9), (4_000, -18), (16_000, -36))),
        (-6, reverberate(rng, babble(rng, n, place, 5), 1.8 * place.decay)),
        (-8 + place.bustle, reverberate(rng, chime, 2 * place.decay)),
        (-9, noise(rng, n, (100, -20), (700, 0), (2_500, -3), (9_000, -30)) * waver(rng, n, 14, 5)),
    ]


def _bus(place: Place, rng: np.random.Generator, n: int) -> list[Layer]:
    engine = hum(rng, n, rng.uniform(26, 40) * place.pitch, 5, rng.uniform(-0.15, 0.25))
    hiss = scatter(n, [rng.uniform(0, n / SAMPLE_RATE)], lambda: click(rng, 0.7, (500, -20), (3_000, 0), (16_000, 3)))
    return [
        (0, noise(rng, n, (30, 12), (120, 4), (600, -10), (3_000, -28), (16_000, -50))),
        (1, engine),
        (-13, noise(rng, n, (100, -20), (900, 0), (3_000, -8), (12_000, -26)) * waver(rng, n, 22 * place.pace, 6)),
        (-12 + place.bustle, hiss),
        (-14, babble(rng, n, place, 2)),
    ]


def _metro(place: Place, rng: np.random.Generator, n: int) -> list[Layer]:
    period = 1 / (2.2 * place.pace)
    starts = beat(rng, n, 1 / period, 0.02)
    joints = np.concatenate([starts, starts + 0.16 * period])
    clack = scatter(n, joints, lambda: click(rng, 0.12, (60, 0), (300, 3), (1_500, -6), (8_000, -24)))
    return [
        (0, noise(rng, n, (30, 10), (150, 5), (700, -4), (2_500, -18), (16_000, -46))),
        (-2 + place.bustle, clack),
        (-9, hum(rng, n, rng.uniform(210, 330) * place.pitch, 9, rng.choice([-0.5, 0.5]) * rng.uniform(0.4, 1))),
        (-16, noise(rng, n, (500, -20), (3_500, 0), (6_000, -3), (14_000, -25)) * waver(rng, n, 6, 8)),
    ]


def _metro_station(place: Place, rng: np.random.Generator, n: int) -> list[Layer]:
    start, pitch = rng.uniform(0, 0.6), rng.uniform(1_300, 1_900) * place.pitch
    beeps = scatter(n, start + np.arange(4) * 0.17 / place.pace, lambda: ring(rng, [pitch, 2 * pitch], 0.16))
    swell_start, swell_end = rng.uniform(-14, 4, 2)
    swell = np.linspace(swell_start, swell_end, n)
    return [
        (-3, noise(rng, n, (30, 8), (150, 4), (800, -6), (3_000, -20), (16_000, -44)) * 10 ** (swell / 20)),
        (-4, reverberate(rng, babble(rng, n, place, 4), 2.4 * place.decay)),
        (-8 + place.bustle, reverberate(rng, beeps, 2 * place.decay)),
        (-10, noise(rng, n, (60, 0), (1_000, 0), (5_000, -12), (16_000, -30))),
    ]


def _park(place: Place, rng: np.random.Generator, n: int) -> list[Layer]:
    pitch = rng.uniform(2_200, 4_200) * place.pitch
    song = scatter(
        n,
        beat(rng, n, rng.uniform(3, 7) * place.pace, 0.25),
        lambda: chirp(rng, pitch * rng.uniform(0.8, 1.3), rng.uniform(0.1, 0.5), rng.uniform(0.05, 0.15)),
    )
    return [
        (0, noise(rng, n, (30, 14), (100, 6), (400, -10), (2_000, -22), (16_000, -40)) * waver(rng, n, 3, 5)),
        (-10, noise(rng, n, (200, -25), (2_000, -6), (5_000, 0), (12_000, -6)) * waver(rng, n, 5, 3)),
        (-9 + place.bustle, song),
        (-15, babble(rng, n, place, 1)),
    ]


def _public_square(place: Place, rng: np.random.Generator, n: int) -> list[Layer]:
    bell = 420 * place.pitch * rng.uniform(0.9, 1.1)
    partials = [bell * ratio for ratio in (0.5, 1, 1.2, 1.5, 2, 2.67)]
    bells = scatter(n, beat(rng, n, 1.1 * place.pace, 0.03), lambda: ring(rng, partials, 1.5))
    drops = scatter(
        n,
        beat(rng, n, 60, 0.5),
        lambda: chirp(rng, rng.uniform(900, 4_000), 0.2, 0.015) * rng.uniform(0.2, 1),
    )
    return [
        (-2, noise(rng, n, (40, 6), (250, 0), (1_000, -6), (4_000, -16), (16_000, -34))),
        (-7, drops),
        (-9 + place.bustle, bells),
        (-8, babble(rng, n, place, 3)),
    ]


def _shopping_mall(place: Place, rng: np.random.Generator, n: int) -> list[Layer]:
    root = rng.choice([196, 220, 247, 262]) * place.pitch
    scale = np.array([1, 1.25, 1.5, 2, 2.5])
    melody = scatter(
        n,
        beat(rng, n, 4 * place.pace, 0.02),
        lambda: ring(rng, root * rng.choice(scale) * np.array([1, 2, 3]), 0.5),
    )
    return [
        (-2, noise(rng, n, (40, 4), (200, 2), (1_000, -6), (4_000, -17), (16_000, -38))),
        (-5, reverberate(rng, babble(rng, n, place, 5), 1.4 * place.decay)),
        (-8 + place.bustle, reverberate(rng, melody, place.decay)),
        (-14, hum(rng, n, 100, 6)),
    ]


def _street_pedestrian(place: Place, rng: np.random.Generator, n: int) -> list[Layer]:
    steps = np.concatenate([beat(rng, n, rng.uniform(1.7, 2.3) * place.pace, 0.04) for _ in range(2)])
    walk = scatter(n, steps, lambda: click(rng, 0.09, (100, -6), (400, 0), (1_800, 2), (5_000, -8), (16_000, -20)))
    return [
        (-2, noise(rng, n, (40, 6), (200, 1), (1_000, -8), (4_000, -18), (16_000, -36))),
        (-4, babble(rng, n, place, 3)),
        (-4 + place.bustle, walk),
    ]


def _street_traffic(place: Place, rng: np.random.Generator, n: int) -> list[Layer]:
    time = np.arange(n) / SAMPLE_RATE
    passing = 1 / (0.06 + ((time - rng.uniform(-0.3, time[-1] + 0.3)) * 1.5 * place.pace) ** 2)
    horn = 390 * place.pitch * rng.uniform(0.9, 1.1)
    horns = scatter(n, [rng.uniform(0, 2)], lambda: hum(rng, int(0.4 * SAMPLE_RATE), horn, 5))
    return [
        (0, noise(rng, n, (30, 10), (150, 4), (800, -4), (2_500, -14), (16_000, -38))),
        (-1 + place.bustle / 2, noise(rng, n, (60, -4), (600, -2), (1_200, 2), (4_000, -12), (16_000, -34)) * passing),
        (-7, hum(rng, n, rng.uniform(40, 75) * place.pitch, 6, rng.uniform(-0.3, 0.1))),
        (-10, horns),
    ]


def _tram(place: Place, rng: np.random.Generator, n: int) -> list[Layer]:
    pitch = rng.uniform(1_400, 2_600) * place.pitch
    squeal = np.sin(2 * np.pi * np.cumsum(pitch * waver(rng, n, 9, 0.25)) / SAMPLE_RATE) * waver(rng, n, 3, 12)
    gong = [900 * place.pitch * ratio for ratio in (1, 1.5, 2.3, 3.1)]
    bell = scatter(n, rng.uniform(0, 0.5) + np.array([0, 0.28]), lambda: ring(rng, gong, 0.5))
    return [
        (0, noise(rng, n, (30, 10), (150, 5), (700, -7), (2_500, -22), (16_000, -46))),
        (-5, hum(rng, n, 100 * place.pitch, 4, rng.uniform(-0.2, 0.2))),
        (-11 + place.bustle, squeal),
        (-12, bell),
        (-14, babble(rng, n, place, 1)),
    ]


RENDERERS: dict[str, Callable[[Place, np.random.Generator, int], list[Layer]]] = {
    "airport": _airport,
    "bus": _bus,
    "metro": _metro,
    "metro_station": _metro_station,
    "park": _park,
    "public_square": _public_square,
    "shopping_mall": _shopping_mall,
    "street_pedestrian": _street_pedestrian,
    "street_traffic": _street_traffic,
    "tram": _tram,
}

SOUNDS = {
    "airport": ("ventilation", "speech", "chime", "rolling luggage"),
    "bus": ("rumble", "engine", "rattle", "air brake", "speech"),
    "metro": ("rumble", "rail joints", "motor", "screech"),
    "metro_station": ("rumble", "speech", "beeps", "ventilation"),
    "park": ("wind", "leaves", "birdsong", "speech"),
    "public_square": ("distant traffic", "fountain", "church bell", "speech"),
    "shopping_mall": ("ventilation", "speech", "music", "mains hum"),
    "street_pedestrian": ("distant traffic", "speech", "footsteps"),
    "street_traffic": ("distant traffic", "passing car", "engine", "horn"),
    "tram": ("rumble", "mains hum", "squeal", "tram bell", "speech"),
}
"""Names of the layers of each scene, in the order of its renderer."""


# Devices.


def make_response(rng: np.random.Generator, spread: float, low: float, high: float) -> np.ndarray:
    """Draw the impulse response of a small microphone, with minimum phase and unit energy.

    Args:
        rng (`np.random.Generator`): Source of the peaks and dips of the frequency response.
        spread (`float`): Standard deviation in dB of the levels of octaves.
        low (`float`): Lower cut-off frequency, below which the response falls by 12 dB per octave.
        high (`float`): Upper cut-off frequency, above which it falls by 18 dB per octave.
    """
    size = 2 * RESPONSE_SAMPLES
    frequencies = np.maximum(np.fft.rfftfreq(size, 1 / SAMPLE_RATE), 1)
    level = np.interp(np.log2(np.maximum(frequencies / 20, 1)), np.arange(12), rng.normal(0, spread, 12))
    level -= 10 * np.log10(1 + (low / frequencies) ** 4) + 10 * np.log10(1 + (frequencies / high) ** 6)
    # The cepstrum of a minimum-phase response is the folded (causal) cepstrum of its magnitude.
    cepstrum = np.fft.irfft(np.maximum(level, -80) * np.log(10) / 20)
    cepstrum[1 : size // 2] *= 2
    cepstrum[size // 2 + 1 :] = 0
    response = np.fft.irfft(np.exp(np.fft.rfft(cepstrum)))[:RESPONSE_SAMPLES]
    return response / np.sqrt((response**2).sum())


def apply_device(
    sound: np.ndarray, response: np.ndarray, drive: float, noise_level: float, rng: np.random.Generator
) -> np.ndarray:
    """Simulate the recording of a sound by a device, at an unchanged peak level.

    Args:
        sound (`np.ndarray` of shape `(samples,)`): The sound.
        response (`np.ndarray` of shape `(taps,)`): Impulse response of the device.
        drive (`float`): Gain before soft clipping; 0 for no clipping.
        noise_level (`float`): Level of its noise, in dB below the peak.
        rng (`np.random.Generator`): Source of the noise.
    """
    peak = np.abs(sound).max()
    sound = convolve(sound, response)
    sound = sound / np.abs(sound).max()
    if drive:
        sound = np.tanh(drive * sound) / np.tanh(drive)
    sound = sound + 10 ** (noise_level / 20) * rng.standard_normal(len(sound))
    return peak * sound / np.abs(sound).max()

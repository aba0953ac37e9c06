"""Pieces of the page as HTML: scores, spectrogram and timelines that follow the width and the colours of the page."""

import base64
import html
import io
from collections.abc import Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
from PIL import Image


TICKS = (100, 300, 1_000, 3_000, 10_000)
"""Frequencies in Hz that are marked beside the spectrogram."""

COLUMNS, ROWS = 1_200, 256
"""Largest size of the spectrogram's picture."""

STYLE = """<style>
.scenes { font-size: 0.85rem }
.scenes .row { display: flex; align-items: center; margin: 2px 0 }
.scenes .name { flex: 0 0 8rem; padding-right: 6px; overflow: hidden; text-overflow: ellipsis; white-space: nowrap }
.scenes .rest { flex: 1; min-width: 0; display: flex; height: 1rem; background: var(--background-fill-secondary) }
.scenes .rest i { background: var(--color-accent); height: 100%;
    border-right: 1px solid var(--background-fill-primary) }
.scenes .number { flex: 0 0 3.2rem; text-align: right }
.scenes .facts, .scenes .axis { color: var(--body-text-color-subdued); font-size: 0.8rem }
.scenes .sound { display: flex; height: 180px }
.scenes .hertz { position: relative; flex: 0 0 8rem }
.scenes .hertz span { position: absolute; right: 6px; transform: translateY(50%) }
.scenes .sound img { flex: 1; min-width: 0; height: 100%; margin: 0 }
.scenes .axis { display: flex; justify-content: space-between; margin: 0 0 0.5rem 8rem }
.scenes.models { display: flex; flex-wrap: wrap; gap: 1.5rem }
.scenes.models > div { flex: 1 1 15rem; min-width: 0 }
@media (max-width: 600px) {
    .scenes .name, .scenes .hertz { flex-basis: 5.5rem }
    .scenes .axis { margin-left: 5.5rem }
}
</style>"""


@dataclass
class Answer:
    """What a model says of a recording.

    Attributes:
        name (`str`): Name of the model.
        scores (`dict[str, float]`): Probability of each class for the whole recording.
        timeline (`np.ndarray` of shape `(windows, classes)`): Probabilities of every window.
        seconds (`float`): Seconds of each window.
        milliseconds (`float`): Time of the network for one window.
        bytes (`int` or `None`): Size of its file of weights.
    """

    name: str
    scores: dict[str, float]
    timeline: np.ndarray
    seconds: float
    milliseconds: float
    bytes: int | None


def score_bars(answer: Answer, number: int = 5) -> str:
    """Return the highest scores of a model as bars, with its size and speed."""
    best = sorted(answer.scores.items(), key=lambda item: -item[1])[:number]
    rows = "".join(
        f'<div class="row"><span class="name">{html.escape(name)}</span>'
        f'<span class="rest"><i style="width:{100 * score:.1f}%"></i></span>'
        f'<span class="number">{100 * score:.0f} %</span></div>'
        for name, score in best
    )
    facts = [f"{answer.milliseconds:.1f} ms for {answer.seconds:g} s"]
    if answer.bytes is not None:
        facts.append(f"{answer.bytes / 1000:.0f} kB")
    return f'<div><b>{html.escape(answer.name)}</b> <span class="facts">{", ".join(facts)}</span>{rows}</div>'


def scores_html(answers: Sequence[Answer], number: int = 5) -> str:
    """Return the scores of all models side by side, or below each other where the page is narrow."""
    return f'{STYLE}<div class="scenes models">{"".join(score_bars(answer, number) for answer in answers)}</div>'


def timeline_html(answers: Sequence[Answer], spectrogram: np.ndarray, hertz: np.ndarray, duration: float) -> str:
    """Return the spectrogram, and below it the probabilities of every window for each model.

    Args:
        answers (`Sequence[Answer]`): The models.
        spectrogram (`np.ndarray` of shape `(bands, frames)`): Log-mel energies of the whole recording.
        hertz (`np.ndarray` of shape `(bands,)`): Centre of each band.
        duration (`float`): Seconds of the recording.
    """
    bands = len(hertz)
    marks = "".join(
        f'<span style="bottom:{100 * np.searchsorted(hertz, tick) / bands:.1f}%">{tick:,} Hz</span>'
        for tick in TICKS
        if hertz[0] < tick < hertz[-1]
    )
    axis = f'<div class="axis"><span>0 s</span><span>{duration / 2:.1f} s</span><span>{duration:.1f} s</span></div>'
    picture = f'<img alt="Spectrogram" src="{spectrogram_url(spectrogram)}">'
    parts = [f'<div class="sound"><div class="hertz facts">{marks}</div>{picture}</div>', axis]
    parts += [timeline_table(answer, duration) for answer in answers]
    return f'{STYLE}<div class="scenes">{"".join(parts)}</div>'


def timeline_table(answer: Answer, duration: float) -> str:
    """Return the probabilities of every window as a row of cells for each class."""
    windows = len(answer.timeline)
    # The last window of a recording is moved back to its end; it is drawn from where the one before it ends.
    ends = [min((window + 1) * answer.seconds, duration) for window in range(windows - 1)] + [duration]
    widths = [100 * (end - start) / duration for start, end in zip([0.0, *ends], ends, strict=False)]
    rows = []
    for name, values in zip(answer.scores, answer.timeline.T, strict=True):
        cells = "".join(
            f'<i style="width:{width:.3f}%;opacity:{value:.2f}" title="{html.escape(name)}: {100 * value:.0f} %"></i>'
            for value, width in zip(values, widths, strict=True)
        )
        rows.append(
            f'<div class="row"><span class="name">{html.escape(name)}</span><span class="rest">{cells}</span></div>'
        )
    return f"<b>{html.escape(answer.name)}</b>{''.join(rows)}"


def spectrogram_url(spectrogram: np.ndarray) -> str:
    """Return a spectrogram as a `data:` URL of a PNG file without any text."""
    low, high = np.percentile(spectrogram, [1, 99.8])
    scaled = np.clip((spectrogram[::-1] - low) / max(high - low, 1e-6), 0, 1)
    colours = (255 * matplotlib.colormaps["magma"](scaled)[..., :3]).astype(np.uint8)
    size = min(COLUMNS, colours.shape[1]), min(ROWS, colours.shape[0])
    image = Image.fromarray(colours).resize(size, Image.Resampling.BOX)
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()

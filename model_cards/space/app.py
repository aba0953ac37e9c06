"""Demo of acoustic scene classifiers: the probabilities of the scenes in a recording over time.

    python model_cards/space/app.py
    python model_cards/space/app.py outputs/demo float=outputs/s2 INT8=outputs/s2-int8/model

Takes model folders or Hub ids, each optionally with a name, as arguments or, separated by spaces, in the environment
variable `SCENE_MODELS`; without any, the model of ten kinds of sound that comes with the project. On the Hub this
folder is a Space of its own, so it imports nothing of this project. It needs Gradio: pip install gradio.
"""

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from matplotlib.figure import Figure
from transformers import pipeline


SHIPPED_MODEL = Path(__file__).resolve().parents[1] / "esc10"
"""A model for ten kinds of sound, used if no other is named; it is not part of a Space."""

LONGEST = 60.0
"""Seconds of a recording that are used."""

STUDENTS = ("tfsepnet", "cpmobile")
"""Types of models whose input is windows of one second."""

MAX_FILE_SIZE = "64mb"
MAX_QUEUE = 20
"""Visitors who wait for their turn; one is served at a time."""


class SceneClassifier(Protocol):
    """The pipeline of a student, which a model folder brings with it."""

    model: Any
    feature_extractor: Any

    def open_audio(self, inputs: Any) -> tuple[Iterator[torch.Tensor], float, str]:
        """Return the blocks of a mono recording, their rate in Hz, and the recording's name."""
        ...


def load_models(sources: Sequence[str]) -> dict[str, SceneClassifier]:
    """Load models by name from sources such as `"name=folder or id"`, or a folder or id alone.

    Args:
        sources (`Sequence[str]`): The models; without any, the one that is beside this folder.

    Raises:
        ValueError: If there is no model, two have the same name, or one cannot be loaded or is not a student.
    """
    if not sources and SHIPPED_MODEL.is_dir():
        sources = [str(SHIPPED_MODEL)]
    if not sources:
        raise ValueError("There is no model: give a model folder or Hub id, such as outputs/demo.")
    models: dict[str, SceneClassifier] = {}
    for source in sources:
        name, _, model = source.partition("=")
        if not model or os.path.exists(source):  # the path of a folder may contain an equals sign
            name, model = source, source
        if name in models:
            raise ValueError(f"Two models are called {name}: give each a name of its own.")
        try:
            loaded: Any = pipeline("audio-classification", model=model, trust_remote_code=True)
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0].rstrip(".")
            raise ValueError(f"{model} cannot be loaded ({reason}): give a model folder or Hub id.") from error
        models[name] = loaded
        if (kind := loaded.model.config.model_type) not in STUDENTS:
            raise ValueError(f"{name} is a {kind} model: this page shows students, {' or '.join(STUDENTS)}.")
    return models


def classify(classifier: SceneClassifier, recording: Any) -> tuple[dict[str, float], np.ndarray, np.ndarray]:
    """Classify every second of a recording, and the whole of it.

    Args:
        classifier (`SceneClassifier`): Of a student.
        recording: What the pipeline takes, such as the path of a file; only its first `LONGEST` seconds are used.

    Returns:
        The probability of each scene for the whole recording, as the pipeline gives it; those of every second, of
        shape `(seconds, scenes)`; and the log-mel spectrogram, of shape `(bands, frames)`.

    Raises:
        OSError, ValueError: If the recording cannot be read, or is empty or not finite.
    """
    blocks, rate, _ = classifier.open_audio(recording)
    left, parts = int(LONGEST * rate), []
    for block in blocks:  # what comes after the limit is never decoded
        parts.append(block[:left])
        left -= len(parts[-1])
        if left == 0:
            break
    audio = torch.cat(parts).cpu().numpy()
    inputs = classifier.feature_extractor([audio], sampling_rate=rate, return_tensors="pt")["input_values"]
    with torch.inference_mode():
        logits = classifier.model(input_values=inputs.transpose(0, 1)).logits  # each second as a clip of its own
    overall = logits.mean(dim=0).softmax(dim=0)
    scores = dict(zip(scene_names(classifier.model.config.id2label), overall.tolist(), strict=True))
    return scores, logits.softmax(dim=1).numpy(), np.concatenate(list(inputs[0].numpy()), axis=1)


def scene_names(id2label: Mapping[int, str]) -> list[str]:
    """Return the scenes in the order of the logits, as text; names that occur twice get a number."""
    names: list[str] = []
    for index in range(len(id2label)):
        name = " ".join(str(id2label[index]).replace("_", " ").split())
        names.append(f"{name} ({index + 1})" if name in names else name)
    return names


def draw(probabilities: np.ndarray, spectrogram: np.ndarray, labels: Sequence[str]) -> Figure:
    """Plot the spectrogram, and below it the probabilities of the scenes over time.

    Args:
        probabilities (`np.ndarray` of shape `(seconds, scenes)`): As of [`classify`].
        spectrogram (`np.ndarray` of shape `(bands, frames)`): As of [`classify`].
        labels (`Sequence[str]`): Names of the scenes.
    """
    seconds = len(probabilities)
    figure = Figure(figsize=(11, 5.4), layout="constrained")
    top, bottom = figure.subplots(2, sharex=True)
    top.imshow(spectrogram, origin="lower", aspect="auto", extent=(0, seconds, 0, len(spectrogram)), cmap="magma")
    top.set_ylabel("mel band")
    image = bottom.imshow(
        probabilities.T, aspect="auto", vmin=0, vmax=1, cmap="Blues", extent=(0, seconds, len(labels), 0)
    )
    # Dollar signs would start mathematical notation.
    bottom.set_yticks(np.arange(len(labels)) + 0.5, [label.replace("$", r"\$") for label in labels])
    bottom.set_xlabel("second")
    figure.colorbar(image, ax=bottom, label="probability")
    return figure


def respond(classifier: SceneClassifier, recording: Any) -> tuple[dict[str, float] | None, Figure | None]:
    """Return the scores and the plot of a recording, or nothing while there is none."""
    if recording is None:
        return None, None
    scores, probabilities, spectrogram = classify(classifier, recording)
    return scores, draw(probabilities, spectrogram, list(scores))


def build(models: Mapping[str, SceneClassifier]) -> Any:
    """Return the page, a `gradio.Blocks`."""
    import gradio as gr

    def show(recording: str | None, name: str) -> tuple[dict[str, float] | None, Figure | None]:
        try:
            return respond(models[name], recording)
        except (OSError, ValueError, TypeError) as error:
            raise gr.Error(str(error), print_exception=False) from error
        except (MemoryError, RuntimeError) as error:
            raise gr.Error("This recording cannot be processed: try another one.", print_exception=False) from error

    with gr.Blocks(title="Acoustic scenes") as page:
        gr.Markdown("# Acoustic scenes\nWhere was this recorded? Upload a file or record a few seconds (up to 60).")
        with gr.Row():
            with gr.Column():
                recording = gr.Audio(sources=["upload", "microphone"], type="filepath", label="Recording")
                name = gr.Dropdown(list(models), value=next(iter(models)), label="Model")
            scores = gr.Label(num_top_classes=5, label="Scene")
        plot = gr.Plot(show_label=False)
        for changed in (recording, name):
            changed.change(show, [recording, name], [scores, plot])
    return page.queue(max_size=MAX_QUEUE, default_concurrency_limit=1)


def main() -> None:
    """Serve the page of the models in the command line or in `SCENE_MODELS`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="Model folder or Hub id, optionally as name=folder.")
    parser.add_argument("--port", type=int, help="Port of the page.")
    args = parser.parse_args()
    try:
        models = load_models(args.models or os.environ.get("SCENE_MODELS", "").split())
    except ValueError as error:
        raise SystemExit(f"Error: {error}") from None
    try:
        page = build(models)
    except ImportError:
        raise SystemExit("The page needs Gradio: pip install gradio") from None
    page.launch(server_port=args.port, max_file_size=MAX_FILE_SIZE)


if __name__ == "__main__":
    main()

"""Page that shows acoustic scene classifiers at work: on recordings, and live on a microphone.

    python model_cards/space/app.py
    python model_cards/space/app.py outputs/demo float=outputs/s2 INT8=outputs/s2-int8/model

Takes model folders or Hub ids, each optionally with a name, as arguments or, separated by spaces, in the environment
variable `SCENE_MODELS`; without any, the model of ten kinds of sound that comes with the project, in float and INT8.
All models answer side by side. On the Hub this folder is a Space of its own, so it needs nothing of this project but
the files beside it. It needs Gradio: pip install gradio.
"""

import argparse
import copy
import itertools
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from huggingface_hub import ModelCard
from transformers import pipeline
from transformers.utils import cached_file


try:
    from model_cards.space.examples import write_examples
    from model_cards.space.timeline import Answer, scores_html, timeline_html
except ImportError:  # on the Hub
    from examples import write_examples  # type: ignore[attr-defined, no-redef]
    from timeline import Answer, scores_html, timeline_html  # type: ignore[import-not-found, no-redef]


SHIPPED_MODEL = Path(__file__).resolve().parents[1] / "esc10"
"""A model for ten kinds of sound, used if no other is named; it is not part of a Space."""

LONGEST = 60.0
"""Seconds of a recording that are used."""

STUDENTS = ("tfsepnet", "cpmobile")
"""Types of models whose input is windows of one second."""

MAX_FILE_SIZE = "64mb"
MAX_QUEUE = 20
"""Visitors who wait for their turn; one is served at a time."""

TITLE = """# Acoustic scenes
What sound is this, or where was it recorded? {} one of {} classes, whatever {}."""

LIVE = "Allow the microphone: the last second is classified twice a second. Nothing is kept."

PLACEHOLDER = "Record, upload or choose an example."


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
        sources = [f"float={SHIPPED_MODEL}", f"INT8={SHIPPED_MODEL / 'int8'}"]
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
        loaded({"array": np.zeros(16_000), "sampling_rate": 16_000})  # the first call is slower than others
    return models


def read_start(classifier: SceneClassifier, recording: Any) -> tuple[torch.Tensor, float]:
    """Decode the first `LONGEST` seconds of a recording.

    Args:
        classifier (`SceneClassifier`): Any of the models.
        recording: What the pipeline takes, such as the path of a file.

    Returns:
        The mono waveform, of shape `(samples,)`, and its rate in Hz.

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
    return torch.cat(parts), rate


def classify(name: str, classifier: SceneClassifier, audio: torch.Tensor, rate: float) -> Answer:
    """Classify every window of a recording, and the whole of it as the pipeline does.

    Args:
        name (`str`): Name of the model.
        classifier (`SceneClassifier`): Of a TF-SepNet.
        audio (`torch.Tensor` of shape `(samples,)`): The recording.
        rate (`float`): Its sampling rate, in Hz.
    """
    extractor, model = classifier.feature_extractor, classifier.model
    inputs = extractor([audio.numpy()], sampling_rate=rate, return_tensors="pt")["input_values"]
    windows = inputs.transpose(0, 1)  # each window as a clip of its own
    start = time.perf_counter()
    with torch.inference_mode():
        logits = model(input_values=windows).logits.float()
    milliseconds = 1000 * (time.perf_counter() - start) / len(windows)
    overall = logits.mean(dim=0).softmax(dim=0)
    return Answer(
        name,
        dict(zip(scene_names(model.config.id2label), overall.tolist(), strict=True)),
        logits.softmax(dim=1).numpy(),
        extractor.window_length_s,
        milliseconds,
        weight_bytes(model.name_or_path),
    )


def weight_bytes(model: str) -> int | None:
    """Return the size of the weights of a model folder or a downloaded model; None if they are not in one file."""
    try:
        path = cached_file(model, "model.safetensors", local_files_only=True)
    except OSError:
        return None
    return os.path.getsize(path) if path else None


def spectrogram(classifier: SceneClassifier, audio: torch.Tensor, rate: float) -> tuple[np.ndarray, np.ndarray]:
    """Compute the log-mel spectrogram of a whole recording, without windows.

    Returns:
        The energies, of shape `(bands, frames)`, and the centres of the bands in Hz, of shape `(bands,)`.
    """
    extractor = classifier.feature_extractor
    # With a window as long as the recording, there are no seams between windows.
    longest = max(len(audio) / rate, extractor.window_length_s)
    whole = type(extractor)(**{**extractor.to_dict(), "window_length_s": longest})
    energies = whole([audio.numpy()], sampling_rate=rate, return_tensors="pt")["input_values"][0, 0].numpy()
    mel = np.arange(1, len(energies) + 1) / (len(energies) + 1) * np.log1p(extractor.sampling_rate / 2 / 700)
    return energies, 700 * np.expm1(mel)


def title(classifiers: Iterable[SceneClassifier]) -> str:
    """Return the title of the page, with the size of the networks; float and INT8 forms of one have the same."""
    sizes = sorted({parameter_count(classifier.model) for classifier in classifiers})
    rounded = [f"{float(f'{size:.3g}'):,.0f}" for size in sizes]
    if len(rounded) == 1:
        decision = f"A network of {rounded[0]} parameters decides once a second. It always names"
        return TITLE.format(decision, "its", "it hears")
    decision = f"Networks of {' and '.join(rounded)} parameters decide once a second. They always name"
    return TITLE.format(decision, "their", "they hear")


def parameter_count(model: Any) -> int:
    """Return the parameters of a model's network in float, which an INT8 model stores as integers."""
    config = copy.deepcopy(model.config)
    vars(config).pop("quantization_config", None)
    with torch.device("meta"):
        return type(model)(config).num_parameters()


def scene_names(id2label: Mapping[int, str]) -> list[str]:
    """Return the scenes in the order of the logits, as text; names that occur twice get a number."""
    names: list[str] = []
    for index in range(len(id2label)):
        name = " ".join(str(id2label[index]).replace("_", " ").split())
        names.append(f"{name} ({index + 1})" if name in names else name)
    return names


def note(name: str, model: str) -> str | None:
    """Return the first note or warning in the card of a model folder or Hub id; None without one."""
    is_folder = os.path.isdir(model)
    try:
        lines = iter(ModelCard.load(Path(model) / "README.md" if is_folder else model).text.splitlines())
    except (OSError, ValueError):
        return None
    if not any(line.startswith("> [!") for line in lines):
        return None
    text = " ".join(line[1:].strip() for line in itertools.takewhile(lambda line: line.startswith(">"), lines))
    return f"**{name if is_folder else f'[{name}](https://huggingface.co/{model})'}**: {text}"


def respond(models: Mapping[str, SceneClassifier], recording: Any) -> tuple[str, str]:
    """Return the scores and the timeline of a recording as HTML; nothing while there is none."""
    if recording is None:
        return PLACEHOLDER, ""
    first = next(iter(models.values()))
    audio, rate = read_start(first, recording)
    answers = [classify(name, classifier, audio, rate) for name, classifier in models.items()]
    return scores_html(answers), timeline_html(answers, *spectrogram(first, audio, rate), len(audio) / rate)


def listen(
    models: Mapping[str, SceneClassifier], heard: tuple[int, np.ndarray] | None, before: np.ndarray | None
) -> tuple[str, np.ndarray | None]:
    """Classify the last second of a microphone.

    Args:
        models (`Mapping[str, SceneClassifier]`): The models.
        heard (`tuple`): Rate in Hz and new samples, of shape `(samples,)` or `(samples, channels)`.
        before (`np.ndarray` of shape `(samples,)`, *optional*): What was heard before.

    Returns:
        The scores as HTML, and what was heard in the last second.
    """
    if heard is None:
        return PLACEHOLDER, before
    rate, samples = heard
    scale = np.iinfo(samples.dtype).max if samples.dtype.kind == "i" else 1
    mono = (samples if samples.ndim == 1 else samples.mean(axis=1)).astype(np.float32) / scale
    recent = mono if before is None else np.concatenate([before, mono])
    recent = recent[-rate:]
    answers = [classify(name, classifier, torch.from_numpy(recent), rate) for name, classifier in models.items()]
    return scores_html(answers), recent


def build(models: Mapping[str, SceneClassifier]) -> Any:
    """Return the page, a `gradio.Blocks`."""
    import gradio as gr

    def show(recording: str | None) -> tuple[str, str]:
        try:
            return respond(models, recording)
        except (OSError, ValueError, TypeError) as error:
            raise gr.Error(str(error), print_exception=False) from error
        except (MemoryError, RuntimeError) as error:
            raise gr.Error("This recording cannot be processed: try another one.", print_exception=False) from error

    def hear(heard: Any, before: np.ndarray | None) -> tuple[str, np.ndarray | None]:
        return listen(models, heard, before)

    notes = [text for name, model in models.items() if (text := note(name, model.model.name_or_path))]
    with gr.Blocks(title="Acoustic scenes") as page:
        gr.Markdown("\n\n".join([title(models.values()), *notes]))
        with gr.Tab("Recording"):
            with gr.Row():
                with gr.Column():
                    recording = gr.Audio(
                        sources=["upload", "microphone"], type="filepath", label=f"Recording, up to {LONGEST:g} s"
                    )
                    examples = write_examples(tempfile.mkdtemp(prefix="scenes-"))
                    gr.Examples([str(path) for path in examples], recording, label="Synthetic examples")
                scores = gr.HTML(PLACEHOLDER)
            timeline = gr.HTML()
            recording.change(show, recording, [scores, timeline])
        with gr.Tab("Live"):
            gr.Markdown(LIVE)
            microphone = gr.Audio(sources=["microphone"], type="numpy", streaming=True, label="Microphone")
            meter, before = gr.HTML(PLACEHOLDER), gr.State()
            microphone.stream(
                hear,
                [microphone, before],
                [meter, before],
                stream_every=0.5,
                show_progress="hidden",
                api_visibility="private",
            )
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

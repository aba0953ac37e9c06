"""Code that a card shows: how to load and run the model."""

import json
from pathlib import Path
from typing import Any

from dataset_script.markdown import code_block


PINNED = 'revision="main"'
"""What a card of a repository has until the commit that contains the model is known, see [`pin_revision`]."""

STUDENTS = ("tfsepnet", "cpmobile")
"""Types of students, whose embeddings are pooled."""

READ_AUDIO = """
audio, sampling_rate = soundfile.read("clip.wav", always_2d=True)
inputs = extractor(audio.mean(axis=1), sampling_rate=sampling_rate, return_tensors="{tensors}")
"""


def usage(model_dir: str | Path, config: dict[str, Any], model_id: str, on_the_hub: bool) -> str:
    """Return the snippets of a model, in Markdown: files, batches, embeddings, and ONNX if the folder has such a file.

    Args:
        model_dir (`str` or `Path`): The model.
        config (`dict`): Its `config.json`.
        model_id (`str`): Where readers find it.
        on_the_hub (`bool`): Whether that is a repository, whose revision is pinned.
    """
    remote = config["model_type"] in (*STUDENTS, "beats")
    repository = json.dumps(model_id, ensure_ascii=False)
    options = [PINNED] * on_the_hub + ["trust_remote_code=True"] * remote
    arguments = ", ".join([repository, *options])
    pipeline_arguments = ", ".join([f"model={repository}", *options])
    needs = "" if remote else "  # needs ffmpeg"
    snippets = [
        f"""from transformers import pipeline

classifier = pipeline("audio-classification", {pipeline_arguments})
classifier("clip.wav"){needs}
classifier(["first.wav", "second.wav"], batch_size=8)"""
    ]
    if config["model_type"] in STUDENTS:
        pooled = "model(**inputs).pooler_output[0]"
    else:
        pooled = "model(**inputs).last_hidden_state[0].mean(dim=0)"
    snippets.append(
        f"""import soundfile
import torch
from transformers import AutoFeatureExtractor, AutoModel

extractor = AutoFeatureExtractor.from_pretrained({arguments})
model = AutoModel.from_pretrained({arguments})
{READ_AUDIO.format(tensors="pt").strip()}
with torch.no_grad():
    embedding = {pooled}"""
    )
    titles = ["Files, one or many:", "Embeddings, such as for a classifier of other classes:"]
    if (onnx := Path(model_dir) / "model.onnx").is_file():
        titles.append("ONNX, of single windows of one second:")
        snippets.append(_onnx(arguments, waveform=b"waveform, float32" in onnx.read_bytes()))
    return "\n\n".join(
        f"{title}\n\n{code_block(snippet, 'python')}" for title, snippet in zip(titles, snippets, strict=True)
    )


def _onnx(arguments: str, waveform: bool) -> str:
    """Return the snippet of an ONNX file that takes waveforms or log-mel."""
    if waveform:
        return """import onnxruntime
import soundfile

session = onnxruntime.InferenceSession("model.onnx")
audio, sampling_rate = soundfile.read("clip.wav", dtype="float32", always_2d=True)  # one second, at the model's rate
logits = session.run(None, {session.get_inputs()[0].name: audio.mean(axis=1)[None]})[0]"""
    return f"""import onnxruntime
import soundfile
from transformers import AutoFeatureExtractor

extractor = AutoFeatureExtractor.from_pretrained({arguments})
session = onnxruntime.InferenceSession("model.onnx")
{READ_AUDIO.format(tensors="np").strip()}
windows = inputs["input_values"][0][:, None]  # (windows, 1, mel bands, frames)
logits = session.run(None, {{session.get_inputs()[0].name: windows}})[0].mean(axis=0)"""


def pin_revision(card: str, commit: str) -> str:
    """Return a card whose snippets load the model and its code from a commit.

    Args:
        card (`str`): Of a repository.
        commit (`str`): Hash of the commit.
    """
    return card.replace(PINNED, f'revision="{commit}"')

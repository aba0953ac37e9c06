"""Classify a recording with transformers' pipeline, and with onnxruntime from an exported file that takes waveforms.

    python examples/classify.py model_cards/space/rain.ogg

The file and the recording as WAV are left in --output_dir, for classify.mjs.
"""

import argparse
import json
from pathlib import Path

import train  # noqa: F401 - first, for it keeps messages of libraries about other hardware off the screen


# isort: split
import numpy as np
import onnxruntime
import soundfile
import soxr
from transformers import pipeline

from train.common.models import load_classifier
from train.deployment.onnx_model import export_onnx


def read_mono(path: str, sampling_rate: int) -> np.ndarray:
    """Return the samples of a recording at a sampling rate, with its channels averaged."""
    samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    return soxr.resample(samples.mean(axis=1), rate, sampling_rate, quality="HQ").astype(np.float32)


def cut(waveform: np.ndarray, length: int, hop: int) -> np.ndarray:
    """Cut a waveform into windows; the last one ends with the waveform, and a short waveform is repeated."""
    if len(waveform) < length:
        return np.resize(waveform, (1, length))
    starts = list(range(0, len(waveform) - length + 1, length))
    if len(waveform) % length >= hop:
        starts.append(len(waveform) - length)
    return np.stack([waveform[start : start + length] for start in starts])


def main() -> None:
    """Print what both say about each second of a recording, and how far they differ."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recording", help="Audio file of any length and rate.")
    parser.add_argument("--model", default="model_cards/esc10", help="Model folder or Hub id of a student.")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/classify"))
    args = parser.parse_args()

    model, extractor = load_classifier(args.model)
    classify = pipeline("audio-classification", model=model, feature_extractor=extractor)
    found = classify(args.recording, top_k=None, return_timestamps=True)
    for chunk in found["chunks"]:
        start, end = chunk["timestamp"]
        best = chunk["labels"][0]
        print(f"pipeline     {start:6.2f} to {end:6.2f} s  {best['label']} {best['score']:.4f}")

    args.output_dir.mkdir(parents=True, exist_ok=True)
    path = args.output_dir / "model.onnx"
    export_onnx(model, path, feature_extractor=extractor, waveform=True)

    # From here on, nothing needs torch, transformers or this project.
    session = onnxruntime.InferenceSession(str(path))
    about = session.get_modelmeta().custom_metadata_map
    labels, front_end, rate = json.loads(about["labels"]), json.loads(about["front_end"]), int(about["sampling_rate"])
    waveform = read_mono(args.recording, rate)
    windows = cut(waveform, session.get_inputs()[0].shape[1], front_end["hop_length"])
    (logits,) = session.run(None, {"waveform": windows})
    mean = np.exp(logits.mean(axis=0) - logits.mean(axis=0).max())
    scores = dict(zip(labels, mean / mean.sum(), strict=True))
    best = max(scores, key=scores.__getitem__)
    print(f"onnxruntime  {len(windows)} windows  {best} {scores[best]:.4f}")
    difference = max(abs(entry["score"] - scores[entry["label"]]) for entry in found["labels"])
    print(f"largest difference of a score: {difference:.1e}")
    soundfile.write(args.output_dir / "recording.wav", waveform, rate, subtype="FLOAT")


if __name__ == "__main__":
    main()

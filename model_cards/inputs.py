"""What a model takes: the contract between audio and network, from the files of its folder."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dataset_script.markdown import code, markdown_table
from model_cards.results import read_json


def input_table(model_dir: str | Path) -> str:
    """Return the input contract of a model folder as a Markdown table, empty if it has no feature extractor.

    Args:
        model_dir (`str` or `Path`): A TF-SepNet, a BEATs, or a model of transformers.
    """
    path = Path(model_dir) / "preprocessor_config.json"
    if not path.is_file():
        return ""
    settings = read_json(path)
    describe = {
        "TFSepNetFeatureExtractor": _log_mel,
        "CPMobileFeatureExtractor": _log_mel,
        "BeatsFeatureExtractor": _filter_banks,
    }
    name = str(settings.get("feature_extractor_type", ""))
    rows = [["sampling rate", f"{settings['sampling_rate']:,} Hz; other audio is resampled"]]
    if name in describe:
        rows.append(["audio", "mono, floating point, full scale [-1, 1]"])
        rows += describe[name](settings)
    else:
        rows.append(["feature extractor", f"{code(name)} of transformers"])
        names = {"num_mel_bins": "mel bands", "max_length": "frames", "feature_size": "values per frame"}
        rows += [[title, f"{settings[key]:,}"] for key, title in names.items() if isinstance(settings.get(key), int)]
    return markdown_table(["input", ""], rows)


def _log_mel(settings: Mapping[str, Any]) -> list[list[str]]:
    """Return the contract of the feature extractor of a student; that of CP-Mobile has no pre-emphasis."""
    rate, hop, bands = settings["sampling_rate"], settings["hop_length"], settings["feature_size"]
    samples = round(rate * settings["window_length_s"])
    emphasised = "preemphasis" in settings
    frames = 1 + (samples - emphasised) // hop  # pre-emphasis drops a sample
    return [
        ["window", f"{settings['window_length_s']:g} s, {samples:,} samples; shorter audio is repeated"],
        *([["pre-emphasis", f"{settings['preemphasis']:g}"]] if emphasised else []),
        [
            "Fourier transform",
            f"{settings['n_fft']:,} samples, Hann window of {settings['win_length']:,} "
            f"({1000 * settings['win_length'] / rate:g} ms), centred, reflected",
        ],
        ["hop", f"{hop:,} samples ({1000 * hop / rate:g} ms)"],
        ["mel bands", f"{bands:,}, of the power spectrum"],
        ["frames of a window", f"{frames:,}"],
        ["log-mel", f"ln(mel + {settings['mel_floor']:g})"],
        *([["normalisation", f"(log-mel {-settings['mean']:+g}) / {settings['std']:g}"]] if emphasised else []),
        ["`input_values`", f"float32, (clips, windows, {bands}, {frames})"],
    ]


def _filter_banks(settings: Mapping[str, Any]) -> list[list[str]]:
    """Return the contract of [`~modeling_beats.BeatsFeatureExtractor`]."""
    rate, bands = settings["sampling_rate"], settings["feature_size"]
    frame, hop = rate * 25 // 1000, rate // 100
    return [
        ["window", f"any length from {settings['patch_size']} frames"],
        ["pre-emphasis", "0.97, after the mean of the frame is removed"],
        ["Fourier transform", f"512 samples, Povey window of {frame:,} (25 ms), not centred"],
        ["hop", f"{hop:,} samples (10 ms)"],
        ["mel bands", f"{bands:,} (Kaldi), of the power spectrum of samples in the range of 16 bits"],
        ["frames of one second", f"{1 + (rate - frame) // hop:,}"],
        ["log-mel", "ln(max(mel, 1.19e-7))"],
        ["normalisation", f"(log-mel {-settings['mean']:+g}) / (2 × {settings['std']:g})"],
        ["`input_values`", f"float32, (clips, frames, {bands})"],
    ]

"""Time TF-SepNet on one clip and on a batch, float and INT8, in torch and onnxruntime.

    python -m benchmarks.latency [--model_name_or_path FOLDER] [--threads 1 2] [--repeats 30] [--compiled]

The forms take turns. They compute logits from log-mel, except `waveform`, whose file includes the front end. The INT8
forms are calibrated on noise: they have the speed and size of any INT8 model of this network, but their predictions
are meaningless. Their activations have 16 bits unless the name says otherwise.
"""

import argparse
import logging
import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import onnxruntime
import torch
from safetensors.torch import save_file
from transformers.modeling_outputs import SequenceClassifierOutput

from benchmarks.machine import describe, describe_run
from benchmarks.timing import time_interleaved
from dataset_script.files import write_json
from model_cards.students import StudentModel
from modeling_tfsepnet import TFSepNetConfig, TFSepNetFeatureExtractor, TFSepNetForAudioClassification
from train.deployment.onnx_model import export_onnx
from train.deployment.quantizer import assemble, rounded_integers
from train.deployment.rounding import fold, round_weights


BATCH_SIZE = 64
COLUMNS = "{:<30} {:>7} {:>10} {:>14} {:>10}"

log = logging.getLogger("benchmarks").info


def make_int8(model: TFSepNetForAudioClassification, windows: torch.Tensor, activation_bits: int) -> StudentModel:
    """Return an INT8 copy of `model`, calibrated on `windows` without tuning."""
    rounded = round_weights(fold(model), windows, activation_bits)
    return assemble(rounded, rounded_integers(rounded))


def make_forms(
    model: TFSepNetForAudioClassification, folder: Path, threads: int, compiled: bool
) -> tuple[dict[str, Callable[[int], object]], dict[str, int]]:
    """Return, for each form, a function that runs a number of clips, and the size of its file in bytes."""
    generator = torch.Generator().manual_seed(0)
    waveform = 0.1 * torch.randn(BATCH_SIZE, 32_000, generator=generator)
    extractor = TFSepNetFeatureExtractor()
    windows = extractor.features(waveform)
    int8, narrow = (make_int8(model, windows[:8, 0], bits) for bits in (16, 8))
    forms: dict[str, Callable[[int], object]] = {}
    sizes: dict[str, int] = {}
    for name, network in (("torch float", model), ("torch INT8", int8), ("torch INT8, 8 bits", narrow)):
        path = folder / f"{name}.safetensors"
        save_file({key: value.contiguous() for key, value in network.state_dict().items()}, path)
        sizes[name] = path.stat().st_size
        forms[name] = run_torch(network, windows)
        if compiled:
            forms[f"{name}, compiled"] = run_torch(torch.compile(network), windows)
    exports: list[tuple[str, StudentModel, Literal["qdq", "weights"], dict[str, str]]] = [
        ("onnxruntime float", model, "qdq", {}),
        ("onnxruntime INT8 weights", int8, "weights", {}),
        ("onnxruntime INT8 QDQ", int8, "qdq", {}),
        ("onnxruntime INT8 QDQ, 8 bits", narrow, "qdq", {}),
        ("onnxruntime INT8 QDQ, as float", int8, "qdq", {"session.disable_quant_qdq": "1"}),
        ("onnxruntime INT8 waveform", int8, "weights", {}),
    ]
    for name, network, form, options in exports:
        path = folder / f"{name}.onnx"
        from_waveform = name.endswith("waveform")
        export_onnx(network, path, form, extractor, from_waveform)
        sizes[name] = path.stat().st_size
        forms[name] = run_onnx(path, (waveform if from_waveform else windows).numpy(), threads, options)
    return forms, sizes


def run_torch(
    network: Callable[[torch.Tensor], SequenceClassifierOutput], windows: torch.Tensor
) -> Callable[[int], object]:
    @torch.no_grad()
    def call(clips: int) -> object:
        return network(windows[:clips]).logits

    return call


def run_onnx(path: Path, values: np.ndarray, threads: int, options: dict[str, str]) -> Callable[[int], object]:
    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    for name, value in options.items():
        settings.add_session_config_entry(name, value)
    session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    return lambda clips: session.run(None, {given.name: values[:clips]})


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", help="Float TF-SepNet; random weights by default.")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="Thread counts to time with.")
    parser.add_argument(
        "--repeats", type=int, default=30, help="Timing rounds for one clip; a tenth of them for batches."
    )
    parser.add_argument(
        "--compiled", action="store_true", help="Also time torch.compile, which takes minutes to start."
    )
    parser.add_argument("--out", type=Path, default=Path("build/latency.json"), help="JSON file to write.")
    args = parser.parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    if args.model_name_or_path:
        model = TFSepNetForAudioClassification.from_pretrained(args.model_name_or_path).eval()
    else:
        model = TFSepNetForAudioClassification(TFSepNetConfig()).eval()
    if getattr(model.config, "quantization_config", None) is not None:
        parser.error(f"{args.model_name_or_path} is already quantized: pass the float model.")
    results = describe_run()
    log(describe(results["machine"]))
    log(COLUMNS.format("form", "threads", "1 clip ms", f"clips/s of {BATCH_SIZE}", "bytes"))
    rows = []
    for threads in args.threads:
        torch.set_num_threads(threads)
        with tempfile.TemporaryDirectory() as folder:
            forms, sizes = make_forms(model, Path(folder), threads, args.compiled)
            one, many = (
                time_interleaved({name: partial(call, clips) for name, call in forms.items()}, repeats)
                for clips, repeats in ((1, args.repeats), (BATCH_SIZE, max(1, args.repeats // 10)))
            )
        for name in forms:
            row = {
                "form": name,
                "threads": threads,
                "one_clip_ms": 1e3 * statistics.median(one[name]),
                "clips_per_second": BATCH_SIZE / statistics.median(many[name]),
                "bytes": sizes.get(name),
                "one_clip_fastest_ms": 1e3 * min(one[name]),
                "seconds": {"1 clip": one[name], f"{BATCH_SIZE} clips": many[name]},
            }
            rows.append(row)
            values = (f"{row['one_clip_ms']:.2f}", f"{row['clips_per_second']:.0f}", row["bytes"] or "-")
            log(COLUMNS.format(name, threads, *values))
    write_json(args.out, results | {"rows": rows})
    log("Results written to %s.", args.out)


if __name__ == "__main__":
    main()

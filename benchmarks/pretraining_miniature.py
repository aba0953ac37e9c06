"""Measure the benefit of pre-training on a small scale, against the same network from random weights.

    python -m benchmarks.pretraining_miniature --audio ESC10_FOLDER --work_dir build/miniature [--seeds 0 1 2]
    python -m benchmarks.pretraining_miniature --audio demo --work_dir build/miniature_demo

For each seed the encoder is pre-trained on the training split without labels (recipe `demo_pretrain_iter1`; with
`--iterations 2` also `demo_pretrain_tokenizer` and `demo_pretrain_iter2`). Both networks are then evaluated on the
test split: by logistic regression on the mean features of the frozen encoder, and by fine-tuning the whole network.
ESC-10 has one folder per class with files named `fold-source-take`; its last fold is the test split. The demo corpus
has its own splits.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from transformers import TrainerState

from dataset_script import cache_waveforms, load_scenes
from dataset_script.waveforms import FULL_SCALE
from modeling_beats import BeatsConfig, BeatsFeatureExtractor, BeatsForAudioClassification
from train.common.checkpoints import last_complete_checkpoint
from train.common.process import keep_freed_memory
from train.common.sources import read_crop
from train.pretrain_teacher import main as pretrain_teacher


RATE = 16_000
EPOCHS, BATCH_SIZE, LEARNING_RATE = 40, 32, 5e-4
METRICS = ("loss", "masked_accuracy", "largest_share", "codebook_usage", "perplexity", "similarity")

Splits = dict[str, tuple[np.ndarray, np.ndarray]]
"""Clips (int16 waveforms) and labels of the splits `train` and `test`."""


def load_esc10(folder: Path, work_dir: Path) -> tuple[Splits, str]:
    """Return the splits, and a folder that contains only the recordings of the training split, without classes."""
    files = sorted(folder.glob("*/*.ogg"))
    if not files:
        raise FileNotFoundError(f"{folder} contains no class folders with Ogg files: pass the audio folder of ESC-10.")
    classes = sorted({path.parent.name for path in files})
    folds = [int(path.name.split("-")[0]) for path in files]
    unlabelled = work_dir / "unlabelled"
    unlabelled.mkdir(parents=True, exist_ok=True)
    clips: dict[str, list[np.ndarray]] = {"train": [], "test": []}
    labels: dict[str, list[int]] = {"train": [], "test": []}
    for path, fold in zip(files, folds, strict=True):
        split = "test" if fold == max(folds) else "train"
        clip = read_crop({"path": str(path)}, 5.0, RATE, position=0.0)
        clips[split].append(np.pad(clip, (0, 5 * RATE - len(clip))))
        labels[split].append(classes.index(path.parent.name))
        link = unlabelled / path.name
        if split == "train" and not link.exists():
            link.symlink_to(path.resolve())
    return {split: (np.stack(clips[split]), np.array(labels[split])) for split in clips}, str(unlabelled)


def load_demo() -> tuple[Splits, str]:
    scenes = load_scenes("demo")
    return {split: (cache_waveforms(clips, RATE), np.array(clips["label"])) for split, clips in scenes.items()}, "demo"


def pretrain(audio: str, folder: Path, seed: int, iterations: int, steps: int | None) -> dict[str, dict]:
    """Run the stages and return the duration and the first and last logged metrics of each recipe."""
    stages: dict[str, list[str]] = {"demo_pretrain_iter1": []}
    if iterations == 2:
        first, tokenizer = folder / "demo_pretrain_iter1", folder / "demo_pretrain_tokenizer"
        stages["demo_pretrain_tokenizer"] = ["--teacher_name_or_path", str(first), "--model_name_or_path", str(first)]
        stages["demo_pretrain_iter2"] = ["--tokenizer_name_or_path", str(tokenizer)]
    report = {}
    for recipe, options in stages.items():
        start = time.perf_counter()
        common = ["--recipe", recipe, "--dataset", audio, "--seed", str(seed), "--output_dir", str(folder / recipe)]
        common += ["--use_cpu", "True", "--disable_tqdm", "True", "--report_to", "none", "--log_level", "warning"]
        if steps is not None:
            common += ["--max_steps", str(steps), "--warmup_steps", str(steps // 10)]
            common += ["--logging_steps", str(max(1, steps // 8))]
        pretrain_teacher([*common, *options])
        checkpoint = last_complete_checkpoint(folder / recipe)
        assert checkpoint is not None  # the stage has just finished
        history = TrainerState.load_from_json(str(Path(checkpoint) / "trainer_state.json")).log_history
        entries = [entry for entry in history if "loss" in entry]
        report[recipe] = {
            "minutes": (time.perf_counter() - start) / 60,
            "first": {name: entries[0][name] for name in METRICS if name in entries[0]},
            "last": {name: entries[-1][name] for name in METRICS if name in entries[-1]},
        }
    return report


def new_classifier(folder: Path, from_random: bool, num_labels: int, seed: int) -> BeatsForAudioClassification:
    """Return a classifier with the configuration in `folder`, and with its encoder or random weights."""
    torch.manual_seed(seed)
    if from_random:
        return BeatsForAudioClassification(BeatsConfig.from_pretrained(folder, num_labels=num_labels)).eval()
    return BeatsForAudioClassification.from_pretrained(folder, num_labels=num_labels).eval()


def probe(model: BeatsForAudioClassification, splits: Splits) -> float:
    """Return the test accuracy of a logistic regression on the mean features of the frozen encoder."""
    extractor = BeatsFeatureExtractor()
    features = {}
    for split, (clips, _) in splits.items():
        with torch.no_grad():
            batches = [torch.from_numpy(np.array(clips[i : i + 32])) / FULL_SCALE for i in range(0, len(clips), 32)]
            features[split] = torch.cat(
                [model.beats(extractor.fbank(batch)).last_hidden_state.mean(dim=1) for batch in batches]
            ).numpy()
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    classifier.fit(features["train"], splits["train"][1])
    return classifier.score(features["test"], splits["test"][1])


def finetune(model: BeatsForAudioClassification, splits: Splits, seed: int) -> float:
    """Fine-tune the whole network on random one-second crops, and return its accuracy on whole test clips."""
    extractor = BeatsFeatureExtractor()
    generator = np.random.default_rng(seed)
    torch.manual_seed(seed)
    clips, labels = splits["train"]
    steps = EPOCHS * -(-len(clips) // BATCH_SIZE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    model.train()
    for _ in range(EPOCHS):
        order = generator.permutation(len(clips))
        for rows in np.split(order, range(BATCH_SIZE, len(order), BATCH_SIZE)):
            starts = generator.integers(0, clips.shape[1] - RATE + 1, len(rows))
            batch = np.stack([clips[row, start : start + RATE] for row, start in zip(rows, starts, strict=True)])
            features = extractor.fbank(torch.from_numpy(batch) / FULL_SCALE)
            model(features, labels=torch.from_numpy(labels[rows])).loss.backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    model.eval()
    clips, labels = splits["test"]
    correct = 0
    for start in range(0, len(clips), 32):
        waveform = torch.from_numpy(np.array(clips[start : start + 32])) / FULL_SCALE
        with torch.no_grad():
            logits = model(extractor.fbank(waveform)).logits
        correct += (logits.argmax(dim=1).numpy() == labels[start : start + 32]).sum().item()
    return correct / len(clips)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio", required=True, help="Audio folder of ESC-10, or demo.")
    parser.add_argument("--work_dir", type=Path, required=True, help="Folder for the models and results.json.")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="Seeds of the comparisons.")
    parser.add_argument("--iterations", type=int, choices=[1, 2], default=1, help="Iterations of pre-training.")
    parser.add_argument("--steps", type=int, help="Overrides max_steps of the recipes.")
    parser.add_argument("--frozen_only", action="store_true", help="Skip fine-tuning.")
    args = parser.parse_args()
    keep_freed_memory()

    splits, audio = load_demo() if args.audio == "demo" else load_esc10(Path(args.audio), args.work_dir)
    num_labels = int(max(splits["train"][1])) + 1
    runs: list[dict] = []
    stages: list[dict] = []
    for seed in args.seeds:
        folder = args.work_dir / f"seed{seed}"
        stages.append(pretrain(audio, folder, seed, args.iterations, args.steps))
        print(json.dumps({"seed": seed, **stages[-1]}), flush=True)
        for start in ("random", *(recipe for recipe in stages[-1] if "tokenizer" not in recipe)):
            from_random = start == "random"
            network = (folder / ("demo_pretrain_iter1" if from_random else start), from_random, num_labels, seed)
            run = {"seed": seed, "start": start, "frozen": probe(new_classifier(*network), splits)}
            if not args.frozen_only:
                run["unfrozen"] = finetune(new_classifier(*network), splits, seed)
            runs.append(run)
            print(json.dumps(run), flush=True)
    summary = {
        start: {
            kind: {"mean": statistics.mean(values), "stdev": statistics.stdev(values) if len(values) > 1 else 0.0}
            for kind in ("frozen", "unfrozen")
            if (values := [run[kind] for run in runs if run["start"] == start and kind in run])
        }
        for start in dict.fromkeys(run["start"] for run in runs)
    }
    print(json.dumps(summary, indent=2))
    clips = {split: len(labels) for split, (_, labels) in splits.items()}
    results = {"clips": clips, "runs": runs, "stages": stages, "summary": summary}
    (args.work_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

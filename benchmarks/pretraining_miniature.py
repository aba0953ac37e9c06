"""Shows that pre-training works, in small: the same network from pre-trained and from random weights.

    python -m benchmarks.pretraining_miniature --audio ESC10_FOLDER --work_dir build/miniature [--seeds 0 1 2]
    python -m benchmarks.pretraining_miniature --audio demo --work_dir build/miniature_demo

For each seed the encoder is pre-trained without labels on the training part only (recipe `demo_pretrain_iter1`, then,
with `--iterations 2`, `demo_pretrain_tokenizer` and `demo_pretrain_iter2`). Then both networks are judged on the test
part: a logistic regression on the frozen encoder's mean features, and fine-tuning of the whole network. ESC-10 is a
folder per class with files `fold-source-take`; the last fold is the test part. The demo corpus has its own split.
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
from modeling_beats import BeatsConfig, BeatsFeatureExtractor, BeatsForAudioClassification
from train.common.checkpoints import last_complete_checkpoint
from train.common.process import keep_freed_memory
from train.pretrain_teacher import main as pretrain_teacher
from train.pretraining.crops import read_segment


RATE = 16_000
EPOCHS, BATCH_SIZE, LEARNING_RATE = 40, 32, 5e-4
FIGURES = ("loss", "masked_accuracy", "largest_share", "codebook_usage", "perplexity", "similarity")


def load_esc10(folder: Path, work_dir: Path) -> tuple[dict, str]:
    """Clips and labels of both parts, and a folder with the training part alone, without classes."""
    files = sorted(folder.glob("*/*.ogg"))
    if not files:
        raise FileNotFoundError(f"{folder} holds no folders of classes with Ogg files.")
    classes = sorted({path.parent.name for path in files})
    folds = [int(path.name.split("-")[0]) for path in files]
    unlabelled = work_dir / "unlabelled"
    unlabelled.mkdir(parents=True, exist_ok=True)
    parts: dict[str, list] = {"train": [], "test": []}
    for path, fold in zip(files, folds, strict=True):
        part = "test" if fold == max(folds) else "train"
        clip = read_segment({"path": str(path)}, 5.0, RATE, 0.0)
        parts[part].append((np.pad(clip, (0, 5 * RATE - len(clip))), classes.index(path.parent.name)))
        link = unlabelled / path.name
        if part == "train" and not link.exists():
            link.symlink_to(path.resolve())
    return {name: tuple(map(np.stack, zip(*rows, strict=True))) for name, rows in parts.items()}, str(unlabelled)


def load_demo() -> tuple[dict, str]:
    scenes = load_scenes("demo")
    return {name: (cache_waveforms(part, RATE), np.array(part["label"])) for name, part in scenes.items()}, "demo"


def pretrain(audio: str, folder: Path, seed: int, iterations: int, steps: int | None) -> dict:
    """Runs the stages; returns the figures that each logged, and its duration."""
    stages = {"demo_pretrain_iter1": []}
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
        checkpoint = Path(last_complete_checkpoint(folder / recipe))
        history = TrainerState.load_from_json(str(checkpoint / "trainer_state.json")).log_history
        entries = [entry for entry in history if "loss" in entry]
        report[recipe] = {
            "minutes": (time.perf_counter() - start) / 60,
            "first": {name: entries[0][name] for name in FIGURES if name in entries[0]},
            "last": {name: entries[-1][name] for name in FIGURES if name in entries[-1]},
        }
    return report


def new_classifier(folder: Path, from_random: bool, num_labels: int, seed: int) -> BeatsForAudioClassification:
    """A classifier on the network in `folder`, with its weights or with random ones."""
    torch.manual_seed(seed)
    if from_random:
        return BeatsForAudioClassification(BeatsConfig.from_pretrained(folder, num_labels=num_labels)).eval()
    return BeatsForAudioClassification.from_pretrained(folder, num_labels=num_labels).eval()


def probe(model: BeatsForAudioClassification, parts: dict) -> float:
    """Accuracy of a logistic regression on mean features of the frozen encoder."""
    extractor = BeatsFeatureExtractor()
    features = {}
    for name, (clips, _) in parts.items():
        with torch.no_grad():
            batches = [torch.from_numpy(np.array(clips[i : i + 32])) / 2**15 for i in range(0, len(clips), 32)]
            features[name] = torch.cat(
                [model.beats(extractor.fbank(batch)).last_hidden_state.mean(dim=1) for batch in batches]
            ).numpy()
    classifier = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    classifier.fit(features["train"], parts["train"][1])
    return classifier.score(features["test"], parts["test"][1])


def finetune(model: BeatsForAudioClassification, parts: dict, seed: int) -> float:
    """Accuracy after training of the whole network on random seconds of the clips; whole clips in the test."""
    extractor = BeatsFeatureExtractor()
    generator = np.random.default_rng(seed)
    torch.manual_seed(seed)
    clips, labels = parts["train"]
    steps = EPOCHS * -(-len(clips) // BATCH_SIZE)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, weight_decay=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    model.train()
    for _ in range(EPOCHS):
        order = generator.permutation(len(clips))
        for rows in np.split(order, range(BATCH_SIZE, len(order), BATCH_SIZE)):
            starts = generator.integers(0, clips.shape[1] - RATE + 1, len(rows))
            batch = np.stack([clips[row, start : start + RATE] for row, start in zip(rows, starts, strict=True)])
            features = extractor.fbank(torch.from_numpy(batch) / 2**15)
            model(features, labels=torch.from_numpy(labels[rows])).loss.backward()
            optimizer.step()
            scheduler.step()
            optimizer.zero_grad()
    model.eval()
    clips, labels = parts["test"]
    correct = 0
    for start in range(0, len(clips), 32):
        with torch.no_grad():
            logits = model(extractor.fbank(torch.from_numpy(np.array(clips[start : start + 32])) / 2**15)).logits
        correct += (logits.argmax(dim=1).numpy() == labels[start : start + 32]).sum().item()
    return correct / len(clips)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--audio", required=True, help="folder of ESC-10, or demo")
    parser.add_argument("--work_dir", type=Path, required=True, help="where models and results.json go")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--iterations", type=int, choices=[1, 2], default=1)
    parser.add_argument("--steps", type=int, help="instead of the recipes' steps")
    parser.add_argument("--frozen_only", action="store_true", help="leave fine-tuning out")
    options = parser.parse_args()
    keep_freed_memory()

    parts, audio = load_demo() if options.audio == "demo" else load_esc10(Path(options.audio), options.work_dir)
    results = {"clips": {name: len(labels) for name, (_, labels) in parts.items()}, "runs": []}
    for seed in options.seeds:
        folder = options.work_dir / f"seed{seed}"
        stages = pretrain(audio, folder, seed, options.iterations, options.steps)
        print(json.dumps({"seed": seed, **stages}), flush=True)
        num_labels = int(max(parts["train"][1])) + 1
        for start in ("random", *(recipe for recipe in stages if "tokenizer" not in recipe)):
            from_random = start == "random"
            network = (folder / ("demo_pretrain_iter1" if from_random else start), from_random, num_labels, seed)
            row = {"seed": seed, "start": start, "frozen": probe(new_classifier(*network), parts)}
            if not options.frozen_only:
                row["unfrozen"] = finetune(new_classifier(*network), parts, seed)
            results["runs"].append(row)
            print(json.dumps(row), flush=True)
        results.setdefault("stages", []).append(stages)
    results["summary"] = {
        start: {
            kind: {"mean": statistics.mean(values), "stdev": statistics.stdev(values) if len(values) > 1 else 0.0}
            for kind in ("frozen", "unfrozen")
            if (values := [row[kind] for row in results["runs"] if row["start"] == start and kind in row])
        }
        for start in dict.fromkeys(row["start"] for row in results["runs"])
    }
    print(json.dumps(results["summary"], indent=2))
    (options.work_dir / "results.json").write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()

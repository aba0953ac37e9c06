"""Distil an audio classifier into a smaller student, with `DistillationTrainer` as a library.

    python examples/distill_in_a_few_lines.py --teacher outputs/mine --output_dir outputs/small

The teacher is a model folder or Hub id of any audio classifier of transformers with the classes of --dataset, such as
the output of finetune_own_recordings.py. `scenes distill` does the same, and much more, from the command line.
"""

import argparse

import train  # noqa: F401 - first, for it keeps messages of libraries about other hardware off the screen


# isort: split
from transformers import set_seed

from dataset_script import cache_waveforms, load_scenes
from train.classification.data import SceneDataset
from train.classification.trainer import DistillationTrainer
from train.classification.training_arguments import SceneTrainingArguments
from train.common.models import load_classifier, new_student
from train.evaluation.inference import compute_logits


def main() -> None:
    """Distil, evaluate and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", required=True, help="Model folder or Hub id.")
    parser.add_argument("--dataset", default="demo", help="Folder of recordings, dataset of the Hub, or demo.")
    parser.add_argument("--output_dir", default="outputs/small")
    parser.add_argument("--num_train_epochs", type=float, default=20)
    args = parser.parse_args()

    set_seed(0)
    scenes = load_scenes(args.dataset)  # clips of one second
    labels = scenes["train"].features["label"].names
    teacher, teacher_extractor = load_classifier(args.teacher, labels)
    heard = cache_waveforms(scenes["train"], teacher_extractor.sampling_rate)
    logits = compute_logits(teacher, teacher_extractor, heard)
    clips = scenes["train"].add_column("teacher_logits_a", logits.tolist())  # more such columns are averaged

    student, extractor = new_student(labels, "base_channels=32")  # a third of the operations
    trainer = DistillationTrainer(
        student,
        SceneTrainingArguments(
            args.output_dir,
            num_train_epochs=args.num_train_epochs,
            batch_size=16,
            schedule="warmup_cosine",
            mixup_alpha=0.3,
            temperature=2.0,
            kd_lambda=0.02,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        extractor,
        train_dataset=SceneDataset(clips, cache_waveforms(clips, extractor.sampling_rate)),
        eval_dataset=SceneDataset(scenes["test"], cache_waveforms(scenes["test"], extractor.sampling_rate)),
    )
    trainer.train()
    print(f"macro accuracy: {trainer.evaluate()['eval_macro_accuracy']:.3f}")
    trainer.save_model()


if __name__ == "__main__":
    main()

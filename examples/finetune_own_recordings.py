"""Fine-tune a trained student on recordings of your own classes, with the plain `Trainer` of transformers.

    python examples/finetune_own_recordings.py --dataset ./recordings --output_dir outputs/mine

--dataset is a folder with audio files of any length and rate in `train/<label>/` and `test/<label>/`, or a dataset of
the Hub with these splits. Without it, the synthetic demo corpus stands in. The output is an ordinary model folder.
"""

import argparse
from typing import Any

import train  # noqa: F401 - first, for it keeps messages of libraries about other hardware off the screen


# isort: split
import torch
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, Trainer, TrainingArguments, pipeline

import modeling_tfsepnet  # noqa: F401 - registers the models with transformers
from dataset_script import decode_clip, load_scenes


def main() -> None:
    """Fine-tune, evaluate, save, and classify a recording with the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="demo25", help="Folder of recordings, dataset of the Hub, or demo25.")
    parser.add_argument("--model", default="model_cards/esc10", help="Model folder or Hub id to start from.")
    parser.add_argument("--output_dir", default="outputs/mine")
    parser.add_argument("--num_train_epochs", type=float, default=20)
    args = parser.parse_args()

    torch.manual_seed(0)
    scenes = load_scenes(args.dataset)  # clips of one second
    labels = scenes["train"].features["label"].names
    extractor = AutoFeatureExtractor.from_pretrained(args.model)
    model = AutoModelForAudioClassification.from_pretrained(
        args.model,
        id2label=dict(enumerate(labels)),
        label2id={name: index for index, name in enumerate(labels)},
        ignore_mismatched_sizes=True,  # another number of classes: a new classifier
    )

    def to_inputs(row: dict[str, Any]) -> dict[str, Any]:
        samples, rate = decode_clip(row["audio"])
        return {"input_values": extractor(samples, sampling_rate=rate)["input_values"][0], "labels": row["label"]}

    clips = scenes.map(to_inputs, remove_columns=scenes["train"].column_names)

    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            args.output_dir,
            num_train_epochs=args.num_train_epochs,
            per_device_train_batch_size=16,
            learning_rate=2e-3,
            lr_scheduler_type="cosine",
            logging_strategy="epoch",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=torch.cuda.is_available(),
        ),
        train_dataset=clips["train"],
        eval_dataset=clips["test"],
        processing_class=extractor,
        compute_metrics=lambda result: {"accuracy": (result.predictions.argmax(axis=1) == result.label_ids).mean()},
    )
    trainer.train()
    print(f"accuracy: {trainer.evaluate()['eval_accuracy']:.3f}")
    trainer.save_model()

    clip = scenes["test"][0]
    best = pipeline("audio-classification", args.output_dir)(clip["audio"], top_k=1)[0]
    print(f"{clip['filename']}: {best['label']} {best['score']:.3f}")


if __name__ == "__main__":
    main()

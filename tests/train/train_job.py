"""A run small enough for tests, started in processes of its own: `python -m tests.train.train_job OUTPUT_DIR …`.

Further arguments are those of `SceneTrainingArguments`, as `name=value`. It computes in double precision: Adam turns a
gradient that is nothing but rounding error into a step of full size, so in single precision two correct ways to
compute the same gradients part quickly.
"""

import sys

import numpy as np

from tests.train.helpers import ExactFeatureExtractor, make_dataset, make_model, make_trainer
from train.classification.trainer import DistillationTrainer
from train.common.checkpoints import last_complete_checkpoint
from train.common.runs import claim_output_folder
from train.evaluation.inference import compute_logits


def value(text: str) -> int | float | str:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def make_job(output_dir, **arguments) -> DistillationTrainer:
    defaults = {
        "batch_size": 5,  # of 21 clips: the last batch of an epoch is a single clip
        "num_train_epochs": 4,
        "freq_mixstyle_p": 0.8,
        "spec_augment_size": 0.2,
        "mixup_alpha": 0.3,
        "save_strategy": "steps",
        "save_steps": 3,
        "disable_tqdm": True,
    }
    return make_trainer(
        output_dir,
        make_dataset(21, teachers=2),
        make_dataset(9, seed=1),
        make_model().double(),
        ExactFeatureExtractor(),
        **(defaults | arguments),
    )


def main(output_dir, *settings: str) -> None:
    arguments = {name: value(text) for name, text in (setting.split("=") for setting in settings)}
    trainer = make_job(output_dir, **arguments)
    claim_output_folder(output_dir, arguments)
    trainer.train(resume_from_checkpoint=last_complete_checkpoint(output_dir))
    trainer.evaluate()
    logits = compute_logits(make_model().double().eval(), ExactFeatureExtractor(), make_dataset(21).waveforms, 5)
    if trainer.args.should_save:
        np.save(f"{output_dir}/logits.npy", logits)
    trainer.save_model()


if __name__ == "__main__":
    main(*sys.argv[1:])

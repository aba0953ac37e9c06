"""The pretrained models of the default job, trained when a command starts from one that is missing."""

import logging
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from train.common.arguments import ModelArguments
from train.common.availability import is_missing_demo_model
from train.common.recipes import load_recipe, recipe_arguments
from train.pretraining.arguments import AudioArguments, StageArguments, TaggedDataArguments
from train.pretraining.audioset import finetune_tagger
from train.pretraining.stages import run_stage
from train.pretraining.training_arguments import PretrainingArguments, TaggingArguments


logger = logging.getLogger(__name__)

SHARED_ARGUMENTS = ("use_cpu", "log_level", "disable_tqdm", "report_to")
"""Arguments of a command that are also used to train the models it starts from."""


def create_demo_model(model_name_or_path: str | None, data: Any, args: TrainingArguments) -> None:
    """Train a model of the default job, and before that the one it starts from; do nothing for any other model.

    Args:
        model_name_or_path (`str` or `None`): What a command starts from.
        data: Arguments with `cache_dir`.
        args (`TrainingArguments`): The command's run, for its hardware and its messages.

    Raises:
        FileExistsError, InputError: As [`~train.pretraining.stages.run_stage`].
    """
    if model_name_or_path is None or not is_missing_demo_model(model_name_or_path):
        return
    recipe = Path(model_name_or_path).name
    content = load_recipe(recipe)
    create_demo_model(content.get("model_name_or_path"), data, args)
    shared = {name: getattr(args, name) for name in SHARED_ARGUMENTS} | {"cache_dir": data.cache_dir}
    logger.info("%s is missing and is trained first, by the recipe %s.", model_name_or_path, recipe)
    if "stage" in content:
        stage = recipe_arguments(
            (StageArguments, AudioArguments, PretrainingArguments), recipe, content["dataset"], **shared
        )
        run_stage(recipe, *stage)
    else:
        tagger = recipe_arguments(
            (ModelArguments, TaggedDataArguments, TaggingArguments), recipe, content["dataset"], **shared
        )
        finetune_tagger(recipe, *tagger)

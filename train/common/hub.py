"""Pushes of finished runs to the Hub: `--push_to_hub`."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from accelerate import PartialState
from transformers import TrainingArguments

from dataset_script import push_logits
from dataset_script.errors import InputError
from dataset_script.hub import check_repo_id
from model_cards.push import push_model
from train.common.arguments import HubArguments
from train.common.training_arguments import ResumableTrainingArguments


logger = logging.getLogger(__name__)


def take_over_push(args: ResumableTrainingArguments) -> Callable[[], None]:
    """Disable `Trainer`'s push of each checkpoint, and return a function that pushes the finished run with its card.

    Args:
        args (`ResumableTrainingArguments`): Arguments of the run, whose `push_to_hub` is set to False.

    Returns:
        `Callable`: Pushes the output folder if `push_to_hub` was set; does nothing otherwise.

    Raises:
        InputError: If `push_to_hub` is set without a valid `hub_model_id`.
    """
    wanted, args.push_to_hub = args.push_to_hub, False
    check_repository(wanted, args.hub_model_id)

    def push() -> None:
        if wanted:
            push_folder(args, args.output_dir)

    return push


def push_folder(args: HubArguments | TrainingArguments, folder: str | Path, **card_options: Any) -> None:
    """Push a model folder from the main process.

    Args:
        args (`HubArguments` or `TrainingArguments`): The repository, checked by [`check_repository`].
        folder (`str` or `Path`): Model folder with its `results.json`.
        card_options: Arguments of [`~model_cards.generator.write_card`].

    Raises:
        ConnectionError, InputError: As [`~model_cards.push.push_model`].
    """
    if PartialState().is_main_process:
        assert args.hub_model_id is not None
        url = push_model(folder, args.hub_model_id, private=args.hub_private_repo, **card_options)
        logger.info("The model is on the Hub: %s", url)


def push_predictions(args: HubArguments, folder: str) -> None:
    """Push a logits dataset from the main process, if `push_to_hub` is set.

    Args:
        args (`HubArguments`): The repository, checked by [`check_repository`].
        folder (`str`): Folder of the dataset.
    """
    if args.push_to_hub and PartialState().is_main_process:
        assert args.hub_model_id is not None
        logger.info("The logits are on the Hub: %s", push_logits(folder, args.hub_model_id, args.hub_private_repo))


def check_repository(push_to_hub: bool, hub_model_id: str | None) -> None:
    """Raise `InputError` if `push_to_hub` is set without a valid `hub_model_id`."""
    if not push_to_hub:
        return
    if not hub_model_id:
        raise InputError("push_to_hub needs a repository: set --hub_model_id user/name.")
    check_repo_id(hub_model_id)

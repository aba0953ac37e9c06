"""Pushing what a script has finished: `--push_to_hub`."""

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


logger = logging.getLogger(__name__)


def take_over_push(args: TrainingArguments) -> Callable[[], None]:
    """Return what pushes a finished run, once and with its card; `Trainer` would push every checkpoint.

    Args:
        args (`TrainingArguments`): Their `push_to_hub` is switched off; without it the returned function does nothing.

    Raises:
        InputError: If no repository is named.
    """
    wanted, args.push_to_hub = args.push_to_hub, False
    check_repository(wanted, args.hub_model_id)

    def push() -> None:
        if wanted:
            push_folder(args, args.output_dir)

    return push


def push_folder(args: HubArguments | TrainingArguments, folder: str | Path, **card_options: Any) -> None:
    """Push a finished model folder, from one process.

    Args:
        args (`HubArguments` or `TrainingArguments`): Where to.
        folder (`str` or `Path`): The model, with its `results.json`.
        card_options: As for [`~model_cards.generator.write_card`].

    Raises:
        ConnectionError, InputError: As [`~model_cards.push.push_model`].
    """
    if PartialState().is_main_process:
        url = push_model(folder, args.hub_model_id, private=args.hub_private_repo, **card_options)
        logger.info("The model is on the Hub: %s", url)


def push_predictions(args: HubArguments, folder: str) -> None:
    """Push a finished logits dataset if the arguments ask for it."""
    if args.push_to_hub and PartialState().is_main_process:
        logger.info("The logits are on the Hub: %s", push_logits(folder, args.hub_model_id, args.hub_private_repo))


def check_repository(push_to_hub: bool, hub_model_id: str | None) -> None:
    """Raise `InputError` if a push is asked for without saying where to."""
    if push_to_hub and not hub_model_id:
        raise InputError("push_to_hub needs the repository: give --hub_model_id user/name.")
    if push_to_hub:
        check_repo_id(hub_model_id)

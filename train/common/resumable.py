"""Training that can be interrupted at any point: seeds, order of the rows, checkpoints."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Sampler
from transformers import Trainer

from dataset_script.files import write_json
from model_cards.results import RESULTS_FILE, provenance
from train.common.arguments import ResumableTrainingArguments
from train.common.checkpoints import COMPLETE


class EpochShuffle(Sampler[int]):
    """Sampler of all rows in a random order that depends only on the seed and the epoch.

    Args:
        num_rows (`int`): Number of rows.
        seed (`int`): Seed of the run.
    """

    def __init__(self, num_rows: int, seed: int):
        self.num_rows = num_rows
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next iteration."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_rows

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(derived_seed(self.seed, self.epoch))
        return iter(torch.randperm(self.num_rows, generator=generator).tolist())


def derived_seed(*numbers: int) -> int:
    """Return a 63-bit seed that depends on all `numbers`, such as the run's seed, the step and the micro-step."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


class ResumableTrainer(Trainer):
    """`Trainer` whose random draws depend only on seed, step and micro-step, and which marks complete checkpoints.

    A micro-step is one of the passes whose gradients are accumulated in a step.
    """

    args: ResumableTrainingArguments

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.model_accepts_loss_kwargs = False
        self._micro_step = (-1, 0)

    def next_seed(self) -> int:
        """Return the seed of the next pass, derived from the run's seed, the step and the micro-step."""
        step, micro_step = self.state.global_step, 0
        if self._micro_step[0] == step:
            micro_step = self._micro_step[1] + 1
        self._micro_step = (step, micro_step)
        return derived_seed(self.args.seed, step, micro_step)

    def floating_point_ops(self, inputs: dict[str, Tensor]) -> int:
        """Return 0: the base class counts tokens, but the inputs are waveforms."""
        return 0

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            (Path(self.args.output_dir) / f"checkpoint-{self.state.global_step}" / COMPLETE).touch()

    def finish(self, results: dict[str, Any]) -> dict[str, Any]:
        """Save the model and then its results; all processes must call this.

        Args:
            results (`dict`): The content of `results.json` except the provenance.

        Returns:
            `dict`: The results with their provenance.
        """
        self.save_model()
        results = {**results, "provenance": provenance()}
        if self.args.should_save:
            write_json(Path(self.args.output_dir) / RESULTS_FILE, results)
        self.accelerator.wait_for_everyone()
        return results

"""What training shows on the console: a progress bar, and one line of numbers for each epoch."""

import re
from collections.abc import Mapping
from typing import Any

from transformers import ProgressCallback, TrainerControl, TrainerState, TrainingArguments


NOT_SHOWN = re.compile(
    r"epoch|step|total_flos|grad_norm|train_.*|test_.*|eval_(accuracy|log_loss|runtime|.*_per_second).*"
)
"""Logged values that would make the line longer than it is useful; the services in `report_to` get all."""


class MetricLines(ProgressCallback):
    """Callback that shows the metrics of an epoch, in training and on held-out clips, in one line.

    Args:
        with_bar (`bool`): Whether to show a progress bar.
        with_lines (`bool`): Whether to show the lines.
    """

    def __init__(self, with_bar: bool, with_lines: bool):
        super().__init__()
        self.with_bar, self.with_lines = with_bar, with_lines
        self.metrics: dict[str, float] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Show the bar."""
        if self.with_bar:
            super().on_train_begin(args, state, control, **kwargs)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Advance the bar."""
        if self.with_bar:
            super().on_step_end(args, state, control, **kwargs)

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, *others: Any, **kwargs: Any
    ) -> None:
        """Advance the bar of the evaluation."""
        if self.with_bar:
            super().on_prediction_step(args, state, control, *others, **kwargs)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Close the bar."""
        if self.with_bar:
            super().on_train_end(args, state, control, **kwargs)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the metrics, unless those on held-out clips are still to come."""
        if not (self.with_lines and state.is_world_process_zero and logs):
            return
        self.metrics |= {name: value for name, value in logs.items() if not NOT_SHOWN.fullmatch(name)}
        if not self.metrics or (control.should_evaluate and "eval_loss" not in self.metrics):
            return
        line = metric_line(self.metrics, state, args)
        self.metrics = {}
        if self.with_bar and self.training_bar is not None:
            self.training_bar.write(line)
        else:
            print(line, flush=True)


def metric_line(metrics: Mapping[str, float], state: TrainerState, args: TrainingArguments) -> str:
    """Return a line such as `"Epoch 3/30: loss 1.92, learning rate 0.006, held-out macro accuracy 0.41"`.

    Args:
        metrics (`Mapping[str, float]`): Metrics by their names in the log.
        state (`TrainerState`): How far training is.
        args (`TrainingArguments`): Whether it counts in steps or epochs.
    """
    if args.max_steps > 0:
        place = f"Step {state.global_step}/{args.max_steps}"
    else:
        place = f"Epoch {state.epoch or 0:.4g}/{args.num_train_epochs:g}"
    named = ((name.replace("eval_", "held-out ", 1).replace("_", " "), value) for name, value in metrics.items())
    return f"{place}: " + ", ".join(f"{name} {value:.4g}" for name, value in named)

"""Arguments of evaluation."""

from dataclasses import dataclass, field

from train.common.arguments import (
    PRECISION_HELP,
    CorpusArguments,
    HubArguments,
    InferenceArguments,
    Precision,
    check_bootstrap,
)


@dataclass
class PredictionArguments(HubArguments, InferenceArguments):
    """`InferenceArguments` for the training split, and the repository that the logits are pushed to."""

    split: str = field(default="train", metadata={"help": "train or test."})
    dtype: Precision = field(default="auto", metadata={"help": PRECISION_HELP})


@dataclass
class EvaluationArguments(HubArguments, InferenceArguments):
    """`InferenceArguments`, the confidence intervals, and the repository that the model is pushed to."""

    bootstrap: int = field(
        default=1000, metadata={"help": "Number of resamples for the confidence intervals; 0 for none."}
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_bootstrap(self.bootstrap)


@dataclass(kw_only=True)
class LogitsArguments(CorpusArguments):
    """The logits and their clips."""

    logits: list[str] = field(metadata={"help": "Logits datasets of the test split, whose mean is evaluated."})
    output_dir: str = field(metadata={"help": "Output folder."})
    bootstrap: int = field(
        default=1000, metadata={"help": "Number of resamples for the confidence intervals; 0 for none."}
    )

    def __post_init__(self) -> None:
        check_bootstrap(self.bootstrap)

"""Configuration of CP-Mobile."""

import math
import reprlib
from typing import Any

from transformers import PreTrainedConfig


SCENES = (
    "airport",
    "bus",
    "metro",
    "metro_station",
    "park",
    "public_square",
    "shopping_mall",
    "street_pedestrian",
    "street_traffic",
    "tram",
)
"""The ten classes of TAU Urban Acoustic Scenes, in the official (alphabetical) order of their labels."""

AUTO_MAP = {
    "AutoModel": "modeling_cpmobile.CPMobileModel",
    "AutoModelForAudioClassification": "modeling_cpmobile.CPMobileForAudioClassification",
}


NUM_BLOCKS = (3, 2, 1)
STRIDES = ((1, 1), (1, 1), (1, 2), (2, 1), (1, 1), (1, 1))


class CPMobileConfig(PreTrainedConfig):
    r"""Configuration of [`CPMobileModel`] and [`CPMobileForAudioClassification`].

    The defaults are those of the baseline of DCASE 2024 Task 1: CP-Mobile of Schmid et al., *Distilling the Knowledge
    of Transformers and CNNs with CP-Mobile* (DCASE 2023), with fewer channels and without its global response norms.

    Args:
        base_channels (`int`, *optional*, defaults to 32):
            Width of the stem and of the first stage. All widths are rounded to multiples of 8, see [`round_width`].
        channels_multiplier (`float`, *optional*, defaults to 1.8):
            Factor of the width from each stage to the next.
        expansion_rate (`float`, *optional*, defaults to 2.1):
            Width inside a block, as a multiple of the width of its input.
        num_blocks (`Sequence[int]`, *optional*, defaults to `(3, 2, 1)`):
            Number of blocks of each stage.
        strides (`Sequence[Sequence[int]]`, *optional*):
            Strides of each block along frequency and time. By default, the third block halves the time and the fourth
            the frequency.
        global_response_norm (`bool`, *optional*, defaults to `False`):
            Whether every block has a global response norm, as in the network of 2023.
        num_mel_bins (`int`, *optional*, defaults to 256):
            Number of mel bands of the input. The network accepts any number; this one is used to count operations and
            to create example inputs.
        num_frames (`int`, *optional*, defaults to 65):
            Number of frames of a one-second window, used like `num_mel_bins`.
        num_labels (`int`, *optional*, defaults to 10):
            Number of classes. Without `id2label` and `num_labels`, the classes are TAU's ten scenes.

    Raises:
        ValueError: If a value is of the wrong type or out of range, or `id2label` does not name the classes 0, 1, ...

    Example:
    ```python
    >>> from modeling_cpmobile import CPMobileConfig, CPMobileForAudioClassification

    >>> model = CPMobileForAudioClassification(CPMobileConfig())
    >>> sum(p.numel() for p in model.parameters())
    61148
    ```
    """

    model_type = "cpmobile"

    base_channels: int = 32
    channels_multiplier: float | int = 1.8
    expansion_rate: float | int = 2.1
    num_blocks: tuple[int, ...] | list[int] = NUM_BLOCKS
    strides: tuple[tuple[int, int], ...] | list[list[int]] = STRIDES
    global_response_norm: bool = False
    num_mel_bins: int = 256
    num_frames: int = 65

    def __post_init__(self, **kwargs: Any) -> None:
        """Check the values, and set the classes to TAU's scenes if none are given."""
        sizes = {"base_channels": 1024, "num_mel_bins": 4096, "num_frames": 100_000}
        for name, maximum in sizes.items():
            if not is_integer(value := getattr(self, name), 1, maximum):
                raise ValueError(f"{name} is {value!r}, but must be an integer between 1 and {maximum}.")
        for name in ("channels_multiplier", "expansion_rate"):
            if not is_number(value := getattr(self, name)) or not 0 < value <= 16:
                raise ValueError(f"{name} is {value!r}, but must be a number above 0, up to 16.")
        if not isinstance(self.global_response_norm, bool):
            raise ValueError(f"global_response_norm is {self.global_response_norm!r}, but must be true or false.")
        if not is_list(self.num_blocks, 1, 100) or not 0 < len(self.num_blocks) <= 8:
            raise ValueError(f"num_blocks is {self.num_blocks!r}, but must be the number of blocks of up to 8 stages.")
        num_blocks = sum(self.num_blocks)
        if (
            not isinstance(self.strides, (tuple, list))
            or len(self.strides) != num_blocks
            or not all(is_list(stride, 1, 8) and len(stride) == 2 for stride in self.strides)
        ):
            raise ValueError(
                f"strides is {reprlib.repr(self.strides)}, but must be a pair of integers from 1 to 8, along "
                f"frequency and time, for each of the {num_blocks} blocks."
            )
        self.num_blocks = tuple(self.num_blocks)
        self.strides = tuple((frequency, time) for frequency, time in self.strides)
        check_labels(kwargs.get("num_labels"), self.id2label)
        if self.id2label is None and kwargs.get("num_labels") is None:
            self.id2label = dict(enumerate(SCENES))
            self.label2id = {scene: index for index, scene in enumerate(SCENES)}
        # `transformers.pipeline` runs remote code wherever it finds this entry, even if this package is installed and
        # has registered its pipeline. Only the copy of this file in a model folder keeps the entry.
        if not __name__.startswith("transformers_modules"):
            kwargs.pop("custom_pipelines", None)
        super().__post_init__(**kwargs)

    @property
    def widths(self) -> list[int]:
        """Number of output channels of each stage."""
        base = round_width(self.base_channels)
        return [round_width(base * self.channels_multiplier**stage) for stage in range(len(self.num_blocks))]

    def to_diff_dict(self) -> dict[str, Any]:
        """Return the configuration without default values, but with its labels.

        transformers leaves the labels out if there are two without names, since these are its default; here, the
        default is ten.
        """
        labels = {"id2label": self.id2label, "label2id": self.label2id}
        return super().to_diff_dict() | labels

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as stored in `config.json`, with the classes to load the model with.

        Each class loads the folders of the other: `AutoModel` without the classifier, and
        `AutoModelForAudioClassification` with a new one.
        """
        output = super().to_dict()
        if output.get("auto_map"):
            output["auto_map"] = AUTO_MAP | output["auto_map"]
        output["custom_pipelines"] = {
            "audio-classification": {
                "impl": "pipeline_cpmobile.CPMobileAudioClassificationPipeline",
                "pt": ["AutoModelForAudioClassification"],
            }
        }
        return output


def round_width(width: float) -> int:
    """Round a number of channels to a multiple of 8, at least 8 and not less than 90 % of it."""
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * width else rounded


def check_labels(num_labels: Any, id2label: Any) -> None:
    """Raise an error unless the arguments of a configuration name or number at least one class, if given."""
    if num_labels is not None and not is_integer(num_labels, 1, 100_000):
        raise ValueError(f"num_labels is {num_labels!r}, but must be an integer between 1 and 100000.")
    if id2label is not None and (
        not isinstance(id2label, dict)
        or not id2label
        or {str(index) for index in id2label} != {str(index) for index in range(len(id2label))}
    ):
        raise ValueError(
            f"id2label is {reprlib.repr(id2label)}, but must be a dict with the names of the classes 0, 1, ..."
        )


def is_integer(value: Any, minimum: int, maximum: int) -> bool:
    """Return whether a value is an integer from `minimum` to `maximum`."""
    return isinstance(value, int) and not isinstance(value, bool) and minimum <= value <= maximum


def is_list(values: Any, minimum: int, maximum: int) -> bool:
    """Return whether a value is a list or tuple of integers from `minimum` to `maximum`."""
    return isinstance(values, (tuple, list)) and all(is_integer(value, minimum, maximum) for value in values)


def is_number(value: Any) -> bool:
    """Return whether a value is a finite real number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


__all__ = ["SCENES", "CPMobileConfig"]

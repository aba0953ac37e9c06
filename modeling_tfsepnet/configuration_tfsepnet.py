"""Configuration of TF-SepNet."""

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
    "AutoModel": "modeling_tfsepnet.TFSepNetModel",
    "AutoModelForAudioClassification": "modeling_tfsepnet.TFSepNetForAudioClassification",
}


class TFSepNetConfig(PreTrainedConfig):
    r"""Configuration of [`TFSepNetModel`] and [`TFSepNetForAudioClassification`].

    The defaults are those of TF-SepNet-64 in Cai et al., *Data-Efficient Acoustic Scene Classification with
    Self-Supervised Teachers* (DCASE 2024 Task 1), Table 2, with the residual normalisation of section 3.2.

    Args:
        base_channels (`int`, *optional*, defaults to 64):
            Width C of the network. The stem has C/2 and 2C channels, the four stages C, 1.5C, 2C and 2.5C. Must be a
            multiple of 4 up to 1024, so that every block splits into equal halves.
        depth (`int`, *optional*, defaults to 17):
            Number of layers after the stem: 17, or 16 for the variant without the last max-pooling.
        kernel_size (`int`, *optional*, defaults to 3):
            Size of the one-dimensional depthwise kernels, in frequency bins and in frames. Must be odd, up to 255.
        dropout (`float`, *optional*, defaults to 0.1):
            Dropout probability after the pointwise convolutions of the paths.
        residual_norm_scale (`float`, *optional*, defaults to 0.1):
            Weight lambda of the identity path in the residual normalisation.
        residual_norm_eps (`float`, *optional*, defaults to 1e-5):
            Constant added to the variance in the residual normalisation.
        num_mel_bins (`int`, *optional*, defaults to 512):
            Number of mel bands of the input, at least 29 (13 at depth 16). The network accepts any such number; this
            one is used to count operations and to create example inputs.
        num_frames (`int`, *optional*, defaults to 64):
            Number of frames of a one-second window, used like `num_mel_bins`.
        num_labels (`int`, *optional*, defaults to 10):
            Number of classes. Without `id2label` and `num_labels`, the classes are TAU's ten scenes.

    Raises:
        ValueError: If a value is of the wrong type or out of range, or `id2label` does not name the classes 0, 1, ...

    Example:
    ```python
    >>> from modeling_tfsepnet import TFSepNetConfig, TFSepNetForAudioClassification

    >>> model = TFSepNetForAudioClassification(TFSepNetConfig())
    >>> sum(p.numel() for p in model.parameters())
    126858
    ```
    """

    model_type = "tfsepnet"

    base_channels: int = 64
    depth: int = 17
    kernel_size: int = 3
    dropout: float | int = 0.1
    residual_norm_scale: float | int = 0.1
    residual_norm_eps: float = 1e-5
    num_mel_bins: int = 512
    num_frames: int = 64

    def __post_init__(self, **kwargs: Any) -> None:
        """Check the values, and set the classes to TAU's scenes if none are given."""
        if not is_integer(self.depth, 16, 17):
            raise ValueError(f"depth is {self.depth!r}, but must be 16 or 17.")
        # Smaller inputs leave nothing after the last pooling.
        smallest = 29 if self.depth == 17 else 13
        sizes = {
            "base_channels": (4, 1024),
            "kernel_size": (1, 255),
            "num_mel_bins": (smallest, 4096),
            "num_frames": (smallest, 100_000),
        }
        for name, (minimum, maximum) in sizes.items():
            value = getattr(self, name)
            if not is_integer(value, minimum, maximum):
                raise ValueError(f"{name} is {value!r}, but must be an integer between {minimum} and {maximum}.")
        if self.base_channels % 4:
            raise ValueError(f"base_channels is {self.base_channels}, but must be a multiple of 4.")
        if self.kernel_size % 2 == 0:
            raise ValueError(f"kernel_size is {self.kernel_size}, but must be odd.")
        for name in ("dropout", "residual_norm_scale", "residual_norm_eps"):
            if not is_number(value := getattr(self, name)):
                raise ValueError(f"{name} is {value!r}, but must be a finite number.")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout is {self.dropout}, but must be at least 0 and less than 1.")
        if self.residual_norm_eps <= 0:
            raise ValueError(f"residual_norm_eps is {self.residual_norm_eps}, but must be positive.")
        check_labels(kwargs.get("num_labels"), self.id2label)
        if self.id2label is None and kwargs.get("num_labels") is None:
            self.id2label = dict(enumerate(SCENES))
            self.label2id = {scene: index for index, scene in enumerate(SCENES)}
        # `transformers.pipeline` runs remote code wherever it finds this entry, even if this package is installed and
        # has registered its pipeline. Only the copy of this file in a model folder keeps the entry.
        if not __name__.startswith("transformers_modules"):
            kwargs.pop("custom_pipelines", None)
        super().__post_init__(**kwargs)

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
                "impl": "pipeline_tfsepnet.SceneClassificationPipeline",
                "pt": ["AutoModelForAudioClassification"],
            }
        }
        return output


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


def is_number(value: Any) -> bool:
    """Return whether a value is a finite real number."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


__all__ = ["SCENES", "TFSepNetConfig"]

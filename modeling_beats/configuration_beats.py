"""Configuration of BEATs."""

import copy
import math
import reprlib
from typing import Any

from transformers import PreTrainedConfig
from transformers.activations import ACT2FN


# Largest values of the sizes that determine the number of parameters (65,536 for all others): they keep
# a typing error from filling the memory.
MAXIMUM = {
    "embedding_size": 8192,
    "deep_norm_layers": 256,
    "estimator_size": 8192,
    "hidden_size": 8192,
    "intermediate_size": 32_768,
    "num_conv_pos_embeddings": 4096,
    "num_estimator_layers": 256,
    "num_hidden_layers": 256,
    "num_mel_bins": 4096,
    "num_predictor_layers": 256,
    "patch_size": 4096,
}

AUTO_MAP = {
    "AutoModel": "modeling_beats.BeatsModel",
    "AutoModelForAudioClassification": "modeling_beats.BeatsForAudioClassification",
}
PADDING_RULES = ("equal_runs", "convolution")


class BeatsConfig(PreTrainedConfig):
    r"""Configuration of [`BeatsModel`] and [`BeatsForAudioClassification`].

    The defaults are those of the public base model (iteration 3+, pre-trained on AudioSet) of Chen et al., *BEATs:
    Audio Pre-Training with Acoustic Tokenizers* (arXiv 2212.09058): 90,311,792 parameters.

    Args:
        num_mel_bins (`int`, *optional*, defaults to 128):
            Number of mel bands of the input, which the model splits into `num_mel_bins // patch_size` rows of patches.
        patch_size (`int`, *optional*, defaults to 16):
            Side length of the square, non-overlapping patches, in frames and mel bands.
        embedding_size (`int`, *optional*, defaults to 512):
            Dimension of the patch embeddings. If it differs from `hidden_size`, a linear projection follows.
        conv_bias (`bool`, *optional*, defaults to `False`):
            Whether the patch convolution has a bias.
        hidden_size (`int`, *optional*, defaults to 768):
            Dimension of the Transformer layers.
        num_hidden_layers (`int`, *optional*, defaults to 12):
            Number of Transformer layers.
        num_attention_heads (`int`, *optional*, defaults to 12):
            Number of attention heads; must divide `hidden_size`.
        intermediate_size (`int`, *optional*, defaults to 3072):
            Dimension of the feed-forward layers.
        hidden_act (`str`, *optional*, defaults to `"gelu"`):
            Activation of the feed-forward layers: the name of a transformers activation, or `"glu"` for a linear layer
            of twice the width whose second half gates the first through SiLU.
        layer_norm_eps (`float`, *optional*, defaults to 1e-5):
            Epsilon of the layer normalisations.
        layer_norm_first (`bool`, *optional*, defaults to `False`):
            Whether to normalise before the attention and feed-forward layers rather than after them.
        deep_norm (`bool`, *optional*, defaults to `True`):
            Whether to scale residuals by `(2 * num_hidden_layers) ** 0.25` and initialise the weights to match
            (DeepNet, arXiv 2203.00555). Requires `layer_norm_first=False`.
        deep_norm_layers (`int`, *optional*):
            Number of layers that `deep_norm` counts; `num_hidden_layers` if not given. It is larger if the model
            consists of the first layers of a deeper one, whose scale of the residuals they keep.
        embedding_dropout (`float`, *optional*, defaults to 0.1):
            Dropout probability for the patch embeddings.
        hidden_dropout (`float`, *optional*, defaults to 0.1):
            Dropout probability before the first layer and after the attention and feed-forward layers.
        attention_dropout (`float`, *optional*, defaults to 0.1):
            Dropout probability for the attention weights.
        activation_dropout (`float`, *optional*, defaults to 0.0):
            Dropout probability inside the feed-forward layers.
        classifier_dropout (`float`, *optional*, defaults to 0.1):
            Dropout probability before the classification head.
        layerdrop (`float`, *optional*, defaults to 0.05):
            Probability of skipping a layer in training.
        layer_wise_gradient_decay_ratio (`float`, *optional*, defaults to 1.0):
            Factor applied to the gradient at the input of each layer: with `n` layers, the gradient of layer `i` is
            scaled by `ratio ** (n - 1 - i)`, and that of everything before the layers by `ratio ** n`.
        num_conv_pos_embeddings (`int`, *optional*, defaults to 128):
            Kernel size of the positional convolution, in patches.
        num_conv_pos_embedding_groups (`int`, *optional*, defaults to 16):
            Number of channel groups of the positional convolution; must divide `hidden_size`.
        relative_position_embedding (`bool`, *optional*, defaults to `True`):
            Whether attention uses a learned bias for the distance between query and key, shared by all layers.
        num_buckets (`int`, *optional*, defaults to 320):
            Number of distance buckets, half of them for each direction; at least 4.
        max_bucket_distance (`int`, *optional*, defaults to 800):
            Distance in patches from which on all distances share the last bucket; greater than `num_buckets // 4`.
        gru_rel_pos (`bool`, *optional*, defaults to `True`):
            Whether to scale the bias by a gate computed from the query. Ignored if `relative_position_embedding` is
            `False`.
        padding_rule (`str`, *optional*, defaults to `"equal_runs"`):
            How the models reduce a `padding_mask` from samples to frames to patches. `"equal_runs"` is the rule of the
            original implementation: cut the mask into runs of equal length, of which one is padding if all of it is.
            `"convolution"` is the rule of ESPnet and OpenBEATs: a frame is padding if any of its samples is, and a
            patch if any of its frames is, so that a padded clip has the same result as the clip alone. The
            `attention_mask` of the feature extractor always has this property.
        initializer_range (`float`, *optional*, defaults to 0.02):
            Standard deviation of the initial Transformer weights, except those that `deep_norm` determines.
        mask_ratio (`float`, *optional*, defaults to 0.75):
            Fraction of a clip's patches to mask in pre-training.
        num_predictor_layers (`int`, *optional*, defaults to 2):
            Number of layers of the label predictor in [`BeatsForPreTraining`].
        codebook_size (`int`, *optional*, defaults to 1024):
            Number of codes of a tokenizer, which serve as labels in pre-training.
        codebook_dim (`int`, *optional*, defaults to 256):
            Dimension of the code vectors.
        codebook_decay (`float`, *optional*, defaults to 0.99):
            Decay of the exponential moving averages that update the codes of a trained tokenizer.
        num_estimator_layers (`int`, *optional*, defaults to 3):
            Number of layers of the estimator in [`BeatsForTokenizerTraining`].
        estimator_size (`int`, *optional*):
            Output dimension of the estimator; `hidden_size` if not given.

    Raises:
        ValueError: If a size is not a positive integer or is absurdly large, a probability or fraction is not between
            0 and 1, the activation or the padding rule is unknown, sizes do not divide each other, `deep_norm` is
            combined with `layer_norm_first`, or `id2label` does not name the classes 0, 1, ...

    Example:
    ```python
    >>> from modeling_beats import BeatsConfig, BeatsModel

    >>> model = BeatsModel(BeatsConfig())
    >>> model.num_parameters()
    90311792
    ```
    """

    model_type = "beats"

    num_mel_bins: int = 128
    patch_size: int = 16
    embedding_size: int = 512
    conv_bias: bool = False
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    layer_norm_eps: float = 1e-5
    layer_norm_first: bool = False
    deep_norm: bool = True
    deep_norm_layers: int | None = None
    embedding_dropout: float | int = 0.1
    hidden_dropout: float | int = 0.1
    attention_dropout: float | int = 0.1
    activation_dropout: float | int = 0.0
    classifier_dropout: float | int = 0.1
    layerdrop: float | int = 0.05
    layer_wise_gradient_decay_ratio: float | int = 1.0
    num_conv_pos_embeddings: int = 128
    num_conv_pos_embedding_groups: int = 16
    relative_position_embedding: bool = True
    num_buckets: int = 320
    max_bucket_distance: int = 800
    gru_rel_pos: bool = True
    padding_rule: str = "equal_runs"
    initializer_range: float = 0.02
    mask_ratio: float = 0.75
    num_predictor_layers: int = 2
    codebook_size: int = 1024
    codebook_dim: int = 256
    codebook_decay: float = 0.99
    num_estimator_layers: int = 3
    estimator_size: int | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        """Validate the values."""
        for name, field_type in BeatsConfig.__annotations__.items():
            value = getattr(self, name)
            if field_type == int | None and value is None:
                continue
            maximum = MAXIMUM.get(name, 65_536)
            if field_type in (int, int | None) and not is_integer(value, 1, maximum):
                raise ValueError(f"{name} is {value!r}, but must be a positive integer, at most {maximum}.")
            if field_type is bool and not isinstance(value, bool):
                raise ValueError(f"{name} is {value!r}, but must be true or false.")
            if field_type in (float, float | int) and not is_number(value):
                raise ValueError(f"{name} is {value!r}, but must be a finite number.")
            if "drop" in name and not 0 <= value < 1:
                raise ValueError(f"{name} is {value!r}, but must be at least 0 and less than 1.")
        for name in ("layer_wise_gradient_decay_ratio", "layer_norm_eps", "initializer_range"):
            if (value := getattr(self, name)) <= 0:
                raise ValueError(f"{name} is {value!r}, but must be a positive number.")
        for name in ("mask_ratio", "codebook_decay"):
            if not 0 < (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} is {value!r}, but must be a number between 0 and 1.")
        check_labels(kwargs.get("num_labels"), self.id2label)
        if not isinstance(self.hidden_act, str) or (self.hidden_act != "glu" and self.hidden_act not in ACT2FN):
            raise ValueError(
                f"hidden_act is {self.hidden_act!r}, which is not an activation: use 'gelu' or 'glu', for example."
            )
        if self.padding_rule not in PADDING_RULES:
            raise ValueError(f"padding_rule is {self.padding_rule!r}, but must be one of {', '.join(PADDING_RULES)}.")
        for name in ("num_attention_heads", "num_conv_pos_embedding_groups"):
            if self.hidden_size % getattr(self, name):
                raise ValueError(f"{name} is {getattr(self, name)}, but must divide hidden_size = {self.hidden_size}.")
        if self.num_mel_bins < self.patch_size:
            raise ValueError(
                f"num_mel_bins is {self.num_mel_bins}, but must be at least patch_size = {self.patch_size}."
            )
        if self.deep_norm and self.layer_norm_first:
            raise ValueError("deep_norm=True requires layer_norm_first=False.")
        if self.deep_norm_layers is not None and self.deep_norm_layers < self.num_hidden_layers:
            raise ValueError(
                f"deep_norm_layers is {self.deep_norm_layers}, but must be at least num_hidden_layers = "
                f"{self.num_hidden_layers}."
            )
        if self.relative_position_embedding and not self.max_bucket_distance > self.num_buckets // 4 >= 1:
            raise ValueError(
                f"num_buckets is {self.num_buckets} and max_bucket_distance {self.max_bucket_distance}: the former "
                "must be at least 4, the latter greater than a quarter of it."
            )
        # `transformers.pipeline` runs remote code whenever this entry is present, even if this package has registered
        # its pipeline. So only the copy of this file that comes with the weights keeps it.
        if not __name__.startswith("transformers_modules"):
            kwargs.pop("custom_pipelines", None)
        super().__post_init__(**kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as stored in `config.json`, including the classes to load the model with.

        `AutoModel` loads the encoder from the folder of any model, except of a tokenizer, and
        `AutoModelForAudioClassification` adds a new classifier to it.
        """
        output = super().to_dict()
        if output.get("auto_map"):
            # transformers expects classes with "Tokenizer" in their names to be of text, and writes them as pairs.
            classes = {
                name: value if isinstance(value, str) else value[0] for name, value in output["auto_map"].items()
            }
            output["auto_map"] = AUTO_MAP | classes
        output["custom_pipelines"] = {
            "audio-classification": {
                "impl": "pipeline_beats.BeatsAudioClassificationPipeline",
                "pt": ["AutoModelForAudioClassification"],
            }
        }
        return output

    def with_layers(self, num_layers: int) -> "BeatsConfig":
        """Return the configuration of an auxiliary Transformer with the encoder's width and `num_layers` layers."""
        config = copy.deepcopy(self)
        config.num_hidden_layers = num_layers
        config.deep_norm_layers = None
        config.layerdrop = 0.0
        config.layer_wise_gradient_decay_ratio = 1.0
        return config

    @property
    def deep_norm_alpha(self) -> float:
        """Scale of the residuals (alpha of encoder-only models in DeepNet)."""
        return (2 * (self.deep_norm_layers or self.num_hidden_layers)) ** 0.25 if self.deep_norm else 1.0

    @property
    def deep_norm_beta(self) -> float:
        """Gain of the initial weights in the residual branches (beta of encoder-only models in DeepNet)."""
        return (8 * (self.deep_norm_layers or self.num_hidden_layers)) ** -0.25


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


__all__ = ["BeatsConfig"]

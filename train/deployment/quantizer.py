"""INT8 quantization of students with Intel Neural Compressor, with the interface of Optimum's quantizers."""

import logging
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
import torch
from optimum.configuration_utils import BaseConfig
from optimum.quantization_base import OptimumQuantizer
from torch import Tensor, fx, nn
from torch.utils.data import DataLoader
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification, PreTrainedConfig, PreTrainedModel
from transformers.feature_extraction_utils import FeatureExtractionMixin

from dataset_script.errors import InputError
from dataset_script.files import atomic_path
from model_cards.complexity import check_limits, measure_folder
from model_cards.students import STUDENT_TITLES, STUDENTS, StudentModel
from train.deployment.checks import is_extractor_of, is_student
from train.deployment.comparison import (
    WINDOWS_PER_BATCH,
    Calibration,
    Metric,
    accuracy,
    compare,
    describe_loss,
    sqnr,
    window_logits,
)
from train.deployment.finetuning import finetune
from train.deployment.int8 import INT8_FORMS, Int8Conv
from train.deployment.rounding import equalize, fold, folded_convolutions, round_weights, wide_range


logger = logging.getLogger(__name__)

ACTIVATION_ALGORITHMS = {8: ("kl", "minmax"), 16: ("minmax",)}
"""Neural Compressor's algorithms for activation ranges, in the order in which tuning tries them, by the bits."""

CRITERIA = ("accuracy", "agreement")
"""What must not drop on the calibration clips: the accuracy, or the fraction of decisions that equal float's."""

WINDOWS_TO_EQUALIZE = 128

WINDOWS_TO_ROUND = 160
"""Largest number of windows that weights are fitted to; more take longer and change nothing."""


class INCConfig(BaseConfig):
    """Settings of the quantization, saved with the model as `inc_config.json`.

    Args:
        activation_bits (`int`, *optional*, defaults to 16): Bits of the inputs of the layers, 16 or 8. With 16, the
            model decides as in float; runtimes have more kernels for 8.
        criterion (`str`, *optional*, defaults to `"accuracy"`): What must not drop, `"accuracy"` or `"agreement"` with
            the decisions of the float model.
        tolerable_loss (`float`, *optional*, defaults to 0.01): Largest relative loss of the metric.
        max_trials (`int`, *optional*, defaults to 100): Largest number of configurations to try.
        qat_epochs (`int`, *optional*, defaults to 0): Epochs of quantization-aware fine-tuning, see
            [`~train.deployment.finetuning.finetune`].

    Raises:
        InputError: If a value is out of range.
    """

    CONFIG_NAME = "inc_config.json"
    FULL_CONFIGURATION_FILE = "inc_config.json"

    activation_bits: int = 16
    criterion: str = "accuracy"
    tolerable_loss: float = 0.01
    max_trials: int = 100
    qat_epochs: int = 0

    def __post_init__(self, **kwargs: Any) -> None:
        """Check the values."""
        if self.activation_bits not in ACTIVATION_ALGORITHMS:
            raise InputError(f"activation_bits is {self.activation_bits}: choose 8 or 16.")
        if self.criterion not in CRITERIA:
            raise InputError(f"criterion is {self.criterion!r}: choose {' or '.join(CRITERIA)}.")
        if not 0 <= self.tolerable_loss < 1:
            raise InputError(f"tolerable_loss is {self.tolerable_loss}: choose a fraction from 0 to below 1.")
        if self.max_trials < 1:
            raise InputError(f"max_trials is {self.max_trials}: choose 1 or more.")
        if self.qat_epochs < 0:
            raise InputError(f"qat_epochs is {self.qat_epochs}: choose a number of epochs, or 0 for none.")
        super().__post_init__(**kwargs)


class ConvIntegers(TypedDict):
    """Integers and scales of an INT8 convolution, as in [`~modeling_tfsepnet.TFSepNetInt8Conv`]."""

    weight: Tensor
    weight_scale: Tensor
    input_scale: float
    input_zero_point: int


class INCQuantizer(OptimumQuantizer):
    """Quantizer of students to INT8 with Neural Compressor (static, PT2E, accuracy-aware tuning).

    Args:
        model (`StudentModel`): A float model.
        feature_extractor (`FeatureExtractionMixin`): The model's own, saved with it.

    Attributes:
        folded (`StudentModel` or `None`): The float network of the last quantization, with batch
            norms folded in and equalized channels.
        calibration (`Calibration` or `None`): How the last INT8 network compares on the calibration clips.

    Raises:
        InputError: If the model is not a student, the feature extractor not its own, or the model already quantized.

    Example:
        ```python
        >>> quantizer = INCQuantizer.from_pretrained("outputs/demo")
        >>> model = quantizer.quantize(INCConfig(), calibration_dataset, "outputs/demo-int8")
        ```
    """

    def __init__(self, model: PreTrainedModel, feature_extractor: FeatureExtractionMixin) -> None:
        super().__init__()
        if not is_student(model):
            name = type(model).__name__
            raise InputError(f"{name} is not a {STUDENT_TITLES}, the only models that can be quantized.")
        if not is_extractor_of(feature_extractor, model):
            name, own = type(feature_extractor).__name__, STUDENTS[model.config.model_type].feature_extractor
            raise InputError(f"{name} is not a {own.__name__}: use the model's own feature extractor.")
        if getattr(model.config, "quantization_config", None) is not None:
            raise InputError("This model is already quantized: choose the float model that it was made from.")
        self.model = model.eval()
        self.folded: StudentModel | None = None
        self.calibration: Calibration | None = None
        self.feature_extractor = feature_extractor

    @classmethod
    def from_pretrained(cls, model_name_or_path: str | Path, **kwargs: Any) -> "INCQuantizer":
        """Load a float model.

        Args:
            model_name_or_path (`str` or `Path`): Model folder or Hub id.
            **kwargs: Arguments of `from_pretrained`.
        """
        model = AutoModelForAudioClassification.from_pretrained(model_name_or_path, **kwargs)
        return cls(model, AutoFeatureExtractor.from_pretrained(model_name_or_path, **kwargs))

    def quantize(
        self,
        quantization_config: INCConfig,
        calibration_dataset: Mapping[str, Any] | Iterable[Mapping[str, Any]],
        save_directory: str | Path | None = None,
        metric: Metric | None = None,
        training_batches: Sequence[Tensor] | DataLoader[Tensor] | None = None,
    ) -> StudentModel:
        """Quantize the model, and write a model folder.

        The float model is not modified, and a folder is written completely or not at all. The best network that was
        found is kept even if the metric drops too much; `calibration` and a warning say so.

        Args:
            quantization_config ([`INCConfig`]): Settings.
            calibration_dataset (`Mapping` or `Iterable`): A few hundred labelled clips of the training subset, either
                `{"input_values": (clips, 1, mel_bins, frames), "labels": (clips,)}`, or rows
                `{"audio": ..., "label": ...}` of a dataset, of which the first second is used.
            save_directory (`str` or `Path`, *optional*): Folder to write.
            metric (`Callable`, *optional*): Metric that must not drop; defaults to the criterion of the settings.
            training_batches (`Sequence` or `DataLoader` of tensors of shape `(clips, mel_bins, frames)`, *optional*):
                Log-mel windows of an epoch of quantization-aware fine-tuning; defaults to the calibration clips.

        Returns:
            `StudentModel`: The INT8 model. Its logits are those that the tuning evaluated.

        Raises:
            FileExistsError: If `save_directory` is not empty.
            InputError: If there are no clips or labels, or the metric of the float network is not positive.
        """
        if save_directory is not None and Path(save_directory).exists() and any(Path(save_directory).iterdir()):
            raise FileExistsError(f"{save_directory} is not empty: choose another save_directory, or delete it.")
        form = INT8_FORMS[self.model.config.model_type]
        windows, labels = self._read_calibration_dataset(calibration_dataset)
        settings = quantization_config
        folded = self.folded = fold(self.model)
        float_logits = window_logits(folded, windows)
        if metric is None and settings.criterion == "agreement":
            labels = float_logits.argmax(dim=1).numpy()
        metric = metric or accuracy
        if not (before := metric(float_logits.numpy(), labels)) > 0:
            raise InputError(
                f"The metric of the float model on the calibration clips is {before}, so a relative loss is not "
                "defined: use clips of the classes that the model was trained on, or a positive metric."
            )
        equalize(folded, windows[:WINDOWS_TO_EQUALIZE])
        fitted = windows[:: -(-len(windows) // WINDOWS_TO_ROUND)]
        rounded = round_weights(folded, fitted, settings.activation_bits)
        if settings.qat_epochs:
            batches = training_batches or windows.split(WINDOWS_PER_BATCH)
            finetune(rounded, folded, batches, settings.qat_epochs)
        model, chosen = tune(rounded, windows, labels, float_logits, metric, settings)
        self.calibration = compare(
            float_logits, window_logits(model, windows), labels, metric, settings.tolerable_loss
        )
        if not self.calibration["tolerable"]:
            logger.warning("%s", describe_loss(self.calibration, settings.tolerable_loss))
        symmetric = chosen["act_sym"] or settings.activation_bits == 16
        config = form.config(len(windows), chosen["act_algo"], symmetric, settings.activation_bits)
        model.config.quantization_config = config
        vars(model).update(hf_quantizer=form.quantizer(config), is_quantized=True)
        if save_directory is not None:
            with atomic_path(save_directory) as part:
                model.save_pretrained(part)
                self.feature_extractor.save_pretrained(part)
                quantization_config.save_pretrained(part)
        return model

    def push_to_hub(self, save_directory: str | Path, repo_id: str, **kwargs: Any) -> str:
        """Upload a folder that [`~INCQuantizer.quantize`] wrote.

        Args:
            save_directory (`str` or `Path`): The folder.
            repo_id (`str`): Repository on the Hub, as user/name.
            **kwargs: Arguments of `huggingface_hub.upload_folder`.

        Returns:
            `str`: Address of the commit.

        Raises:
            InputError: If the model exceeds a limit of the challenge.
        """
        from huggingface_hub import HfApi

        check_limits(measure_folder(save_directory), save_directory, as_stored=True)
        api = HfApi()
        api.create_repo(repo_id, exist_ok=True)
        return str(api.upload_folder(repo_id=repo_id, folder_path=str(save_directory), **kwargs))

    def _read_calibration_dataset(
        self, dataset: Mapping[str, Any] | Iterable[Mapping[str, Any]]
    ) -> tuple[Tensor, np.ndarray]:
        """Return log-mel windows of shape `(clips, mel_bins, frames)` and labels of shape `(clips,)`."""
        if not isinstance(dataset, Mapping):
            rows = list(dataset)
            if any("label" not in row for row in rows):
                raise InputError("The calibration clips have no label, which tuning needs: add a column label.")
            read = self.model.pipeline_class.read  # only needs `feature_extractor` of its pipeline
            prepared = []
            for row in rows:
                audio, rate = read(self, row["audio"])
                prepared.append(self.feature_extractor([audio], sampling_rate=rate, return_tensors="pt").input_values)
            dataset = {
                "labels": [row["label"] for row in rows],
                "input_values": torch.cat([values[:, :1] for values in prepared]) if prepared else [],
            }
        inputs, labels = dataset.get("input_values"), dataset.get("labels")
        if inputs is None or not len(inputs):
            raise InputError("There are no calibration clips: use some hundred of the training subset.")
        if labels is None or len(labels) != len(inputs):
            raise InputError("The calibration clips have no label each, which tuning needs: give one label per clip.")
        windows, labels = torch.as_tensor(np.asarray(inputs), dtype=torch.float32), np.asarray(labels)
        if windows.ndim != 4 or windows.shape[1] != 1:
            raise InputError(
                f"input_values has shape {tuple(windows.shape)}, but must be (clips, 1, mel bins, frames)."
            )
        if not bool(torch.isfinite(windows).all()):
            raise InputError("input_values contains NaN or infinity: check the calibration clips.")
        if labels.min() < 0 or labels.max() >= self.model.config.num_labels:
            raise InputError(f"labels must be class indices from 0 to {self.model.config.num_labels - 1}.")
        return windows[:, 0], labels


class _Logits(nn.Module):
    """A network with tensors as inputs and outputs, as Neural Compressor expects it."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_values: Tensor) -> Tensor:
        return self.model(input_values).logits


def new_int8_network(config: PreTrainedConfig, activation_bits: int = 8) -> StudentModel:
    """Create an INT8 student whose integers are all zero, from the configuration of a float one."""
    student, form = STUDENTS[config.model_type], INT8_FORMS[config.model_type]
    model = student.model(student.config(**config.to_dict())).eval()
    form.replace_convolutions(model, partial(form.make_int8, activation_bits=activation_bits))
    model.config.quantization_config = form.config(activation_bits=activation_bits)
    return model


def assemble(rounded: StudentModel, integers: Mapping[str, ConvIntegers]) -> StudentModel:
    """Create an INT8 network.

    Args:
        rounded (`StudentModel`): A network from [`~train.deployment.rounding.round_weights`],
            which provides the biases and the smoothing factors.
        integers (`Mapping[str, ConvIntegers]`): Weights and input ranges of every convolution, by name.

    Returns:
        `StudentModel`: The INT8 network.
    """
    sources = folded_convolutions(rounded)
    model = new_int8_network(rounded.config, next(iter(sources.values())).activation_bits)
    for name, source in sources.items():
        layer = model.get_submodule(name)
        assert isinstance(layer, Int8Conv)
        layer.weight.copy_(integers[name]["weight"])
        layer.weight_scale.data.copy_(integers[name]["weight_scale"])
        layer.bias_scale.copy_(source.bias_scale)
        layer.bias.copy_((source.bias / source.bias_scale).round())
        layer.input_scale.fill_(integers[name]["input_scale"])
        layer.input_zero_point.fill_(integers[name]["input_zero_point"])
        if layer.smoothing is not None:
            assert source.smoothing is not None
            layer.smoothing.copy_(source.smoothing)
    return model


def rounded_integers(rounded: StudentModel) -> dict[str, ConvIntegers]:
    """Return the integers of a rounded network, with the input ranges that its weights were fitted to."""
    integers: dict[str, ConvIntegers] = {}
    for name, layer in folded_convolutions(rounded).items():
        assert layer.input_scale is not None
        integers[name] = {
            "weight": (layer.weight / layer.weight_scale.view(-1, 1, 1, 1)).round().to(torch.int8),
            "weight_scale": layer.weight_scale,
            "input_scale": layer.input_scale,
            "input_zero_point": layer.input_zero_point,
        }
    return integers


def tune(
    rounded: StudentModel,
    windows: Tensor,
    labels: np.ndarray,
    float_logits: Tensor,
    metric: Metric,
    config: INCConfig,
) -> tuple[StudentModel, dict[str, Any]]:
    """Let Neural Compressor choose the activation ranges of a rounded network by the metric.

    Tuning does not evaluate Neural Compressor's graph of quantize and dequantize operations but the network that is
    stored: a convolution sums in an order that depends on the memory layout of its input, which now and then changes
    an integer. Neural Compressor's activations have 8 bits; its ranges are widened where the network has 16.

    Args:
        rounded (`StudentModel`): A network from [`~train.deployment.rounding.round_weights`], whose input ranges are
            removed.
        windows (`torch.Tensor` of shape `(clips, mel_bins, frames)`): Calibration clips.
        labels (`np.ndarray` of shape `(clips,)`): Their labels.
        float_logits (`torch.Tensor` of shape `(clips, classes)`): Their logits in the float network.
        metric (`Callable`): Metric of the logits.
        config ([`INCConfig`]): Tolerable loss and number of trials.

    Returns:
        `tuple`: The INT8 network with the best metric, or among equals with the best SQNR of the logits, and its
        configuration in Neural Compressor.
    """
    from neural_compressor.torch.export import export
    from neural_compressor.torch.quantization import StaticQuantConfig, TuningConfig, autotune

    logging.getLogger("neural_compressor").setLevel(logging.WARNING)
    for layer in folded_convolutions(rounded).values():
        layer.input_scale = None  # from here on Neural Compressor rounds the inputs
    clips = torch.export.Dim("clips", min=1, max=4096)
    example = (windows[:2].unsqueeze(1),)
    network = export(_Logits(rounded).eval(), example, dynamic_shapes=({0: clips},))
    algorithms = ACTIVATION_ALGORITHMS[config.activation_bits]
    configurations = [StaticQuantConfig(act_algo=name, act_sym=False) for name in algorithms]
    trials: list[tuple[float, float, StudentModel]] = []
    started = False

    def calibrate(prepared: fx.GraphModule) -> None:
        window_logits(prepared, windows)
        _keep_weight_grids(prepared, rounded)

    def evaluate(graph: fx.GraphModule) -> float:
        nonlocal started
        if not started:  # the first graph does not round activations; the reference is the float network instead
            started = True
            return metric(float_logits.numpy(), labels)
        model = assemble(rounded, read_graph(graph, config.activation_bits))
        logits = window_logits(model, windows)
        trials.append((metric(logits.numpy(), labels), sqnr(float_logits, logits), model))
        return trials[-1][0]

    autotune(  # what it returns is ignored: it is nothing if no trial is tolerable
        network,
        TuningConfig(config_set=configurations, tolerable_loss=config.tolerable_loss, max_trials=config.max_trials),
        eval_fn=evaluate,
        run_fn=calibrate,
        example_inputs=example,
    )
    best = max(range(len(trials)), key=lambda trial: trials[trial][:2])
    return trials[best][2], configurations[best].to_dict()


def _keep_weight_grids(prepared: fx.GraphModule, rounded: StudentModel) -> None:
    """Make the observers of the weights find the steps that the weights were rounded to."""
    steps = {f"model.{name}.weight": layer.weight_scale for name, layer in folded_convolutions(rounded).items()}
    for node in prepared.graph.nodes:
        if node.op == "call_module" and node.args and node.args[0].op == "get_attr" and node.args[0].target in steps:
            observer = prepared.get_submodule(node.target)
            # Its step is the largest magnitude divided by 127.5, half the span of its integers.
            largest = steps[node.args[0].target] * 127.5
            observer.get_buffer("min_val").copy_(-largest)
            observer.get_buffer("max_val").copy_(largest)


def read_graph(graph: fx.GraphModule, activation_bits: int = 8) -> dict[str, ConvIntegers]:
    """Return the integers of every convolution in a graph of Neural Compressor, by the name of the layer.

    Args:
        graph (`fx.GraphModule`): A quantized graph, whose activations have 8 bits.
        activation_bits (`int`, *optional*, defaults to 8): Bits of the activations; 16 widens the ranges.
    """
    integers: dict[str, ConvIntegers] = {}
    for node in graph.graph.nodes:
        if node.target is not torch.ops.aten.conv2d.default:
            continue
        dequantize_input, dequantize_weight, *_ = node.args
        _, input_scale, input_zero_point, *_ = dequantize_input.args
        quantize_weight, weight_scale, *_ = dequantize_weight.args
        values = quantize_weight.args[0]
        weight = graph.get_parameter(values.target)
        weight_scale = graph.get_buffer(weight_scale.target)
        if activation_bits == 16:
            largest = max(input_zero_point, 255 - input_zero_point) * input_scale
            input_scale, input_zero_point = wide_range(largest)
        name = values.target.removeprefix("model.").removesuffix(".weight")
        integers[name] = {
            "weight": (weight * (1.0 / weight_scale).view(-1, 1, 1, 1)).round().clamp(-128, 127).to(torch.int8),
            "weight_scale": weight_scale,
            "input_scale": input_scale,
            "input_zero_point": input_zero_point,
        }
    return integers

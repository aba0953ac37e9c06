"""INT8 quantization of TF-SepNet with Intel Neural Compressor, in the manner of Optimum's quantizers."""

import logging
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from optimum.configuration_utils import BaseConfig
from optimum.quantization_base import OptimumQuantizer
from torch import nn
from transformers import AutoFeatureExtractor, AutoModelForAudioClassification
from transformers.feature_extraction_utils import FeatureExtractionMixin

from dataset_script.errors import InputError
from dataset_script.files import atomic_path
from model_cards.complexity import check_limits, measure_folder
from modeling_tfsepnet import TFSepNetForAudioClassification, TFSepNetInt8Config, TFSepNetInt8Conv
from modeling_tfsepnet.quantization_tfsepnet import TFSepNetInt8Quantizer, make_int8, replace_convolutions
from train.deployment.finetuning import finetune
from train.deployment.rounding import equalize, fold, layers, round_weights


Metric = Callable[[np.ndarray, np.ndarray], float]
"""Takes logits (clips, classes) and labels (clips,); larger is better."""

WINDOWS_PER_BATCH = 8


class INCConfig(BaseConfig):
    """How to quantize; saved beside the model as `inc_config.json`.

    Args:
        activation_algorithms (`list[str]`, *optional*, defaults to `["kl", "minmax"]`):
            Neural Compressor's estimates of activation ranges, in the order in which they are tried.
        activation_symmetric (`bool`, *optional*, defaults to `False`): Whether ranges are symmetric about zero.
        tolerable_loss (`float`, *optional*, defaults to 0.01): Largest relative loss of the metric.
        max_trials (`int`, *optional*, defaults to 100): Most configurations to try.
        damping (`float`, *optional*, defaults to 0.05): See [`~train.deployment.rounding.round_weights`].
        qat_epochs (`int`, *optional*, defaults to 0):
            Epochs of quantization-aware fine-tuning, see [`~train.deployment.finetuning.finetune`].

    Raises:
        InputError: If a value is out of range.
    """

    CONFIG_NAME = "inc_config.json"
    FULL_CONFIGURATION_FILE = "inc_config.json"

    activation_algorithms: list[str] | None = None
    activation_symmetric: bool = False
    tolerable_loss: float = 0.01
    max_trials: int = 100
    damping: float = 0.05
    qat_epochs: int = 0

    def __post_init__(self, **kwargs: Any) -> None:
        """Checks the values."""
        if self.activation_algorithms is None:
            self.activation_algorithms = ["kl", "minmax"]
        unknown = [name for name in self.activation_algorithms if name not in ("kl", "minmax")]
        if unknown or not self.activation_algorithms:
            raise InputError(f"activation_algorithms is {self.activation_algorithms}: give kl, minmax or both.")
        if not 0 <= self.tolerable_loss < 1:
            raise InputError(f"tolerable_loss is {self.tolerable_loss}, but has to be a share from 0 to below 1.")
        if self.max_trials < 1 or self.damping <= 0:
            raise InputError("max_trials has to be at least 1, and damping above 0.")
        if self.qat_epochs < 0:
            raise InputError(f"qat_epochs is {self.qat_epochs}: give a number of epochs, or 0 for none.")
        super().__post_init__(**kwargs)


class INCQuantizer(OptimumQuantizer):
    """Quantizes a TF-SepNet to INT8 with Neural Compressor (static, PT2E, accuracy-aware tuning).

    Args:
        model ([`TFSepNetForAudioClassification`]): A float model.
        feature_extractor (`FeatureExtractionMixin`): Of the model; saved with it.

    Attributes:
        folded ([`TFSepNetForAudioClassification`] or `None`):
            The float network that was rounded last, batch norms folded in and channels equalised.

    Example:
    ```python
    >>> quantizer = INCQuantizer.from_pretrained("outputs/demo")
    >>> model = quantizer.quantize(INCConfig(), calibration_dataset, "outputs/demo-int8")
    ```

    Raises:
        InputError: The model is no TF-SepNet, or is quantized already.
    """

    def __init__(self, model: nn.Module, feature_extractor: FeatureExtractionMixin) -> None:
        super().__init__()
        if getattr(model.config, "model_type", None) != "tfsepnet":
            raise InputError(f"{type(model).__name__} is no TF-SepNet: only its layers are known to this quantizer.")
        if getattr(model.config, "quantization_config", None) is not None:
            raise InputError("This model is quantized already: give the float model that it was made from.")
        self.model = model.eval()
        self.folded: TFSepNetForAudioClassification | None = None
        self.feature_extractor = feature_extractor

    @classmethod
    def from_pretrained(cls, model_name_or_path: str | Path, **kwargs: Any) -> "INCQuantizer":
        """Load a float model folder or Hub id; `kwargs` go to `from_pretrained`."""
        model = AutoModelForAudioClassification.from_pretrained(model_name_or_path, **kwargs)
        return cls(model, AutoFeatureExtractor.from_pretrained(model_name_or_path, **kwargs))

    def quantize(
        self,
        quantization_config: INCConfig,
        calibration_dataset: Mapping[str, Any] | Iterable[Mapping[str, Any]],
        save_directory: str | Path | None = None,
        metric: Metric | None = None,
        training_batches: Iterable[torch.Tensor] | None = None,
    ) -> TFSepNetForAudioClassification:
        """Quantize, and write a model folder.

        Args:
            quantization_config ([`INCConfig`]): How.
            calibration_dataset (`Mapping` or `Iterable`):
                A few hundred labelled clips of the training subset: `{"input_values": (clips, 1, mel_bins, frames),
                "labels": (clips,)}`, or rows `{"audio": …, "label": …}` of a dataset, whose clips' first second is
                taken.
            save_directory (`str` or `Path`, *optional*): Folder to write, in one go at the end.
            metric (`Callable`, *optional*): What must not fall, by default the accuracy.
            training_batches (`Iterable` of tensors `(clips, mel_bins, frames)`, *optional*):
                Log-mel windows of an epoch of quantization-aware fine-tuning; by default the calibration clips.

        Returns:
            The INT8 model, whose logits are those that Neural Compressor's tuning evaluated.

        Raises:
            FileExistsError: `save_directory` exists and is not empty.
            InputError: There are no clips or labels, or the metric fell by more than is tolerated. Nothing is written
                then, and the float model is as it was.
        """
        if save_directory is not None and Path(save_directory).exists() and any(Path(save_directory).iterdir()):
            raise FileExistsError(f"{save_directory} is not empty: give another save_directory, or delete it.")
        windows, labels = self.read(calibration_dataset)
        metric = metric or accuracy
        folded = self.folded = fold(self.model)
        equalize(folded, windows[:128])
        rounded = round_weights(folded, windows, quantization_config.damping)
        if quantization_config.qat_epochs:
            batches = training_batches or windows.split(WINDOWS_PER_BATCH)
            finetune(rounded, folded, batches, quantization_config.qat_epochs)
        model, chosen, before, after = tune(folded, rounded, windows, labels, metric, quantization_config)
        if after < before * (1 - quantization_config.tolerable_loss):
            raise InputError(
                f"The metric fell from {before:.4f} to {after:.4f} with INT8, by more than the tolerated "
                f"{quantization_config.tolerable_loss:.1%}: keep the float model, give more calibration clips, or "
                "raise tolerable_loss."
            )
        config = TFSepNetInt8Config(len(windows), chosen["act_algo"], chosen["act_sym"])
        model.config.quantization_config = config
        model.hf_quantizer = TFSepNetInt8Quantizer(config)
        model.is_quantized = True
        if save_directory is not None:
            save_folder(model, self.feature_extractor, quantization_config, Path(save_directory))
        return model

    def push_to_hub(self, save_directory: str | Path, repo_id: str, **kwargs: Any) -> str:
        """Upload a folder that [`~INCQuantizer.quantize`] wrote; `kwargs` go to `huggingface_hub.upload_folder`."""
        from huggingface_hub import HfApi

        check_limits(measure_folder(save_directory), save_directory, as_stored=True)
        api = HfApi()
        api.create_repo(repo_id, exist_ok=True)
        return str(api.upload_folder(repo_id=repo_id, folder_path=str(save_directory), **kwargs))

    def read(self, dataset: Mapping[str, Any] | Iterable[Mapping[str, Any]]) -> tuple[torch.Tensor, np.ndarray]:
        """Return log-mel windows (clips, mel_bins, frames) and labels (clips,) of a calibration dataset."""
        if not isinstance(dataset, Mapping):
            rows = list(dataset)
            if any("label" not in row for row in rows):
                raise InputError("The calibration clips have no label: tuning needs to know what is right.")
            reader = TFSepNetForAudioClassification.pipeline_class.read
            prepared = []
            for row in rows:
                audio, rate = reader(self, row["audio"])
                prepared.append(self.feature_extractor([audio], sampling_rate=rate, return_tensors="pt").input_values)
            dataset = {"labels": [row["label"] for row in rows]}
            dataset["input_values"] = torch.cat([values[:, :1] for values in prepared]) if prepared else []
        if len(dataset.get("input_values", ())) == 0:
            raise InputError("There are no calibration clips: give some hundred of the training subset.")
        if dataset.get("labels") is None or len(dataset["labels"]) != len(dataset["input_values"]):
            raise InputError("The calibration clips have no label each: tuning needs to know what is right.")
        windows = torch.as_tensor(np.asarray(dataset["input_values"]), dtype=torch.float32)
        if windows.ndim != 4 or windows.shape[1] != 1 or not bool(torch.isfinite(windows).all()):
            raise InputError(
                f"input_values has shape {tuple(windows.shape)}, but has to be (clips, 1, mel bins, frames), finite."
            )
        labels = np.asarray(dataset["labels"])
        if labels.min() < 0 or labels.max() >= self.model.config.num_labels:
            raise InputError(f"labels have to be class indices from 0 to {self.model.config.num_labels - 1}.")
        return windows[:, 0], labels


def accuracy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Share of clips whose largest logit is that of their label."""
    return float((logits.argmax(axis=1) == labels).mean())


class _Logits(nn.Module):
    """The network as Neural Compressor wants it: tensors in, tensors out."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_values: torch.Tensor) -> torch.Tensor:
        return self.model(input_values).logits


@torch.no_grad()
def run(model: nn.Module, windows: torch.Tensor) -> torch.Tensor:
    """Logits (clips, classes) of windows (clips, mel_bins, frames)."""
    outputs = [model(batch.unsqueeze(1)) for batch in windows.split(WINDOWS_PER_BATCH)]
    return torch.cat([output if isinstance(output, torch.Tensor) else output.logits for output in outputs])


def assemble(rounded: TFSepNetForAudioClassification, graph: nn.Module) -> TFSepNetForAudioClassification:
    """Return the INT8 network of the integers and ranges in a graph of Neural Compressor."""
    model = type(rounded)(type(rounded.config)(**rounded.config.to_dict())).eval()
    replace_convolutions(model, make_int8)
    prepared = layers(rounded)
    for name, found in read_graph(graph).items():
        layer: TFSepNetInt8Conv = model.get_submodule(name)
        source = prepared[name]
        layer.weight.copy_(found["weight"])
        layer.weight_scale.data.copy_(found["weight_scale"])
        layer.bias_scale.copy_(source.bias_scale)
        layer.bias.copy_((source.bias / source.bias_scale).round())
        layer.input_scale.fill_(found["input_scale"])
        layer.input_zero_point.fill_(found["input_zero_point"])
        if layer.smoothing is not None:
            layer.smoothing.copy_(source.smoothing)
    return model


def tune(
    folded: TFSepNetForAudioClassification,
    rounded: TFSepNetForAudioClassification,
    windows: torch.Tensor,
    labels: np.ndarray,
    metric: Metric,
    config: INCConfig,
) -> tuple[TFSepNetForAudioClassification, dict[str, Any], float, float]:
    """Let Neural Compressor quantize the prepared network, until the metric is kept.

    What is evaluated is not its graph of quantize and dequantize operations, but the network that is stored: the order
    in which a convolution adds up depends on the layout of its input, and now and then an integer on that order.

    Returns:
        The INT8 network, the configuration it was made with, and the metric of the float network and of the INT8 one.

    Raises:
        InputError: The metric of the float network is not positive, so that no share of it can be lost.
    """
    from neural_compressor.torch.export import export
    from neural_compressor.torch.quantization import StaticQuantConfig, TuningConfig, autotune

    logging.getLogger("neural_compressor").setLevel(logging.WARNING)
    for layer in layers(rounded).values():
        layer.input_scale = None  # it is Neural Compressor that rounds from here on
    clips = torch.export.Dim("clips", min=1, max=4096)
    example = (windows[:2].unsqueeze(1),)
    network = export(_Logits(rounded).eval(), example, dynamic_shapes=({0: clips},))
    before = metric(run(folded, windows).numpy(), labels)
    if not before > 0:
        raise InputError(
            f"The metric of the float model on the calibration clips is {before}, so there is nothing to keep: give "
            "clips of the classes the model was trained on, or a metric that is positive."
        )
    trials: list[float] = []

    def calibrate(prepared: nn.Module) -> None:
        run(prepared, windows)
        keep_weight_grids(prepared, rounded)

    def evaluate(graph: nn.Module) -> float:
        # The first graph is the one without roundings of activations; what counts is the float one.
        trials.append(before if not trials else metric(run(assemble(rounded, graph), windows).numpy(), labels))
        return trials[-1]

    graph = autotune(
        network,
        TuningConfig(
            config_set=[
                StaticQuantConfig(act_algo=name, act_sym=config.activation_symmetric)
                for name in config.activation_algorithms
            ],
            tolerable_loss=config.tolerable_loss,
            max_trials=config.max_trials,
        ),
        eval_fn=evaluate,
        run_fn=calibrate,
        example_inputs=example,
    )
    (chosen,) = graph.qconfig.values()
    model = assemble(rounded, graph)
    return model, chosen.to_dict(), before, metric(run(model, windows).numpy(), labels)


def keep_weight_grids(prepared: nn.Module, rounded: TFSepNetForAudioClassification) -> None:
    """Make the observers of the weights find the steps that the weights were rounded to."""
    steps = {f"model.{name}.weight": layer.weight_scale for name, layer in layers(rounded).items()}
    for node in prepared.graph.nodes:
        if node.op == "call_module" and node.args and node.args[0].op == "get_attr" and node.args[0].target in steps:
            observer = prepared.get_submodule(node.target)
            # Its step is the largest magnitude divided by 127.5, half the span of its integers.
            largest = steps[node.args[0].target] * 127.5
            observer.min_val.copy_(-largest)
            observer.max_val.copy_(largest)


def read_graph(graph: nn.Module) -> dict[str, dict[str, Any]]:
    """Return integers and ranges of every convolution in a graph of Neural Compressor, by the layer's name."""
    found = {}
    for node in graph.graph.nodes:
        if node.target is not torch.ops.aten.conv2d.default:
            continue
        _, scale, zero_point, *_ = node.args[0].args
        values, weight_scale, *_ = node.args[1].args
        values = values.args[0]  # what the quantize operation takes
        weight = graph.get_parameter(values.target)
        weight_scale = graph.get_buffer(weight_scale.target)
        integers = (weight * (1.0 / weight_scale).view(-1, 1, 1, 1)).round().clamp(-128, 127)
        name = values.target.removeprefix("model.").removesuffix(".weight")
        found[name] = {
            "weight": integers.to(torch.int8),
            "weight_scale": weight_scale,
            "input_scale": scale,
            "input_zero_point": zero_point,
        }
    return found


def save_folder(model: nn.Module, feature_extractor: FeatureExtractionMixin, config: INCConfig, folder: Path) -> None:
    """Write a model folder that is at no time incomplete."""
    with atomic_path(folder) as part:
        model.save_pretrained(part)
        feature_extractor.save_pretrained(part)
        config.save_pretrained(part)


def agreement(reference: torch.Tensor, logits: torch.Tensor) -> dict[str, float]:
    """Share of equal decisions, and signal-to-quantization-noise ratio of the logits in dB."""
    return {
        "agreement": float((reference.argmax(1) == logits.argmax(1)).float().mean()),
        "sqnr_db": sqnr(reference, logits),
    }


def sqnr(reference: torch.Tensor, values: torch.Tensor) -> float:
    """Signal-to-quantization-noise ratio in dB."""
    noise = (reference - values).double().square().sum().clamp(min=1e-30)
    return float(10 * torch.log10(reference.double().square().sum() / noise))


@torch.no_grad()
def layer_sqnr(
    folded: TFSepNetForAudioClassification, model: TFSepNetForAudioClassification, windows: torch.Tensor
) -> dict[str, float]:
    """Return what each layer costs: the SQNR of the logits in dB where that layer alone is INT8, by its name.

    Args:
        folded ([`TFSepNetForAudioClassification`]): The float network, folded and equalised as `model` is.
        model ([`TFSepNetForAudioClassification`]): Its INT8 form.
        windows (`torch.Tensor` of shape `(clips, mel_bins, frames)`): Log-mel.
    """
    expected, decibels = run(folded, windows), {}
    for name, layer in layers(folded).items():
        folded.set_submodule(name, model.get_submodule(name))
        decibels[name] = sqnr(expected, run(folded, windows))
        folded.set_submodule(name, layer)
    return decibels

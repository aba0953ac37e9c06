"""Preparation of a TF-SepNet for INT8: folded, equalised, and rounded so that its outputs stay where they were.

Post-training static quantization rounds every convolution's input and weights. What that costs here is decided before
any quantizer sees the network, in three steps that need some unlabelled clips and no gradients:

1. [`fold`] merges the batch norms into the convolutions.
2. [`equalize`] moves factors between channels where that changes nothing in float (Nagel et al., *Data-Free
   Quantization through Weight Equalization and Bias Correction*, ICCV 2019), and gives the input channels of the
   depthwise convolutions and of those that follow a residual norm factors of their own (Xiao et al., *SmoothQuant*,
   ICML 2023), so that one range fits all channels of a layer.
3. [`round_weights`] goes through the layers in order. The weights of each are fitted to what the float network makes
   of the same clips, given inputs that are rounded already, and are rounded one input at a time, the others making up
   for the error (Frantar et al., *GPTQ*, ICLR 2023); the biases take up what remains of the mean.
"""

import copy
from collections.abc import Iterator

import torch
from torch import nn

from modeling_tfsepnet import TFSepNetForAudioClassification
from modeling_tfsepnet.quantization_tfsepnet import finish_output, prepare_input, replace_convolutions


WINDOWS_PER_BATCH = 16

SAMPLES_PER_WINDOW = 64
"""Positions of a feature map that are looked at; the others hardly differ."""


class FoldedConv(nn.Module):
    """Convolution with its batch norm folded in, as float; rounds its input once `input_scale` is set.

    Attributes:
        weight (`nn.Parameter` of shape `(out, in / groups, kernel, kernel)`): Multiplied by `smoothing`.
        bias (`nn.Parameter` of shape `(out,)`).
        smoothing (`torch.Tensor` of shape `(in,)` or `None`): What the input is divided by.
        weight_scale (`torch.Tensor` of shape `(out,)` or `None`): Step of the rounded weights.
        bias_scale (`float` or `None`): Step of the rounded biases.
        input_scale, input_zero_point: Step and zero of the input's 8 bits, or `None` to leave it alone.
    """

    def __init__(self, unit: nn.Module, smooth: bool, centred: bool) -> None:
        super().__init__()
        if isinstance(unit, nn.Conv2d):
            convolution, weight, bias = unit, unit.weight, unit.bias
        else:
            convolution, norm = unit.convolution, unit.normalization
            scale = norm.weight * (norm.running_var + norm.eps).rsqrt()
            weight, bias = convolution.weight * scale.view(-1, 1, 1, 1), norm.bias - norm.running_mean * scale
        self.relu = convolution is not unit
        self.centred = centred
        self.stride, self.padding, self.groups = convolution.stride, convolution.padding, convolution.groups
        self.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
        self.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
        self.register_buffer("smoothing", torch.ones(convolution.in_channels) if smooth else None)
        self.weight_scale = self.bias_scale = self.input_scale = self.input_zero_point = None
        self.listener = None

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:
        """Maps (batch, in_channels, frequency, time) to (batch, out_channels, frequency, time)."""
        level = hidden_state.amin(dim=(1, 3), keepdim=True) if self.centred else None
        hidden_state = prepare_input(hidden_state, level, self.smoothing)
        if self.listener is not None:
            self.listener(hidden_state, level)
        hidden_state = self.round_input(hidden_state)
        output = nn.functional.conv2d(
            hidden_state, self.weight, self.bias, self.stride, self.padding, (1, 1), self.groups
        )
        return finish_output(output, level, self.weight, self.smoothing, self.relu)

    def round_input(self, hidden_state: torch.Tensor) -> torch.Tensor:
        """The nearest values that 8 bits can stand for; gradients pass where they are within the range."""
        if self.input_scale is None:
            return hidden_state
        return torch.fake_quantize_per_tensor_affine(hidden_state, self.input_scale, self.input_zero_point, 0, 255)


def fold(model: TFSepNetForAudioClassification) -> TFSepNetForAudioClassification:
    """Return a float copy of `model` whose convolution units are [`FoldedConv`]; its logits are the same."""
    folded = copy.deepcopy(model).to("cpu", torch.float32).eval()
    replace_convolutions(folded, FoldedConv)
    return folded


def layers(folded: nn.Module) -> dict[str, FoldedConv]:
    """Return the convolutions by name, in the order in which they are computed."""
    return {name: module for name, module in folded.named_modules() if isinstance(module, FoldedConv)}


@torch.no_grad()
def equalize(folded: TFSepNetForAudioClassification, windows: torch.Tensor) -> None:
    """Balance the channels' ranges, in place; the logits stay the same.

    Args:
        folded ([`TFSepNetForAudioClassification`]): From [`fold`].
        windows (`torch.Tensor` of shape `(windows, mel_bins, frames)`): Log-mel of unlabelled clips.
    """
    convolutions = layers(folded)
    samples: dict[str, list[torch.Tensor]] = {}
    for name, layer in convolutions.items():

        def listen(hidden_state: torch.Tensor, level: torch.Tensor | None, name: str = name) -> None:
            values = hidden_state.flatten(2)
            chosen = torch.linspace(0, values.shape[2] - 1, min(values.shape[2], 256)).long()
            samples.setdefault(name, []).append(values[..., chosen])

        layer.listener = listen
    for batch in windows.split(WINDOWS_PER_BATCH):
        folded(batch.unsqueeze(1))
    for layer in convolutions.values():
        layer.listener = None
    values = {name: torch.cat(parts).transpose(0, 1).flatten(1) for name, parts in samples.items()}

    for name, layer in convolutions.items():
        if layer.smoothing is not None:
            factors = positive(torch.tensor([best_range(channel)[0] for channel in values[name]])).sqrt()
            layer.smoothing.copy_(factors / factors.max())
            factors = layer.smoothing.view(layer.groups, -1)
            by_output = factors.repeat_interleave(layer.weight.shape[0] // layer.groups, dim=0)
            layer.weight.mul_(by_output[..., None, None])
    pairs = [("tfsepnet.stem.0", "tfsepnet.stem.1")]
    pairs += [(name, name.replace("depthwise", "pointwise")) for name in convolutions if name.endswith("depthwise")]
    for first_name, second_name in pairs:
        first, second = convolutions[first_name], convolutions[second_name]
        largest = positive(values[second_name].amax(dim=1))
        if second.groups == 1:
            weights = second.weight.abs().amax(dim=(0, 2, 3)).clamp(min=1e-5)
            factors = (largest / weights).sqrt()
            second.weight.mul_(factors.view(1, -1, 1, 1))
        else:
            factors = largest
            copies = second.weight.shape[0] // second.groups
            second.weight.mul_(factors.repeat_interleave(copies).view(-1, 1, 1, 1))
        first.weight.div_(factors.view(-1, 1, 1, 1))
        first.bias.div_(factors)


def positive(ranges: torch.Tensor) -> torch.Tensor:
    """Ranges of channels, with those of silent channels raised to a thousandth of the largest."""
    return ranges.clamp(min=max(1e-3 * float(ranges.max()), 1e-6))


def best_range(values: torch.Tensor) -> tuple[float, int]:
    """Return the step and the zero of the 8-bit range that rounds `values` with the least mean square error."""
    values = values.flatten()
    values = values[:: max(1, len(values) // 200_000)]
    low, high = values.min().clamp(max=0), values.max().clamp(min=0)
    best = None
    for share in torch.linspace(1, 0.3, 36):
        scale = ((high * share - low) / 255).clamp(min=1e-8)
        zero_point = (-low / scale).round()
        rounded = (((values / scale).round() + zero_point).clamp(0, 255) - zero_point) * scale
        error = (rounded - values).square_().mean()
        if best is None or error < best[0]:
            best = (error, scale, zero_point)
    return float(best[1]), int(best[2])


@torch.no_grad()
def round_weights(
    folded: TFSepNetForAudioClassification, windows: torch.Tensor, damping: float = 0.05
) -> TFSepNetForAudioClassification:
    """Return a copy whose weights lie on 8-bit grids and whose biases lie on 16-bit grids.

    Args:
        folded ([`TFSepNetForAudioClassification`]): From [`fold`], equalised.
        windows (`torch.Tensor` of shape `(windows, mel_bins, frames)`): Log-mel of unlabelled clips.
        damping (`float`, *optional*, defaults to 0.05): How strongly the fit is held at the float weights, relative to
            the inputs' mean square.
    """
    rounded = copy.deepcopy(folded)
    floats, targets = layers(folded), layers(rounded)
    hidden_float = hidden_rounded = windows.unsqueeze(1).contiguous(memory_format=torch.channels_last)
    for prefix, part_float, part_rounded in parts(folded, rounded):
        for name in (name for name in targets if name.startswith(prefix)):
            layer, reference = targets[name], floats[name]
            inputs, contributions = gather(part_rounded, layer, hidden_rounded)
            layer.input_scale, layer.input_zero_point = best_range(inputs)
            inputs = layer.round_input(inputs) + contributions
            wanted, contributions = gather(part_float, reference, hidden_float)
            fit_layer(layer, reference, inputs, wanted + contributions, damping)
        if part_float is not folded.classifier:
            hidden_float = torch.cat([part_float(batch) for batch in hidden_float.split(WINDOWS_PER_BATCH)])
            hidden_rounded = torch.cat([part_rounded(batch) for batch in hidden_rounded.split(WINDOWS_PER_BATCH)])
    return rounded


def parts(*models: TFSepNetForAudioClassification) -> Iterator[tuple[str, nn.Module, nn.Module]]:
    """The networks' parts side by side: what the layers' names start with, and the parts."""
    yield ("tfsepnet.stem.", *(model.tfsepnet.stem for model in models))
    for index in range(len(models[0].tfsepnet.stages)):
        yield (f"tfsepnet.stages.{index}.", *(model.tfsepnet.stages[index] for model in models))
    yield ("classifier", *(model.classifier for model in models))


class _ReachedError(Exception):
    """Ends a forward pass at the layer that is looked at."""


def gather(part: nn.Module, layer: FoldedConv, hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return what the kernel of `layer` sees at some positions, (groups, taps, samples), and the level's share of it.

    The latter is zero unless the layer is centred; it is what [`finish_output`] adds, before the weights.
    """
    seen, shares = [], []
    kernel = layer.weight.shape[2:]

    def listen(hidden_state: torch.Tensor, level: torch.Tensor | None) -> None:
        patches = nn.functional.unfold(hidden_state, kernel, padding=layer.padding, stride=layer.stride)
        patches = patches.view(len(hidden_state), layer.groups, -1, patches.shape[2])
        share = torch.zeros(len(hidden_state), 1, 1, patches.shape[3])
        if level is not None:
            share = level.expand(-1, 1, -1, hidden_state.shape[3]).reshape(share.shape)
            share = share * layer.smoothing.reciprocal().view(1, 1, -1, 1)
        generator = torch.Generator().manual_seed(len(seen))
        chosen = torch.randperm(patches.shape[3], generator=generator)[:SAMPLES_PER_WINDOW]
        seen.append(patches[..., chosen])
        shares.append(share[..., chosen])
        raise _ReachedError

    layer.listener = listen
    scale, layer.input_scale = layer.input_scale, None
    for batch in hidden_states.split(WINDOWS_PER_BATCH):
        try:
            part(batch)
        except _ReachedError:
            continue
    layer.listener, layer.input_scale = None, scale
    return tuple(torch.cat(values).permute(1, 2, 0, 3).flatten(2) for values in (seen, shares))


def fit_layer(
    layer: FoldedConv, reference: FoldedConv, inputs: torch.Tensor, wanted: torch.Tensor, damping: float
) -> None:
    """Set a layer's weights and biases to integers times steps, so that `inputs` give what `wanted` gives in float.

    Args:
        layer, reference ([`FoldedConv`]): The layer to set, and the float one.
        inputs, wanted (`torch.Tensor` of shape `(groups, taps, samples)`): What the kernels see, rounded and in float.
        damping (`float`): See [`round_weights`].
    """
    groups = layer.groups
    weight = reference.weight.view(groups, -1, inputs.shape[1]).double()
    inputs, target = inputs.double(), weight @ wanted.double()
    input_mean, target_mean = inputs.mean(dim=2), target.mean(dim=2)
    inputs, target = inputs - input_mean.unsqueeze(2), target - target_mean.unsqueeze(2)
    samples = inputs.shape[2]
    moment = inputs @ inputs.transpose(1, 2) / samples
    ridge = damping * moment.diagonal(dim1=1, dim2=2).mean(dim=1).clamp(min=1e-9)
    moment_held = moment + ridge.view(-1, 1, 1) * torch.eye(moment.shape[1], dtype=torch.float64)
    lacking = target @ inputs.transpose(1, 2) / samples - weight @ moment
    weight = weight + torch.linalg.solve(moment_held, lacking.transpose(1, 2)).transpose(1, 2)
    weight, scale = round_one_by_one(weight, moment_held)

    shift = target_mean - (weight @ input_mean.unsqueeze(2)).squeeze(2)
    bias = reference.bias.double() + shift.flatten()
    # Steps that a quantizer finds again in float32 from the span of the integers, half of which is 127.5.
    layer.weight_scale = scale.flatten().float() * 127.5 / 127.5
    integers = (weight / scale).round().view(reference.weight.shape)
    # The products are those that the integers give in float32 wherever they are loaded.
    layer.weight.copy_(integers.float() * layer.weight_scale.view(-1, 1, 1, 1))
    layer.bias_scale = (bias.abs().max() / 32767).clamp(min=1e-12).float()
    layer.bias.copy_((bias / layer.bias_scale.double()).round().float() * layer.bias_scale)


def round_one_by_one(weight: torch.Tensor, moment: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round weights (groups, out, taps) to 8 bits for inputs of second moment (groups, taps, taps).

    Each tap's error is spread over the taps that follow. Short kernels try several steps and keep the best one: the
    few values of a depthwise kernel often happen to lie close to some grid.

    Returns:
        The rounded weights, and their steps of shape `(groups, out, 1)`.
    """
    spread = torch.linalg.cholesky(torch.linalg.inv(moment), upper=True)
    largest = weight.abs().amax(dim=2, keepdim=True).clamp(min=1e-12)
    taps = weight.shape[2]
    best_error = torch.full(weight.shape[:2], torch.inf, dtype=torch.float64)
    best, best_scale = torch.zeros_like(weight), torch.ones_like(largest)
    for stretch in torch.linspace(0.9, 1.3, 41) if taps <= 9 else (torch.ones(()),):
        scale = (largest / 127 * stretch).float().double()
        rest, rounded = weight.clone(), torch.zeros_like(weight)
        for tap in range(taps):
            column = rest[:, :, tap : tap + 1]
            rounded[:, :, tap : tap + 1] = (column / scale).round().clamp(-127, 127) * scale
            error = (column - rounded[:, :, tap : tap + 1]) / spread[:, tap : tap + 1, tap : tap + 1]
            rest[:, :, tap:] -= error * spread[:, tap : tap + 1, tap:]
        difference = rounded - weight
        error = ((difference @ moment) * difference).sum(dim=2)
        better = error < best_error
        best_error = torch.where(better, error, best_error)
        best = torch.where(better.unsqueeze(2), rounded, best)
        best_scale = torch.where(better.unsqueeze(2), scale, best_scale)
    return best, best_scale

"""The encoder of a classifier, whichever its family: what can be frozen, and how fast each of its layers learns."""

import itertools

from torch import nn
from transformers import PreTrainedModel

from dataset_script.errors import InputError


def encoder_of(model: PreTrainedModel) -> nn.Module | None:
    """Return the part of a classifier that is pretrained without classes; None if it has none, as the students."""
    return getattr(model, model.base_model_prefix, None) or getattr(model, "encoder", None)


def freeze_encoder(model: PreTrainedModel) -> None:
    """Train only the head: disable the gradients of the encoder.

    [`~train.classification.trainer.DistillationTrainer`] also keeps it in evaluation mode, without dropout.

    Args:
        model (`PreTrainedModel`): A classifier with an encoder.
    """
    encoder = encoder_of(model)
    assert encoder is not None
    encoder.requires_grad_(False)


def layer_factors(model: PreTrainedModel, decay: float) -> dict[str, float]:
    """Return the factor of the learning rate of each parameter.

    The head and what follows the encoder's layers have the factor 1, the last layer `decay`, the one below `decay**2`
    and so on; what precedes the first layer (convolutions, patches, positions) has the smallest factor. Source: Bao et
    al., arXiv 2106.08254 (BEiT), whose factors these are.

    Args:
        model (`PreTrainedModel`): A classifier with an encoder.
        decay (`float`): Factor from a layer to the one below, above 0; 1 is the same rate everywhere.

    Returns:
        `dict[str, float]`: The factors by the name of the parameter.

    Raises:
        InputError: If the encoder does not consist of a stack of layers.
    """
    encoder, count = encoder_of(model), getattr(model.config, "num_hidden_layers", None)
    modules = encoder.named_modules() if encoder is not None else ()
    named = [module for name, module in modules if name.rpartition(".")[2] in ("layer", "layers")]
    stacks = [module for module in named if isinstance(module, nn.ModuleList) and len(module) == count]
    if encoder is None or not stacks:
        raise InputError(f"A {model.config.model_type} model has no stack of layers: set layer_decay to 1.")
    layers = {parameter: depth for depth, layer in enumerate(stacks[0], 1) for parameter in layer.parameters()}
    below = set(itertools.takewhile(lambda parameter: parameter not in layers, encoder.parameters()))
    top = len(stacks[0]) + 1
    return {
        name: decay ** (top - (0 if parameter in below else layers.get(parameter, top)))
        for name, parameter in model.named_parameters()
    }

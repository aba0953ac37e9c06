"""Convert BEATs checkpoints to model folders.

    scenes convert BEATs_iter3_plus_AS2M.pt checkpoints/BEATs_iter3_plus_AS2M
    python -m modeling_beats.convert_beats espnet/OpenBEATS-Large-i2-as20k checkpoints/OpenBEATS-Large-i2-as20k

The source is a checkpoint file, a folder or a model on the Hub, of Microsoft's original implementation (`{"cfg",
"model"[, "label_dict"]}`) or of ESPnet and OpenBEATs (`{"cfg", "model"[, "token_list"]}`, or a state dict beside its
`config.yaml`). Pre-trained files become an encoder, fine-tuned ones a classifier, and tokenizers a tokenizer; decoders
of pre-training are left out. Classes have the names of the file's list, unchanged (`Male_speech,_man_speaking`).

The model folder has the statistics of the filter banks that the checkpoint was trained with, as far as known, and the
padding rule of its implementation (`padding_rule` of [`BeatsConfig`]). Whatever the rule, the feature extractor
refuses clips too short for one patch (less than 2800 samples at 16 kHz), for which ESPnet returns NaN; the package
openbeats repeats them.
"""

import argparse
import json
import re
import reprlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import PreTrainedModel, SequenceFeatureExtractor

from .arguments_beats import add_arguments, check_arguments
from .checkpoint_beats import find_files, read_checkpoint, remove_prefix
from .configuration_beats import BeatsConfig
from .convert_espnet import DEFAULT_STATISTICS, is_espnet, translate
from .feature_extraction_beats import BeatsFeatureExtractor
from .modeling_beats import BeatsForAudioClassification, BeatsModel, BeatsPreTrainedModel
from .tokenizer_beats import BeatsTokenizerModel


# Key of the original `cfg` -> (field of BeatsConfig, default for a missing key). The defaults are those of the
# original class, not always the values of the public checkpoints.
CFG_FIELDS = {
    "input_patch_size": ("patch_size", None),
    "embed_dim": ("embedding_size", 512),
    "conv_bias": ("conv_bias", False),
    "encoder_layers": ("num_hidden_layers", 12),
    "encoder_embed_dim": ("hidden_size", 768),
    "encoder_ffn_embed_dim": ("intermediate_size", 3072),
    "encoder_attention_heads": ("num_attention_heads", 12),
    "activation_fn": ("hidden_act", "gelu"),
    "layer_wise_gradient_decay_ratio": ("layer_wise_gradient_decay_ratio", 1.0),
    "layer_norm_first": ("layer_norm_first", False),
    "deep_norm": ("deep_norm", False),
    "dropout": ("hidden_dropout", 0.1),
    "attention_dropout": ("attention_dropout", 0.1),
    "activation_dropout": ("activation_dropout", 0.0),
    "encoder_layerdrop": ("layerdrop", 0.0),
    "dropout_input": ("embedding_dropout", 0.0),
    "conv_pos": ("num_conv_pos_embeddings", 128),
    "conv_pos_groups": ("num_conv_pos_embedding_groups", 16),
    "relative_position_embedding": ("relative_position_embedding", False),
    "num_buckets": ("num_buckets", 320),
    "max_distance": ("max_bucket_distance", 1280),
    "gru_rel_pos": ("gru_rel_pos", False),
    "predictor_dropout": ("classifier_dropout", 0.1),
    "quant_n": ("codebook_size", 1024),
    "quant_dim": ("codebook_dim", 256),
}

ACTIVATIONS = {
    "gelu": "gelu",
    "gelu_accurate": "gelu_pytorch_tanh",
    "gelu_fast": "gelu_pytorch_tanh",
    "relu": "relu",
    "tanh": "tanh",
    "linear": "linear",
    "glu": "glu",
}

# Prefix of a parameter name -> prefix of the original name. The first match applies.
PREFIXES = {
    "embeddings.convolution.": "patch_embedding.",
    "embeddings.layer_norm.": "layer_norm.",
    "embeddings.projection.": "post_extract_proj.",
    "encoder.pos_conv_embed.magnitude": "encoder.pos_conv.0.weight_g",
    "encoder.pos_conv_embed.direction": "encoder.pos_conv.0.weight_v",
    "encoder.pos_conv_embed.": "encoder.pos_conv.0.",
    "classifier.": "predictor.",
    "quantizer.codebook": "quantize.embedding.weight",
    "quantizer.cluster_size": "quantize.cluster_size",
    "quantizer.initialized": "quantize.embedding.initted",
}

# Statistics in tokenizer checkpoints that the original does not update.
UNUSED = ("quantize.embedding.cluster_size", "quantize.embedding.embed_avg")


def save_folder(folder: Path, model: PreTrainedModel, feature_extractor: SequenceFeatureExtractor) -> None:
    """Save a model with its feature extractor; a failure leaves nothing incomplete behind."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".part-", dir=folder if folder.is_dir() else folder.parent) as part:
        model.save_pretrained(part)
        feature_extractor.save_pretrained(part)
        folder.mkdir(exist_ok=True)
        permissions = (Path(part) / "config.json").stat().st_mode  # safetensors lets only the owner read its files
        for file in list(Path(part).iterdir()):
            file.chmod(permissions)
            file.replace(folder / file.name)


def load_original(path: str | Path) -> dict[str, Any]:
    """Load a checkpoint file, `{"cfg": dict, "model": state dict[, "label_dict": dict]}`, without running its code.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is not such a checkpoint.
    """
    return check_original(read_checkpoint(path), path)


def check_original(checkpoint: Any, path: str | Path) -> dict[str, Any]:
    """Return a loaded checkpoint of the original implementation, without the prefixes of wrappers.

    Raises:
        ValueError: If it is not such a checkpoint.
    """
    if isinstance(checkpoint, dict):
        for other in ("model_state_dict", "state_dict"):
            if isinstance(checkpoint.get(other), dict):
                checkpoint.setdefault("model", checkpoint[other])
    for entry in ("cfg", "model"):
        if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get(entry), dict):
            raise ValueError(f'{path} has no dict "{entry}", so it is not a checkpoint of the original BEATs.')
    try:
        checkpoint["model"] = remove_prefix(checkpoint["model"], "patch_embedding.weight")
    except ValueError as error:
        raise ValueError(f'{path} is not a checkpoint of the original BEATs: "model" {error}') from None
    return checkpoint


def convert_config(checkpoint: dict[str, Any]) -> BeatsConfig:
    """Translate the `cfg` of a checkpoint, keeping keys without a counterpart as `original_cfg`.

    Raises:
        ValueError: If the patch size is missing, the activation is unknown, `label_dict` does not match the number of
            classes, or values contradict each other.
    """
    cfg = dict(checkpoint["cfg"])
    if "input_patch_size" not in cfg:
        raise ValueError('The cfg has no "input_patch_size", which has no default.')
    fields = {field: cfg.pop(key, default) for key, (field, default) in CFG_FIELDS.items()}
    if not isinstance(fields["hidden_act"], str) or fields["hidden_act"] not in ACTIVATIONS:
        raise ValueError(
            f'The cfg has activation_fn "{fields["hidden_act"]}", but it must be one of {", ".join(ACTIVATIONS)}.'
        )
    fields["hidden_act"] = ACTIVATIONS[fields["hidden_act"]]
    num_labels = cfg.pop("predictor_class", 527)
    if cfg.pop("finetuned_model", False):
        if isinstance(num_labels, bool) or not isinstance(num_labels, int) or num_labels < 1:
            raise ValueError(f"The cfg has predictor_class {num_labels!r}, but it must be a positive integer.")
        labels = convert_labels(checkpoint.get("label_dict")) or {
            index: f"LABEL_{index}" for index in range(num_labels)
        }
        if labels.keys() != set(range(num_labels)):
            raise ValueError(f"label_dict has {len(labels)} entries, but must name the classes 0 to {num_labels - 1}.")
        fields |= {
            "id2label": labels,
            "label2id": {name: index for index, name in labels.items()},
            "problem_type": "multi_label_classification",
        }
    if cfg:
        fields["original_cfg"] = json.loads(json.dumps(cfg, default=str))
    return BeatsConfig(**fields | checkpoint.get("fields", {}))


def convert_labels(labels: Any) -> dict[int, str]:
    """Convert a `label_dict` to the names of the classes by index.

    Args:
        labels (`dict`, `list` or `None`): Names by index, indices by name, or names in the order of the classes.

    Raises:
        ValueError: If it is anything else.
    """
    names = dict(enumerate(labels)) if isinstance(labels, (list, tuple)) else labels or {}
    try:
        if all(isinstance(value, int) for value in names.values()):
            names = {index: name for name, index in names.items()}
        return {int(index): str(name) for index, name in names.items()}
    except (AttributeError, TypeError, ValueError):
        raise ValueError(f"label_dict is {reprlib.repr(labels)}, but must map indices to names.") from None


def original_names(name: str, config: BeatsConfig) -> list[str]:
    """Return the names of a model parameter in original checkpoints.

    There is one, except for the table of relative position biases, of which every layer stores a copy.
    """
    name = name.removeprefix("beats.")
    if name == "encoder.relative_position_bias.embedding.weight":
        return [
            f"encoder.layers.{layer}.self_attn.relative_attention_bias.weight"
            for layer in range(config.num_hidden_layers)
        ]
    for prefix, original in PREFIXES.items():
        if name.startswith(prefix):
            return [original + name.removeprefix(prefix)]
    return [
        name.replace("feed_forward.fc1", "fc1.linear" if config.hidden_act == "glu" else "fc1").replace(
            "feed_forward.", ""
        )
    ]


def convert_state_dict(model: BeatsPreTrainedModel, original: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Translate the `model` entry of a checkpoint to the state dict of `model`.

    Raises:
        ValueError: If a key is missing or unexpected, a weight has the wrong shape, or the layers' position tables
            differ.
    """
    # Newer versions of PyTorch rename the two parts of a normalised weight.
    original = {
        re.sub(r"parametrizations\.weight\.original([01])", lambda match: f"weight_{'gv'[int(match[1])]}", key): value
        for key, value in original.items()
        if key not in UNUSED
    }
    if not model.config.relative_position_embedding:
        # Original checkpoints contain the gates even if there is no bias to scale.
        original = {key: value for key, value in original.items() if ".grep_" not in key}
    names = {name: original_names(name, model.config) for name in model.state_dict()}
    expected = {original_name for aliases in names.values() for original_name in aliases}
    if missing := sorted(expected - original.keys()):
        raise ValueError(
            f"The checkpoint lacks {len(missing)} weights that its cfg requires ({shorten(missing)}): download it "
            "again, or correct the cfg (for a fine-tuned model of ESPnet, --base)."
        )
    if unexpected := sorted(original.keys() - expected):
        raise ValueError(
            f"The checkpoint has {len(unexpected)} weights that its cfg does not define ({shorten(unexpected)}): "
            "correct the cfg (for a fine-tuned model of ESPnet, --base)."
        )
    for name, parameter in model.state_dict().items():
        for alias in names[name]:
            if not isinstance(original[alias], torch.Tensor):
                raise ValueError(f"{alias} is of type {type(original[alias]).__name__}, but must be a tensor.")
            if original[alias].shape != parameter.shape:
                raise ValueError(
                    f"{alias} has shape {tuple(original[alias].shape)}, but the cfg requires {tuple(parameter.shape)}."
                )
            if not original[alias].isfinite().all():
                raise ValueError(f"{alias} contains values that are not finite: use another checkpoint.")
            if not torch.equal(original[alias], original[names[name][0]]):
                raise ValueError(f"{alias} differs from {names[name][0]}, but all layers must share one table.")
    return {name: original[aliases[0]] for name, aliases in names.items()}


def shorten(names: list[str]) -> str:
    """Return the first names of a list, separated by commas."""
    return ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")


def convert(checkpoint: dict[str, Any]) -> BeatsModel | BeatsForAudioClassification | BeatsTokenizerModel:
    """Build the model of a checkpoint of the original implementation (see [`load_original`]).

    A checkpoint translated from another format may have an entry `"fields"`, further fields of the configuration.

    Returns:
        A [`BeatsForAudioClassification`], for multi-label classification unless the fields say otherwise, if the
        checkpoint was fine-tuned, a [`BeatsTokenizerModel`] if it is a tokenizer, otherwise a [`BeatsModel`]; in
        evaluation mode and float32.

    Raises:
        ValueError: If `cfg`, `model` and `label_dict` do not match; the message names the key.
    """
    config = convert_config(checkpoint)
    model_class: type[BeatsModel | BeatsForAudioClassification | BeatsTokenizerModel]
    model_class = BeatsForAudioClassification if config.problem_type else BeatsModel
    if "quantize.embedding.weight" in checkpoint["model"]:
        model_class = BeatsTokenizerModel
    model = model_class(config)
    model.load_state_dict(convert_state_dict(model, checkpoint["model"]))
    return model.eval()


def read_source(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the checkpoint that the arguments name, in the format of the original implementation.

    Besides what [`convert`] needs, it has the entries `"statistics"` and `"notes"` of
    [`~modeling_beats.convert_espnet.translate`].
    """
    given = (arguments.fbank_mean, arguments.fbank_std)
    if None in given and given != (None, None):
        raise ValueError("--fbank_mean and --fbank_std belong together: pass both or neither.")
    statistics = None if None in given else (*given, "from the command line")
    files = find_files(arguments.source, arguments.revision)
    name = files.checkpoint()
    path = files.path(name)
    checkpoint = read_checkpoint(path)
    if is_espnet(checkpoint):
        return translate(checkpoint, files, name, arguments.base, arguments.classification_type, statistics)
    original = check_original(checkpoint, path)
    return original | {
        "statistics": statistics or (*DEFAULT_STATISTICS, "Microsoft's"),
        "notes": [],
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line: convert a checkpoint to a model folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    args = parser.parse_args(arguments)
    try:
        check_arguments(args)
        checkpoint = read_source(args)
        mean, std, origin = checkpoint["statistics"]
        try:
            model = convert(checkpoint)
            feature_extractor = BeatsFeatureExtractor(
                feature_size=model.config.num_mel_bins, mean=mean, std=std, patch_size=model.config.patch_size
            )
        except ValueError as error:
            raise ValueError(f"{args.source} cannot be converted: {error}") from None
        save_folder(args.output, model, feature_extractor)
    except (OSError, ValueError, SafetensorError) as error:
        parser.exit(1, f"Error: {error}\n")
    print(f"Filter-bank statistics: mean {mean}, std {std} ({origin}).")
    for note in checkpoint["notes"]:
        print(note, file=sys.stderr if note.startswith("Warning") else sys.stdout)
    print(f"Saved a {type(model).__name__} with {model.num_parameters():,} parameters to {args.output}.")


if __name__ == "__main__":
    main()

"""Translation of checkpoints of ESPnet and OpenBEATs to the format of the original implementation.

These are BEATs in other clothes: the same network, under other names, with its configuration in the checkpoint or in a
`config.yaml` beside it. [`translate`] returns what [`~modeling_beats.convert_beats.convert`] converts.
"""

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch

from .arguments_beats import PROBLEM_TYPES
from .checkpoint_beats import SUFFIXES, Files, find_files, read_checkpoint, read_yaml, remove_prefix


# Statistics of the filter banks. Only the training script of AudioSet-2M stores its own in `cfg`, where ESPnet never
# reads them: its authors later wrote that the training ran with the others.
DEFAULT_STATISTICS = (15.41663, 6.55582)
AUDIOSET_2M_STATISTICS = (15.66439, 6.38312)
AUDIOSET_2M_OTHER_STATISTICS = (15.29130, 5.90532)

# Architecture of Microsoft's public checkpoints, from which espnet/BEATs-AS20K was fine-tuned.
PUBLIC_CFG = {
    "input_patch_size": 16,
    "deep_norm": True,
    "relative_position_embedding": True,
    "gru_rel_pos": True,
    "num_buckets": 320,
    "max_distance": 800,
}

# Entries of `cfg` that only files of ESPnet have, and that only those of the original implementation have.
ESPNET_CFG = {
    "codebook_vocab_size",
    "decoder_attention_heads",
    "decoder_embed_dim",
    "decoder_layers",
    "decoder_mlp_ratio",
    "decoder_pos_trainable",
    "fbank_mean",
    "fbank_std",
    "mask_ratio",
    "use_flash_attn",
}
MICROSOFT_CFG = {"finetuned_model", "input_patch_size", "predictor_class", "predictor_dropout"}

# Constants for the padding mask, and modules without parameters that matter.
UNUSED = re.compile(r"patch_embedding_pad\.|raw2fbank_pad\.|specaug\.")
# Modules after the encoder, for captioning models.
ADAPTERS = re.compile(r"downsample_conv\.|conformer_adapter\.|cross_embed_positions\.")
# The predictor of masked codes, or the estimator of a tokenizer's training.
PREDICTOR = re.compile(r"decoder\.(mask_token$|decoder_(embed|blocks|norm|pred)\.)")
HEAD = re.compile(r"(?:decoder\.)?(?:linear_out|classifier|head|output_layer)\.(weight|bias)")


SPECIAL_SYMBOLS = ("<blank>", "<unk>", "<sos/eos>")


def is_espnet(checkpoint: Any) -> bool:
    """Return whether a loaded checkpoint file is of ESPnet or OpenBEATs, not of the original implementation."""
    if not isinstance(checkpoint, dict):
        return False
    weights = state_dict_of(checkpoint)
    if not isinstance(cfg := checkpoint.get("cfg"), dict):
        return any(isinstance(value, torch.Tensor) for value in weights.values())
    if "token_list" in checkpoint or not ESPNET_CFG.isdisjoint(cfg):
        return True
    if any(UNUSED.search(key) or "encoder.encoder." in key or key.startswith("decoder.") for key in map(str, weights)):
        return True
    return MICROSOFT_CFG.isdisjoint(cfg) and "label_dict" not in checkpoint


def state_dict_of(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """Return the state dict in a checkpoint file: an entry, in files of DeepSpeed and Lightning, or the whole file."""
    entries = (checkpoint.get(name) for name in ("model", "module", "state_dict", "model_state_dict"))
    return next((entry for entry in entries if isinstance(entry, dict)), checkpoint)


def translate(
    checkpoint: dict[str, Any],
    files: Files,
    name: str,
    base: str | None = None,
    classification_type: str | None = None,
    statistics: tuple[float, float, str] | None = None,
) -> dict[str, Any]:
    """Translate a checkpoint of ESPnet or OpenBEATs to the format of the original implementation.

    Args:
        checkpoint (`dict`): The loaded file.
        files (`Files`): The files that it belongs to.
        name (`str`): Its name among them.
        base (`str`, *optional*):
            File, folder or Hub id of the encoder that it was fine-tuned from, whose architecture is that of the
            checkpoint. If it is needed and not given, it is found on the Hub by the name of a repository there.
        classification_type (`str`, *optional*):
            `"multi-label"` or `"multi-class"`, if the configuration does not say.
        statistics (`tuple[float, float, str]`, *optional*):
            Mean and standard deviation of the filter banks and where they are from, instead of the file's own.

    Returns:
        `dict`: The argument of [`~modeling_beats.convert_beats.convert`], with two more entries: `"statistics"`, the
        mean and standard deviation of the filter banks and where they are from, and `"notes"`, sentences for the user.

    Raises:
        ConnectionError: If the base is needed from the Hub, which is unreachable.
        ValueError: If the configuration is missing, contradicts the weights, or asks for what the model cannot do.
    """
    path = files.path(name)
    cfg, own_cfg = checkpoint.get("cfg"), {}
    has_cfg = isinstance(cfg, dict)
    config = files.configuration(name, levels=1) if has_cfg else files.configuration(name)
    encoder, others = split_state_dict(state_dict_of(checkpoint), path)
    encoder_conf = section(config, "encoder_conf", path)
    if isinstance(cfg, dict):
        cfg = (read_base(base) if base else {}) | cfg
    elif config is None:
        raise ValueError(f"{path} has no configuration: put the config.yaml of its training beside it.")
    else:
        own_cfg = section(encoder_conf, "tokenizer_config" if is_tokenizer(encoder) else "beats_config", path)
        cfg = base_cfg(files, path, encoder_conf, own_cfg, base) | own_cfg
    cfg = {"input_patch_size": 16} | cfg
    if any(".grep_" in key for key in encoder) and not (cfg.get("deep_norm") or cfg.get("layer_norm_first")):
        raise ValueError(
            f"The configuration of {path} leaves deep_norm off, which its weights contradict: give a complete one, "
            "such as the config.yaml of the encoder that it was fine-tuned from, by --base."
        )
    if "layer_weights" in encoder or encoder_conf.get("use_weighted_representation"):
        raise ValueError(
            f"{path} has layer_weights, a learned mixture of its layers (use_weighted_representation), and a BEATs "
            "model has only the output of the last one: use a checkpoint without."
        )
    notes: list[str] = []
    head = take_head(others, cfg.get("encoder_embed_dim", 768), path)
    encoder = remove_extras(encoder, others, bool(head), path, notes)
    fields: dict[str, Any] = {"padding_rule": "convolution"}
    if (max_layer := encoder_conf.get("max_layer")) is not None:
        encoder, fields["deep_norm_layers"] = first_layers(encoder, cfg, max_layer, path)
        cfg["encoder_layers"] = max_layer
    labels = None
    if head:
        token_list = checkpoint.get("token_list", (config or {}).get("token_list"))
        labels, head = name_outputs(token_list, head, path, notes)
        fields["problem_type"] = problem_type(config, classification_type, path, notes)
        cfg["predictor_class"] = len(head["predictor.weight"])
        if (dropout := section(config, "decoder_conf", path).get("dropout")) is not None:
            cfg["predictor_dropout"] = dropout
    elif "token_list" in checkpoint if has_cfg else "classification_type" in section(config, "model_conf", path):
        raise ValueError(f"{path} is a classifier without its head, decoder.linear_out: download it again.")
    cfg["finetuned_model"] = bool(head)
    return {
        "cfg": cfg,
        "model": encoder | head,
        "label_dict": labels,
        "fields": fields,
        "statistics": statistics or find_statistics(encoder_conf, cfg, own_cfg if head else cfg, path, notes),
        "notes": notes,
    }


def section(config: Any, name: str, source: Path | str) -> dict[str, Any]:
    """Return a section of the configuration of a checkpoint or folder; one that is missing is empty."""
    content = (config.get(name) if isinstance(config, Mapping) else None) or {}
    if not isinstance(content, dict):
        raise ValueError(
            f"The configuration of {source} has {name} {content!r}, but it must be a mapping of names to values."
        )
    return content


def is_tokenizer(encoder: Mapping[str, Any]) -> bool:
    """Return whether an encoder's weights are those of a tokenizer."""
    return "quantize.embedding.weight" in encoder


def split_state_dict(state_dict: dict[str, Any], path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split the weights of a model into those of the encoder, without the prefix `encoder.`, and all others.

    The names of an encoder alone are not changed: its Transformer is called `encoder` too.
    """
    outer, inner = "encoder.", "patch_embedding.weight"
    if any(str(key).endswith("embeddings.convolution.weight") for key in state_dict):
        raise ValueError(f"{path} has the weights of a converted model: use its folder as it is.")
    has_outer = any(f".{key}".replace("_orig_mod.", "").endswith(f".{outer}{inner}") for key in state_dict)
    try:
        weights = remove_prefix(state_dict, outer + inner if has_outer else inner)
    except ValueError as error:
        raise ValueError(f"{path} is not a checkpoint of BEATs: it {error}") from None
    encoder, others = {}, {}
    for key, value in weights.items():
        if not isinstance(value, torch.Tensor):
            raise ValueError(f"{key} in {path} is of type {type(value).__name__}, but must be a tensor.")
        if key.startswith(outer) if has_outer else not (key.startswith("decoder.") or HEAD.fullmatch(key)):
            encoder[key.removeprefix(outer) if has_outer else key] = value
        else:
            others[key] = value
    return encoder, others


def base_cfg(
    files: Files, path: Path, encoder_conf: dict[str, Any], own_cfg: dict[str, Any], base: str | None
) -> dict[str, Any]:
    """Return the `cfg` of the encoder that a model was fine-tuned from, or an empty one if it has all of its own."""
    origin = encoder_conf.get("beats_ckpt_path")
    if base is not None:
        return read_base(base)
    if not origin and own_cfg.get("deep_norm"):
        return {}
    if re.search(r"(^|[/\\])BEATs_iter\d\w*\.pt$", str(origin)):
        return PUBLIC_CFG
    named = re.search(r"openbeats?-(base|large)-i([123])(?!\d)", files.source, re.IGNORECASE)
    trained = re.search(r"ear_(base|large).*beats_iter(\d)", str(origin), re.IGNORECASE)
    hub_id = None
    if named:
        hub_id = f"shikhar7ssu/OpenBEATs-{named[1].capitalize()}-i{named[2]}"
    elif trained:  # the Hub counts iterations from 1, the recipes from 0
        hub_id = f"shikhar7ssu/OpenBEATs-{trained[1].capitalize()}-i{int(trained[2]) + 1}"
    if hub_id is None or files.is_local:
        raise ValueError(
            f"{path} was fine-tuned from {origin or 'another encoder'}, whose configuration is needed: give that "
            f"encoder's config.yaml, folder or Hub id by --base{f', such as --base {hub_id}' if hub_id else ''}."
        )
    return read_base(hub_id)


def read_base(base: str) -> dict[str, Any]:
    """Return the `cfg` of an encoder: a checkpoint file, a `config.yaml`, a folder or a Hub id.

    Of a folder or a Hub repository, only the `config.yaml` is read, if there is one.

    Raises:
        ConnectionError: If the Hub is unreachable.
        FileNotFoundError, ValueError: If it does not exist or has no `cfg`.
    """
    files = find_files(base)
    configurations = [name for name in files.names if PurePosixPath(name).name == "config.yaml"]
    cfg = {}
    if base.endswith((".yaml", ".yml")):
        configurations = files.names[:1]
    elif Path(base).is_file():
        cfg = section(read_checkpoint(base), "cfg", base)
    if not cfg and configurations:
        several = len(configurations) > 1
        config = files.configuration(files.checkpoint()) if several else read_yaml(files.path(configurations[0]))
        cfg = section(section(config, "encoder_conf", base), "beats_config", base)
    if not cfg and any(name.endswith(SUFFIXES) for name in files.names):
        cfg = section(read_checkpoint(files.path(files.checkpoint())), "cfg", base)
    if not cfg:
        raise ValueError(
            f"{base} does not contain the configuration of a BEATs encoder (encoder_conf.beats_config in a "
            "config.yaml, or cfg in a checkpoint): give another --base."
        )
    return cfg


def take_head(others: dict[str, Any], width: Any, path: Path) -> dict[str, torch.Tensor]:
    """Remove the classification head from the weights beside an encoder, and return it by its original names."""
    found = {key: match for key in others if (match := HEAD.fullmatch(key))}
    head = {f"predictor.{match[1]}": others.pop(key) for key, match in found.items()}
    if not found:
        return {}
    if len(found) != 2 or head.keys() != {"predictor.weight", "predictor.bias"}:
        raise ValueError(f"{path} must have the weight and the bias of one head, but has {', '.join(found)}.")
    weight, bias = head["predictor.weight"], head["predictor.bias"]
    if weight.ndim != 2 or weight.shape[1] != width or bias.shape != weight.shape[:1]:
        raise ValueError(
            f"The head of {path} has a weight of shape {tuple(weight.shape)} and a bias of shape {tuple(bias.shape)}, "
            f"but must be (classes, {width}) and (classes,)."
        )
    return head


def remove_extras(
    encoder: dict[str, Any], others: dict[str, Any], has_head: bool, path: Path, notes: list[str]
) -> dict[str, Any]:
    """Return an encoder's weights without those that its output does not depend on; name what is left out."""
    adapters = sorted(key for key in encoder if ADAPTERS.match(key))
    if adapters and has_head:
        raise ValueError(
            f"{path} has modules between encoder and head ({adapters[0]}), which a BEATs classifier does not have."
        )
    is_encoder = not has_head and (bool(adapters) or is_tokenizer(encoder) or any(map(PREDICTOR.match, others)))
    dropped = [key for key in others if PREDICTOR.match(key) or (is_encoder and key.startswith("decoder."))]
    if unknown := sorted((others.keys() - set(dropped)) | {key for key in encoder if key.startswith("predictor.")}):
        raise ValueError(
            f"{path} has {len(unknown)} weights that are neither of a BEATs encoder nor of its head: {unknown[0]}"
            f"{', ...' if len(unknown) > 1 else ''}."
        )
    if kinds := sorted({key.split(".")[0] for key in (*adapters, *dropped)}):
        notes.append(f"Left out, as it is not part of the encoder: {', '.join(kinds)}.")
    return {key: value for key, value in encoder.items() if not UNUSED.match(key) and not ADAPTERS.match(key)}


def first_layers(
    encoder: dict[str, Any], cfg: dict[str, Any], number: Any, path: Path
) -> tuple[dict[str, Any], int | None]:
    """Return the weights of an encoder's first `number` layers, and the `deep_norm_layers` of its configuration."""
    total = cfg.get("encoder_layers", 12)
    if (
        not isinstance(total, int)
        or not isinstance(number, int)
        or isinstance(number, bool)
        or not 0 < number <= total
    ):
        raise ValueError(
            f"{path} has max_layer {number!r}, but it must be between 1 and the number of layers, {total}."
        )
    if number < total and cfg.get("layer_norm_first"):
        raise ValueError(f"{path} has max_layer {number} and layer_norm_first, which cannot be converted together.")
    layer = re.compile(r"encoder\.layers\.(\d+)\.")
    kept = {key: value for key, value in encoder.items() if not (match := layer.match(key)) or int(match[1]) < number}
    return kept, total if number < total and cfg.get("deep_norm") else None


def problem_type(config: Any, classification_type: str | None, path: Path, notes: list[str]) -> str:
    """Return the `problem_type` of a classifier, given or from its configuration, after a check of its pooling."""
    if (pooling := section(config, "decoder_conf", path).get("pooling", "mean")) not in ("mean", None):
        raise ValueError(f"{path} uses {pooling!r} pooling, but the classifier of BEATs only the mean.")
    kind = classification_type or section(config, "model_conf", path).get("classification_type")
    if kind is None:
        kind = "multi-class"
        notes.append(
            "Warning: the classification type is unknown and assumed to be multi-class (softmax), ESPnet's default. "
            "For independent classes (sigmoid), pass --classification_type multi-label."
        )
    if not isinstance(kind, str) or kind not in PROBLEM_TYPES:
        raise ValueError(f"{path} has classification_type {kind!r}, but it must be multi-label or multi-class.")
    return PROBLEM_TYPES[kind]


def name_outputs(
    token_list: Any, head: dict[str, torch.Tensor], path: Path, notes: list[str]
) -> tuple[list[str] | None, dict[str, torch.Tensor]]:
    """Return the names of the classes, as they are written, and the head without outputs of special symbols.

    Output `i` is line `i` of the list. At its end are special symbols: `<unk>`, which has no output, and in newer
    files `<blank>`, which mostly has one. Lists of speech recognition, of older files, begin with them.
    """
    if token_list is None:
        notes.append("Warning: there is no token_list, so that the classes are numbered.")
        return None, head
    if not isinstance(token_list, (list, tuple)):
        raise ValueError(f"{path} has the token_list {token_list!r}, but it must be a list of names.")
    names, number = [str(name) for name in token_list], len(head["predictor.weight"])
    without_output = set(names[number:])
    kept = [index for index, name in enumerate(names[:number]) if name not in SPECIAL_SYMBOLS]
    has_unknown = number == len(names) and names[-1:] == ["<unk>"]
    if number > len(names) or not without_output <= set(SPECIAL_SYMBOLS) or has_unknown or not kept:
        raise ValueError(
            f"The head of {path} has {number} outputs, which do not fit its token_list of {len(names)} lines: only "
            "<blank> and <unk>, at its end, can be without an output, and <unk> must be."
        )
    if left_out := [name for name in names[:number] if name in SPECIAL_SYMBOLS]:
        notes.append(f"Left out, as it is not a class: the output of {', '.join(left_out)}.")
    return [names[index] for index in kept], {key: value[kept] for key, value in head.items()}


def find_statistics(
    encoder_conf: dict[str, Any], cfg: dict[str, Any], own_cfg: dict[str, Any], path: Path, notes: list[str]
) -> tuple[float, float, str]:
    """Return the mean and standard deviation of the filter banks, and where they are from.

    Args:
        encoder_conf (`dict`): Section of the `config.yaml`, whose statistics ESPnet uses.
        cfg (`dict`): Configuration of the encoder.
        own_cfg (`dict`):
            The part of it that was written for this model. Fine-tuning does not take the statistics over from the
            encoder that it starts from.
        path (`Path`): The checkpoint, for messages.
        notes (`list[str]`): Sentences for the user, extended here.
    """
    for source, values in (("encoder_conf of its config.yaml", encoder_conf), ("its cfg", own_cfg)):
        mean, std = (values.get(f"fbank_{name}") for name in ("mean", "std"))
        if mean is None and std is None:
            continue
        if mean is None or std is None:
            raise ValueError(
                f"{path} has incomplete statistics of the filter banks ({source} has only one of fbank_mean and "
                "fbank_std): pass --fbank_mean and --fbank_std."
            )
        if values is own_cfg and (mean, std) == AUDIOSET_2M_STATISTICS:
            other = " --fbank_std ".join(map(str, AUDIOSET_2M_OTHER_STATISTICS))
            notes.append(
                "Warning: AudioSet-2M checkpoints store these statistics, but their authors later wrote that the "
                f"training used 15.29130 and 5.90532. To use those, pass --fbank_mean {other}."
            )
        return mean, std, f"from {source}"
    if cfg.get("fbank_mean") is not None:
        notes.append(
            f"The encoder before fine-tuning has the statistics {cfg['fbank_mean']} and {cfg.get('fbank_std')}, which "
            "ESPnet does not use for fine-tuned models."
        )
    return *DEFAULT_STATISTICS, "Microsoft's, as the checkpoint has none"

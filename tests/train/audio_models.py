"""Tiny models of transformers, saved as their authors' scripts do."""

from pathlib import Path
from typing import Any

import torch
from transformers import (
    ASTConfig,
    ASTFeatureExtractor,
    ASTForAudioClassification,
    ASTModel,
    HubertConfig,
    HubertModel,
    Wav2Vec2Config,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2ForSequenceClassification,
    Wav2Vec2Model,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForAudioClassification,
    WhisperForConditionalGeneration,
    WhisperModel,
)


SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
AST = {**SIZES, "max_length": 128, "initializer_range": 0.3, "hidden_dropout_prob": 0.1}
WAV2VEC2 = {
    **SIZES,
    "initializer_range": 0.3,
    "conv_dim": (8,) * 7,
    "classifier_proj_size": 8,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
    "attention_dropout": 0.0,
    "feat_proj_dropout": 0.1,
}
WHISPER = {
    "init_std": 0.3,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "vocab_size": 64,
    "classifier_proj_size": 8,
    "max_source_positions": 100,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}
LAYER_NORM = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}

KINDS: dict[str, tuple[Any, Any, Any]] = {
    "AST": (ASTForAudioClassification, ASTConfig(**AST), ASTFeatureExtractor(max_length=128)),
    "AST encoder": (ASTModel, ASTConfig(**AST), ASTFeatureExtractor(max_length=128)),
    "wav2vec2": (Wav2Vec2ForSequenceClassification, Wav2Vec2Config(**WAV2VEC2), Wav2Vec2FeatureExtractor()),
    "wav2vec2 encoder": (Wav2Vec2Model, Wav2Vec2Config(**WAV2VEC2), Wav2Vec2FeatureExtractor()),
    "wav2vec2 of transcripts, with attention masks": (
        Wav2Vec2ForCTC,
        Wav2Vec2Config(**WAV2VEC2, **LAYER_NORM),
        Wav2Vec2FeatureExtractor(return_attention_mask=True),
    ),
    "HuBERT encoder": (HubertModel, HubertConfig(**WAV2VEC2), Wav2Vec2FeatureExtractor()),
    "Whisper": (WhisperForAudioClassification, WhisperConfig(**WHISPER), WhisperFeatureExtractor(chunk_length=2)),
    "Whisper encoder": (WhisperModel, WhisperConfig(**WHISPER), WhisperFeatureExtractor(chunk_length=2)),
    "Whisper of transcripts": (
        WhisperForConditionalGeneration,
        WhisperConfig(**WHISPER),
        WhisperFeatureExtractor(chunk_length=2),
    ),
}
"""Class, configuration and feature extractor by a name for them."""

FAMILIES = ["AST encoder", "wav2vec2 encoder", "Whisper encoder"]


def save_model(kind: str, folder: str | Path) -> str:
    """Save a model of `KINDS` with random weights, and return its folder."""
    model_class, config, extractor = KINDS[kind]
    torch.manual_seed(0)
    model_class(config).save_pretrained(folder)
    extractor.save_pretrained(folder)
    return str(folder)

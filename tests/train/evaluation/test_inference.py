"""Logits are in the order of the clips, whatever the number of processes and the kind of feature extractor."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from transformers import ASTConfig, ASTFeatureExtractor, ASTForAudioClassification

from dataset_script.errors import InputError
from tests.train.helpers import make_extractor, make_model
from train.common.arguments import InferenceArguments
from train.common.features import input_rate
from train.evaluation import inference
from train.evaluation.inference import compute_logits, load_clips


@pytest.fixture(scope="module")
def waveforms():
    return (1000 * np.random.default_rng(0).normal(size=(25, 4000))).astype(np.int16)


@pytest.mark.parametrize("num_processes", [2, 3])
def test_processes_share_the_clips_and_keep_their_order(waveforms, monkeypatch, num_processes):
    model, extractor = make_model().eval(), make_extractor()
    expected = compute_logits(model, extractor, waveforms, batch_size=4)
    assert len(np.unique(expected, axis=0)) == 25
    parts = []

    def run(process_index, gather):
        state = SimpleNamespace(
            device=torch.device("cpu"),
            process_index=process_index,
            num_processes=num_processes,
            is_main_process=process_index == 0,
        )
        monkeypatch.setattr(inference, "PartialState", lambda: state)
        monkeypatch.setattr(inference, "gather_object", gather)
        return compute_logits(model, extractor, waveforms, batch_size=4)

    def collect(objects):
        parts.extend(objects)
        return objects

    for process_index in range(num_processes):
        run(process_index, collect)
    starts = sorted(start for part in parts for start in part)
    assert starts == list(range(0, 25, 4))  # every batch is computed once
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    for process_index in range(num_processes):
        assert np.array_equal(run(process_index, lambda objects: list(parts)), expected)


def test_logits_are_those_of_each_clip(waveforms):
    model, extractor = make_model().eval(), make_extractor()
    logits = compute_logits(model, extractor, waveforms, batch_size=8)
    with torch.no_grad():
        alone = model(extractor.features(torch.from_numpy(waveforms[17:18]) / 32768)).logits[0]
    np.testing.assert_allclose(logits[17], alone.numpy(), atol=1e-5)


def test_any_feature_extractor_of_transformers():
    torch.manual_seed(0)
    config = ASTConfig(num_hidden_layers=1, hidden_size=12, num_attention_heads=1, num_mel_bins=32, max_length=64)
    model, extractor = ASTForAudioClassification(config).eval(), ASTFeatureExtractor(num_mel_bins=32, max_length=64)
    waveforms = (1000 * np.random.default_rng(0).normal(size=(3, 16_000))).astype(np.int16)
    logits = compute_logits(model, extractor, waveforms, batch_size=2)
    inputs = extractor(waveforms[2] / 32768, sampling_rate=16_000, return_tensors="pt")
    with torch.no_grad():
        np.testing.assert_allclose(logits[2], model(**inputs).logits[0].numpy(), atol=1e-5)


def test_feature_extractor_of_something_else():
    with pytest.raises(InputError, match="SimpleNamespace is not for audio"):
        input_rate(SimpleNamespace())


def test_a_missing_model_is_found_before_the_corpus_is_prepared(tmp_path, monkeypatch):
    monkeypatch.setattr(inference, "load_scenes", lambda *args, **kwargs: pytest.fail("the corpus was loaded"))
    with pytest.raises(FileNotFoundError, match="nowhere"):
        load_clips(InferenceArguments(model_name_or_path=str(tmp_path / "nowhere"), output_dir="", use_cpu=True))

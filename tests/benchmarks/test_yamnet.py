import json

import numpy as np
import pytest
import soundfile
import soxr
import torch

from benchmarks.yamnet import RATE, SameConv, embed, head_logits, load_yamnet, log_mel
from dataset_script.errors import InputError
from dataset_script.waveforms import to_int16


@pytest.fixture(scope="module")
def real(shared):
    if not (shared / "real" / "yamnet_audioset.safetensors").is_file():
        pytest.skip("needs YAMNet's weights, which are not distributed")
    return shared / "real"


@pytest.fixture(scope="module")
def network(real):
    return load_yamnet(real / "yamnet_audioset.safetensors")


@pytest.fixture(scope="module")
def checks(real):
    return json.loads((real / "yamnet_audioset.json").read_text())


def test_check_values_of_recordings(real, network, checks):
    """Log-mel, embedding and all logits of real seconds; the tolerance is the rounding of the check values."""
    for case in checks["cases"]:
        samples, rate = soundfile.read(real / "esc10" / case["file"], dtype="float64")
        second = samples[case["offset_s"] * rate : (case["offset_s"] + 1) * rate]
        waveform = torch.from_numpy(soxr.resample(second, rate, RATE, quality="HQ")).float()[None]
        with torch.inference_mode():
            features, embedding = log_mel(waveform), network(waveform)
            logits = network.classifier(embedding)
        expected = case["log_mel"]
        assert features.shape == (1, 1, 96, 64)
        assert [features.mean().item(), features.std().item()] == pytest.approx(
            [expected["mean"], expected["std"]], rel=1e-3
        )
        assert features[0, 0, 0, :8].tolist() == pytest.approx(expected["first_frame_first_8"], abs=1e-4)
        assert embedding.sum().item() == pytest.approx(case["embedding"]["sum"], abs=1e-3)
        assert (embedding > 0).sum().item() == case["embedding"]["nonzero"]
        assert logits[0].tolist() == pytest.approx(case["logits"], abs=1e-3)


def test_check_values_of_synthetic_signals(network, checks):
    """A pure tone leaves bands nearly empty, where the logarithm magnifies rounding."""
    signals = [torch.sin(2 * torch.pi * 440 * torch.arange(RATE, dtype=torch.float64) / RATE), torch.zeros(RATE)]
    for signal, check in zip(signals, checks["synthetic_checks"], strict=True):
        with torch.inference_mode():
            values, classes = network.classifier(network(signal.float()[None]))[0].topk(5)
        assert classes.tolist() == [index for index, _, _ in check["top"]]
        assert values.tolist() == pytest.approx([value for _, _, value in check["top"]], abs=1e-2)


def test_embeddings_do_not_depend_on_the_batch(network):
    clips = to_int16(np.random.default_rng(0).normal(size=(3, RATE)) / 10)
    assert embed(network, clips, batch_size=2) == pytest.approx(embed(network, clips), abs=1e-4)


def test_padding_is_after_on_even_sizes_and_centred_on_odd_ones():
    conv = SameConv(1, 1, 3, stride=2)
    torch.nn.init.ones_(conv.weight)
    with torch.no_grad():
        # Sums of 3 of 1, 2, 3, 4 from the first value on, then of 3, 4 and a zero; one row of zeros below.
        assert conv(torch.tensor([[[[1.0, 2.0, 3.0, 4.0]]]])).tolist() == [[[[6.0, 7.0]]]]
        assert conv(torch.tensor([[[[1.0, 2.0, 3.0]]]])).tolist() == [[[[3.0, 5.0]]]]


def test_head_recovers_separate_classes():
    labels = np.repeat(np.arange(3), 5)
    embeddings = 5 * np.eye(3)[labels] + np.random.default_rng(0).normal(size=(15, 3)) / 10
    logits = head_logits(embeddings, labels, embeddings)
    assert logits.dtype == np.float32 and logits.argmax(axis=1).tolist() == labels.tolist()


def test_other_weights_are_refused(tmp_path):
    (tmp_path / "weights.safetensors").write_bytes(b"nothing")
    with pytest.raises(InputError, match=r"weights\.safetensors does not have YAMNet's weights"):
        load_yamnet(tmp_path / "weights.safetensors")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_yamnet(tmp_path / "absent.safetensors")

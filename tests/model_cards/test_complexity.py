"""One count of size and cost, wherever it is stated."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from dataset_script.errors import InputError
from model_cards.complexity import check_limits, measure_folder, measure_model
from modeling_beats import BeatsConfig, BeatsForAudioClassification
from modeling_tfsepnet import TFSepNetConfig, TFSepNetForAudioClassification
from modeling_tfsepnet.complexity import count_complexity
from tests.model_cards.helpers import TINY_BEATS


def test_the_published_network():
    complexity = measure_model(TFSepNetForAudioClassification(TFSepNetConfig()))
    assert (complexity.parameters, complexity.macs) == (126_858, 29_419_648)
    assert complexity.parameter_bytes == complexity.official_bytes == 4 * 126_858
    assert complexity.official_macs == complexity.macs
    check_limits(complexity, "student")  # which is submitted as INT8
    with pytest.raises(InputError, match="As float32 its parameters take 507,432 bytes, over the limit of 128,000"):
        check_limits(complexity, "student", as_stored=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_memory_and_folder_agree(tmp_path, dtype):
    model = TFSepNetForAudioClassification(TFSepNetConfig(base_channels=8, num_mel_bins=64)).to(dtype)
    model.save_pretrained(tmp_path)
    complexity = measure_folder(tmp_path)
    assert complexity == measure_model(model)
    assert complexity.number_format == str(dtype).removeprefix("torch.")
    assert complexity.parameter_bytes == complexity.parameters * dtype.itemsize


def test_half_precision_is_counted_as_stored():
    """61,148 parameters fit in float16, the 126,858 of TF-SepNet-64 do not."""
    half = measure_model(TFSepNetForAudioClassification(TFSepNetConfig()).half())
    assert half.parameter_bytes == half.official_bytes == 253_716
    with pytest.raises(InputError, match="As float16 its parameters take 253,716 bytes, over the limit of 128,000"):
        check_limits(half, "student")
    check_limits(replace(half, parameters=61_148, parameter_bytes=122_296), "student")


def test_official_rule_in_full():
    """What the challenge's script does: elements times bytes over parameters, and torchinfo's operations."""
    model = TFSepNetForAudioClassification(TFSepNetConfig(base_channels=16, num_mel_bins=128)).train()
    macs = 0

    def count(module, inputs, output):
        nonlocal macs
        size = sum(parameter.numel() for parameter in module.parameters())
        macs += size * (output.shape[2] * output.shape[3] if isinstance(module, nn.Conv2d) else 1)

    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d):
            module.register_forward_hook(count)
    model(torch.zeros(2, 1, 128, model.config.num_frames))
    complexity = measure_model(model)
    assert complexity.macs == macs == count_complexity(model.config).macs
    assert complexity.official_bytes == sum(p.numel() * p.element_size() for p in model.parameters())


def test_limits_of_operations():
    complexity = measure_model(TFSepNetForAudioClassification(TFSepNetConfig(depth=16)))
    with pytest.raises(InputError, match="32,024,128 MACs for one second, over the limit of 30,000,000"):
        check_limits(complexity, "student")


def test_teachers_have_no_limits(tmp_path):
    model = BeatsForAudioClassification(BeatsConfig(**TINY_BEATS))
    model.save_pretrained(tmp_path)
    complexity = measure_folder(tmp_path)
    assert complexity.macs is None and complexity.excesses(as_stored=True) == []
    assert complexity.parameters == measure_model(model).parameters

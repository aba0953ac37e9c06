"""Cards, pushes and limits of the second student, CP-Mobile."""

import pytest
import torch
from huggingface_hub import ModelCard

from dataset_script.errors import InputError
from model_cards.complexity import check_limits, measure_folder, measure_model
from model_cards.generator import write_card
from model_cards.push import published_files
from modeling_cpmobile import CPMobileConfig, CPMobileFeatureExtractor, CPMobileForAudioClassification
from tests.model_cards.helpers import finish, make_results


def make_baseline(folder, **changes):
    torch.manual_seed(0)
    model = CPMobileForAudioClassification(CPMobileConfig(base_channels=8))
    model.save_pretrained(folder)
    CPMobileFeatureExtractor().save_pretrained(folder)
    arguments = {"recipe": "baseline", "student": "cpmobile", "learning_rate": 0.005, "seed": 42}
    return finish(folder, make_results(model, recipe="baseline", teachers=[], arguments=arguments, **changes))


@pytest.fixture
def baseline(tmp_path):
    return make_baseline(tmp_path / "baseline")


def test_card(baseline):
    text = write_card(baseline).text
    assert "CP-Mobile classifies ten acoustic scenes from one second of audio.\n" in text
    assert "The network is that of the baseline of DCASE 2024 Task 1 (Schmid et al." in text
    assert (
        "@inproceedings{schmid2024data," in text
        and "cai2024data" not in text
        and "chen2023" not in text
        and "Cai et al." not in text
    )
    assert "5,722 bytes" not in text and "| parameters | 5,722 | 5,722 |" in text
    assert "cpmobile" in ModelCard.load(baseline / "README.md").data.tags


def test_card_of_a_distilled_one_cites_the_distillation_too(tmp_path):
    text = write_card(make_baseline(tmp_path / "student")).text
    folder = tmp_path / "kd"
    model = CPMobileForAudioClassification(CPMobileConfig(base_channels=8))
    model.save_pretrained(folder)
    CPMobileFeatureExtractor().save_pretrained(folder)
    distilled = write_card(finish(folder, make_results(model))).text
    assert "distilled from an ensemble of 3 teachers" in distilled and "distilled from" not in text
    for key in ("cai2024data", "schmid2024data", "chen2023beats"):
        assert f"{{{key}," in distilled


def test_published_accuracies_of_the_baseline(tmp_path):
    text = write_card(make_baseline(tmp_path / "tau", dataset="split5")).text
    assert "published (Table 1), %" in text and "| 42.4 |" in text


def test_pushed_files_are_those_of_its_own_package(baseline):
    write_card(baseline)
    names = published_files(baseline)
    assert {name for name in names if name.endswith(".py")} == {
        "audio_cpmobile.py",
        "configuration_cpmobile.py",
        "feature_extraction_cpmobile.py",
        "modeling_cpmobile.py",
        "pipeline_cpmobile.py",
        "quantization_cpmobile.py",
        "training_cpmobile.py",
        "resampling_cpmobile.py",
    }


def test_complexity_and_limits(tmp_path):
    model = CPMobileForAudioClassification(CPMobileConfig())
    complexity = measure_model(model)
    assert (complexity.parameters, complexity.macs, complexity.official_macs) == (61_148, 29_419_156, 29_419_156)
    check_limits(measure_model(model.half()), "the baseline", as_stored=True)
    assert measure_model(model).parameter_bytes == 122_296
    model.save_pretrained(tmp_path)
    assert measure_folder(tmp_path) == measure_model(model)
    large = CPMobileForAudioClassification(CPMobileConfig(base_channels=40))
    with pytest.raises(InputError, match=r"large exceeds a limit .* 47,952,328 MACs"):
        check_limits(measure_model(large), "large")

import pytest
import torch
from transformers import AutoModel

from modeling_beats import BeatsForAudioClassification, BeatsForPreTraining, BeatsModel, BeatsTokenizerModel
from tests.clean_process import run_in_clean_process

from .helpers import randomized, tiny_config


CODE = """
import torch
from transformers import AutoModel, AutoModelForAudioClassification

inputs = torch.load("inputs.pt")
results = {}
for name in ("encoder", "classifier", "pretraining", "tokenizer"):
    model, loading = AutoModel.from_pretrained(name, trust_remote_code=True, output_loading_info=True)
    assert not any(loading.values()), loading
    output = model(inputs)
    results[name] = type(model).__name__, (output.codes if name == "tokenizer" else output.last_hidden_state).tolist()
    model = AutoModelForAudioClassification.from_pretrained(name, trust_remote_code=True)
    assert type(model).__name__ == "BeatsForAudioClassification"
report(results)
"""


@pytest.fixture
def models(tmp_path):
    """Models of all kinds, and the folders that they are saved in."""
    classes = {
        "encoder": BeatsModel,
        "classifier": BeatsForAudioClassification,
        "pretraining": BeatsForPreTraining,
        "tokenizer": BeatsTokenizerModel,
    }
    models = {name: randomized(model_class(tiny_config())) for name, model_class in classes.items()}
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
    return models


def test_hidden_states_without_the_package(models, tmp_path):
    """`AutoModel` loads the encoder of every folder, and the whole tokenizer."""
    inputs = torch.randn(1, 40, 32)
    torch.save(inputs, tmp_path / "inputs.pt")
    for name, (class_name, output) in run_in_clean_process(CODE, tmp_path).items():
        if name == "tokenizer":
            assert class_name == "BeatsTokenizerModel"
            # Rounding may decide between two codes that are almost equally near.
            assert (torch.tensor(output) == models[name](inputs).codes).float().mean() > 0.8
        else:
            assert class_name == "BeatsModel"
            expected = getattr(models[name], "beats", models[name])(inputs).last_hidden_state
            torch.testing.assert_close(torch.tensor(output), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("trust", [None, True])
def test_hidden_states_with_the_package(models, tmp_path, trust):
    for name in ("encoder", "classifier", "pretraining"):
        assert type(AutoModel.from_pretrained(tmp_path / name, trust_remote_code=trust)) is BeatsModel

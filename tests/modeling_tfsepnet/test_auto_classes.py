import pytest
import torch
from transformers import AutoModel

from modeling_tfsepnet import TFSepNetConfig, TFSepNetForAudioClassification, TFSepNetModel
from tests.clean_process import run_in_clean_process


CODE = """
import torch
from transformers import AutoModel, AutoModelForAudioClassification

inputs = torch.load("inputs.pt")
results = {}
for name in ("network", "classifier"):
    model, loading = AutoModel.from_pretrained(name, trust_remote_code=True, output_loading_info=True)
    assert not any(loading.values()), loading
    results[name] = type(model).__name__, model(inputs).last_hidden_state.tolist()
    model = AutoModelForAudioClassification.from_pretrained(name, trust_remote_code=True)
    assert type(model).__name__ == "TFSepNetForAudioClassification"
report(results)
"""


@pytest.fixture
def classifier(tmp_path):
    """A classifier, saved in one folder, and the network before its classifier in another."""
    model = TFSepNetForAudioClassification(TFSepNetConfig(base_channels=8, num_mel_bins=64)).eval()
    model.save_pretrained(tmp_path / "classifier")
    model.tfsepnet.save_pretrained(tmp_path / "network")
    return model


def test_features_without_the_package(classifier, tmp_path):
    """`AutoModel` loads the features after the last stage, from both folders."""
    inputs = torch.randn(1, 2, 64, 64)
    torch.save(inputs, tmp_path / "inputs.pt")
    with torch.no_grad():
        expected = classifier.tfsepnet(inputs).last_hidden_state
    for class_name, output in run_in_clean_process(CODE, tmp_path).values():
        assert class_name == "TFSepNetModel"
        torch.testing.assert_close(torch.tensor(output), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("trust", [None, True])
def test_features_with_the_package(classifier, tmp_path, trust):
    for name in ("network", "classifier"):
        assert type(AutoModel.from_pretrained(tmp_path / name, trust_remote_code=trust)) is TFSepNetModel

import numpy as np
import pytest
import torch

from modeling_tfsepnet import TFSepNetConfig, TFSepNetForAudioClassification


pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")

from benchmarks import integer_kernels, latency
from benchmarks.page import read_runs


def test_all_forms_run_and_int8_is_smaller(tmp_path):
    torch.manual_seed(0)
    model = TFSepNetForAudioClassification(TFSepNetConfig(base_channels=16)).eval()
    forms, sizes = latency.make_forms(model, tmp_path, threads=1, compiled=False)
    assert set(forms) == set(sizes)
    expected = forms["torch float"](2)
    assert torch.allclose(torch.as_tensor(forms["onnxruntime float"](2)[0]), expected, atol=1e-3)
    for call in forms.values():
        output = call(2)
        assert tuple((output[0] if isinstance(output, list) else output).shape) == (2, 10)
    assert sizes["onnxruntime INT8 weights"] < sizes["onnxruntime float"]
    assert sizes["torch INT8"] < sizes["torch float"]


@pytest.mark.slow
def test_results_have_every_form_for_the_page(tmp_path, monkeypatch):
    monkeypatch.setattr(latency, "BATCH_SIZE", 8)
    TFSepNetForAudioClassification(TFSepNetConfig(base_channels=16)).save_pretrained(tmp_path / "model")
    threads, out = torch.get_num_threads(), tmp_path / "out.json"
    options = ["--model_name_or_path", str(tmp_path / "model"), "--threads", str(threads), "--repeats", "1"]
    latency.main([*options, "--out", str(out)])
    (run,) = read_runs([out])
    assert [measurement.what for measurement in run.points] == ["1 clip", "8 clips"] * 9
    assert run.points[next(iter(run.points))].rounds == 1


@pytest.mark.parametrize("kind", integer_kernels.TYPES)
def test_integer_layers_run(kind):
    """Activations of each type have a kernel, and ten layers in a row keep the shape."""
    session = integer_kernels.make_session(kind, 4, 6, 5, (3, 1), 4)
    (output,) = session.run(None, {"input": np.ones((1, 4, 6, 5), integer_kernels.TYPES[kind][1])})
    assert output.shape == (1, 4, 6, 5) and output.dtype == integer_kernels.TYPES[kind][1]

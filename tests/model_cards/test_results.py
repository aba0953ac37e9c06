import json
from collections import Counter

import pytest

from dataset_script.errors import InputError
from model_cards import results as results_module
from model_cards.generator import write_card
from tests.model_cards.test_generator import as_int8, edit


def test_every_file_is_read_once(student, tmp_path, monkeypatch):
    """The card of an INT8 model needs its own results and those of the float model, each parsed once."""
    quantized = tmp_path / "quantized"
    own = json.loads((student / "results.json").read_text())
    (quantized / "model").mkdir(parents=True)
    for path in student.glob("*"):
        if path.name in ("config.json", "model.safetensors", "preprocessor_config.json"):
            (quantized / "model" / path.name).write_bytes(path.read_bytes())
    as_int8(quantized / "model")
    content = {name: own[name] for name in ("dataset", "split", "synthetic", "provenance", "unseen_devices")}
    content |= {"float": own["metrics"], "int8": own["metrics"], "model": str(student)}
    (quantized / "results.json").write_text(json.dumps(content))
    reads = Counter()
    original = results_module.read_json

    def counted(path):
        reads[str(path.resolve())] += 1
        return original(path)

    monkeypatch.setattr(results_module, "read_json", counted)
    write_card(quantized / "model")
    files = {path: count for path, count in reads.items() if path.endswith("results.json")}
    assert files == {str((quantized / "results.json").resolve()): 1, str((student / "results.json").resolve()): 1}


def test_results_of_another_run_are_refused(student):
    edit(student, arguments={"seed": 1})
    (student / "run.json").write_text(json.dumps({"seed": 2}))
    with pytest.raises(InputError, match="seed is 1 in it, but 2 in"):
        results_module.load_results(student)

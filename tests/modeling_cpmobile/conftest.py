import json
from pathlib import Path

import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from modeling_cpmobile.convert_cpmobile import convert_state_dict, infer_config


@pytest.fixture(scope="session")
def golden() -> Path:
    """Folder of excerpts of the reference data, small enough to be distributed."""
    return Path(__file__).resolve().parents[1] / "golden" / "cpmobile"


@pytest.fixture(scope="session")
def reference(shared) -> Path:
    """Folder of the reference data itself, which is not distributed."""
    return shared / "reference" / "cpmobile_golden"


@pytest.fixture(scope="session")
def load_network():
    """Function that reads the file of a network: its tensors, description and model."""

    def load(path):
        tensors = load_file(path)
        with safe_open(path, "pt") as file:
            facts = json.loads(file.metadata()["config"])
        state_dict = {key: tensors.pop(key) for key in list(tensors) if key.startswith("state_dict.")}
        state_dict = {key.removeprefix("state_dict."): value for key, value in state_dict.items()}
        blocks = range(1, sum(facts.get("n_blocks", (3, 2, 1))) + 1)
        settings = {"strides": [facts["strides"].get(f"b{block}", (1, 1)) for block in blocks]}
        model = convert_state_dict(state_dict, infer_config(state_dict, **settings))
        return tensors, facts, state_dict, model

    return load

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Networks this small only lose by threads, and the sums come out the same on every machine."""
    torch.set_num_threads(1)

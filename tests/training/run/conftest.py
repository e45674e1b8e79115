"""What every test of whole runs needs."""

import pytest
import torch


@pytest.fixture(autouse=True)
def one_thread():
    """More would only wait for each other on models of this size."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)

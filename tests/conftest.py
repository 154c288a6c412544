"""Settings and fixtures that all tests share."""

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)  # small tensors: threads only wait for each other

settings.register_profile("ssl_blocks", deadline=None, derandomize=True, max_examples=40, database=None)
settings.load_profile("ssl_blocks")


@pytest.fixture
def generator() -> torch.Generator:
    """A source of randomness that is the same in every run and shared with no other test."""
    return torch.Generator().manual_seed(0)

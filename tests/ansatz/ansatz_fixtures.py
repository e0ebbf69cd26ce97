"""Fixtures of the tests of the ansatz.

Each test module imports them: a second conftest.py is not found with the import mode
"append".
"""

import numpy as np
import pytest
import torch

from benchmarks import networks

__all__ = ["images", "network"]


@pytest.fixture
def network():
    """Return a little VGG with batch norm."""
    torch.manual_seed(0)
    return networks.VGG((1, 1), n_classes=4, width=4, batch_norm=True)


@pytest.fixture
def images(rng):
    """Return colour images, channels last."""
    return rng.normal(size=(24, 12, 10, 3)).astype(np.float32)

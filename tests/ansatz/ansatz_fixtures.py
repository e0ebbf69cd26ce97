"""Fixtures of the tests of the ansatz.

Each test module imports them: a second conftest.py is not found with the import mode
"append".
"""

import numpy as np
import pytest
import torch

from benchmarks import networks

__all__ = ["images", "network"]


def make_network():
    """Return a little VGG with batch norm."""
    torch.manual_seed(0)
    return networks.VGG((1, 1), n_classes=4, width=4, batch_norm=True)


def make_images():
    """Return colour images, channels last."""
    X = np.random.default_rng(0).normal(size=(24, 12, 10, 3))
    return X.astype(np.float32)


network = pytest.fixture(make_network, name="network")
images = pytest.fixture(make_images, name="images")

"""Fixtures of the tests of the benchmarks, and where those can run.

Each test module imports them: a second conftest.py is not found with the import mode
"append".
"""

import sys

import numpy as np
import pytest

from benchmarks import harness

__all__ = ["cifar", "digits", "images", "pytestmark"]

pytestmark = pytest.mark.skipif(
    not sys.platform.startswith("linux"),
    reason="the benchmarks read /proc and bind cores",
)


@pytest.fixture
def images():
    """Return a few tiny colour images."""
    return harness.smooth_images(8, (8, 9, 3))


@pytest.fixture
def digits(tmp_path):
    """Return the path of an archive like that of MNIST, small."""
    rng = np.random.default_rng(0)
    path = tmp_path / "digits.npz"
    arrays = {}
    for part, n in (("train", 30), ("test", 10)):
        arrays[f"y_{part}"] = np.arange(n) % 3
        noise = rng.integers(0, 100, size=(n, 6, 6))
        arrays[f"X_{part}"] = (noise + 70 * arrays[f"y_{part}"][:, None, None]).astype(
            np.uint8
        )
    np.savez(path, **arrays)
    return path


@pytest.fixture
def cifar(tmp_path, rng):
    """Return the path of an archive like that of CIFAR-10, small."""
    path = tmp_path / "cifar10_5000_2000.npz"
    X = rng.integers(0, 256, size=(80, 8, 8, 3)).astype(np.uint8)
    y = np.arange(80) % 3
    np.savez(path, X_train=X, y_train=y, X_test=X, y_test=y)
    return path

"""Criteria are compared on rows that come several times."""

import numpy as np
import pytest

from benchmarks import bootstraps
from skconvrfm.features import ConvFeatures


@pytest.fixture
def mnist(tmp_path, rng):
    path = tmp_path / "mnist_5000_2000.npz"
    X, y = rng.integers(0, 256, size=(60, 28, 28)).astype(np.uint8), np.arange(60) % 3
    np.savez(path, X_train=X, y_train=y, X_test=X[:5], y_test=y[:5])
    return path


def test_bootstraps_compare_criteria_with_the_error(mnist, monkeypatch, capsys):
    layer = ConvFeatures(4, patch_size=3)
    monkeypatch.setattr(bootstraps, "MACHINES", {"linear": ("linear", layer)})
    options = ["--data", str(mnist), "--draws", "2", "--images", "40"]
    assert bootstraps.main(options) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line.split() for line in lines if " gcv " in line or " loo " in line]
    assert [row[2] for row in rows] == ["gcv", "loo"] * 2
    assert all(float(row[3]) > 0.1 for row in rows)

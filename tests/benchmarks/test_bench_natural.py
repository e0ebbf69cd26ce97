"""The metric of ConvRFM is compared with the filters of a network."""

import numpy as np
import pytest
from bench_fixtures import *  # noqa: F403

from benchmarks import natural


def test_captured_share_of_eigenspaces():
    first, second = np.diag([3.0, 2.0, 1.0, 0.0]), np.diag([2.0, 0.0, 3.0, 1.0])
    assert natural.captured(first, first, 2) == pytest.approx(1)
    assert natural.captured(first, second, 2) == pytest.approx(1 / 2)
    assert natural.correlation(first, 2 * first + 1) == pytest.approx(1)


def test_natural_compares_metric_with_filters(cifar, rng, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    filters = rng.normal(size=(16, 3, 3, 3))
    path = cifar.parent / "weights_cifar10_resnet20.npz"
    np.savez(path, **{"conv1.weight": filters})
    figure = tmp_path / "natural.png"
    options = ["--n-train", "20", "--figure", str(figure)]
    natural.main(["--data", str(cifar.parent), *options])
    assert "patch AGOP" in capsys.readouterr().out
    assert figure.stat().st_size > 0
    covariance = natural.filter_covariance(cifar.parent)
    assert covariance.shape == (27, 27)
    assert (np.linalg.eigvalsh(covariance) > -1e-9).all()

"""The benchmark of features computes equal features on all sides."""

import json

import numpy as np
import pytest
from bench_fixtures import *  # noqa: F403

from benchmarks import compare, features, linear
from benchmarks.peers import client

needs_kymatio = pytest.mark.skipif(
    client.python_of(features.PEER) is None,
    reason="kymatio's environment is built by python -m benchmarks.features",
)


@pytest.mark.parametrize("channels", [1, 3])
def test_features_equal_those_of_torch(channels, images):
    case = features.Case((8, 9, channels), patch_size=3, n_filters=4, grid=2)
    assert case.operations == 2 * 6 * 7 * 4 * 9 * channels
    assert not case.equal_cells
    case = features.Case((8, 8, channels), patch_size=3, n_filters=4, grid=3)
    assert case.equal_cells
    images = images[:, :, :8, :channels]
    ours = features.our_features(case)(images)
    theirs = features.torch_features(case, 3, features.torch.channels_last)(images)
    assert compare.disagreement(ours, theirs) < features.TOLERANCE


def test_features_run_without_peer(tmp_path, capsys):
    path = tmp_path / "results.json"
    options = ["--no-peer", "--images", "4", "--rounds", "2", "--json", str(path)]
    assert features.main(options) == 0
    assert "GFLOP/s" in capsys.readouterr().out
    for measured in json.loads(path.read_text())["features"].values():
        assert len(measured["sides"]["torch"]["cpu_seconds"]) == 2


@needs_kymatio
def test_scattering_coefficients_cached(images):
    images = np.tile(images, (1, 2, 2, 1))[:, :16, :16]
    with linear.coefficients() as extract:
        first, second = (extract(images, 2) for _ in range(2))
    assert first is second
    assert first.shape == (8, 3 * 81 * 4 * 4)

"""Backends are compared with the fit of one process."""

import json

import numpy as np
import pytest
from bench_fixtures import *  # noqa: F403
from joblib.parallel import ParallelBackendBase

from benchmarks import cluster

watched = pytest.mark.skipif(
    not hasattr(ParallelBackendBase, "submit"),
    reason="tasks are counted where joblib, from 1.5 on, submits them",
)


@pytest.fixture
def little_file(tmp_path):
    """Return a folder with images and labels as those of the shared data."""
    rng = np.random.default_rng(0)
    X = rng.integers(0, 255, (40, 8, 8), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", X_train=X, y_train=np.arange(40) % 2)
    return tmp_path


@pytest.mark.slow
@watched
def test_backends_compared_with_fit_of_one_process(little_file, capsys):
    sizes = ["--images", "40", "--filters", "4", "--workers", "2", "--dtype", "float64"]
    place = ["--data", str(little_file), "--file", "images.npz"]
    path = little_file / "results.json"
    backends = ["--backend", "sequential", "loky"]
    assert cluster.main([*backends, *sizes, *place, "--json", str(path)]) == 0
    results = json.loads(path.read_text())["cluster"]
    assert results["sequential"]["submitted"] is None
    assert results["loky"]["submitted"] > 0
    assert results["loky"]["largest_task"] > 40 * 64 / 8  # images, in a few parts
    assert results["loky"]["difference"] < 1e-8
    assert "40 images of images.npz" in capsys.readouterr().out


@watched
def test_backend_without_tasks_reported(little_file, monkeypatch, capsys):
    monkeypatch.setitem(cluster.BACKENDS, "loky", cluster.in_one_process)
    place = ["--data", str(little_file), "--file", "images.npz"]
    options = ["--backend", "loky", "--images", "40", "--filters", "4", *place]
    assert cluster.main(options) == 1
    assert "nothing was computed by the workers of ['loky']" in capsys.readouterr().out

"""Published experiments run on small data."""

import json

import numpy as np
import pytest
from bench_fixtures import *  # noqa: F403

from benchmarks import published, reproduction


def published_options(path, *more):
    """Return the command line of a tiny experiment."""
    sizes = ["--n-train", "30", "--n-test", "10", "--depth", "2", "--rounds", "1"]
    return published.parse_options(["--data", str(path), *sizes, *more])


@pytest.mark.slow
def test_published_passes_run(digits):
    pytest.importorskip("sklearn.callback")
    options = published_options(digits)
    results = {name: run(options) for name, run in published.PASSES.items()}
    json.dumps(results)
    assert results["cost"]["chosen_round"] in (0, 1)
    assert results["rounds"]["round"] == [0, 1]
    assert len(results["rounds"]["accuracy"]) == 2
    cost, rounds = published.make_tables(results)
    assert "peak mib" in cost
    assert "54.5" in rounds


def test_published_refuses_more_images_than_there_are(digits):
    with pytest.raises(ValueError, match="--n-train"):
        published.load_split(published_options(digits, "--n-train", "31"))


def test_planted_row_has_sign_of_label():
    X, y, X_test, y_test = reproduction.planted(30, 10, 0.0, seed=0)
    assert X.shape == (30, 16, 32) and X_test.shape == (10, 16, 32)
    np.testing.assert_array_equal(np.sign(X.sum((1, 2))), 2 * y - 1)
    np.testing.assert_allclose((X**2).sum((1, 2)), 1, rtol=1e-5)  # one row each
    noisy, *_ = reproduction.planted(200, 10, 2.0, seed=0)
    assert (noisy**2).sum(2).mean() == pytest.approx((2 * 15 + 1) / 16, rel=0.05)


@pytest.mark.slow
def test_reproduction_of_star_and_planted_rows(tmp_path, monkeypatch, capsys):
    pytest.importorskip("sklearn.callback")
    monkeypatch.setattr(reproduction, "PLANTED_SIGMA", (1.0,))
    path = tmp_path / "results.json"
    sizes = ["--draws", "1", "--star-draws", "1", "--n-star", "20", "--n-planted", "20"]
    parts = ["--parts", "star", "planted", "--rounds", "1", "--data", str(tmp_path)]
    parts += ["--star-noise", "0.3"]
    assert reproduction.main([*parts, *sizes, "--json", str(path)]) == 0
    results = json.loads(path.read_text())["reproduction"]
    [published] = results["star"]["published"]
    assert len(published["accuracy"]) == 2
    [one] = results["planted"]["1.0"]
    assert {"accuracy", "kept", "deep"} == one.keys()
    out = capsys.readouterr().out
    assert "94.8" in out and "deep, identity" in out


def test_reproduction_of_data_sets(digits, monkeypatch):
    pytest.importorskip("sklearn.callback")
    monkeypatch.setattr(reproduction, "DATASETS", {"MNIST": digits.name})
    place = ["--data", str(digits.parent), "--rounds", "1", "--n-train", "20"]
    options = reproduction.parse_options(place)
    measured = reproduction.measure_datasets(options)
    [table] = reproduction.table_datasets(measured)
    assert "MNIST" in table and " → " in table
    X, y, X_test, y_test = reproduction.framed(digits.parent, 20, 5, 1.0, 0)
    assert X.shape == (20, 9, 9) and X_test.shape == (5, 9, 9)
    assert len(y) == 20 and len(y_test) == 5

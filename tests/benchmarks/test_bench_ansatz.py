"""The benchmark of the ansatz runs on small networks."""

import json

import numpy as np
import pytest
from bench_fixtures import *  # noqa: F403

from benchmarks import ansatz


@pytest.mark.thorough
def test_ansatz_trains_measures_and_draws(tmp_path, rng, capsys):
    pytest.importorskip("matplotlib")
    data, figure, results = (tmp_path / name for name in ("a.npz", "b.png", "c.json"))
    arrays = {}
    for part in ("train", "test"):
        noise = rng.integers(0, 256, size=(40, 16, 16, 3))
        arrays[f"X_{part}"] = noise.astype(np.uint8)
        arrays[f"y_{part}"] = np.arange(40) % 2
    np.savez(data, **arrays)
    options = ["--data", data, "--figure", figure, "--json", results, "--epochs", 1]
    options += ["--parts", "networks", "--networks", "AlexNet", "VGG-11"]
    assert ansatz.main([str(option) for option in options]) == 0
    assert "features.3" in capsys.readouterr().out
    measured = json.loads(results.read_text())["networks"]
    assert {"before", "after", "accuracy"} < measured["VGG-11"].keys()
    assert figure.stat().st_size > 0


@pytest.mark.thorough
def test_ansatz_measures_a_network_of_full_size(monkeypatch):
    monkeypatch.setitem(ansatz.LARGE, "one", (1, 1))
    assert ansatz.measure_large("one").keys() == {"seconds", "cpu_seconds", "peak mib"}

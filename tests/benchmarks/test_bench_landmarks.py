"""The benchmarks of landmarks and of full data sets run, and draw what they say."""

import io
import json

import numpy as np
import pytest
from bench_fixtures import *  # noqa: F403
from sklearn.dummy import DummyClassifier

from benchmarks import full_sets, harness, landmarks
from skconvrfm import ConvRFMClassifier
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import Gaussian

LAYER = ConvFeatures(4, patch_size=3, pool_grid=2)


def test_ways_to_draw_return_distinct_rows(rng):
    labels = np.repeat([3, 7, 9], [20, 10, 10])
    kernel = Gaussian()(rng.normal(size=(40, 5, 5)))
    for drawn in (
        landmarks.even_over_classes(labels, 12, rng),
        landmarks.randomly_pivoted(kernel, 12, rng),
    ):
        assert len(np.unique(drawn)) == 12
    even = landmarks.even_over_classes(labels, 12, rng)
    assert np.bincount(labels[even])[[3, 7, 9]].tolist() == [6, 3, 3]


def test_randomly_pivoted_draws_no_copy(rng):
    X = np.concatenate([rng.normal(size=(6, 5, 5))] * 4)
    drawn = landmarks.randomly_pivoted(Gaussian(3.0)(X), 6, rng)
    assert sorted(drawn % 6) == [0, 1, 2, 3, 4, 5]


def test_table_of_landmarks(cifar, monkeypatch, tmp_path, capsys):
    case = landmarks.CIFAR, (Gaussian(), LAYER), 0
    monkeypatch.setattr(landmarks, "CASES", {"small": case})
    monkeypatch.setattr(landmarks, "N_TRAIN", 60)
    monkeypatch.setattr(landmarks, "N_TEST", 20)
    path = tmp_path / "found.json"
    options = ["--data", str(cifar.parent), "--landmarks", "0", "20", "--seeds", "2"]
    assert landmarks.main([*options, "--json", str(path)]) == 0
    assert "small all" in " ".join(capsys.readouterr().out.split())
    found = json.loads(path.read_text())["landmarks"]
    assert set(found) == {"small, None", "small, 20"}
    assert [len(runs) for runs in found.values()] == [2, 2]


def test_table_of_draws(cifar, monkeypatch, capsys):
    layers = {"small": (cifar.name, LAYER)}
    monkeypatch.setattr(landmarks, "ONE_LAYER", layers)
    monkeypatch.setattr(landmarks, "N_TRAIN", 80)
    monkeypatch.setattr(landmarks, "N_HELD_OUT", 20)
    monkeypatch.setattr(landmarks, "N_DRAWN", (10,))
    assert landmarks.main(["--data", str(cifar.parent), "--draws"]) == 0
    out = capsys.readouterr().out
    for way in "uniform", "even over classes", "randomly pivoted", "all rows":
        assert way in out


@pytest.fixture
def folder(tmp_path, rng):
    """Return a folder with small files like those of MNIST and CIFAR-10."""
    image = pytest.importorskip("PIL.Image")
    arrays, digits = {}, {}
    for part, n in (("train", 30), ("test", 10)):
        labels = np.arange(n) % 2
        digits |= {f"y_{part}": labels, f"X_{part}": labels[:, None, None] * 255 + 0}
        digits[f"X_{part}"] = np.tile(digits[f"X_{part}"], (1, 6, 6)).astype(np.uint8)
        files = []
        for label in labels:
            file = io.BytesIO()
            pixels = np.full((8, 8, 3), 200 * label, np.uint8)
            image.fromarray(pixels).save(file, "JPEG")
            files.append(np.frombuffer(file.getvalue(), np.uint8))
        arrays[f"jpeg_{part}"] = np.concatenate(files)
        arrays[f"end_{part}"] = np.cumsum([len(file) for file in files])
        arrays[f"y_{part}"] = labels
    np.savez(tmp_path / full_sets.FILES["MNIST"], **digits)
    np.savez(tmp_path / full_sets.FILES["CIFAR-10"], **arrays)
    return tmp_path


def test_full_sets_measure_once_and_tell(folder, monkeypatch, capsys):
    rows = {
        "exact": lambda _: ConvRFMClassifier("gaussian", n_rounds=0),
        "1000 landmarks": lambda _: ConvRFMClassifier("gaussian", landmarks=5),
        "network": lambda _: DummyClassifier(),
    }
    asked = []

    def call(module, flag, task):
        assert (module, flag) == ("benchmarks.full_sets", "--task")
        asked.append(json.loads(task))
        return full_sets.measure(asked[-1])

    monkeypatch.setattr(full_sets, "ROWS", rows)
    monkeypatch.setattr(full_sets, "in_subprocess", call)
    monkeypatch.setattr(full_sets, "MOST_EXACT", 20)
    monkeypatch.setattr(full_sets, "LANDMARKS", {"1000 landmarks": 20})
    options = ["--data", str(folder), "--results", str(folder / "found.jsonl")]
    options += ["--only", *rows, "--sizes", "20", "1000"]
    full_sets.main([*options, "--figure", str(folder / "figure.png")])
    # All but the exact one of all images, and landmarks of as many.
    assert len(asked) == 2 * (2 * 3 - 2)
    assert {task["n"] for task in asked} == {20, 30}
    assert (folder / "figure.png").stat().st_size > 0
    records = harness.Results(folder / "found.jsonl", full_sets.KEY).read()
    assert records["CIFAR-10", "exact", 20]["accuracy"] == 100
    assert records["MNIST", "1000 landmarks", 30]["accuracy"] == 100
    full_sets.main(options)
    assert len(asked) == 8
    assert "1000 landmarks" in capsys.readouterr().out

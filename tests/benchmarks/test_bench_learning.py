"""What learning adds and what criteria choose are measured and put into tables."""

import functools

import numpy as np
import pytest
from bench_fixtures import *  # noqa: F403

from benchmarks import learning, problems, recommended, selection
from skconvrfm.features import ConvFeatures

LAYERS = {"n_filters": 5, "patch_size": 3}, {"n_filters": 6, "patch_size": 2}


def rows_of(out, names):
    return [line.split() for line in out.splitlines() if line.startswith(tuple(names))]


def test_regret_is_that_of_the_pick_of_every_criterion(cifar, monkeypatch, capsys):
    monkeypatch.setattr(
        selection,
        "layers",
        lambda *_: [
            ConvFeatures(candidates=2, learn=bool(index), **options)
            for index, options in enumerate(LAYERS)
        ],
    )
    draw = functools.partial(problems.draw, cifar.name, n_test=30)
    monkeypatch.setitem(selection.DRAWN_HERE, "CIFAR-10", draw)
    options = ["--problems", "CIFAR-10", "--sizes", "40", "--draws", "1"]
    assert selection.main(["--data", str(cifar.parent), *options]) == 0
    assert capsys.readouterr().out.splitlines()[-2].count("(") == 6


def test_later_round_is_picked_where_it_is_better_by_the_margin():
    whole = {
        "gcv": np.array([[2.0, 1.0], [0.99, 3.0]]),
        "loo": np.array([[2.0, 1.0], [0.97, 3.0]]),
    }
    part = {"error": np.array([[2.0, 1.0], [3.0, 0.9]])}
    chosen = {
        name: tuple(map(int, at)) for name, at in selection.picks(whole, part).items()
    }
    assert chosen == {
        "gcv": (1, 0),
        "gcv, margin": (0, 1),
        "loo": (1, 0),
        "loo, margin": (1, 0),
        "held out": (1, 1),
        "held out, ridge by loo": (1, 0),
    }


def test_learning_measures_every_variant_on_images_held_out(cifar, monkeypatch, capsys):
    monkeypatch.setattr(learning, "N_HELD_OUT", 30)
    monkeypatch.setitem(learning.PROBLEMS, "CIFAR-10", ("cifar10", 40, LAYERS))
    command = ["--data", str(cifar.parent), "--problems", "CIFAR-10", "--draws", "1"]
    assert learning.main(command) == 0
    rows = rows_of(capsys.readouterr().out.split("squared")[1], ["f", "m"])
    assert len(rows) == len(learning.VARIANTS)


def test_recommended_machines_are_scored_by_round(cifar, monkeypatch, capsys):
    pytest.importorskip("sklearn.callback", reason="scikit-learn 1.9 has callbacks")
    load, _, (kernel, _), n_rounds = recommended.CASES["CIFAR-10"]
    features = [ConvFeatures(candidates=2, **options) for options in LAYERS]
    case = load, [(40, 30)], (kernel, features), n_rounds
    monkeypatch.setitem(recommended.CASES, "CIFAR-10", case)
    command = ["--data", str(cifar.parent), "--cases", "CIFAR-10", "--seeds", "2"]
    assert recommended.main(command) == 0
    [*_, row] = rows_of(capsys.readouterr().out, ["CIFAR-10"])
    assert row[1] == "40" and len(row) == 8

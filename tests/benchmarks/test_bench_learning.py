"""Rounds of learning are scored, and criteria are compared with errors."""

import functools

import pytest
from bench_fixtures import *  # noqa: F403

from benchmarks import learning, selection


def test_selection_compares_criteria_with_error(cifar, monkeypatch, capsys):
    monkeypatch.setattr(selection, "CASES", ((40, 4, 1), (40, 4, 2)))
    load = functools.partial(selection.load, n_other=30)
    monkeypatch.setattr(selection, "load", load)
    assert selection.main(["--data", str(cifar)]) == 0
    out = capsys.readouterr().out
    assert "gcv / error" in out and " 36 " in out  # d of the second layer


def test_learning_scores_every_round(cifar, monkeypatch, capsys):
    pytest.importorskip("sklearn.callback", reason="scikit-learn 1.9 has callbacks")
    monkeypatch.setattr(learning, "N_HELD_OUT", 30)
    variants = ["power 1", learning.TWO_LAYERS]
    for name in variants:
        options = learning.VARIANTS[name] | {"features__n_filters": 5}
        monkeypatch.setitem(learning.VARIANTS, name, options)
    command = ["--data", str(cifar.parent), "--problems", "CIFAR-10, 5000"]
    assert learning.main([*command, "--variants", *variants]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = [line for line in lines if line.startswith(tuple(variants))]
    assert len(rows) == 2 and all(row.count(" → ") == 4 for row in rows)

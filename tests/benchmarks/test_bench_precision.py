"""Both precisions are fitted and compared round by round."""

import functools
import json

import numpy as np
import pytest
from bench_fixtures import *  # noqa: F403

from benchmarks import precision, problems
from skconvrfm import ConvRFMClassifier
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import ConvNTK


@pytest.mark.parametrize("case", ["ConvNTK, depth 1", "ConvFeatures + Linear"])
def test_every_round_measured_in_both_precisions(digits, case, monkeypatch):
    pytest.importorskip("matplotlib")
    load = functools.partial(problems.draw, digits.name)
    results = precision.measure(load, digits.parent, case, 0, 30, 10)
    assert len(results["rounds"]) == 3
    for one in results["rounds"]:
        assert 0 < one["kernel fro"] < 1e-5
        assert one["condition"] <= one["worst condition"]
        assert len(one["f by ridge"]) == len(one["bound"]) == 17
    json.dumps(results)
    table = precision.make_table(case, {"digits": [results, results]})
    assert "digits, round 2" in table and "2 of 2" in table


def test_no_difference_between_equal_fits():
    X, y = np.random.default_rng(0).normal(size=(4, 5, 5)), np.arange(4) % 2
    same = precision.make_model(X, y, "float64", "ntk")
    [one] = precision.fit(same, np.ones((2, 5, 5)), 0)
    compared = precision.compare(one, one)
    assert compared["kernel max"] == compared["f"] == compared["labels"] == 0
    assert compared["same ridge"]


@pytest.mark.parametrize(
    ("kernel", "features"),
    [(ConvNTK(depth=2), None), ("linear", ConvFeatures(8, patch_size=3))],
)
def test_rounds_equal_those_of_the_estimator(kernel, features, rng):
    X, y = rng.normal(size=(30, 6, 6)), np.arange(30) % 3
    model = precision.make_model(X, y, "float64", kernel, features)
    rounds = precision.fit(model, X, 2)
    classifier = ConvRFMClassifier(kernel, features, n_rounds=2).fit(X, y)
    gcv = [one["gcv"] for one in rounds]
    np.testing.assert_allclose(gcv, classifier.history_["gcv"])
    kept = rounds[precision.chosen_round(rounds, model.optimism)]
    np.testing.assert_allclose(
        kept["predictions"][kept["chosen"]], classifier.decision_function(X), atol=1e-8
    )


def test_tangent_kernel_loses_half_the_digits_near_parallel_patches():
    measured = precision.kink(angles=[3e-3, 1.0], n_pairs=50)
    assert measured["gap"][0] < 1e-5 < measured["gap"][1]
    assert measured["error"][1] < 1e-6 < measured["error"][0] < 1e-3

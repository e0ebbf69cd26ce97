"""Of pools and floors that are "auto" one is chosen by the criterion of round 0."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.base import clone

from skconvrfm import ConvRFMClassifier, ConvRFMRegressor
from skconvrfm.datasets import make_framed_digits
from skconvrfm.features import ConvFeatures
from skconvrfm.features.layer import AUTO
from skconvrfm.kernels import ConvNTK, Gaussian
from skconvrfm.learning import rounds

LAYER = ConvFeatures(6, patch_size=3, pool_grid=2, candidates=2)
BELOW = ConvFeatures(5, patch_size=3, pool_size=2, pool="mean")
FEATURES = {"one layer": LAYER, "two layers": [BELOW, LAYER]}
KERNELS = ["gaussian", "linear"]


@pytest.fixture
def data(rng):
    X, y = rng.normal(size=(50, 9, 9)).astype(np.float32), np.arange(50) % 2
    X[y == 1, 4:6, 3:5] += 1.5
    return X, y


def with_values(features, normalize, pool):
    layers = clone(features) if isinstance(features, list) else [clone(features)]
    layers[0].set_params(normalize=normalize)
    layers[-1].set_params(pool=pool)
    return layers


def fits(kernel, features, data, **options):
    options = {"n_rounds": 1, **options}
    return {
        values: ConvRFMClassifier(
            kernel, with_values(features, *values), **options
        ).fit(*data)
        for values in [*product(*AUTO.values()), ("auto", "auto")]
    }


def preferred(criteria):
    """Return the values of the least criterion, the low floor only by 2 per cent."""
    return min(criteria, key=lambda key: criteria[key] * (1.02 if key[0] < 1 else 1))


@pytest.mark.parametrize(
    ("kernel", "features", "selection"),
    [
        ("gaussian", "one layer", "gcv"),
        ("linear", "two layers", "loo"),
        ("gaussian", "two layers", "holdout"),
        ("linear", "one layer", "holdout"),
    ],
)
def test_fit_is_that_of_the_choice_by_the_criterion(kernel, features, selection, data):
    models = fits(kernel, FEATURES[features], data, selection=selection)
    auto = models.pop(("auto", "auto"))
    name = {"gcv": "gcv", "loo": "loo_loss", "holdout": "holdout_loss"}[selection]
    criteria = {values: model.history_[name][0] for values, model in models.items()}
    first, last = auto.features_[0], auto.features_[-1]
    chosen = first.normalize_, last.pool_
    assert chosen == preferred(criteria)
    assert (first.normalize, last.pool) == ("auto", "auto")
    assert_array_equal(
        auto.decision_function(data[0]), models[chosen].decision_function(data[0])
    )


@pytest.mark.parametrize("change", [-0.03, -0.01, 0.01])
def test_other_floor_needs_a_criterion_that_is_lower_by_two_per_cent(
    change, data, monkeypatch
):
    fit_round = rounds._fit_round

    def changed(model, *options):
        is_other = model.layers[0].normalize_ < 1
        return replace(fit_round(model, *options), criterion=1 + change * is_other)

    monkeypatch.setattr(rounds, "_fit_round", changed)
    layers = with_values(LAYER, "auto", "root")
    [layer] = ConvRFMClassifier("linear", layers, n_rounds=0).fit(*data).features_
    assert (layer.normalize_ < 1) == (change < -0.02)


@pytest.mark.parametrize("kernel", [*KERNELS, ConvNTK(depth=1, metric="auto")])
def test_choice_is_that_of_some_of_many_images(kernel, data, monkeypatch):
    X, y = data
    patches = isinstance(kernel, ConvNTK)
    model = ConvRFMClassifier(
        kernel, None if patches else with_values(LAYER, "auto", "auto"), n_rounds=0
    )
    seen, fit_round = [], rounds._fit_round

    def watched(model, *args):
        seen.append(len(model.data.images))
        return fit_round(model, *args)

    monkeypatch.setattr(rounds, "CHOICE_IMAGES", 30)
    monkeypatch.setattr(rounds, "_fit_round", watched)
    model.fit(X, y)
    assert seen == [30] * (2 if patches else 4) + [50]
    monkeypatch.setattr(rounds, "CHOICE_IMAGES", 50)
    seen.clear()
    model.fit(X, y)
    assert seen == [50] * (2 if patches else 4)  # one of which is round 0
    weights = np.random.default_rng(0).integers(1, 4, size=len(X))
    weighted = clone(model).fit(X, y, sample_weight=weights).decision_function(X)
    repeated = clone(model).fit(np.repeat(X, weights, 0), np.repeat(y, weights))
    np.testing.assert_allclose(weighted, repeated.decision_function(X), atol=1e-4)


def test_faint_parts_on_blank_ground_choose_the_low_floor():
    """Faint stripes, horizontal or vertical, below a bright frame of any pattern."""
    rng = np.random.default_rng(0)
    X, y = np.zeros((200, 16, 16)), np.arange(200) % 2
    X[:, :4] = rng.normal(size=(200, 4, 16))
    X[y == 0, 8:14:2, 4:12] = 0.05
    X[y == 1, 8:14, 4:12:2] = 0.05
    layer = ConvFeatures(32, patch_size=3, normalize="auto")
    model = ConvRFMClassifier("gaussian", layer, n_rounds=0).fit(X, y)
    assert model.features_[0].normalize_ == min(AUTO["normalize"])


def test_either_pool_is_chosen_where_it_fits():
    """Whole digits stand out where the pool is global, parts of them in its cells."""
    X, y = make_framed_digits(random_state=0)
    for grid, expected in ((1, "norm"), (2, "root")):
        layer = ConvFeatures(64, patch_size=7 - grid, pool="auto", pool_grid=grid)
        model = ConvRFMClassifier("gaussian", layer, n_rounds=0)
        assert model.fit(X[:400], y[:400]).features_[0].pool_ == expected


def test_choice_is_kept_by_later_fits_and_by_sums(data):
    X, y = data
    model = ConvRFMClassifier(
        Gaussian(2.0), with_values(LAYER, "auto", "auto"), n_rounds=1, warm_start=True
    ).fit(X, y)
    choice, expected = model.features_[0].choice, model.decision_function(X)
    model.set_params(n_rounds=0).fit(X, y)
    assert model.features_[0].choice == choice
    np.testing.assert_allclose(model.decision_function(X), expected, atol=1e-3)

    sums = ConvRFMRegressor("linear", with_values(LAYER, "auto", "auto"), n_rounds=0)
    choice = clone(sums).fit(X[:35], y[:35]).features_[0].choice
    assert sums.partial_fit(X[:35], y[:35]).features_[0].choice == choice
    assert sums.partial_fit(X[35:], y[35:]).features_[0].choice == choice


def test_fit_on_a_checkpoint_goes_on_with_the_same_choice(data, tmp_path):
    model = ConvRFMClassifier(
        "gaussian",
        with_values(LAYER, "auto", "auto"),
        n_rounds=2,
        checkpoint=tmp_path / "fit",
    )
    expected = clone(model).set_params(checkpoint=None).fit(*data)
    model.fit(*data)
    found = clone(model).fit(*data)  # which reads what the first one kept
    assert found.features_[0].choice == expected.features_[0].choice
    assert_array_equal(
        found.decision_function(data[0]), expected.decision_function(data[0])
    )


@pytest.mark.parametrize(
    ("kernel", "layers"),
    [("gaussian", [clone(BELOW).set_params(pool="auto"), LAYER]), (ConvNTK(), None)],
)
def test_pool_of_another_layer_is_not_chosen(kernel, layers, data):
    layers = layers or [ConvFeatures(4, patch_size=3, pool_size=2, pool="auto")]
    with pytest.raises(ValueError, match=r"features\[0\]\.pool='auto' is chosen of"):
        ConvRFMClassifier(kernel, layers).fit(*data)


def test_floor_of_deep_conv_rfm_is_not_chosen(data):
    layer = ConvFeatures(4, patch_size=3, pool_size=2, normalize="auto")
    with pytest.raises(ValueError, match=r"features\[0\]\.normalize='auto' is chosen"):
        ConvRFMClassifier(ConvNTK(), layer).fit(*data)

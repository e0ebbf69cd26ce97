"""pool="auto" is the pool with the lower criterion in round 0, and nothing else."""

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.base import clone

from skconvrfm import ConvRFMClassifier, ConvRFMRegressor
from skconvrfm.datasets import make_framed_digits
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import ConvNTK, Gaussian

LAYER = ConvFeatures(6, patch_size=3, pool_grid=2, candidates=2)
BELOW = ConvFeatures(5, patch_size=3, pool_size=2, pool="mean")
FEATURES = {"one layer": LAYER, "two layers": [BELOW, LAYER]}
KERNELS = ["gaussian", "linear"]


@pytest.fixture
def data(rng):
    X, y = rng.normal(size=(60, 12, 12)).astype(np.float32), np.arange(60) % 2
    X[y == 1, 4:6, 3:5] += 1.5
    return X, y


def with_pool(features, pool):
    layers = clone(features) if isinstance(features, list) else [clone(features)]
    layers[-1].set_params(pool=pool)
    return layers


def fits(kernel, features, data, **options):
    return {
        pool: ConvRFMClassifier(
            kernel, with_pool(features, pool), **{"n_rounds": 1, **options}
        ).fit(*data)
        for pool in ("root", "norm", "auto")
    }


@pytest.mark.parametrize("selection", ["gcv", "loo", "holdout"])
@pytest.mark.parametrize("features", FEATURES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_pool_with_the_lower_criterion_is_kept(kernel, features, selection, data):
    models = fits(kernel, FEATURES[features], data, selection=selection)
    auto = models.pop("auto")
    name = {"gcv": "gcv", "loo": "loo_loss", "holdout": "holdout_loss"}[selection]
    criteria = {pool: model.history_[name][0] for pool, model in models.items()}
    chosen = min(criteria, key=criteria.get)
    assert auto.features_[-1].pool_ == chosen
    assert auto.features_[-1].pool == "auto"
    assert_array_equal(
        auto.decision_function(data[0]), models[chosen].decision_function(data[0])
    )


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
        Gaussian(2.0), with_pool(LAYER, "auto"), n_rounds=1, warm_start=True
    ).fit(X, y)
    pool, expected = model.features_[0].pool_, model.decision_function(X)
    model.set_params(n_rounds=0).fit(X, y)
    assert model.features_[0].pool_ == pool
    np.testing.assert_allclose(model.decision_function(X), expected, atol=1e-3)

    sums = ConvRFMRegressor("linear", with_pool(LAYER, "auto"), n_rounds=0)
    sums.partial_fit(X[:40], y[:40])
    pool = sums.features_[0].pool_
    assert sums.partial_fit(X[40:], y[40:]).features_[0].pool_ == pool


def test_fit_on_a_checkpoint_goes_on_with_the_same_pool(data, tmp_path):
    model = ConvRFMClassifier(
        "gaussian", with_pool(LAYER, "auto"), n_rounds=2, checkpoint=tmp_path / "fit"
    )
    expected = clone(model).set_params(checkpoint=None).fit(*data)
    model.fit(*data)
    found = clone(model).fit(*data)  # which reads what the first one kept
    assert found.features_[0].pool_ == expected.features_[0].pool_
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

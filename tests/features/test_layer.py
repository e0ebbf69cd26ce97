"""ConvFeatures: hyperparameters, binding to an image shape, grids of pools."""

import pickle

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV

from skconvrfm import ConvRFMClassifier
from skconvrfm.features import ConvFeatures

LAYERS = [
    ConvFeatures(),
    ConvFeatures(16, patch_size=(2, 3), padding="same", pool_size=2, pool="mean"),
    ConvFeatures(8, filters="gaussian", metric="identity", bias=0, pool_grid=None),
    ConvFeatures(4, activation="identity", threshold=-1.0, pool_grid=(1, 2)),
    ConvFeatures(4, pool="norm", pool_overlap=0.5, mirror=True),
    ConvFeatures(4, pool=(2.5, 0.4), pool_size=3, pool_grid=None, pool_overlap=1),
]
ALL_LAYERS = pytest.mark.parametrize("layer", LAYERS, ids=str)
# Values that are not allowed, by parameter.
BAD = {
    "n_filters": [0, 2.5, None],
    "patch_size": [0, "3", (3, 3, 3), (3, 0), 2.5],
    "padding": ["full", 1],
    "filters": ["normal", None],
    "metric": ["euclidean", None],
    "normalize": [0, 1e-13, "yes", np.inf, np.nan],
    "shrinkage": [0, -1.0, None, np.inf],
    "candidates": [0, 2.5, None],
    "learn": ["auto", None],
    "agop_power": [0, -1.0, "half"],
    "bias": [-0.1, "none", np.inf],
    "activation": ["tanh", None],
    "threshold": ["high", None, np.inf],
    "pool": ["maximum", 0.5, (0.5, 1), (9, 1), (2, 0), (2, 9), (2,), (1, "2")],
    "pool_grid": [0, (2, 2, 2), 1.5, "global"],
    "pool_size": [0, (2, 2, 2), 1.5, "global"],
    "pool_overlap": [-0.1, 1.5, np.nan, "half", None],
    "mirror": ["horizontal", 2, None],
    "skip": ["all", 2, None],
    "scale": ["raw", 0, -1.0, np.nan, np.inf, None],
}


@ALL_LAYERS
def test_layer_is_an_estimator_of_hyperparameters(layer):
    made = eval(repr(layer))
    assert type(made) is ConvFeatures and made.get_params() == layer.get_params()
    assert clone(layer).get_params() == layer.get_params()
    default = ConvFeatures().set_params(**layer.get_params())
    assert default.get_params() == layer.get_params()


@ALL_LAYERS
def test_bind_leaves_the_layer_as_it_is(layer):
    before = dict(vars(layer))
    bound = layer.bind((9, 8, 2))
    assert vars(layer) == before and bound.image_shape_ == (9, 8, 2)
    again = pickle.loads(pickle.dumps(bound))
    assert again.layer_ == bound.layer_ and again.grid == bound.grid


def test_every_parameter_is_checked():
    assert set(BAD) == set(ConvFeatures().get_params())


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, values in BAD.items() for value in values],
    ids=str,
)
def test_error_of_a_bad_parameter_names_it(name, value, rng):
    layer = ConvFeatures(**{name: value})  # the constructor accepts anything
    with pytest.raises(ValueError, match=f"'?{name}(' parameter|=).*") as raised:
        layer.bind((9, 8, 2))
    assert str(value) in str(raised.value)
    X, y = rng.normal(size=(6, 9, 8)), np.arange(6) % 2
    with pytest.raises(ValueError, match=name):
        ConvRFMClassifier("linear", layer).fit(X, y)


def test_two_ways_to_pool_are_refused():
    layer = ConvFeatures(pool_grid=2, pool_size=3)
    with pytest.raises(ValueError, match="pool_grid=2 and pool_size=3 both say"):
        layer.bind((9, 8, 2))


def test_overlap_without_cells_is_refused():
    layer = ConvFeatures(pool_grid=None, pool_overlap=0.5)
    with pytest.raises(ValueError, match="pool_overlap=0.5 has no cells .* pool_grid"):
        layer.bind((9, 8, 2))


@pytest.mark.parametrize(
    ("options", "grid", "exponents"),
    [
        ({}, (3, 3), (1, 0.5)),
        ({"pool": "mean"}, (3, 3), (1, 1)),
        ({"pool": "norm"}, (3, 3), (4, 0.25)),
        ({"pool": "max"}, (3, 3), (np.inf, 1)),
        ({"pool": (2, 0.5)}, (3, 3), (2, 0.5)),
        ({"pool": "norm", "pool_grid": None}, None, (1, 1)),
        ({"pool_grid": (1, 2)}, (1, 2), (1, 0.5)),
        ({"pool_size": 2}, (3, 3), (1, 0.5)),  # of 7 × 6 locations
        ({"pool_size": (3, 2), "pool_grid": None}, (2, 3), (1, 0.5)),
        ({"pool_size": 100}, (1, 1), (1, 0.5)),
        ({"pool_size": 3, "padding": "same"}, (3, 2), (1, 0.5)),  # of 9 × 8
    ],
    ids=str,
)
def test_pool_has_a_grid_of_cells(options, grid, exponents):
    bound = ConvFeatures(patch_size=3, **options).bind((9, 8, 2))
    assert bound.grid == grid and bound.exponents == exponents
    assert bound.patch_shape_ == (3, 3)


def test_pools_are_searched_over(rng):
    X, y = rng.normal(size=(24, 6, 6)), np.arange(24) % 2
    model = ConvRFMClassifier("gaussian", ConvFeatures(4, patch_size=3), n_rounds=1)
    grid = {
        "features__pool": ["norm", "max", (2, 0.5)],
        "features__pool_overlap": [0, 1],
    }
    search = GridSearchCV(model, grid, cv=2, error_score="raise").fit(X, y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert search.best_estimator_.features_[0].pool in grid["features__pool"]


def test_grid_is_clipped_to_the_map(rng):
    X, y = rng.normal(size=(12, 4, 5)), np.arange(12) % 2
    layer = ConvFeatures(4, patch_size=3, pool_grid=9)
    model = ConvRFMClassifier("linear", layer, n_rounds=0).fit(X, y)
    assert model.coef_.shape == (2 * 3 * 4, 1)

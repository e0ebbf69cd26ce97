"""Deep ConvRFM: layer upon layer, each a predictor."""

import numpy as np
import pytest
from by_hand import kernel_by_hand, patches_by_hand
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone

from skconvrfm import ConvRFMClassifier, ConvRFMRegressor
from skconvrfm.features import ConvFeatures
from skconvrfm.features import maps as maps_module
from skconvrfm.kernels import ConvNTK
from skconvrfm.learning.rounds import transform_from_agop

# As published: normal filters, no pool, and here an activation.
LAYER = ConvFeatures(
    6,
    patch_size=3,
    filters="gaussian",
    metric="identity",
    bias=0,
    threshold=0,
    pool_grid=None,
)


@pytest.fixture(params=[ConvRFMClassifier, ConvRFMRegressor])
def problem(request, rng):
    X = rng.normal(size=(40, 8, 7, 2))
    signal = (X[:, 2:4, 2:4, 0] * X[:, 3:5, 2:4, 0]).sum((1, 2))
    y = signal if request.param is ConvRFMRegressor else (signal > 0).astype(int)
    return request.param(ConvNTK(depth=1), [LAYER], n_rounds=1), X, y


def raw_scores(model, X):
    return getattr(model, "decision_function", model.predict)(X)


def test_first_layer_learns_as_convrfm_of_the_whole_depth(problem):
    model, X, y = problem
    shallow = clone(model).set_params(kernel=ConvNTK(depth=2), features=None).fit(X, y)
    assert shallow.best_layer_ == 0 and len(shallow.learned_layers_) == 1
    [first, _] = model.set_params(selection="last").fit(X, y).learned_layers_
    shallow.set_params(selection="last").fit(X, y)
    for name in ("patch_transform_", "patch_agop_"):
        learned = getattr(shallow.learned_layers_[0], name)
        assert_array_equal(getattr(first, name), learned)


@pytest.mark.parametrize("selection", ["gcv", "loo"])
def test_layer_is_chosen_by_the_criterion_of_the_rounds(problem, selection):
    model, X, y = problem
    name = "gcv" if selection == "gcv" else "loo_loss"
    both = clone(model).set_params(selection="last").fit(X, y).learned_layers_
    model.set_params(selection=selection).fit(X, y)
    # The first layer is that of both fits up to the round that is kept.
    chosen = [learned.history_[name].min() for learned in model.learned_layers_]
    if model.best_layer_ == 0:
        assert len(model.features_) == 0 and len(chosen) == 1
    else:
        assert chosen[1] == min(chosen) and len(model.features_) == 1
    assert min(chosen) <= both[0].history_[name].min() * (1 + 1e-9)
    assert model.history_[name].min() == min(chosen)
    assert model.best_round_ == model.history_[name].argmin()


def test_prediction_is_the_kernel_on_the_maps(problem):
    model, X, y = problem
    [fitted] = model.set_params(selection="last").fit(X, y).features_

    def maps_of(images):
        products = np.stack([patches_by_hand(x) for x in images]) @ fitted.filters_.T
        return np.sqrt(2 / 2) * np.maximum(products, 0)  # gain 2 over 2 channels

    T = model.kernel_.patch_transform_
    K = kernel_by_hand(ConvNTK(depth=1), maps_of(X[:3]), maps_of(X), T)
    expected = K @ model.dual_coef_.reshape(len(X), -1) + model.intercept_
    assert_allclose(raw_scores(model, X[:3]), expected[:, 0], atol=1e-10)
    assert_array_equal(T, model.learned_layers_[1].patch_transform_)
    assert model.best_layer_ == 1


def test_where_round_zero_is_kept_the_filters_come_from_its_agop(problem):
    model, X, y = problem
    [first, _] = (
        model.set_params(n_rounds=0, selection="last").fit(X, y).learned_layers_
    )
    assert_array_equal(first.patch_transform_, np.eye(18))
    learned = transform_from_agop(first.patch_agop_, 0.5)
    assert_array_equal(first.filter_transform_, learned)
    fitted = model.features_[0]
    assert_allclose(fitted.filters_, fitted.directions_ @ learned, atol=1e-12)


def test_lower_layer_that_was_kept_predicts_without_filters(problem, monkeypatch):
    model, X, y = problem
    blind = clone(LAYER).set_params(threshold=1e3)  # whose maps are zero
    model.set_params(features=blind).fit(X, y)
    assert model.best_layer_ == 0 and model.features_ == []
    shallow = clone(model).set_params(kernel=ConvNTK(depth=2), features=None).fit(X, y)
    monkeypatch.setattr(maps_module, "compute_maps", None)  # no map is computed
    assert_array_equal(model.predict(X), shallow.predict(X))


def test_each_round_of_each_layer_is_reported(problem, capsys):
    model, X, y = problem
    model.set_params(verbose=1).fit(X, y)
    lines = capsys.readouterr().out.splitlines()
    rounds = [line for line in lines if "] kept" not in line]
    assert len(lines) == len(rounds) + 2  # one for the round that each layer kept
    found = [line.split("]")[1].split("alpha")[0].split() for line in rounds]
    assert found == [
        ["layer", f"{layer}/2", "round", f"{index}/1"]
        for layer in (1, 2)
        for index in (0, 1)
    ]

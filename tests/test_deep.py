"""Deep ConvRFM: layer upon layer, each a predictor."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import config_context
from sklearn.base import clone

from skconvrfm import ConvRFMClassifier, ConvRFMRegressor
from skconvrfm.core.rounds import transform_from_agop

DEEP = {"feature_layers": 2, "n_filters": 6, "depth": 2, "n_rounds": 1}


@pytest.fixture(params=[ConvRFMClassifier, ConvRFMRegressor])
def problem(request, rng):
    X = rng.normal(size=(40, 8, 7, 2))
    signal = (X[:, 2:4, 2:4, 0] * X[:, 3:5, 2:4, 0]).sum((1, 2))
    y = signal if request.param is ConvRFMRegressor else (signal > 0).astype(int)
    return request.param(**DEEP), X, y


def test_one_layer_is_convrfm(problem):
    model, X, y = problem
    shallow = clone(model).set_params(feature_layers=1).fit(X, y)
    assert shallow.best_layer_ == 0 and len(shallow.layers_) == 1
    deep = model.fit(X, y)
    for name in ("patch_transform_", "patch_agop_", "filters"):
        assert_array_equal(
            getattr(deep.layers_[0], name), getattr(shallow.layers_[0], name)
        )


def test_every_layer_tells_what_it_has_learned(problem):
    model, X, y = problem
    first, second = model.set_params(selection="last").fit(X, y).layers_
    for layer, d in ((first, 18), (second, 54)):
        assert layer.patch_transform_.shape == layer.patch_agop_.shape == (d, d)
        assert layer.filters.shape == (6, d)
        assert layer.patch_shape_ == (3, 3)
        assert len(layer.history_["gcv"]) == 2
        assert layer.best_round_ == 1
        assert_array_equal(layer.filter_transform_, layer.patch_transform_)
    assert model.best_layer_ == 1
    assert_array_equal(model.patch_transform_, second.patch_transform_)
    assert_array_equal(model.patch_agop_, second.patch_agop_)


@pytest.mark.parametrize("selection", ["gcv", "loo"])
def test_the_layer_is_chosen_by_the_criterion_of_the_rounds(problem, selection):
    model, X, y = problem
    model.set_params(selection=selection).fit(X, y)
    name = "gcv" if selection == "gcv" else "loo_loss"
    best = [layer.history_[name].min() for layer in model.layers_]
    assert model.best_layer_ == np.argmin(best)
    assert model.history_[name].min() == min(best)
    assert model.best_round_ == model.history_[name].argmin()


def test_a_deep_machine_is_the_kernel_on_the_maps_by_hand(problem):
    from by_hand import kernel_by_hand, patches_by_hand

    model, X, y = problem
    model.set_params(selection="last").fit(X, y)
    layer = model.layers_[0]

    def maps_of(images):
        products = np.stack([patches_by_hand(x) for x in images]) @ layer.filters.T
        return np.sqrt(2 / 2) * np.maximum(products, 0)  # gain 2 over 2 channels

    K = kernel_by_hand(
        *(maps_of(X[:3]), maps_of(X)),
        depth=1,
        bias=0.3,
        patch_transform=model.patch_transform_,
    )
    expected = K @ model.dual_coef_.reshape(len(X), -1) + model.intercept_
    scores = getattr(model, "decision_function", model.predict)(X[:3])
    assert_allclose(scores, expected[:, 0], atol=1e-10)


def test_where_round_zero_is_kept_the_filters_come_from_its_agop(problem):
    model, X, y = problem
    [layer, _] = model.set_params(n_rounds=0).fit(X, y).layers_
    assert_array_equal(layer.patch_transform_, np.eye(18))
    learned = transform_from_agop(layer.patch_agop_, 0.5)
    assert_array_equal(layer.filter_transform_, learned)


def test_the_seed_decides_the_filters(problem):
    model, X, y = problem
    first, again, other = (
        clone(model).set_params(random_state=seed).fit(X, y) for seed in (0, 0, 1)
    )
    assert_array_equal(first.layers_[0].filters, again.layers_[0].filters)
    assert_array_equal(first.predict(X), again.predict(X))
    assert not np.allclose(first.layers_[0].filters, other.layers_[0].filters)


@pytest.mark.thorough
@pytest.mark.parametrize("options", [{"n_jobs": 2}, {"working_memory": 0.3}])
def test_neither_workers_nor_memory_change_the_result(problem, options):
    model, X, y = problem
    expected = model.set_params(selection="last").fit(X, y).predict(X)
    memory = {k: v for k, v in options.items() if k == "working_memory"}
    with config_context(**memory):
        model.set_params(n_jobs=options.get("n_jobs")).fit(X, y)
        assert_allclose(model.predict(X), expected, atol=1e-6)


def test_prediction_runs_only_the_layers_that_it_needs(problem, monkeypatch):
    from skconvrfm.core import features

    model, X, y = problem
    model.fit(X, y)
    model.best_layer_ = 0  # and what goes with it
    shallow = clone(model).set_params(feature_layers=1).fit(X, y)
    for name in ("dual_coef_", "intercept_", "patch_transform_", "best_round_"):
        setattr(model, name, getattr(shallow, name))
    monkeypatch.setattr(features, "convolve", None)  # no map is computed
    assert_array_equal(model.predict(X), shallow.predict(X))


def test_weights_equal_repeated_rows(problem, rng):
    model, X, y = problem
    weights = rng.integers(0, 3, size=len(X))
    weighted = model.set_params(agop_samples=12).fit(X, y, sample_weight=weights)
    repeated = clone(model).fit(X.repeat(weights, axis=0), y.repeat(weights))
    assert weighted.best_layer_ == repeated.best_layer_
    assert_allclose(weighted.predict(X), repeated.predict(X), atol=1e-6)


def test_integer_images_are_seen_as_their_values(problem):
    model, X, y = problem
    X = np.round(20 * X).clip(-127, 127)
    expected = model.fit(X, y).predict(X)
    assert_array_equal(
        model.set_params(dtype="float64").fit(X.astype(np.int8), y).predict(X), expected
    )


def test_more_layers_than_the_network_has_are_refused(problem):
    model, X, y = problem
    with pytest.raises(ValueError, match="feature_layers=3 exceeds depth=2"):
        model.set_params(feature_layers=3).fit(X, y)


def test_each_round_of_each_layer_is_reported(problem, capsys):
    model, X, y = problem
    model.set_params(verbose=1).fit(X, y)
    lines = capsys.readouterr().out.splitlines()[1:]  # after the method
    found = [line.split("]")[1].split("alpha")[0].split() for line in lines]
    assert found == [
        ["layer", f"{layer}/2", "round", f"{index}/1"]
        for layer in (1, 2)
        for index in (0, 1)
    ]

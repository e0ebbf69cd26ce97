"""Deep ConvRFM: layer upon layer, each a predictor."""

import numpy as np
import pytest
from by_hand import kernel_by_hand, patches_by_hand
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import config_context
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


def test_every_layer_keeps_what_it_learned(problem):
    model, X, y = problem
    first, second = model.set_params(selection="last").fit(X, y).learned_layers_
    for learned, d in ((first, 18), (second, 54)):
        assert learned.patch_transform_.shape == learned.patch_agop_.shape == (d, d)
        assert learned.patch_shape_ == (3, 3)
        assert len(learned.history_["gcv"]) == 2
        assert learned.best_round_ == 1
        assert_array_equal(learned.filter_transform_, learned.patch_transform_)
    [fitted] = model.features_
    assert fitted.filters_.shape == (6, 18)
    assert model.best_layer_ == 1
    assert_array_equal(model.patch_transform_, first.patch_transform_)
    assert_array_equal(model.kernel_.patch_transform_, second.patch_transform_)
    assert_array_equal(model.kernel_.patch_agop_, second.patch_agop_)


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


def test_seed_decides_the_filters(problem):
    model, X, y = problem
    model.set_params(selection="last")
    first, again, other = (
        clone(model).set_params(random_state=seed).fit(X, y) for seed in (0, 0, 1)
    )
    assert_array_equal(first.features_[0].filters_, again.features_[0].filters_)
    assert_array_equal(first.predict(X), again.predict(X))
    assert not np.allclose(first.features_[0].filters_, other.features_[0].filters_)


@pytest.mark.slow
@pytest.mark.parametrize("options", [{"n_jobs": 2}, {"working_memory": 0.3}], ids=str)
def test_result_independent_of_workers_and_memory(problem, options):
    model, X, y = problem
    expected = model.set_params(selection="last").fit(X, y).predict(X)
    memory = {k: v for k, v in options.items() if k == "working_memory"}
    with config_context(**memory):
        model.set_params(n_jobs=options.get("n_jobs")).fit(X, y)
        assert_allclose(model.predict(X), expected, atol=1e-6)


def test_lower_layer_that_was_kept_predicts_without_filters(problem, monkeypatch):
    model, X, y = problem
    blind = clone(LAYER).set_params(threshold=1e3)  # whose maps are zero
    model.set_params(features=blind).fit(X, y)
    assert model.best_layer_ == 0 and model.features_ == []
    shallow = clone(model).set_params(kernel=ConvNTK(depth=2), features=None).fit(X, y)
    monkeypatch.setattr(maps_module, "compute_maps", None)  # no map is computed
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
    model.set_params(dtype="float64").fit(X.astype(np.int8), y)
    assert_array_equal(model.predict(X), expected)


@pytest.mark.parametrize(
    ("kernel", "grid", "message"),
    [
        (ConvNTK(depth=1), 1, r"features\[0\].pool_grid=1 .*kernel=ConvNTK \(depth=1"),
        (ConvNTK(depth=3), 4, r"features\[0\].pool_grid=4 .*kernel=ConvNTK \(depth=3"),
    ],
)
def test_pool_without_room_for_the_kernel_is_refused(problem, kernel, grid, message):
    model, X, y = problem
    features = clone(LAYER).set_params(pool_grid=grid)
    with pytest.raises(ValueError, match=message):
        model.set_params(kernel=kernel, features=features).fit(X, y)


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

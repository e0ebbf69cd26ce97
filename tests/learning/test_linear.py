"""Ridge regression on the maps of feature layers, with a kernel of whole maps."""

import math

import numpy as np
import pytest
import torch
from by_hand import assert_close, patches_by_hand
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone

from skconvrfm import ConvRFMClassifier, ConvRFMRegressor
from skconvrfm.compute.native import build
from skconvrfm.features import ConvFeatures
from skconvrfm.features import maps as maps_module
from skconvrfm.features.filters import FilterBank, PatchMoments
from skconvrfm.kernels import ConvNNGP, ConvNTK, Gaussian, Linear


def layer(n_filters=8, **options):
    return ConvFeatures(n_filters, **{"patch_size": 3, "pool_grid": 2, **options})


NORMAL = {"filters": "gaussian", "metric": "identity", "threshold": 0.0}
TWO_LAYERS = [
    layer(patch_size=2, pool_grid=None, pool="mean"),
    layer(patch_size=2, padding="same"),
]
VARIANTS = {
    "default": {},
    "normal filters": {"features": layer(**NORMAL)},
    "holdout": {"selection": "holdout"},
    "two layers": {"features": TWO_LAYERS},
    "more features than rows": {"features": layer(40)},
    "mean": {"features": layer(7, filters="gaussian", pool="mean")},
    "norm, overlapping": {"features": layer(pool="norm", pool_overlap=0.5)},
    "maxima": {"features": layer(pool="max")},
    "mirrored": {"features": layer(mirror=True)},
    "gaussian": {"kernel": Gaussian()},
    "gaussian, two layers": {"kernel": Gaussian(), "features": TWO_LAYERS},
    "gaussian, mirrored": {
        "kernel": Gaussian(),
        "features": [TWO_LAYERS[0], layer(patch_size=2, padding="same", mirror=True)],
    },
}


def make_problem(n=60, seed=0):
    """Images with a stroke somewhere, three classes; and how long it is."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, 8, 7)) / 4
    y = np.arange(n) % 3
    for image, label in zip(X, y, strict=True):
        r, c = rng.integers(0, 5), rng.integers(0, 4)
        image[r : r + label + 1, c] += 1
        image[r, c : c + 3 - label] += 1
    return X, y


@pytest.fixture(params=[ConvRFMClassifier, ConvRFMRegressor])
def problem(request):
    X, y = make_problem()
    y = y if request.param is ConvRFMClassifier else np.column_stack([y == 1, y / 2])
    return request.param(Linear(), layer(), n_rounds=1), X, y


def raw_scores(model, X):
    return getattr(model, "decision_function", model.predict)(X)


@pytest.mark.parametrize("variant", VARIANTS)
def test_weights_equal_repeated_rows(problem, variant):
    model, X, y = problem
    model.set_params(**VARIANTS[variant])
    weights = np.arange(len(X)) % 4
    weighted = clone(model).fit(X, y, sample_weight=weights)
    repeated = clone(model).fit(np.repeat(X, weights, 0), np.repeat(y, weights, 0))
    assert weighted.best_round_ == repeated.best_round_
    assert weighted.alpha_ == repeated.alpha_
    for ours, theirs in zip(weighted.features_, repeated.features_, strict=True):
        assert_close(ours.filters_, theirs.filters_, 1e-6)
    assert_allclose(raw_scores(weighted, X), raw_scores(repeated, X), atol=1e-6)


def test_bytes_are_seen_as_their_values(problem):
    model, X, y = problem
    X = (40 * X + 100).clip(0, 255).astype(np.uint8)
    from_bytes = clone(model).fit(X, y)
    from_floats = clone(model).fit(X.astype(np.float32), y)
    assert_array_equal(raw_scores(from_bytes, X), raw_scores(from_floats, X))
    strided = np.asfortranarray(X)[:, ::-1][:, ::-1]
    assert_array_equal(raw_scores(from_bytes, strided), raw_scores(from_bytes, X))


def test_one_target_has_no_axis_of_outputs():
    X, y = make_problem()
    model = ConvRFMRegressor("linear", layer(), n_rounds=1).fit(X, y.astype(float))
    assert model.coef_.shape == (32,) and np.ndim(model.intercept_) == 0
    assert model.predict(X).shape == (60,)


def test_predictions_are_their_formula(problem):
    model, X, y = problem
    [fitted] = model.fit(X, y).features_
    maps = [
        math.sqrt(2)
        * np.maximum(
            patches_by_hand(x[..., None]) @ fitted.filters_.T + fitted.biases_, 0
        )
        for x in X[:4]
    ]
    rows, columns = (slice(0, 3), slice(3, 6)), (slice(0, 2), slice(2, 5))
    cells = [[[m[r, c].mean((0, 1)) for c in columns] for r in rows] for m in maps]
    offsets = fitted.offsets_
    raised = np.sqrt(np.array(cells) + offsets) - np.sqrt(offsets)
    expected = raised.reshape(4, -1) @ model.coef_ + model.intercept_
    assert_allclose(raw_scores(model, X[:4]), expected, atol=1e-10)


# ---------------------------------------------------------------- selection


@pytest.mark.parametrize("selection", ["gcv", "loo", "holdout"])
def test_round_is_kept_if_it_is_better_by_more_than_its_optimism(problem, selection):
    model, X, y = problem
    options = {"selection": selection, "n_rounds": 2, "n_iter_no_change": None}
    model.set_params(**options).fit(X, y)
    name = {"gcv": "gcv", "loo": "loo_loss", "holdout": "holdout_loss"}[selection]
    criteria = model.history_[name]
    best = 0
    for index in (1, 2):  # two per cent are the optimism of a round
        share = 1.0 if selection == "holdout" else 0.98
        best = index if criteria[index] < share * criteria[best] else best
    assert model.best_round_ == best
    assert model.alpha_ == model.history_["alpha"][model.best_round_]


@pytest.mark.parametrize(
    ("kernel", "features"), [(ConvNTK(depth=1), None), ("linear", layer())], ids=str
)
def test_after_the_choice_all_rows_are_fitted(kernel, features):
    X, y = make_problem(40)
    # One ridge for all rounds, so that the refit can be asked for.
    model = ConvRFMClassifier(kernel, features, n_rounds=2, alpha=1e-2)
    chosen = clone(model).set_params(selection="holdout").fit(X, y)
    model.set_params(selection="last", n_rounds=chosen.best_round_).fit(X, y)
    scores = model.decision_function(X)
    assert_allclose(chosen.decision_function(X), scores, atol=1e-8)
    if features is None:
        assert len(chosen.X_fit_) == 40


def test_too_few_rows_to_hold_some_out_are_refused():
    X, y = make_problem(4)
    with pytest.raises(ValueError, match="selection='holdout'.*selection='gcv'"):
        ConvRFMClassifier("linear", layer(), selection="holdout").fit(X, y)


# ------------------------------------------------------------------- layers


@pytest.mark.parametrize("kernel", ["linear", "gaussian"])
def test_all_layers_learn_together(problem, kernel):
    model, X, y = problem
    model.set_params(kernel=kernel, features=TWO_LAYERS, selection="last").fit(X, y)
    first, second = model.features_
    for fitted, d in ((first, 4), (second, 32)):
        assert fitted.filters_.shape == (8, d)
        assert fitted.patch_transform_.shape == fitted.patch_agop_.shape == (d, d)
        assert not np.array_equal(fitted.patch_transform_, fitted.initial_transform_)
    assert model.best_layer_ == 0 and len(model.learned_layers_) == 2
    assert_array_equal(model.patch_transform_, first.patch_transform_)
    assert np.isfinite(raw_scores(model, X)).all()


def test_prediction_uses_the_filters_of_every_layer_once(problem, monkeypatch):
    model, X, y = problem
    model.set_params(features=TWO_LAYERS).fit(X, y)
    seen, convolve = [], maps_module.convolve

    def counted(images, layer, filters, biases=None):
        seen.append(filters.shape)
        return convolve(images, layer, filters, biases)

    monkeypatch.setattr(maps_module, "convolve", counted)
    monkeypatch.setenv(build.SWITCH, "0")
    model.predict(X)
    assert set(seen) == {(8, 4), (8, 32)}


def test_kernel_of_many_filters_tends_to_the_exact_pooled_kernel():
    """At the rate 1 / sqrt(n_filters); in a metric, with biases."""
    rng = np.random.RandomState(0)
    X, T = rng.normal(size=(6, 7, 6, 2)), rng.normal(size=(18, 18)) / 4
    T = T + T.T
    exact = ConvNNGP(depth=1, pool_grid=(2, 2))(X, patch_transform=T)
    features = layer(threshold=0, pool="mean").bind((7, 6, 2))
    moments = PatchMoments(np.zeros(18), np.eye(18))

    def error(n_filters):
        draws = rng.normal(size=(n_filters, 18)), rng.normal(size=n_filters)
        bank = FilterBank(*draws, moments, initial=None)
        maps = bank.under(T, features)(torch.from_numpy(X)).flatten(1).numpy()
        kernel = maps @ maps.T / maps.shape[1]
        return np.linalg.norm(kernel - exact) / np.linalg.norm(exact)

    few, many = (
        np.sqrt(np.mean([error(n_filters) ** 2 for _ in range(8)]))
        for n_filters in (64, 16_384)
    )
    assert many < 0.01
    assert 0.4 < np.log(few / many) / np.log(256) < 0.6


@pytest.mark.parametrize("kernel", ["linear", "gaussian", "laplace"])
@pytest.mark.parametrize("filters", ["patches", "gaussian"])
def test_blank_and_constant_images_give_finite_scores(problem, filters, kernel):
    model, X, y = problem
    model.set_params(kernel=kernel, features=layer(filters=filters))
    for blank in (np.zeros_like(X), np.full_like(X, 3.0)):
        assert np.isfinite(raw_scores(clone(model).fit(blank, y), X)).all()
    with_blanks = X.copy()
    with_blanks[::2] = 0
    assert np.isfinite(raw_scores(clone(model).fit(with_blanks, y), X)).all()


@pytest.mark.parametrize(("kernel", "least"), [("linear", 0.8), ("gaussian", 0.75)])
def test_learning_finds_the_channel_that_matters(kernel, least):
    """A faint channel has edges of one direction or the other; three are loud noise."""
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(400, 9, 9, 4)), np.arange(400) % 2
    X[..., 0] /= 3
    X[y == 1, :, :, 0] += np.sign(np.sin(2 * np.arange(9)))
    X[y == 0, :, :, 0] += np.sign(np.sin(2 * np.arange(9)))[:, None]
    X[..., 0] /= 4
    model = ConvRFMClassifier(kernel, layer(64, pool_grid=1, **NORMAL))
    fixed, learned = (
        clone(model).set_params(n_rounds=n_rounds).fit(X[:200], y[:200])
        for n_rounds in (0, 3)
    )
    score = learned.score(X[200:], y[200:])
    assert learned.best_round_ > 0
    assert score > fixed.score(X[200:], y[200:]) + 0.1
    share = np.diag(learned.patch_agop_).reshape(4, 9).sum(1)
    assert share[0] > least * share.sum()

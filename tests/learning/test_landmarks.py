"""Landmarks: the Nyström machine, its limits, its draws, and its sums over rows."""

import pickle
import re
import shutil

import numpy as np
import pytest
from joblib import parallel_config
from numpy.testing import assert_allclose, assert_array_equal
from same import assert_same
from sklearn import config_context
from sklearn.base import clone

from skconvrfm import ConvRFMClassifier, ConvRFMRegressor
from skconvrfm.compute import files, parallel
from skconvrfm.compute.sampling import Lineup, inclusion_chances
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import (
    ConvNNGP,
    ConvNTK,
    Gaussian,
    Laplace,
    PatchGaussian,
    PatchLaplace,
)
from skconvrfm.learning.landmarks import MapColumns, inverse_root
from skconvrfm.learning.recipe import Recipe

N = 90
LAYER = ConvFeatures(8, patch_size=3, pool_grid=2)
LOCATIONS = ConvFeatures(8, patch_size=3, pool_grid=None)
LAYERS = [
    clone(LOCATIONS).set_params(candidates=2, learn=False),
    ConvFeatures(8, patch_size=2, pool="auto", pool_grid=2, candidates=2),
]
MACHINES = {
    "ntk": (ConvNTK(depth=2), None),
    "pooled": (ConvNNGP(pool_grid=2), None),
    "mirrored": (ConvNTK(mirror=True, metric="auto"), None),
    "patch gaussian": (PatchGaussian(), None),
    "patch laplace": (PatchLaplace(metric="whiten"), None),
    "images": (Gaussian(), None),
    "one layer": (Laplace(bandwidth=2.0), LAYER),
    "two layers": (Gaussian(), LAYERS),
    "skip": (
        Gaussian(),
        [clone(LOCATIONS).set_params(skip=True), clone(LAYER).set_params(patch_size=2)],
    ),
    "deep": (ConvNTK(), LOCATIONS),
}


@pytest.fixture
def data(rng):
    X = rng.normal(size=(N + 30, 7, 6, 2))
    y = (X[:, 2:4, 2:4, 0] * X[:, 3:5, 2:4, 0]).sum((1, 2)) > 0
    weights = rng.integers(1, 4, N).astype(float)
    return X[:N], y[:N].astype(int), weights, X[N:]


def make(machine, **options):
    kernel, features = MACHINES[machine]
    return ConvRFMClassifier(kernel, features, **{"n_rounds": 0, **options})


def features_of(model, X, landmarks):
    """Return K(X, Z) L⁻ᵀ of a machine on images alone, with K(Z, Z) = L Lᵀ."""
    transform = model.patch_transform_ if hasattr(model, "patch_transform_") else None
    options = {"patch_transform": transform, "dtype": "float64"}
    factor = np.linalg.cholesky(model.kernel_(landmarks, **options))
    return np.linalg.solve(factor, model.kernel_(X, landmarks, **options).T).T


def ridge(phi, targets, weights, penalty):
    """Return coefficients and intercept of a weighted ridge regression."""
    design = np.hstack([phi, np.ones((len(phi), 1))])
    normal = design.T @ (weights[:, None] * design)
    normal[np.arange(len(normal) - 1), np.arange(len(normal) - 1)] += penalty
    coef = np.linalg.solve(normal, design.T @ (weights * targets))
    return coef[:-1], coef[-1]


@pytest.mark.parametrize("selection", ["gcv", "loo", "holdout"])
@pytest.mark.parametrize("machine", MACHINES)
def test_all_rows_as_landmarks_are_the_exact_machine(
    machine, selection, data, monkeypatch
):
    X, y, weights, X_new = data
    model = make(machine, n_rounds=2, selection=selection)
    exact = clone(model).fit(X, y, sample_weight=weights)
    # Which a fit would otherwise take instead.
    monkeypatch.setattr(Recipe, "has_landmarks", lambda recipe, _: True)
    same = model.set_params(landmarks=N).fit(X, y, sample_weight=weights)
    assert_allclose(
        same.decision_function(X_new), exact.decision_function(X_new), atol=1e-6
    )
    assert_allclose(same.loo_prediction_, exact.loo_prediction_, atol=1e-6)
    assert same.alpha_ == exact.alpha_
    assert same.best_round_ == exact.best_round_
    for ours, theirs in zip(same.learned_layers_, exact.learned_layers_, strict=True):
        assert_allclose(ours.patch_agop_, theirs.patch_agop_, atol=1e-6)


@pytest.mark.parametrize(
    "kernel",
    [ConvNTK(depth=2), PatchGaussian(bandwidth=3.0), Gaussian(bandwidth=9.0)],
)
def test_machine_is_the_ridge_regression_on_nystroem_features(kernel, data):
    X, y, weights, X_new = data
    model = ConvRFMClassifier(kernel, n_rounds=1, landmarks=20)
    model.fit(X, y, sample_weight=weights)
    landmarks = model.X_fit_.reshape(-1, *model.image_shape_)
    assert len(landmarks) == 20
    assert {image.tobytes() for image in landmarks} <= {x.tobytes() for x in X}
    options = {"patch_transform": getattr(model, "patch_transform_", None)}
    diagonal = np.diagonal(model.kernel_(X, dtype="float64", **options))
    penalty = model.alpha_ * diagonal.max()
    phi = features_of(model, X, landmarks)
    coef, intercept = ridge(phi, 2.0 * y - 1, weights, penalty)
    expected = features_of(model, X_new, landmarks) @ coef + intercept
    assert_allclose(model.decision_function(X_new), expected, atol=1e-7)
    for row in 0, 7:  # left out, the landmarks stay
        rest = np.arange(N) != row
        coef, intercept = ridge(phi[rest], 2.0 * y[rest] - 1, weights[rest], penalty)
        expected = phi[row] @ coef + intercept
        assert_allclose(model.loo_prediction_[row], expected, atol=1e-7)


def test_groups_are_left_out_whole(data):
    X, y, weights, _ = data
    groups = np.arange(N) // 3
    model = ConvRFMClassifier(ConvNTK(), n_rounds=0, landmarks=20)
    model.fit(X, y, weights, groups=groups)
    landmarks = model.X_fit_.reshape(-1, *model.image_shape_)
    phi = features_of(model, X, landmarks)
    diagonal = np.diagonal(model.kernel_(X, dtype="float64"))
    rest, penalty = groups != 5, model.alpha_ * diagonal.max()
    coef, intercept = ridge(phi[rest], 2.0 * y[rest] - 1, weights[rest], penalty)
    expected = phi[~rest] @ coef + intercept
    assert_allclose(model.loo_prediction_[~rest], expected, atol=1e-7)


def test_as_many_landmarks_as_rows_are_an_exact_fit(data):
    X, y, weights, _ = data
    for enough in N - 1, N, 10**6:
        model = make("ntk", landmarks=enough).fit(X, y, sample_weight=weights)
        exact = make("ntk").fit(X, y, sample_weight=weights)
        assert_array_equal(model.dual_coef_, exact.dual_coef_)


def test_linear_machine_needs_no_landmarks(data):
    X, y, _, _ = data
    exact = ConvRFMClassifier("linear", LAYER, n_rounds=0).fit(X, y)
    model = ConvRFMClassifier("linear", LAYER, n_rounds=0, landmarks=20).fit(X, y)
    assert_array_equal(model.coef_, exact.coef_)


@pytest.mark.parametrize("machine", MACHINES)
def test_weights_equal_repeated_rows(machine, data):
    X, y, weights, X_new = data
    model = make(machine, landmarks=20, n_rounds=1)
    weighted = clone(model).fit(X, y, sample_weight=weights)
    rows = np.repeat(np.arange(N), weights.astype(int))
    repeated = clone(model).fit(X[rows[::-1]], y[rows[::-1]])
    assert_allclose(
        weighted.decision_function(X_new),
        repeated.decision_function(X_new),
        atol=1e-7,
    )


@pytest.mark.parametrize(
    "machine",
    [
        "ntk",
        *(pytest.param(m, marks=pytest.mark.slow) for m in ("images", "two layers")),
    ],
)
def test_workers_and_small_memory_change_nothing_but_rounding(machine, data):
    X, y, _, X_new = data
    model = make(machine, landmarks=20, n_rounds=1, selection="loo")
    expected = clone(model).fit(X, y).decision_function(X_new)
    with parallel_config("threading", n_jobs=2):
        shared = clone(model).fit(X, y)
    assert_allclose(shared.decision_function(X_new), expected, atol=1e-7)
    with config_context(working_memory=0.1):
        small = clone(model).fit(X, y)
    assert_allclose(small.decision_function(X_new), expected, atol=1e-7)


@pytest.mark.parametrize("has_room", [True, False])
def test_file_of_features_or_none_is_the_same(has_room, data, monkeypatch):
    X, y, _, X_new = data
    model = make("images", landmarks=20, selection="loo")
    expected = clone(model).fit(X, y).decision_function(X_new)
    passes, columns = [], MapColumns.__call__
    monkeypatch.setattr(
        MapColumns, "__call__", lambda *of: passes.append(len(of[1])) or columns(*of)
    )
    monkeypatch.setattr(files, "_HELD_BYTES", 1)
    usage = shutil.disk_usage("/")._replace(free=2 * 8 * 20 * N - (not has_room))
    monkeypatch.setattr(files.shutil, "disk_usage", lambda _: usage)
    assert_array_equal(clone(model).fit(X, y).decision_function(X_new), expected)
    assert sum(passes) == (N if has_room else 3 * N)


def test_single_worker_elsewhere_gets_no_file(data, monkeypatch):
    class Elsewhere:
        """A backend that is not joblib's own."""

    def run(n_jobs, n_workers, function, tasks):
        return (function(*pickle.loads(pickle.dumps(task))) for task in tasks)

    X, y, _, X_new = data
    model = make("images", landmarks=20, selection="loo")
    expected = clone(model).fit(X, y).decision_function(X_new)
    monkeypatch.setattr(parallel, "get_active_backend", lambda: (Elsewhere(), 1))
    monkeypatch.setattr(parallel, "_run_in_parallel", run)
    monkeypatch.setattr(files, "_HELD_BYTES", 1)
    assert_allclose(model.fit(X, y).decision_function(X_new), expected, atol=1e-7)


def test_stored_images_are_read_in_blocks(data, tmp_path):
    X, y, _, X_new = data
    np.save(tmp_path / "X.npy", X)
    stored = np.load(tmp_path / "X.npy", mmap_mode="r")
    for machine in "ntk", "deep", "one layer":
        model = make(machine, landmarks=20)
        expected = clone(model).fit(X, y).decision_function(X_new)
        found = clone(model).fit(stored, y).decision_function(X_new)
        assert_array_equal(found, expected)


def test_warm_start_goes_on_with_the_metric(data):
    X, y, _, _ = data
    model = make("ntk", landmarks=20, n_rounds=1).fit(X, y)
    assert model.best_round_ == 1
    metric = model.patch_transform_
    model.set_params(warm_start=True, n_rounds=0).fit(X, y)
    assert_array_equal(model.patch_transform_, metric)


# Draws


def lineup(rng, n):
    weights = rng.choice([0.5, 1.0, 4.0, 40.0], n)
    return Lineup(rng.integers(3, size=n), rng.normal(size=n), weights, rng.uniform())


@pytest.mark.parametrize("n_draws", [1, 7, 30, 59, 60, 100])
def test_draws_are_distinct_and_in_proportion_to_weights(n_draws, rng):
    rows = lineup(rng, 60)
    size = min(n_draws, 60)
    chances = inclusion_chances(rows.weights, size)
    assert chances.sum() == pytest.approx(size)
    open_ = chances < 1 - 1e-9
    assert_allclose(
        chances[open_] / rows.weights[open_],
        chances[open_][:1].repeat(open_.sum())
        / rows.weights[open_][:1].repeat(open_.sum()),
    )
    drawn, factors = rows.draw_once(n_draws)
    assert len(drawn) == len(np.unique(drawn)) == size
    assert_allclose(factors * chances[drawn], 1)
    assert np.isin(np.flatnonzero(~open_), drawn).all()


def test_landmarks_are_even_over_classes(rng):
    X = rng.normal(size=(200, 5, 5))
    y = np.repeat([0, 1, 2, 3], [100, 50, 30, 20])
    model = ConvRFMClassifier("gaussian", n_rounds=0, landmarks=40).fit(X, y)
    drawn = {x.tobytes(): label for x, label in zip(X, y, strict=True)}
    labels = [drawn[row.tobytes()] for row in model.X_fit_]
    assert np.abs(np.bincount(labels) - [20, 10, 6, 4]).max() <= 1


# The inverse root


@pytest.mark.parametrize(("n", "rank"), [(1, 1), (40, 40), (40, 7), (5, 0)])
def test_inverse_root_of_any_rank(n, rank, rng):
    factor = rng.normal(size=(n, rank))
    matrix = factor @ factor.T
    vectors = inverse_root(matrix.copy(), np.finfo(float).eps)
    assert vectors.shape == (n, max(1, rank))
    phi = matrix @ vectors
    assert_allclose(phi @ phi.T, matrix, atol=1e-11)
    assert (np.abs(vectors).sum(1) > 0).sum() == rank


def test_near_copies_among_landmarks_do_no_harm(rng):
    X = rng.normal(size=(40, 6, 6))
    X = np.concatenate([X, X + 1e-12 * rng.normal(size=X.shape), X + 1e-9])
    y = (X[:, 2, 2] > 0).astype(int)
    model = ConvRFMClassifier("gaussian", n_rounds=0, landmarks=100).fit(X, y)
    exact = ConvRFMClassifier("gaussian", n_rounds=0).fit(X, y)
    assert_allclose(model.decision_function(X), exact.decision_function(X), atol=0.05)
    assert np.abs(model.dual_coef_).max() < 1e3


def test_blank_images_have_a_constant_machine():
    X = np.zeros((12, 5, 5))
    X[:, 0, 0] = np.arange(12) * 1e-300  # distinct, and rounded away
    y = np.arange(12) % 2
    model = ConvRFMRegressor(ConvNTK(bias=0.0), n_rounds=1, landmarks=4).fit(X, y)
    assert_allclose(model.predict(X), 0.5)


# Sums over rows


@pytest.mark.parametrize("machine", sorted(set(MACHINES) - {"deep", "two layers"}))
def test_sums_of_all_rows_are_a_fit(machine, data):
    X, y, weights, X_new = data
    model = make(machine, landmarks=20)
    fitted = clone(model).fit(X, y, weights)
    summed = clone(model).partial_fit(X, y, sample_weight=weights)
    assert_allclose(
        summed.decision_function(X_new), fitted.decision_function(X_new), atol=1e-9
    )
    assert_same(summed.X_fit_, fitted.X_fit_)


@pytest.mark.parametrize("machine", sorted(set(MACHINES) - {"deep"}))
def test_batches_add_up_on_the_landmarks_of_the_first(machine, data):
    X, y, weights, X_new = data
    first, parts = slice(0, 40), [slice(40, 70), slice(70, N)]
    model = make(machine, landmarks=15)
    model.partial_fit(X[first], y[first], [0, 1], weights[first])
    landmarks = model.X_fit_
    assert len(landmarks) == 15
    other = clone(model)
    other.partial_fit(X[first], y[first], [0, 1], weights[first])
    for part in parts:
        model.partial_fit(X[part], y[part], None, weights[part])
    for part in parts[::-1]:
        other.partial_fit(X[part], y[part], None, weights[part])
    assert_array_equal(model.X_fit_, landmarks)
    assert_allclose(
        model.decision_function(X_new), other.decision_function(X_new), atol=1e-7
    )
    whole = clone(model).partial_fit(X[first], y[first], [0, 1], weights[first])
    rest = slice(40, N)
    whole.partial_fit(X[rest], y[rest], None, weights[rest])
    assert_allclose(
        model.decision_function(X_new), whole.decision_function(X_new), atol=1e-7
    )


def test_first_batch_may_be_smaller_than_the_landmarks(data):
    X, y, _, _ = data
    model = make("ntk", landmarks=50).partial_fit(X[:30], y[:30])
    assert len(model.X_fit_) == 30
    assert len(model.partial_fit(X[30:], y[30:]).X_fit_) == 30


def test_sums_go_on_with_a_learned_metric(data):
    X, y, _, _ = data
    model = make("ntk", landmarks=20, n_rounds=1).fit(X, y)
    assert model.best_round_ == 1
    metric = model.patch_transform_
    assert_array_equal(model.partial_fit(X, y).patch_transform_, metric)
    assert_array_equal(model.partial_fit(X[:5], y[:5]).patch_transform_, metric)


def test_sums_keep_the_kernel_that_they_began_with(data):
    X, y, _, X_new = data
    models = [make("ntk", landmarks=20).partial_fit(X[:40], y[:40]) for _ in range(2)]
    models[0].set_params(kernel__depth=1, landmarks=10)
    one, other = (model.partial_fit(X[40:], y[40:]) for model in models)
    assert_array_equal(one.decision_function(X_new), other.decision_function(X_new))


def test_sums_of_another_kernel_are_left_behind(data):
    X, y, _, X_new = data
    model = ConvRFMClassifier("linear", LAYER, landmarks=20, n_rounds=0)
    model.partial_fit(X, y).set_params(kernel="gaussian").partial_fit(X, y)
    fresh = ConvRFMClassifier("gaussian", LAYER, landmarks=20, n_rounds=0)
    expected = fresh.partial_fit(X, y).decision_function(X_new)
    assert_array_equal(model.decision_function(X_new), expected)
    model.set_params(kernel="linear").partial_fit(X, y)
    assert model.coef_.shape == (32, 1)


@pytest.mark.parametrize(
    ("machine", "landmarks", "message"),
    [("ntk", None, "take landmarks=1000"), ("deep", 20, "Deep ConvRFM.*several")],
)
def test_partial_fit_is_there_where_sums_are_enough(machine, landmarks, message, data):
    X, y, _, _ = data
    model = make(machine, landmarks=landmarks)
    assert not hasattr(model, "partial_fit")
    with pytest.raises(AttributeError) as error:
        model.partial_fit(X, y)
    assert re.search(message, str(error.value.__cause__ or error.value))

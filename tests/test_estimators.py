"""Estimators: what is learned, kept and returned, weights, repeatability, input."""

import copy
import inspect
import warnings

import numpy as np
import pytest
import torch
from joblib import parallel_config
from numpy.testing import assert_allclose, assert_array_equal
from same import assert_same
from scipy.sparse import csr_matrix
from sklearn import config_context
from sklearn.base import clone

from skconvrfm import ConvRFMClassifier, ConvRFMRegressor
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import (
    ConvNTK,
    Gaussian,
    Laplace,
    Linear,
    PatchLaplace,
    patch_agop,
)

HISTORY = {
    "round",
    "criterion",
    "alpha",
    "gcv",
    "loo_loss",
    "loo_score",
    "spectrum",
    "seconds_kernel",
    "seconds_solve",
    "seconds_agop",
}
FEATURES = ConvFeatures(8, patch_size=3, pool_grid=2)
# Below another layer: the map keeps its size in proportion to the image.
LOWER = ConvFeatures(8, patch_size=3, pool="mean", pool_grid=None, pool_size=2)
LOCATIONS = ConvFeatures(6, patch_size=3, pool_grid=None)
COMPOSITIONS = {
    "ntk": (ConvNTK(depth=2), None),
    "patch laplace": (PatchLaplace(), None),
    "linear": (Linear(), FEATURES),
    "gaussian": (Gaussian(), FEATURES),
    "laplace": (Laplace(), FEATURES),
    "two layers": (Gaussian(), [LOWER, ConvFeatures(8, patch_size=2)]),
    "deep": (ConvNTK(depth=1), LOCATIONS),
}


def make_strokes(n, size=7, noise=0.5, seed=0):
    """Noise, with one of two 3-pixel strokes at a random place; three classes."""
    rng = np.random.default_rng(seed)
    X = noise * rng.normal(size=(n, size, size))
    y = np.arange(n) % 3
    for image, label in zip(X, y, strict=True):
        row, column = rng.integers(size - 2, size=2)
        if label:
            stroke = np.eye(3) if label == 1 else np.eye(3)[::-1]
            image[row : row + 3, column : column + 3] += 1.5 * stroke
    return X, y


def make_binary(n, **options):
    X, y = make_strokes(n, **options)
    return X, np.array(["none", "some"])[(y > 0).astype(int)]


def make_products(n, seed=0):
    """The product of two pixels, and their difference."""
    X = np.random.default_rng(seed).normal(size=(n, 5, 5))
    return X, np.stack([X[:, 1, 1] * X[:, 2, 2], X[:, 1, 1] - X[:, 3, 2]], axis=1)


def make_product(n, seed=0):
    X, y = make_products(n, seed)
    return X, y[:, 0]


def small(Estimator, **options):
    return Estimator(ConvNTK(depth=2), **{"n_rounds": 2, **options})


PROBLEMS = {
    "binary": (small(ConvRFMClassifier), make_binary),
    "classes": (small(ConvRFMClassifier), make_strokes),
    "targets": (small(ConvRFMRegressor), make_products),
    "target": (small(ConvRFMRegressor), make_product),
}


@pytest.fixture(params=PROBLEMS)
def problem(request):
    """Return an estimator, not fitted, and images and targets for it."""
    estimator, make = PROBLEMS[request.param]
    return clone(estimator), *make(24)


@pytest.fixture(params=COMPOSITIONS)
def composition(request):
    """Return kernel and features as parameters."""
    kernel, features = COMPOSITIONS[request.param]
    return {"kernel": kernel, "features": features}


def images_of(model, X=None):
    rows = model.X_fit_ if X is None else X
    return rows.reshape(-1, *model.image_shape_)


def kernel_of(model, X, Y=None):
    """Return the kernel of images under the learned patch transform."""
    return model.kernel(X, Y, patch_transform=model.patch_transform_)


def scores(model, X):
    return getattr(model, "decision_function", model.predict)(X)


def assert_same_fit(first, second, X, tolerance=0.0):
    """Assert equal choices and, up to the tolerance, equal predictions."""
    assert first.alpha_ == second.alpha_
    assert first.best_round_ == second.best_round_
    assert first.best_layer_ == second.best_layer_
    pairs = [(scores(first, X), scores(second, X))]
    if hasattr(first, "predict_proba"):
        pairs.append((first.predict_proba(X), second.predict_proba(X)))
    for ours, theirs in zip(first.learned_layers_, second.learned_layers_, strict=True):
        for name in ("patch_transform_", "patch_agop_", "filter_transform_"):
            learned = getattr(ours, name), getattr(theirs, name)
            pairs.append([matrix / np.abs(learned[0]).max() for matrix in learned])
    for key in ("alpha", "gcv"):
        assert_allclose(first.history_[key], second.history_[key], rtol=tolerance)
    for left, right in pairs:
        assert_allclose(left, right, rtol=0, atol=tolerance)


# What is learned


@pytest.mark.parametrize(
    ("Estimator", "margin"), [(ConvRFMClassifier, 0.05), (ConvRFMRegressor, 0.2)]
)
def test_learned_features_beat_the_fixed_kernel(Estimator, margin):
    (X, y), (X_test, y_test) = make_product(200), make_product(300, seed=1)
    if Estimator is ConvRFMClassifier:
        y, y_test = y > 0, y_test > 0
    learned = Estimator(ConvNTK(depth=1, patch_size=5), n_rounds=3).fit(X, y)
    fixed = clone(learned).set_params(n_rounds=0).fit(X, y)
    assert learned.best_round_ > 0
    assert learned.score(X_test, y_test) > fixed.score(X_test, y_test) + margin
    # The AGOP is largest at the two pixels that matter.
    found = np.argsort(np.diag(learned.patch_agop_))[-2:]
    assert set(found) == {1 * 5 + 1, 2 * 5 + 2}


def bordered_ridge(K, Y, alpha):
    """Kernel ridge with a free intercept, as one linear system."""
    n = len(K)
    system = np.zeros((n + 1, n + 1))
    system[:n, :n] = K + alpha * np.diagonal(K).max() * np.eye(n)
    system[:n, n] = system[n, :n] = 1
    solution = np.linalg.solve(system, np.vstack([Y, np.zeros((1, Y.shape[1]))]))
    return solution[:n], solution[n]


@pytest.mark.parametrize("n_rounds", [0, 2])
def test_fit_is_kernel_ridge_in_the_metric_of_the_round(problem, n_rounds):
    estimator, X, y = problem
    model = estimator.set_params(selection="last", n_rounds=n_rounds).fit(X, y)
    assert model.best_round_ == n_rounds
    K = kernel_of(model, images_of(model))
    if n_rounds == 0:
        assert_allclose(K, model.kernel(X), rtol=1e-12)
    if hasattr(model, "classes_"):
        codes = np.searchsorted(model.classes_, y)
        columns = [1] if len(model.classes_) == 2 else range(len(model.classes_))
        targets = 2.0 * (codes[:, None] == np.array(columns)) - 1
    else:
        targets = y.reshape(len(y), -1)
    coef, intercept = bordered_ridge(K, targets, model.alpha_)
    actual = model.dual_coef_.reshape(coef.shape)
    assert_allclose(actual, coef, rtol=0, atol=1e-7 * np.abs(coef).max())
    assert_allclose(np.ravel(model.intercept_), intercept, rtol=1e-6, atol=1e-8)


# What is kept


def test_constructor_has_the_documented_parameters():
    signature = inspect.signature(ConvRFMClassifier)
    assert list(signature.parameters) == [
        *("kernel", "features", "alpha", "n_rounds", "n_iter_no_change"),
        *("agop_power", "agop_samples"),
        *("landmarks", "selection", "class_weight", "image_shape", "channels"),
        *("warm_start", "checkpoint", "device", "dtype", "n_jobs", "random_state"),
        "verbose",
    ]
    assert len(signature.parameters) == 19
    regressor = set(inspect.signature(ConvRFMRegressor).parameters)
    assert set(signature.parameters) - regressor == {"class_weight"}
    assert regressor - set(signature.parameters) == {"store_covariance"}


def test_fitted_attributes_have_the_documented_shapes(problem):
    estimator, X, y = problem
    model = estimator.fit(X, y)
    d = 9
    if hasattr(model, "classes_"):
        outputs = (1,) if len(model.classes_) == 2 else (3,)
        assert_array_equal(model.classes_, np.unique(y))
        assert isinstance(model.temperature_, float)
    else:
        outputs = y.shape[1:]
    assert model.image_shape_ == (*X.shape[1:], 1)
    assert model.patch_shape_ == (3, 3)
    assert all(type(size) is int for size in model.image_shape_ + model.patch_shape_)
    assert model.n_features_in_ == X[0].size
    assert not hasattr(model, "feature_names_in_")
    assert_array_equal(model.X_fit_, X.reshape(len(X), -1))
    assert model.dual_coef_.shape == (len(X), *outputs)
    assert np.shape(model.intercept_) == outputs
    assert type(model.alpha_) is float and model.alpha_ in model.alpha
    assert type(model.best_round_) is int
    for name in ("patch_transform_", "patch_agop_"):
        matrix = getattr(model, name)
        assert matrix.shape == (d, d) and matrix.dtype == np.float64
        assert_array_equal(matrix, matrix.T)
        assert_array_equal(getattr(model.kernel_, name), matrix)
    assert np.linalg.norm(model.patch_transform_) == pytest.approx(np.sqrt(d))


def test_every_layer_keeps_what_it_learned_in_numpy_arrays(composition):
    X, y = make_strokes(24)
    model = ConvRFMClassifier(**composition, n_rounds=1, selection="last").fit(X, y)
    for part in (model, model.kernel_, *model.features_):
        for name, value in vars(part).items():
            if name.endswith("_"):
                assert not isinstance(value, torch.Tensor), name
    for layer in model.features_:
        n, d = layer.n_filters, layer.filters_.shape[1]
        assert layer.filters_.shape == layer.directions_.shape == (n, d)
        assert layer.biases_.shape == layer.unit_biases_.shape == (n,)
        for name in ("patch_transform_", "patch_agop_", "filter_transform_"):
            assert getattr(layer, name).shape == (d, d)
    if isinstance(model.kernel_, Linear):
        assert model.coef_.shape == (np.prod(model.features_[-1].maps_.shape), 3)
        assert not hasattr(model, "X_fit_") and not hasattr(model, "dual_coef_")
    else:
        assert len(model.X_fit_) == len(model.dual_coef_) == 24
    layers = model.learned_layers_
    is_patch_kernel = hasattr(model.kernel_, "patch_transform_")
    assert len(layers) == len(model.features_) + is_patch_kernel
    assert_array_equal(model.patch_transform_, layers[0].patch_transform_)
    assert_array_equal(model.patch_agop_, layers[0].patch_agop_)
    assert model.patch_shape_ == layers[0].patch_shape_
    for layer in layers:
        assert layer.best_round_ == 1 and len(layer.history_["round"]) == 2
        # Of a round that learned, the transform that predicts is the learned one.
        assert_array_equal(layer.filter_transform_, layer.patch_transform_)


def test_history_has_one_entry_per_round(problem):
    estimator, X, y = problem
    history = estimator.set_params(n_iter_no_change=None).fit(X, y).history_
    assert set(history) == HISTORY
    spectrum = history["spectrum"]
    assert spectrum.shape == (3, 9)
    assert_allclose(spectrum.sum(axis=1), 1)
    assert (np.diff(spectrum, axis=1) <= 0).all()
    assert_allclose(spectrum[0], 1 / 9)
    for values in history.values():
        assert isinstance(values, np.ndarray) and values.shape[:1] == (3,)
        assert np.isfinite(values).all()
    assert_array_equal(history["round"], [0, 1, 2])
    assert estimator.best_round_ == history["gcv"].argmin()
    assert estimator.alpha_ == history["alpha"][estimator.best_round_]


@pytest.mark.parametrize("selection", ["gcv", "loo", "last"])
def test_patch_agop_is_that_of_the_chosen_predictor(problem, selection):
    estimator, X, y = problem
    model = estimator.set_params(agop_samples=None, selection=selection).fit(X, y)
    expected = patch_agop(
        model.kernel,
        images_of(model),
        model.dual_coef_,
        patch_transform=model.patch_transform_,
    )
    atol = 1e-9 * np.abs(expected).max()
    assert_allclose(model.patch_agop_, expected, rtol=0, atol=atol)


def test_scores_are_kernel_times_coefficients_plus_intercept(problem):
    estimator, X, y = problem
    model = estimator.fit(X, y)
    X_new = make_products(9, seed=3)[0] if X.shape[1] == 5 else make_strokes(9)[0]
    K = kernel_of(model, X_new, images_of(model))
    expected = K @ model.dual_coef_ + model.intercept_
    actual = scores(model, X_new)
    assert actual.dtype == np.float64
    assert_allclose(actual.reshape(9, -1), expected.reshape(9, -1), atol=1e-10)


@pytest.mark.parametrize("kernel", [Gaussian(), Laplace()], ids=str)
def test_whole_kernels_are_of_the_rows_in_x_fit(kernel):
    X, y = make_strokes(24)
    for features in (None, FEATURES):
        model = ConvRFMClassifier(kernel, features, n_rounds=1).fit(X, y)
        rows = model.X_fit_
        if features is None:
            assert_array_equal(rows, X.reshape(24, -1))
        distances = np.linalg.norm(rows[:, None] - rows, axis=2)
        r = distances / model.kernel_.bandwidth_
        K = np.exp(-(r**2) / 2 if isinstance(kernel, Gaussian) else -r)
        expected = K @ model.dual_coef_ + model.intercept_
        assert_allclose(model.decision_function(X), expected, atol=1e-9)


# Weights


@pytest.mark.parametrize("agop_samples", ["auto", 7, 0.3, None])
def test_weights_equal_repeated_rows(problem, agop_samples, rng):
    estimator, X, y = problem
    estimator.set_params(agop_samples=agop_samples)
    assert_weights_are_rows(estimator, X, y, rng)


@pytest.mark.parametrize("Estimator", [ConvRFMClassifier, ConvRFMRegressor])
def test_weights_equal_repeated_rows_in_every_composition(composition, Estimator, rng):
    # More rows than features, of which GCV would else see nothing but rounding.
    X, y = make_strokes(40) if Estimator is ConvRFMClassifier else make_product(40)
    if isinstance(composition["features"], list):  # 5 × 5 pixels are too few
        X = np.pad(X, [(0, 0), (1, 1), (1, 1)])
    estimator = Estimator(**composition, n_rounds=1)
    assert_weights_are_rows(estimator, X, y, rng, ["gcv", "holdout"])


def assert_weights_are_rows(
    estimator, X, y, rng, selections=("gcv", "loo", "holdout", "last")
):
    counts = rng.integers(0, 4, size=len(X))
    rows = rng.permutation(np.repeat(np.arange(len(X)), counts))
    for selection in selections:
        estimator.set_params(selection=selection)
        weighted = clone(estimator).fit(X, y, sample_weight=counts)
        repeated = clone(estimator).fit(X[rows], y[rows])
        assert_same_fit(weighted, repeated, X, tolerance=1e-6)
        left_out = weighted.loo_prediction_[rows]
        assert_allclose(repeated.loo_prediction_, left_out, atol=1e-6)


@pytest.mark.parametrize("selection", ["gcv", "loo"])
def test_copies_with_other_targets_are_one_image_with_all_of_them(rng, selection):
    X, y = make_strokes(12)
    rows = np.r_[np.arange(12), 0, 0, 5]
    labels = np.r_[y, (y[0] + 1) % 3, y[0], (y[5] + 1) % 3]
    model = small(ConvRFMClassifier, selection=selection).fit(X[rows], labels)
    assert len(model.X_fit_) == 12
    # The machine of all rows, by the linear system.
    K = model.kernel_(X[rows], patch_transform=model.patch_transform_)
    targets = 2.0 * (labels[:, None] == np.arange(3)) - 1
    alpha = model.alpha_ * np.diagonal(K).max()
    system = np.ones((16, 16))
    system[:15, :15] = K + alpha * np.eye(15)
    system[15, 15] = 0
    solution = np.linalg.solve(system, np.vstack([targets, np.zeros(3)]))
    assert_allclose(model.decision_function(X), K[:12] @ solution[:15] + solution[15])
    # The errors of the criterion are of single rows.
    errors = ((targets - model.loo_prediction_) ** 2).sum(1)
    loss = model.history_["loo_loss"][model.best_round_]
    assert loss == pytest.approx(errors.mean())
    hits = model.loo_prediction_.argmax(1) == labels
    assert model.history_["loo_score"][model.best_round_] == pytest.approx(hits.mean())


def test_gcv_of_a_bootstrap_does_not_vanish(rng):
    X, y = make_strokes(60)
    rows = rng.integers(60, size=60)
    model = small(ConvRFMClassifier).fit(X[rows], y[rows])
    assert model.history_["gcv"].min() > 0.3 * model.history_["loo_loss"].min()


@pytest.mark.parametrize("kind", ["classes", "target", "targets", "label sets"])
def test_left_out_predictions_equal_refits(kind, rng):
    X = rng.normal(size=(14, 4, 4))
    X[9] = X[3]  # a copy is left out with its image
    y = {
        "classes": np.arange(14) % 3,
        "target": X[:, 1, 1],
        "targets": X[:, 1:3, 1],
        "label sets": (X[:, 1:3, 1] > 0).astype(int),
    }[kind]
    is_regression = kind.startswith("target")
    Estimator = ConvRFMRegressor if is_regression else ConvRFMClassifier
    weights = np.r_[1, 0, 2, np.ones(11)]
    ridge = 0.1
    estimator = Estimator(ConvNTK(depth=1, patch_size=2), n_rounds=0, alpha=ridge)
    model = clone(estimator).fit(X, y, weights)
    assert model.loo_prediction_.shape == scores(model, X).shape
    diagonal = np.diagonal(model.kernel_(X[weights > 0])).max()
    for row in (0, 1, 2, 3, 13):
        kept = np.setdiff1d(np.arange(14), [3, 9] if row == 3 else [row])
        # The ridge is in units of the largest diagonal entry of the rows.
        unit = np.diagonal(model.kernel_(X[kept[weights[kept] > 0]])).max()
        estimator.set_params(alpha=ridge * diagonal / unit)
        refit = clone(estimator).fit(X[kept], y[kept], weights[kept])
        expected = scores(refit, X[row : row + 1])[0]
        assert_allclose(model.loo_prediction_[row], expected, rtol=1e-7)


@pytest.mark.parametrize("name", ["ntk", "linear", "gaussian"])
def test_names_of_classes_change_no_model(name):
    kernel, features = COMPOSITIONS[name]
    X, y = make_strokes(40)
    options = {"n_rounds": 1, "agop_samples": 9, "selection": "holdout"}
    model = ConvRFMClassifier(kernel, features, **options).fit(X, y)
    names = np.array(["zebra", "ant", "mouse"])
    named = ConvRFMClassifier(kernel, features, **options).fit(X, names[y])
    order = np.searchsorted(named.classes_, names)
    expected = model.decision_function(X)
    assert_allclose(named.decision_function(X)[:, order], expected, atol=1e-9)
    assert named.temperature_ == pytest.approx(model.temperature_, rel=1e-9)
    assert_array_equal(named.predict(X), names[model.predict(X)])


def test_label_sets_are_one_machine_per_label():
    X, y = make_strokes(40)
    labels = np.column_stack([y == 0, y > 0, y == 2, y < 0]).astype(int)
    options = {"alpha": 0.01, "n_rounds": 0}
    model = small(ConvRFMClassifier, **options).fit(X, labels)
    assert_array_equal(model.classes_, range(4))
    regressor = small(ConvRFMRegressor, **options).fit(X, 2.0 * labels - 1)
    assert_allclose(model.decision_function(X), regressor.predict(X), rtol=1e-9)
    assert_array_equal(model.predict(X), model.decision_function(X) > 0)
    probabilities = model.predict_proba(X)
    odds = np.exp(2 * model.decision_function(X) / model.temperature_)
    assert_allclose(probabilities, odds / (1 + odds), rtol=1e-9)
    assert_allclose(np.exp(model.predict_log_proba(X)), probabilities, rtol=1e-12)
    hits = (model.predict(X) == labels).all(1).mean()
    assert model.score(X, labels) == hits > 0.8
    sparse = small(ConvRFMClassifier, **options).fit(X, csr_matrix(labels))
    assert_array_equal(sparse.predict(X), model.predict(X))


def test_column_of_targets_gives_a_column_of_predictions():
    X, y = make_products(24)
    column, vector = (small(ConvRFMRegressor).fit(X, t) for t in (y[:, :1], y[:, 0]))
    assert column.predict(X).shape == (24, 1)
    assert_array_equal(column.predict(X)[:, 0], vector.predict(X))
    assert isinstance(vector.intercept_, float)


def test_partial_fit_of_label_sets_equals_one_fit():
    X, y = make_strokes(40)
    labels = np.column_stack([y == 0, y > 0]).astype(int)
    model, warm = (
        ConvRFMClassifier("linear", FEATURES, n_rounds=0).fit(X[:20], labels[:20])
        for _ in range(2)
    )
    for part in (slice(0, 15), slice(15, 40)):
        model.partial_fit(X[part], labels[part])
    warm.set_params(warm_start=True).fit(X, labels)
    assert_allclose(model.decision_function(X), warm.decision_function(X), atol=1e-7)
    with pytest.raises(ValueError, match="label sets"):
        model.partial_fit(X, y > 0)


def test_logarithms_of_probabilities_do_not_underflow():
    X, y = make_strokes(30)
    model = small(ConvRFMClassifier).fit(X, y)
    model.temperature_ = 1e-3
    logarithms = model.predict_log_proba(X)
    assert np.isfinite(logarithms).all() and logarithms.min() < -800
    assert (model.predict_proba(X) == 0).any()


def test_only_ratios_of_weights_matter_and_rows_of_weight_zero_are_left_out(problem):
    estimator, X, y = problem
    weights = np.where(np.arange(len(X)) % 5 == 2, 0, 1e-3)
    kept = np.flatnonzero(weights)
    model = clone(estimator).fit(X, y, sample_weight=weights)
    assert len(model.X_fit_) == len(model.dual_coef_) == len(kept)
    assert_same_fit(model, clone(estimator).fit(X[kept], y[kept]), X, 1e-8)


def test_class_weights_are_ratios_and_balanced_counts_weights_as_rows():
    X, y = make_strokes(18)
    counts = np.arange(18) % 4 + (y == 2)
    totals = np.bincount(y, counts)
    rows = np.repeat(np.arange(18), counts)
    model = small(ConvRFMClassifier, alpha=0.1)
    balanced = clone(model).set_params(class_weight="balanced").fit(X, y, counts)
    repeated = clone(balanced).fit(X[rows], y[rows])
    by_dict = clone(model).set_params(class_weight=dict(enumerate(9 / totals)))
    for other in (repeated, by_dict.fit(X, y, counts)):
        assert_same_fit(balanced, other, X, 1e-7)
    plain = model.fit(X, y, counts)
    assert np.abs(scores(balanced, X) - scores(plain, X)).max() > 1e-3


# Repeatable, and independent of the resources


def test_fits_are_repeatable_bitwise_and_seeds_differ(composition):
    X, y = make_strokes(24)
    model = ConvRFMClassifier(**composition, n_rounds=1, agop_samples=9)
    first, second = clone(model).fit(X, y), clone(model).fit(X, y)
    assert_same_fit(first, second, X)
    for name, value in vars(first).items():
        if isinstance(value, np.ndarray):
            assert_array_equal(value, getattr(second, name))
    for ours, theirs in zip(first.features_, second.features_, strict=True):
        assert_array_equal(ours.filters_, theirs.filters_)
        assert_array_equal(ours.biases_, theirs.biases_)
    other = clone(model).set_params(random_state=1).fit(X, y)
    assert not np.array_equal(first.patch_agop_, other.patch_agop_)


def test_fits_independent_of_threads(composition):
    X, y = make_strokes(24)
    alone = ConvRFMClassifier(**composition, n_rounds=1).fit(X, y)
    threads = torch.get_num_threads()
    with parallel_config(backend="threading"):
        shared = clone(alone).set_params(n_jobs=2).fit(X, y)
        assert_same_fit(alone, shared, X, 1e-9)
    assert torch.get_num_threads() == threads


@pytest.mark.slow
def test_fits_independent_of_processes_and_working_memory(composition):
    X, y = make_strokes(24)
    alone = ConvRFMClassifier(**composition, n_rounds=1).fit(X, y)
    with config_context(working_memory=0.1):
        assert_same_fit(alone, clone(alone).fit(X, y), X, 1e-9)
    with parallel_config(backend="loky", n_jobs=2):
        assert_same_fit(alone, clone(alone).fit(X, y), X, 1e-9)


# Selection


@pytest.mark.parametrize("alpha", [0.1, [0.1], (0.1,), np.array([0.1])])
def test_single_ridge_is_kept(alpha):
    X, y = make_strokes(12)
    assert small(ConvRFMClassifier, alpha=alpha).fit(X, y).alpha_ == 0.1


# Names and compositions


@pytest.mark.parametrize(
    "name",
    ["ntk", "nngp", "patch_gaussian", "patch_laplace", "gaussian", "laplace", "linear"],
)
def test_kernel_names_are_objects_with_their_defaults(name):
    X, y = make_strokes(18)
    by_name = ConvRFMClassifier(name, n_rounds=0).fit(X, y)
    kernel = type(by_name.kernel_)()
    assert by_name.kernel_.get_params() == kernel.get_params()
    by_object = ConvRFMClassifier(kernel, n_rounds=0).fit(X, y)
    assert_same_fit(by_name, by_object, X)


def test_one_feature_layer_equals_a_list_of_one():
    X, y = make_strokes(18)
    one = ConvRFMClassifier("linear", FEATURES, n_rounds=1).fit(X, y)
    for features in ([FEATURES], (FEATURES,)):
        other = ConvRFMClassifier("linear", features, n_rounds=1).fit(X, y)
        assert_same_fit(one, other, X)
    assert_same_fit(
        ConvRFMClassifier("ntk", None, n_rounds=0).fit(X, y),
        ConvRFMClassifier("ntk", [], n_rounds=0).fit(X, y),
        X,
    )


# Output


def test_verbose_prints_one_line_per_round_and_the_choice(capsys, problem):
    estimator, X, y = problem
    clone(estimator).fit(X, y)
    assert capsys.readouterr().out == ""
    estimator.set_params(verbose=1).fit(X, y)
    *rounds, kept = capsys.readouterr().out.splitlines()
    assert len(rounds) == len(estimator.history_["round"])
    assert "kept round" in kept
    for index, line in enumerate(rounds):
        assert line.startswith(f"[{type(estimator).__name__}] round {index}/2 ")


@pytest.mark.parametrize("make", [make_binary, make_strokes])
def test_probabilities_are_ordered_as_the_scores(make):
    model = small(ConvRFMClassifier).fit(*make(24))
    X, _ = make(40, seed=2)
    probabilities, decision = model.predict_proba(X), model.decision_function(X)
    assert probabilities.shape == (40, len(model.classes_))
    assert (probabilities > 0).all()
    assert_allclose(probabilities.sum(axis=1), 1)
    assert_array_equal(model.classes_[probabilities.argmax(axis=1)], model.predict(X))
    if decision.ndim == 1:
        order = np.argsort(decision)
        assert (np.diff(probabilities[order, 1]) > 0).all()
    else:
        assert_array_equal(
            np.argsort(decision, axis=1), np.argsort(probabilities, axis=1)
        )


def test_probabilities_are_calibrated_on_new_rows():
    (X, y), (X_test, y_test) = make_product(150), make_product(400, seed=1)
    model = ConvRFMClassifier(ConvNTK(depth=1), n_rounds=1).fit(X, y > 0)
    confidence = model.predict_proba(X_test).max(axis=1).mean()
    assert abs(confidence - model.score(X_test, y_test > 0)) < 0.06


# Input


def test_flat_rows_equal_arrays_of_images(problem):
    estimator, X, y = problem
    flat = clone(estimator).set_params(image_shape=X.shape[1:])
    flat.fit(X.reshape(len(X), -1), y)
    for images in (X, X[..., None], X.tolist()):
        model = clone(estimator).fit(images, y)
        assert model.image_shape_ == flat.image_shape_
        assert_same_fit(model, flat, X)
        assert_array_equal(scores(model, images), scores(flat, X.reshape(len(X), -1)))


@pytest.mark.parametrize(
    ("width", "shape"),
    [(3, (1, 3, 1)), (9, (1, 9, 1)), (16, (4, 4, 1)), (30, (1, 30, 1))],
)
def test_flat_rows_are_square_images_where_they_can_be(rng, width, shape):
    X = rng.normal(size=(8, width))
    model = ConvRFMRegressor(ConvNTK(depth=1), n_rounds=0)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.fit(X, X[:, 0])
    assert model.image_shape_ == shape
    # The guess is said once a fit, and not at all where the user decides.
    said = [f"flat rows of {width} columns" in str(one.message) for one in caught]
    assert said == [True] * (shape[0] > 1)
    model.set_params(image_shape=shape).fit(X, X[:, 0])


@pytest.mark.parametrize("flat", [True, False])
@pytest.mark.parametrize("name", ["ntk", "gaussian"])
def test_channels_first_equals_channels_last(rng, flat, name):
    kernel, features = COMPOSITIONS[name]
    last = rng.normal(size=(16, 4, 6, 2))
    first = last.transpose(0, 3, 1, 2)
    y = np.arange(16) % 2
    shape = None
    if flat:
        shape = (4, 6, 2)
        last, first = last.reshape(16, -1), first.reshape(16, -1)
    options = {"image_shape": shape, "n_rounds": 1}
    one = ConvRFMClassifier(kernel, features, channels="last", **options).fit(last, y)
    other = ConvRFMClassifier(kernel, features, channels="first", **options)
    other.fit(first, y)
    assert one.image_shape_ == other.image_shape_ == (4, 6, 2)
    assert_array_equal(one.patch_agop_, other.patch_agop_)
    assert_array_equal(one.decision_function(last), other.decision_function(first))


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", ">f8", "bool"])
def test_other_dtypes_equal_their_values_in_float64(dtype):
    X, y = make_strokes(18)
    X = (100 * np.clip(X, 0, 2)).astype(dtype)
    narrow = small(ConvRFMClassifier, dtype="float64").fit(X, y)
    assert narrow.X_fit_.dtype == dtype  # as they came
    wide = small(ConvRFMClassifier, dtype="float64").fit(X.astype("float64"), y)
    assert_same_fit(narrow, wide, X, 1e-12)


def test_tensors_on_the_cpu_are_accepted(problem):
    estimator, X, y = problem
    plain = clone(estimator).fit(X, y)
    if y.dtype.kind == "U":
        y = np.searchsorted(plain.classes_, y)
    model = clone(estimator).fit(torch.from_numpy(X), torch.from_numpy(y))
    assert_same_fit(model, plain, X)
    assert_array_equal(scores(model, torch.from_numpy(X)), scores(plain, X))
    assert isinstance(model.X_fit_, np.ndarray)


def test_predictions_on_blank_images_are_the_mean(composition):
    X, y = np.zeros((6, 7, 7)), np.arange(6.0)
    model = ConvRFMRegressor(**composition, n_rounds=1).fit(X, y)
    assert_allclose(model.predict(X), 2.5)
    assert all(np.isfinite(values).all() for values in model.history_.values())


# State


def test_fits_and_predictions_change_nothing_that_is_there(composition):
    X, y = make_strokes(24)
    model = ConvRFMClassifier(**composition, n_rounds=1)
    given = X, y, model.get_params(deep=False)
    before = copy.deepcopy(given)
    model.fit(X, y)
    assert_same(given, before)
    parts = [model, model.kernel_, *model.features_]
    fitted = copy.deepcopy([part.__getstate__() for part in parts])
    model.predict_proba(X)
    assert_same([part.__getstate__() for part in parts], fitted)

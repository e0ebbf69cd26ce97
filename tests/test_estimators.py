"""What the estimators learn, keep and promise."""

import copy

import numpy as np
import pytest
import torch
from joblib import parallel_config
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import config_context
from sklearn.base import clone

from skconvrfm import ConvRFMClassifier, ConvRFMRegressor
from skconvrfm.kernels import convolutional_kernel, patch_agop

SMALL = {"depth": 2, "n_rounds": 2}
HISTORY = {
    "round",
    "alpha",
    "gcv",
    "loo_loss",
    "loo_score",
    "spectrum",
    "seconds_kernel",
    "seconds_solve",
    "seconds_agop",
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


def kernel_options(model):
    return {
        "kind": model.kernel,
        "depth": model.depth,
        "patch_size": model.patch_size,
        "padding": model.padding,
        "bias": model.bias,
        "patch_transform": model.patch_transform_,
    }


def images_of(model, X=None):
    rows = model.X_fit_ if X is None else X
    return rows.reshape(-1, *model.image_shape_)


PROBLEMS = {
    "binary": (ConvRFMClassifier(**SMALL), make_binary),
    "classes": (ConvRFMClassifier(**SMALL), make_strokes),
    "targets": (ConvRFMRegressor(**SMALL), make_products),
    "target": (
        ConvRFMRegressor(**SMALL),
        lambda n, seed=0: (lambda X, y: (X, y[:, 0]))(*make_products(n, seed=seed)),
    ),
}


@pytest.fixture(params=PROBLEMS)
def problem(request):
    """Return an estimator, not fitted, and images and targets for it."""
    estimator, make = PROBLEMS[request.param]
    return clone(estimator), *make(24)


def scores(model, X):
    return getattr(model, "decision_function", model.predict)(X)


def assert_same_fit(first, second, X, tolerance=0.0):
    """Assert equal choices and, up to the tolerance, equal machines."""
    assert first.alpha_ == second.alpha_
    assert first.best_round_ == second.best_round_
    close = {"rtol": 0, "atol": tolerance}
    pairs = [(scores(first, X), scores(second, X))]
    if hasattr(first, "predict_proba"):
        pairs.append((first.predict_proba(X), second.predict_proba(X)))
    for name in ("patch_transform_", "patch_agop_"):
        pair = getattr(first, name), getattr(second, name)
        scale = np.abs(pair[0]).max()
        pairs.append((pair[0] / scale, pair[1] / scale))
    for key in ("alpha", "gcv"):
        assert_allclose(first.history_[key], second.history_[key], rtol=tolerance)
    for left, right in pairs:
        assert_allclose(left, right, **close)


# What is learned


def test_learned_features_beat_the_fixed_kernel():
    (X, y), (X_test, y_test) = make_products(200), make_products(300, seed=1)
    y, y_test = y[:, 0] > 0, y_test[:, 0] > 0
    learned = ConvRFMClassifier(depth=1, patch_size=5, n_rounds=3).fit(X, y)
    fixed = clone(learned).set_params(n_rounds=0).fit(X, y)
    assert learned.best_round_ > 0
    assert learned.score(X_test, y_test) > fixed.score(X_test, y_test) + 0.05


def test_learned_features_beat_the_fixed_kernel_in_regression():
    (X, y), (X_test, y_test) = make_products(200), make_products(200, seed=1)
    y, y_test = y[:, 0], y_test[:, 0]
    learned = ConvRFMRegressor(depth=1, patch_size=5, n_rounds=3).fit(X, y)
    fixed = clone(learned).set_params(n_rounds=0).fit(X, y)
    assert learned.best_round_ > 0
    assert learned.score(X_test, y_test) > fixed.score(X_test, y_test) + 0.2


def test_the_agop_finds_the_two_pixels_that_matter():
    X, y = make_products(80)
    model = ConvRFMRegressor(depth=1, patch_size=5, n_rounds=3).fit(X, y[:, 0])
    found = np.argsort(np.diag(model.patch_agop_))[-2:]
    assert set(found) == {1 * 5 + 1, 2 * 5 + 2}


def bordered_ridge(K, Y, alpha):
    """Kernel ridge with a free intercept, as one linear system."""
    n = len(K)
    system = np.zeros((n + 1, n + 1))
    system[:n, :n] = K + alpha * np.diagonal(K).max() * np.eye(n)
    system[:n, n] = system[n, :n] = 1
    solution = np.linalg.solve(system, np.vstack([Y, np.zeros((1, Y.shape[1]))]))
    return solution[:n], solution[n]


def test_no_rounds_are_a_kernel_ridge_with_an_intercept():
    X, y = make_strokes(24)
    model = ConvRFMClassifier(depth=2, n_rounds=0).fit(X, y)
    K = convolutional_kernel(X, depth=2, bias=0.3)
    targets = 2.0 * (y[:, None] == np.arange(3)) - 1
    coef, intercept = bordered_ridge(K, targets, model.alpha_)
    assert_allclose(model.dual_coef_, coef, rtol=1e-7, atol=1e-9 * np.abs(coef).max())
    assert_allclose(model.intercept_, intercept, rtol=1e-7)


def test_a_later_round_is_the_ridge_in_its_own_metric(problem):
    estimator, X, y = problem
    model = estimator.set_params(selection="last").fit(X, y)
    assert model.best_round_ == model.n_rounds
    K = convolutional_kernel(images_of(model), **kernel_options(model))
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


def test_fitted_attributes_are_numpy_of_the_documented_shapes(problem):
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
    assert np.linalg.norm(model.patch_transform_) == pytest.approx(np.sqrt(d))
    kept = [value for name, value in vars(model).items() if name.endswith("_")]
    for value in kept + [value for layer in model.layers_ for value in layer.values()]:
        kinds = (np.ndarray, np.floating, float, int, str, tuple, dict, list)
        assert isinstance(value, kinds)


def test_the_history_has_one_entry_a_round_and_says_why_a_round_was_chosen(problem):
    estimator, X, y = problem
    history = estimator.fit(X, y).history_
    assert set(history) == HISTORY
    assert all(isinstance(values, np.ndarray) for values in history.values())
    spectrum = history["spectrum"]
    assert spectrum.shape == (3, 9)
    assert_allclose(spectrum.sum(axis=1), 1)
    assert (np.diff(spectrum, axis=1) <= 0).all()
    assert_allclose(spectrum[0], 1 / 9)
    assert all(values.shape[:1] == (3,) for values in history.values())
    assert all(np.isfinite(values).all() for values in history.values())
    assert_array_equal(history["round"], [0, 1, 2])
    assert estimator.best_round_ == history["gcv"].argmin()
    assert estimator.alpha_ == history["alpha"][estimator.best_round_]


@pytest.mark.parametrize("selection", ["gcv", "loo", "last"])
def test_the_agop_kept_is_that_of_the_chosen_machine(problem, selection):
    estimator, X, y = problem
    model = estimator.set_params(agop_samples=None, selection=selection).fit(X, y)
    expected = patch_agop(images_of(model), model.dual_coef_, **kernel_options(model))
    atol = 1e-9 * np.abs(expected).max()
    assert_allclose(model.patch_agop_, expected, rtol=0, atol=atol)


def test_scores_are_the_kernel_times_the_coefficients_and_the_intercept(problem):
    estimator, X, y = problem
    model = estimator.fit(X, y)
    X_new = make_products(9, seed=3)[0] if X.shape[1] == 5 else make_strokes(9)[0]
    K = convolutional_kernel(X_new, images_of(model), **kernel_options(model))
    expected = K @ model.dual_coef_ + model.intercept_
    actual = scores(model, X_new)
    assert actual.dtype == np.float64
    assert_allclose(actual.reshape(9, -1), expected.reshape(9, -1), atol=1e-10)


# Weights


@pytest.mark.parametrize("agop_samples", ["auto", 7, 0.3, None])
def test_a_weight_is_so_many_equal_rows(problem, agop_samples, rng):
    estimator, X, y = problem
    estimator.set_params(agop_samples=agop_samples)
    counts = rng.integers(0, 4, size=len(X))
    rows = rng.permutation(np.repeat(np.arange(len(X)), counts))
    weighted = clone(estimator).fit(X, y, sample_weight=counts)
    repeated = clone(estimator).fit(X[rows], y[rows])
    assert_same_fit(weighted, repeated, X, tolerance=1e-7)


def test_a_row_without_weight_is_not_kept(problem):
    estimator, X, y = problem
    weights = np.ones(len(X))
    weights[[2, 5]] = 0
    model = clone(estimator).fit(X, y, sample_weight=weights)
    kept = np.flatnonzero(weights)
    assert len(model.X_fit_) == len(model.dual_coef_) == len(kept)
    assert_same_fit(model, clone(estimator).fit(X[kept], y[kept]), X, 1e-10)


def test_small_weights_are_read_as_having_mean_one(problem):
    estimator, X, y = problem
    small = clone(estimator).fit(X, y, sample_weight=np.full(len(X), 1e-3))
    assert_same_fit(small, clone(estimator).fit(X, y), X, 1e-8)


def test_balanced_classes_are_the_dictionary_of_their_weights():
    X, y = make_strokes(27)
    keep = np.r_[np.flatnonzero(y == 0), np.flatnonzero(y == 1)[:4], [2, 5, 8, 11]]
    X, y = X[keep], y[keep]
    options = {"alpha": 0.1, **SMALL}
    by_name = ConvRFMClassifier(class_weight="balanced", **options).fit(X, y)
    by_dict = ConvRFMClassifier(class_weight={0: 4 / 9}, **options).fit(X, y)
    plain = ConvRFMClassifier(**options).fit(X, y)
    assert_same_fit(by_name, by_dict, X, 1e-8)
    assert np.abs(scores(by_name, X) - scores(plain, X)).max() > 1e-3


def test_only_the_ratios_of_class_weights_count():
    X, y = make_binary(24)
    first = ConvRFMClassifier(class_weight={"none": 1, "some": 2}, **SMALL)
    second = ConvRFMClassifier(class_weight={"none": 5, "some": 10}, **SMALL)
    assert_same_fit(first.fit(X, y), second.fit(X, y), X, 1e-9)


def test_balanced_classes_see_weights_as_repeated_rows():
    X, y = make_strokes(18)
    counts = np.arange(18) % 4 + (y == 2)
    rows = np.repeat(np.arange(18), counts)
    model = ConvRFMClassifier(class_weight="balanced", **SMALL)
    weighted = clone(model).fit(X, y, sample_weight=counts)
    repeated = model.fit(X[rows], y[rows])
    assert_same_fit(weighted, repeated, X, 1e-7)


# Repeatable, and independent of the resources


def test_a_fit_is_repeatable_bit_by_bit(problem):
    estimator, X, y = problem
    estimator.set_params(agop_samples=9)
    first, second = clone(estimator).fit(X, y), clone(estimator).fit(X, y)
    for name, value in vars(first).items():
        if name.endswith("_") and name not in ("history_", "layers_"):
            assert_array_equal(value, getattr(second, name), strict=False)
    assert_array_equal(scores(first, X), scores(second, X))


def test_the_seed_draws_the_images_of_the_agop():
    X, y = make_strokes(24)
    models = [
        ConvRFMClassifier(agop_samples=5, random_state=seed, **SMALL).fit(X, y)
        for seed in (0, 1)
    ]
    assert not np.array_equal(models[0].patch_agop_, models[1].patch_agop_)


@pytest.mark.thorough
@pytest.mark.parametrize("backend", ["threading", "loky"])
def test_the_result_does_not_depend_on_the_number_of_tasks(backend):
    X, y = make_strokes(24)
    alone = ConvRFMClassifier(depth=1, n_rounds=1, dtype="float64").fit(X, y)
    threads = torch.get_num_threads()
    with parallel_config(backend=backend, n_jobs=2):
        shared = clone(alone).fit(X, y)
        assert_same_fit(alone, shared, X, 1e-10)
    assert torch.get_num_threads() == threads


def test_the_result_does_not_depend_on_n_jobs():
    X, y = make_strokes(24)
    alone = ConvRFMClassifier(**SMALL).fit(X, y)
    with parallel_config(backend="threading"):
        shared = clone(alone).set_params(n_jobs=3).fit(X, y)
        assert_same_fit(alone, shared, X, 1e-10)


@pytest.mark.thorough
def test_the_result_does_not_depend_on_working_memory(problem):
    estimator, X, y = problem
    roomy = clone(estimator).fit(X, y)
    with config_context(working_memory=0.1):
        narrow = clone(estimator).fit(X, y)
        assert_same_fit(roomy, narrow, X, 1e-10)


# Selection


def test_leave_one_out_chooses_by_the_leave_one_out_error(problem):
    estimator, X, y = problem
    model = estimator.set_params(selection="loo").fit(X, y)
    assert model.best_round_ == model.history_["loo_loss"].argmin()


def test_leave_one_out_scores_are_those_of_refits():
    X, y = make_products(12)
    model = ConvRFMRegressor(depth=1, n_rounds=0, alpha=0.1).fit(X, y[:, 0])
    K = convolutional_kernel(X, depth=1, bias=0.3)
    scale, errors = np.diagonal(K).max(), []
    for left in range(12):
        kept = np.delete(np.arange(12), left)
        inner = K[np.ix_(kept, kept)]
        # The ridge is in units of the whole kernel's diagonal.
        ridge = 0.1 * scale / np.diagonal(inner).max()
        coef, intercept = bordered_ridge(inner, y[kept, :1], ridge)
        errors.append(y[left, 0] - (K[left, kept] @ coef + intercept)[0])
    assert model.history_["loo_loss"] == pytest.approx(np.mean(np.square(errors)))


@pytest.mark.parametrize("alpha", [0.1, [0.1], (0.1,), np.array([0.1])])
def test_one_ridge_is_taken_as_it_is(alpha):
    X, y = make_strokes(12)
    assert ConvRFMClassifier(alpha=alpha, **SMALL).fit(X, y).alpha_ == 0.1


# Output


def test_verbose_prints_one_line_a_round(capsys, problem):
    estimator, X, y = problem
    clone(estimator).fit(X, y)
    assert capsys.readouterr().out == ""
    estimator.set_params(verbose=1).fit(X, y)
    first, *lines = capsys.readouterr().out.splitlines()
    assert "method='exact'" in first and "(limit 3000)" in first
    assert len(lines) == 3
    for index, line in enumerate(lines):
        assert line.startswith(f"[{type(estimator).__name__}] round {index}/2 ")


@pytest.mark.parametrize("make", [make_binary, make_strokes])
def test_probabilities_sum_to_one_and_agree_with_the_scores(make):
    model = ConvRFMClassifier(**SMALL).fit(*make(24))
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


def test_probabilities_are_calibrated_on_rows_that_were_not_seen():
    (X, y), (X_test, y_test) = make_products(150), make_products(400, seed=1)
    model = ConvRFMClassifier(depth=1, n_rounds=1).fit(X, y[:, 0] > 0)
    probabilities = model.predict_proba(X_test)
    confidence = probabilities.max(axis=1).mean()
    assert abs(confidence - model.score(X_test, y_test[:, 0] > 0)) < 0.06


def test_several_outputs_share_one_machine():
    X, y = make_products(24)
    model = ConvRFMRegressor(**SMALL).fit(X, y)
    assert model.predict(X).shape == y.shape
    column = ConvRFMRegressor(**SMALL).fit(X, y[:, :1])
    vector = ConvRFMRegressor(**SMALL).fit(X, y[:, 0])
    assert column.predict(X).shape == (24, 1)
    assert vector.predict(X).shape == (24,)
    assert_array_equal(column.predict(X)[:, 0], vector.predict(X))
    assert isinstance(vector.intercept_, float)


# Input


def test_flat_rows_and_arrays_of_images_are_the_same(problem):
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
def test_the_shape_of_a_flat_row_is_square_where_it_can_be(rng, width, shape):
    X = rng.normal(size=(8, width))
    model = ConvRFMRegressor(depth=1, n_rounds=0).fit(X, X[:, 0])
    assert model.image_shape_ == shape


@pytest.mark.parametrize("flat", [True, False])
def test_channels_may_come_first(rng, flat):
    last = rng.normal(size=(16, 4, 6, 2))
    first = last.transpose(0, 3, 1, 2)
    y = np.arange(16) % 2
    shape = None
    if flat:
        shape = (4, 6, 2)
        last, first = last.reshape(16, -1), first.reshape(16, -1)
    options = {"image_shape": shape, **SMALL}
    one = ConvRFMClassifier(channels="last", **options).fit(last, y)
    other = ConvRFMClassifier(channels="first", **options).fit(first, y)
    assert one.image_shape_ == other.image_shape_ == (4, 6, 2)
    assert_array_equal(one.patch_agop_, other.patch_agop_)
    assert_array_equal(one.decision_function(last), other.decision_function(first))


@pytest.mark.parametrize("dtype", ["uint8", "int16", "float32", ">f8", "bool"])
def test_other_dtypes_are_their_values_in_float64(dtype):
    X, y = make_strokes(18)
    X = (100 * np.clip(X, 0, 2)).astype(dtype)
    options = {"dtype": "float64", **SMALL}
    narrow = ConvRFMClassifier(**options).fit(X, y)
    wide = ConvRFMClassifier(**options).fit(X.astype("float64"), y)
    assert_same_fit(narrow, wide, X, 1e-12)


def test_bytes_are_kept_as_bytes():
    X, y = make_strokes(12)
    X = (100 * np.clip(X, 0, 2)).astype(np.uint8)
    assert ConvRFMClassifier(**SMALL).fit(X, y).X_fit_.dtype == np.uint8


def test_read_only_and_reversed_arrays_are_accepted():
    X, y = make_strokes(18)
    plain = ConvRFMClassifier(**SMALL).fit(X, y)
    locked = X.copy()
    locked.flags.writeable = False
    backwards = X[::-1, ::-1].copy()[::-1, ::-1]
    for images in (locked, backwards, np.asfortranarray(X)):
        assert_same_fit(clone(plain).fit(images, y), plain, X)


def test_names_of_a_frame_are_kept():
    pandas = pytest.importorskip("pandas")
    X, y = make_strokes(18, size=4)
    X = X.reshape(18, -1)
    frame = pandas.DataFrame(X, columns=[f"pixel{i}" for i in range(16)])
    model = ConvRFMClassifier(**SMALL).fit(frame, pandas.Series(y))
    assert_array_equal(model.feature_names_in_, frame.columns)
    plain = ConvRFMClassifier(**SMALL).fit(X, y)
    assert_array_equal(model.decision_function(frame), plain.decision_function(X))
    with pytest.raises(ValueError, match="feature names"):
        model.predict(frame.rename(columns={"pixel0": "other"}))


def test_tensors_on_the_cpu_are_accepted(problem):
    estimator, X, y = problem
    plain = clone(estimator).fit(X, y)
    if y.dtype.kind == "U":
        y = np.searchsorted(plain.classes_, y)
    model = clone(estimator).fit(torch.from_numpy(X), torch.from_numpy(y))
    assert_same_fit(model, plain, X)
    assert_array_equal(scores(model, torch.from_numpy(X)), scores(plain, X))
    assert isinstance(model.X_fit_, np.ndarray)


def test_blank_images_give_the_mean():
    X, y = np.zeros((6, 4, 4)), np.arange(6.0)
    for bias in (0.0, 0.3):
        model = ConvRFMRegressor(bias=bias, **SMALL).fit(X, y)
        assert_allclose(model.predict(X), 2.5)
        assert all(np.isfinite(values).all() for values in model.history_.values())


# State


def state_of(model):
    return copy.deepcopy(vars(model))


def assert_same_state(model, before):
    assert vars(model).keys() == before.keys()
    for name, value in before.items():
        np.testing.assert_equal(vars(model)[name], value)


def test_predictions_leave_the_estimator_as_it_is(problem):
    estimator, X, y = problem
    model = estimator.fit(X, y)
    before = state_of(model)
    model.predict(X)
    scores(model, X)
    assert_same_state(model, before)


def test_a_fit_leaves_the_data_and_the_parameters_as_they_are(problem):
    estimator, X, y = problem
    images, targets, before = X.copy(), y.copy(), estimator.get_params()
    estimator.fit(X, y)
    assert_array_equal(X, images)
    assert_array_equal(y, targets)
    assert estimator.get_params() == before

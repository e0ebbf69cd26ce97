"""Standard deviations equal those of a Gaussian process, and cover new targets."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import config_context
from sklearn.datasets import load_digits
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, ConstantKernel

from skconvrfm import ConvRFMRegressor
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import ConvNTK, Gaussian, Linear, PatchGaussian

N_TRAIN, N_NEW = 40, 12
MACHINES = {
    "ntk": {"kernel": ConvNTK(depth=1), "n_rounds": 1},
    "patch gaussian": {"kernel": PatchGaussian(bandwidth=2.0, patch_size=2)},
    "gaussian": {"kernel": Gaussian(bandwidth=6.0)},
    "linear, few pixels": {"kernel": Linear()},
    "linear, many pixels": {"kernel": Linear()},
    "landmarks": {"kernel": Gaussian(bandwidth=6.0), "landmarks": 9},
    "landmarks of patches": {"kernel": ConvNTK(depth=1), "landmarks": 9},
}
WEIGHTS = {
    "equal": np.ones(N_TRAIN),
    "integer": np.arange(N_TRAIN) % 3 + 1.0,
    "real": np.linspace(0.1, 2.5, N_TRAIN),
}
OPTIONS = {"alpha": 0.05, "n_rounds": 0, "store_covariance": True, "dtype": "float64"}
POOLED = ConvFeatures(4, patch_size=2, pool_grid=2)


def make_data(side=5, n=N_TRAIN + N_NEW):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(n, side, side))
    y = np.column_stack([X[:, 2, 2] * X[:, 3, 3], X.mean((1, 2)) + 9])
    return X, y + 0.1 * rng.normal(size=y.shape)


def make_machine(name, **options):
    return ConvRFMRegressor(**OPTIONS | MACHINES[name] | options)


def kernel_by_hand(reg, X):
    """The kernel of all pairs of images, and that which the machine has of it."""
    if isinstance(reg.kernel_, Linear):
        rows = X.reshape(len(X), -1)
        return rows @ rows.T, rows @ rows.T
    transform = getattr(reg.kernel_, "patch_transform_", None)
    kernel = type(reg.kernel_)(**reg.kernel_.get_params())
    matrix = kernel(X, patch_transform=transform)
    if reg.landmarks is None:
        return matrix, matrix
    centres = reg.X_fit_.reshape(-1, *X.shape[1:])
    columns = kernel(X, centres, patch_transform=transform)
    square = kernel(centres, patch_transform=transform)
    return matrix, columns @ np.linalg.solve(square, columns.T)


def process_by_hand(matrix, known, y, weights, alpha, seen, new):
    """Prediction and h of new rows from the bordered system of those that are seen."""
    n, scale = len(seen), np.diagonal(matrix)[:N_TRAIN].max()
    system = np.ones((n + 1, n + 1))
    system[:n, :n] = known[np.ix_(seen, seen)] / scale + np.diag(alpha / weights[seen])
    system[n, n] = 0
    columns = np.vstack([known[np.ix_(seen, new)] / scale, np.ones(len(new))])
    solved = np.linalg.solve(system, columns)
    diagonal = np.diagonal(matrix)[new] / scale
    return solved[:n].T @ y[seen], (diagonal - (columns * solved).sum(0)) / alpha


def noise_by_hand(matrix, known, y, weights, alpha, groups, scatter=0.0):
    """Noise variance from refits without each group."""
    total, rows = np.zeros(y.shape[1]), np.arange(N_TRAIN)
    for group in np.unique(groups):
        parts = rows[groups != group], rows[groups == group]
        prediction, h = process_by_hand(matrix, known, y, weights, alpha, *parts)
        own = parts[1]
        squares = weights[own, None] * (y[own] - prediction) ** 2
        total += (squares / (1 + h)[:, None]).sum(0)
        total += (np.broadcast_to(scatter, y.shape)[own] / (1 + h)[:, None]).sum(0)
    return total / weights.sum()


@pytest.mark.parametrize("weighting", WEIGHTS)
@pytest.mark.parametrize("name", MACHINES)
def test_std_equals_the_gaussian_process(name, weighting):
    X, y = make_data(side=8 if "many" in name else 5)
    weights = WEIGHTS[weighting]
    reg = make_machine(name).fit(X[:N_TRAIN], y[:N_TRAIN], weights)
    weights = weights * max(1, N_TRAIN / weights.sum())
    parts = (*kernel_by_hand(reg, X), y, weights, reg.alpha_)
    rows, new = np.arange(N_TRAIN), np.arange(N_TRAIN, len(X))
    expected, h = process_by_hand(*parts, rows, new)
    noise = noise_by_hand(*parts, rows)
    prediction, std = reg.predict(X[new], return_std=True)
    assert_allclose(prediction, expected, rtol=1e-7)
    assert_allclose(reg.noise_variance_, noise, rtol=1e-7)
    assert_allclose(std, np.sqrt(np.outer(1 + h, noise)), rtol=1e-7)


@pytest.mark.parametrize("name", ["ntk", "linear, few pixels", "landmarks"])
@pytest.mark.parametrize("size", [2, 20])
def test_noise_of_groups_is_that_of_refits_without_them(name, size):
    X, y = make_data()
    groups = np.arange(N_TRAIN) // size
    reg = make_machine(name).fit(X[:N_TRAIN], y[:N_TRAIN], groups=groups)
    parts = (*kernel_by_hand(reg, X), y, np.ones(N_TRAIN), reg.alpha_)
    assert_allclose(reg.noise_variance_, noise_by_hand(*parts, groups), rtol=1e-7)


def test_groups_larger_than_the_features_have_the_noise_of_refits():
    X, y = make_data(side=4)
    groups = np.arange(N_TRAIN) // 20
    reg = make_machine("linear, few pixels").fit(X[:N_TRAIN], y[:N_TRAIN], None, groups)
    assert X[0].size < 20
    parts = (*kernel_by_hand(reg, X), y, np.ones(N_TRAIN), reg.alpha_)
    assert_allclose(reg.noise_variance_, noise_by_hand(*parts, groups), rtol=1e-7)


def test_std_equals_scikit_learn_under_a_wide_prior_of_the_intercept():
    X, y = make_data()
    reg = make_machine("gaussian").fit(X[:N_TRAIN], y[:N_TRAIN, 0])
    noise = reg.noise_variance_
    kernel = ConstantKernel(noise / reg.alpha_) * RBF(6.0) + ConstantKernel(1e6 * noise)
    process = GaussianProcessRegressor(kernel, alpha=noise, optimizer=None)
    process.fit(X[:N_TRAIN].reshape(N_TRAIN, -1), y[:N_TRAIN, 0])
    rows = X[N_TRAIN:].reshape(N_NEW, -1)
    expected, latent = process.predict(rows, return_std=True)
    prediction, std = reg.predict(X[N_TRAIN:], return_std=True)
    assert std.shape == (N_NEW,)
    assert_allclose(prediction, expected, rtol=1e-4, atol=1e-4)
    assert_allclose(std, np.sqrt(latent**2 + noise), rtol=1e-5)


@pytest.mark.parametrize("name", MACHINES)
def test_std_of_weights_is_that_of_repeated_rows(name):
    X, y = make_data(side=8 if "many" in name else 5)
    weights = WEIGHTS["integer"]
    rows = np.repeat(np.arange(N_TRAIN), weights.astype(int))
    weighted = make_machine(name).fit(X[:N_TRAIN], y[:N_TRAIN], weights)
    repeated = make_machine(name).fit(X[rows], y[rows])
    new = X[N_TRAIN:]
    expected = weighted.predict(new, return_std=True)[1]
    assert_allclose(repeated.predict(new, return_std=True)[1], expected, rtol=1e-7)


@pytest.mark.parametrize("name", ["gaussian", "linear, few pixels", "landmarks"])
def test_noise_has_the_scatter_of_copies(name):
    X, y = make_data()
    change = np.random.default_rng(1).normal(size=(N_TRAIN, 2))
    both = np.vstack([y[:N_TRAIN] + change, y[:N_TRAIN] - change])
    reg = make_machine(name).fit(np.vstack([X[:N_TRAIN]] * 2), both)
    parts = (*kernel_by_hand(reg, X), y[:N_TRAIN], np.full(N_TRAIN, 2.0), reg.alpha_)
    expected = noise_by_hand(*parts, np.arange(N_TRAIN), 2 * change**2)
    assert_allclose(reg.noise_variance_, expected, rtol=1e-7)


@pytest.mark.parametrize("name", MACHINES)
def test_std_in_float32_is_near_that_in_float64(name):
    X, y = make_data(side=8 if "many" in name else 5)
    stds = [
        make_machine(name, dtype=dtype)
        .fit(X[:N_TRAIN], y[:N_TRAIN])
        .predict(X[N_TRAIN:], return_std=True)[1]
        for dtype in ("float32", "float64")
    ]
    assert_allclose(*stds, rtol=1e-3)


@pytest.mark.parametrize("name", MACHINES)
def test_std_does_not_depend_on_blocks_of_images(name):
    X, y = make_data(side=8 if "many" in name else 5)
    reg = make_machine(name).fit(X[:N_TRAIN], y[:N_TRAIN])
    expected = reg.predict(X, return_std=True)
    with config_context(working_memory=0.02):
        found = reg.predict(X, return_std=True)
    assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize(
    "machine",
    [
        {"kernel": ConvNTK(depth=1), "features": ConvFeatures(4, pool_grid=None)},
        {"kernel": Gaussian(), "features": POOLED, "selection": "holdout"},
        {"kernel": Gaussian(), "features": [ConvFeatures(3, pool_grid=None), POOLED]},
        {"kernel": Linear(), "features": POOLED, "landmarks": 5},
        {"kernel": ConvNTK(1), "features": ConvFeatures(4, patch_size=2, pool_grid=4)},
    ],
    ids=["deep", "held out", "two layers", "linear", "deep, pooled"],
)
def test_std_behind_feature_layers_is_that_of_the_machine_that_predicts(machine):
    X, y = make_data(side=8)
    machine = {"n_rounds": 1, "alpha": (1e-3, 0.1)} | machine
    reg = ConvRFMRegressor(**OPTIONS | machine).fit(X[:N_TRAIN], y[:N_TRAIN])
    prediction, std = reg.predict(X[N_TRAIN:], return_std=True)
    assert_allclose(prediction, reg.predict(X[N_TRAIN:]), rtol=1e-9)
    # At a training row the variance is σ² H_ii / w_i above the noise, less than σ².
    seen = reg.predict(X[:N_TRAIN], return_std=True)[1] ** 2 / reg.noise_variance_
    leverage = seen[:, 0] - 1
    assert (leverage > 0).all()
    assert (leverage < 1).all()
    # H_ii turns training residuals into those of left-out rows.
    residuals = y[:N_TRAIN] - reg.predict(X[:N_TRAIN])
    left_out = y[:N_TRAIN] - residuals / (1 - leverage[:, None])
    assert_allclose(reg.loo_prediction_, left_out, rtol=1e-6, atol=1e-6)


def test_std_of_sums_equals_that_of_one_fit():
    X, y = make_data()
    for kernel, options in ((Linear(), {}), (Gaussian(6.0), {"landmarks": 400})):
        machine = ConvRFMRegressor(kernel, **OPTIONS | options)
        machine.partial_fit(X[:N_TRAIN], y[:N_TRAIN])
        expected = machine.predict(X, return_std=True)
        one = ConvRFMRegressor(kernel, **OPTIONS).fit(X[:N_TRAIN], y[:N_TRAIN])
        assert_allclose(one.predict(X, return_std=True), expected, rtol=1e-6)
    halves = ConvRFMRegressor(Linear(), **OPTIONS)
    for part in (slice(0, 15), slice(15, N_TRAIN)):
        halves.partial_fit(X[part], y[part])
    one = ConvRFMRegressor(Linear(), **OPTIONS).fit(X[:N_TRAIN], y[:N_TRAIN])
    expected = one.predict(X, return_std=True)
    assert_allclose(halves.predict(X, return_std=True), expected, rtol=1e-9)


def test_std_of_a_checkpoint_is_that_of_the_fit(tmp_path):
    X, y = make_data()
    machine = make_machine("ntk", checkpoint=tmp_path / "fit")
    expected = machine.fit(X[:N_TRAIN], y[:N_TRAIN]).predict(X, return_std=True)
    again = make_machine("ntk", checkpoint=tmp_path / "fit")
    found = again.fit(X[:N_TRAIN], y[:N_TRAIN]).predict(X, return_std=True)
    assert_array_equal(found, expected)


def test_std_without_a_covariance_is_refused():
    X, y = make_data()
    reg = make_machine("gaussian").fit(X, y)
    reg.set_params(store_covariance=False).fit(X, y)
    with pytest.raises(ValueError, match="take store_covariance=True, and fit"):
        reg.predict(X, return_std=True)


COVERED = {
    "gaussian": {"kernel": "gaussian"},
    "ntk": {"kernel": ConvNTK(depth=1), "n_rounds": 1},
    "linear": {"kernel": "linear", "features": ConvFeatures(20, pool_grid=2)},
    "landmarks": {"kernel": "gaussian", "landmarks": 60},
}


@pytest.mark.parametrize("name", COVERED)
def test_intervals_cover_unseen_digits_and_widen_for_noise(name):
    X, y = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(X))[:1100]
    X, y = X[order].reshape(-1, 8, 8), y[order]
    reg = ConvRFMRegressor(n_rounds=0, store_covariance=True, dtype="float32")
    reg.set_params(**COVERED[name]).fit(X[:300], y[:300])
    prediction, std = reg.predict(X[300:], return_std=True)
    inside = np.abs(y[300:] - prediction) < 1.645 * std
    assert 0.85 < inside.mean() < 0.95
    noise = np.random.default_rng(0).uniform(0, 16, (50, 8, 8))
    assert np.median(reg.predict(noise, return_std=True)[1]) > 1.1 * np.median(std)

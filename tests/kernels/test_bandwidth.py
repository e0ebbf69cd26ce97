"""Bandwidths of kernels of patches and of whole images are median distances."""

import numpy as np
import pytest
import torch
from by_hand import assert_close, patches_by_hand

from skconvrfm import ConvRFMClassifier, ConvRFMRegressor
from skconvrfm._input import make_resources
from skconvrfm.kernels import (
    Gaussian,
    Laplace,
    PatchGaussian,
    PatchLaplace,
    patch_agop,
)

ALL = pytest.mark.parametrize(
    "Kernel", [PatchLaplace, PatchGaussian, Laplace, Gaussian]
)
PATCHES = pytest.mark.parametrize("Kernel", [PatchLaplace, PatchGaussian])
WHOLE = pytest.mark.parametrize("Kernel", [Laplace, Gaussian])


def weighted_median_by_hand(values, weights):
    """The smallest value up to which lies half of the weight."""
    order = np.argsort(values)
    total = np.cumsum(weights[order])
    return values[order][np.flatnonzero(total >= total[-1] / 2)[0]]


@ALL
def test_bandwidth_is_the_median_distance(Kernel, rng):
    X = rng.normal(size=(8, 5, 5, 1))
    p = np.stack([patches_by_hand(x) for x in X])
    if Kernel in (Laplace, Gaussian):
        p = X.reshape(8, 1, 1, 25)
    first, second = np.triu_indices(8, 1)
    distances = np.linalg.norm(p[first] - p[second], axis=-1).ravel()
    expected = weighted_median_by_hand(distances, np.ones(distances.size))
    assert_close(Kernel()(X), Kernel(expected)(X), 1e-12)
    # It is that of the centres, whatever they are compared with.
    Y = 3 * rng.normal(size=(4, 5, 5, 1))
    for row, image in zip(Kernel()(Y, X), Y, strict=True):
        assert_close(Kernel()(image[None], X)[0], row, 1e-13)


@WHOLE
def test_weights_of_the_median_are_repeated_rows(Kernel, rng):
    X, weights = rng.normal(size=(9, 40)), np.array([1, 2, 1, 3, 1, 1, 2, 1, 9])
    rows, kernel = torch.from_numpy(X), Kernel().bind((4, 5, 2))
    measured = kernel.measured(rows, weights).bandwidth_
    first, second = np.triu_indices(9, 1)
    distances = np.linalg.norm(X[first] - X[second], axis=1)
    expected = weighted_median_by_hand(distances, weights[first] * weights[second])
    assert measured == pytest.approx(expected, rel=1e-12)
    repeated = rows[np.repeat(np.arange(9), weights)]
    again = kernel.measured(repeated, np.ones(len(repeated))).bandwidth_
    assert again == pytest.approx(measured, rel=1e-12)
    equal = torch.full((3, 4), 2.0, dtype=torch.float64)
    assert kernel.measured(equal, np.ones(3)).bandwidth_ == pytest.approx(4)
    assert kernel.measured(0 * equal, np.ones(3)).bandwidth_ == 1


@PATCHES
@pytest.mark.parametrize("Estimator", [ConvRFMClassifier, ConvRFMRegressor])
def test_weights_of_a_fit_are_repeated_rows(Estimator, Kernel, rng):
    X = rng.normal(size=(30, 6, 6))
    y = (X[:, 2, 2] * X[:, 3, 3] > 0).astype(int)
    weights = rng.integers(0, 4, size=30)
    model = Estimator(Kernel(), n_rounds=2, agop_samples=10)
    weighted = model.fit(X, y, sample_weight=weights)
    bandwidth, scores = weighted.kernel_.bandwidth_, weighted.predict(X)
    repeated = model.fit(X.repeat(weights, axis=0), y.repeat(weights))
    assert repeated.kernel_.bandwidth_ == pytest.approx(bandwidth, rel=1e-10)
    np.testing.assert_allclose(repeated.predict(X), scores, atol=1e-7)


def test_bandwidth_follows_the_transform_of_the_kept_round(rng):
    X = rng.normal(size=(40, 6, 6))
    y = X[:, 2, 2] * X[:, 2, 3]
    model = ConvRFMRegressor(PatchLaplace(), n_rounds=2, selection="last").fit(X, y)
    assert model.best_round_ == 2
    K = PatchLaplace()(X, patch_transform=model.patch_transform_)
    expected = K @ model.dual_coef_ + model.intercept_
    np.testing.assert_allclose(model.predict(X), expected, atol=1e-9)
    fixed = ConvRFMRegressor(PatchLaplace(bandwidth=3.5), n_rounds=1).fit(X, y)
    assert fixed.kernel_.bandwidth_ == 3.5


def test_bandwidth_is_measured_as_without_a_pool(rng):
    X, coef = rng.normal(size=(8, 5, 5)), rng.normal(size=8)
    kernel, resources = PatchLaplace(pool_grid=1), make_resources("cpu", "auto", 1, X)
    without = PatchLaplace().bind((5, 5, 1))
    bandwidth = without.measured_evenly(X[..., None], None, resources).bandwidth_
    given = PatchLaplace(bandwidth, pool_grid=1)
    assert_close(kernel(X), given(X), 1e-13)
    assert_close(patch_agop(kernel, X, coef), patch_agop(given, X, coef), 1e-13)

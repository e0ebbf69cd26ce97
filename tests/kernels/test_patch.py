"""Laplace and Gaussian patch kernels: values, AGOP, bandwidth."""

import numpy as np
import pytest
from by_hand import (
    agop_of_gradients,
    assert_close,
    gradients_by_autograd,
    gradients_by_differences,
    kernel_by_hand,
    patches_by_hand,
    some_transform,
)
from sklearn import config_context

from skconvrfm import ConvRFMClassifier, ConvRFMRegressor
from skconvrfm.kernels import PatchGaussian, PatchLaplace, patch_agop

BOTH_KERNELS = pytest.mark.parametrize("Kernel", [PatchLaplace, PatchGaussian])


@pytest.fixture
def data(rng):
    """Return centres, test images and coefficients."""
    return (
        rng.normal(size=(7, 6, 5, 2)),
        rng.normal(size=(4, 6, 5, 2)),
        rng.normal(size=(7, 3)),
    )


@BOTH_KERNELS
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("transformed", [False, True])
def test_value_is_its_formula(Kernel, padding, transformed, data):
    X, Y, _ = data
    kernel = Kernel(2.5, padding=padding)
    T = some_transform(kernel, X) if transformed else None
    expected = kernel_by_hand(kernel, X, Y, T)
    assert_close(kernel(X, Y, patch_transform=T), expected, 1e-13)


@BOTH_KERNELS
def test_kernel_of_equal_images_is_one(Kernel, rng):
    X = rng.normal(size=(30, 6, 6))
    X[7] = X[3]
    K = Kernel()(X)
    assert (np.diagonal(K) == 1).all() and K[3, 7] == 1
    assert_close(Kernel()(X, X), K, 1e-13)
    assert (Kernel()(np.ones((4, 5, 5))) == 1).all()


@BOTH_KERNELS
@pytest.mark.parametrize("memory", [1024, 0.02])
def test_agop_equals_automatic_differentiation(Kernel, memory, data):
    X, Y, coef = data
    kernel, T = Kernel(1.7), some_transform(Kernel(), X)
    with config_context(working_memory=memory):
        agop = patch_agop(kernel, X, coef, Y, patch_transform=T)
    gradients = gradients_by_autograd(kernel, X, coef, Y, T)
    assert_close(agop, agop_of_gradients(gradients), 1e-12)


@BOTH_KERNELS
def test_agop_equals_finite_differences(Kernel, data):
    X, Y, coef = data
    gradients = gradients_by_differences(Kernel(2.0), X, coef, Y[0])
    agop = patch_agop(Kernel(2.0), X, coef, Y[:1])
    assert_close(agop, agop_of_gradients(gradients), 1e-8)


@BOTH_KERNELS
def test_agop_at_the_centres_is_finite(Kernel, data):
    X, _, coef = data
    X[2] = X[1]
    X[4] = 0
    agop = patch_agop(Kernel(), X, coef, patch_transform=some_transform(Kernel(), X))
    assert np.isfinite(agop).all()
    assert np.linalg.eigvalsh(agop)[0] > -1e-12 * np.linalg.norm(agop)


def test_bandwidth_is_the_median_distance_of_patches(rng):
    X = rng.normal(size=(8, 5, 5, 1))
    p = np.stack([patches_by_hand(x) for x in X])
    first, second = np.triu_indices(8, 1)
    distances = np.linalg.norm(p[first] - p[second], axis=-1)
    expected = np.sort(distances.ravel())[(distances.size - 1) // 2]
    assert_close(PatchGaussian()(X), PatchGaussian(expected)(X), 1e-13)


def test_bandwidth_is_measured_on_the_centres(rng):
    X, Y = rng.normal(size=(12, 5, 5)), 3 * rng.normal(size=(4, 5, 5))
    every = PatchLaplace()(Y, X)
    for row, image in zip(every, Y, strict=True):
        assert_close(PatchLaplace()(image[None], X)[0], row, 1e-13)


@BOTH_KERNELS
@pytest.mark.parametrize("Estimator", [ConvRFMClassifier, ConvRFMRegressor])
def test_weights_equal_repeated_rows(Estimator, Kernel, rng):
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

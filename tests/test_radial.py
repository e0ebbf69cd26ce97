"""Laplace and Gaussian patch kernels: values, pullback, AGOP, bandwidth."""

import numpy as np
import pytest
import torch
from by_hand import agop_of_gradients, assert_close, patches_by_hand
from sklearn import config_context
from sklearn.svm import SVC

from skconvrfm import ConvRFMClassifier, ConvRFMRegressor
from skconvrfm.kernels import patch_agop, patch_kernel

KINDS = ("laplace", "gaussian")


def patches_of(X, patch_size=3, padding="valid"):
    return np.stack([patches_by_hand(x, patch_size, padding) for x in X])


def profile(kind, squares, xp=np):
    return xp.exp(-xp.sqrt(squares) if kind == "laplace" else -squares / 2)


def kernel_by_hand(kind, p, q, bandwidth, transform=None):
    """The mean over locations of κ, from patches (n, rows, columns, d)."""
    differences = p[:, None] - q[None]
    if transform is not None:
        differences = differences @ transform
    squares = (differences**2).sum(-1) / bandwidth**2
    return profile(kind, squares).mean((-1, -2))


def gradients_by_autograd(kind, p, coef, q, bandwidth, transform):
    """∂f_o/∂v_u at the patches q, as (outputs, images, rows, columns, d)."""
    centres, transform = torch.from_numpy(p), torch.from_numpy(transform)

    def outputs(patches):
        squares = (((centres - patches) @ transform) ** 2).sum(-1) / bandwidth**2
        values = profile(kind, squares, torch).mean((-1, -2))
        return values @ torch.from_numpy(coef)

    return np.stack(
        [
            torch.autograd.functional.jacobian(outputs, torch.from_numpy(z)).numpy()
            for z in q
        ],
        axis=1,
    )


@pytest.fixture
def data(rng):
    """Centres, test images, coefficients and a transform, for 2 channels."""
    T = rng.normal(size=(18, 18))
    return (
        rng.normal(size=(7, 6, 5, 2)),
        rng.normal(size=(4, 6, 5, 2)),
        rng.normal(size=(7, 3)),
        (T + T.T) / 6,
    )


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("kind", KINDS)
def test_values_are_those_of_the_formula(kind, padding, data):
    X, Y, _, T = data
    for transform in (None, T):
        K = patch_kernel(
            *(X, Y),
            kind=kind,
            bandwidth=2.5,
            padding=padding,
            patch_transform=transform,
        )
        p, q = (patches_of(images, padding=padding) for images in (X, Y))
        assert_close(K, kernel_by_hand(kind, p, q, 2.5, transform), 1e-13)


@pytest.mark.parametrize("kind", KINDS)
def test_the_training_kernel_is_symmetric_positive_with_ones_on_the_diagonal(kind, rng):
    X = rng.normal(size=(30, 6, 6))
    X[7] = X[3]
    K = patch_kernel(X, kind=kind)
    assert (K == K.T).all() and (np.diagonal(K) == 1).all()
    assert K[3, 7] == 1
    assert np.linalg.eigvalsh(K)[0] > -1e-12
    assert_close(patch_kernel(X, X, kind=kind), K, 1e-13)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("memory", [1024, 0.02])
def test_the_agop_is_that_of_automatic_differentiation(kind, memory, data):
    X, Y, coef, T = data
    with config_context(working_memory=memory):
        agop = patch_agop(X, coef, Y, kind=kind, bandwidth=1.7, patch_transform=T)
    gradients = gradients_by_autograd(kind, patches_of(X), coef, patches_of(Y), 1.7, T)
    assert_close(agop, agop_of_gradients(gradients), 1e-12)


@pytest.mark.parametrize("kind", KINDS)
def test_the_agop_is_that_of_finite_differences(kind, data):
    X, Y, coef, _ = data
    p, q, step = patches_of(X), patches_of(Y[:1]), 1e-5
    shape = (coef.shape[1], *q.shape)
    gradients = np.empty(shape)
    for index in np.ndindex(q.shape):
        shift = np.zeros(q.shape)
        shift[index] = step
        ahead, behind = (
            kernel_by_hand(kind, q + sign * shift, p, 2.0) @ coef for sign in (1, -1)
        )
        gradients[(slice(None), *index)] = (ahead - behind)[0] / (2 * step)
    agop = patch_agop(X, coef, Y[:1], kind=kind, bandwidth=2.0)
    assert_close(agop, agop_of_gradients(gradients), 1e-8)


@pytest.mark.parametrize("kind", KINDS)
def test_at_the_centres_themselves_gradients_are_finite(kind, data):
    X, _, coef, T = data
    X[2] = X[1]
    X[4] = 0
    agop = patch_agop(X, coef, kind=kind, patch_transform=T)
    assert np.isfinite(agop).all()
    assert np.linalg.eigvalsh(agop)[0] > -1e-12 * np.linalg.norm(agop)


def test_the_bandwidth_is_the_median_distance_of_patches(rng):
    X = rng.normal(size=(8, 5, 5, 1))
    p = patches_of(X)
    first, second = np.triu_indices(8, 1)
    distances = np.linalg.norm(p[first] - p[second], axis=-1)
    expected = np.sort(distances.ravel())[(distances.size - 1) // 2]
    measured = patch_kernel(X, kind="gaussian")
    given = patch_kernel(X, kind="gaussian", bandwidth=expected)
    assert_close(measured, given, 1e-13)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("Estimator", [ConvRFMClassifier, ConvRFMRegressor])
def test_weights_equal_repeated_rows(Estimator, kind, rng):
    X = rng.normal(size=(30, 6, 6))
    y = (X[:, 2, 2] * X[:, 3, 3] > 0).astype(int)
    weights = rng.integers(0, 4, size=30)
    model = Estimator(kernel=kind, n_rounds=2, agop_samples=10)
    weighted = model.fit(X, y, sample_weight=weights)
    bandwidth, scores = weighted.bandwidth_, weighted.predict(X)
    repeated = model.fit(X.repeat(weights, axis=0), y.repeat(weights))
    assert repeated.bandwidth_ == pytest.approx(bandwidth, rel=1e-10)
    np.testing.assert_allclose(repeated.predict(X), scores, atol=1e-7)


def test_the_bandwidth_follows_the_transform_of_the_kept_round(rng):
    X = rng.normal(size=(40, 6, 6))
    y = X[:, 2, 2] * X[:, 2, 3]
    model = ConvRFMRegressor(kernel="laplace", n_rounds=2, selection="last").fit(X, y)
    assert model.best_round_ == 2
    K = patch_kernel(X, patch_transform=model.patch_transform_)
    expected = K @ model.dual_coef_ + model.intercept_
    np.testing.assert_allclose(model.predict(X), expected, atol=1e-9)
    fixed = ConvRFMRegressor(kernel="laplace", bandwidth=3.5, n_rounds=1).fit(X, y)
    assert fixed.bandwidth_ == 3.5


def test_the_kernel_serves_a_support_vector_machine(rng):
    X = rng.normal(size=(60, 6, 6))
    y = (X[:, 1:4, 1:4].sum((1, 2)) > 0).astype(int)
    machine = SVC(kernel="precomputed", C=10).fit(patch_kernel(X), y)
    assert machine.score(patch_kernel(X), y) > 0.95


def test_a_depth_that_does_not_apply_is_met_with_a_warning(rng):
    X, y = rng.normal(size=(20, 5, 5)), np.arange(20) % 2
    with pytest.warns(UserWarning, match="depth=5 does not apply to kernel='laplace'"):
        ConvRFMClassifier(kernel="laplace", depth=5, n_rounds=0).fit(X, y)


def test_images_that_are_all_equal_have_a_kernel_of_ones():
    assert (patch_kernel(np.ones((4, 5, 5))) == 1).all()


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"bandwidth": 0.0}, "'bandwidth' parameter"),
        ({"bandwidth": "median"}, "'bandwidth' parameter"),
        ({"kind": "ntk"}, "'kind' parameter"),
        ({"patch_transform": np.eye(4)}, "patch_transform has shape"),
    ],
)
def test_bad_parameters_are_refused(parameters, message, rng):
    with pytest.raises(ValueError, match=message):
        patch_kernel(rng.normal(size=(4, 5, 5)), **parameters)

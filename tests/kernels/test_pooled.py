"""Pooled kernels compare all locations of a cell with each other."""

import math

import numpy as np
import pytest
import torch
from by_hand import (
    agop_of_gradients,
    assert_close,
    gradients_by_autograd,
    gradients_by_differences,
    kernel_by_hand,
    patches_by_hand,
    some_transform,
)
from joblib import parallel_config
from sklearn import config_context

from skconvrfm import ConvRFMClassifier
from skconvrfm._input import make_resources
from skconvrfm.compute.images import cells
from skconvrfm.compute.native import build
from skconvrfm.compute.tiles import find_library, kernel_product, tile_pairs
from skconvrfm.features.pools import average_pool
from skconvrfm.kernels import (
    ConvNNGP,
    ConvNTK,
    PatchGaussian,
    PatchLaplace,
    patch_agop,
)

# name: shape of an image, hyperparameters of the convolutional kernels
CASES = {
    "depth 1": ((6, 5, 1), {"depth": 1, "pool_grid": (1, 1)}),
    "depth 1, cells": ((7, 6, 2), {"depth": 1, "pool_grid": (2, 3), "bias": 0.3}),
    "depth 2": ((7, 6, 1), {"depth": 2, "pool_grid": (1, 1), "bias": 0.3}),
    "depth 2, cells": ((7, 8, 2), {"depth": 2, "pool_grid": (2, 2)}),
    "depth 3": ((8, 9, 1), {"depth": 3, "pool_grid": (2, 3), "patch_size": (2, 3)}),
    "same": ((4, 5, 2), {"depth": 2, "pool_grid": (2, 2), "padding": "same"}),
    "same, bias": (
        (4, 4, 1),
        {"depth": 3, "pool_grid": (1, 1), "padding": "same", "bias": 0.3},
    ),
    "same, even patch": (
        (5, 4, 1),
        {"depth": 2, "pool_grid": (2, 1), "padding": "same", "patch_size": (2, 4)},
    ),
    "map smaller than patch": (
        (6, 5, 1),
        {"depth": 3, "pool_grid": (1, 1), "patch_size": 4},
    ),
    "more cells than locations": ((5, 4, 1), {"depth": 1, "pool_grid": (2, 9)}),
}
BANDWIDTH = 2.0


def kernel_named(name, **options):
    """A kernel by its name; convolutional ones have depth 2 unless it is given."""
    if name in ("ntk", "nngp"):
        options = {"depth": 2, **options}
        return (ConvNTK if name == "ntk" else ConvNNGP)(**options)
    Kernel = PatchLaplace if name == "laplace" else PatchGaussian
    return Kernel(BANDWIDTH, **options)


ALL_KERNELS = pytest.mark.parametrize("name", ["ntk", "nngp", "laplace", "gaussian"])
TWO_KERNELS = pytest.mark.parametrize("name", ["ntk", "laplace"])
KERNELS = {
    **{
        f"{case}: {Kernel.__name__}": (shape, Kernel(**{"bias": 0.0, **options}))
        for case, (shape, options) in CASES.items()
        for Kernel in (ConvNTK, ConvNNGP)
    },
    "laplace": ((6, 5, 2), PatchLaplace(BANDWIDTH, pool_grid=(2, 3))),
    "gaussian, same": (
        (4, 5, 1),
        PatchGaussian(BANDWIDTH, pool_grid=(1, 2), padding="same"),
    ),
}


@pytest.fixture(params=KERNELS)
def case(request, rng):
    """Return a pooled kernel and images X and Y."""
    shape, kernel = KERNELS[request.param]
    return kernel, rng.normal(size=(3, *shape)), rng.normal(size=(2, *shape))


# ------------------------------------------------------------------- values


@pytest.mark.parametrize("transformed", [False, True])
def test_kernel_equals_that_of_all_pairs_of_locations(case, transformed, tiles):
    kernel, X, Y = case
    T = some_transform(kernel, X) if transformed else None
    expected = kernel_by_hand(kernel, X, Y, T)
    assert_close(kernel(X, Y, patch_transform=T), expected, 1e-12)


@ALL_KERNELS
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_cell_for_every_location_is_no_pool(name, padding, rng):
    X, Y = rng.normal(size=(4, 6, 5, 2)), rng.normal(size=(3, 6, 5, 2))
    coef = rng.normal(size=(4, 2))
    kernel, finest = (
        kernel_named(name, padding=padding, pool_grid=grid) for grid in (None, (6, 5))
    )
    for images in (Y, None):
        assert_close(finest(X, images), kernel(X, images), 1e-12)
        expected = patch_agop(kernel, X, coef, images)
        assert_close(patch_agop(finest, X, coef, images), expected, 1e-11)


@ALL_KERNELS
def test_one_number_is_a_square_grid(name, rng):
    X = rng.normal(size=(4, 6, 5))
    number, pair = (kernel_named(name, pool_grid=grid) for grid in (2, (2, 2)))
    np.testing.assert_array_equal(number(X), pair(X))


@ALL_KERNELS
@pytest.mark.parametrize("grid", [(1, 1), (2, 2)])
def test_kernel_is_symmetric_and_positive_semi_definite(name, grid, rng):
    X = rng.normal(size=(20, 6, 6, 2))
    X[10:] = X[:10] + 1e-6 * rng.normal(size=(10, 6, 6, 2))
    kernel = kernel_named(name, pool_grid=grid)
    matrix = kernel(X)
    np.testing.assert_array_equal(matrix, matrix.T)
    # Near-duplicates are sensitive to rounding.
    assert_close(kernel(X, X.copy()), matrix, 1e-9)
    eigenvalues = np.linalg.eigvalsh(matrix)
    assert eigenvalues[0] > -1e-10 * eigenvalues[-1]


@ALL_KERNELS
def test_global_pool_is_invariant_under_translation(name, rng):
    content, others = rng.normal(size=(3, 3, 2)), rng.normal(size=(4, 13, 13, 2))
    here, there = np.zeros((2, 1, 13, 13, 2))
    here[0, 4:7, 4:7], there[0, 6:9, 5:8] = content, content
    pooled, flat = kernel_named(name, pool_grid=1), kernel_named(name)
    assert_close(pooled(there, others), pooled(here, others), 1e-12)
    near, far = flat(here, others), flat(there, others)
    assert np.abs(far - near).max() > 1e-3 * np.abs(near).max()


@pytest.mark.parametrize("bias", [0.0, 0.3])
def test_kernel_is_that_of_many_pooled_random_features(bias, rng):
    X, n_filters = rng.normal(size=(3, 5, 6, 2)), 200_000
    patches = np.stack([patches_by_hand(x) for x in X])  # (3, 3, 4, 18)
    filters = rng.normal(size=(18, n_filters)) / math.sqrt(2)
    biases = bias * rng.normal(size=n_filters)
    pools = [
        math.sqrt(2) * np.maximum(patches[:, rows, columns] @ filters + biases, 0)
        for rows in (slice(0, 1), slice(1, 3))
        for columns in (slice(0, 2), slice(2, 4))
    ]
    features = np.stack([maps.mean((1, 2)) for maps in pools], axis=1)
    expected = np.einsum("icf,jcf->ij", features, features) / (4 * n_filters)
    assert_close(ConvNNGP(depth=1, bias=bias, pool_grid=2)(X), expected, 0.02)


@ALL_KERNELS
def test_kernel_and_agop_of_blank_images_are_finite(name, rng):
    X, coef = rng.normal(size=(5, 6, 6)), rng.normal(size=5)
    X[0, :4], X[1] = 0, 0
    options = {"bias": 0.0} if name in ("ntk", "nngp") else {}
    kernel, T = kernel_named(name, pool_grid=(2, 2), **options), np.diag(range(9))
    matrix = kernel(X, patch_transform=T)
    agop = patch_agop(kernel, X, coef, patch_transform=T)
    assert np.isfinite(matrix).all() and np.isfinite(agop).all()
    if name in ("ntk", "nngp"):
        assert (matrix[1] == 0).all()


def test_bandwidth_is_measured_as_without_a_pool(rng):
    X, coef = rng.normal(size=(8, 5, 5)), rng.normal(size=8)
    kernel, resources = PatchLaplace(pool_grid=1), make_resources("cpu", "auto", 1, X)
    without = PatchLaplace().bind((5, 5, 1))
    bandwidth = without.measured_evenly(X[..., None], None, resources).bandwidth_
    given = PatchLaplace(bandwidth, pool_grid=1)
    assert_close(kernel(X), given(X), 1e-13)
    assert_close(patch_agop(kernel, X, coef), patch_agop(given, X, coef), 1e-13)


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize("transformed", [False, True])
def test_agop_equals_automatic_differentiation(case, transformed, rng):
    kernel, X, Y = case
    coef, weights = rng.normal(size=(3, 2)), np.array([1.0, 2.5])
    T = some_transform(kernel, X) if transformed else None
    agop = patch_agop(kernel, X, coef, Y, patch_transform=T, sample_weight=weights)
    gradients = gradients_by_autograd(kernel, X, coef, Y, T)
    assert_close(agop, agop_of_gradients(gradients, weights), 1e-11)


@ALL_KERNELS
def test_agop_equals_finite_differences(name, rng):
    X, z, coef = rng.normal(size=(3, 5, 4, 1)), rng.normal(size=(5, 4, 1)), [[1.0]] * 3
    kernel = kernel_named(name, pool_grid=(2, 1), padding="same")
    gradients = gradients_by_differences(kernel, X, np.array(coef), z)
    agop = patch_agop(kernel, X, coef, z[None])
    assert_close(agop, agop_of_gradients(gradients), 1e-8)


def test_agop_of_two_pixels_is_its_formula():
    (x, z), h = ([0.3, -1.0], [0.7, 0.2]), 1.5
    slopes = [
        sum(-(b - a) / h**2 * math.exp(-((b - a) ** 2) / (2 * h**2)) / 4 for a in x)
        for b in z
    ]
    kernel = PatchGaussian(h, patch_size=1, pool_grid=1)
    agop = patch_agop(kernel, np.array([[x]]), [2.0], np.array([[z]]))
    expected = 2.0**2 * sum(slope**2 for slope in slopes)
    np.testing.assert_allclose(agop, [[expected]], rtol=1e-12)


@ALL_KERNELS
def test_agop_is_symmetric_and_positive_semi_definite(name, rng):
    X, coef = rng.normal(size=(8, 6, 6, 2)), rng.normal(size=(8, 3))
    agop = patch_agop(kernel_named(name, pool_grid=2), X, coef)
    np.testing.assert_array_equal(agop, agop.T)
    eigenvalues = np.linalg.eigvalsh(agop)
    assert eigenvalues[0] > -1e-12 * eigenvalues[-1]


def test_agop_adds_up_more_outputs_than_centres(rng):
    X, coef = rng.normal(size=(6, 6, 6)), rng.normal(size=(6, 50))
    kernel = ConvNTK(depth=2, bias=0, pool_grid=2)
    parts = [patch_agop(kernel, X, column) for column in coef.T]
    assert_close(patch_agop(kernel, X, coef), sum(parts), 1e-11)


# -------------------------------------------------------------------- tiles


@pytest.fixture
def everything(rng):
    """Return a function that computes all that there is of a pooled kernel."""
    X, Y = rng.normal(size=(23, 7, 6, 2)), rng.normal(size=(5, 7, 6, 2))
    coef = rng.normal(size=(23, 3))

    def compute(name, n_jobs=None, dtype="auto", device="cpu"):
        kernel = kernel_named(name, pool_grid=(2, 2))
        resources = make_resources(device, dtype, n_jobs, X)
        options = {"n_jobs": n_jobs, "dtype": dtype, "device": device}
        bound = kernel.bind(X.shape[1:])
        return [
            kernel(X, **options),
            kernel(X, Y, **options),
            patch_agop(kernel, X, coef, Y, **options),
            kernel_product(bound, Y, X, None, coef, resources),
        ]

    return compute


def assert_all_close(results, expected, tolerance):
    for result, value in zip(results, expected, strict=True):
        assert_close(result, value, tolerance)


@pytest.mark.slow
@TWO_KERNELS
@pytest.mark.parametrize("budget", [1e-5, 0.05, 1])
def test_results_independent_of_working_memory(name, budget, everything):
    expected = everything(name)
    with config_context(working_memory=budget):
        assert_all_close(everything(name), expected, 1e-11)


@TWO_KERNELS
def test_results_independent_of_workers(name, everything):
    expected = everything(name)
    with parallel_config("threading"):
        assert_all_close(everything(name, n_jobs=2), expected, 1e-12)


@TWO_KERNELS
def test_float32_is_close_to_float64(name, everything):
    assert_all_close(everything(name, dtype="float32"), everything(name), 1e-4)


@pytest.mark.parametrize("pullback", [False, True])
def test_tile_takes_no_more_memory_than_without_a_pool(pullback, monkeypatch):
    monkeypatch.setenv(build.SWITCH, "1")
    resources = make_resources("cpu", "float64", None, np.empty(0))
    plain, pooled = (
        ConvNTK(depth=2, pool_grid=grid).bind((8, 8, 1)) for grid in (None, (2, 2))
    )
    assert pooled.is_pooled and not plain.is_pooled
    pairs = tile_pairs(plain, resources, pullback)
    assert tile_pairs(pooled, resources, pullback) == pairs
    assert find_library(pooled, 10**9, resources, pullback) is None


@pytest.mark.gpu
@TWO_KERNELS
def test_cuda_equals_the_cpu(name, everything):
    assert_all_close(everything(name, device="cuda"), everything(name), 1e-9)


# -------------------------------------------------------------------- cells


@pytest.mark.parametrize(("size", "count"), [(1, 1), (7, 3), (8, 2), (5, 5), (3, 7)])
def test_cells_part_a_dimension_as_average_pooling_does(size, count):
    parts = cells(size, count)
    line = torch.arange(size)[None, :, None, None].double()
    means = average_pool(line, (parts, [slice(0, 1)]))
    positions = [range(part.start, part.stop) for part in parts]
    assert [u for part in positions for u in part] == list(range(size))
    assert means.flatten().tolist() == pytest.approx([np.mean(p) for p in positions])


# --------------------------------------------------------------- parameters


@ALL_KERNELS
@pytest.mark.parametrize("grid", [(1, 2, 3), (0, 1), (2.0, 1), []])
def test_grid_that_is_no_pair_is_refused(name, grid, rng):
    X, kernel = rng.normal(size=(3, 5, 5)), kernel_named(name, pool_grid=grid)
    with pytest.raises(ValueError, match="pool_grid=.*nor a pair"):
        kernel(X)
    with pytest.raises(ValueError, match="pool_grid=.*nor a pair"):
        patch_agop(kernel, X, np.ones(3))


@ALL_KERNELS
@pytest.mark.parametrize("grid", [0, 1.5, "global"])
def test_grid_that_is_no_positive_int_is_refused(name, grid, rng):
    with pytest.raises(ValueError, match="'pool_grid' parameter"):
        kernel_named(name, pool_grid=grid)(rng.normal(size=(3, 5, 5)))


@TWO_KERNELS
def test_estimator_predicts_with_its_pooled_kernel(name, rng):
    X, y = rng.normal(size=(24, 7, 6)), np.arange(24) % 2
    kernel = {
        "ntk": ConvNTK(patch_size=2, pool_grid=2),
        "laplace": PatchLaplace(patch_size=2, pool_grid=2),
    }[name]
    model = ConvRFMClassifier(kernel, n_rounds=1).fit(X[:20], y[:20])
    if name == "laplace":
        kernel.set_params(bandwidth=model.kernel_.bandwidth_)
    K = kernel(X[20:], X[:20], patch_transform=model.patch_transform_)
    scores = (K @ model.dual_coef_ + model.intercept_)[:, 0]
    assert_close(model.decision_function(X[20:]), scores, 1e-9)

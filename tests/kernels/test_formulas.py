"""Kernels of patches and their gradients equal their formulas, in both kinds of tiles.

Plain, pooled and with padding; by values, automatic differentiation and differences.
"""

import math

import numpy as np
import pytest
import torch
from by_hand import (
    agop_of_gradients,
    assert_close,
    gradients_by_autograd,
    gradients_by_differences,
    gradients_by_pullback,
    kernel_by_hand,
    patches_by_hand,
    some_transform,
    window_sum_by_hand,
)
from joblib import parallel_config
from sklearn import config_context

from skconvrfm._input import make_resources
from skconvrfm.compute.images import cells, convolution_layers
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
from skconvrfm.kernels.convolutional import (
    ConvolutionalKernel,
    window_sum,
    window_sum_adjoint,
)

SAME = {"padding": "same"}
# Shape of an image, depth, and other hyperparameters than no bias and no pool.
CONVOLUTIONAL = {
    "one layer": ((5, 5, 1), 1, {}),
    "two layers": ((6, 6, 1), 2, {}),
    "three layers": ((8, 8, 1), 3, {}),
    "four layers": ((9, 10, 1), 4, {}),
    "three channels": ((6, 6, 3), 2, {}),
    "flat and wide": ((3, 9, 2), 3, {}),
    "one row": ((1, 7, 1), 3, {}),
    "one pixel": ((1, 1, 2), 3, {}),
    "same": ((5, 4, 2), 3, SAME),
    "even patch": ((7, 6, 1), 2, {"patch_size": 2}),
    "even patch, same": ((5, 6, 1), 3, {"patch_size": 4, **SAME}),
    "tuple patch": ((6, 7, 2), 2, {"patch_size": (2, 4)}),
    "tuple patch, same": ((4, 6, 1), 3, {"patch_size": (1, 4), **SAME}),
    "patch of one pixel": ((4, 4, 3), 3, {"patch_size": 1}),
    "map smaller than patch": ((6, 5, 1), 4, {"patch_size": 4}),
    "image smaller than patch": ((2, 3, 2), 2, {"patch_size": 5}),
    "image smaller, same": ((2, 3, 1), 3, {"patch_size": 5, **SAME}),
    "bias": ((6, 6, 1), 2, {"bias": 0.7}),
    "bias, same": ((5, 5, 2), 3, {"bias": 0.2, **SAME}),
    "large bias": ((4, 4, 1), 3, {"bias": 30.0}),
    "pool": ((6, 5, 1), 1, {"pool_grid": (1, 1)}),
    "pool, cells": ((7, 6, 2), 1, {"pool_grid": (2, 3), "bias": 0.3}),
    "pool, two layers": ((6, 6, 1), 2, {"pool_grid": (1, 1), "bias": 0.3}),
    "pool, two, cells": ((7, 7, 2), 2, {"pool_grid": (2, 2)}),
    "pool, three": ((6, 8, 1), 3, {"pool_grid": (2, 2), "patch_size": (2, 3)}),
    "pool, same": ((4, 5, 2), 2, {"pool_grid": (2, 2), **SAME}),
    "pool, same, bias": ((4, 4, 1), 3, {"pool_grid": (1, 1), "bias": 0.3, **SAME}),
    "pool, same, even": (
        (5, 4, 1),
        2,
        {"pool_grid": (2, 1), "patch_size": (2, 4), **SAME},
    ),
    "pool, small map": ((6, 5, 1), 3, {"pool_grid": (1, 1), "patch_size": 4}),
    "pool, many cells": ((5, 4, 1), 1, {"pool_grid": (2, 9)}),
}
RADIAL = {
    "radial": ((6, 5, 2), {}),
    "radial, same": ((6, 5, 2), SAME),
    "radial, pool": ((6, 5, 2), {"pool_grid": (2, 3)}),
    "radial, pool, same": ((4, 5, 1), {"pool_grid": (1, 2), **SAME}),
}
CASES = pytest.mark.parametrize("name", [*CONVOLUTIONAL, *RADIAL])
EITHER = pytest.mark.parametrize("either", ["ntk, laplace", "nngp, gaussian"])


def make_case(name, either):
    """The shape of an image, and a kernel for it."""
    first = either == "ntk, laplace"
    if name in RADIAL:
        shape, options = RADIAL[name]
        return shape, (PatchLaplace if first else PatchGaussian)(2.5, **options)
    shape, depth, options = CONVOLUTIONAL[name]
    Kernel = ConvNTK if first else ConvNNGP
    return shape, Kernel(depth, **{"bias": 0.0, **options})


KINDS = {
    "ntk": ConvNTK(2),
    "nngp": ConvNNGP(2),
    "laplace": PatchLaplace(2.0),
    "gaussian": PatchGaussian(2.0),
}
ALL_KINDS = pytest.mark.parametrize("kind", KINDS)
TWO_KINDS = pytest.mark.parametrize("kind", ["ntk", "laplace"])
BOTH_KERNELS = pytest.mark.parametrize("Kernel", [ConvNTK, ConvNNGP])
METRICS = pytest.mark.parametrize("metric", ["identity", "transform"])


def kernel_of(kind, **options):
    return type(KINDS[kind])(**{**KINDS[kind].get_params(), **options})


def transform_of(metric, kernel, X):
    return None if metric == "identity" else some_transform(kernel, X)


# ------------------------------------------------------------------- values, gradients


@METRICS
@EITHER
@CASES
def test_values_gradients_and_agops_equal_formulas(name, either, metric, tiles, rng):
    shape, kernel = make_case(name, either)
    X, Y = rng.normal(size=(3, *shape)), rng.normal(size=(2, *shape))
    coef, weights = rng.normal(size=(3, 2)), np.array([1.0, 2.5])
    T = transform_of(metric, kernel, X)
    is_radial = isinstance(kernel, PatchLaplace | PatchGaussian)
    exact = 1e-13 if is_radial and kernel.pool_grid is None else 1e-12
    value = kernel(X, Y, patch_transform=T)
    assert_close(value, kernel_by_hand(kernel, X, Y, T), exact)
    expected = gradients_by_autograd(kernel, X, coef, Y, T)
    agop = patch_agop(kernel, X, coef, Y, patch_transform=T, sample_weight=weights)
    assert agop.dtype == np.float64
    assert_close(agop, agop_of_gradients(expected, weights), 10 * exact)
    if isinstance(kernel, ConvolutionalKernel) and kernel.pool_grid is None:
        bound, transform = (
            kernel.bind(shape),
            None if T is None else torch.from_numpy(T),
        )
        block = bound.prepare_block(torch.from_numpy(X), transform)
        diagonal = bound.value(block, block).diagonal().numpy()
        assert_close(bound.diagonal(block).numpy(), diagonal, 1e-12)
        gradients = gradients_by_pullback(kernel, X, coef, Y, T)
        assert_close(gradients, expected, 1e-11)


@METRICS
@EITHER
@CASES
def test_compiled_tiles_and_float32_equal_array_operations(
    name, either, metric, tiles, rng
):
    shape, kernel = make_case(name, either)
    X, Y = rng.normal(size=(18, *shape)), rng.normal(size=(4, *shape))  # vectors
    X[1], X[4, :1], Y[0] = 0, 0, X[2]
    coef, T = rng.normal(size=(18, 2)), transform_of(metric, kernel, X)

    def compute(some=slice(None), others=slice(None), dtype="float64"):
        options, images = {"patch_transform": T, "dtype": dtype}, X[some]
        among = kernel(images, **options)
        between = kernel(images, Y[others], **options)
        agop = patch_agop(kernel, images, coef[some], Y[others], **options)
        return among, between, agop

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(build.SWITCH, "0")
        expected, of_few = compute(), compute(slice(5, 8), slice(1, 4))
    if tiles == "compiled":
        for found, value in zip(compute(), expected, strict=True):
            assert_close(found, value, 1e-11)
    single = compute(slice(5, 8), slice(1, 4), "float32")
    assert single[0].dtype == np.float32
    for found, value, tolerance in zip(single, of_few, (1e-5, 1e-5, 1e-4), strict=True):
        assert_close(found, value, tolerance)


@ALL_KINDS
@pytest.mark.parametrize("pool_grid", [None, (2, 1)])
def test_agop_equals_finite_differences(kind, pool_grid, tiles, rng):
    X, z, coef = rng.normal(size=(3, 5, 4, 1)), rng.normal(size=(5, 4, 1)), np.ones(3)
    kernel = kernel_of(kind, pool_grid=pool_grid, padding="same")
    gradients = gradients_by_differences(kernel, X, coef[:, None], z)
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


@pytest.mark.parametrize("bias", [0.0, 0.3])
def test_kernel_is_that_of_many_pooled_random_features(bias, rng):
    X, n_filters = rng.normal(size=(3, 5, 6, 2)), 100_000
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


# ------------------------------------------------------------ copies and blank patches


@ALL_KINDS
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("pool_grid", [None, 1, 2])
def test_kernel_of_near_duplicates_is_positive_semi_definite(
    kind, padding, pool_grid, tiles, rng
):
    X = rng.normal(size=(20, 6, 6, 2))
    X[10:] = X[:10] + 1e-6 * rng.normal(size=(10, 6, 6, 2))
    X[5], order = X[2], rng.permutation(20)
    kernel = kernel_of(kind, padding=padding, pool_grid=pool_grid)
    matrix = kernel(X)
    np.testing.assert_array_equal(matrix, matrix.T)
    eigenvalues = np.linalg.eigvalsh(matrix)
    assert eigenvalues[0] > -1e-10 * eigenvalues[-1]
    np.testing.assert_allclose(matrix[5], matrix[2], rtol=1e-12)
    assert matrix[2, 5] == pytest.approx(matrix[2, 2], rel=1e-12)
    # Near-duplicates are sensitive to rounding.
    assert_close(kernel(X, X.copy()), matrix, 1e-9)
    assert_close(kernel(X[order]), matrix[order][:, order], 1e-9)


def test_opposite_images_have_kernel_zero_at_depth_one(rng, tiles):
    X = rng.normal(size=(4, 5, 5))
    matrix = ConvNTK(depth=1, bias=0)(X, -X)
    assert np.abs(np.diagonal(matrix)).max() < 1e-7 * matrix.max()


@BOTH_KERNELS
@pytest.mark.parametrize("pool_grid", [None, (2, 2)])
def test_blank_patches_have_kernel_and_gradient_zero(Kernel, pool_grid, rng, tiles):
    X, Y = rng.normal(size=(3, 6, 6, 1)), rng.normal(size=(2, 6, 6, 1))
    X[0, :5], X[1, :, 2:], X[2], Y[0, 2:], Y[1, :, :5] = 0, 0, 0, 0, 0
    kernel, coef = Kernel(depth=2, bias=0, pool_grid=pool_grid), rng.normal(size=(3, 2))
    matrix = kernel(X, Y)
    assert_close(matrix, kernel_by_hand(kernel, X, Y), 1e-12)
    assert (matrix[2] == 0).all()
    assert np.isfinite(kernel(X, patch_transform=np.diag(range(9)))).all()
    assert np.isfinite(patch_agop(kernel, X, coef)).all()
    assert not patch_agop(kernel, 0 * X, coef).any()
    if pool_grid is None:
        gradients = gradients_by_pullback(kernel, X, coef, Y)
        blank = np.array([(patches_by_hand(z) == 0).all(-1) for z in Y])
        assert blank.any() and not blank.all()
        assert (gradients[:, blank] == 0).all() and np.isfinite(gradients).all()


@pytest.mark.parametrize("Kernel", [PatchLaplace, PatchGaussian])
def test_kernel_of_equal_images_is_one_and_its_agop_finite(Kernel, rng):
    X, coef = rng.normal(size=(30, 6, 6)), rng.normal(size=(30, 3))
    X[7], X[4] = X[3], 0
    K = Kernel()(X)
    assert (np.diagonal(K) == 1).all() and K[3, 7] == 1
    assert (Kernel()(np.ones((4, 5, 5))) == 1).all()
    T = some_transform(Kernel(), X[..., None])
    agop = patch_agop(Kernel(), X, coef, patch_transform=T)
    assert np.linalg.eigvalsh(agop)[0] > -1e-12 * np.linalg.norm(agop)


def test_gradient_at_a_centre_is_the_mean_of_those_around_it(rng, tiles):
    # The kernel has a kink where a patch meets itself; the symmetric value is taken.
    X, coef = rng.normal(size=(2, 4, 4, 1)), np.array([[1.0], [0.5]])
    away = 1e-5 * rng.normal(size=(1, 4, 4, 1))
    around = np.concatenate([X[:1] + away, X[:1] - away])
    kernel = ConvNTK(depth=2, bias=0)
    gradients = gradients_by_pullback(kernel, X, coef, around)
    at_centre = gradients_by_pullback(kernel, X, coef, X[:1])
    assert_close(at_centre[:, 0], gradients.mean(axis=1), 1e-6)


@BOTH_KERNELS
def test_gradients_near_a_centre_stay_bounded(Kernel, rng, tiles):
    X, coef = rng.normal(size=(3, 5, 5, 1)), rng.normal(size=(3, 1))
    kernel = Kernel(depth=2, bias=0)
    typical = np.abs(gradients_by_pullback(kernel, X, coef, -X)).max()
    for distance in (0, 1e-14, 1e-12, 1e-9, 1e-6, 1e-3):
        Y = X + distance * rng.normal(size=X.shape)
        gradients = gradients_by_pullback(kernel, X, coef, Y)
        assert np.abs(gradients).max() < 20 * typical


# ------------------------------------------------------------------------- transforms


@BOTH_KERNELS
def test_kernel_ignores_the_null_space_of_the_transform(Kernel, rng, tiles):
    X, Y = rng.normal(size=(3, 6, 6, 1)), rng.normal(size=(2, 6, 6, 1))
    T = np.zeros((9, 9))
    T[4, 4], T[5, 5] = 1.0, 2.0  # two pixels of the middle row of a patch
    kernel = Kernel(depth=2, bias=0)
    matrix = kernel(X, Y, patch_transform=T)
    assert_close(matrix, kernel_by_hand(kernel, X, Y, T), 1e-12)
    X[:, [0, -1]] = 7.0
    assert_close(kernel(X, Y, patch_transform=T), matrix, 1e-12)


def test_patches_in_the_null_space_count_as_blank(rng, tiles):
    # All patches but those of the last image lie there, up to rounding.
    direction = rng.normal(size=9)
    direction /= np.linalg.norm(direction)
    rows = rng.normal(size=(3, 9))
    rows -= np.outer(rows @ direction, direction)
    rows[2] += direction
    X, T = rows.reshape(3, 3, 3), np.outer(direction, direction)
    kernel = ConvNTK(depth=1, bias=0)
    matrix = kernel(X, patch_transform=T)
    assert np.abs(matrix[:2]).max() < 1e-15 * matrix[2, 2]
    agop = patch_agop(kernel, X, np.ones(3), patch_transform=T)
    assert np.isfinite(agop).all()
    assert np.abs((np.eye(9) - T) @ agop).max() < 1e-12 * np.abs(agop).max()


@pytest.mark.parametrize("factor", [1e-3, 1e5])
def test_kernel_scales_and_turns_with_the_transform(factor, rng, tiles):
    X, Y = rng.normal(size=(4, 6, 6, 2)), rng.normal(size=(3, 6, 6, 2))
    kernel, coef = ConvNTK(bias=0), rng.normal(size=4)
    T = some_transform(kernel, X)
    matrix = kernel(X, Y, patch_transform=T)
    scaled = kernel(X, Y, patch_transform=factor * T)
    assert_close(scaled, factor**2 * matrix, 1e-12)
    assert_close(kernel(factor * X, Y, patch_transform=T), factor * matrix, 1e-12)
    agop = patch_agop(kernel, X, coef, Y, patch_transform=T)
    scaled = patch_agop(kernel, X, coef, Y, patch_transform=factor * T)
    assert_close(scaled, factor**4 * agop, 1e-12)
    reflection = np.eye(18) - 2 * np.outer(T[0], T[0]) / (T[0] @ T[0])
    plain = kernel(X, Y)
    assert_close(kernel(X, Y, patch_transform=reflection), plain, 1e-12)
    assert_close(kernel(X, Y, patch_transform=np.eye(18)), plain, 1e-13)


# -------------------------------------------------------------- window sums and cells


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, (2, 6), (9, 1)])
def test_window_sum_adds_up_a_patch_and_its_adjoint_is_the_transpose(
    padding, size, rng
):
    below = torch.from_numpy(rng.normal(size=(8, 7, 2, 3)))
    (layer,) = convolution_layers((8, 7), size, padding, 1)
    up = window_sum(below, layer)
    expected = window_sum_by_hand(below[:, :, 1, 2], size, padding, torch)
    torch.testing.assert_close(up[:, :, 1, 2], expected)
    above = torch.from_numpy(rng.normal(size=up.shape))
    down = window_sum_adjoint(above, layer)
    assert down.shape == below.shape
    torch.testing.assert_close((up * above).sum(), (down * below).sum())


@pytest.mark.parametrize(("size", "count"), [(1, 1), (7, 3), (8, 2), (5, 5), (3, 7)])
def test_cells_part_a_dimension_as_average_pooling_does(size, count):
    parts = cells(size, count)
    line = torch.arange(size)[None, :, None, None].double()
    means = average_pool(line, (parts, [slice(0, 1)]))
    positions = [range(part.start, part.stop) for part in parts]
    assert [u for part in positions for u in part] == list(range(size))
    assert means.flatten().tolist() == pytest.approx([np.mean(p) for p in positions])


@ALL_KINDS
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_cell_for_every_location_is_no_pool(kind, padding, rng):
    X, Y = rng.normal(size=(4, 6, 5, 2)), rng.normal(size=(3, 6, 5, 2))
    coef = rng.normal(size=(4, 2))
    kernel = kernel_of(kind, padding=padding)
    finest = kernel_of(kind, padding=padding, pool_grid=(6, 5))
    for images in (Y, None):
        assert_close(finest(X, images), kernel(X, images), 1e-12)
        expected = patch_agop(kernel, X, coef, images)
        assert_close(patch_agop(finest, X, coef, images), expected, 1e-11)
    number, pair = (kernel_of(kind, pool_grid=grid)(X) for grid in (2, (2, 2)))
    np.testing.assert_array_equal(number, pair)


@ALL_KINDS
def test_global_pool_is_invariant_under_translation(kind, rng):
    content, others = rng.normal(size=(3, 3, 2)), rng.normal(size=(4, 13, 13, 2))
    here, there = np.zeros((2, 1, 13, 13, 2))
    here[0, 4:7, 4:7], there[0, 6:9, 5:8] = content, content
    pooled, flat = kernel_of(kind, pool_grid=1), kernel_of(kind)
    assert_close(pooled(there, others), pooled(here, others), 1e-12)
    near, far = flat(here, others), flat(there, others)
    assert np.abs(far - near).max() > 1e-3 * np.abs(near).max()


# --------------------------------------------------------------------- pooled tiles


@pytest.fixture
def everything(rng):
    """Return a function that computes all that there is of a pooled kernel."""
    X, Y = rng.normal(size=(9, 7, 6, 2)), rng.normal(size=(3, 7, 6, 2))
    coef = rng.normal(size=(9, 3))

    def compute(kind, n_jobs=None, device="cpu"):
        kernel = kernel_of(kind, pool_grid=(2, 2))
        resources = make_resources(device, "float64", n_jobs, X)
        options, bound = {"n_jobs": n_jobs, "device": device}, kernel.bind(X.shape[1:])
        return [
            kernel(X, **options),
            kernel(X, Y, **options),
            patch_agop(kernel, X, coef, Y, **options),
            kernel_product(bound, Y, X, None, coef, resources),
        ]

    return compute


@TWO_KINDS
@pytest.mark.parametrize(("budget", "n_jobs"), [(1e-5, None), (0.05, None), (1, 2)])
def test_pooled_results_independent_of_memory_and_workers(
    kind, budget, n_jobs, everything
):
    expected = everything(kind)
    with config_context(working_memory=budget), parallel_config("threading"):
        for found, value in zip(everything(kind, n_jobs), expected, strict=True):
            assert_close(found, value, 1e-11)


@pytest.mark.gpu
@TWO_KINDS
def test_pooled_results_on_cuda_equal_the_cpu(kind, everything):
    for found, value in zip(
        everything(kind, device="cuda"), everything(kind), strict=True
    ):
        assert_close(found, value, 1e-9)


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

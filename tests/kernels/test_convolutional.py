"""The convolutional kernels and their pullback equal their formulas, in both tiles."""

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

from skconvrfm.compute.images import convolution_layers
from skconvrfm.compute.native import build
from skconvrfm.kernels import ConvNNGP, ConvNTK, patch_agop
from skconvrfm.kernels.convolutional import window_sum, window_sum_adjoint

# name: shape of an image, hyperparameters of the kernel
CASES = {
    "depth 1": ((5, 5, 1), {"depth": 1}),
    "depth 2": ((6, 6, 1), {"depth": 2}),
    "depth 3": ((8, 8, 1), {"depth": 3}),
    "depth 4": ((9, 10, 1), {"depth": 4}),
    "three channels": ((6, 6, 3), {"depth": 2}),
    "flat and wide": ((3, 9, 2), {"depth": 3}),
    "one row": ((1, 7, 1), {"depth": 3}),
    "one pixel": ((1, 1, 2), {"depth": 3}),
    "same": ((5, 4, 2), {"depth": 3, "padding": "same"}),
    "even patch": ((7, 6, 1), {"depth": 2, "patch_size": 2}),
    "even patch, same": ((5, 6, 1), {"depth": 3, "patch_size": 4, "padding": "same"}),
    "tuple patch": ((6, 7, 2), {"depth": 2, "patch_size": (2, 4)}),
    "tuple patch, same": (
        (4, 6, 1),
        {"depth": 3, "patch_size": (1, 4), "padding": "same"},
    ),
    "patch of one pixel": ((4, 4, 3), {"depth": 3, "patch_size": 1}),
    "map smaller than patch": ((6, 5, 1), {"depth": 4, "patch_size": 4}),
    "image smaller than patch": ((2, 3, 2), {"depth": 2, "patch_size": 5}),
    "image smaller than patch, same": (
        (2, 3, 1),
        {"depth": 3, "patch_size": 5, "padding": "same"},
    ),
    "bias": ((6, 6, 1), {"depth": 2, "bias": 0.7}),
    "bias, same": ((5, 5, 2), {"depth": 3, "bias": 0.2, "padding": "same"}),
    "large bias": ((4, 4, 1), {"depth": 3, "bias": 30.0}),
}
BOTH_KERNELS = pytest.mark.parametrize("Kernel", [ConvNTK, ConvNNGP])
BOTH_METRICS = pytest.mark.parametrize("metric", ["identity", "transform"])


@pytest.fixture(params=CASES)
def case(request, rng):
    """Return images X and Y, and hyperparameters of a kernel without bias."""
    shape, options = CASES[request.param]
    X, Y = rng.normal(size=(3, *shape)), rng.normal(size=(2, *shape))
    return X, Y, {"bias": 0.0, **options}


def transform_of(metric, kernel, X):
    return None if metric == "identity" else some_transform(kernel, X)


# ------------------------------------------------------------------- values


@BOTH_KERNELS
@BOTH_METRICS
def test_kernel_equals_recursion_by_hand(case, Kernel, metric, tiles):
    X, Y, options = case
    kernel = Kernel(**options)
    T = transform_of(metric, kernel, X)
    expected = kernel_by_hand(kernel, X, Y, T)
    assert_close(kernel(X, Y, patch_transform=T), expected, 1e-12)


@BOTH_KERNELS
def test_kernel_among_images_is_kernel_between_them(case, Kernel, tiles):
    X, Y, options = case
    kernel, images = Kernel(**options), np.concatenate([X, Y, X[:1]])
    among = kernel(images)
    assert_close(among, kernel(images, images.copy()), 1e-12)
    np.testing.assert_array_equal(among, among.T)


@BOTH_KERNELS
def test_diagonal_equals_that_of_the_matrix(case, Kernel):
    X, _, options = case
    kernel = Kernel(**options).bind(X.shape[1:])
    transform = torch.from_numpy(some_transform(kernel, X))
    block = kernel.prepare_block(torch.from_numpy(X), transform)
    expected = kernel.value(block, block).diagonal()
    assert_close(kernel.diagonal(block).numpy(), expected.numpy(), 1e-12)


@BOTH_KERNELS
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_kernel_of_near_duplicates_is_positive_semi_definite(
    Kernel, padding, rng, tiles
):
    X = rng.normal(size=(20, 6, 6, 2))
    X[10:] = X[:10] + 1e-6 * rng.normal(size=(10, 6, 6, 2))
    eigenvalues = np.linalg.eigvalsh(Kernel(padding=padding, bias=0.1)(X))
    assert eigenvalues[0] > -1e-10 * eigenvalues[-1]


def test_kernel_independent_of_order_of_images(rng, tiles):
    X, order = rng.normal(size=(23, 6, 5, 2)), rng.permutation(23)
    matrix = ConvNTK()(X)
    assert_close(ConvNTK()(X[order]), matrix[order][:, order], 1e-13)


def test_kernel_of_a_copy_equals_kernel_with_itself(rng, tiles):
    X = rng.normal(size=(9, 8, 8))
    X[5] = X[2]
    matrix = ConvNTK(depth=2, bias=0)(X)
    assert matrix[2, 5] == pytest.approx(matrix[2, 2], rel=1e-12)
    np.testing.assert_allclose(matrix[5, :], matrix[2, :], rtol=1e-12)


def test_opposite_images_have_kernel_zero_at_depth_one(rng, tiles):
    X = rng.normal(size=(4, 5, 5))
    matrix = ConvNTK(depth=1, bias=0)(X, -X)
    assert np.abs(np.diagonal(matrix)).max() < 1e-7 * matrix.max()


@BOTH_KERNELS
def test_blank_patches_have_kernel_zero(Kernel, rng, tiles):
    X, Y = rng.normal(size=(3, 6, 6, 1)), rng.normal(size=(2, 6, 6, 1))
    X[0, :5], X[1, :, 2:], X[2], Y[0, 3:] = 0, 0, 0, 0
    kernel = Kernel(depth=2, bias=0)
    matrix = kernel(X, Y)
    assert_close(matrix, kernel_by_hand(kernel, X, Y), 1e-12)
    assert (matrix[2] == 0).all()
    assert np.isfinite(kernel(X)).all()


def test_kernel_and_agop_of_blank_images_are_zero(tiles):
    blank, kernel = np.zeros((3, 5, 5)), ConvNTK(bias=0)
    assert (kernel(blank) == 0).all()
    assert (patch_agop(kernel, blank, np.ones(3)) == 0).all()


@BOTH_KERNELS
def test_kernel_ignores_the_null_space_of_the_transform(Kernel, rng, tiles):
    X, Y = rng.normal(size=(3, 6, 6, 1)), rng.normal(size=(2, 6, 6, 1))
    T = np.zeros((9, 9))
    T[4, 4], T[5, 5] = 1.0, 2.0  # two pixels of the middle row of a patch
    kernel = Kernel(depth=2, bias=0)
    matrix = kernel(X, Y, patch_transform=T)
    assert_close(matrix, kernel_by_hand(kernel, X, Y, T), 1e-12)
    X_unseen = X.copy()
    X_unseen[:, [0, -1]] = 7.0
    assert_close(kernel(X_unseen, Y, patch_transform=T), matrix, 1e-12)


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


@pytest.mark.parametrize("factor", [1e-3, 7.0, 1e5])
def test_kernel_without_bias_scales_with_images_and_transform(factor, rng, tiles):
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


def test_kernel_invariant_under_orthogonal_transform(rng, tiles):
    X, Y = rng.normal(size=(4, 6, 6)), rng.normal(size=(3, 6, 6))
    normal = rng.normal(size=9)
    reflection = np.eye(9) - 2 * np.outer(normal, normal) / (normal @ normal)
    rotated = ConvNTK()(X, Y, patch_transform=reflection)
    assert_close(rotated, ConvNTK()(X, Y), 1e-12)


def test_identity_transform_is_no_transform(rng, tiles):
    X, coef, identity = rng.normal(size=(4, 6, 6, 2)), np.ones(4), np.eye(18)
    assert_close(ConvNTK()(X, patch_transform=identity), ConvNTK()(X), 1e-13)
    agop = patch_agop(ConvNTK(), X, coef, patch_transform=identity)
    assert_close(agop, patch_agop(ConvNTK(), X, coef), 1e-12)


# -------------------------------------------------------------- window sums

PATCH_SIZES = pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, (2, 6), (9, 1)])
PADDINGS = pytest.mark.parametrize("padding", ["valid", "same"])


@PADDINGS
@PATCH_SIZES
def test_window_sum_adds_up_a_patch(padding, size, rng):
    maps = torch.from_numpy(rng.normal(size=(8, 7, 2, 3)))
    (layer,) = convolution_layers((8, 7), size, padding, 1)
    expected = window_sum_by_hand(maps[:, :, 1, 2], size, padding, torch)
    torch.testing.assert_close(window_sum(maps, layer)[:, :, 1, 2], expected)


@PADDINGS
@PATCH_SIZES
def test_window_sum_adjoint_is_the_transpose(padding, size, rng):
    (layer,) = convolution_layers((8, 7), size, padding, 1)
    below = torch.from_numpy(rng.normal(size=(8, 7)))
    above = torch.from_numpy(rng.normal(size=layer.locations))
    up = window_sum(below[..., None], layer)[..., 0]
    down = window_sum_adjoint(above[..., None], layer)[..., 0]
    assert down.shape == below.shape
    torch.testing.assert_close((up * above).sum(), (down * below).sum())


# ---------------------------------------------------------------- gradients


@BOTH_KERNELS
@BOTH_METRICS
def test_gradients_equal_automatic_differentiation(case, Kernel, metric, tiles, rng):
    X, Y, options = case
    kernel, coef = Kernel(**options), rng.normal(size=(3, 2))
    T = transform_of(metric, kernel, X)
    gradients = gradients_by_pullback(kernel, X, coef, Y, T)
    assert_close(gradients, gradients_by_autograd(kernel, X, coef, Y, T), 1e-11)


@BOTH_KERNELS
def test_gradients_equal_finite_differences(Kernel, rng, tiles):
    X, z = rng.normal(size=(3, 4, 5, 2)), rng.normal(size=(4, 5, 2))
    kernel, coef = Kernel(depth=2), rng.normal(size=(3, 1))
    numeric = gradients_by_differences(kernel, X, coef, z)
    assert_close(gradients_by_pullback(kernel, X, coef, z[None]), numeric, 1e-8)


@BOTH_KERNELS
def test_gradients_at_blank_patches_are_zero(Kernel, rng, tiles):
    X, Y = rng.normal(size=(3, 6, 6, 1)), rng.normal(size=(2, 6, 6, 1))
    X[0, :4], Y[0, 2:], Y[1, :, :5] = 0, 0, 0
    coef = rng.normal(size=(3, 2))
    gradients = gradients_by_pullback(Kernel(depth=2, bias=0), X, coef, Y)
    blank = np.array([(patches_by_hand(z) == 0).all(-1) for z in Y])
    assert blank.any() and not blank.all()
    assert (gradients[:, blank] == 0).all()
    assert np.isfinite(gradients).all()


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


@BOTH_KERNELS
@BOTH_METRICS
def test_compiled_pullback_equals_that_of_array_operations(
    case, Kernel, metric, compiled_tiles, rng
):
    X, Y, options = case
    kernel = Kernel(**options)
    T = transform_of(metric, kernel, X)
    X = np.concatenate([X, rng.normal(size=(20, *X.shape[1:]))])  # several vectors
    X[1], X[4, :1], Y[0] = 0, 0, X[2]
    coef = rng.normal(size=(23, 2))
    compiled = gradients_by_pullback(kernel, X, coef, Y, T)
    agop = patch_agop(kernel, X, coef, Y, patch_transform=T)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(build.SWITCH, "0")
        arrays = gradients_by_pullback(kernel, X, coef, Y, T)
    assert_close(compiled, arrays, 1e-12)
    assert_close(agop_of_gradients(compiled), agop, 1e-11)


def test_pullback_of_several_outputs_is_that_of_each(rng):
    kernel = ConvNTK(depth=2, bias=0.1).bind((6, 6, 1))
    left, right = (
        kernel.prepare_block(torch.from_numpy(rng.normal(size=(n, 6, 6, 1))), None)
        for n in (2, 5)
    )
    coef = torch.from_numpy(rng.normal(size=(5, 3)))
    weights, self_weights = kernel.pullback(left, right, coef)
    for output in range(3):
        column = slice(output, output + 1)
        alone = kernel.pullback(left, right, coef[:, column])
        torch.testing.assert_close(alone[0], weights)
        torch.testing.assert_close(alone[1], self_weights[..., column])


@BOTH_KERNELS
def test_float32_is_close_to_float64(case, Kernel, tiles):
    X, Y, options = case
    kernel, coef = Kernel(**options), np.ones((3, 2))
    for images in (Y, None):
        single = kernel(X, images, dtype="float32")
        assert single.dtype == np.float32
        assert_close(single, kernel(X, images), 1e-5)
    single = patch_agop(kernel, X, coef, dtype="float32")
    assert_close(single, patch_agop(kernel, X, coef), 1e-4)

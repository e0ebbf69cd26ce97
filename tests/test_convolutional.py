"""The recursion and its pullback are what the formulas say, in both kinds of tiles."""

import numpy as np
import pytest
import torch
from by_hand import (
    agop_of_gradients,
    assert_close,
    gradients_by_autograd,
    gradients_by_pullback,
    kernel_by_hand,
    kernel_of_patches,
    patches_by_hand,
    window_sum_by_hand,
)

from skconvrfm.core.convolutional import (
    window_sum,
    window_sum_adjoint,
)
from skconvrfm.core.images import convolution_layers
from skconvrfm.kernels import convolutional_kernel, make_kernel, patch_agop

# name: shape of an image, options of the kernel
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
BOTH_KINDS = pytest.mark.parametrize("kind", ["ntk", "nngp"])
BOTH_METRICS = pytest.mark.parametrize("metric", ["identity", "transform"])


@pytest.fixture(params=CASES)
def case(request, rng):
    """Return images X and Y and the options of a kernel."""
    shape, options = CASES[request.param]
    return rng.normal(size=(3, *shape)), rng.normal(size=(2, *shape)), options


def some_transform(X, options, rank=None):
    """A symmetric patch transform, of the full or a lower rank."""
    kernel = make_kernel(
        "ntk", X.shape[1:], options.get("patch_size", 3), "valid", 1, 0
    )
    root = np.random.default_rng(1).normal(size=(kernel.patch_dim, rank or 40))
    return root @ root.T / 40


def with_metric(metric, X, options):
    if metric == "identity":
        return options
    return {**options, "patch_transform": some_transform(X, options)}


# ------------------------------------------------------------------- values


@BOTH_KINDS
@BOTH_METRICS
def test_kernel_equals_the_recursion_by_hand(case, kind, metric, tiles):
    X, Y, options = case
    options = {"kind": kind, **with_metric(metric, X, options)}
    expected = kernel_by_hand(X, Y, **options)
    assert_close(convolutional_kernel(X, Y, **options), expected, 1e-12)


@BOTH_KINDS
def test_kernel_of_images_with_themselves_is_the_kernel_between_them(case, kind, tiles):
    X, Y, options = case
    images = np.concatenate([X, Y, X[:1]])
    among = convolutional_kernel(images, kind=kind, **options)
    between = convolutional_kernel(images, images.copy(), kind=kind, **options)
    assert_close(among, between, 1e-12)
    np.testing.assert_array_equal(among, among.T)


@BOTH_KINDS
def test_diagonal_equals_that_of_the_matrix(case, kind):
    X, _, options = case
    options = {"depth": 3, "patch_size": 3, "padding": "valid", "bias": 0.0, **options}
    kernel = make_kernel(kind, X.shape[1:], **{**options, "depth": options["depth"]})
    transform = torch.from_numpy(some_transform(X, options))
    block = kernel.prepare_block(torch.from_numpy(X), transform)
    expected = kernel.value(block, block).diagonal()
    assert_close(kernel.diagonal(block).numpy(), expected.numpy(), 1e-12)


@BOTH_KINDS
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_kernel_is_positive_semi_definite(kind, padding, rng, tiles):
    X = rng.normal(size=(20, 6, 6, 2))
    X[10:] = X[:10] + 1e-6 * rng.normal(size=(10, 6, 6, 2))
    matrix = convolutional_kernel(X, kind=kind, padding=padding, bias=0.1)
    eigenvalues = np.linalg.eigvalsh(matrix)
    assert eigenvalues[0] > -1e-10 * eigenvalues[-1]


def test_images_may_come_in_any_order(rng, tiles):
    X, order = rng.normal(size=(23, 6, 5, 2)), rng.permutation(23)
    matrix = convolutional_kernel(X)
    assert_close(convolutional_kernel(X[order]), matrix[order][:, order], 1e-13)


def test_a_copy_of_an_image_is_as_near_to_it_as_it_is_itself(rng, tiles):
    X = rng.normal(size=(9, 8, 8))
    X[5] = X[2]
    matrix = convolutional_kernel(X, depth=2)
    assert matrix[2, 5] == pytest.approx(matrix[2, 2], rel=1e-12)
    np.testing.assert_allclose(matrix[5, :], matrix[2, :], rtol=1e-12)


def test_opposite_images_have_kernel_zero_at_depth_one(rng, tiles):
    X = rng.normal(size=(4, 5, 5))
    matrix = convolutional_kernel(X, -X, depth=1)
    assert np.abs(np.diagonal(matrix)).max() < 1e-7 * matrix.max()


@BOTH_KINDS
def test_blank_patches_have_kernel_zero(kind, rng, tiles):
    X, Y = rng.normal(size=(3, 6, 6, 1)), rng.normal(size=(2, 6, 6, 1))
    X[0, :5], X[1, :, 2:], X[2], Y[0, 3:] = 0, 0, 0, 0
    matrix = convolutional_kernel(X, Y, kind=kind, depth=2)
    assert_close(matrix, kernel_by_hand(X, Y, kind=kind, depth=2), 1e-12)
    assert (matrix[2] == 0).all()
    assert np.isfinite(convolutional_kernel(X, kind=kind, depth=2)).all()


def test_kernel_of_blank_images_only_is_zero(tiles):
    assert (convolutional_kernel(np.zeros((3, 5, 5))) == 0).all()
    assert (patch_agop(np.zeros((3, 5, 5)), np.ones(3)) == 0).all()


@BOTH_KINDS
def test_transform_of_low_rank_hides_what_it_is_blind_to(kind, rng, tiles):
    X, Y = rng.normal(size=(3, 6, 6, 1)), rng.normal(size=(2, 6, 6, 1))
    seen = np.zeros((9, 9))
    seen[4, 4], seen[5, 5] = 1.0, 2.0  # two pixels of the middle row of a patch
    options = {"kind": kind, "patch_transform": seen, "depth": 2}
    matrix = convolutional_kernel(X, Y, **options)
    assert_close(matrix, kernel_by_hand(X, Y, **options), 1e-12)
    X_unseen = X.copy()
    X_unseen[:, [0, -1]] = 7.0
    assert_close(convolutional_kernel(X_unseen, Y, **options), matrix, 1e-12)


def test_transform_of_low_rank_takes_what_is_left_as_blank(rng, tiles):
    # All patches but those of the last image lie in the null space, up to rounding.
    direction = rng.normal(size=9)
    direction /= np.linalg.norm(direction)
    X = np.zeros((3, 3, 3))
    for image, coefficients in zip(X, rng.normal(size=(3, 9)), strict=True):
        image[...] = (coefficients - direction * (direction @ coefficients)).reshape(
            3, 3
        )
    X[2] += direction.reshape(3, 3)
    transform = np.outer(direction, direction)
    matrix = convolutional_kernel(X, patch_transform=transform, depth=1)
    assert np.abs(matrix[:2]).max() < 1e-15 * matrix[2, 2]
    agop = patch_agop(X, np.ones(3), patch_transform=transform, depth=1)
    assert np.isfinite(agop).all()
    off_direction = np.eye(9) - transform
    assert np.abs(off_direction @ agop).max() < 1e-12 * np.abs(agop).max()


@pytest.mark.parametrize("factor", [1e-3, 7.0, 1e5])
def test_scaling_images_or_transform_scales_the_kernel_without_bias(factor, rng, tiles):
    X, Y = rng.normal(size=(4, 6, 6, 2)), rng.normal(size=(3, 6, 6, 2))
    transform = some_transform(X, {})
    matrix = convolutional_kernel(X, Y, patch_transform=transform)
    scaled = convolutional_kernel(X, Y, patch_transform=factor * transform)
    assert_close(scaled, factor**2 * matrix, 1e-12)
    images = convolutional_kernel(factor * X, Y, patch_transform=transform)
    assert_close(images, factor * matrix, 1e-12)
    coef = rng.normal(size=4)
    agop = patch_agop(X, coef, Y, patch_transform=transform)
    scaled = patch_agop(X, coef, Y, patch_transform=factor * transform)
    assert_close(scaled, factor**4 * agop, 1e-12)


def test_rotating_patches_changes_nothing(rng, tiles):
    X, Y = rng.normal(size=(4, 6, 6)), rng.normal(size=(3, 6, 6))
    reflection = np.linalg.qr(rng.normal(size=(9, 1)), mode="complete")[0][:, :1]
    reflection = np.eye(9) - 2 * reflection @ reflection.T  # symmetric, orthogonal
    rotated = convolutional_kernel(X, Y, patch_transform=reflection, bias=0.3)
    assert_close(rotated, convolutional_kernel(X, Y, bias=0.3), 1e-12)


def test_identity_as_transform_changes_nothing(rng, tiles):
    X = rng.normal(size=(4, 6, 6, 2))
    given = convolutional_kernel(X, patch_transform=np.eye(18))
    assert_close(given, convolutional_kernel(X), 1e-13)


# -------------------------------------------------------------- window sums


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("patch_size", [1, 2, 3, 4, 5, 7, (2, 6), (9, 1)])
def test_window_sum_adds_up_what_a_patch_sees(padding, patch_size, rng):
    maps = torch.from_numpy(rng.normal(size=(8, 7, 2, 3)))
    (layer,) = convolution_layers((8, 7), patch_size, padding, 1)
    expected = window_sum_by_hand(maps[:, :, 1, 2], patch_size, padding, torch)
    torch.testing.assert_close(window_sum(maps, layer)[:, :, 1, 2], expected)


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("patch_size", [1, 2, 3, 4, 5, 7, (2, 6), (9, 1)])
def test_window_sum_adjoint_is_the_transpose(padding, patch_size, rng):
    (layer,) = convolution_layers((8, 7), patch_size, padding, 1)
    below = torch.from_numpy(rng.normal(size=(8, 7)))
    above = torch.from_numpy(rng.normal(size=layer.locations))
    up = window_sum(below[..., None], layer)[..., 0]
    down = window_sum_adjoint(above[..., None], layer)[..., 0]
    assert down.shape == below.shape
    torch.testing.assert_close((up * above).sum(), (down * below).sum())


# ---------------------------------------------------------------- gradients


@BOTH_KINDS
@BOTH_METRICS
def test_gradients_equal_automatic_differentiation(case, kind, metric, tiles, rng):
    X, Y, options = case
    options = {"kind": kind, **with_metric(metric, X, options)}
    dual_coef = rng.normal(size=(3, 2))
    gradients = gradients_by_pullback(X, dual_coef, Y, **options)
    expected = gradients_by_autograd(X, dual_coef, Y, **options)
    assert_close(gradients, expected, 1e-11)


@BOTH_KINDS
def test_gradients_equal_finite_differences(kind, rng, tiles):
    X, z = rng.normal(size=(3, 4, 5, 2)), rng.normal(size=(4, 5, 2))
    coef = rng.normal(size=(3, 1))
    options = {"kind": kind, "depth": 2, "bias": 0.3}
    options["patch_transform"] = some_transform(X, options)
    centres, patches = [patches_by_hand(x) for x in X], patches_by_hand(z)
    step = 1e-5

    def f(patches):
        values = [
            kernel_of_patches(centre, patches, channels=2, **options)
            for centre in centres
        ]
        return values @ coef[:, 0]

    numeric = np.zeros_like(patches)
    for index in np.ndindex(patches.shape):
        change = np.zeros_like(patches)
        change[index] = step
        numeric[index] = (f(patches + change) - f(patches - change)) / (2 * step)
    gradients = gradients_by_pullback(X, coef, z[None], **options)
    assert_close(gradients[0, 0], numeric, 1e-8)


@BOTH_KINDS
def test_gradients_at_blank_patches_are_zero(kind, rng, tiles):
    X, Y = rng.normal(size=(3, 6, 6, 1)), rng.normal(size=(2, 6, 6, 1))
    X[0, :4], Y[0, 2:], Y[1, :, :5] = 0, 0, 0
    coef = rng.normal(size=(3, 2))
    gradients = gradients_by_pullback(X, coef, Y, kind=kind, depth=2)
    blank = np.array([(patches_by_hand(z) == 0).all(-1) for z in Y])
    assert blank.any() and not blank.all()
    assert (gradients[:, blank] == 0).all()
    assert np.isfinite(gradients).all()


def test_gradient_at_a_centre_is_the_mean_of_those_around_it(rng, tiles):
    # The kernel has a kink where a patch meets itself; the symmetric value is taken.
    X, coef = rng.normal(size=(2, 4, 4, 1)), np.array([[1.0], [0.5]])
    away = 1e-5 * rng.normal(size=(1, 4, 4, 1))
    around = np.concatenate([X[:1] + away, X[:1] - away])
    gradients = gradients_by_pullback(X, coef, around, depth=2)
    at_centre = gradients_by_pullback(X, coef, X[:1], depth=2)
    assert_close(at_centre[:, 0], gradients.mean(axis=1), 1e-6)


@BOTH_KINDS
def test_gradients_near_a_centre_stay_bounded(kind, rng, tiles):
    X, coef = rng.normal(size=(3, 5, 5, 1)), rng.normal(size=(3, 1))
    typical = np.abs(gradients_by_pullback(X, coef, -X, kind=kind, depth=2)).max()
    for distance in (0, 1e-14, 1e-12, 1e-9, 1e-6, 1e-3):
        Y = X + distance * rng.normal(size=X.shape)
        gradients = gradients_by_pullback(X, coef, Y, kind=kind, depth=2)
        assert np.abs(gradients).max() < 20 * typical


@BOTH_KINDS
@BOTH_METRICS
@pytest.mark.usefixtures("compiled_tiles")
def test_compiled_pullback_equals_that_of_array_operations(case, kind, metric, rng):
    X, Y, options = case
    options = {"kind": kind, **with_metric(metric, X, options)}
    X = np.concatenate([X, rng.normal(size=(20, *X.shape[1:]))])  # several vectors
    X[1], X[4, :1], Y[0] = 0, 0, X[2]
    coef = rng.normal(size=(23, 2))
    built = gradients_by_pullback(X, coef, Y, **options)
    arrays = array_gradients(X, coef, Y, **options)
    assert_close(built, arrays, 1e-12)
    assert_close(agop_of_gradients(built), patch_agop(X, coef, Y, **options), 1e-11)


def array_gradients(X, coef, Y, **options):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SKCONVRFM_COMPILE", "0")
        return gradients_by_pullback(X, coef, Y, **options)


def test_pullback_of_several_outputs_is_that_of_each(rng):
    kernel = make_kernel("ntk", (6, 6, 1), 3, "valid", 2, 0.1)
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


@pytest.mark.parametrize("kind", ["ntk", "nngp"])
def test_float32_is_close_to_float64(case, kind, tiles):
    X, Y, options = case
    options = {"kind": kind, **options}
    for images in (Y, None):
        single = convolutional_kernel(X, images, dtype="float32", **options)
        assert single.dtype == np.float32
        assert_close(single, convolutional_kernel(X, images, **options), 1e-5)
    coef = np.ones((3, 2))
    single = patch_agop(X, coef, dtype="float32", **options)
    assert_close(single, patch_agop(X, coef, **options), 1e-4)

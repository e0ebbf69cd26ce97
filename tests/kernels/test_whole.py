"""Kernels of whole images or maps: values and gradients by brute force."""

import numpy as np
import pytest
import torch
from by_hand import assert_close

from skconvrfm.kernels import Gaussian, Laplace, Linear
from skconvrfm.learning.feature_sums import RadialReadout

BANDWIDTH = 3.0
PROFILES = {
    Gaussian: lambda squares, xp: xp.exp(-squares / (2 * BANDWIDTH**2)),
    Laplace: lambda squares, xp: xp.exp(-xp.sqrt(squares) / BANDWIDTH),
}
RADIAL = pytest.mark.parametrize("Kernel", PROFILES)


def rows_of(images):
    return torch.from_numpy(images.reshape(len(images), -1))


def bound(Kernel, **options):
    return Kernel(**options).bind((4, 5, 2))


@pytest.fixture
def images(rng):
    return rng.normal(size=(9, 4, 5, 2)), rng.normal(size=(6, 4, 5, 2))


@RADIAL
def test_value_of_distances_is_its_formula(Kernel, images):
    X, Y = images
    squares = ((X[:, None] - Y[None]) ** 2).sum((2, 3, 4))
    K = Kernel(BANDWIDTH)(X, Y)
    assert_close(K, PROFILES[Kernel](squares, np), 1e-13)


def test_linear_kernel_is_the_inner_product(images):
    X, Y = images
    assert_close(Linear()(X, Y), np.einsum("ihwc,jhwc->ij", X, Y), 1e-14)


@RADIAL
@pytest.mark.parametrize("n_outputs", [1, 3])
def test_gradients_equal_automatic_differentiation(Kernel, n_outputs, images, rng):
    centres, rows = map(rows_of, images)
    coef = torch.from_numpy(rng.normal(size=(9, n_outputs)))
    kernel = bound(Kernel, bandwidth=BANDWIDTH)
    gradients = RadialReadout(kernel, centres.numpy(), coef.numpy()).gradients(rows)

    def outputs(row):
        squares = ((centres - row) ** 2).sum(1)
        return PROFILES[Kernel](squares, torch) @ coef

    jacobian = torch.autograd.functional.jacobian
    expected = torch.stack([jacobian(outputs, row) for row in rows])
    assert_close(gradients.numpy(), expected.numpy(), 1e-9)


@RADIAL
def test_gradient_at_a_centre_leaves_its_own_term_out(Kernel, images, rng):
    centres, _ = map(rows_of, images)
    centres[4] = centres[0]
    coef = rng.normal(size=(9, 2))
    kernel = bound(Kernel, bandwidth=BANDWIDTH)
    others = [1, 2, 3, 5, 6, 7, 8]
    gradients, expected = (
        RadialReadout(kernel, centres.numpy()[some], coef[some]).gradients(centres[:1])
        for some in (slice(None), others)
    )
    assert_close(gradients.numpy(), expected.numpy(), 1e-12)


@RADIAL
@pytest.mark.parametrize("size", [1e-6, 1.0, 1e6])
def test_kernel_of_equal_rows_is_exactly_one(Kernel, size, rng):
    X = size * (5 + rng.normal(size=(30, 6, 6)))
    X[7] = X[3]
    for K in (Kernel()(X), Kernel()(X, X.copy())):
        assert (np.diagonal(K) == 1).all() and K[3, 7] == K[7, 3] == 1
    assert (Kernel()(np.ones((4, 5, 5))) == 1).all()
    assert (Kernel()(np.zeros((4, 5, 5))) == 1).all()


@RADIAL
def test_matrix_of_products_equals_value(Kernel, images):
    rows = rows_of(images[0])
    rows[2] = rows[7]
    kernel = bound(Kernel, bandwidth=BANDWIDTH)
    products = (rows @ rows.T).numpy().copy()
    matrix = kernel.matrix_of(products)
    assert matrix is products
    assert_close(matrix, kernel.value(rows, rows).numpy(), 1e-14)
    assert (np.diagonal(matrix) == 1).all() and matrix[2, 7] == 1


@pytest.mark.parametrize("Kernel", [Gaussian, Laplace, Linear])
def test_patch_transform_is_refused(Kernel, images):
    name = Kernel.__name__
    with pytest.raises(ValueError, match=f"patch_transform does not apply to {name}"):
        Kernel()(images[0], patch_transform=np.eye(18))

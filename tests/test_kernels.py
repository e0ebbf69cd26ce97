"""The kernel and its patch AGOP as functions of arrays."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import load_digits
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Kernel
from sklearn.svm import SVC

from skconvrfm.kernels import convolutional_kernel, patch_agop


@pytest.fixture
def images(rng):
    return rng.normal(size=(6, 5, 4, 2))


@pytest.fixture
def coef(rng):
    return rng.normal(size=6)


@pytest.mark.parametrize("kind", ["ntk", "nngp"])
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_the_kernel_has_a_row_for_each_image(images, kind, padding):
    options = {"kind": kind, "padding": padding, "depth": 2}
    K = convolutional_kernel(images, images[:2], **options)
    assert K.shape == (6, 2)
    square = convolutional_kernel(images, **options)
    assert_array_equal(square, square.T)
    assert_allclose(square[2:, :2], K[2:], rtol=1e-12)
    assert np.linalg.eigvalsh(square)[0] > 0


def test_the_agop_is_a_positive_semi_definite_matrix_of_patches(images, coef):
    G = patch_agop(images, coef, patch_size=(2, 3))
    assert G.shape == (12, 12) and G.dtype == np.float64
    assert_array_equal(G, G.T)
    eigenvalues = np.linalg.eigvalsh(G)
    assert eigenvalues[0] > -1e-12 * eigenvalues[-1]


def test_the_agop_adds_up_outputs(images, coef, rng):
    other = rng.normal(size=6)
    both = patch_agop(images, np.stack([coef, other], axis=1))
    assert_allclose(both, patch_agop(images, coef) + patch_agop(images, other))


def test_images_without_channels_have_one(rng):
    X = rng.normal(size=(4, 5, 5))
    assert_array_equal(convolutional_kernel(X), convolutional_kernel(X[..., None]))
    coef = np.ones(4)
    assert_array_equal(patch_agop(X, coef), patch_agop(X[..., None], coef))


def test_a_kernel_without_bias_is_homogeneous(images):
    K = convolutional_kernel(images, images)
    assert_allclose(convolutional_kernel(3 * images, images), 3 * K)


def test_the_identity_is_no_transform(images, coef):
    plain = convolutional_kernel(images, images)
    options = {"patch_transform": np.eye(18)}
    assert_allclose(convolutional_kernel(images, images, **options), plain)
    assert_allclose(patch_agop(images, coef, **options), patch_agop(images, coef))


# Weights


def test_weights_of_the_agop_are_repeated_images(images, coef):
    weights = np.array([1, 0, 2, 0, 3, 1])
    weighted = patch_agop(images, coef, sample_weight=weights)
    repeated = patch_agop(images, coef, images[np.repeat(np.arange(6), weights)])
    assert_allclose(weighted, repeated, rtol=1e-10, atol=1e-12)


def test_only_the_ratios_of_weights_count(images, coef):
    small = patch_agop(images, coef, images[:3], sample_weight=np.full(3, 1e-3))
    assert_allclose(small, patch_agop(images, coef, images[:3]), rtol=1e-10, atol=1e-14)


# In scikit-learn


@pytest.fixture
def digits():
    X, y = load_digits(n_class=3, return_X_y=True)
    X = X.reshape(-1, 8, 8) / 16
    return X[:60], y[:60], X[60:120], y[60:120]


def test_a_support_vector_machine_takes_the_kernel(digits):
    X, y, X_test, y_test = digits
    machine = SVC(kernel="precomputed").fit(convolutional_kernel(X), y)
    assert machine.score(convolutional_kernel(X_test, X), y_test) > 0.9


class ConvolutionalGaussianKernel(Kernel):
    """The kernel of images as one of rows, for Gaussian processes."""

    def __init__(self, image_shape):
        self.image_shape = image_shape

    def __call__(self, X, Y=None, eval_gradient=False):
        images = [
            None if rows is None else rows.reshape(-1, *self.image_shape)
            for rows in (X, Y)
        ]
        K = convolutional_kernel(*images, depth=1)
        return (K, np.empty((*K.shape, 0))) if eval_gradient else K

    def diag(self, X):
        return np.array([self(row[None])[0, 0] for row in X])

    def is_stationary(self):
        return False


def test_a_gaussian_process_takes_the_kernel(digits):
    X, y, X_test, y_test = digits
    process = GaussianProcessRegressor(
        ConvolutionalGaussianKernel((8, 8)), alpha=1e-2, optimizer=None
    )
    process.fit(X.reshape(60, -1), y)
    mean, deviation = process.predict(X_test.reshape(60, -1), return_std=True)
    assert np.abs(mean - y_test).mean() < 0.4
    assert (deviation > 0).all()


# Arrays of every kind


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("float64", "float64"),
        ("float32", "float32"),
        ("uint8", "float32"),
        ("bool", "float32"),
        ("int64", "float64"),
    ],
)
def test_the_precision_is_the_smallest_that_holds_the_images(images, given, expected):
    X = (10 * np.abs(images)).astype(given)
    exact = convolutional_kernel(X.astype("float64"))
    K = convolutional_kernel(X)
    assert K.dtype == expected
    assert_allclose(K, exact, rtol=1e-4 if expected == "float32" else 1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_precision_is_the_one_asked_for(images, dtype):
    assert convolutional_kernel(images, dtype=dtype).dtype == dtype
    assert patch_agop(images, np.ones(6), dtype=dtype).dtype == np.float64


def test_the_wider_of_two_arrays_decides(images):
    narrow = images.astype("float32")
    assert convolutional_kernel(narrow, images).dtype == np.float64
    assert convolutional_kernel(images, narrow).dtype == np.float64


def test_the_agop_in_single_precision_is_close(images, coef):
    exact = patch_agop(images, coef)
    single = patch_agop(images, coef, dtype="float32")
    assert_allclose(single, exact, rtol=0, atol=1e-4 * np.abs(exact).max())


def read_only(X):
    X = X.copy()
    X.flags.writeable = False
    return X


@pytest.mark.parametrize(
    "change",
    [
        read_only,
        lambda X: X.astype(">f8"),
        lambda X: X[:, ::-1].copy()[:, ::-1],
        lambda X: X[::-1, :, :, ::-1].copy()[::-1, :, :, ::-1],
        np.asfortranarray,
        lambda X: X.tolist(),
        torch.from_numpy,
        lambda X: torch.from_numpy(X).requires_grad_(),
    ],
    ids=["locked", "big-endian", "flipped", "reversed", "F", "list", "tensor", "grad"],
)
def test_the_layout_in_memory_does_not_matter(images, coef, change):
    K, G = convolutional_kernel(images), patch_agop(images, coef)
    changed = change(images)
    assert_allclose(convolutional_kernel(changed), K, rtol=1e-13)
    scale = np.abs(G).max()
    assert_allclose(patch_agop(changed, coef), G, rtol=0, atol=1e-13 * scale)


def test_a_memory_map_is_read(images, tmp_path):
    np.save(tmp_path / "X.npy", images)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    assert_array_equal(convolutional_kernel(mapped), convolutional_kernel(images))


# Errors


def test_flat_rows_are_refused():
    with pytest.raises(ValueError, match=r"X has shape \(3, 16\).*reshape"):
        convolutional_kernel(np.zeros((3, 16)))


def test_images_of_different_shapes_are_refused(images):
    with pytest.raises(ValueError, match=r"\(5, 4, 2\).*\(4, 4, 2\)"):
        convolutional_kernel(images, images[:, :4])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(images, coef, bad):
    broken = images.copy()
    broken[0, 0, 0, 0] = bad
    for arguments in ((broken,), (images, broken)):
        with pytest.raises(ValueError, match="[XY] contains"):
            convolutional_kernel(*arguments)
    with pytest.raises(ValueError, match="dual_coef contains"):
        patch_agop(images, np.where(np.arange(6) == 2, bad, coef))
    with pytest.raises(ValueError, match="patch_transform contains"):
        convolutional_kernel(images, patch_transform=np.full((18, 18), bad))


def test_a_transform_of_another_size_is_refused(images, coef):
    with pytest.raises(ValueError, match=r"patch_transform.*\(9, 9\).*\(18, 18\)"):
        convolutional_kernel(images, patch_transform=np.eye(9))
    with pytest.raises(ValueError, match=r"patch_transform.*\(9, 9\).*\(18, 18\)"):
        patch_agop(images, coef, patch_transform=np.eye(9))


@pytest.mark.parametrize("shape", [(5,), (7, 2), (1, 6)])
def test_coefficients_that_are_not_one_for_each_image_are_refused(images, shape):
    with pytest.raises(ValueError, match="dual_coef has shape.*6 images in X"):
        patch_agop(images, np.ones(shape))


def test_weights_that_cannot_be_averaged_with_are_refused(images, coef):
    with pytest.raises(ValueError, match="sample_weight is all zero.*positive"):
        patch_agop(images, coef, sample_weight=np.zeros(6))
    with pytest.raises(ValueError, match="(?i)negative.*sample_weight"):
        patch_agop(images, coef, sample_weight=-np.ones(6))
    with pytest.raises(ValueError, match="sample_weight.shape"):
        patch_agop(images, coef, images[:3], sample_weight=np.ones(6))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kind", "rbf"),
        ("depth", 0),
        ("patch_size", 0),
        ("padding", "full"),
        ("bias", -1),
        ("dtype", "float16"),
        ("n_jobs", "many"),
    ],
)
def test_unknown_options_are_refused(images, coef, name, value):
    with pytest.raises(ValueError, match=f"'{name}' parameter.*Got {value!r}"):
        convolutional_kernel(images, **{name: value})
    with pytest.raises(ValueError, match=f"'{name}' parameter.*Got {value!r}"):
        patch_agop(images, coef, **{name: value})


def test_an_unknown_device_is_refused(images):
    with pytest.raises(ValueError, match="device='tpu'.*'cpu' or 'cuda'"):
        convolutional_kernel(images, device="tpu")


def test_tensors_elsewhere_are_refused():
    with pytest.raises(TypeError, match=r"Y is a tensor on meta.*Y\.cpu\(\)"):
        convolutional_kernel(np.zeros((2, 4, 4)), torch.zeros((2, 4, 4), device="meta"))


@pytest.mark.parametrize(("dtype", "factor"), [("float32", 1e30), ("float64", 1e200)])
def test_values_too_large_to_square_are_refused(images, coef, dtype, factor):
    large = images.astype(dtype) * np.asarray(factor, dtype)
    with pytest.raises(ValueError, match=f"kernel overflows {dtype}: X has values up"):
        convolutional_kernel(large, dtype=dtype)
    with pytest.raises(ValueError, match=f"kernel overflows {dtype}: X has values up"):
        convolutional_kernel(images.astype(dtype), large, dtype=dtype)
    with pytest.raises(ValueError, match=f"AGOP overflows {dtype}: X has values up"):
        patch_agop(large, coef, dtype=dtype)


@pytest.mark.parametrize("shape", [(3, 0, 4), (3, 4, 0), (3, 4, 4, 0)])
def test_images_without_pixels_are_refused(shape):
    with pytest.raises(ValueError, match=r"X has shape \(3, .* no pixels"):
        convolutional_kernel(np.zeros(shape))


def test_no_images_are_refused(images):
    with pytest.raises(ValueError, match=r"0 sample\(s\)"):
        convolutional_kernel(images, images[:0])

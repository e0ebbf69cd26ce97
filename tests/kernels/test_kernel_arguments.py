"""Arrays, precisions and devices that a kernel and its patch AGOP take or refuse."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import load_digits
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import Kernel
from sklearn.svm import SVC

from skconvrfm.kernels import ConvNTK, PatchGaussian, patch_agop

KERNEL = ConvNTK(depth=2, bias=0)


@pytest.fixture
def images(rng):
    return rng.normal(size=(6, 5, 4, 2))


@pytest.fixture
def coef(rng):
    return rng.normal(size=6)


def test_images_without_channels_have_one(rng):
    X, coef = rng.normal(size=(4, 5, 5)), np.ones(4)
    assert_array_equal(KERNEL(X), KERNEL(X[..., None]))
    assert_array_equal(
        patch_agop(KERNEL, X, coef), patch_agop(KERNEL, X[..., None], coef)
    )
    assert_array_equal(
        patch_agop(KERNEL, X.reshape(4, 25), coef), patch_agop(KERNEL, X, coef)
    )


def test_support_vector_machine_of_the_kernel_is_accurate():
    X, y = load_digits(n_class=3, return_X_y=True)
    machine = SVC(kernel=ConvNTK(bias=0)).fit(X[:60] / 16, y[:60])
    assert machine.score(X[60:120] / 16, y[60:120]) > 0.9


class ConvolutionalGaussianKernel(Kernel):
    """A kernel of images as one of rows, for Gaussian processes."""

    def __init__(self, depth=1):
        self.depth = depth

    def __call__(self, X, Y=None, eval_gradient=False):
        K = ConvNTK(self.depth, bias=0)(X, Y)
        return (K, np.empty((*K.shape, 0))) if eval_gradient else K

    def diag(self, X):
        return np.array([self(row[None])[0, 0] for row in X])

    def is_stationary(self):
        return False


def test_gaussian_process_takes_the_kernel():
    X, y = load_digits(n_class=3, return_X_y=True)
    process = GaussianProcessRegressor(
        ConvolutionalGaussianKernel(), alpha=1e-2, optimizer=None
    ).fit(X[:60] / 16, y[:60])
    mean, deviation = process.predict(X[60:120] / 16, return_std=True)
    assert np.abs(mean - y[60:120]).mean() < 0.4
    assert (deviation > 0).all()


# ------------------------------------------------------------------- arrays


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
def test_precision_is_the_smallest_that_holds_the_images(images, given, expected):
    X = (10 * np.abs(images)).astype(given)
    K = KERNEL(X)
    assert K.dtype == expected
    tolerance = 1e-4 if expected == "float32" else 1e-12
    assert_allclose(K, KERNEL(X.astype("float64")), rtol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_precision_is_the_one_asked_for(images, dtype):
    assert KERNEL(images, dtype=dtype).dtype == dtype
    assert patch_agop(KERNEL, images, np.ones(6), dtype=dtype).dtype == np.float64


def test_precision_is_that_of_the_wider_array(images):
    narrow = images.astype("float32")
    assert KERNEL(narrow, images).dtype == np.float64
    assert KERNEL(images, narrow).dtype == np.float64


def read_only(X):
    X = X.copy()
    X.flags.writeable = False
    return X


def memory_mapped(X, folder):
    np.save(folder / "X.npy", X)
    return np.load(folder / "X.npy", mmap_mode="r")


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
        memory_mapped,
    ],
    ids=[
        "locked",
        "big-endian",
        "flipped",
        "reversed",
        "F",
        "list",
        "tensor",
        "grad",
        "mapped",
    ],
)
def test_layout_in_memory_does_not_matter(images, coef, change, tmp_path):
    K, G = KERNEL(images), patch_agop(KERNEL, images, coef)
    changed = change(images, tmp_path) if change is memory_mapped else change(images)
    assert_allclose(KERNEL(changed), K, rtol=1e-13)
    scale = np.abs(G).max()
    result = patch_agop(KERNEL, changed, coef)
    assert_allclose(result, G, rtol=0, atol=1e-13 * scale)


# ------------------------------------------------------------------- errors


def test_flat_rows_that_are_not_square_are_refused():
    with pytest.raises(ValueError, match=r"X has shape \(3, 20\).*reshape"):
        KERNEL(np.zeros((3, 20)))


def test_images_of_different_shapes_are_refused(images):
    with pytest.raises(ValueError, match=r"\(5, 4, 2\).*\(4, 4, 2\)"):
        KERNEL(images, images[:, :4])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(images, coef, bad):
    broken = images.copy()
    broken[0, 0, 0, 0] = bad
    for arguments in ((broken,), (images, broken)):
        with pytest.raises(ValueError, match="[XY] contains"):
            KERNEL(*arguments)
    with pytest.raises(ValueError, match="dual_coef contains"):
        patch_agop(KERNEL, images, np.where(np.arange(6) == 2, bad, coef))
    with pytest.raises(ValueError, match="patch_transform contains"):
        KERNEL(images, patch_transform=np.full((18, 18), bad))


def test_transform_of_another_size_is_refused(images, coef):
    for kernel in (KERNEL, PatchGaussian()):
        with pytest.raises(ValueError, match=r"patch_transform.*\(9, 9\).*\(18, 18\)"):
            kernel(images, patch_transform=np.eye(9))
        with pytest.raises(ValueError, match=r"patch_transform.*\(9, 9\).*\(18, 18\)"):
            patch_agop(kernel, images, coef, patch_transform=np.eye(9))


@pytest.mark.parametrize("shape", [(5,), (7, 2), (1, 6), (6, 2, 2)])
def test_coefficients_that_are_not_one_for_each_image_are_refused(images, shape):
    with pytest.raises(ValueError, match="dual_coef has shape.*6 images in X"):
        patch_agop(KERNEL, images, np.ones(shape))


def test_weights_that_cannot_be_averaged_with_are_refused(images, coef):
    with pytest.raises(ValueError, match="sample_weight is all zero.*positive"):
        patch_agop(KERNEL, images, coef, sample_weight=np.zeros(6))
    with pytest.raises(ValueError, match="(?i)negative.*sample_weight"):
        patch_agop(KERNEL, images, coef, sample_weight=-np.ones(6))
    with pytest.raises(ValueError, match="sample_weight.shape"):
        patch_agop(KERNEL, images, coef, images[:3], sample_weight=np.ones(6))


@pytest.mark.parametrize(
    ("name", "value"), [("dtype", "float16"), ("n_jobs", "many"), ("kernel", "ntk")]
)
def test_unknown_options_of_the_agop_are_refused(images, coef, name, value):
    arguments = {"kernel": KERNEL, "X": images, "dual_coef": coef, name: value}
    with pytest.raises(ValueError, match=f"'{name}' parameter.*Got {value!r}"):
        patch_agop(**arguments)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("device", "tpu", "device='tpu'.*'cpu' or 'cuda'"),
        ("dtype", "float16", "dtype='float16'.*'float32' or 'float64'"),
    ],
)
def test_unknown_options_of_a_kernel_are_refused(images, name, value, message):
    with pytest.raises(ValueError, match=message):
        KERNEL(images, **{name: value})


def test_tensors_elsewhere_are_refused():
    with pytest.raises(TypeError, match=r"Y is a tensor on meta.*Y\.cpu\(\)"):
        KERNEL(np.zeros((2, 4, 4)), torch.zeros((2, 4, 4), device="meta"))


@pytest.mark.parametrize("kernel", [KERNEL, PatchGaussian(1.0)], ids=str)
@pytest.mark.parametrize(("dtype", "factor"), [("float32", 1e30), ("float64", 1e200)])
def test_values_too_large_to_square_are_refused(kernel, images, dtype, factor):
    large = images.astype(dtype) * np.asarray(factor, dtype)
    with pytest.raises(ValueError, match=f"kernel overflows {dtype}: X has values up"):
        kernel(large, dtype=dtype)
    with pytest.raises(ValueError, match=f"kernel overflows {dtype}: X has values up"):
        kernel(images.astype(dtype), large, dtype=dtype)
    if kernel is KERNEL:
        with pytest.raises(ValueError, match=f"AGOP overflows {dtype}: X has values"):
            patch_agop(kernel, large, np.ones(6), dtype=dtype)


@pytest.mark.parametrize("shape", [(3, 0, 4), (3, 4, 0), (3, 4, 4, 0)])
def test_images_without_pixels_are_refused(shape):
    with pytest.raises(ValueError, match=r"X has shape \(3, .* no pixels"):
        KERNEL(np.zeros(shape))


def test_no_images_are_refused(images):
    with pytest.raises(ValueError, match=r"0 sample\(s\)"):
        KERNEL(images, images[:0])

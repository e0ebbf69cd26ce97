"""Arrays, precisions and devices that a kernel and its patch AGOP take or refuse."""

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal

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


# ------------------------------------------------------------------- arrays


PRECISIONS = {
    **{"float64": "float64", "float32": "float32", "uint8": "float32"},
    **{"bool": "float32", "int64": "float64"},
}


@pytest.mark.parametrize("given", PRECISIONS)
def test_precision_is_the_smallest_that_holds_the_images(images, given):
    expected, X = PRECISIONS[given], (10 * np.abs(images)).astype(given)
    K = KERNEL(X)
    assert K.dtype == expected
    tolerance = 1e-4 if expected == "float32" else 1e-12
    assert_allclose(K, KERNEL(X.astype("float64")), rtol=tolerance)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_precision_is_the_one_asked_for_or_that_of_the_wider_array(images, dtype):
    assert KERNEL(images, dtype=dtype).dtype == dtype
    assert patch_agop(KERNEL, images, np.ones(6), dtype=dtype).dtype == np.float64
    for pair in ((images.astype(dtype), images), (images, images.astype(dtype))):
        assert KERNEL(*pair).dtype == np.float64


def read_only(X):
    X = X.copy()
    X.flags.writeable = False
    return X


def memory_mapped(X, folder):
    np.save(folder / "X.npy", X)
    return np.load(folder / "X.npy", mmap_mode="r")


LAYOUTS = {
    "locked": read_only,
    "big-endian": lambda X: X.astype(">f8"),
    "flipped": lambda X: X[:, ::-1].copy()[:, ::-1],
    "reversed": lambda X: X[::-1, :, :, ::-1].copy()[::-1, :, :, ::-1],
    "F": np.asfortranarray,
    "list": lambda X: X.tolist(),
    "tensor": torch.from_numpy,
    "grad": lambda X: torch.from_numpy(X).requires_grad_(),
}


@pytest.mark.parametrize("layout", [*LAYOUTS, "mapped"])
def test_layout_in_memory_does_not_matter(images, coef, layout, tmp_path):
    K, G = KERNEL(images), patch_agop(KERNEL, images, coef)
    if layout == "mapped":
        changed = memory_mapped(images, tmp_path)
    else:
        changed = LAYOUTS[layout](images)
    assert_allclose(KERNEL(changed), K, rtol=1e-13)
    result = patch_agop(KERNEL, changed, coef)
    assert_allclose(result, G, rtol=0, atol=1e-13 * np.abs(G).max())


# ------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((3, 20), r"X has shape \(3, 20\).*reshape"),
        ((3, 0, 4), r"X has shape \(3, .* no pixels"),
        ((3, 4, 0), r"X has shape \(3, .* no pixels"),
        ((3, 4, 4, 0), r"X has shape \(3, .* no pixels"),
    ],
)
def test_arrays_that_are_no_images_are_refused(shape, message):
    with pytest.raises(ValueError, match=message):
        KERNEL(np.zeros(shape))


def test_images_of_different_shapes_none_and_tensors_elsewhere_are_refused(images):
    with pytest.raises(ValueError, match=r"\(5, 4, 2\).*\(4, 4, 2\)"):
        KERNEL(images, images[:, :4])
    with pytest.raises(ValueError, match=r"0 sample\(s\)"):
        KERNEL(images, images[:0])
    with pytest.raises(TypeError, match=r"Y is a tensor on meta.*Y\.cpu\(\)"):
        KERNEL(images, torch.zeros(images.shape, device="meta"))


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


def test_unknown_options_are_refused(images, coef):
    for name, value in (("dtype", "float16"), ("n_jobs", "many"), ("kernel", "ntk")):
        arguments = {"kernel": KERNEL, "X": images, "dual_coef": coef, name: value}
        with pytest.raises(ValueError, match=f"'{name}' parameter.*Got {value!r}"):
            patch_agop(**arguments)
    with pytest.raises(ValueError, match="device='tpu'.*'cpu' or 'cuda'"):
        KERNEL(images, device="tpu")
    with pytest.raises(ValueError, match="dtype='float16'.*'float32' or 'float64'"):
        KERNEL(images, dtype="float16")


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

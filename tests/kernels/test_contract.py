"""Promises of every kernel object: scikit-learn, symmetry, positive definiteness."""

import pickle

import numpy as np
import pytest
from by_hand import assert_close
from sklearn.base import clone
from sklearn.svm import SVC

from skconvrfm import ConvRFMRegressor
from skconvrfm.kernels import (
    ConvNNGP,
    ConvNTK,
    Gaussian,
    Laplace,
    Linear,
    PatchGaussian,
    PatchLaplace,
    patch_agop,
)
from skconvrfm.kernels.base import PatchKernel

KERNELS = [
    ConvNTK(),
    ConvNTK(depth=2, padding="same", bias=0.0, metric="whiten"),
    ConvNTK(depth=2, pool_grid=(1, 2)),
    ConvNTK(depth=2, metric="auto", mirror=True),
    ConvNNGP(depth=2, patch_size=(2, 3)),
    ConvNNGP(depth=1, pool_grid=2),
    PatchGaussian(),
    PatchGaussian(bandwidth=2.5, pool_grid=2),
    PatchLaplace(patch_size=2, padding="same"),
    PatchLaplace(patch_size=2, padding="same", mirror=True),
    Gaussian(),
    Gaussian(bandwidth=4.0),
    Laplace(),
    Linear(),
]
ALL_KERNELS = pytest.mark.parametrize("kernel", KERNELS, ids=str)
# A value that is not allowed, by parameter.
BAD = {
    "depth": [0, 1.5, "deep"],
    "patch_size": [0, "3", (3, 3, 3), (3, 0), 2.5],
    "padding": ["full", 1],
    "bias": [-0.1, "none", np.inf],
    "metric": ["euclidean", None],
    "mirror": ["horizontal", 2],
    "pool_grid": [0, (2, 2, 2), (0, 1), (2.0, 1), [], 1.5, "global"],
    "bandwidth": [0.0, -1, "median", None],
    "scale": [0.0, -1, "raw", None],
}


@pytest.fixture
def images(rng):
    return rng.normal(size=(12, 6, 6))


@ALL_KERNELS
def test_clone_and_set_params_keep_hyperparameters(kernel):
    copied = clone(kernel)
    assert copied is not kernel and copied.get_params() == kernel.get_params()
    default = type(kernel)()
    assert default.set_params(**kernel.get_params()) is default
    assert default.get_params() == kernel.get_params()
    with pytest.raises(ValueError, match="Invalid parameter 'gamma'"):
        default.set_params(gamma=1)


@ALL_KERNELS
def test_repr_makes_the_same_kernel(kernel):
    made = eval(repr(kernel))
    assert type(made) is type(kernel) and made.get_params() == kernel.get_params()
    assert repr(type(kernel)()) == f"{type(kernel).__name__}()"


@ALL_KERNELS
def test_bind_leaves_the_kernel_as_it_is(kernel):
    before = dict(vars(kernel))
    bound = kernel.bind((6, 6, 1))
    assert vars(kernel) == before and bound.image_shape_ == (6, 6, 1)
    assert bound.get_params() == kernel.get_params()
    again = pickle.loads(pickle.dumps(bound))
    assert again.image_shape_ == (6, 6, 1) and again.get_params() == bound.get_params()


@ALL_KERNELS
def test_matrix_is_symmetric_and_positive_semi_definite(kernel, images):
    K = kernel(images)
    assert K.shape == (12, 12)
    np.testing.assert_array_equal(K, K.T)
    eigenvalues = np.linalg.eigvalsh(K)
    assert eigenvalues[0] > -1e-12 * eigenvalues[-1]
    assert_close(kernel(images, images.copy()), K, 1e-12)
    assert_close(kernel(images[3:5], images), K[3:5], 1e-12)
    # Images may be flat rows, or have channels.
    np.testing.assert_array_equal(kernel(images.reshape(12, 36)), K)
    np.testing.assert_array_equal(kernel(images[..., None]), K)
    single = kernel(images, images[:4], dtype="float32")
    assert single.dtype == np.float32
    assert_close(single, kernel(images, images[:4]), 1e-5)


@pytest.mark.parametrize(
    ("kernel", "name", "value"),
    [
        (type(kernel), name, value)
        for kernel in {type(k): k for k in KERNELS}.values()
        for name in kernel.get_params()
        for value in BAD[name]
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_error_of_a_bad_parameter_names_it(kernel, name, value, images):
    bad = kernel(**{name: value})  # the constructor accepts anything
    with pytest.raises(ValueError, match=f"'?{name}(' parameter|=).*") as raised:
        bad.bind((6, 6, 1))
    assert str(value) in str(raised.value)
    with pytest.raises(ValueError, match=name):
        bad(images)
    if isinstance(bad, PatchKernel):
        with pytest.raises(ValueError, match=name):
            patch_agop(bad, images, np.ones(12))


@ALL_KERNELS
def test_support_vector_machine_takes_the_object(kernel, images, rng):
    X = images.reshape(12, 36)
    y = (X[:, :18].sum(1) > 0).astype(int)
    new = rng.normal(size=(5, 36))
    machine = SVC(kernel=kernel).fit(X, y)
    precomputed = SVC(kernel="precomputed").fit(kernel(images), y)
    expected = precomputed.decision_function(kernel(new.reshape(5, 6, 6), images))
    scores = machine.decision_function(new)
    np.testing.assert_allclose(scores, expected, rtol=1e-8, atol=1e-10)
    # One row alone: a bandwidth is that of the support vectors' rows.
    alone = machine.decision_function(new[:1])
    np.testing.assert_allclose(alone, expected[:1], rtol=1e-8, atol=1e-10)


@ALL_KERNELS
def test_estimator_fits_and_predicts_with_it(kernel, images, rng):
    y, new = images[:, 2, 2] * images[:, 3, 3], rng.normal(size=(5, 6, 6))
    model = ConvRFMRegressor(kernel, n_rounds=1, alpha=1e-3).fit(images, y)
    before = kernel.get_params()
    assert model.kernel is kernel and kernel.get_params() == before
    assert type(model.kernel_) is type(kernel) and not hasattr(kernel, "image_shape_")
    assert np.isfinite(model.predict(new)).all()
    if isinstance(kernel, Linear):  # a machine of weights, not of rows
        return
    options = {}
    if isinstance(kernel, PatchKernel):
        options["patch_transform"] = model.patch_transform_
    expected = model.kernel_(new, images, **options) @ model.dual_coef_
    assert_close(model.predict(new), expected + model.intercept_, 1e-9)

"""Values near the limits of floating-point numbers."""

import numpy as np
import pytest
import torch

from skconvrfm import ConvRFMClassifier, ConvRFMRegressor, PatchAGOPTransformer
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import (
    ConvNTK,
    PatchGaussian,
    PatchLaplace,
    patch_agop,
)
from skconvrfm.learning.ridge import RidgePath

CPU = torch.device("cpu")
NTK = ConvNTK(bias=0.0)
NTK1 = ConvNTK(depth=1)
LAYER = ConvFeatures(16, patch_size=3)
MACHINES = {
    "kernel": {"kernel": NTK1, "n_rounds": 1},
    "linear": {"kernel": "linear", "features": LAYER, "n_rounds": 1},
    "gaussian": {"kernel": "gaussian", "features": LAYER, "n_rounds": 1},
}
PATCH_KERNELS = [PatchLaplace, PatchGaussian]

all_machines = pytest.mark.parametrize("machine", MACHINES)
patch_kernels = pytest.mark.parametrize("Kernel", PATCH_KERNELS)


@pytest.fixture
def images(rng):
    return rng.normal(size=(10, 4, 3, 2))


@pytest.fixture
def labels():
    return np.arange(10) % 2


@pytest.mark.parametrize("scale", [2.0**-100, 2.0**-60, 2.0**60, 2.0**100])
def test_float32_images_with_large_or_small_squares_use_float64(images, scale):
    images = images.astype("f4")
    K = NTK(images * np.float32(scale))
    assert K.dtype == np.float64
    expected = NTK(images.astype(float)) * scale**2
    np.testing.assert_array_equal(K, expected)


def test_float32_images_with_faint_pixels_stay_float32(images):
    images[:, 0] *= 1e-30
    assert NTK(images.astype("f4")).dtype == np.float32


@all_machines
@pytest.mark.parametrize("scale", [2.0**-100, 2.0**100])
def test_fit_of_float32_images_independent_of_scale(images, labels, machine, scale):
    biased = ["kernel"] if machine == "kernel" else ["features"]
    images = images.astype("f4")
    model = ConvRFMClassifier(**MACHINES[machine])
    model.set_params(**{f"{name}__bias": 0.0 for name in biased})
    if "features" in biased:
        model.set_params(features__threshold=0.0)
    expected = model.fit(images.astype(float), labels).decision_function(images)
    images = images * np.float32(scale)
    model.fit(images, labels)
    np.testing.assert_allclose(
        model.decision_function(images), expected, rtol=0, atol=1e-6
    )


def test_transformer_of_float32_images_at_small_scale(images, labels):
    images = images.astype("f4") * np.float32(2.0**-100)
    for output in ("filters", "eigen", "saliency", "image"):
        model = PatchAGOPTransformer(
            ConvRFMClassifier(ConvNTK(1, bias=0.0), n_rounds=1), output=output
        )
        features = model.fit(images, labels).transform(images)
        assert np.isfinite(features).all()
        assert np.abs(features).max() > 1e-32


def test_prediction_of_small_images_after_fit_to_huge_ones_is_finite(images, labels):
    model = ConvRFMClassifier(
        "linear", ConvFeatures(32, patch_size=3, metric="identity"), n_rounds=1
    )
    model.fit(images * 1e45, labels)
    whole = np.rint(100 * images).astype("i2")
    assert np.isfinite(model.predict_proba(whole)).all()


@pytest.mark.parametrize("scale", [2.0**-200, 2.0**200])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_agop_is_quadratic_in_coefficients(images, rng, scale, dtype):
    dual_coef = rng.normal(size=(10, 2))
    plain = patch_agop(NTK, images, dual_coef, dtype=dtype)
    scaled = patch_agop(NTK, images, dual_coef * scale, dtype=dtype)
    np.testing.assert_array_equal(scaled, plain * scale**2)


@patch_kernels
@pytest.mark.parametrize("n_outputs", [1, 40])
@pytest.mark.parametrize("exponent", [-40, 40])
def test_float32_agop_scales_with_bandwidth(images, rng, Kernel, n_outputs, exponent):
    images, factor = images.astype("f4"), 2.0**exponent
    dual_coef = rng.normal(size=(len(images), n_outputs))
    G = patch_agop(Kernel(2.0), images, dual_coef, dtype="float32")
    scaled = images * np.float32(factor)
    moved = patch_agop(Kernel(2.0 * factor), scaled, dual_coef, dtype="float32")
    np.testing.assert_allclose(moved, G / factor**2, rtol=1e-6)


@pytest.mark.parametrize("weight", [5e-324, 1e-300, 1e300])
def test_agop_independent_of_equal_weights(images, rng, weight):
    dual_coef = rng.normal(size=10)
    weighted = patch_agop(NTK, images, dual_coef, sample_weight=np.full(10, weight))
    np.testing.assert_allclose(weighted, patch_agop(NTK, images, dual_coef), rtol=1e-12)


@patch_kernels
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bandwidth", [1e-300, 1e-30])
def test_tiny_bandwidth_gives_identity(images, Kernel, dtype, bandwidth):
    kernel = Kernel(bandwidth)
    np.testing.assert_array_equal(kernel(images, dtype=dtype), np.eye(10))
    assert not patch_agop(kernel, images, np.ones(10), dtype=dtype).any()


@patch_kernels
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bandwidth", [1e30, 1e300])
def test_huge_bandwidth_gives_ones(images, Kernel, dtype, bandwidth):
    K = Kernel(bandwidth)(images, dtype=dtype)
    np.testing.assert_array_equal(K, np.ones((10, 10)))


def test_bandwidth_of_equal_images_scales_with_them(images):
    kernel = PatchLaplace(pool_grid=1, padding="same")
    images = np.repeat(images[:1], 3, axis=0)
    K = kernel(images)
    assert (K < 1).all()
    np.testing.assert_array_equal(kernel(images * 2.0**50), K)


@all_machines
@pytest.mark.parametrize(
    ("selection", "class_weight"), [("gcv", None), ("loo", "balanced")]
)
def test_weights_far_apart_give_finite_fit(
    images, labels, machine, selection, class_weight
):
    images[5:] = images[:5]  # copies with other labels
    model = ConvRFMClassifier(
        **MACHINES[machine], selection=selection, class_weight=class_weight
    )
    for low, high in ((5e-324, 1.0), (1e-300, 1e300), (1.0, 1e300)):
        weights = np.where(np.arange(10) < 6, high, low)
        model.fit(images, labels, sample_weight=weights)
        assert np.isfinite(model.predict_proba(images)).all()
        for values in model.history_.values():
            assert np.isfinite(values).all()


@all_machines
def test_fraction_of_agop_samples_with_huge_weights(images, labels, machine):
    model = ConvRFMRegressor(**MACHINES[machine], agop_samples=0.5)
    model.fit(images, labels, sample_weight=np.full(10, 1e300))
    assert np.isfinite(model.predict(images)).all()


@all_machines
def test_prediction_scales_with_targets(images, labels, machine):
    model = ConvRFMRegressor(**MACHINES[machine], dtype="float32")
    y = labels - 0.25
    plain = model.fit(images, y).predict(images)
    for scale in (2.0**-100, 2.0**100):
        scaled = model.fit(images, y * scale).predict(images)
        np.testing.assert_allclose(scaled, plain * scale, rtol=0, atol=1e-9 * scale)


def test_float32_fit_with_huge_weights(images, labels):
    model = ConvRFMRegressor(**MACHINES["linear"], dtype="float32")
    plain = model.fit(images, labels, np.full(10, 1e12)).predict(images)
    huge = model.fit(images, labels, np.full(10, 1e300)).predict(images)
    np.testing.assert_allclose(huge, plain, rtol=0, atol=1e-3)


@pytest.mark.parametrize("weight", [5e-324, 1e-200, 1e300])
def test_partial_fit_refuses_weights_beyond_range_of_sums(images, labels, weight):
    model = ConvRFMRegressor(**MACHINES["linear"])
    with pytest.raises(
        ValueError, match="sample_weight adds up to .*scale the weights"
    ):
        model.partial_fit(images, labels, np.full(10, weight))


@pytest.mark.parametrize("check", [ConvNTK(), PatchLaplace()], ids=str)
def test_images_with_overflowing_sum_are_checked_without_warning(check):
    X = np.resize(np.array([3e38, -3e38], "f4"), (2, 300, 2)).repeat(16, 1)
    X.sort(axis=1)
    assert np.isfinite(X).all()
    with pytest.raises(ValueError, match="kernel overflows float32"):
        check(X, dtype="float32")


def test_leave_one_out_with_vanishing_weight_is_finite(images):
    flat = images.reshape(len(images), -1)
    weights = np.ones(len(images))
    weights[0] = 1e-24
    for K in (np.ones((10, 10)), np.zeros((10, 10)), np.eye(10), flat @ flat.T):
        for n in (2, 10):
            path = RidgePath(
                K[:n, :n], flat[:n], weights[:n], np.logspace(-6, 2, 5), CPU
            )
            assert np.isfinite(path.loo_loss()).all()
            for alpha in path.alphas:
                assert np.isfinite(path.solve(alpha).loo_prediction).all()


def test_float32_agop_of_roots_near_zero_equals_float64():
    X = np.array([1e-41, 0, 1e-20, 2e-20, -1e-20, 3e-20], dtype="f4")[:, None, None]
    y = np.arange(6) % 2

    def agop(dtype):
        layer = ConvFeatures(6, patch_size=1, metric="identity")
        model = ConvRFMClassifier("linear", layer, n_rounds=0, dtype=dtype)
        for part in (slice(0, 2), slice(2, None)):
            model.partial_fit(X[part], y[part], classes=[0, 1])
        return model.patch_agop_

    np.testing.assert_allclose(agop("float32"), agop("float64"), rtol=1e-2)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_overflowing_features_are_refused(images, labels, dtype):
    images = images * 1e-30
    model = ConvRFMClassifier(**MACHINES["linear"], dtype=dtype)
    model.fit(images, labels)
    limit = float(np.finfo(dtype).max)
    words = rf"the features overflow {dtype}: X has values up to .*scale the images"
    with pytest.raises(ValueError, match=words):
        model.predict(images / np.abs(images).max() * (limit / 2))


@patch_kernels
@pytest.mark.parametrize(("dtype", "size"), [("float32", 1e27), ("float64", 1e200)])
def test_overflowing_distances_are_refused(images, Kernel, dtype, size):
    images[0] *= size
    words = rf"the kernel overflows {dtype}: X has values up to .*scale the images"
    with pytest.raises(ValueError, match=words):
        Kernel(size)(images, dtype=dtype)


@pytest.mark.parametrize("model", [ConvRFMClassifier, ConvRFMRegressor])
def test_partial_fit_can_begin_with_one_row(model):
    model = model("linear", ConvFeatures(4, patch_size=1), n_rounds=0)
    known = {"classes": [0, 1]} if hasattr(model, "predict_proba") else {}
    for X in (np.zeros((2, 1, 1)), np.ones((2, 1, 1))):
        model.partial_fit(X, [0, 1], sample_weight=[1, 0], **known)
        for name in ("gcv", "loo_loss", "loo_score"):
            assert np.isfinite(model.history_[name]).all()

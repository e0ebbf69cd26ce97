"""Values at the ends of what numbers can be: what random examples found wanting."""

import numpy as np
import pytest
import torch

from skconvrfm import ConvRFMClassifier, ConvRFMRegressor, PatchAGOPTransformer
from skconvrfm.core.ridge import RidgePath
from skconvrfm.kernels import convolutional_kernel, patch_agop, patch_kernel

CPU = torch.device("cpu")
SMALL = {"depth": 1, "n_rounds": 1}


@pytest.fixture
def images(rng):
    return rng.normal(size=(10, 4, 3, 2))


@pytest.fixture
def labels():
    return np.arange(10) % 2


@pytest.mark.parametrize("scale", [2.0**-100, 2.0**-60, 2.0**60, 2.0**100])
def test_float32_images_whose_squares_do_not_fit_are_computed_in_float64(images, scale):
    images = images.astype("f4")
    K = convolutional_kernel(images * np.float32(scale))
    assert K.dtype == np.float64
    expected = convolutional_kernel(images.astype(float)) * scale**2
    np.testing.assert_array_equal(K, expected)


def test_float32_images_with_faint_pixels_are_computed_in_float32(images):
    images[:, 0] *= 1e-30
    assert convolutional_kernel(images.astype("f4")).dtype == np.float32


@pytest.mark.parametrize("method", ["exact", "features"])
@pytest.mark.parametrize("scale", [2.0**-100, 2.0**100])
def test_float32_images_are_learned_from_at_any_scale(images, labels, method, scale):
    images = images.astype("f4")
    model = ConvRFMClassifier(method=method, bias=0.0, threshold=0.0, **SMALL)
    expected = model.fit(images.astype(float), labels).decision_function(images)
    images = images * np.float32(scale)
    model.fit(images, labels)
    np.testing.assert_allclose(
        model.decision_function(images), expected, rtol=0, atol=1e-6
    )


def test_features_of_float32_images_are_made_at_any_scale(images, labels):
    images = images.astype("f4") * np.float32(2.0**-100)
    for output in ("filters", "eigen", "saliency", "image"):
        model = PatchAGOPTransformer(output=output, bias=0.0, **SMALL)
        features = model.fit(images, labels).transform(images)
        assert np.isfinite(features).all()
        assert np.abs(features).max() > 1e-32


def test_small_images_are_predicted_by_what_large_ones_have_taught(images, labels):
    model = ConvRFMClassifier(method="features", initial_metric="identity", **SMALL)
    model.fit(images * 1e45, labels)
    whole = np.rint(100 * images).astype("i2")
    assert np.isfinite(model.predict_proba(whole)).all()


@pytest.mark.parametrize("scale", [2.0**-200, 2.0**200])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_an_agop_is_squared_as_its_coefficients_are_scaled(images, rng, scale, dtype):
    dual_coef = rng.normal(size=(10, 2))
    plain = patch_agop(images, dual_coef, dtype=dtype)
    scaled = patch_agop(images, dual_coef * scale, dtype=dtype)
    np.testing.assert_array_equal(scaled, plain * scale**2)


@pytest.mark.parametrize("kind", ["laplace", "gaussian"])
@pytest.mark.parametrize("n_outputs", [1, 40])
@pytest.mark.parametrize("exponent", [-40, 40])
def test_an_agop_in_float32_keeps_step_with_the_bandwidth(
    images, rng, kind, n_outputs, exponent
):
    images, factor = images.astype("f4"), 2.0**exponent
    dual_coef = rng.normal(size=(len(images), n_outputs))
    options = {"kind": kind, "dtype": "float32"}
    G = patch_agop(images, dual_coef, bandwidth=2.0, **options)
    scaled = images * np.float32(factor)
    moved = patch_agop(scaled, dual_coef, bandwidth=2.0 * factor, **options)
    np.testing.assert_allclose(moved, G / factor**2, rtol=1e-6)


@pytest.mark.parametrize("weight", [5e-324, 1e-300, 1e300])
def test_equal_weights_of_an_agop_do_not_matter(images, rng, weight):
    dual_coef = rng.normal(size=10)
    weighted = patch_agop(images, dual_coef, sample_weight=np.full(10, weight))
    np.testing.assert_allclose(weighted, patch_agop(images, dual_coef), rtol=1e-12)


@pytest.mark.parametrize("kind", ["laplace", "gaussian"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bandwidth", [1e-300, 1e-30])
def test_under_a_tiny_bandwidth_an_image_is_like_itself_alone(
    images, kind, dtype, bandwidth
):
    options = {"kind": kind, "dtype": dtype, "bandwidth": bandwidth}
    np.testing.assert_array_equal(patch_kernel(images, **options), np.eye(10))
    assert not patch_agop(images, np.ones(10), **options).any()


@pytest.mark.parametrize("kind", ["laplace", "gaussian"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("bandwidth", [1e30, 1e300])
def test_under_a_huge_bandwidth_all_images_are_alike(images, kind, dtype, bandwidth):
    K = patch_kernel(images, kind=kind, dtype=dtype, bandwidth=bandwidth)
    np.testing.assert_array_equal(K, np.ones((10, 10)))


def test_the_bandwidth_of_equal_images_keeps_step_with_them(images):
    options = {"pool_grid": 1, "padding": "same"}
    images = np.repeat(images[:1], 3, axis=0)
    K = patch_kernel(images, **options)
    assert (K < 1).all()
    np.testing.assert_array_equal(patch_kernel(images * 2.0**50, **options), K)


@pytest.mark.parametrize("method", ["exact", "features"])
@pytest.mark.parametrize("selection", ["gcv", "loo"])
@pytest.mark.parametrize("class_weight", [None, "balanced"])
def test_weights_far_apart_give_a_finite_machine(
    images, labels, method, selection, class_weight
):
    images[5:] = images[:5]  # copies with other labels
    model = ConvRFMClassifier(
        method=method, selection=selection, class_weight=class_weight, **SMALL
    )
    for low, high in ((5e-324, 1.0), (1e-300, 1e300), (1.0, 1e300)):
        weights = np.where(np.arange(10) < 6, high, low)
        model.fit(images, labels, sample_weight=weights)
        assert np.isfinite(model.predict_proba(images)).all()
        for values in model.history_.values():
            assert np.isfinite(values).all()


@pytest.mark.parametrize("method", ["exact", "features"])
def test_a_fraction_of_huge_weights_can_carry_an_agop(images, labels, method):
    model = ConvRFMRegressor(method=method, agop_samples=0.5, **SMALL)
    model.fit(images, labels, sample_weight=np.full(10, 1e300))
    assert np.isfinite(model.predict(images)).all()


@pytest.mark.parametrize("method", ["exact", "features"])
def test_small_targets_are_learned_as_large_ones(images, labels, method):
    model = ConvRFMRegressor(method=method, dtype="float32", **SMALL)
    y = labels - 0.25
    plain = model.fit(images, y).predict(images)
    for scale in (2.0**-100, 2.0**100):
        scaled = model.fit(images, y * scale).predict(images)
        np.testing.assert_allclose(scaled, plain * scale, rtol=0, atol=1e-9 * scale)


def test_huge_weights_are_averaged_in_float32(images, labels):
    model = ConvRFMRegressor(method="features", dtype="float32", **SMALL)
    plain = model.fit(images, labels, np.full(10, 1e12)).predict(images)
    huge = model.fit(images, labels, np.full(10, 1e300)).predict(images)
    np.testing.assert_allclose(huge, plain, rtol=0, atol=1e-3)


@pytest.mark.parametrize("weight", [5e-324, 1e-200, 1e300])
def test_weights_that_sums_would_lose_are_refused(images, labels, weight):
    model = ConvRFMRegressor(method="features", **SMALL)
    with pytest.raises(
        ValueError, match="sample_weight adds up to .*scale the weights"
    ):
        model.partial_fit(images, labels, np.full(10, weight))


@pytest.mark.parametrize("check", [convolutional_kernel, patch_kernel])
def test_images_whose_sum_is_infinity_less_infinity_are_checked_quietly(check):
    X = np.resize(np.array([3e38, -3e38], "f4"), (2, 300, 2)).repeat(16, 1)
    X.sort(axis=1)
    assert np.isfinite(X).all()
    with pytest.raises(ValueError, match="kernel overflows float32"):
        check(X, dtype="float32")


def test_left_out_residuals_of_vanishing_weights_are_finite(images):
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


def test_the_agop_of_steep_powers_is_that_of_float64():
    X = np.array([1e-41, 0, 1e-20, 2e-20, -1e-20, 3e-20], dtype="f4")[:, None, None]
    y = np.arange(6) % 2

    def agop(dtype):
        model = ConvRFMClassifier(
            method="features",
            filters="patches",
            initial_metric="identity",
            n_filters=6,
            patch_size=1,
            pool_power=0.1,
            n_rounds=0,
            dtype=dtype,
        )
        for part in (slice(0, 2), slice(2, None)):
            model.partial_fit(X[part], y[part], classes=[0, 1])
        return model.patch_agop_

    np.testing.assert_allclose(agop("float32"), agop("float64"), rtol=1e-2)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_features_that_overflow_are_refused(images, labels, dtype):
    images = images * 1e-30
    model = ConvRFMClassifier(method="features", dtype=dtype, **SMALL)
    model.fit(images, labels)
    limit = float(np.finfo(dtype).max)
    words = rf"the features overflow {dtype}: X has values up to .*scale the images"
    with pytest.raises(ValueError, match=words):
        model.predict(images / np.abs(images).max() * (limit / 2))


@pytest.mark.parametrize("kind", ["laplace", "gaussian"])
@pytest.mark.parametrize(("dtype", "size"), [("float32", 1e27), ("float64", 1e200)])
def test_distances_that_overflow_are_not_infinitely_far(images, kind, dtype, size):
    images[0] *= size
    words = rf"the kernel overflows {dtype}: X has values up to .*scale the images"
    with pytest.raises(ValueError, match=words):
        patch_kernel(images, kind=kind, dtype=dtype, bandwidth=size)


@pytest.mark.parametrize("model", [ConvRFMClassifier, ConvRFMRegressor])
def test_sums_can_begin_with_a_single_row(model):
    model = model(method="features", n_filters=4, patch_size=1, n_rounds=0)
    known = {"classes": [0, 1]} if hasattr(model, "predict_proba") else {}
    for X in (np.zeros((2, 1, 1)), np.ones((2, 1, 1))):
        model.partial_fit(X, [0, 1], sample_weight=[1, 0], **known)
        for name in ("gcv", "loo_loss", "loo_score"):
            assert np.isfinite(model.history_[name]).all()

"""Gradients by pixel equal finite differences; occlusion equals predictions anew."""

import functools

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from skconvrfm import ConvRFMClassifier, ConvRFMRegressor
from skconvrfm.explain import patch_occlusion, pixel_gradients
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import ConvNNGP, ConvNTK, PatchGaussian, PatchLaplace

SHAPE = (7, 6, 2)
SMALL = {"patch_size": 3, "pool_grid": None}
# Kernel, layers from the image up, landmarks.
MACHINES = {
    "ntk": (ConvNTK(depth=2), None),
    "nngp, pool, padding": (ConvNNGP(2, padding="same", pool_grid=2), None),
    "ntk, mirror": (ConvNTK(depth=2, mirror=True), None),
    "even patches, mirror": (
        ConvNTK(1, patch_size=2, padding="same", mirror=True),
        None,
    ),
    "patch gaussian": (PatchGaussian(metric="whiten"), None),
    "patch laplace, pool, mirror": (PatchLaplace(pool_grid=2, mirror=True), None),
    "gaussian": ("gaussian", None),
    "laplace": ("laplace", None),
    "linear": ("linear", None),
    "auto": ("gaussian", "auto"),
    "linear features": ("linear", ConvFeatures(9, patch_size=3)),
    "mirrored features": (
        "gaussian",
        ConvFeatures(9, patch_size=3, mirror=True, pool_grid=2),
    ),
    "maxima that overlap": (
        "gaussian",
        ConvFeatures(9, patch_size=3, pool="max", pool_overlap=0.5),
    ),
    "skip, mirror, normalised": (
        "laplace",
        [
            ConvFeatures(8, patch_size=3, skip=True, pool_size=2, padding="same"),
            ConvFeatures(
                7, patch_size=2, normalize=0.1, pool_grid=2, pool="norm", mirror=True
            ),
        ],
    ),
    "deep": (ConvNTK(depth=1), ConvFeatures(5, **SMALL)),
    "deeper": (
        PatchGaussian(patch_size=2),
        [ConvFeatures(5, **SMALL), ConvFeatures(4, patch_size=2, pool_grid=None)],
    ),
    "landmarks": (ConvNTK(depth=2), None, 10),
    "landmarks of maps": ("gaussian", ConvFeatures(9, patch_size=3), 10),
}


@functools.cache
def data(n_classes=3):
    rng = np.random.default_rng(0)
    y = np.arange(24) % n_classes
    return rng.normal(size=(24, *SHAPE)) + y[:, None, None, None] / 2, y


@functools.cache
def fitted(name, n_classes=3):
    kernel, layers, *landmarks = MACHINES[name]
    model = ConvRFMClassifier(
        kernel,
        layers,
        n_rounds=1,
        selection="last",
        landmarks=landmarks[0] if landmarks else None,
        dtype="float64",
        device="cpu",
        random_state=0,
    )
    return model.fit(*data(n_classes))


def slopes(score, X, direction, step=1e-6):
    """Central differences of a score of images along a direction."""
    return (score(X + step * direction) - score(X - step * direction)) / (2 * step)


@pytest.mark.parametrize("name", MACHINES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_gradients_equal_finite_differences(name):
    model, rng = fitted(name), np.random.default_rng(1)
    X = rng.normal(size=(3, *SHAPE))
    gradients = pixel_gradients(model, X, target=1)
    assert gradients.shape == X.shape and gradients.dtype == np.float64
    for direction in rng.normal(size=(3, *SHAPE)):
        expected = slopes(lambda Z: model.decision_function(Z)[:, 1], X, direction)
        found = (gradients * direction).sum((1, 2, 3))
        np.testing.assert_allclose(found, expected, atol=2e-6 * np.abs(expected).max())


def test_gradients_without_target_are_those_of_predicted_classes():
    model, X = fitted("ntk"), data()[0][:6]
    found = pixel_gradients(model, X)
    for image, gradient, label in zip(X, found, model.predict(X), strict=True):
        [expected] = pixel_gradients(model, image[None], target=label)
        np.testing.assert_allclose(gradient, expected, rtol=1e-9)


def test_two_classes_have_opposite_gradients_and_occlusions():
    model, X = fitted("gaussian", 2), data(2)[0][:3]
    for explain in (pixel_gradients, patch_occlusion):
        found = explain(model, X, target=1)
        np.testing.assert_array_equal(found, -explain(model, X, target=0))
    expected = slopes(model.decision_function, X, X)
    found = (pixel_gradients(model, X, target=1) * X).sum((1, 2, 3))
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_gradients_in_small_memory_and_of_single_images_are_the_same():
    from sklearn import config_context

    X = data()[0][:8]
    for name in ("deep", "skip, mirror, normalised", "patch gaussian"):
        whole = pixel_gradients(fitted(name), X, target=0)
        with config_context(working_memory=1):
            parts = pixel_gradients(fitted(name), X, target=0)
        np.testing.assert_allclose(parts, whole, rtol=1e-9, atol=1e-12)


def test_occlusion_is_the_fall_of_the_score_where_the_patch_has_the_mean():
    model, X = fitted("ntk"), data()[0][:2]
    found = patch_occlusion(model, X, target=2, patch_size=SHAPE[:2])
    blank = np.broadcast_to(X.mean((1, 2), keepdims=True), X.shape)
    fall = (model.decision_function(X) - model.decision_function(blank))[:, 2]
    expected = np.broadcast_to(fall[:, None, None], found.shape)
    np.testing.assert_allclose(found, expected, rtol=1e-9)
    # One pixel at a time.
    found = patch_occlusion(model, X, target=2, patch_size=1)
    hidden = X.copy()
    hidden[:, 3, 4] = X.mean((1, 2))
    fall = (model.decision_function(X) - model.decision_function(hidden))[:, 2]
    np.testing.assert_allclose(found[:, 3, 4], fall, rtol=1e-9)


def test_both_agree_on_a_linear_machine():
    """There the gradient times the difference from the mean is what a pixel adds."""
    model, X = fitted("linear"), data()[0][:2]
    gradients = pixel_gradients(model, X, target=0)
    expected = (gradients * (X - X.mean((1, 2), keepdims=True))).sum(3)
    found = patch_occlusion(model, X, target=0, patch_size=1)
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_channels_first_and_flat_rows_are_explained_alike():
    X, y = data()
    options = {"n_rounds": 1, "dtype": "float64", "random_state": 0}
    last = ConvRFMClassifier("gaussian", **options).fit(X, y)
    planes = np.moveaxis(X, 3, 1)
    first = ConvRFMClassifier("gaussian", channels="first", **options).fit(planes, y)
    rows = planes[:2].reshape(2, -1)
    for explain in (pixel_gradients, patch_occlusion):
        expected = explain(last, X[:2], target=0)
        for images in (planes[:2], rows):
            found = explain(first, images, target=0)
            np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-10)


def test_pixels_of_0_to_255_are_explained_in_their_own_unit():
    X, y = data()
    X = np.round(40 * (X - X.min())).clip(0, 255).astype(np.uint8)
    options = {"n_rounds": 0, "dtype": "float64", "random_state": 0}
    for kernel in ("gaussian", ConvNTK(depth=2)):
        whole = ConvRFMClassifier(kernel, **options).fit(X, y)
        unit = ConvRFMClassifier(kernel, **options).fit(X / 255, y)
        assert (whole.scale_, unit.scale_) == (255, 1)
        for explain, factor in ((pixel_gradients, 255), (patch_occlusion, 1)):
            found = factor * explain(whole, X[:2], target=0)
            expected = explain(unit, X[:2] / 255, target=0)
            size = np.abs(expected).max()
            np.testing.assert_allclose(found, expected, atol=1e-5 * size)


def test_outputs_of_a_regressor_are_named_by_number():
    X, y = data()
    model = ConvRFMRegressor("gaussian", n_rounds=0, dtype="float64")
    model.fit(X, np.stack([y, y**2], 1))
    found = (pixel_gradients(model, X[:2], target=1) * X[:2]).sum((1, 2, 3))
    expected = slopes(lambda Z: model.predict(Z)[:, 1], X[:2], X[:2])
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    with pytest.raises(ValueError, match="2 outputs; pass the number of one, 0 to 1"):
        pixel_gradients(model, X[:2])


@pytest.mark.parametrize("explain", [pixel_gradients, patch_occlusion])
def test_wrong_arguments_are_refused(explain):
    X = data()[0][:2]
    with pytest.raises(ValueError, match=r"target=7 is not among the classes 0, 1, 2"):
        explain(fitted("ntk"), X, target=7)
    with pytest.raises(TypeError, match="LogisticRegression cannot be explained"):
        explain(LogisticRegression(), X)


@pytest.mark.parametrize("size", [8, (7, 7), 0])
def test_wrong_patch_size_is_refused(size):
    with pytest.raises(ValueError, match="patch_size="):
        patch_occlusion(fitted("ntk"), data()[0][:1], patch_size=size)

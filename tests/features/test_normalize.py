"""Normalised patches: responses, moments, and what they do not depend on."""

import numpy as np
import pytest
import torch
from by_hand import assert_close, patches_by_hand

from skconvrfm import ConvRFMClassifier
from skconvrfm.compute.native import build
from skconvrfm.features import ConvFeatures
from skconvrfm.features.maps import compute_maps


@pytest.fixture
def fitted(rng):
    """Return a machine on normalised patches, and its images."""
    X, y = rng.normal(size=(40, 9, 8, 2)), np.arange(40) % 2
    layer = ConvFeatures(6, patch_size=3, normalize=0.2, pool_grid=2)
    model = ConvRFMClassifier("gaussian", layer, n_rounds=1, dtype="float64")
    return model.fit(X, y), X


def normalised(image, layer):
    patches = patches_by_hand(image, padding=layer.padding)
    patches = patches - patches.mean(-1, keepdims=True)
    return patches / np.sqrt((patches**2).mean(-1, keepdims=True) + layer.floor_)


def test_responses_are_products_with_normalised_patches(fitted):
    model, X = fitted
    [layer] = model.features_
    responses = layer.maps_.responses(torch.from_numpy(X[:3])).numpy()
    expected = np.array([normalised(x, layer) for x in X[:3]]) @ layer.filters_.T
    expected = np.sqrt(2) * np.maximum(expected / np.sqrt(2) + layer.biases_, 0)
    assert_close(responses, expected, 1e-12)
    np.testing.assert_allclose(layer.filters_.sum(1), 0, atol=1e-12)


def test_moments_are_those_of_normalised_patches(fitted):
    model, X = fitted
    [layer] = model.features_
    plain = np.array([patches_by_hand(x, padding="valid") for x in X])
    assert np.isclose(layer.floor_, 0.2 * plain.var(-1).mean())
    patches = np.array([normalised(x, layer) for x in X]).reshape(-1, 18)
    assert_close(layer.patch_mean_, patches.mean(0), 1e-10)
    assert_close(layer.patch_covariance_, np.cov(patches.T, bias=True), 1e-10)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pool", ["root", "norm", "max"])
def test_compiled_features_equal_those_of_array_operations(fitted, dtype, pool):
    layer = fitted[0].features_[0]
    layer.pool = pool
    images = torch.from_numpy(fitted[1]).to(dtype)
    library = build.load(1e12)
    if library is None:
        pytest.skip("nothing is compiled here")
    expected = compute_maps(layer.maps_, images, None)
    found = compute_maps(layer.maps_, images, library)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-4
    assert_close(found.numpy(), expected.numpy(), tolerance)


def test_predictions_do_not_depend_on_the_brightness_of_images(fitted):
    model, X = fitted
    shifted = model.decision_function(X + 3)
    np.testing.assert_allclose(shifted, model.decision_function(X), atol=1e-8)


@pytest.mark.parametrize("floor", [1e-12, 0.1, 1e12])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_others", [0, 10])
def test_blank_images_are_fitted(n_others, dtype, floor, rng):
    X, y = np.zeros((20, 6, 6), dtype=dtype), np.arange(20) % 2
    X[:n_others] = rng.uniform(size=(n_others, 6, 6))
    layer = ConvFeatures(4, patch_size=3, normalize=floor)
    model = ConvRFMClassifier("linear", layer, n_rounds=1)
    with np.errstate(all="raise"):
        assert np.isfinite(model.fit(X, y).decision_function(X)).all()

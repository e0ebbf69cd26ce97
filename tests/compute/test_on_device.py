"""Fits whose images stay on a device are the same, to the last bit."""

import pickle

import numpy as np
import pytest
import torch

from skconvrfm import ConvRFMClassifier, ConvRFMRegressor
from skconvrfm.compute import images
from skconvrfm.compute.parallel import Resources
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import ConvNTK, PatchGaussian

MODELS = {
    "exact": (ConvRFMClassifier, ConvNTK(depth=2), None, {}),
    "mirrored": (ConvRFMClassifier, ConvNTK(depth=2, mirror=True), None, {}),
    "landmarks": (ConvRFMClassifier, PatchGaussian(), None, {"landmarks": 10}),
    "linear": (ConvRFMRegressor, "linear", ConvFeatures(8, mirror=True), {}),
    "two layers": (ConvRFMRegressor, "gaussian", [ConvFeatures(6)] * 2, {}),
    "held-out": (ConvRFMClassifier, ConvNTK(1), None, {"selection": "holdout"}),
}


@pytest.mark.parametrize("brightest", [1, 255])
@pytest.mark.parametrize("name", MODELS)
def test_fit_is_that_of_images_on_the_host(name, brightest, rng, monkeypatch):
    Model, kernel, features, options = MODELS[name]
    X = rng.uniform(size=(30, 6, 7, 2)) * brightest
    y = X[:, 2, 3, 0] > brightest / 2
    model = Model(kernel, features, n_rounds=1, random_state=0, **options)
    expected = model.fit(X, y)
    expected = expected.predict(X), expected.loo_prediction_
    kept = []

    def keeps(resources, n_bytes):
        kept.append(n_bytes)
        return True

    monkeypatch.setattr(Resources, "keeps", keeps)
    model.fit(X, y)
    for ours, theirs in zip(
        (model.predict(X), model.loo_prediction_), expected, strict=True
    ):
        np.testing.assert_array_equal(ours, theirs)
    assert kept[0] == 8 * X.size
    assert all(not isinstance(v, torch.Tensor) for v in vars(model).values())


def test_images_on_a_device_are_those_of_the_host(rng):
    X = rng.uniform(size=(4, 3, 3, 1))
    cpu = torch.float32, torch.device("cpu")
    held = images.on_device(X, *cpu)
    assert held.shape == X.shape
    assert isinstance(pickle.loads(pickle.dumps(held)), np.ndarray)
    np.testing.assert_array_equal(np.asarray(held[1:3]), X[1:3])
    np.testing.assert_array_equal(np.asarray(held[np.array([2, 0])]), X[[2, 0]])
    others = images.take(X, [0, 1])
    assert images.on_device(others, *cpu) is others

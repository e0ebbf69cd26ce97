"""Small fitted models of every kernel, and what they return for some images."""

import numpy as np

from skconvrfm import ConvRFMClassifier, ConvRFMRegressor, PatchAGOPTransformer
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import (
    ConvNNGP,
    ConvNTK,
    Gaussian,
    Laplace,
    Linear,
    PatchGaussian,
    PatchLaplace,
)

SMALL = {"n_rounds": 1, "alpha": [0.01, 0.1], "selection": "last"}
POOLED = ConvFeatures(4, patch_size=2, pool_grid=2)
LOCATIONS = ConvFeatures(4, patch_size=2, pool_grid=None)


def make_data():
    """Images of two textures, labels, targets, and images to predict."""
    rng = np.random.RandomState(0)
    X = rng.normal(size=(24, 5, 5)).round(2)
    labels = np.array(["even", "odd"])[np.arange(24) % 2]
    X[labels == "odd", ::2] += 1
    targets = np.column_stack([X[:, 2, 2] * X[:, 3, 3], X.mean(axis=(1, 2))])
    return X[:16], labels[:16], targets[:16], X[16:]


def models():
    """Yield name and model, not fitted: all kernels, all estimators."""
    linear = ConvRFMClassifier(Linear(), POOLED, **SMALL)
    deep = ConvRFMClassifier(ConvNTK(depth=1, patch_size=2), LOCATIONS, **SMALL)
    layers = [LOCATIONS, POOLED]
    yield "ntk", ConvRFMClassifier(ConvNTK(depth=2, patch_size=2), **SMALL)
    yield "nngp", ConvRFMClassifier(ConvNNGP(depth=1, patch_size=2), **SMALL)
    yield "patch laplace", ConvRFMRegressor(PatchLaplace(patch_size=2), **SMALL)
    yield "patch gaussian", ConvRFMRegressor(PatchGaussian(pool_grid=1), **SMALL)
    mirrored = PatchGaussian(metric="auto", mirror=True)
    yield "mirrored, chosen metric", ConvRFMRegressor(mirrored, **SMALL)
    yield "laplace", ConvRFMClassifier(Laplace(), **SMALL)
    yield "gaussian", ConvRFMRegressor(Gaussian(), POOLED, **SMALL)
    certain = {"store_covariance": True, **SMALL}
    yield "std", ConvRFMRegressor(ConvNTK(depth=1), **certain)
    yield "two layers", ConvRFMClassifier(Gaussian(), layers, **SMALL)
    yield "linear", linear
    yield "streaming", ConvRFMClassifier(Linear(), POOLED, **SMALL)
    yield "streaming landmarks", ConvRFMClassifier(Laplace(), landmarks=4, **SMALL)
    yield "landmarks", ConvRFMClassifier(ConvNTK(), landmarks=4, **SMALL)
    yield "deep", deep
    yield "filters", PatchAGOPTransformer(deep, n_filters=4)
    yield "features", PatchAGOPTransformer(linear, output="features")


def make_models():
    """Yield name and fitted model."""
    X, labels, targets, _ = make_data()
    for name, model in models():
        if name.startswith("streaming"):
            model.partial_fit(X[:8], labels[:8], classes=["even", "odd"])
            yield name, model.partial_fit(X[8:], labels[8:])
        else:
            y = targets if isinstance(model, ConvRFMRegressor) else labels
            yield name, model.fit(X, y)


def outputs(model, X):
    """Return what a model says of images."""
    if hasattr(model, "covariance_"):
        return np.hstack(model.predict(X, return_std=True))
    for name in ("predict_proba", "predict", "transform"):
        if hasattr(model, name):
            return getattr(model, name)(X)

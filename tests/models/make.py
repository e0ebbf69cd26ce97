"""Write the models of this folder, which later versions must load.

Run in the environment of the oldest dependencies, which promise to be read by newer
ones, and not the other way round (``.ci/oldest.txt``)::

    python tests/models/make.py

Files of a version that was released stay as they are; a later one gets files of its
own beside them.
"""

import sys
import zipfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
sys.path.insert(0, str(FOLDER.parents[1]))

import joblib  # noqa: E402
import numpy as np  # noqa: E402
import skops.io  # noqa: E402

from skconvrfm import (  # noqa: E402
    ConvRFMClassifier,
    ConvRFMRegressor,
    PatchAGOPTransformer,
)

SMALL = {"patch_size": 2, "n_rounds": 1, "alpha": [0.01, 0.1]}
FEATURES = {"method": "features", "n_filters": 4, "pool_grid": 2}


def make_data():
    """Images of two textures, what is brighter in them, and images to predict."""
    rng = np.random.RandomState(0)
    X = rng.normal(size=(24, 5, 5)).round(2)
    labels = np.array(["even", "odd"])[np.arange(24) % 2]
    X[labels == "odd", ::2] += 1
    targets = np.column_stack([X[:, 2, 2] * X[:, 3, 3], X.mean(axis=(1, 2))])
    return X[:16], labels[:16], targets[:16], X[16:]


def make_models(X, labels, targets):
    """Yield name and fitted model: both methods, all kernels, all estimators."""
    yield "exact-classifier", ConvRFMClassifier(**SMALL, depth=2).fit(X, labels)
    yield "exact-regressor", ConvRFMRegressor(**SMALL, kernel="laplace").fit(X, targets)
    deep = ConvRFMClassifier(**SMALL, **FEATURES, feature_layers=2, selection="last")
    yield "deep-classifier", deep.fit(X, labels)
    streaming = ConvRFMClassifier(**SMALL, **FEATURES)
    streaming.partial_fit(X[:8], labels[:8], classes=["even", "odd"])
    yield "streaming-classifier", streaming.partial_fit(X[8:], labels[8:])
    yield (
        "transformer",
        PatchAGOPTransformer(**SMALL, n_filters=4, depth=2).fit(X, labels),
    )


def said(model, X):
    """What a model says of images."""
    for name in ("predict_proba", "predict", "transform"):
        if hasattr(model, name):
            return getattr(model, name)(X)


def main():
    X, labels, targets, X_new = make_data()
    expected = {"X": X_new}
    for name, model in make_models(X, labels, targets):
        compression = {"compression": zipfile.ZIP_DEFLATED, "compresslevel": 9}
        skops.io.dump(model, FOLDER / f"{name}.skops", **compression)
        joblib.dump(model, FOLDER / f"{name}.joblib", compress=9)
        expected[name] = said(model, X_new)
    np.savez_compressed(FOLDER / "expected.npz", **expected)


if __name__ == "__main__":
    main()

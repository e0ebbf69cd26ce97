"""Recommended machines: kernel and feature layers, as several benchmarks fit them.

All choices were made on training images.
"""

from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import ConvNTK, Gaussian

from .harness import timed

CHOSEN = {"candidates": 4, "learn": False}
DEFAULT = Gaussian(), "auto"
EXACT = ConvNTK(metric="auto"), None
MIRRORED = ConvNTK(metric="auto", mirror=True), None
ARTICLES = ConvFeatures(512, patch_size=9, pool_grid=5, pool_overlap=0.5, **CHOSEN)
# Patches and cells of one layer, by GCV with 256 filters on 3000 training images.
ONE_LAYER = {
    "CIFAR-10": {"patch_size": 6, "pool_grid": (3, 3)},
    "MNIST": {"patch_size": 7, "pool_grid": (3, 3)},
    "Fashion-MNIST": {"patch_size": 9, "pool_grid": (5, 5)},
}


def photographs(mirror):
    """Return a Gaussian kernel and two layers for photographs of 32×32 pixels.

    1024 filters of four times as many are no more accurate on held-out images.
    """
    options = {"pool_size": 2, "pool_overlap": 1.0, "learn": False}
    first = ConvFeatures(96, patch_size=5, normalize=1.0, **options)
    options = {"pool_overlap": 0.5, "candidates": 6, "learn": False}
    top = ConvFeatures(640, patch_size=3, shrinkage=3.0, mirror=mirror, **options)
    return Gaussian(), [first, top]


def objects_in_noise():
    """Return a Gaussian kernel and two layers for objects anywhere in noise."""
    options = {"pool_size": 2, "pool_overlap": 0.5, **CHOSEN}
    first = ConvFeatures(96, patch_size=7, normalize=1.0, **options)
    options = {"pool": "norm", "pool_grid": 1, **CHOSEN}
    top = ConvFeatures(256, patch_size=5, shrinkage=3.0, **options)
    return Gaussian(), [first, top]


def articles():
    """Return a Gaussian kernel and one layer of large patches on a fine grid."""
    options = {"padding": "same", "pool_grid": 7, "pool_overlap": 0.5, "learn": False}
    return Gaussian(), [ConvFeatures(512, patch_size=9, normalize=0.01, **options)]


def describe(value):
    """Return parameters as text; layers by their filters and patches alone."""
    if isinstance(value, dict):
        return ", ".join(f"{key}={describe(value[key])}" for key in sorted(value))
    if isinstance(value, list):
        return " then ".join(map(describe, value))
    if isinstance(value, ConvFeatures):
        return f"{value.n_filters} of {value.patch_size}×{value.patch_size}"
    return " ".join(str(value).split())


class ByRound:
    """Callback of scikit-learn (1.9) that scores test images after every round."""

    def __init__(self, X, y):
        self.X, self.y = X, y
        self.scores = []

    def setup(self, *_, **__):
        """Do nothing."""

    teardown = on_fit_task_begin = setup

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None, **_):
        """Score the round that has ended."""
        if context.task_name == "round":
            self.scores.append(fitted_estimator.score(self.X, self.y))


def by_round(model, X, y, X_test, y_test):
    """Fit; return accuracies in per cent by round and of the round kept, and seconds.

    The seconds have the predictions after every round in them.
    """
    callback = ByRound(X_test, y_test)
    times, _ = timed(model.set_callbacks(callback).fit, X, y)
    accuracies = [100 * score for score in callback.scores]
    accuracy = 100 * model.score(X_test, y_test)
    return {"accuracies": accuracies, "accuracy": accuracy, **times}

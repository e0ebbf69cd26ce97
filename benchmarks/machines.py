"""Recommended machines: kernel and feature layers, as several benchmarks fit them.

All choices were made on training images.
"""

from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import ConvNTK, Gaussian

CHOSEN = {"candidates": 4, "learn": False}
DEFAULT = Gaussian(), "auto"
EXACT = ConvNTK(metric="auto"), None
MIRRORED = ConvNTK(metric="auto", mirror=True), None
ARTICLES = ConvFeatures(
    512, patch_size=9, pool_grid=5, pool_overlap=0.5, candidates=4, learn=False
)
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
    first = ConvFeatures(
        96, patch_size=5, normalize=1.0, pool_size=2, pool_overlap=1.0, learn=False
    )
    top = ConvFeatures(
        640,
        patch_size=3,
        shrinkage=3.0,
        pool_overlap=0.5,
        mirror=mirror,
        candidates=6,
        learn=False,
    )
    return Gaussian(), [first, top]


def objects_in_noise():
    """Return a Gaussian kernel and two layers for objects anywhere in noise."""
    first = ConvFeatures(
        96, patch_size=7, normalize=1.0, pool_size=2, pool_overlap=0.5, **CHOSEN
    )
    top = ConvFeatures(
        256, patch_size=5, shrinkage=3.0, pool="norm", pool_grid=1, **CHOSEN
    )
    return Gaussian(), [first, top]


def articles():
    """Return a Gaussian kernel and one layer of large patches on a fine grid."""
    options = {"padding": "same", "pool_grid": 7, "pool_overlap": 0.5, "learn": False}
    return Gaussian(), [ConvFeatures(512, patch_size=9, normalize=0.01, **options)]


def describe(value):
    """Return a parameter as text; layers by their filters and patches alone."""
    if isinstance(value, list):
        return " then ".join(map(describe, value))
    if isinstance(value, ConvFeatures):
        return f"{value.n_filters} of {value.patch_size}×{value.patch_size}"
    return " ".join(str(value).split())


class TestScore:
    """Callback of scikit-learn (1.9) that scores test images after every round."""

    __test__ = False  # Not for pytest.

    def __init__(self, X, y):
        self.X, self.y = X, y
        self.scores = []

    def setup(self, estimator, context):
        """Prepare nothing."""

    def teardown(self, estimator, context):
        """Clean up nothing."""

    def on_fit_task_begin(self, estimator, context, **_):
        """Score nothing yet."""

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None, **_):
        """Score the round that has ended."""
        if context.task_name == "round":
            self.scores.append(fitted_estimator.score(self.X, self.y))

"""Our machines, as several benchmarks measure them."""

import time

from skconvrfm import ConvRFMClassifier
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import ConvNTK

# Patches and cells by data set: by GCV with 256 filters on 3000 training images (1000
# framed ones), from patches of 5 to 11 and grids of 2×2 to 5×5.
FEATURES = {
    "CIFAR-10": {"patch_size": 6, "pool_grid": (3, 3)},
    "MNIST": {"patch_size": 7, "pool_grid": (3, 3)},
    "Fashion-MNIST": {"patch_size": 9, "pool_grid": (5, 5)},
    "framed MNIST": {"patch_size": 11, "pool_grid": (2, 2)},
}


def conv_features(problem, n_filters):
    """Return the feature layer for a data set.

    Parameters
    ----------
    problem : str
        A name in `FEATURES`, perhaps with a number of images behind a comma.
    n_filters : int
        Number of filters.
    """
    return ConvFeatures(n_filters, **FEATURES[problem.partition(",")[0]])


def deep_convrfm(n_layers, n_filters, activation, bias, **parameters):
    """Return Deep ConvRFM of so many layers and depth 3, as published.

    Parameters
    ----------
    n_layers : int
        Layers, 1 to 3, each with a predictor of its own.
    n_filters : int
        Filters, drawn from N(0, M), of each layer below the last.
    activation : {"relu", "identity"}
        Function that follows them.
    bias : float
        Of the kernel.
    **parameters : object
        Of `ConvRFMClassifier`.
    """
    layer = ConvFeatures(
        n_filters,
        patch_size=3,
        filters="gaussian",
        metric="identity",
        bias=0,
        activation=activation,
        threshold=0,
        pool_grid=None,
    )
    kernel = ConvNTK(4 - n_layers, bias=bias)
    return ConvRFMClassifier(kernel, [layer] * (n_layers - 1), **parameters)


def squared_error(model, X, y):
    """Return the squared error of a fit: summed over classes, the mean over images."""
    targets = 2.0 * (y[:, None] == model.classes_) - 1
    return float(((model.decision_function(X) - targets) ** 2).sum(1).mean())


class TestScore:
    """Callback of scikit-learn (1.9) that scores test images after every round.

    Parameters
    ----------
    X, y : ndarray
        Test images and labels.
    """

    __test__ = False  # Not for pytest.

    def __init__(self, X, y):
        self.X, self.y = X, y
        self.scores, self.seconds = [], 0.0

    def setup(self, estimator, context):
        """Prepare nothing."""

    def teardown(self, estimator, context):
        """Clean up nothing."""

    def on_fit_task_begin(self, estimator, context, **_):
        """Score nothing yet."""

    def on_fit_task_end(self, estimator, context, *, fitted_estimator=None, **_):
        """Score the round that has ended."""
        if context.task_name == "round":
            start = time.perf_counter()
            self.scores.append(fitted_estimator.score(self.X, self.y))
            self.seconds += time.perf_counter() - start

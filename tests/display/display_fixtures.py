"""Fixtures and estimators of the tests of the displays.

Each test module imports them: a second conftest.py is not found with the import mode
"append".
"""

import functools
import io
import sys

import numpy as np
import pytest
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import Bunch

__all__ = [
    "classifier",
    "deep",
    "figure",
    "framed",
    "no_figure_left_open",
    "pyplot",
    "transformer",
]


@pytest.fixture
def figure():
    """Return a figure that needs no screen."""
    pytest.importorskip("matplotlib")
    from matplotlib.figure import Figure

    return Figure(figsize=(16, 8), layout="constrained")


@pytest.fixture
def pyplot():
    """Return pyplot without a screen; figures are closed afterwards."""
    pytest.importorskip("matplotlib")
    import matplotlib.pyplot as plt

    backend = plt.get_backend()
    plt.switch_backend("agg")
    yield plt
    plt.close("all")
    plt.switch_backend(backend)


@pytest.fixture(autouse=True)
def no_figure_left_open():
    """Let no test but those that ask for pyplot leave a figure open."""
    yield
    plt = sys.modules.get("matplotlib.pyplot")
    assert plt is None or not plt.get_fignums()


def framed_digits(n):
    """A few framed digits."""
    from skconvrfm.datasets import make_framed_digits

    X, y = make_framed_digits(random_state=0)
    return X[:n], y[:n]


@functools.cache
def fitted(name):
    """An estimator fitted on framed digits: one a run, for all test modules."""
    from skconvrfm import ConvRFMClassifier, PatchAGOPTransformer
    from skconvrfm.features import ConvFeatures
    from skconvrfm.kernels import ConvNTK

    if name == "classifier":
        kernel = ConvNTK(depth=1, patch_size=(2, 3))
        model = ConvRFMClassifier(kernel, n_rounds=2, device="cpu")
        return model.fit(*framed_digits(60))
    if name == "deep":  # two layers, the second of which sees five channels
        layer = ConvFeatures(5, patch_size=3, pool_grid=None)
        options = {"n_rounds": 1, "selection": "last"}
        model = ConvRFMClassifier(ConvNTK(depth=1), features=layer, **options)
        return model.fit(*framed_digits(40))
    # Patches that are padded with zeros.
    kernel = ConvNTK(depth=1, patch_size=(2, 3), padding="same")
    return PatchAGOPTransformer(ConvRFMClassifier(kernel, n_rounds=1)).fit(
        *framed_digits(40)
    )


@pytest.fixture(scope="module")
def framed():
    """Return a few framed digits."""
    return framed_digits(40)


@pytest.fixture
def classifier():
    """Return a classifier of patches of 2 × 3 pixels."""
    return fitted("classifier")


@pytest.fixture
def deep():
    """Return a classifier of two layers that learned a metric."""
    return fitted("deep")


@pytest.fixture
def transformer():
    """Return a transformer of padded patches."""
    return fitted("transformer")


def as_png(figure):
    """The bytes of a figure as a PNG."""
    file = io.BytesIO()
    figure.savefig(file, format="png")
    return file.getvalue()


class HandMade(BaseEstimator):
    """An estimator whose fitted attributes are written by hand."""

    def __init__(self, selection="gcv"):
        self.selection = selection

    def fit(self, agop=None, patch_shape=None):
        history = {
            "round": np.arange(3),
            "criterion": np.array([3.0, 1.0, 2.0]),
            "gcv": np.array([3.0, 1.0, 2.0]),
            "loo_loss": np.array([6.0, 4.0, 5.0]),
            "loo_score": np.array([0.7, 0.9, 0.8]),
            "spectrum": np.array([[0.5, 0.5], [0.75, 0.25], [1.0, 0.0]]),
        }
        layer = Bunch(
            history_=history,
            best_round_=1,
            patch_agop_=agop,
            patch_shape_=patch_shape,
        )
        self.learned_layers_ = [layer]
        self.best_layer_ = 0
        return self


class HandMadeClassifier(ClassifierMixin, HandMade):
    pass


class HandMadeRegressor(RegressorMixin, HandMade):
    pass


class HandMadeTransformer(BaseEstimator):
    """A transformer with a fitted estimator, whose layers are its own."""

    def fit(self, estimator):
        self.estimator_ = estimator.fit()
        self.learned_layers_ = self.estimator_.learned_layers_
        self.best_layer_ = 0
        return self


def rank_one(patch):
    """The AGOP of one patch of shape (rows, columns, channels)."""
    vector = np.moveaxis(patch, -1, 0).ravel()
    return np.outer(vector, vector)

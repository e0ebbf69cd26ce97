"""Float32 beside float64, in numbers that follow from its eps."""

import numpy as np
import pytest
from sklearn.datasets import load_digits

from skconvrfm import ConvRFMClassifier
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import ConvNTK

EPS = np.finfo(np.float32).eps
# Near the kink at κ = 1, an error of eps in κ is one of its root in arccos κ; two
# patches nearer than 32 eps count as parallel, an error of sqrt(64 eps) / π.
KINK = np.sqrt(64 * EPS) / np.pi
MODELS = {
    "kernel": (ConvNTK(), None),
    "linear": ("linear", ConvFeatures(patch_size=3)),
    "gaussian": ("gaussian", ConvFeatures(64, patch_size=3)),
}


@pytest.fixture(scope="module")
def digits():
    """Digits of scikit-learn, 200 to learn from and 300 others."""
    X, y = load_digits(return_X_y=True)
    X = X.reshape(-1, 8, 8) / 16
    return X[:200], y[:200], X[200:500], y[200:500]


@pytest.mark.parametrize("depth", [1, 3])
def test_kernel_in_float32_is_within_the_error_of_the_kink(digits, depth, tiles):
    X = digits[0][:50]
    kernel = ConvNTK(depth, bias=0)
    low, high = (kernel(X, dtype=dtype) for dtype in ("float32", "float64"))
    error = np.abs(low - high)
    assert (error <= KINK * high).all()
    # Few patches are near it: on the whole the error is one of arithmetic.
    assert np.linalg.norm(error) < 32 * EPS * np.linalg.norm(high)


@pytest.mark.slow
@pytest.mark.parametrize("model", MODELS)
def test_both_precisions_choose_the_same_round_and_labels(digits, model):
    X, y, X_test, _ = digits
    low, high = (
        ConvRFMClassifier(*MODELS[model], dtype=dtype, n_rounds=2).fit(X, y)
        for dtype in ("float32", "float64")
    )
    assert low.best_round_ == high.best_round_
    np.testing.assert_array_equal(low.history_["alpha"], high.history_["alpha"])
    np.testing.assert_allclose(low.history_["gcv"], high.history_["gcv"], rtol=1e-4)
    agop_error = np.linalg.norm(low.patch_agop_ - high.patch_agop_)
    assert agop_error < 1e-3 * np.linalg.norm(high.patch_agop_)
    changed = low.predict(X_test) != high.predict(X_test)
    assert changed.mean() <= 0.01

"""Learned features beat the fixed kernel by the promised margins.

These take minutes; run them with ``pytest -m slow``.
"""

import numpy as np
import pytest
from sklearn.base import clone

from skconvrfm import ConvRFMClassifier
from skconvrfm.datasets import make_framed_digits, make_star
from skconvrfm.kernels import ConvNTK

pytestmark = pytest.mark.slow


def accuracies(model, X, y, X_test, y_test):
    """Test accuracy of the fixed kernel, and of the rounds chosen by GCV."""
    fixed = clone(model).set_params(n_rounds=0).fit(X, y)
    return fixed.score(X_test, y_test), model.fit(X, y).score(X_test, y_test)


def test_star_gains_ten_points_with_fifty_images():
    model = ConvRFMClassifier(
        ConvNTK(depth=1, patch_size=11), n_rounds=3, dtype="float32"
    )
    results = []
    for seed in range(5):
        X, y = make_star(550, random_state=seed)
        results.append(accuracies(model, X[:50], y[:50], X[50:], y[50:]))
    fixed, learned = np.mean(results, axis=0)
    assert learned > fixed + 0.10


def test_framed_digits_gain_four_points(shared):
    with np.load(shared / "data" / "mnist_5000_2000.npz") as data:
        train = data["X_train"][:1000], data["y_train"][:1000]
        test = data["X_test"][:1000], data["y_test"][:1000]
    X, y = make_framed_digits(*train, random_state=0)
    X_test, y_test = make_framed_digits(*test, random_state=1)
    model = ConvRFMClassifier(ConvNTK(), n_rounds=3, dtype="float32")
    fixed, learned = accuracies(model, X, y, X_test, y_test)
    assert learned > fixed + 0.04

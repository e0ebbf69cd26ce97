"""Warnings point at the line that called the package."""

import numpy as np
import pytest
from sklearn.pipeline import make_pipeline

from skconvrfm import ConvRFMClassifier, PatchAGOPTransformer
from skconvrfm.kernels import ConvNTK

ROWS = np.random.default_rng(0).normal(size=(12, 36))  # of square images?
Y = np.arange(12) % 2
KERNEL = ConvNTK(depth=1, patch_size=2)
MODEL = ConvRFMClassifier(KERNEL, n_rounds=0)


@pytest.mark.parametrize(
    "call",
    [
        lambda: MODEL.fit(ROWS, Y),
        lambda: PatchAGOPTransformer(MODEL).fit(ROWS, Y),
        lambda: make_pipeline(MODEL).fit(ROWS, Y),
        lambda: KERNEL(ROWS.reshape(12, 1, 6, 6)),  # channels first?
    ],
    ids=["fit", "transformer", "pipeline", "kernel"],
)
def test_warning_points_at_the_caller(call):
    with pytest.warns(UserWarning, match="is read as|are read as") as seen:
        call()
    assert {warning.filename for warning in seen} == {__file__}

"""Combinations of kernels and feature layers: refused where there is no room."""

import numpy as np
import pytest

from skconvrfm import ConvRFMRegressor
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import ConvNTK, Gaussian, Linear, PatchLaplace
from skconvrfm.learning.composition import check_composition


def layer(**options):
    return ConvFeatures(4, **{"patch_size": 3, **options})


ALLOWED = {
    "no layer": (ConvNTK(), []),
    "no pool": (ConvNTK(depth=3), [layer(pool_grid=None)]),
    "cells of a size": (ConvNTK(depth=2), [layer(pool_size=2)]),
    "grid with room": (ConvNTK(depth=2, patch_size=2), [layer(pool_grid=3)]),
    "same": (ConvNTK(depth=3, padding="same"), [layer(pool_grid=2)]),
    "global pool of maps": (Gaussian(), [layer(pool_grid=1)]),
    "two layers": (Linear(), [layer(pool_grid=4), layer(pool_grid=1)]),
    "mirror": (Linear(), [layer(pool_grid=4), layer(mirror=True)]),
}
REFUSED = {
    "one location": (
        (PatchLaplace(), [layer(pool_grid=1)]),
        r"features\[0\]\.pool_grid=1 leaves one location.*kernel=PatchLaplace \(.*"
        r"pool_grid=None or pool_size=2 .*Gaussian\(\)",
    ),
    "too deep": (
        (ConvNTK(depth=2), [layer(pool_grid=(3, 5))]),
        r"features\[0\]\.pool_grid=\(3, 5\) .*kernel=ConvNTK \(depth=2, patch_size=3\)"
        r".*5 × 5 locations.*smaller depth",
    ),
    "one location below a layer": (
        (Linear(), [layer(pool_grid=1), layer()]),
        r"features\[0\]\.pool_grid=1 leaves one location.*features\[1\] \(patch_size=3",
    ),
    "no layer of features": (
        (Linear(), [layer(), "relu"]),
        r"features\[1\]='relu' is not a ConvFeatures",
    ),
    "mirrored maps": (
        (ConvNTK(depth=1, mirror=True), [layer(pool_grid=None)]),
        r"kernel=ConvNTK\(mirror=True\) .*features=\[ConvFeatures\(.*mirror=False",
    ),
    "mirror below a layer": (
        (Gaussian(), [layer(mirror=True, pool_size=2), layer()]),
        r"features\[0\]\.mirror=True .*below ConvFeatures.*last layer.*Take features",
    ),
    "mirror below a kernel of patches": (
        (ConvNTK(depth=1), [layer(pool_grid=None, mirror=True)]),
        r"features\[0\]\.mirror=True .*below ConvNTK.*belongs to the last layer",
    ),
    "bad kernel": ((ConvNTK(depth=0), []), "'depth' parameter of ConvNTK"),
    "bad layer": ((Linear(), [layer(bias=-1)]), "'bias' parameter of ConvFeatures"),
}


@pytest.mark.parametrize("name", ALLOWED)
def test_combination_with_room_is_allowed_and_fitted(name, rng):
    kernel, features = ALLOWED[name]
    check_composition(kernel, features)
    X = rng.normal(size=(12, 10, 10))
    y = X[:, 4, 4] * X[:, 5, 5]
    model = ConvRFMRegressor(kernel, features, n_rounds=1, alpha=0.1).fit(X, y)
    assert np.isfinite(model.predict(X)).all()


@pytest.mark.parametrize("name", REFUSED)
def test_combination_without_room_is_refused_by_name(name, rng):
    (kernel, features), message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        check_composition(kernel, features)
    X = rng.normal(size=(12, 10, 10))
    with pytest.raises(ValueError, match=message):
        ConvRFMRegressor(kernel, features).fit(X, X[:, 0, 0])

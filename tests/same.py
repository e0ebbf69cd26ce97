"""Comparison of structures of any depth, bit by bit."""

import numpy as np
from numpy.testing import assert_array_equal
from sklearn.base import BaseEstimator


def assert_same(ours, theirs):
    """Fail if two values, or parts of them, differ in type or in a bit."""
    assert type(ours) is type(theirs)
    if isinstance(ours, np.ndarray):
        assert ours.dtype == theirs.dtype
        assert_array_equal(ours, theirs)
    elif isinstance(ours, dict):
        assert ours.keys() == theirs.keys()
        for name in ours:
            assert_same(ours[name], theirs[name])
    elif isinstance(ours, list | tuple):
        assert_same(dict(enumerate(ours)), dict(enumerate(theirs)))
    elif isinstance(ours, BaseEstimator):  # without what is derived on demand
        assert_same(ours.__getstate__(), theirs.__getstate__())
    elif hasattr(ours, "__dataclass_fields__"):
        assert_same(vars(ours), vars(theirs))
    else:
        assert ours == theirs

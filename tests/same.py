"""Whether two things are the same, bit by bit, in structures of any depth."""

import numpy as np
from numpy.testing import assert_array_equal


def assert_same(ours, theirs):
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
    elif hasattr(ours, "__dataclass_fields__"):
        assert_same(vars(ours), vars(theirs))
    else:
        assert ours == theirs

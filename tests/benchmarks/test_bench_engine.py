"""All asv entries run."""

import inspect
import itertools

import numpy as np
import pytest
from bench_fixtures import *  # noqa: F403

from benchmarks import bench_engine


def entries():
    """Yield every measuring method of every class, with its parameters."""
    for _, cls in inspect.getmembers(bench_engine, inspect.isclass):
        if cls.__module__ != bench_engine.__name__:
            continue
        for name in vars(cls):
            if name.startswith(("time_", "peakmem_")):
                for values in itertools.product(*cls.params):
                    label = "-".join(map(str, (cls.__name__, name, *values)))
                    yield pytest.param(cls, name, values, id=label)


@pytest.mark.slow
@pytest.mark.parametrize(("cls", "name", "values"), list(entries()))
def test_asv_entries_run(cls, name, values):
    entry = cls()
    entry.setup(*values)
    result = getattr(entry, name)(*values)
    if isinstance(result, np.ndarray) and result.dtype.kind == "f":
        assert np.isfinite(result).all()

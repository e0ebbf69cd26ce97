"""Fixtures of all tests: both kinds of tiles, reference data, a cache of their own."""

import os
import shutil
import sys
import tempfile
from collections import Counter
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import threadpoolctl
import torch

import skconvrfm
from skconvrfm.compute.native import build

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent
SHARED = Path(os.environ.get("SKCONVRFM_SHARED", ROOT.parent / "shared"))

MANY = 5

# For the benchmarks, which are not installed, and the helpers beside this file; last,
# so that the package is the installed one.
sys.path += [folder for folder in (str(TESTS), str(ROOT)) if folder not in sys.path]

# The same examples in every run. Nothing is kept: what was found is written down as an
# example of its test.
hypothesis.settings.register_profile(
    "ci",
    derandomize=True,
    deadline=None,
    database=None,
    phases=set(hypothesis.Phase) - {hypothesis.Phase.explain},
)
# Others, by --hypothesis-seed, and as many as the environment variable says.
hypothesis.settings.register_profile(
    "long", hypothesis.settings.get_profile("ci"), derandomize=False
)
hypothesis.settings.load_profile("long" if "SKCONVRFM_EXAMPLES" in os.environ else "ci")


def pytest_configure(config):
    """Build the compiled tiles in a folder of this run, not in the user's."""
    if build.CACHE not in os.environ:
        config.skconvrfm_cache = tempfile.mkdtemp(prefix="skconvrfm-tests-")
        os.environ[build.CACHE] = config.skconvrfm_cache
    if hasattr(config, "workerinput"):  # one of several, which share the cores
        os.environ["OMP_NUM_THREADS"] = "1"
        torch.set_num_threads(1)
        # As in processes that tests start, whose results are to be the same bits.
        threadpoolctl.threadpool_limits(1)


def pytest_unconfigure(config):
    """Remove that folder; workers of a distributed run leave it to their parent."""
    if hasattr(config, "skconvrfm_cache"):
        shutil.rmtree(config.skconvrfm_cache, ignore_errors=True)
        del os.environ[build.CACHE]


@pytest.hookimpl(tryfirst=True)  # before -m selects by the marks
def pytest_collection_modifyitems(items):
    """Mark slow most of the many combinations of parameters of a test.

    Of a test with more than ``MANY`` cases the quick tier has every value of every
    parameter, in few combinations; ``-m slow`` has the others.
    """
    tests = {}
    for item in items:
        if hasattr(item, "callspec") and len(item.callspec.params) > 1:
            tests.setdefault(item.nodeid.split("[")[0], []).append(item)
    for cases in tests.values():
        chosen = covering(cases) if len(cases) > MANY else cases
        for item in cases:
            if item not in chosen:
                item.add_marker("slow")


def covering(cases):
    """Choose few of the cases of a test that have all values of its parameters."""
    values = {
        item: {(name, id(value)) for name, value in item.callspec.params.items()}
        for item in cases
    }
    missing, chosen, used = set().union(*values.values()), set(), Counter()

    def gain(item):
        """New values; among equals, those that few chosen cases have."""
        return len(values[item] & missing), -sum(used[v] for v in values[item])

    while missing:
        best = max(cases, key=gain)
        missing -= values[best]
        used.update(values[best])
        chosen.add(best)
    return chosen


def pytest_runtest_setup(item):
    """Skip what needs a GPU where there is none, also with ``-m gpu``."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no CUDA device here")


@pytest.fixture(params=["array", "compiled"])
def tiles(request, monkeypatch):
    """Take array operations, or the compiled tiles, however small the work is."""
    switch_tiles(request.param, monkeypatch)
    return request.param


@pytest.fixture
def array_tiles(monkeypatch):
    """Take array operations for every tile."""
    switch_tiles("array", monkeypatch)


@pytest.fixture
def compiled_tiles(monkeypatch):
    """Take compiled tiles, however small the work is."""
    switch_tiles("compiled", monkeypatch)


def switch_tiles(kind, monkeypatch):
    monkeypatch.setenv(build.SWITCH, "1" if kind == "compiled" else "0")
    if kind == "compiled" and build.load(0) is None:
        pytest.skip("no C++ compiler here")


@pytest.fixture
def set_threads():
    """Set the number of threads of torch, until the end of the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def shared():
    """Return the folder of reference values and real images, where there is one."""
    if not SHARED.is_dir():
        pytest.skip(f"no folder {SHARED}; set SKCONVRFM_SHARED to where it is")
    return SHARED


@pytest.fixture
def environment():
    """Return the environment for another process, which finds the package as we do."""
    folder = str(Path(skconvrfm.__file__).parents[1])
    path = os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")])
    return {**os.environ, "PYTHONPATH": path}


@pytest.fixture
def matplotlib_without_a_screen():
    """Let examples draw, where they can, and close what they drew."""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        yield
        return
    backend = plt.get_backend()
    plt.switch_backend("agg")
    yield
    plt.close("all")
    plt.switch_backend(backend)

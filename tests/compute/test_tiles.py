"""Kernel and AGOP are the same whatever the tiles, the memory and the workers."""

import functools
import math
import os
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from by_hand import assert_close
from joblib import parallel_config
from joblib.externals.loky import get_reusable_executor
from sklearn import config_context

from skconvrfm._input import make_resources
from skconvrfm.compute import parallel
from skconvrfm.compute import tiles as tiles_module
from skconvrfm.compute.native import build
from skconvrfm.compute.tiles import kernel_matrix, kernel_product
from skconvrfm.kernels import ConvNTK, patch_agop
from skconvrfm.kernels.base import PatchKernel
from skconvrfm.kernels.convolutional import ConvolutionalKernel

KERNEL = ConvNTK(depth=2, bias=0.1)


@pytest.fixture
def images(rng):
    return rng.normal(size=(37, 7, 6, 2)), rng.normal(size=(11, 7, 6, 2))


def everything(X, Y, n_jobs=None):
    """All that is computed over tiles."""
    coef = np.random.default_rng(2).normal(size=(len(X), 3))
    many = np.random.default_rng(3).normal(size=(len(X), 200))
    resources = make_resources("cpu", "float64", n_jobs, X)
    bound = KERNEL.bind(X.shape[1:])
    return {
        "among": KERNEL(X, n_jobs=n_jobs),
        "between": KERNEL(X, Y, n_jobs=n_jobs),
        "agop by outputs": patch_agop(KERNEL, X, coef, Y, n_jobs=n_jobs),
        "agop without outputs": patch_agop(KERNEL, X, many, Y, n_jobs=n_jobs),
        "product": kernel_product(bound, Y, X, None, coef, resources),
    }


def assert_same(results, expected, tolerance=1e-10):
    for key, value in results.items():
        assert_close(value, expected[key], tolerance)


# ------------------------------------------------------------------- memory


@pytest.fixture
def few(rng):
    return rng.normal(size=(13, 5, 5, 2)), rng.normal(size=(5, 5, 5, 2))


@pytest.mark.parametrize(
    ("budget", "n_jobs"), [(1e-5, None), (0.02, 3), (0.3, 2), (5, -1)]
)
def test_results_independent_of_memory_and_threads(budget, n_jobs, few, tiles):
    expected = everything(*few)
    with config_context(working_memory=budget), parallel_config("threading"):
        assert_same(everything(*few, n_jobs=n_jobs), expected)


@pytest.mark.parametrize("n", [1, 2, 3, 13, 17, 31])
def test_kernel_of_any_number_of_images(n, images, tiles):
    X, Y = images
    whole = KERNEL(np.concatenate([X, Y]))
    with config_context(working_memory=0.05):
        assert_close(KERNEL(X[:n]), whole[:n, :n], 1e-12)
        between = KERNEL(X[:n], Y)
    assert_close(between, whole[:n, len(X) :], 1e-12)


def test_prime_number_of_images_makes_no_more_tiles():
    def tasks(n):
        resources, counted = counting_resources(memory=2**17)
        kernel = KERNEL.bind((8, 8, 1))
        kernel_matrix(kernel, np.ones((n, 8, 8, 1)), None, None, resources)
        return len(counted)

    assert tasks(30) <= tasks(31) <= tasks(32)


def counting_resources(**changes):
    """Resources whose runner notes the number of rows of every task."""
    counted = []

    def run(function, tasks):
        for task in tasks:
            counted.append(len(task[1]))
            yield function(*task)

    resources = make_resources("cpu", "float64", None, np.empty(0))
    return replace(resources, run=run, **changes), counted


def test_training_kernel_computes_one_triangle(monkeypatch, rng):
    pairs = []
    value = PatchKernel.value

    def counting_value(self, left, right):
        pairs.append(len(left) * len(right))
        return value(self, left, right)

    monkeypatch.setattr(PatchKernel, "value", counting_value)
    monkeypatch.setenv(build.SWITCH, "0")
    with config_context(working_memory=0.1):
        ConvNTK(depth=1)(rng.normal(size=(60, 6, 6)))
    assert 60 * 61 / 2 <= sum(pairs) < 0.6 * 60**2


@pytest.mark.parametrize("memory", [2**16, 2**18])
def test_predictions_stream_in_strips_that_fit_the_budget(memory, rng):
    X, centres = rng.normal(size=(400, 5, 5, 1)), rng.normal(size=(30, 5, 5, 1))
    coef = rng.normal(size=(30, 2))
    resources, rows = counting_resources(memory=memory)
    bound = KERNEL.bind((5, 5, 1))
    streamed = kernel_product(bound, X, centres, None, coef, resources)
    assert sum(rows) == 400 and max(rows) * 30 * 8 <= memory / 8
    whole = KERNEL(X, centres) @ coef
    assert_close(streamed, whole, 1e-12)
    assert streamed.dtype == np.float64


@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="no peak memory to reset"
)
@pytest.mark.parametrize("budget", [24, 96])
@pytest.mark.parametrize("function", ["kernel", "agop"])
def test_memory_beyond_the_result_stays_under_the_budget(function, budget, rng, tiles):
    X = rng.normal(size=(150, 24, 24, 2)).astype(np.float32)
    coef = rng.normal(size=(150, 10))

    def call(images):
        if function == "kernel":
            return KERNEL(images).nbytes
        return patch_agop(KERNEL, images, coef[: len(images)], images[:40]).nbytes

    with config_context(working_memory=budget):
        call(X[:4])  # whatever is loaded and kept at the first call
        before, peak = memory_of_process("VmRSS"), memory_of_process
        Path("/proc/self/clear_refs").write_text("5")
        result = call(X)
        used = peak("VmHWM") - before - result
    assert used < budget * 2**20


def memory_of_process(name):
    """A line of /proc/self/status in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(li.split()[1]) for li in lines if li.startswith(name))


# ------------------------------------------------------------ out of memory

ERRORS = {
    "numpy": MemoryError("Unable to allocate 3.00 GiB for an array"),
    "torch": RuntimeError(
        "[enforce fail at alloc_cpu.cpp:127] err == 0. DefaultCPUAllocator: "
        "can't allocate memory: you tried to allocate 99 bytes."
    ),
    "cuda": torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
}


@pytest.fixture
def fail_once(monkeypatch):
    """Return a function that lets the next block raise an error."""

    def fail_with(error, times=1):
        left = [error] * times
        prepare_block = ConvolutionalKernel.prepare_block

        def failing(*arguments):
            if left:
                raise left.pop()
            return prepare_block(*arguments)

        monkeypatch.setattr(ConvolutionalKernel, "prepare_block", failing)

    return fail_with


CALLS = {
    "among": lambda X, Y: KERNEL(X),
    "agop by outputs": lambda X, Y: patch_agop(KERNEL, X, X[:, 0, 0], Y),
    "agop without outputs": lambda X, Y: patch_agop(KERNEL, X, np.eye(len(X)), Y),
}


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("name", CALLS)
def test_out_of_memory_halves_the_tile_and_warns_once(error, name, images, fail_once):
    expected = CALLS[name](*images)
    fail_once(ERRORS[error])
    with (
        config_context(working_memory=8),
        pytest.warns(RuntimeWarning, match=r"4 MiB.*working_memory") as seen,
    ):
        result = CALLS[name](*images)
    assert len(seen) == 1
    assert_close(result, expected, 1e-10)


def test_tiles_are_halved_until_they_fit(images, fail_once):
    expected = KERNEL(images[0])
    fail_once(MemoryError(), times=3)
    with config_context(working_memory=64):
        with pytest.warns(RuntimeWarning, match="half") as seen:
            result = KERNEL(images[0])
    assert ["32 MiB", "16 MiB", "8 MiB"] == [
        str(warning.message).split("(")[1].split(")")[0] for warning in seen
    ]
    assert_close(result, expected, 1e-10)


def test_error_is_raised_where_halving_does_not_help(images, fail_once):
    fail_once(MemoryError("really none"), times=100)
    with config_context(working_memory=8), pytest.warns(RuntimeWarning) as seen:
        with pytest.raises(MemoryError, match="really none"):
            KERNEL(images[0])
    assert len(seen) == 3


def test_other_errors_are_raised_at_once(images, fail_once):
    fail_once(RuntimeError("mat1 and mat2 have other ideas"))
    with pytest.raises(RuntimeError, match="other ideas"):
        KERNEL(images[0])


# -------------------------------------------------------- without a compiler


@pytest.mark.parametrize("obstacle", ["no compiler", "a compiler that fails"])
def test_without_a_compiler_results_are_those_of_array_operations(
    obstacle, images, monkeypatch, tmp_path
):
    monkeypatch.setenv(build.SWITCH, "0")
    expected = everything(*images)
    monkeypatch.setenv(build.SWITCH, "1")
    monkeypatch.setenv(build.CACHE, str(tmp_path / "cache"))
    monkeypatch.setattr(build, "_load", functools.cache(build._load.__wrapped__))
    if obstacle == "no compiler":
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setenv("PATH", str(tmp_path))
    else:
        monkeypatch.setenv("CXX", shutil.which("false"))
    with pytest.warns(UserWarning, match="without its compiled functions"):
        assert build.load(0) is None
    results = everything(*images)
    for name, value in expected.items():
        np.testing.assert_array_equal(results[name], value)


def test_budget_too_small_for_compiled_maps_takes_array_operations(compiled_tiles, rng):
    X = rng.normal(size=(3, 40, 40))
    bound = KERNEL.bind((40, 40, 1))
    with config_context(working_memory=0.1):
        resources = make_resources("cpu", "float64", None, X)
        assert tiles_module.find_library(bound, 9, resources) is None
        small = KERNEL(X)
    assert_close(small, KERNEL(X), 1e-12)


# ------------------------------------------------------------------ workers


@pytest.mark.slow
def test_results_independent_of_processes(images):
    expected = everything(*images)
    try:
        with parallel_config("loky", inner_max_num_threads=1):
            assert_same(everything(*images, n_jobs=2), expected)
    finally:
        get_reusable_executor().shutdown(wait=True)


def test_n_jobs_none_takes_the_context_of_joblib(images, monkeypatch):
    seen = []
    expected = everything(*images)
    run = parallel.Resources.one_worker

    def one_worker(self):
        seen.append(self.n_workers)
        return run(self)

    monkeypatch.setattr(parallel.Resources, "one_worker", one_worker)
    with parallel_config("threading", n_jobs=2):
        assert_same(everything(*images), expected)
    assert set(seen) == {2}


def test_workers_share_the_memory():
    resources = make_resources("cpu", "float64", 4, np.empty(0))
    worker = resources.one_worker()
    assert worker.memory == resources.memory // 4 and worker.n_workers == 1


@pytest.mark.parametrize(("threads", "n_jobs"), [(1, None), (3, None), (3, 2)])
def test_threads_of_torch_change_nothing_and_are_set_back(
    threads, n_jobs, images, tiles, set_threads
):
    expected = everything(*images)
    set_threads(threads)
    with parallel_config("threading"):
        assert_same(everything(*images, n_jobs=n_jobs), expected)
    assert torch.get_num_threads() == threads


def test_no_thread_setting_is_left_behind_by_a_failure(
    images, fail_once, monkeypatch, set_threads
):
    # The other worker may still run when the next test does: it must not set threads.
    monkeypatch.setenv(build.SWITCH, "0")
    set_threads(4)
    fail_once(RuntimeError("a worker fell over"))
    with parallel_config("threading"), pytest.raises(RuntimeError, match="fell"):
        KERNEL(images[0], n_jobs=2)
    assert torch.get_num_threads() == 4


def test_threads_of_torch_are_shared_out_to_the_workers(
    images, monkeypatch, set_threads
):
    seen, prepare_block = [], ConvolutionalKernel.prepare_block

    def watching(*arguments):
        seen.append(torch.get_num_threads())
        return prepare_block(*arguments)

    monkeypatch.setattr(ConvolutionalKernel, "prepare_block", watching)
    monkeypatch.setenv(build.SWITCH, "0")  # compiled tiles bring their threads
    set_threads(4)
    with parallel_config("threading"):
        KERNEL(images[0], n_jobs=2)
    assert set(seen) == {2}


# --------------------------------------------------------------------- work


def test_work_counts_pairs_locations_and_layers():
    valid, same = (
        ConvNTK(depth=2, padding=padding).bind((6, 5, 3))
        for padding in ("valid", "same")
    )
    assert tiles_module.work(valid, 10) == 10 * (4 * 3 + 2 * 1)
    assert tiles_module.work(same, 10) == 10 * 2 * 6 * 5


def test_resources_of_a_worker_can_be_sent_to_it():
    resources = make_resources("auto", "float32", 2, np.empty(0))
    worker = pickle.loads(pickle.dumps(resources.one_worker()))
    assert worker.device_name == "auto" and worker.dtype == torch.float32
    assert math.isclose(worker.memory, resources.memory / 2)

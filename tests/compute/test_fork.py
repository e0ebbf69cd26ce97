"""Forked children of a process with threads of torch compute, and do not hang."""

import multiprocessing
import os
import threading

import numpy as np
import pytest
import torch

from skconvrfm import ConvRFMClassifier
from skconvrfm.compute.threads import own_threads
from skconvrfm.features import ConvFeatures

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here"),
    pytest.mark.filterwarnings(
        "ignore:.*multi-threaded, use of fork:DeprecationWarning"
    ),
]
SECONDS = 60  # after which a child counts as hanging


@pytest.fixture(scope="module")
def data():
    X = np.random.default_rng(0).normal(size=(60, 8, 8))
    return X, (X[:, 3, 3] * X[:, 4, 4] > 0).astype(int)


@pytest.fixture(scope="module")
def models(data):
    exact = ConvRFMClassifier(n_rounds=1).fit(*data)
    linear = ConvRFMClassifier("linear", ConvFeatures(64), n_rounds=0).fit(*data)
    return exact, linear


def in_a_child(function, *arguments):
    """Return what a function of a forked child returns."""
    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()

    def target():
        queue.put(function(*arguments))

    child = context.Process(target=target)
    child.start()
    child.join(SECONDS)
    hangs = child.is_alive()
    if hangs:
        child.kill()
        child.join()
    assert not hangs and child.exitcode == 0
    return queue.get()


def multiply():
    """Return an entry of a product that torch shares out to its threads."""
    a = torch.ones(500, 500)
    return float((a @ a)[0, 0])


def predict_and_fit(models, data):
    """Return scores before and after another fit, and the threads of torch."""
    multiply()
    before = [model.decision_function(data[0]) for model in models]
    after = [model.fit(*data).decision_function(data[0]) for model in models]
    return before, after, torch.get_num_threads()


def check_child(models, data):
    """Check a child that was forked from this thread, whose threads of torch run."""
    multiply()
    expected = [model.decision_function(data[0]) for model in models]
    *found, threads = in_a_child(predict_and_fit, models, data)
    for scores in found:
        for actual, wanted in zip(scores, expected, strict=True):
            np.testing.assert_allclose(actual, wanted, rtol=1e-6, atol=1e-6)
    assert threads == 1


def test_forked_child_predicts_and_fits_on_one_thread(models, data, set_threads):
    set_threads(2)
    check_child(models, data)
    assert torch.get_num_threads() == 2


def test_child_forked_in_the_midst_of_a_computation_works(models, data, set_threads):
    set_threads(2)
    with own_threads():
        check_child(models, data)
    assert torch.get_num_threads() == 2


def test_child_forked_right_after_a_computation_works(models, data, set_threads):
    # Threads that end hold a lock of MKL for a moment: a fork waits for them.
    set_threads(2)
    for _ in range(20):
        busy = threading.Thread(target=models[1].predict, args=(data[0],))
        busy.start()
        busy.join()
        models[1].predict(data[0])
        assert in_a_child(multiply) == 500


def test_child_of_a_process_with_one_thread_keeps_its_one(models, data, set_threads):
    set_threads(1)
    check_child(models, data)


def test_pool_of_forked_workers_predicts(models, data, set_threads):
    set_threads(2)
    expected = models[1].predict(data[0])
    with multiprocessing.get_context("fork").Pool(2) as pool:
        calls = [pool.apply_async(models[1].predict, (data[0],)) for _ in range(4)]
        for call in calls:
            np.testing.assert_array_equal(call.get(SECONDS), expected)

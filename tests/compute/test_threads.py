"""Threads of our own over parts of a computation."""

import threading

import pytest
from threadpoolctl import ThreadpoolController

from skconvrfm.compute.threads import own_threads, share_out


def test_torch_has_one_thread_in_all_threads_of_our_own_from_the_start(set_threads):
    # Else the first products of a thread are cut into other parts than its next ones,
    # and their bits depend on which thread takes which.
    controllers = ThreadpoolController().select(user_api="openmp").lib_controllers
    of_torch = [library for library in controllers if "torch" in library.filepath]
    if not of_torch:
        pytest.skip("torch comes without a library of threads here")
    set_threads(2)
    both_started = threading.Barrier(2)

    def count(part):
        both_started.wait(timeout=60)
        return [library.num_threads for library in of_torch]

    with own_threads():
        counts = share_out(count, slice(0, 2), 1)
    assert counts == [[1], [1]]

"""Threads of our own over coarse parts of the work, while torch keeps to one.

Torch splits every operation over its threads and waits for the last of them; on
operations of a tile's size that gains little, and where another process holds a
core it loses a lot.
"""

import math
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

from .blocks import balanced_blocks

_own = threading.local()


def thread_count():
    """Return the number of threads for this computation: as many as torch was given."""
    return getattr(_own, "count", None) or torch.get_num_threads()


def own_thread_count():
    """Return the number of threads of our own, 1 where they are torch's."""
    return getattr(_own, "count", 1)


@contextmanager
def own_threads(wanted=True):
    """Let torch use one thread, and `share_out` all of them; restored at the end."""
    if not wanted or hasattr(_own, "count"):  # or already so
        yield
        return
    count = torch.get_num_threads()
    try:
        _own.count = count
        torch.set_num_threads(1)
        yield
    finally:
        torch.set_num_threads(count)
        vars(_own).pop("count", None)


def share_out(call, whole, largest):
    """Return ``call(part)`` for parts of a slice, of at most ``largest``, in order."""
    threads, count = thread_count(), whole.stop - whole.start
    parts = balanced_blocks(whole, min(largest, math.ceil(count / threads)))
    if threads == 1 or len(parts) == 1:
        return [call(part) for part in parts]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(call, parts))

"""Threads of our own over coarse parts of the work, while torch keeps to one.

Torch splits every operation over its threads and waits for the last of them; on
operations of a tile's size that gains little, and where another process holds a
core it loses a lot.

A forked child has none of the threads of torch, and would wait for them forever: there
torch is left with one. It would also wait for a lock that a thread held in the parent,
such as MKL's, which threads that end take last of all.
"""

import math
import os
import threading
import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import torch

from .blocks import balanced_blocks

_own = threading.local()
# Numbers, by the system, of threads that have computed.
_noted: deque[int] = deque(maxlen=1024)
_ENDING_SECONDS = 1.0  # that a thread may take at most


def note_thread():
    """Take note of this thread, whose end a fork has to wait for."""
    _noted.append(threading.get_native_id())


def _wait_for_ending_threads():
    """Wait for threads that Python takes for ended, and the system does not yet."""
    running = {thread.native_id for thread in threading.enumerate()}
    end = time.monotonic() + _ENDING_SECONDS
    while _noted:
        number = _noted.pop()
        while number not in running and os.path.exists(f"/proc/self/task/{number}"):
            if time.monotonic() > end:
                return
            time.sleep(1e-4)


def _leave_one_thread():
    """Let a forked child compute without the threads that stayed in its parent."""
    vars(_own).clear()
    if torch.get_num_threads() > 1:
        torch.set_num_threads(1)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_wait_for_ending_threads, after_in_child=_leave_one_thread
    )


def thread_count():
    """Return the number of threads for this computation: as many as torch was given."""
    return getattr(_own, "count", None) or torch.get_num_threads()


def own_thread_count():
    """Return the number of threads of our own, 1 where they are torch's."""
    return getattr(_own, "count", 1)


def _start_own_thread():
    """Let torch use one thread here too: a new thread starts with its former count."""
    note_thread()
    torch.set_num_threads(1)


@contextmanager
def own_threads(wanted=True):
    """Let torch use one thread, and `share_out` all of them; restored at the end."""
    if not wanted or hasattr(_own, "count"):  # or already so
        yield
        return
    note_thread()
    count = torch.get_num_threads()
    try:
        _own.count = count
        torch.set_num_threads(1)
        with ThreadPoolExecutor(count, initializer=_start_own_thread) as _own.pool:
            yield
    finally:
        torch.set_num_threads(count)
        vars(_own).clear()


def share_out(call, whole, largest):
    """Return ``call(part)`` for parts of a slice, of at most ``largest``, in order."""
    threads, count = thread_count(), whole.stop - whole.start
    parts = balanced_blocks(whole, min(largest, math.ceil(count / threads)))
    if threads == 1 or len(parts) == 1:
        return [call(part) for part in parts]
    if hasattr(_own, "pool"):
        return list(_own.pool.map(call, parts))
    with ThreadPoolExecutor(threads, initializer=note_thread) as pool:
        return list(pool.map(call, parts))

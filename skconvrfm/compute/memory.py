"""Memory of this process and machine: used, at its peak, and free."""

import contextlib
import ctypes
import gc
import os
import sys
import threading
from pathlib import Path

import torch


class MemoryMeter:
    """Context that measures the peak of memory above its start, in bytes.

    On Linux a thread looks at the resident memory every few milliseconds. Elsewhere the
    high-water mark before and after misses a peak below an earlier one. At the end,
    ``host`` and ``gpu`` are bytes, or None if unknown.
    """

    def __init__(self, device):
        self.device = device
        self.host = self.gpu = None

    def __enter__(self):
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)
            self._gpu_start = torch.cuda.memory_allocated(self.device)
        self._peak = resident_memory()
        self._start = self._peak or high_water_mark()
        self._stop = threading.Event()
        self._watcher = threading.Thread(target=self._watch, daemon=True)
        self._watcher.start()
        return self

    def __exit__(self, *exception):
        self._stop.set()
        self._watcher.join()
        if self._start is not None:
            self.host = (self._peak or high_water_mark()) - self._start
        if self.device.type == "cuda":
            self.gpu = torch.cuda.max_memory_allocated(self.device) - self._gpu_start

    def _watch(self):
        while self._peak is not None and not self._stop.wait(0.005):
            self._peak = max(self._peak, resident_memory())


def give_back_free_memory():
    """Return freed memory to the system, so that the next peak is not below it."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def resident_memory():
    """Return the resident memory of this process in bytes, or None."""
    try:
        pages = Path("/proc/self/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return None


def high_water_mark():
    """Return the largest resident memory so far in bytes, or None."""
    try:
        import resource
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def free_memory(device):
    """Return the bytes that are free on a device, or may be used by this process."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return min(_available_memory(), _cgroup_free())


def _available_memory():
    """Return the bytes that the system can give without swapping; 2^63 if unknown."""
    with contextlib.suppress(OSError):  # not Linux
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return 1024 * int(line.split()[1])
    with contextlib.suppress(AttributeError, ValueError, OSError):  # Windows
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return 2**63


def _cgroup_free():
    """Return the bytes that the limit of a container leaves; 2^63 without a limit."""
    folder = Path("/sys/fs/cgroup")
    old = "memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"
    for limit, used in (("memory.max", "memory.current"), old):
        with contextlib.suppress(OSError, ValueError):  # another version, or "max"
            return int((folder / limit).read_text()) - int((folder / used).read_text())
    return 2**63

"""Workers, memory and devices of a computation, and the tasks that share it.

Every heavy loop is a function that is called for many tasks. A task carries its slice
of the images, or a reference to their file, and may run in this process, in workers
of this machine or on a cluster, as joblib's backend decides. Sums over tasks are
added up as a tree.
"""

import functools
import itertools
import math
import platform
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace

import numpy as np
import torch
from joblib import cpu_count, effective_n_jobs
from joblib.parallel import get_active_backend
from sklearn import get_config
from sklearn.utils.parallel import Parallel, delayed

from .blocks import balanced_blocks
from .devices import resolve_device
from .images import on_device, to_tensor
from .memory import free_memory
from .threads import note_thread

_LEAST_MEMORY = 2**20  # of a task that is tried again
_KEPT_SHARE = 4  # part of the free memory of a GPU that images, or a matrix, may take
# Tasks per worker: enough of rows to share the work out evenly; one where every result
# is as large as the sum.
ROW_TASKS, SUM_TASKS = 4, 1


def working_memory():
    """Return the bytes that scikit-learn's configuration lets a computation use."""
    return int(get_config()["working_memory"] * 2**20)


def run_in_turn(function, tasks):
    """Yield ``function(*task)`` for every task, in order: the default runner."""
    return (function(*task) for task in tasks)


@dataclass(frozen=True)
class Resources:
    """Device, precision, memory and workers of a computation."""

    device_name: str  # "auto" is resolved where a task runs
    dtype: torch.dtype  # precision of the tiles
    memory: int  # bytes beyond data and result, for all workers of a machine
    n_workers: int = 1  # tasks that run at the same time
    run: Callable = run_in_turn  # run(function, tasks) iterates over function(*task)
    n_machines: int = 1  # that share the work

    @property
    def device(self):
        """The torch device of this process."""
        return resolve_device(self.device_name)

    @property
    def itemsize(self):
        """Bytes of a number."""
        return self.dtype.itemsize

    @property
    def numpy_dtype(self):
        """The numpy dtype of the tiles."""
        return np.dtype(str(self.dtype).removeprefix("torch."))

    def tensor(self, array):
        """Return a numpy array, or None, on the device in the dtype of the tiles."""
        return None if array is None else to_tensor(array, self.dtype, self.device)

    def keeps(self, n_bytes):
        """Return True if so many bytes may stay on the GPU that this process uses."""
        if self.device.type != "cuda" or self.n_workers > 1:
            return False
        return n_bytes <= free_memory(self.device) // _KEPT_SHARE

    def on_gpu(self, images):
        """Return images with a copy on the GPU, if they may stay there."""
        kept = self.keeps(self.itemsize * math.prod(images.shape))
        return on_device(images, self.dtype, self.device) if kept else images

    def one_worker(self):
        """Return the resources of one worker; picklable, without a pool of its own."""
        memory = max(1, self.memory * self.n_machines // self.n_workers)
        return Resources(self.device_name, self.dtype, memory)


def parallel_resources(device_name, dtype, memory, n_jobs):
    """Return resources that share tasks out to joblib's backend that is active."""
    n_workers = effective_n_jobs(n_jobs)
    # A cluster takes even a single task to another place.
    backend = type(get_active_backend()[0])
    elsewhere = backend.__module__ != "joblib._parallel_backends"
    if n_workers == 1 and not elsewhere:
        return Resources(device_name, dtype, memory)
    run = functools.partial(_run_in_parallel, n_jobs, n_workers)
    # The machines of a cluster are taken to be like this one, and used as a whole.
    n_machines = math.ceil(n_workers / cpu_count()) if elsewhere else 1
    return Resources(device_name, dtype, memory, n_workers, run, n_machines)


def _run_in_parallel(n_jobs, n_workers, function, tasks):
    """Share tasks out to joblib workers that share out the threads of torch."""
    threads = torch.get_num_threads()
    share = max(1, threads // n_workers)
    streams = get_active_backend()[0].supports_return_generator
    parallel = Parallel(n_jobs=n_jobs, return_as="generator" if streams else "list")
    call = functools.partial(_run_task, function, platform.node(), share)
    # Threads of this process take their share from here, and give it back here.
    torch.set_num_threads(share)
    try:
        # One pool for all waves.
        with nullcontext() if streams else parallel:
            tasks = iter(tasks)
            waves = iter(lambda: list(itertools.islice(tasks, n_workers)), [])
            for wave in [tasks] if streams else waves:
                # Without arguments of its own, so that a cluster keeps a task and its
                # data together and can run it again when a worker is lost.
                jobs = (functools.partial(call, task) for task in wave)
                yield from parallel(delayed(job)() for job in jobs)
    finally:
        torch.set_num_threads(threads)


def _run_task(function, home, share, task):
    """Call a task in a worker that takes its share of the threads of torch."""
    note_thread()
    # New threads start with the last setting, which a task that goes on after another
    # one failed may have set to 1. Another machine has its own share.
    if platform.node() == home:
        torch.set_num_threads(share)
    return function(*task)


def sum_tasks(function, tasks, resources):
    """Return Σ ``function(*task)``; two sums of equally many tasks are added first."""
    sums = []
    for result in resources.run(function, tasks):
        level = 0
        while sums and sums[-1][0] == level:
            result = sums.pop()[1] + result
            level += 1
        sums.append((level, result))
    total = sums.pop()[1]
    while sums:
        total = sums.pop()[1] + total
    return total


def spans(n, resources, per_worker=ROW_TASKS, largest=None):
    """Return slices of n images: ``per_worker`` for each worker, or one if alone."""
    largest = n if largest is None else largest
    if resources.n_workers > 1:
        largest = min(largest, math.ceil(n / (per_worker * resources.n_workers)))
    return balanced_blocks(slice(0, n), largest)


def halving_memory(task):
    """Let a task try again with half the memory, of its `Resources`, and warn."""

    @functools.wraps(task)
    def patient_task(*arguments):
        *arguments, resources = arguments
        while True:
            try:
                return task(*arguments, resources)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                memory = resources.memory / 2**20
                if resources.memory <= _LEAST_MEMORY:
                    raise MemoryError(
                        f"out of memory, with tiles of {memory:.0f} MiB as "
                        f"well: {error}. A smaller working_memory, which bounds tiles, "
                        "will not help: take fewer images at a time or fewer n_jobs, "
                        "or another device."
                    ) from error
            resources = replace(resources, memory=resources.memory // 2)
            if resources.device.type == "cuda":
                torch.cuda.empty_cache()
            warnings.warn(
                "out of memory: going on with tiles of half the size "
                f"({memory / 2:.0f} MiB); set a smaller working_memory "
                "with sklearn.set_config to avoid the first attempt.",
                RuntimeWarning,
                stacklevel=2,
            )

    return patient_task


def is_out_of_memory(error):
    """Return True if an allocation failed, on a CPU or a GPU."""
    # torch's CPU allocator has no error of its own
    text = str(error) if isinstance(error, RuntimeError) else ""
    has_type = isinstance(error, MemoryError | torch.cuda.OutOfMemoryError)
    return has_type or "can't allocate memory" in text or "out of memory" in text

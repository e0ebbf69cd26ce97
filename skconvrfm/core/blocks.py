"""Blocks of images, and the jobs that work on them: the one place that knows of both.

Every heavy loop is a function that is called for many tasks. A task carries its slice
of the images, or a reference to their file, and may run in this process, in workers
of this machine or on a cluster: whatever joblib's backend is. Sums over tasks are
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

from .devices import resolve_device
from .images import to_tensor

# A task that runs out of memory is tried again with half, down to this.
_LEAST_MEMORY = 2**20
# In float32, values up to this have squares that can be added up over the patches of
# ten layers, and values from its inverse on have squares that keep all digits.
_LARGEST_SQUARED = 1e12
# Bytes of stored images that are read at once to be looked at.
SCANNED_BYTES = 2**24
# Tasks a worker whose results are rows: enough to share the work out evenly.
ROW_TASKS = 4
# The same where every result is as large as the sum: no more to send than needed.
SUM_TASKS = 1


def balanced_blocks(images, largest):
    """Cut a slice of images into slices of at most ``largest``, equal but for one.

    Equal blocks make a prime number of images cost what its neighbours cost.
    """
    n = images.stop - images.start
    count = max(1, -(-n // max(1, largest)))
    bounds = [images.start + n * i // count for i in range(count + 1)]
    return [slice(a, b) for a, b in zip(bounds, bounds[1:], strict=False)]


def image_blocks(images, largest):
    """Slices of all images, of at most ``largest`` images each."""
    return balanced_blocks(slice(0, len(images)), largest)


def byte_blocks(rows, n_bytes):
    """Slices of all rows of an array, of at most so many bytes each, or of one row."""
    row_bytes = rows.dtype.itemsize * math.prod(rows.shape[1:])
    return image_blocks(rows, n_bytes // max(1, row_bytes))


def squares_fit_float32(images):
    """Whether float32 can compute with the squares of some images.

    Parameters
    ----------
    images : ndarray, StoredRows or StoredImages
        The images, finite; stored ones are read block by block.
    """
    if images.dtype.kind != "f" or images.dtype.itemsize < 4:
        return True  # there are no such values
    size = largest_value(images)
    return size == 0 or 1 / _LARGEST_SQUARED <= size <= _LARGEST_SQUARED


def largest_value(*arrays):
    """The largest absolute value in some arrays; of feature maps, in their pixels."""
    largest = 0.0
    for array in arrays:
        array = getattr(array, "pixels", array)
        for part in byte_blocks(array, SCANNED_BYTES):
            block = np.asarray(array[part])
            largest = max(largest, float(block.max()), -float(block.min()))
    return largest


def working_memory():
    """Bytes that scikit-learn's configuration lets a computation use."""
    return int(get_config()["working_memory"] * 2**20)


def run_in_turn(function, tasks):
    """Yield ``function(*task)`` for every task, in order: the default runner."""
    return (function(*task) for task in tasks)


@dataclass(frozen=True)
class Resources:
    """What a computation may use.

    Attributes
    ----------
    device_name : str
        Where the tiles are computed; "auto" is resolved where a task runs, which may
        be another machine than the one that plans it.
    dtype : torch.dtype
        Precision of the tiles.
    memory : int
        Bytes that may be in use at once beyond data and result, by all workers of a
        machine together.
    n_workers : int
        Tasks that run at the same time.
    run : callable
        ``run(function, tasks)`` iterates over ``function(*task)``; the place where a
        pool of workers comes in.
    n_machines : int
        Machines that share the work.
    """

    device_name: str
    dtype: torch.dtype
    memory: int
    n_workers: int = 1
    run: Callable = run_in_turn
    n_machines: int = 1

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
        """A numpy array on the device, in the dtype of the tiles; None stays None."""
        return None if array is None else to_tensor(array, self.dtype, self.device)

    def one_worker(self):
        """What one worker may use; picklable, and without a pool of its own."""
        memory = max(1, self.memory * self.n_machines // self.n_workers)
        return Resources(self.device_name, self.dtype, memory)


def parallel_resources(device_name, dtype, memory, n_jobs):
    """Resources that share tasks out by joblib, to the backend that is active.

    Parameters
    ----------
    device_name, dtype, memory
        See `Resources`.
    n_jobs : int or None
        As joblib reads it: None is 1, or what `joblib.parallel_config` says.
    """
    n_workers = effective_n_jobs(n_jobs)
    elsewhere = _is_elsewhere(get_active_backend()[0])
    if n_workers == 1 and not elsewhere:
        return Resources(device_name, dtype, memory)
    run = functools.partial(_run_in_parallel, n_jobs, n_workers)
    # The machines of a cluster are taken to be like this one, and used as a whole.
    n_machines = math.ceil(n_workers / cpu_count()) if elsewhere else 1
    return Resources(device_name, dtype, memory, n_workers, run, n_machines)


def _is_elsewhere(backend):
    """Whether a backend takes even a single task to another place: a cluster."""
    return type(backend).__module__ != "joblib._parallel_backends"


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
            for wave in _waves(tasks, None if streams else n_workers):
                # Without arguments of its own, so that a cluster keeps a task and its
                # data together and can run it again when a worker is lost.
                jobs = (functools.partial(call, task) for task in wave)
                yield from parallel(delayed(job)() for job in jobs)
    finally:
        torch.set_num_threads(threads)


def _waves(tasks, size):
    """All tasks as one wave, or so many at a time where results do not stream."""
    if size is None:
        yield tasks
        return
    tasks = iter(tasks)
    while wave := list(itertools.islice(tasks, size)):
        yield wave


def _run_task(function, home, share, task):
    """Call a task in a worker, thread or process, that takes its share of the threads.

    New threads start with what torch was set to last, by whomever: a task that goes on
    after another one failed may have set it to 1. Another machine has its own share.
    """
    if platform.node() == home:
        torch.set_num_threads(share)
    return function(*task)


def sum_tasks(function, tasks, resources):
    """Σ ``function(*task)``, added up as a tree.

    Of the results that have come, two are added once they are sums of equally many:
    at no time are there more of them than the logarithm of the tasks.

    Parameters
    ----------
    function : callable
        Its results can be added with ``+``.
    tasks : iterable of tuple
        At least one.
    resources : Resources
        Who runs them.
    """
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


def spans(n, resources, a_worker=ROW_TASKS, largest=None):
    """Slices of n images, one a task: all of them for a single worker.

    Parameters
    ----------
    n : int
        Images.
    resources : Resources
        Its workers.
    a_worker : int
        Tasks that each worker gets, about.
    largest : int, default=None
        Images of a task at most.
    """
    largest = n if largest is None else largest
    if resources.n_workers > 1:
        largest = min(largest, math.ceil(n / (a_worker * resources.n_workers)))
    return balanced_blocks(slice(0, n), largest)


def halving_memory(task):
    """Let a task that runs out of memory try again with half of it, and warn.

    Blocks and tiles shrink with the memory in the task's last argument, its
    `Resources`.
    """

    @functools.wraps(task)
    def patient_task(*arguments):
        *arguments, resources = arguments
        while True:
            try:
                return task(*arguments, resources)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                if resources.memory <= _LEAST_MEMORY:
                    raise MemoryError(
                        f"out of memory, with tiles of {_mebibytes(resources)} as "
                        f"well: {error}. A smaller working_memory, which bounds tiles, "
                        "will not help: take fewer images at a time or fewer n_jobs, "
                        "method='features' for a fit, or another device."
                    ) from error
            resources = replace(resources, memory=resources.memory // 2)
            if resources.device.type == "cuda":
                torch.cuda.empty_cache()
            warnings.warn(
                "out of memory: going on with tiles of half the size "
                f"({_mebibytes(resources)}); set a smaller working_memory "
                "with sklearn.set_config to avoid the first attempt.",
                RuntimeWarning,
                stacklevel=2,
            )

    return patient_task


def _mebibytes(resources):
    return f"{resources.memory / 2**20:.0f} MiB"


def is_out_of_memory(error):
    """Whether an allocation failed; torch's CPU allocator has no error of its own."""
    if isinstance(error, MemoryError | torch.cuda.OutOfMemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    return "can't allocate memory" in str(error) or "out of memory" in str(error)

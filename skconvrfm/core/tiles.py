"""The walk over pairs of image blocks: what fits in memory, on which device.

No array of size pairs × locations outlives its tile, and a tile is as large as
its share of the memory budget allows and no larger than pays.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from .convolutional import diagonal, kernel_value, prepare_block
from .devices import resolve_device
from .images import to_tensor

# Arrays of one value a pair and location that are alive at once in a tile, at
# the worst moment, with and without the arrays of a layer kept for the pullback.
_LIVE_ARRAYS = 9
_KEPT_ARRAYS = 2
# A tile's array beyond this spills from the cache of a CPU core and gains nothing.
_CPU_TILE_BYTES = 2**20
# Copies of its patches alive while a block is prepared.
_PATCH_COPIES = 3


def run_in_turn(function, tasks):
    """Call ``function(*task)`` for every task, in order: the default runner."""
    return [function(*task) for task in tasks]


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
        Bytes that may be in use at once beyond data and result, all workers
        together.
    n_workers : int
        Tasks that run at the same time.
    run : callable
        ``run(function, tasks)`` gives the list of ``function(*task)``; the place
        where a pool of workers comes in.
    """

    device_name: str
    dtype: torch.dtype
    memory: int
    n_workers: int = 1
    run: Callable = run_in_turn

    @property
    def device(self):
        """The torch device of this process."""
        return resolve_device(self.device_name)

    @property
    def itemsize(self):
        """Bytes of a number."""
        return self.dtype.itemsize

    @property
    def memory_per_worker(self):
        """Bytes that one task may use."""
        return self.memory // self.n_workers

    def tensor(self, array):
        """A numpy array on the device, in the dtype of the tiles; None stays None."""
        return None if array is None else to_tensor(array, self.dtype, self.device)

    def in_worker(self):
        """The same, for a task inside a worker: picklable and without a pool."""
        return Resources(self.device_name, self.dtype, self.memory_per_worker)


def balanced_blocks(n, largest):
    """Cut ``range(n)`` into slices of at most ``largest``, equal but for one.

    Equal blocks make a prime n cost what its neighbours cost.
    """
    count = max(1, math.ceil(n / max(1, largest)))
    bounds = [n * i // count for i in range(count + 1)]
    return [slice(a, b) for a, b in zip(bounds, bounds[1:], strict=False)]


def image_bytes(kernel, image_shape, itemsize):
    """Bytes that one image takes in a prepared block, while it is prepared."""
    locations = [math.prod(layer.locations) for layer in kernel.layers]
    numbers = _PATCH_COPIES * locations[0] * kernel.patch_dim
    return itemsize * (numbers + 3 * sum(locations) + 2 * math.prod(image_shape))


def pair_bytes(kernel, itemsize, pullback=False):
    """Bytes that one pair of images takes in a tile."""
    kept = _KEPT_ARRAYS * len(kernel.layers) if pullback else 0
    return itemsize * (_LIVE_ARRAYS + kept) * math.prod(kernel.layers[0].locations)


def tile_side(kernel, resources, pullback=False):
    """Images on the side of a square tile."""
    pairs = resources.memory_per_worker // 4 // pair_bytes(
        kernel, resources.itemsize, pullback
    )
    if resources.device.type == "cpu":
        array = resources.itemsize * math.prod(kernel.layers[0].locations)
        pairs = min(pairs, _CPU_TILE_BYTES // array)
    return max(1, math.isqrt(pairs))


def block_side(kernel, image_shape, resources):
    """Images of a prepared block, of which two are alive at a time."""
    return max(
        1,
        resources.memory_per_worker
        // 6
        // image_bytes(kernel, image_shape, resources.itemsize),
    )


def load_blocks(kernel, images, transform, largest, resources):
    """Yield (slice, prepared block) over images held as a numpy array."""
    for part in balanced_blocks(len(images), largest):
        yield (
            part,
            prepare_block(kernel, resources.tensor(images[part]), transform),
        )


def kernel_matrix(kernel, X, Y, transform, resources):
    """The kernel matrix, tile by tile; only one triangle of it where Y is None.

    Parameters
    ----------
    kernel : ConvolutionalKernel
        The kernel.
    X : ndarray of shape (n_X, h, w, c)
        The images of the rows, of any real dtype.
    Y : ndarray of shape (n_Y, h, w, c) or None
        The images of the columns; None means X, and a symmetric result.
    transform : ndarray of shape (d, d) or None
        The patch transform T; None is the identity.
    resources : Resources
        Device, precision, memory, workers.

    Returns
    -------
    ndarray of shape (n_X, n_Y)
    """
    symmetric = Y is None
    Y = X if symmetric else Y
    strips = _strips(kernel, X, len(Y), resources)
    tasks = [
        (
            kernel,
            X[rows],
            Y[rows.start :] if symmetric else Y,
            transform,
            None,
            symmetric,
            resources.in_worker(),
        )
        for rows in strips
    ]
    matrix = np.empty((len(X), len(Y)), dtype=_numpy_dtype(resources.dtype))
    for rows, strip in zip(strips, resources.run(_strip, tasks), strict=True):
        first = rows.start if symmetric else 0
        matrix[rows, first:] = strip
        if symmetric:
            matrix[rows.stop :, rows] = strip[:, rows.stop - rows.start :].T
    return matrix


def kernel_product(kernel, X, centres, transform, coef, resources):
    """``kernel_matrix(kernel, X, centres, ...) @ coef`` without holding the matrix.

    Returns
    -------
    ndarray of shape (n_X, n_outputs), float64
    """
    strips = _strips(kernel, X, len(centres), resources)
    tasks = [
        (kernel, X[rows], centres, transform, coef, False, resources.in_worker())
        for rows in strips
    ]
    return np.concatenate(resources.run(_strip, tasks))


def kernel_diagonal(kernel, X, transform, resources):
    """k(x, x) of every image, an ndarray of shape (n_X,)."""
    transform = resources.tensor(transform)
    side = block_side(kernel, X.shape[1:], resources)
    blocks = load_blocks(kernel, X, transform, side, resources)
    return np.concatenate([diagonal(kernel, b).cpu().numpy() for _, b in blocks])


def _strips(kernel, X, n_columns, resources):
    """Rows of the kernel matrix that one task computes."""
    rows_in_memory = max(
        1, resources.memory_per_worker // 8 // (resources.itemsize * n_columns)
    )
    largest = min(block_side(kernel, X.shape[1:], resources), rows_in_memory)
    if resources.n_workers > 1:  # enough strips to share out evenly
        largest = min(largest, math.ceil(len(X) / (4 * resources.n_workers)))
    return balanced_blocks(len(X), largest)


def _strip(kernel, X, Y, transform, coef, symmetric, resources):
    """Some rows of the kernel matrix, times ``coef`` where given.

    With ``symmetric``, Y begins with X itself; tiles below the diagonal are
    mirrored and the diagonal is set to its exact values.
    """
    transform = resources.tensor(transform)
    strip = np.empty((len(X), len(Y)), dtype=_numpy_dtype(resources.dtype))
    left = prepare_block(kernel, resources.tensor(X), transform)
    side = tile_side(kernel, resources)
    largest = block_side(kernel, X.shape[1:], resources)
    for columns, right in load_blocks(kernel, Y, transform, largest, resources):
        for i in balanced_blocks(len(X), side):
            for j in balanced_blocks(len(right), side):
                first = columns.start + j.start
                if symmetric and first + (j.stop - j.start) <= i.start:
                    continue
                tile = kernel_value(kernel, left[i], right[j])
                strip[i, first : columns.start + j.stop] = tile.cpu().numpy()
    if symmetric:
        n = len(X)
        upper = np.triu(strip[:, :n], 1)
        strip[:, :n] = upper + upper.T
        strip[np.arange(n), np.arange(n)] = diagonal(kernel, left).cpu().numpy()
    if coef is None:
        return strip
    return strip.astype(np.float64, copy=False) @ coef


def _numpy_dtype(dtype):
    """The numpy dtype of a torch dtype."""
    return np.float32 if dtype == torch.float32 else np.float64

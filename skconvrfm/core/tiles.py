"""The walk over pairs of image blocks: tiles of a kernel, and features.

No array of size pairs × locations outlives its tile, and blocks and tiles are as
large as their share of the memory budget allows and no larger than pays.
"""

import math

import numpy as np
import torch

from . import compiled
from .blocks import (
    balanced_blocks,
    halving_memory,
    image_blocks,
    largest_value,
    spans,
)
from .convolutional import ConvolutionalKernel
from .features import FeatureMaps, FilterLayer, compute_maps
from .threads import own_thread_count, own_threads, share_out, thread_count

# Arrays of one value a pair and location that are alive at once in a tile, at the
# worst moment; and those that every layer keeps for the pullback.
_LIVE_ARRAYS = 9
_KEPT_ARRAYS = 2
# A tile's array beyond this spills from the cache of a CPU core and gains nothing.
_CPU_TILE_BYTES = 2**20
# Images and features beyond this come from memory that the system has to clear first.
_CPU_BLOCK_BYTES = 2**24
# Copies of its patches alive while a block is prepared and packed.
_PATCH_COPIES = 3
# Copies of its maps alive while an image's features are computed.
_MAP_COPIES = 4
# Images on the right fill the vectors of a CPU.
_WHOLE_VECTOR = 16


def image_bytes(kernel, image_shape, itemsize):
    """Bytes that one image takes in a block, while it is prepared."""
    locations = [layer.n_locations for layer in kernel.layers]
    numbers = _PATCH_COPIES * locations[0] * kernel.patch_dim
    return itemsize * (numbers + 5 * sum(locations) + 2 * math.prod(image_shape))


def pair_bytes(kernel, itemsize, pullback=False):
    """Bytes that one pair of images takes in a tile of array operations."""
    arrays = _LIVE_ARRAYS + (_KEPT_ARRAYS * len(kernel.layers) if pullback else 0)
    return itemsize * arrays * kernel.layers[0].n_locations


def tile_pairs(kernel, resources, pullback=False):
    """Pairs of images in a tile of array operations."""
    size = pair_bytes(kernel, resources.itemsize, pullback)
    pairs = resources.memory // 4 // size
    if resources.device.type == "cpu":
        array = resources.itemsize * kernel.layers[0].n_locations
        pairs = min(pairs, _CPU_TILE_BYTES // array)
    return max(1, pairs)


def block_side(kernel, image_shape, resources):
    """Images that are prepared together; a wave of such blocks is on the right."""
    size = image_bytes(kernel, image_shape, resources.itemsize)
    side = max(1, resources.memory // 3 // (1 + own_thread_count()) // size)
    return side // _WHOLE_VECTOR * _WHOLE_VECTOR or side


def left_side(kernel, image_shape, resources):
    """Images of the block on the left, which stays while all others pass by it."""
    numbers = sum(2 * layer.n_locations for layer in kernel.layers)
    numbers += kernel.layers[0].n_locations * kernel.patch_dim
    held = resources.memory // 2 // (resources.itemsize * numbers)
    return max(held, block_side(kernel, image_shape, resources))


def work(kernel, pairs):
    """Pairs × locations × layers."""
    return pairs * sum(layer.n_locations for layer in kernel.layers)


def hold_maps(images, resources):
    """Feature maps as an array where that fits in the budget; anything else as it is.

    What does not fit is computed anew for every block.
    """
    size = resources.itemsize * math.prod(images.shape)
    if not isinstance(images, FeatureMaps) or size > resources.memory // 4:
        return images
    held = np.empty(images.shape, dtype=resources.numpy_dtype)
    largest = len(held) * resources.memory // (16 * size)
    largest = min(largest, _quick_block(images, images.shape[1:], resources))
    for part in image_blocks(images, largest):
        held[part] = resources.tensor(images[part]).cpu().numpy()
    return held


def load_blocks(kernel, images, parts, transform, resources):
    """Yield (slice, prepared block) for some slices of images in a numpy array.

    As many blocks as there are threads of our own are prepared at a time.
    """

    def prepare(ahead):
        return [
            (part, kernel.prepare_block(resources.tensor(images[part]), transform))
            for part in parts[ahead]
        ]

    for wave in balanced_blocks(slice(0, len(parts)), own_thread_count()):
        for blocks in share_out(prepare, wave, 1):
            yield from blocks


class Tiles:
    """The tiles of a pair of blocks by array operations, on any device.

    Parameters
    ----------
    kernel : ConvolutionalKernel, PatchKernel or PooledKernel
        The kernel.
    left, right : Block
        The images of the rows and of the columns.
    side : int
        Images on the side of a square tile.
    """

    def __init__(self, kernel, left, right, side):
        self._kernel, self._left, self._right = kernel, left, right
        self._side = side

    def value(self, rows, columns, diagonal=None):
        """The kernel of a slice of the left block with a slice of the right block.

        Parameters
        ----------
        rows, columns : slice
            Images of the left and of the right block.
        diagonal : int or None
            Where given, row i may be wrong left of column ``diagonal + i``: a
            symmetric matrix needs one triangle.

        Returns
        -------
        Tensor of shape (n_rows, n_columns)
        """
        out = self._left.patches.new_empty(
            (rows.stop - rows.start, columns.stop - columns.start)
        )
        for i in balanced_blocks(rows, self._side):
            for j in balanced_blocks(columns, self._side):
                if diagonal is not None and j.stop <= diagonal + i.start:
                    continue
                tile = self._kernel.value(self._left[i], self._right[j])
                out[
                    i.start - rows.start : i.stop - rows.start,
                    j.start - columns.start : j.stop - columns.start,
                ] = tile
        return out

    def pullback(self, rows, columns, dual_coef):
        """As the kernel's `pullback`, for slices of the blocks."""
        right = self._right[columns]
        tiles = [
            self._kernel.pullback(self._left[i], right, dual_coef)
            for i in balanced_blocks(rows, self._side**2 // len(right))
        ]
        weights, self_weights = zip(*tiles, strict=True)
        return torch.cat(weights, 2), torch.cat(self_weights, 2)


def load_block(kernel, images, rows, largest, transform, resources):
    """The prepared block of a slice of images, put together from smaller ones."""
    whole = None
    for part, block in load_blocks(
        kernel, images, balanced_blocks(rows, largest), transform, resources
    ):
        if len(block) == rows.stop - rows.start:
            return block
        whole = block.room_for(rows.stop - rows.start) if whole is None else whole
        whole[part.start - rows.start : part.stop - rows.start] = block
    return whole


def open_tiles(kernel, left, right, library, resources, pullback=False):
    """The tiles of two blocks: compiled where there is a library, else `Tiles`."""
    if library is not None:
        return compiled.CompiledTiles(library, kernel, left, right)
    side = math.isqrt(tile_pairs(kernel, resources, pullback))
    return Tiles(kernel, left, right, side)


def find_library(kernel, pairs, resources, pullback=False):
    """The compiled tiles if they are worth it, can be had, and fit in memory."""
    if resources.device.type != "cpu" or not isinstance(kernel, ConvolutionalKernel):
        return None
    scratch = compiled.scratch_bytes(kernel, resources.itemsize, pullback)
    if scratch * thread_count() > resources.memory // 4:
        return None
    return compiled.load(work(kernel, pairs))


def kernel_matrix(kernel, X, Y, transform, resources):
    """The kernel matrix, tile by tile; only one triangle of it where Y is None.

    Parameters
    ----------
    kernel : ConvolutionalKernel, PatchKernel or PooledKernel
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
    worker = resources.one_worker()
    library_pairs = len(X) * len(Y) / (2 if symmetric else 1)
    strips = _strips(kernel, X, len(Y), resources)
    tasks = (
        (kernel, X, rows, None, transform, library_pairs, worker)
        if symmetric
        else (kernel, X[rows], None, Y, transform, library_pairs, worker)
        for rows in strips
    )
    matrix = np.empty((len(X), len(Y)), dtype=resources.numpy_dtype)
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
    pairs, worker = len(X) * len(centres), resources.one_worker()
    tasks = (
        (kernel, X[rows], centres, transform, coef, pairs, worker)
        for rows in _strips(kernel, X, len(centres), resources)
    )
    return np.concatenate(list(resources.run(_strip_product, tasks)))


def _strips(kernel, X, n_columns, resources):
    """Rows of the kernel matrix that one task computes."""
    worker = resources.one_worker()
    largest = min(
        left_side(kernel, X.shape[1:], worker),
        max(1, worker.memory // 8 // (worker.itemsize * n_columns)),
    )
    return spans(len(X), resources, largest=largest)


@halving_memory
def _strip(kernel, X, rows, Y, transform, pairs, resources):
    """Some rows of the kernel matrix; those of X from the diagonal on where Y is None.

    Then tiles below the diagonal are mirrored and the diagonal gets its exact values.
    """
    symmetric = Y is None
    if symmetric:  # by slices of the one array that all tasks share
        X, Y = X[rows], X[rows.start :]
    library = find_library(kernel, pairs, resources)
    with own_threads(library is not None):
        return _compute_strip(kernel, X, Y, transform, symmetric, library, resources)


def _compute_strip(kernel, X, Y, transform, symmetric, library, resources):
    transform = resources.tensor(transform)
    largest = block_side(kernel, X.shape[1:], resources)
    strip = np.empty((len(X), len(Y)), dtype=resources.numpy_dtype)
    for rows in image_blocks(X, left_side(kernel, X.shape[1:], resources)):
        left = load_block(kernel, X, rows, largest, transform, resources)
        first = rows.start if symmetric else 0
        for part, right in _right_blocks(
            kernel, left, Y[first:], transform, symmetric, largest, resources
        ):
            tiles = open_tiles(kernel, left, right, library, resources)
            # Rows that are not below the diagonal.
            count = min(len(left), part.stop) if symmetric else len(left)
            tile = tiles.value(
                slice(0, count),
                slice(0, len(right)),
                -part.start if symmetric else None,
            )
            columns = slice(first + part.start, first + part.stop)
            strip[rows.start : rows.start + count, columns] = tile.cpu().numpy()
        if symmetric:
            index = np.arange(rows.start, rows.stop)
            diagonal = kernel.diagonal(left)
            if diagonal is not None:
                strip[index, index] = diagonal.cpu().numpy()
    if symmetric:
        square = strip[:, : len(X)]
        square[...] = np.triu(square) + np.triu(square, 1).T
    if not np.isfinite(strip).all():
        raise ValueError(
            f"the kernel overflows {strip.dtype}: X has values up to "
            f"{largest_value(X, Y):.3g}, added up over the patches of "
            f"{len(kernel.layers)} layers; scale the images, for instance to [0, 1], "
            "or take a smaller depth, or dtype='float64'."
        )
    return strip


def _right_blocks(kernel, left, images, transform, symmetric, largest, resources):
    """Blocks of columns; where these begin with the rows, those are not made again."""
    start = len(left) if symmetric else 0
    for part in balanced_blocks(slice(0, start), largest) if symmetric else ():
        yield part, left[part]
    if start < len(images):
        rest = balanced_blocks(slice(start, len(images)), largest)
        yield from load_blocks(kernel, images, rest, transform, resources)


def _strip_product(kernel, X, centres, transform, coef, pairs, resources):
    """Some rows of the kernel matrix times the coefficients."""
    strip = _strip(kernel, X, None, centres, transform, pairs, resources)
    return strip.astype(np.float64, copy=False) @ coef


def compute_features(features, images, resources):
    """Features of images, computed block by block.

    Parameters
    ----------
    features : callable
        ``features(images)`` of tensors, with the attributes ``shape`` of an image's
        features, ``n_maps``, the maps that are alive on the way, and ``layer``.
    images : ndarray of shape (n, h, w, c)
        The images, of any real dtype.
    resources : Resources
        Device, precision, memory, workers.

    Returns
    -------
    ndarray of shape (n, rows, columns, n_maps)
    """
    worker = resources.one_worker()
    library = _feature_library(features, len(images), worker)
    largest = _feature_block(features, images, library, worker)
    parts = spans(len(images), resources, largest=largest)
    tasks = ((features, images[part], len(images), worker) for part in parts)
    out = np.empty((len(images), *features.shape), dtype=resources.numpy_dtype)
    for part, block in zip(parts, resources.run(feature_rows, tasks), strict=True):
        out[part] = block
    return out


@halving_memory
def feature_rows(features, images, n_images, resources):
    """The features of some of ``n_images``, in smaller blocks if memory is now less."""
    library = _feature_library(features, n_images, resources)
    largest = _feature_block(features, images, library, resources)
    largest = min(largest, _quick_block(images, features.shape, resources))
    out = np.empty((len(images), *features.shape), dtype=resources.numpy_dtype)
    for part in image_blocks(images, largest):
        block = resources.tensor(images[part])
        maps = compute_maps(features, block, library)
        if not all(math.isfinite(value) for value in maps.aminmax()):
            raise ValueError(
                f"the features overflow {out.dtype}: X has values up to "
                f"{largest_value(images):.3g}; scale the images, as those of the fit "
                "and for instance to [0, 1], or take dtype='float64'."
            )
        out[part] = maps.cpu().numpy()
    return out


def _feature_library(features, n_images, resources):
    """The compiled functions where they can make these features, and are worth it."""
    if not isinstance(features, FilterLayer):
        return None
    return features.find_library(n_images, resources.device)


def _feature_block(features, images, library, resources):
    """Images whose features, and maps if there are any, fit in memory together."""
    numbers = 2 * math.prod(images.shape[1:]) + 2 * math.prod(features.shape)
    if library is None:
        numbers += _MAP_COPIES * features.layer.n_locations * features.n_maps
    return max(1, resources.memory // (2 * resources.itemsize * numbers))


def _quick_block(images, shape, resources):
    """Images from which on a block gains nothing, by the shape of their features."""
    if resources.device.type != "cpu":
        return len(images)
    numbers = max(math.prod(images.shape[1:]), math.prod(shape))
    return max(1, _CPU_BLOCK_BYTES // (resources.itemsize * numbers))

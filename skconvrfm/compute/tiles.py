"""The walk over pairs of image blocks, tile by tile.

No array of size pairs × locations outlives its tile, and blocks and tiles are as
large as their share of the memory budget allows and no larger than pays.

A kernel offers ``layers``, ``channels``, ``patch_dim``, ``prepare_block(images,
transform, pixels)``, ``value(left, right)``, ``pullback(left, right, dual_coef)``,
``diagonal(block)``, ``has_compiled_tiles``, ``has_fused_tiles``, ``fused`` and
``mirror_sides(transform)``, over which it is averaged.
"""

import math

import numpy as np
import torch

from .blocks import balanced_blocks, image_blocks, largest_value
from .fused import check
from .images import mirror
from .native import build, calls
from .parallel import halving_memory, spans
from .progress import track
from .threads import own_thread_count, own_threads, share_out, thread_count

# Arrays of one value per pair and location that are alive at once in a tile, at the
# worst moment; and those that every layer keeps for the pullback.
_LIVE_ARRAYS, _KEPT_ARRAYS = 9, 2
# A tile's array beyond this spills from the cache of a CPU core and gains nothing.
_CPU_TILE_BYTES = 2**20
# Larger blocks come from memory that the system has to clear first.
_CPU_BLOCK_BYTES = 2**25
_PATCH_COPIES = 3  # or pixels', alive while a block is prepared and packed
_PULLBACK_COST = 5  # in values, by array operations on a GPU
WHOLE_VECTOR = 16  # images on the right fill the vectors of a CPU
_DIAGONAL_ROWS = 16  # whose pairs are computed for the sake of the diagonal


def image_bytes(kernel, image_shape, itemsize, pixels=False):
    """Return the bytes that one image takes in a block, while it is prepared."""
    locations = [layer.n_locations for layer in kernel.layers]
    patches = math.prod(image_shape) if pixels else locations[0] * kernel.patch_dim
    numbers = _PATCH_COPIES * patches
    return itemsize * (numbers + 5 * sum(locations) + 2 * math.prod(image_shape))


def tile_pairs(kernel, resources, pullback=False):
    """Return the number of pairs of images in a tile of array operations."""
    array = resources.itemsize * kernel.layers[0].n_locations  # bytes of a pair
    n_arrays = _LIVE_ARRAYS + (_KEPT_ARRAYS * len(kernel.layers) if pullback else 0)
    pairs = resources.memory // 4 // (n_arrays * array)
    if resources.device.type == "cpu":
        pairs = min(pairs, _CPU_TILE_BYTES // array)
    return max(1, pairs)


def block_side(kernel, image_shape, resources, pixels=False):
    """Return the number of images that are prepared together on the right."""
    size = image_bytes(kernel, image_shape, resources.itemsize, pixels)
    fitting = resources.memory // 3 // (1 + own_thread_count())
    if resources.device.type == "cpu":
        fitting = min(fitting, _CPU_BLOCK_BYTES)
    side = max(1, fitting // size)
    return side // WHOLE_VECTOR * WHOLE_VECTOR or side


def left_side(kernel, image_shape, resources):
    """Return the number of images of the left block, which all others pass by."""
    numbers = sum(2 * layer.n_locations for layer in kernel.layers)
    numbers += kernel.layers[0].n_locations * kernel.patch_dim
    held = resources.memory // 2 // (resources.itemsize * numbers)
    return max(held, block_side(kernel, image_shape, resources))


def work(kernel, pairs):
    """Return pairs × locations × layers."""
    return pairs * sum(layer.n_locations for layer in kernel.layers)


def has_pixels(transform, library):
    """Return True if blocks have pixels in the place of patches."""
    return transform is None and library is not None


def load_blocks(kernel, images, parts, transform, library, resources):
    """Yield (slice, prepared block) for slices of images, one per thread ahead."""

    def prepare(ahead):
        [part] = parts[ahead]
        pixels = has_pixels(transform, library)
        tensor = resources.tensor(images[part])
        return part, kernel.prepare_block(tensor, transform, pixels)

    for wave in balanced_blocks(slice(0, len(parts)), own_thread_count()):
        yield from share_out(prepare, wave, 1)


class Tiles:
    """Tiles of a left (rows) and a right block by array operations, on any device."""

    def __init__(self, kernel, left, right, side):
        self._kernel, self._left, self._right, self._side = kernel, left, right, side

    def value(self, rows, columns, diagonal=None):
        """Return the kernel of slices; row i may be wrong left of ``diagonal + i``."""
        shape = rows.stop - rows.start, columns.stop - columns.start
        out = self._left.patches.new_empty(shape)
        for i in balanced_blocks(rows, self._side):
            strip = out[i.start - rows.start : i.stop - rows.start]
            for j in balanced_blocks(columns, self._side):
                if diagonal is not None and j.stop <= diagonal + i.start:
                    continue
                tile = self._kernel.value(self._left[i], self._right[j])
                strip[:, j.start - columns.start : j.stop - columns.start] = tile
        return out

    def pullback(self, rows, columns, dual_coef):
        """Return the kernel's `pullback` for slices of the blocks."""
        right = self._right[columns]
        tiles = [
            self._kernel.pullback(self._left[i], right, dual_coef)
            for i in balanced_blocks(rows, self._side**2 // len(right))
        ]
        weights, self_weights = zip(*tiles, strict=True)
        return torch.cat(weights, 2), torch.cat(self_weights, 2)


def load_block(kernel, images, rows, largest, *options):
    """Return the prepared block of a slice, put together from smaller ones."""
    whole, n, parts = None, rows.stop - rows.start, balanced_blocks(rows, largest)
    for part, block in load_blocks(kernel, images, parts, *options):
        if len(block) == n:
            return block
        whole = block.room_for(n) if whole is None else whole
        whole[part.start - rows.start : part.stop - rows.start] = block
    return whole


def open_tiles(kernel, left, right, library, resources, pullback=False):
    """Return the tiles of two blocks: compiled, fused, or by array operations."""
    if library is not None:
        return calls.CompiledTiles(library, kernel, left, right)
    side = math.isqrt(tile_pairs(kernel, resources, pullback))
    plain = Tiles(kernel, left, right, side)
    if not kernel.fused:
        return plain
    return check.GuardedTiles(plain, kernel, left, right, resources.memory // 4)


def fuse(kernel, pairs, resources, pullback=False):
    """Return the kernel, with tiles by fused programs on a GPU where they pay."""
    if resources.device.type != "cuda" or not kernel.has_fused_tiles:
        return kernel
    factor = _PULLBACK_COST if pullback else 1
    if not check.wanted(factor * work(kernel, pairs), kernel, resources.device):
        return kernel
    return kernel._with(fused=True)


def find_library(kernel, pairs, resources, pullback=False):
    """Return the compiled functions if they pay, can be had, and fit in memory."""
    if resources.device.type != "cpu" or not kernel.has_compiled_tiles:
        return None
    scratch = calls.scratch_bytes(kernel, resources.itemsize, pullback)
    if scratch * thread_count() > resources.memory // 4:
        return None
    # Fewer images on the right are packed into a whole vector as well.
    numbers = WHOLE_VECTOR * kernel.layers[0].n_locations * kernel.patch_dim
    if numbers * resources.itemsize > resources.memory // 2:
        return None
    return build.load(work(kernel, pairs))


def kernel_matrix(kernel, X, Y, transform, resources, on_device=False):
    """Return the kernel matrix (n_X, n_Y) of a bound kernel, tile by tile.

    X and Y are images (n, h, w, c). Without Y, one triangle of the matrix is computed.
    With ``on_device`` it is a tensor there, which one worker alone can make.
    """
    symmetric = Y is None
    Y = X if symmetric else Y
    pairs = len(X) * len(Y) / (2 if symmetric else 1)
    options = transform, pairs, resources.one_worker()
    strips = _strips(kernel, X, len(Y), resources)
    tasks = (
        (kernel, *((X, rows, None) if symmetric else (X[rows], None, Y)), *options)
        for rows in strips
    )
    shape, compute = (len(X), len(Y)), _strip if on_device else _strip_on_host
    if on_device:
        matrix = torch.empty(shape, dtype=resources.dtype, device=resources.device)
    else:
        matrix = np.empty(shape, dtype=resources.numpy_dtype)
    firsts = [rows.start if symmetric else 0 for rows in strips]
    costs = [len(Y) - first for first in firsts]
    tracked = track(strips, "kernel", costs=costs)
    results = resources.run(compute, tasks)
    for rows, first, strip in zip(tracked, firsts, results, strict=True):
        matrix[rows, first:] = strip
        if symmetric:
            matrix[rows.stop :, rows] = strip[:, rows.stop - rows.start :].T
    return matrix


def kernel_product(kernel, X, centres, transform, coef, resources):
    """Return ``kernel_matrix(...) @ coef``, float64, without holding the matrix."""
    pairs, worker = len(X) * len(centres), resources.one_worker()
    tasks = (
        (kernel, X[rows], centres, transform, coef, pairs, worker)
        for rows in track(_strips(kernel, X, len(centres), resources), "kernel")
    )
    return np.concatenate(list(resources.run(_strip_product, tasks)))


def kernel_diagonal(kernel, X, transform, resources):
    """Return the kernel of every image with itself, (n,), float64."""
    diagonal = np.empty(len(X))
    for part in image_blocks(X, _DIAGONAL_ROWS):
        matrix = kernel_matrix(kernel, X[part], None, transform, resources.one_worker())
        diagonal[part] = np.diagonal(matrix)
    return diagonal


def _strips(kernel, X, n_columns, resources):
    """Return the slices of rows of the kernel matrix that one task computes."""
    worker = resources.one_worker()
    numbers = (2 if kernel.mirror else 1) * n_columns  # of strips that are averaged
    held = max(1, worker.memory // 8 // (worker.itemsize * numbers))
    largest = min(left_side(kernel, X.shape[1:], worker), held)
    return spans(len(X), resources, largest=largest)


@halving_memory
def _strip(kernel, X, rows, Y, transform, pairs, resources):
    """Return some rows of the kernel matrix, a tensor on the device.

    Where Y is None they begin at the diagonal.
    """
    symmetric = Y is None
    if symmetric:  # by slices of the one array that all tasks share
        X, Y = X[rows], X[rows.start :]
    library = find_library(kernel, pairs, resources)
    kernel = fuse(kernel, pairs, resources)
    sides = list(kernel.mirror_sides(transform))
    options = resources.tensor(transform), symmetric, library, resources
    with own_threads(library is not None):
        strip = _compute_strip(kernel, X, Y, sides[0], *options)
        for others in sides[1:]:
            strip += _compute_strip(kernel, X, Y, others, *options)
    strip /= len(sides)
    if not strip.isfinite().all():
        raise ValueError(
            f"the kernel overflows {resources.numpy_dtype}: X has values up to "
            f"{largest_value(X, Y):.3g}, added up over the patches of "
            f"{len(kernel.layers)} layers; scale the images, for instance to [0, 1], "
            "or take a smaller depth, or dtype='float64'."
        )
    return strip


def _compute_strip(kernel, X, Y, sides, transform, symmetric, library, resources):
    """Return the kernel of images, or mirrors where their side says so."""
    X, Y = (mirror(a) if side else a for a, side in zip((X, Y), sides, strict=True))
    same = symmetric and sides[0] == sides[1]
    pixels = has_pixels(transform, library)
    largest = block_side(kernel, X.shape[1:], resources, pixels)
    options = largest, transform, library, resources
    shape = len(X), len(Y)
    strip = torch.empty(shape, dtype=resources.dtype, device=resources.device)
    for rows in image_blocks(X, left_side(kernel, X.shape[1:], resources)):
        left = load_block(kernel, X, rows, *options)
        first = rows.start if symmetric else 0
        for part, right in _right_blocks(kernel, left, Y[first:], same, *options):
            tiles = open_tiles(kernel, left, right, library, resources)
            # Rows that are not below the diagonal.
            count = min(len(left), part.stop) if symmetric else len(left)
            diagonal = -part.start if symmetric else None
            tile = tiles.value(slice(0, count), slice(0, len(right)), diagonal)
            columns = slice(first + part.start, first + part.stop)
            strip[rows.start : rows.start + count, columns] = tile
        diagonal = kernel.diagonal(left) if same else None
        if diagonal is not None:
            strip.diagonal()[rows] = diagonal
    if symmetric:
        square = strip[:, : len(X)]
        square.copy_(square.triu() + square.triu(1).T)
    return strip


def _right_blocks(kernel, left, images, same, largest, *options):
    """Yield blocks of columns; those that are rows too are not made again."""
    start = len(left) if same else 0
    if same:
        yield slice(0, start), left
    if start < len(images):
        rest = balanced_blocks(slice(start, len(images)), largest, WHOLE_VECTOR)
        yield from load_blocks(kernel, images, rest, *options)


def _strip_on_host(*arguments):
    """Return `_strip` as an array."""
    return _strip(*arguments).cpu().numpy()


def _strip_product(kernel, X, centres, transform, coef, pairs, resources):
    """Return some rows of the kernel matrix times the coefficients."""
    strip = _strip(kernel, X, None, centres, transform, pairs, resources)
    if strip.device.type == "cpu":
        return strip.numpy().astype(np.float64, copy=False) @ coef
    coef = torch.as_tensor(coef, dtype=torch.float64, device=strip.device)
    return (strip.double() @ coef).cpu().numpy()

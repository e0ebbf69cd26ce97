"""Calls of the compiled functions, which do the steps of array operations fused.

As array operations, the steps of a layer pass its maps through memory about forty
times; here maps stay in the cache or in registers. Results are equal up to rounding.
The first argument of each call is the library (`build.load`), all others are checked.
"""

import ctypes
import math
import operator
from ctypes import POINTER, c_double, c_long, c_void_p

import torch
from torch.nn.functional import pad

from ..threads import share_out
from . import checks
from .checks import REALS, check_array

_VECTOR_BYTES = 64  # the largest of vectors.h, a multiple of the others
_LEFT_TOGETHER = 8
_PACKED_ROWS = 4096  # of numbers that one thread takes at once
LOCATIONS_TOGETHER = 16  # that one thread takes at once
_MAP_LOCATIONS_TOGETHER = 16384  # for which filters pass through the cache once


def _structure(*fields):
    """Return a structure of C from pairs of names and their type."""
    pairs = [(name, kind) for names, kind in fields for name in names.split()]
    return type("Structure", (ctypes.Structure,), {"_fields_": pairs})


_Layer = _structure(("rows columns patch_rows patch_columns top left", c_long))
_Kernel = _structure(
    ("depth tangent entries windows", c_long),
    ("channels bias_square parallel_gap", c_double),
    ("image", _Layer),
    ("layers", POINTER(_Layer)),
)
_Block = _structure(
    ("n", c_long), ("patches", c_void_p), ("roots inverse_roots", POINTER(c_void_p))
)
_PatchPlaces = _structure(
    ("image_step columns row_step column_step runs run", c_long),
    ("starts", POINTER(c_long)),
)
_FilterLayer = _structure(
    ("height width channels rows columns patch_rows patch_columns", c_long),
    ("grid_rows grid_columns vectors order", c_long),
    ("least", c_double),
    ("row_edges column_edges", POINTER(c_long)),
)


class CompiledTiles:
    """Tiles of a pair of blocks on the CPU, the compiled twin of `tiles.Tiles`."""

    ROWS_TOGETHER = 16  # which share the maps of a vector of columns in the cache

    def __init__(self, library, kernel, left, right):
        checks.check_kernel(kernel)
        windows = checks.check_block("left", left, kernel)
        if checks.check_block("right", right, kernel, left.patches.dtype) != windows:
            raise ValueError("one block has patches and the other pixels")
        self._dtype, self._locations = left.patches.dtype, kernel.layers[0].locations
        real = REALS[self._dtype]
        self._lanes = getattr(library, f"kernel_lanes_{real}")()
        self._value = getattr(library, f"kernel_value_{real}")
        self._pullback = getattr(library, f"kernel_pullback_{real}")
        stack = [_Layer(*a.locations, *a.patch, *a.padding[::2]) for a in kernel.layers]
        *image, entries, _ = left.patches.shape
        integers = len(stack), kernel.tangent, entries, windows
        reals = kernel.channels, kernel.bias**2, kernel.parallel_gap(self._dtype)
        layers = _Layer(*image), (_Layer * len(stack))(*stack)
        self._kernel = _Kernel(*integers, *reals, *layers)
        self._left = _pack_block(library, left, _LEFT_TOGETHER)
        self._right = _pack_block(library, right, self._lanes)

    def value(self, rows, columns, diagonal=None):
        """Return `tiles.Tiles.value`; columns begin at a multiple of 16."""
        rows, columns, shape = self._check_spans(rows, columns)
        diagonal = -rows.stop if diagonal is None else operator.index(diagonal)
        out = torch.empty(shape, dtype=self._dtype, device="cpu")

        def call(part):  # without whole vectors of columns left of the diagonal
            vectors = max(0, diagonal + part.start - columns.start) // self._lanes
            start = min(columns.stop, columns.start + vectors * self._lanes)
            target = out[part.start - rows.start :, start - columns.start :]
            self._call(self._value, part, slice(start, columns.stop), target, shape[1])

        share_out(call, rows, self.ROWS_TOGETHER)
        return out

    def pullback(self, rows, columns, dual_coef):
        """Return the kernel's `pullback` for slices of the blocks."""
        rows, columns, shape = self._check_spans(rows, columns)
        check_array("dual_coef", dual_coef, (shape[1], "n_outputs"), {}, self._dtype)
        # Whole vectors of centres and outputs.
        n_outputs = dual_coef.shape[1]
        coef = pad(dual_coef, (0, -n_outputs % self._lanes, 0, -shape[1] % self._lanes))
        sizes = shape[0], *self._locations
        weights = torch.empty((*sizes, shape[1]), dtype=self._dtype, device="cpu")
        sums = weights.new_zeros((*sizes, coef.shape[1]))

        def call(part):
            first, options = part.start - rows.start, (coef, coef.shape[1])
            targets = weights[first:], sums[first:]
            self._call(self._pullback, part, columns, *options, *targets)

        share_out(call, rows, self.ROWS_TOGETHER)
        order = 1, 2, 0, 3
        return weights.permute(order), sums[..., :n_outputs].permute(order)

    def _check_spans(self, rows, columns):
        """Return rows and columns of a tile, which lie in the blocks, and its shape."""
        rows = checks.check_span("rows", rows, self._left.n)
        columns = checks.check_span("columns", columns, self._right.n, self._lanes)
        return rows, columns, (rows.stop - rows.start, columns.stop - columns.start)

    def _call(self, function, rows, columns, *arguments):
        failed = function(
            *map(ctypes.byref, (self._kernel, self._left, self._right)),
            *(rows.start, rows.stop, columns.start, columns.stop),
            *(_address(a) if isinstance(a, torch.Tensor) else a for a in arguments),
        )
        if failed:
            raise MemoryError("no memory for the maps of an image")


def gram_product(library, weights, coef_product, patches):
    """Return `agop.gram_product`, computed in the calling thread."""
    sizes = {}
    check_array("weights", weights, ("locations", "m", "n"), sizes)
    dtype, n = weights.dtype, sizes["n"]
    check_array("coef_product", coef_product, ("n", "n"), sizes, dtype)
    check_array("patches", patches, ("locations", "d", "n"), sizes, dtype)
    weights, coef_product, patches = _whole_vectors(weights, coef_product, patches)
    if weights.shape[2] > n:
        coef_product = pad(coef_product, (0, 0, 0, weights.shape[2] - n))
    out = torch.empty_like(patches)
    getattr(library, f"gram_product_{REALS[dtype]}")(
        *(sizes["locations"], sizes["m"], sizes["d"], weights.shape[2]),
        *map(_address, (weights, coef_product, patches, out)),
    )
    return out[..., :n]


def add_output_product(library, weights, coef, patches, layer, out):
    """Add as `agop.add_output_product` does, for the patches or pixels of a block."""
    checks.check_layer("layer", layer)
    sizes = {"locations": layer.n_locations}
    check_array("weights", weights, ("locations", "m", "n"), sizes)
    dtype = weights.dtype
    check_array("coef", coef, ("n_outputs", "n"), sizes, dtype)
    shape = "locations", "m", "n_outputs", "d"
    check_array("out", out, shape, sizes, dtype, contiguous=True)
    places, images = _patch_places(layer, patches, sizes, dtype)
    if weights.stride(2) != 1:
        weights = weights.contiguous()
    coef, strides = coef.contiguous(), weights.stride()[:2]
    arrays = _address(weights), *strides, *map(_address, (coef, images, out))
    counts = sizes["m"], sizes["n_outputs"], sizes["n"]
    function = getattr(library, f"output_product_{REALS[dtype]}")

    def call(part):
        if function(ctypes.byref(places), part.start, part.stop, *counts, *arrays):
            raise MemoryError("no memory for the patches of a location")

    share_out(call, slice(0, sizes["locations"]), LOCATIONS_TOGETHER)


def _patch_places(layer, patches, sizes, dtype):
    """Return where patches lie in images, and the images, from those of a block."""
    columns, d, (rows, run) = layer.locations[1], sizes["d"], layer.patch
    if checks.check_patches("patches", patches, layer, sizes, dtype):
        top, bottom, left, right = layer.padding
        images = pad(patches.permute(2, 0, 3, 1), (left, right, 0, 0, top, bottom))
        channels, height, n, width = images.shape
        steps = width, columns, width * n, 1  # from an image, a row and a location on
        starts = [c * height + r for c in range(channels) for r in range(rows)]
        starts = [start * width * n for start in starts]
    else:
        images, n, starts, run = patches.transpose(2, 3), sizes["n"], [0], d
        steps = d, columns, columns * n * d, n * d
    pointer = (c_long * len(starts))(*starts)
    return _PatchPlaces(*steps, len(starts), run, pointer), images.contiguous()


def filter_maps(library, features, images):
    """Return `features.FilterLayer.pool_parts` of the responses to images."""
    filters, biases = checks.check_filters(features, images)
    layer, real = features.layer, REALS[images.dtype]
    function = getattr(library, f"filter_maps_{real}")
    lanes = getattr(library, f"filter_lanes_{real}")()
    filters, biases = _pack_filters(layer, filters, biases, images.dtype, lanes)
    edges = [(c_long * len(at))(*at) for at in features.edges]
    grid = [len(at) - 1 for at in edges]
    order = 0 if math.isinf(features.order) else int(features.order)
    out = images.new_empty((len(images), *grid, biases.numel()))
    top, bottom, left, right = layer.padding
    least = 0 if features.activation == "relu" else -math.inf

    def call(part):
        padded = pad(images[part], (0, 0, left, right, top, bottom)).contiguous()
        sizes = *padded.shape[1:], *layer.locations, *layer.patch, *grid
        structure = _FilterLayer(*sizes, len(biases), order, least, *edges)
        scales = features.patch_scales(images[part])
        if scales is not None:
            scales = scales.contiguous()
            shape = len(padded), *layer.locations
            checks.check_array("scales", scales, shape, {}, images.dtype)
        arrays = padded, filters, biases, scales, out[part]
        addresses = (None if a is None else _address(a) for a in arrays)
        if function(ctypes.byref(structure), len(padded), *addresses):
            raise MemoryError("no memory for the places of a map")

    largest = math.ceil(_MAP_LOCATIONS_TOGETHER / layer.n_locations)
    share_out(call, slice(0, len(images)), largest)
    return out[..., : features.n_maps]


def _pack_filters(layer, filters, biases, dtype, lanes):
    """Return filters (vectors, d, lanes), entries as in an image, and biases."""
    padding = (0, -len(filters) % lanes)
    entries = filters.to(dtype).unflatten(1, (-1, *layer.patch)).permute(2, 3, 1, 0)
    vectors = pad(entries.flatten(0, 2), padding).unflatten(1, (-1, lanes))
    biases = pad(biases.to(dtype), padding).unflatten(0, (-1, lanes))
    return vectors.transpose(0, 1).contiguous(), biases


def _whole_vectors(*arrays):
    """Return arrays whose last dimension, the centres, is padded to whole vectors."""
    padding = 0, -arrays[0].shape[-1] % (_VECTOR_BYTES // arrays[0].dtype.itemsize)
    return [(pad(a, padding) if padding[1] else a).contiguous() for a in arrays]


def _address(tensor):
    """Return the address of an array whose entries C++ can count."""
    checks.check_count(tensor.numel())
    return tensor.data_ptr()


def _pack_block(library, block, group):
    """Return a block as the C++ code reads it, by groups of so many images.

    The block keeps it, for the other blocks that it meets.
    """
    kept = vars(block).setdefault("packed", {})
    if group not in kept:
        arrays = block.patches, *block.roots, *block.inverse_roots
        tensors = [_pack(library, array.contiguous(), group) for array in arrays]
        patches, *roots = map(_address, tensors)
        depth, pointers = len(block.roots), c_void_p * len(block.roots)
        roots = pointers(*roots[:depth]), pointers(*roots[depth:])
        structure = _Block(block.patches.shape[-1], patches, *roots)
        structure.tensors = tensors  # kept: the structure has no more than addresses
        kept[group] = structure
    return kept[group]


def _pack(library, array, group):
    """Return (rows, columns, ..., n) as (n / group, locations, ..., group).

    The last group is padded with blank images.
    """
    n = array.shape[-1]
    rows = array.numel() // n
    packed = array.new_empty((-(-n // group), rows, group))
    pack = getattr(library, f"pack_{REALS[array.dtype]}")

    def call(part):
        sizes = part.start, part.stop, rows, n, group
        pack(_address(array), *sizes, _address(packed))

    share_out(call, slice(0, rows), _PACKED_ROWS)
    return packed


def scratch_bytes(kernel, itemsize, pullback):
    """Return the bytes that one thread needs for the maps of a vector of images."""
    maps = _LEFT_TOGETHER + (2 * len(kernel.layers) + 9 if pullback else 2)
    size = max(kernel.layers[0].n_locations, math.prod(kernel.layers[0].image))
    return _VECTOR_BYTES // itemsize * itemsize * size * maps

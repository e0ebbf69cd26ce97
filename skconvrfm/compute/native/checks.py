"""Checks of all arguments of C++ functions, which do not check what they read."""

import ctypes
import math
import operator
from itertools import pairwise

import numpy as np
import torch

REALS = {torch.float32: "float", torch.float64: "double"}
LARGEST = 2 ** (8 * ctypes.sizeof(ctypes.c_long) - 1) - 1  # size or index in C++


def _require(holds, message):
    """Raise a ValueError with the message unless the condition holds."""
    if not holds:
        raise ValueError(message)


def check_array(name, array, shape, sizes, dtype=None, contiguous=False):
    """Refuse an array that is not of the given dtype and shape in the CPU's memory.

    Expected sizes are integers, or names: keys of ``sizes``, to which new ones are
    added. The dtype None is float32 or float64.
    """
    if not isinstance(array, torch.Tensor):
        raise TypeError(f"{name} is a {type(array).__name__}; expected a tensor")
    if array.dtype not in ([dtype] if dtype else REALS):
        expected = dtype or " or ".join(map(str, REALS))
        raise ValueError(f"{name} has dtype {array.dtype}; expected {expected}")
    found, actual = dict(sizes), tuple(array.shape)
    fits = len(actual) == len(shape) and all(
        size == (found.setdefault(want, size) if isinstance(want, str) else want)
        for size, want in zip(actual, shape, strict=True)
    )
    if not fits:
        expected = ", ".join(str(sizes.get(want, want)) for want in shape)
        raise ValueError(f"{name} has shape {actual}; expected ({expected})")
    if array.device.type != "cpu" or array.layout != torch.strided or array.is_neg():
        raise ValueError(f"{name} is not a plain array in the memory of the CPU")
    end, ordered = array.storage_offset() + array.numel(), array.is_contiguous()
    if ordered and array.untyped_storage().nbytes() < end * array.itemsize:
        raise ValueError(f"{name} has no memory of its shape {actual}")
    if contiguous and not ordered:
        raise ValueError(f"{name} is not contiguous: its strides are {array.stride()}")
    sizes.update(found)


def check_count(n):
    """Refuse arrays of more entries than C++ can count."""
    _require(n <= LARGEST, f"an array has {n} entries; at most {LARGEST} are possible")


def check_integers(name, values, count, least):
    """Refuse anything but ``count`` integers from ``least`` on."""
    values = tuple(values)
    found = [i for i in map(operator.index, values) if least <= i <= LARGEST]
    expected = f"expected {count} integers from {least} to {LARGEST}"
    _require(len(found) == len(values) == count, f"{name} is {values}; {expected}")


def check_span(name, part, n, multiple=1):
    """Refuse slices that leave 0 to n, or do not begin at a multiple."""
    start, stop = operator.index(part.start), operator.index(part.stop)
    if not 0 <= start <= stop <= n or start % multiple or part.step not in (None, 1):
        expected = f"within 0 to {n}, from a multiple of {multiple} on"
        raise ValueError(f"{name} is {part}; expected a slice {expected}")
    return slice(start, stop)


def check_edges(name, edges, sizes):
    """Refuse edges of rows and columns that do not divide them into cells."""
    _require(len(edges) == 2, f"{name} is {edges}; expected rows and columns")
    for along, size in zip(edges, sizes, strict=True):
        check_integers(name, along, len(along), 0)
        rising = all(a < b for a, b in pairwise(along))
        holds = len(along) > 1 and rising and (along[0], along[-1]) == (0, size)
        _require(holds, f"{name} has {along}; expected to rise from 0 to {size}")


def check_layer(name, layer, image=None):
    """Refuse a layer whose locations are not those of its patch on its image."""
    check_integers(f"{name}.patch", layer.patch, 2, 1)
    check_integers(f"{name}.padding", layer.padding, 4, 0)
    check_integers(f"{name}.locations", layer.locations, 2, 1)
    if image is not None:
        (rows, columns), (top, bottom, left, right) = layer.patch, layer.padding
        height, width = image
        fit = height + top + bottom - rows + 1, width + left + right - columns + 1
        given = tuple(layer.locations)
        _require(given == fit, f"{name}.locations is {given}; expected {fit}")


def check_kernel(kernel):
    """Refuse a kernel whose layers do not lie on one another, or grow upwards."""
    check_integers("patch_dim, channels", (kernel.patch_dim, kernel.channels), 2, 1)
    _require(kernel.layers, "layers is empty; expected at least one layer")
    below = None
    for index, layer in enumerate(kernel.layers):
        name = f"layers[{index}]"
        check_layer(name, layer, below)
        (rows, columns), (top, bottom, left, right) = layer.patch, layer.padding
        most = below or layer.patch
        holds = top + bottom < rows <= most[0] and left + right < columns <= most[1]
        given = f"patch {layer.patch} and padding {layer.padding}"
        expected = f"expected patches larger than the padding, at most {most}"
        _require(holds, f"{name} has {given}; {expected}")
        below = layer.locations
    fit, given = kernel.channels * math.prod(kernel.layers[0].patch), kernel.patch_dim
    _require(given == fit, f"patch_dim is {given}; expected {fit}")


def check_patches(name, patches, layer, sizes, dtype=None):
    """Refuse what is neither patches (rows, columns, d, n) of a layer nor pixels.

    Return True if it is pixels (h, w, c, n); ``sizes`` has d.
    """
    d, entries = sizes["d"], math.prod(layer.patch)
    wrong = f"a patch has {d} entries; expected a multiple of {entries}"
    _require(d % entries == 0, wrong)
    check_array(name, patches, ("rows", "columns", "entries", "n"), {}, dtype)
    has_pixels = patches.shape[2] != d
    shape = (*layer.image, d // entries) if has_pixels else (*layer.locations, d)
    check_array(name, patches, (*shape, "n"), sizes, dtype)
    return has_pixels


def check_block(name, block, kernel, dtype=None):
    """Refuse a block whose arrays are not those of the kernel's layers.

    Return True if it has pixels in the place of patches.
    """
    layers, sizes = kernel.layers, {"d": kernel.patch_dim}
    patches = f"{name}.patches", block.patches
    has_pixels = check_patches(*patches, layers[0], sizes, dtype)
    for kind in ("roots", "inverse_roots"):
        arrays = getattr(block, kind)
        given, fit = f"{name}.{kind} has {len(arrays)} arrays", len(layers)
        _require(len(arrays) == fit, f"{given}; expected {fit}, one a layer")
        for index, (array, layer) in enumerate(zip(arrays, layers, strict=True)):
            shape, array_name = (*layer.locations, "n"), f"{name}.{kind}[{index}]"
            check_array(array_name, array, shape, sizes, block.patches.dtype)
    return has_pixels


def check_filters(features, images):
    """Return filters and biases as tensors, or refuse what does not fit the images."""
    layer, n_maps, sizes = features.layer, features.n_maps, {}
    check_array("images", images, ("n", "h", "w", "c"), sizes)
    check_layer("layer", layer, (sizes["h"], sizes["w"]))
    check_edges("edges", features.edges, layer.locations)
    order, orders = features.order, (1, 2, 3, 4, 5, 6, 7, 8, math.inf)
    _require(order in orders, f"order is {order!r}; expected one of {orders}")
    wrong = f"activation is {features.activation!r}; expected 'relu' or 'identity'"
    _require(features.activation in ("relu", "identity"), wrong)
    channels = sizes["c"]
    check_integers("channels, n_maps", (channels, n_maps), 2, 1)
    tensors, arrays = [], features.affine(channels)
    shapes = (n_maps, channels * math.prod(layer.patch)), (n_maps,)
    for name, array, shape in zip(("filters", "biases"), arrays, shapes, strict=True):
        if not isinstance(array, np.ndarray) or array.dtype.kind != "f":
            raise TypeError(f"{name} is not an ndarray of real numbers")
        tensors.append(torch.from_numpy(np.array(array, dtype=np.float64)))
        check_array(name, tensors[-1], shape, sizes)
    return tensors

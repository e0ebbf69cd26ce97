"""Tiles of ``convolutional.py`` and filters of ``features.py`` in fused C++.

A layer passes its maps through memory about forty times when every operation of
the recursion is an array operation of its own. ``compiled.cpp`` does the same steps
with the maps in the cache, and convolution, activation and pool with the maps in
registers. It is built once a machine, on first need, into a cache folder; where there
is no C++ compiler, `load` gives None and the array operations serve, with equal
results.
"""

import ctypes
import functools
import hashlib
import math
import os
import platform
import shutil
import subprocess
import tempfile
from pathlib import Path

import torch
from torch.nn.functional import pad

from .threads import share_out

# "0" does without the compiled tiles, "1" takes them however small the work.
SWITCH = "SKCONVRFM_COMPILE"
# Where the built libraries are kept; by default a folder of the user's.
CACHE = "SKCONVRFM_CACHE"

_SOURCE = Path(__file__).with_name("compiled.cpp")
_FLAGS = (
    "-std=c++17 -O3 -march=native -fno-math-errno -fno-trapping-math -fPIC -shared"
).split()
_BUILD_SECONDS = 120
_REALS = {torch.float32: "float", torch.float64: "double"}
# The largest of compiled.cpp, a multiple of the others.
_VECTOR_BYTES = 64
_LEFT_TOGETHER = 8
# Locations that one thread takes at once.
LOCATIONS_TOGETHER = 16
# The same for filters, which pass through the cache once for all of them.
_MAP_LOCATIONS_TOGETHER = 16384

# Pairs × locations × layers from which the array operations take longer (about ten
# nanoseconds each) than the two or three seconds of the compiler.
WORTH_COMPILING = 1e8
# Multiplications of a convolution that take array operations as long.
PRODUCTS_A_PAIR = 200


class _Layer(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_long)
        for name in ("rows", "columns", "patch_rows", "patch_columns", "top", "left")
    ]


class _Kernel(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_long) for name in ("depth", "tangent", "patch_dim")),
        *((n, ctypes.c_double) for n in ("channels", "bias_square", "parallel_gap")),
        ("layers", ctypes.POINTER(_Layer)),
    ]


class _Block(ctypes.Structure):
    _fields_ = [
        ("n", ctypes.c_long),
        ("patches", ctypes.c_void_p),
        ("roots", ctypes.POINTER(ctypes.c_void_p)),
        ("inverse_roots", ctypes.POINTER(ctypes.c_void_p)),
    ]


class _FilterLayer(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_long) for name in ("height", "width", "channels")),
        *((name, ctypes.c_long) for name in ("rows", "columns")),
        *((name, ctypes.c_long) for name in ("patch_rows", "patch_columns")),
        *((name, ctypes.c_long) for name in ("grid_rows", "grid_columns")),
        ("vectors", ctypes.c_long),
        ("least", ctypes.c_double),
    ]


class CompiledTiles:
    """Tiles of a pair of blocks, the compiled twin of `tiles.Tiles`.

    Calls release the interpreter's lock; rows are shared out to as many threads as
    torch would use.

    Parameters
    ----------
    library : ctypes.CDLL
        The compiled functions, from `load`.
    kernel : ConvolutionalKernel
        The kernel.
    left, right : Block
        The images of the rows and of the columns, on the CPU.
    """

    # Rows that share the maps of a vector of columns while those are in the cache.
    ROWS_TOGETHER = 16

    def __init__(self, library, kernel, left, right):
        self._dtype = left.patches.dtype
        self._lanes = getattr(library, f"kernel_lanes_{_REALS[self._dtype]}")()
        self._value = getattr(library, f"kernel_value_{_REALS[self._dtype]}")
        self._pullback = getattr(library, f"kernel_pullback_{_REALS[self._dtype]}")
        self._kernel = _describe_kernel(kernel, self._dtype)
        self._left = _PackedBlock(left, 1)
        self._right = _PackedBlock(right, self._lanes)
        self._locations = kernel.layers[0].locations

    def value(self, rows, columns, diagonal=None):
        """As `tiles.Tiles.value`."""
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        out = torch.empty(shape, dtype=self._dtype)

        def call(part):
            start = columns.start
            if diagonal is not None:  # leave whole vectors out
                unneeded = max(0, diagonal + part.start - start)
                start = min(columns.stop, start + unneeded // self._lanes * self._lanes)
            target = out[part.start - rows.start :, start - columns.start :]
            needed = slice(start, columns.stop)
            self._call(self._value, part, needed, target, ctypes.c_long(shape[1]))

        share_out(call, rows, self.ROWS_TOGETHER)
        return out

    def pullback(self, rows, columns, dual_coef):
        """As `ConvolutionalKernel.pullback`, for slices of the blocks."""
        shape = (rows.stop - rows.start, columns.stop - columns.start)
        weights, self_weights = torch.empty(
            (2, *self._locations, *shape), dtype=self._dtype
        )

        def call(part):
            first = part.start - rows.start
            targets = weights[:, :, first:], self_weights[:, :, first:]
            self._call(
                self._pullback, part, columns, *targets, *map(ctypes.c_long, shape)
            )

        share_out(call, rows, self.ROWS_TOGETHER)
        return weights, self_weights @ dual_coef

    def _call(self, function, rows, columns, *arguments):
        bounds = (rows.start, rows.stop, columns.start, columns.stop)
        failed = function(
            ctypes.byref(self._kernel),
            ctypes.byref(self._left.structure),
            ctypes.byref(self._right.structure),
            *map(ctypes.c_long, bounds),
            *(_address(a) if isinstance(a, torch.Tensor) else a for a in arguments),
        )
        if failed:
            raise MemoryError("no memory for the maps of an image")


def gram_product(library, weights, coef_product, patches):
    """The compiled twin of `agop.gram_product`, in the calling thread."""
    locations, m, n = weights.shape
    weights, coef_product, patches = _whole_vectors(weights, coef_product, patches)
    if weights.shape[2] > n:
        coef_product = pad(coef_product, (0, 0, 0, weights.shape[2] - n))
    out = torch.empty_like(patches)
    function = getattr(library, f"gram_product_{_REALS[weights.dtype]}")
    sizes = locations, m, patches.shape[1], weights.shape[2]
    arrays = weights, coef_product, patches, out
    function(*map(ctypes.c_long, sizes), *map(_address, arrays))
    return out[..., :n]


def add_output_product(library, weights, coef, patches, out):
    """The compiled twin of `agop.add_output_product`."""
    locations, m, _ = weights.shape
    weights, coef, patches = _whole_vectors(weights, coef, patches)
    function = getattr(library, f"output_product_{_REALS[weights.dtype]}")

    def call(part):
        n_outputs, n = coef.shape
        sizes = part.stop - part.start, m, n_outputs, patches.shape[1], n
        arrays = weights[part], coef, patches[part]
        function(
            *map(ctypes.c_long, sizes),
            *map(_address, arrays),
            ctypes.c_long(out.shape[-1]),
            _address(out[part]),
        )

    share_out(call, slice(0, locations), LOCATIONS_TOGETHER)


def filter_maps(library, features, images):
    """The compiled twin of `features.FilterLayer.__call__`, but for the power.

    Parameters
    ----------
    library : ctypes.CDLL
        The compiled functions, from `load`.
    features : FilterLayer
        Filters, activation and pool.
    images : Tensor of shape (n, h, w, c)
        Images, on the CPU.

    Returns
    -------
    Tensor of shape (n, rows, columns, n_filters)
    """
    layer, channels = features.layer, images.shape[3]
    real = _REALS[images.dtype]
    function = getattr(library, f"filter_maps_{real}")
    lanes = getattr(library, f"filter_lanes_{real}")()
    filters, biases = _pack_filters(features, channels, images.dtype, lanes)
    out = images.new_empty((len(images), *features.grid, biases.numel()))
    top, bottom, left, right = layer.padding

    def call(part):
        # In their zeros, images need no care at their edges.
        padded = pad(images[part], (0, 0, left, right, top, bottom)).contiguous()
        structure = _FilterLayer(
            *(*padded.shape[1:], *layer.locations, *layer.patch, *features.grid),
            len(biases),
            0 if features.activation == "relu" else -math.inf,
        )
        arrays = padded, filters, biases, out[part]
        if function(
            ctypes.byref(structure), ctypes.c_long(len(padded)), *map(_address, arrays)
        ):
            raise MemoryError("no memory for the places of a map")

    largest = math.ceil(_MAP_LOCATIONS_TOGETHER / layer.n_locations)
    share_out(call, slice(0, len(images)), largest)
    return out[..., : features.n_maps]


def _pack_filters(features, channels, dtype, lanes):
    """Filters (vectors, d, lanes), entries as they lie in an image, and biases."""
    filters, biases = (
        torch.from_numpy(array).to(dtype) for array in features.affine(channels)
    )
    padding = (0, -len(filters) % lanes)
    entries = filters.reshape(-1, channels, *features.layer.patch).permute(2, 3, 1, 0)
    vectors = pad(entries.flatten(0, 2), padding).unflatten(1, (-1, lanes))
    biases = pad(biases, padding).unflatten(0, (-1, lanes))
    return vectors.transpose(0, 1).contiguous(), biases


def padded_entries(d, dtype):
    """Entries of a patch in `add_output_product`'s result, the last of which are 0."""
    pair = 2 * _VECTOR_BYTES // dtype.itemsize
    return math.ceil(d / pair) * pair


def _whole_vectors(*arrays):
    """Arrays whose last dimension, the centres, is padded to whole vectors."""
    lanes = _VECTOR_BYTES // arrays[0].dtype.itemsize
    padding = (0, -arrays[0].shape[-1] % lanes)
    return [(pad(a, padding) if padding[1] else a).contiguous() for a in arrays]


def _address(tensor):
    return ctypes.c_void_p(tensor.data_ptr())


class _PackedBlock:
    """A block as the C++ code reads it, by vectors of ``lanes`` images.

    With one lane, arrays are (locations, ..., n); else (n / lanes, locations, ...,
    lanes), the last vector padded with blank images.
    """

    def __init__(self, block, lanes):
        n, depth = len(block), len(block.roots)
        # Tensors are kept, for the structure holds no more than their addresses.
        self._tensors = [
            _pack(array, lanes)
            for array in (block.patches, *block.roots, *block.inverse_roots)
        ]
        patches, *roots = (tensor.data_ptr() for tensor in self._tensors)
        pointers = ctypes.c_void_p * depth
        self.structure = _Block(
            n, patches, pointers(*roots[:depth]), pointers(*roots[depth:])
        )


def _pack(array, lanes):
    """An array of shape (rows, columns, ..., n) by vectors of images."""
    array = array.flatten(0, 1)
    if lanes == 1:
        return array.contiguous()
    n = array.shape[-1]
    packed = array.new_zeros((math.ceil(n / lanes), *array.shape[:-1], lanes))
    whole, rest = divmod(n, lanes)
    if whole:
        vectors = array[..., : whole * lanes].unflatten(-1, (whole, lanes))
        packed[:whole] = vectors.movedim(-2, 0)
    if rest:
        packed[whole, ..., :rest] = array[..., whole * lanes :]
    return packed


def _describe_kernel(kernel, dtype):
    """The kernel as the C++ code reads it."""
    layers = (_Layer * len(kernel.layers))(
        *(
            _Layer(*layer.locations, *layer.patch, layer.padding[0], layer.padding[2])
            for layer in kernel.layers
        )
    )
    return _Kernel(
        len(kernel.layers),
        kernel.kind == "ntk",
        kernel.patch_dim,
        kernel.channels,
        kernel.bias**2,
        kernel.parallel_gap(dtype),
        layers,
    )


def load(work):
    """The compiled functions, built if need be; None where they cannot or need not be.

    A library that lies in the cache serves every computation. Where there is none,
    large ones wait for the compiler and small ones do without, here and for the
    rest of the process, so that one computation gives one result in a process.

    Parameters
    ----------
    work : float
        Pairs × locations × layers of the computation.

    Returns
    -------
    ctypes.CDLL or None
    """
    switch = os.environ.get(SWITCH)
    if switch == "0":
        return None
    if switch == "1" or work >= WORTH_COMPILING or _was_in_cache():
        return _load()
    return None


def scratch_bytes(kernel, itemsize, pullback):
    """Bytes that one thread needs for the maps of a vector of images."""
    maps = _LEFT_TOGETHER + (2 * len(kernel.layers) + 9 if pullback else 2)
    locations = kernel.layers[0].n_locations
    lanes = _VECTOR_BYTES // itemsize
    return itemsize * lanes * locations * maps


@functools.cache
def _was_in_cache():
    """Whether the library was there when this process first asked."""
    try:
        return _library_path().exists()
    except (OSError, RuntimeError):  # as in _load
        return False


@functools.cache
def _load():
    try:
        path = _library_path()
        if not path.exists():
            _build(path)
        return ctypes.CDLL(str(path))
    except (OSError, RuntimeError, subprocess.SubprocessError):
        return None  # no compiler, or it fails; no folder, or no home to put it in


def _library_path():
    """Where the library lies, by all that decides its instructions."""
    identity = "\0".join((*_command(), _processor(), _SOURCE.read_text()))
    return _cache_folder() / f"{hashlib.sha256(identity.encode()).hexdigest()[:32]}.so"


def _build(path):
    """Compile the library: whole or not at all, whoever else builds it."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        built = Path(scratch) / path.name
        subprocess.run(
            [*_command(), str(_SOURCE), "-o", str(built)],
            check=True,
            capture_output=True,
            timeout=_BUILD_SECONDS,
        )
        built.replace(path)


def _command():
    """The compiler and its options."""
    return [_compiler(), *_FLAGS]


def _compiler():
    """The C++ compiler: that of the environment variable CXX, or a common one."""
    for name in (os.environ.get("CXX"), "g++", "clang++", "c++"):
        if name and shutil.which(name):
            return name
    raise FileNotFoundError("no C++ compiler")


def _processor():
    """What tells processors with different instructions apart."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line for line in lines if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        return f"{platform.machine()} {platform.processor()}"


def _cache_folder():
    """Where built libraries are kept."""
    if CACHE in os.environ:
        return Path(os.environ[CACHE])
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "skconvrfm"

"""Choice of fused programs: where they pay, and gave the right values.

Before their first use on a device they are compared on a few images with array
operations. That they passed is remembered in the folder of the compiled functions;
where they fail, array operations are used after one warning per process.
"""

import functools
import hashlib
import os
import stat
from contextlib import suppress
from importlib import import_module
from pathlib import Path

import torch

from ..files import write_whole
from ..native import build
from ..parallel import is_out_of_memory
from ..warn import warn_caller

# Pairs × locations × layers that take array operations half a second on an H200;
# Triton compiles for 2 to 10 seconds, once for each shape of images and depth.
WORTH_FUSING = 4e9
# Largest error of float32, relative to the norm; it was 2e-6 on an H100.
_TOLERANCE = 1e-4
_CHECK_BYTES = 2**26
_FAILED: set[torch.device] = set()  # devices, in this process


def wanted(work, kernel, device):
    """Return True if fused programs pay, and were right when they were first tried.

    ``work`` is pairs × locations × layers.
    """
    switch = os.environ.get(build.SWITCH)
    if switch == "0" or (switch != "1" and work < WORTH_FUSING):
        return False
    return device not in _FAILED and _passes(type(kernel), device)


class GuardedTiles:
    """Fused tiles, and ``plain`` ones once a program could not be compiled or run."""

    def __init__(self, plain, kernel, left, right, memory):
        self._device, self._plain = left.patches.device, plain
        self._arguments = kernel, left, right, memory

    def value(self, *arguments):
        """Return what `tiles.Tiles.value` does."""
        return self._call("value", *arguments)

    def pullback(self, *arguments):
        """Return what `tiles.Tiles.pullback` does."""
        return self._call("pullback", *arguments)

    def _call(self, name, *arguments):
        if self._device not in _FAILED:
            try:
                return getattr(_fused_tiles(*self._arguments), name)(*arguments)
            except Exception as error:
                if is_out_of_memory(error):
                    raise
                _give_up(self._device, error)
        return getattr(self._plain, name)(*arguments)


def _give_up(device, error):
    """Use array operations from now on, and say so."""
    _FAILED.add(device)
    warn_caller(
        f"skconvrfm computes on {device} without its fused programs, which takes "
        f"longer: {type(error).__name__}: {error}. Set {build.SWITCH}=0 to do without "
        "them and this warning."
    )


@functools.cache
def _passes(kind, device):
    """Return True if the programs of a class of kernels are right on a device."""
    try:
        record = _record(kind, device)
        if not _is_own(record):
            compare(kind.specimen(), device)
            _write_record(record)
    except Exception as error:  # no Triton, it cannot compile, or values are wrong
        _give_up(device, error)
        return False
    return True


def compare(kernel, device):
    """Raise ArithmeticError where float32 tiles are not those of array operations."""
    generator = torch.Generator().manual_seed(0)
    shape, options = kernel.image_shape_, {"generator": generator, "device": "cpu"}
    x, y = (torch.randn((n, *shape), **options, dtype=torch.float64) for n in (3, 4))
    x[0, :4, :4] = 0  # a patch that is blank
    coef = torch.randn((4, 2), **options, dtype=torch.float64)
    left, right = (kernel.prepare_block(z.to(device), None) for z in (x, y))
    exact = kernel.value(left, right), *kernel.pullback(left, right, coef.to(device))
    left, right = (kernel.prepare_block(z.float().to(device), None) for z in (x, y))
    every = slice(0, 3), slice(0, 4)
    tiles = _fused_tiles(kernel, left, right, _CHECK_BYTES)
    found = tiles.value(*every), *tiles.pullback(*every, coef.float().to(device))
    for result, expected in zip(found, exact, strict=True):
        error = float((result.double() - expected).norm() / expected.norm())
        if not error < _TOLERANCE:
            raise ArithmeticError(f"results are off by {error:.1e}")


def _record(kind, device):
    """Return the file that says that programs passed, named by all that decides it."""
    triton = import_module("triton")
    parts = kind.__name__, torch.__version__, triton.__version__
    card = torch.cuda.get_device_properties(device) if device.type == "cuda" else device
    digest = hashlib.sha256("\0".join((*parts, str(card))).encode())
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(b"\0" + path.read_bytes())
    return build.cache_folder() / f"{digest.hexdigest()[:32]}.passed"


def _is_own(record):
    """Return True if a record is there, and the user's own."""
    with suppress(OSError):
        build.check_owner(record, "file", stat.S_ISREG)
        return True
    return False


def _write_record(record):
    """Remember that programs passed, if there is a folder for it."""
    with suppress(OSError):
        record.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        build.check_owner(record.parent, "folder", stat.S_ISDIR)
        write_whole(record, functools.partial(build.write_own, b""))


def _fused_tiles(*arguments):
    """Return `tiles.FusedTiles`, which cannot be imported without Triton."""
    return import_module(".tiles", __package__).FusedTiles(*arguments)

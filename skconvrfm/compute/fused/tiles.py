r"""Launches of the fused programs for the tiles of a convolutional kernel.

The first covariances are one batched product of matrices. Upwards, maps stay in
registers as far as these hold them, and only the readout is written. The pullback keeps
the inputs of every layer, and goes down from the readout a layer a launch.
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch.nn.functional import pad

from ..blocks import balanced_blocks
from ..window_sums import window_sum_adjoint
from .down import down
from .formulas import INTERPRETED
from .plans import plan_down, plan_up
from .up import up


@dataclass(frozen=True)
class Tuning:
    """Sizes of programs and chunks, chosen by measurement on an H100."""

    block: int = 128  # right images of a program, a power of two
    warps: int = 4  # of a program
    registers: int = 80  # of waiting window sums in a lane, in numbers of four bytes
    # Columns of a band at most: compilation takes about the cube of them.
    columns: int = 10
    pullback_columns: int = 6
    right: int = 1024  # images on either side of a chunk at most, powers of two
    left: int = 256
    scratch: int = 3 * 2**30  # bytes of the maps of a chunk at most
    together: int = 1  # layers of the pullback that one launch takes


class FusedTiles:
    """Tiles of a left (rows) and a right block, the fused twin of `tiles.Tiles`.

    ``memory`` bounds the bytes of the maps that are in use at once.
    """

    def __init__(self, kernel, left, right, memory, tuning=None):
        self._kernel, self._left, self._right = kernel, left, right
        self._memory, self._tuning = memory, tuning or Tuning()

    def value(self, rows, columns, diagonal=None):
        """Return the kernel of slices; row i may be wrong left of ``diagonal + i``."""
        left, right = self._left[rows], self._right[columns]
        past = None if diagonal is None else diagonal + rows.start - columns.start
        with _on(left.patches.device):
            return _value(self._launches(left, right), past)

    def pullback(self, rows, columns, dual_coef):
        """Return the kernel's `pullback` for slices of the blocks."""
        left, right = self._left[rows], self._right[columns]
        with _on(left.patches.device):
            launches = self._launches(left, right, pullback=True)
            weights, own = _pullback(launches, dual_coef)
        return weights, _self_weights(self._kernel, left, own)

    def _launches(self, left, right, pullback=False):
        memory = min(self._memory, self._tuning.scratch)
        return Launches(self._kernel, left, right, memory, self._tuning, pullback)


def _on(device):
    """Make a device the one that Triton launches on."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _value(launches, past):
    """Return the kernel of two blocks; row i may be wrong left of ``past + i``."""
    shape = len(launches.left), len(launches.right)
    out = launches.left.patches.new_empty(shape)
    groups = launches.plan_up(single=False)
    totals = launches.empty(groups[-1].n_bands)
    for rows, columns in launches.chunks():
        begin = None if past is None else past + rows.start - columns.start
        if begin is not None and columns.stop - columns.start <= begin:
            continue
        maps = launches.first_covariance(rows, columns, begin)
        for group in groups:
            maps = launches.up(group, rows, columns, maps, totals, begin)
        n_rows, n_columns = rows.stop - rows.start, columns.stop - columns.start
        total = totals[:, :n_rows, :n_columns].sum(0)
        torch.mul(total, launches.mean, out=out[rows, columns])
    return out


def _pullback(launches, dual_coef):
    """Return w, and ∂k/∂a of every layer summed over the centres, without those above.

    They are (rows, columns, n_left, n_right) and (all locations, n_left, n_outputs).
    """
    left, right, n_all = launches.left, launches.right, launches.n_locations
    shape = *launches.maps[0], len(left), len(right)
    weights = left.patches.new_empty(shape)
    own = left.patches.new_zeros((n_all, len(left), dual_coef.shape[1]))
    d_scale = launches.empty(n_all)
    for rows, columns in launches.chunks():
        maps, derivatives = launches.forward(rows, columns), None
        for group in launches.plan_down():
            where = group, rows, columns, maps
            derivatives = launches.down(*where, derivatives, d_scale, weights)
        n_rows, n_columns = rows.stop - rows.start, columns.stop - columns.start
        own[:, rows] += d_scale[:, :n_rows, :n_columns] @ dual_coef[columns]
    return weights, own


def _self_weights(kernel, left, own):
    """Return β, (rows, columns, n_left, n_outputs), from ∂k/∂a of every layer."""
    at, places = 0, []
    for inverse in left.inverse_roots:
        count = inverse[..., 0].numel()
        here = own[at : at + count].unflatten(0, inverse.shape[:2])
        places.append(here * (inverse[..., None] / 2))
        at += count
    total = places.pop()
    for layer in reversed(kernel.layers[1:]):
        total = window_sum_adjoint(total, layer) + places.pop()
    return total


class Launches:
    """Launches for two blocks, in chunks of bounded memory."""

    def __init__(self, kernel, left, right, memory, tuning, pullback):
        self.left, self.right, self._tuning = left, right, tuning
        self.maps = tuple(tuple(root.shape[:2]) for root in left.roots)
        self.n_locations = sum(rows * columns for rows, columns in self.maps)
        self._tangent = kernel.tangent
        layers = tuple((layer.patch, layer.padding) for layer in kernel.layers)
        self._plan = self.maps, layers, kernel.tangent
        options = {"dtype": left.patches.dtype, "device": left.patches.device}
        self._options = options

        self.mean = 1 / math.prod(self.maps[-1])
        gap = kernel.parallel_gap(options["dtype"])
        numbers = 1 / kernel.channels, float(kernel.bias) ** 2, self.mean
        floor = math.sqrt(2 * gap) / 2 / math.pi
        self._constants = torch.tensor([*numbers, 1 - gap, floor], **options)

        self._sides = self._choose_sides(memory, pullback)
        pairs = list(zip((left, right), self._sides, strict=True))
        self._parts = [balanced_blocks(slice(0, len(b)), side) for b, side in pairs]
        packed = [
            {part.start: _pack(block[part], side) for part in parts}
            for (block, side), parts in zip(pairs, self._parts, strict=True)
        ]
        self._packed_left, self._packed_right = packed
        self._scratch = {}

    def _choose_sides(self, memory, pullback):
        """Return the room for images on the left and on the right of a chunk.

        It does not depend on their numbers: programs are compiled for it.
        """
        tuning, locations = self._tuning, math.prod(self.maps[0])
        if pullback:
            # Inputs and ∂k/∂a of all layers, and derivatives of two.
            n_maps = 2 if self._tangent else 1
            locations = (n_maps + 1) * self.n_locations + 2 * n_maps * locations
        itemsize = self._options["dtype"].itemsize
        most = min(memory // itemsize, 2**31 - 1) // locations
        left, right, least = tuning.left, tuning.right, tuning.block
        while left * right > most and (left > 1 or right > least):
            # Long rows for memory, until few images are left on the other side.
            if right > least and left < 16:
                right //= 2
            elif left > 1:
                left //= 2
            else:
                right //= 2
        return left, right

    def chunks(self):
        """Yield slices of the left and of the right images."""
        lefts, rights = self._parts
        return ((rows, columns) for rows in lefts for columns in rights)

    def empty(self, count):
        """Return room for so many locations of the maps of a chunk."""
        return torch.empty((count, *self._sides), **self._options)

    def _room(self, name, count):
        """Return room that the next chunk uses again."""
        if name not in self._scratch or len(self._scratch[name]) < count:
            self._scratch[name] = self.empty(count)
        return self._scratch[name][:count]

    @property
    def _numbers(self):
        """Numbers of waiting window sums that a lane may keep."""
        return self._tuning.registers * 4 // self._options["dtype"].itemsize

    def plan_up(self, single):
        """Return the groups of layers upwards, see `plans.plan_up`."""
        return plan_up(*self._plan, (self._numbers, self._tuning.columns), single)

    def plan_down(self):
        """Return the groups of layers downwards, see `plans.plan_down`."""
        sizes = self._numbers, self._tuning.pullback_columns
        return plan_down(*self._plan, sizes, self._tuning.together)

    def first_covariance(self, rows, columns, begin=None, out=None):
        """Return inner products of patches by location, not scaled, as S and Θ."""
        count = math.prod(self.maps[0])
        out = self._room("first", count) if out is None else out
        # Whole vectors left of the diagonal are not needed.
        skip = max(0, begin or 0) // 32 * 32
        theirs = slice(columns.start + skip, columns.stop)
        x = self.left.patches[..., rows].flatten(0, 1)
        z = self.right.patches[..., theirs].flatten(0, 1)
        n_rows, n_columns = rows.stop - rows.start, columns.stop - columns.start
        torch.bmm(x.transpose(1, 2), z, out=out[:, :n_rows, skip:n_columns])
        return out, out

    def forward(self, rows, columns):
        """Return the inputs S and Θ of all layers, with all locations of all maps."""
        s = self._room("s", self.n_locations)
        theta = self._room("theta", self.n_locations) if self._tangent else s
        at = math.prod(self.maps[0])
        self.first_covariance(rows, columns, out=s[:at])
        maps = s[:at], s[:at]
        for group in self.plan_up(single=True):
            count = math.prod(self.maps[group.high])
            out = s[at : at + count], theta[at : at + count]
            maps = self.up(group, rows, columns, maps, out=out)
            at += count
        return s, theta

    def up(self, group, rows, columns, maps, totals=None, begin=None, out=None):
        """Launch a group upwards; return the maps that it puts out."""
        stored = totals is None or group.high < len(self.maps)
        if stored and out is None:
            count = math.prod(self.maps[group.high])
            out = [self._room((k, group.high % 2), count) for k in range(2)]
        up[self._grid(group, rows)](
            *maps,
            *(out if stored else maps),
            maps[0] if stored else totals,
            self._packed_left[rows.start],
            self._packed_right[columns.start],
            self._constants,
            columns.stop - columns.start,
            -self._sides[0] if begin is None else begin,
            RAW=group.low == 0,
            STORED=stored,
            PADDED=group.padded,
            **self._meta(group),
        )
        return out

    def down(self, group, rows, columns, maps, derivatives, d_scale, weights):
        """Launch a group downwards; return the derivatives that it puts out."""
        if group.low > 0:
            count = math.prod(self.maps[group.low - 1])
            out = [self._room(("d", k, group.low % 2), count) for k in range(2)]
            targets, strides = out, out[0].stride()[:2]
        else:
            out, part = None, weights[:, :, rows, columns]
            targets, strides = (part, d_scale), part.stride()[1:3]
        down[self._grid(group, rows)](
            *maps,
            *(maps if derivatives is None else derivatives),
            d_scale,
            *targets,
            *strides,
            self._packed_left[rows.start],
            self._packed_right[columns.start],
            self._constants,
            columns.stop - columns.start,
            READOUT=derivatives is None,
            STORED=group.low > 0,
            **self._meta(group),
        )
        return out

    def _grid(self, group, rows):
        blocks = self._sides[1] // self._tuning.block
        return group.n_bands, (rows.stop - rows.start) * blocks

    def _meta(self, group):
        """Return the constants that both programs are compiled for."""
        return {
            "LEVELS": group.levels,
            # The interpreter cannot map functions of numbers.
            "KERNEL": (self._tangent, INTERPRETED),
            "CHUNK": (*self._sides, self._tuning.block),
            "BAND": group.band,
            "num_warps": self._tuning.warps,
            "enable_fp_fusion": True,
        }


def _pack(block, size):
    """Return the roots of all layers, (locations, size), 0 beyond the images."""
    roots = torch.cat([root.flatten(0, 1) for root in block.roots])
    return pad(roots, (0, size - roots.shape[-1])).contiguous()

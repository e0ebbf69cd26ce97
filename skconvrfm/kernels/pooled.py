r"""Readouts: the locations of two images that a kernel compares, and their weights.

Where k compares location u of one image with location u' of another, the kernel of maps
that are averaged over the cells of a grid before the readout is the mean over the cells
c of the last layer's map,

.. math:: K(x, z) = \frac1C \sum_c \frac1{|c|^2} \sum_{u, u' \in c} k_{u, u'}(x, z)
                  = \sum_\delta \sum_u \omega_\delta(u) \, k_{u, u + \delta}(x, z).

Offsets δ do not mix before the pool, so that each is one pass of the kernel without a
pool over the locations u for which u + δ lies in the map as well. Locations outside
count as zeros, like those that pad a map. A cell of every location is no pool, a cell
of all locations is a global one.

Source: Arora et al., arXiv:1904.11955 (the kernel with global average pooling), cell by
cell and offset by offset.
"""

import math
from dataclasses import dataclass
from itertools import product

import numpy as np
import torch

from ..compute.images import cells


@dataclass(frozen=True, eq=False)
class Readout:
    """Locations of two images that are compared at the end of a kernel, and weights.

    ``left`` and ``right`` are indices of the locations in the maps of all layers.
    """

    left: tuple = (slice(None), slice(None))
    right: tuple = (slice(None), slice(None))
    weights: np.ndarray | None = None  # (rows, columns); None makes the kernel a mean

    def meet(self, left, right):
        """Return two blocks at the locations that are compared."""
        return left.at(self.left), right.at(self.right)

    def sum(self, maps):
        """Return the kernel from its values at each pair, (rows, columns, ...)."""
        if self.weights is None:
            return maps.mean((0, 1))
        return torch.tensordot(self._weights_like(maps), maps, 2)

    def derivative(self, maps):
        """Return the derivative of `sum` at each pair, to be broadcast over images."""
        if self.weights is None:
            return maps.new_full((1, 1, 1, 1), 1 / math.prod(maps.shape[:2]))
        return self._weights_like(maps)[..., None, None]

    def _weights_like(self, maps):
        return torch.as_tensor(self.weights, dtype=maps.dtype, device=maps.device)


FLATTEN = Readout()  # every location meets its own


def pooled_readouts(layers, grid):
    """Yield the readouts, one per offset, of a kernel that is pooled over a grid."""
    tight = len(layers) == 1  # no layer above sees pairs that weigh nothing
    shifts = (
        _shifts(size, count, tight)
        for size, count in zip(layers[-1].locations, grid, strict=True)
    )
    for meetings in product(*shifts):
        left, right, weights = zip(*meetings, strict=True)
        if tight:
            left, right = np.ix_(*left), np.ix_(*right)
        yield Readout(left, right, np.outer(*weights))


def _shifts(size, count, tight):
    """Yield the pairs along one dimension at every shift: left, right, weights.

    A shift δ pairs i of one image with i + δ of the other; its weight at i is the share
    of that pair in the pool, 0 where the two lie in different cells. Left and right are
    slices of whatever size a map has, or, if ``tight``, the positions in a map of this
    size that have a weight.
    """
    parts = cells(size, count)
    longest = max(part.stop - part.start for part in parts)
    for shift in range(1 - longest, longest):
        weights = np.zeros(size)
        for part in parts:
            length = part.stop - part.start
            both = slice(part.start + max(0, -shift), part.stop - max(0, shift))
            weights[both] = 1 / (length**2 * len(parts))
        if tight:
            left = np.flatnonzero(weights)
            right = left + shift
        else:
            left = slice(max(0, -shift), min(0, -shift) or None)
            right = slice(max(0, shift), min(0, shift) or None)
        yield left, right, weights[left]

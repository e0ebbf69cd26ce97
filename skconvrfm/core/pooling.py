r"""Kernels of maps that are averaged over the cells of a grid before the readout.

Where k compares location u of one image with location u' of another, the pooled kernel
is the mean over the cells c, which part the last layer's map,

.. math:: K(x, z) = \frac1C \sum_c \frac1{|c|^2} \sum_{u, u' \in c} k_{u, u'}(x, z)
                  = \sum_\delta \sum_u \omega_\delta(u) \, k_{u, u + \delta}(x, z).

Offsets δ do not mix before the pool, so that each is one pass of the kernel without a
pool over the locations u for which u + δ lies in the map as well. What is outside
counts for nothing, as zeros do that pad a map. A cell of every location is no pool, a
cell of all locations is a global one.

Source: Arora et al., arXiv:1904.11955 (the kernel with global average pooling), cell by
cell and offset by offset.
"""

from dataclasses import dataclass, replace
from itertools import product
from operator import attrgetter

import numpy as np

from .convolutional import ConvolutionalKernel
from .images import Readout, cells
from .radial import PatchKernel


@dataclass(frozen=True)
class PooledKernel:
    """A kernel whose last maps are averaged over the cells of a grid.

    Attributes
    ----------
    base : ConvolutionalKernel or PatchKernel
        The kernel without the pool.
    grid : tuple of int
        Rows and columns of cells, clipped to the map.
    """

    base: ConvolutionalKernel | PatchKernel
    grid: tuple[int, int]

    # What comes before the pool.
    kind = property(attrgetter("base.kind"))
    layers = property(attrgetter("base.layers"))
    channels = property(attrgetter("base.channels"))
    patch_dim = property(attrgetter("base.patch_dim"))
    patch_scale = property(attrgetter("base.patch_scale"))
    bandwidth = property(attrgetter("base.bandwidth"))
    unmeasured = property(attrgetter("base.unmeasured"))
    prepare_block = property(attrgetter("base.prepare_block"))

    def measured(self, images, weights, transform):
        """The kernel with the bandwidth that it has without the pool."""
        return replace(self, base=self.base.measured(images, weights, transform))

    @property
    def terms(self):
        """The kernels that add up to this one: one an offset."""
        tight = len(self.layers) == 1  # no layer above sees pairs that weigh nothing
        shifts = (
            _shifts(size, count, tight)
            for size, count in zip(self.layers[-1].locations, self.grid, strict=True)
        )
        for meetings in product(*shifts):
            left, right, weights = zip(*meetings, strict=True)
            if tight:
                left, right = np.ix_(*left), np.ix_(*right)
            yield replace(self.base, readout=Readout(left, right, np.outer(*weights)))

    def diagonal(self, block):
        """None: k(x, x) takes as long as any other value, and is one of the tile's."""

    def value(self, left, right):
        """The kernel between two blocks.

        Parameters
        ----------
        left, right : ImageBlock
            The images of the rows and of the columns.

        Returns
        -------
        Tensor of shape (len(left), len(right))
        """
        # Every term takes its own locations from them, in long runs.
        left, right = left.contiguous(), right.contiguous()
        return sum(term.value(left, right) for term in self.terms)


def _shifts(size, count, tight):
    """Yield what meets along one dimension at every shift: left, right, weights.

    A shift δ pairs i of one image with i + δ of the other; its weight at i is the
    share of that pair in the pool, 0 where the two lie in different cells. Left and
    right are slices of whatever size a map has, or, if ``tight``, the positions in a
    map of this size that have a weight.
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

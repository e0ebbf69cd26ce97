"""Pools: powers of the means of powers over the cells of a grid, or their maxima."""

import math
from dataclasses import replace
from itertools import pairwise, product
from numbers import Real

import numpy as np
import torch

from ..compute.images import cells, to_tensor

# Exponents p and q of (mean uᵖ)^q by name. The root lets a faint pattern count for more
# against a strong one; the norm of order 4 counts the strongest match, and so does the
# maximum, p = ∞.
POOLS = {
    "root": (1.0, 0.5),
    "mean": (1.0, 1.0),
    "norm": (4.0, 0.25),
    "max": (math.inf, 1.0),
}
_LARGEST_EXPONENT = 8  # beyond which float32 has no numbers large enough
# Units of responses that are raised to a power: the deviation of responses, of which
# offsets are a hundredth, but no less than a thousandth of the bias.
_OFFSETS_A_UNIT, _LARGEST_BIAS = 100, 1024
_LEAST_UNIT = 1e-30  # whose inverse fits in float32, as filters are divided by it


def pool_exponents(pool):
    """Return p and q of a pool, a name or a pair of them."""
    if isinstance(pool, str):
        return POOLS[pool]
    numbers = [e for e in pool if isinstance(e, Real) and 0 < e <= _LARGEST_EXPONENT]
    if not len(numbers) == len(pool) == 2 or numbers[0] < 1:
        raise ValueError(
            f"pool={pool!r} is no pair (p, q) of (mean uᵖ)^q with 1 <= p <= "
            f'{_LARGEST_EXPONENT} and 0 < q <= {_LARGEST_EXPONENT}; "max" is the limit '
            "of large p."
        )
    return float(numbers[0]), float(numbers[1])


def pool_grid(locations, pool):
    """Return the grid of a pool, no finer than the map; all locations for None.

    The cells of a dimension are a number, or the edges of unequal ones.
    """
    if pool is None:
        return tuple(locations)
    pairs = zip(pool, locations, strict=True)
    return tuple(
        len(cells) - 1 if isinstance(cells, tuple) else min(cells, size)
        for cells, size in pairs
    )


def cell_slices(size, part, overlap=0.0):
    """Return the cells of a dimension: a number of equal ones, or those of edges.

    Each reaches into its neighbours by a share of its own size.
    """
    if isinstance(part, tuple):
        return [slice(*edges) for edges in pairwise(part)]
    slices = []
    for cell in cells(size, part):
        reach = int(overlap * (cell.stop - cell.start) + 0.5)
        slices.append(slice(max(0, cell.start - reach), min(size, cell.stop + reach)))
    return slices


def cell_edges(slices):
    """Return where cells begin and end: the edges of parts that they are made of."""
    return tuple(sorted({edge for s in slices for edge in (s.start, s.stop)}))


def cell_areas(slices):
    """Return the numbers of locations of cells, (rows, columns, 1), float64."""
    sizes = [
        torch.tensor(
            [s.stop - s.start for s in along], dtype=torch.float64, device="cpu"
        )
        for along in slices
    ]
    return torch.outer(*sizes)[..., None]


def cell_parts(slices, edges):
    """Yield (row, column, slices of the parts between the edges) of each cell."""
    rows, columns = (
        [slice(at.index(s.start), at.index(s.stop)) for s in along]
        for along, at in zip(slices, edges, strict=True)
    )
    for (row, down), (column, across) in product(enumerate(rows), enumerate(columns)):
        yield row, column, down, across


def average_pool(maps, slices, edges=None):
    """Return means of maps (n, rows, columns, K) over cells, a pair of lists of slices.

    With ``edges`` the maps are means over the parts between them.
    """
    if [len(along) for along in slices] == list(maps.shape[1:3]) and all(
        s == slice(i, i + 1) for along in slices for i, s in enumerate(along)
    ):
        return maps
    means = []  # matrices (cells, size) that average over the cells of a dimension
    for along, at in zip(slices, edges or (None, None), strict=True):
        size = along[-1].stop
        weights = maps.new_zeros((len(along), size))
        for cell, part in enumerate(along):
            weights[cell, part] = 1 / (part.stop - part.start)
        if at is not None:
            weights = torch.stack(
                [weights[:, a:b].sum(1) for a, b in pairwise(at)], dim=1
            )
        means.append(weights)
    return torch.einsum("ri,nijk,cj->nrck", means[0], maps, means[1])


def maximum_pool(maps, slices):
    """Return maxima of maps (n, rows, columns, K) over cells."""
    rows, columns = slices
    maps = torch.stack([maps[:, s].amax(1) for s in rows], 1)
    return torch.stack([maps[:, :, s].amax(2) for s in columns], 2)


class PowerPool:
    """Pool of a `FilterLayer`, of its pool, power, offsets, order and overlap."""

    @property
    def takes_maxima(self):
        """True where the pool is the maximum."""
        return math.isinf(self.order)

    @property
    def nothing(self):
        """Pool of no locations."""
        return -math.inf if self.takes_maxima else 0.0

    def add_band(self, out, pooled, share):
        """Add what a `Band` pools of its locations, in its place, to an ndarray."""
        if self.takes_maxima:
            np.maximum(out, pooled, out=out)
        else:
            super().add_band(out, pooled, share)

    @property
    def cells(self):
        """Rows and columns of the cells, a pair of lists of slices."""
        pool = self.grid if self.pool is None else self.pool
        pairs = zip(self.layer.locations, pool, strict=True)
        return tuple(cell_slices(*pair, self.overlap) for pair in pairs)

    @property
    def edges(self):
        """Edges of the parts of the map that the cells are made of."""
        return tuple(map(cell_edges, self.cells))

    @property
    def parts(self):
        """The layer with the parts as its cells, without power and mirror."""
        pool = self.edges if self.overlap else self.pool
        return replace(self, pool=pool, overlap=0.0, power=None, mirror=False)

    @property
    def n_pooled(self):
        """Numbers that are pooled together into the features of an image."""
        return self.n_maps * math.prod(len(edges) - 1 for edges in self.edges)

    @property
    def units(self):
        """Powers of two (K,) in which responses are measured, so that powers fit."""
        if self.order == 1 or self.takes_maxima:
            return np.ones(self.n_maps)
        size = np.zeros(self.n_maps)
        if self.offsets is not None:
            size = np.maximum(size, _OFFSETS_A_UNIT * self.offsets)
        if self.biases is not None:  # all that there is of filters of equal patches
            size = np.maximum(size, np.abs(self.biases) / _LARGEST_BIAS)
        return np.exp2(np.floor(np.log2(np.where(size > _LEAST_UNIT, size, 1))))

    def pool_parts(self, responses):
        """Return means of powers, or maxima, over parts of the map."""
        slices = [cell_slices(edges[-1], edges) for edges in self.edges]
        if self.takes_maxima:
            return maximum_pool(responses, slices)
        if self.order != 1:
            responses = responses.abs().pow_(self.order)
        return average_pool(responses, slices)

    def combine(self, parts):
        """Return means, or maxima, of cells from those of their parts."""
        if not self.overlap:
            return parts
        if self.takes_maxima:
            runs = cell_parts(self.cells, self.edges)
            maxima = [parts[:, down, across].amax((1, 2)) for *_, down, across in runs]
            return torch.stack(maxima, 1).unflatten(1, self.grid)
        return average_pool(parts, self.cells, self.edges)

    def raise_means(self, means):
        """Return means to the power, with their sign."""
        if self.power is None:
            return means
        if self.power != 1:
            offsets = self._offsets_like(means)
            raised = means.abs().add_(offsets).pow_(self.power)
            means = raised.sub_(offsets.pow(self.power)).copysign_(means)
        return means if self.order == 1 else means * self._factors_like(means)

    def slopes(self, means):
        """Return the derivatives of the powers by the means; 0 for infinite ones."""
        if self.power == 1:
            slopes = torch.ones_like(means)
        else:
            sizes = means.abs().add_(self._offsets_like(means))
            slopes = self.power * sizes.pow(self.power - 1)
            slopes = slopes.masked_fill_(sizes == 0, 0)
        return slopes if self.order == 1 else slopes * self._factors_like(means)

    def _offsets_like(self, means):
        offsets = np.zeros(self.n_maps) if self.offsets is None else self.offsets
        if self.order != 1:
            offsets = (offsets / self.units) ** self.order
        return to_tensor(offsets, means.dtype, means.device)

    def _factors_like(self, means):
        """Return the factors of features from means in the units of responses."""
        factors = self.units ** (self.order * self.power)
        return to_tensor(factors, means.dtype, means.device)

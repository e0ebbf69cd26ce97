r"""Second moments Σ δδᵀ of gradients δ at the responses of a band of locations.

A gradient is that of the part in which its location lies, times the location's slope:
:math:`\delta_{ou} = g_{o\,z(u)} \circ s_u`. With few outputs at many locations of a
part z, the sum over both is a product of two small matrices; otherwise the gradients
are spread to the locations.
"""

from dataclasses import dataclass
from itertools import pairwise, product

import numpy as np
import torch

from ..compute.blocks import balanced_blocks
from ..compute.threads import own_threads, share_out
from .pools import average_pool, cell_areas

# Cost of an entrywise product of K × K matrices in products of two rows of K.
_PRODUCT_COST = 64
_DELTA_NUMBERS = 2**23  # gradients at responses whose products are taken at once


def places(band):
    """Return the row and the column of the part of every location of a band."""
    rows, columns = cell_places(band.features.cells)
    return rows + band.rows.start, columns


def cell_places(cells):
    """Return the row and the column of the cell of every location."""
    return [
        np.repeat(np.arange(len(along)), [s.stop - s.start for s in along])
        for along in cells
    ]


def spread(gradients, rows, columns):
    """Return gradients (m, n_outputs, rows, columns, K) of parts at their locations."""
    rows, columns = (
        torch.as_tensor(i, device=gradients.device) for i in (rows, columns)
    )
    return gradients.index_select(2, rows).index_select(3, columns)


def band_squares(squares, band, active):
    """Return Σ δ² of a band, (K,) float64, from Σ_o g² (m, rows, columns, K)."""
    slices = band.features.cells
    means = average_pool(active.square(), slices)
    each = (means * cell_areas(slices).to(means)).mul_(squares)
    return each.sum((0, 1, 2), dtype=torch.float64)


def band_moment(gradients, band, active):
    """Return Σ δδᵀ of a band, float64."""
    side = _Side(gradients, active, *places(band))
    return _product_moment(side, side)


def mirror_moment(gradients, band, active):
    """Return S× of a band of images, which their mirrors follow, float64."""
    (rows, columns), m = places(band), len(active) // 2
    # Even patches pad one column more after than before: the last one has no mirror.
    before, after = band.features.layer.padding[2:]
    n = len(columns) - (after - before)
    left = _Side(gradients[:m], active[:m, :, :n], rows, columns[:n])
    mirrored = active[m:, :, :n].flip(2)
    right = _Side(gradients[m:], mirrored, rows, columns[:n][::-1].copy())
    return _product_moment(left, right)


@dataclass(frozen=True)
class _Side:
    """Gradients δ of some images at a band of locations, by their factors."""

    gradients: torch.Tensor  # (m, n_outputs, rows, columns, K), of parts
    active: torch.Tensor  # (m, rows, columns, K), slopes of the locations
    rows: np.ndarray  # of the part of every location
    columns: np.ndarray

    def part(self, height, width):
        """Return the factors of locations that lie in one part."""
        at = self.rows[height.start], self.columns[width.start]
        active = self.active[:, height, width].flatten(1, 2)
        return self.gradients[:, :, at[0], at[1]], active

    def deltas(self, image, height):
        """Return δ of an image at some rows of locations, (n, K)."""
        gradients = self.gradients[image : image + 1]
        delta = spread(gradients, self.rows[height], self.columns)
        return (delta * self.active[image, height]).flatten(0, 3)


def _product_moment(left, right):
    """Return Σ δδ'ᵀ of two sides, float64, by the cheaper of two routes."""
    n_outputs, n_rows = left.gradients.shape[1], len(left.rows)
    down, across = _runs(left.rows), _runs(left.columns, right.columns)
    n_locations = n_rows * len(left.columns) / (len(down) * len(across))
    if n_outputs * n_locations > n_outputs + n_locations + _PRODUCT_COST:
        return sum(
            _part_moment(*left.part(*where), *right.part(*where))
            for where in product(down, across)
        )
    total, numbers = 0.0, n_outputs * left.active[0, 0].numel()
    for image in range(len(left.active)):
        for height in balanced_blocks(slice(0, n_rows), _DELTA_NUMBERS // numbers):
            delta = left.deltas(image, height)
            other = delta if right is left else right.deltas(image, height)
            total = total + (delta.T @ other).double()
    return total


def _runs(*indices):
    """Return slices in which all arrays of integers are constant."""
    changes = np.any([np.diff(along) for along in indices], axis=0)
    edges = [0, *(np.flatnonzero(changes) + 1).tolist(), len(indices[0])]
    return [slice(*pair) for pair in pairwise(edges)]


def _part_moment(gradients, active, others, other_active):
    """Return Σ_z [Σ_o g g'ᵀ] ∘ [Σ_u a a'ᵀ] of a part, float64."""
    # Gradients g are (m, n_outputs, K), active a are (m, locations, K).
    sides = gradients, active, others, other_active

    def moment(part):
        # One image at a time: its matrices of K × K stay in the cache.
        total = 0
        for g, a, g2, a2 in zip(*(side[part] for side in sides), strict=True):
            total = total + (g.T @ g2).mul_(a.T @ a2)
        return total

    with own_threads(active.device.type == "cpu"):
        return sum(share_out(moment, slice(0, len(active)), len(active))).double()

"""Pools: means over the cells of a grid, raised to a power."""

import torch

from ..compute.images import cells

# Names of the powers that means over cells are raised to: the root lets a faint
# pattern count for more against a strong one.
POWERS = {"root": 0.5, "mean": 1.0}


def average_pool(maps, grid):
    """Return means of maps (n, rows, columns, K) over the cells of a grid."""
    if tuple(grid) == maps.shape[1:3]:
        return maps
    means = []  # matrices (cells, size) that average over the parts of a dimension
    for size, count in zip(maps.shape[1:3], grid, strict=True):
        means.append(maps.new_zeros((count, size)))
        for cell, part in enumerate(cells(size, count)):
            means[-1][cell, part] = 1 / (part.stop - part.start)
    return torch.einsum("ri,nijk,cj->nrck", means[0], maps, means[1])


def pool_grid(locations, pool):
    """Return the grid of a pool, no finer than the map; all locations for None."""
    if pool is None:
        return tuple(locations)
    return tuple(min(cells, size) for cells, size in zip(pool, locations, strict=True))

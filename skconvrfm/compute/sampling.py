"""Draws of images that treat a weight as a repetition of the row."""

import math
from dataclasses import dataclass, replace

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from .blocks import balanced_blocks, image_blocks

# Entries of the direction that images are projected on, and of these, at once.
_DIRECTION_ENTRIES, _PROJECTED_ENTRIES = 2**20, 2**21
# Distances of patches that settle a median, and the images that it takes at least.
MEDIAN_DISTANCES = 2_000_000
_MEDIAN_IMAGES = 20
# Weights are at least this part of the largest: a smaller one is rounding beside it.
_LEAST_WEIGHT = 1e-24
# Draws that are made one by one; more would give every row what its weight gives it.
_MOST_DRAWS = 2**24


def content_positions(images, rng):
    """Return the projection of each image on a direction drawn from ``rng``."""
    row, positions = math.prod(images.shape[2:]), np.zeros(len(images))
    whole = slice(0, images.shape[1])
    for band in balanced_blocks(whole, _DIRECTION_ENTRIES // row):
        # As from one draw, whatever the bands.
        direction = rng.standard_normal((band.stop - band.start) * row)
        for part in image_blocks(images, _PROJECTED_ENTRIES // len(direction)):
            block = np.ascontiguousarray(np.asarray(images[part])[:, band])
            # Row by row, so that equal rows get equal numbers, to the last bit.
            rows = block.reshape(-1, len(direction))
            positions[part] += np.einsum("ij,j->i", rows, direction)
    return positions


def find_copies(positions):
    """Return the first row of each distinct image, in order, and the image of each row.

    Images count as equal where their `content_positions` are.
    """
    found = np.unique(positions, return_index=True, return_inverse=True)
    first, image = found[1], found[2].ravel()
    order = np.argsort(first)
    return first[order], np.argsort(order)[image]


def groups_of_images(groups, image):
    """Return the group of each image from those of rows; copies join their groups."""
    n_images, n_groups = image.max() + 1, groups.max() + 1
    pairs = np.ones(len(image)), (image, n_images + groups)
    graph = coo_array(pairs, shape=(n_images + n_groups,) * 2)
    return connected_components(graph, directed=False)[1][:n_images]


def binary_exponent(values):
    """Return the exponent of the power of two that scales values to about 1."""
    return int(np.frexp(np.abs(values).max())[1])


def scaled_weights(weights):
    """Return positive weights times a power of two, the largest about 1."""
    return none_vanishing(np.ldexp(weights, -binary_exponent(weights)))


def none_vanishing(weights):
    """Return positive weights, none so small beside others that its root is lost."""
    return np.maximum(weights, _LEAST_WEIGHT * weights.max())


@dataclass(frozen=True)
class Sample:
    """Some rows, each with a weight."""

    rows: np.ndarray  # (m,), int
    weights: np.ndarray  # (m,)


@dataclass(frozen=True)
class Lineup:
    """Rows in an order that depends on their content, see `systematic_sample`."""

    strata: np.ndarray
    positions: np.ndarray
    weights: np.ndarray
    offset: float

    def draw(self, n_draws):
        """Draw so many rows, a `Sample`; weights are scaled to a size of about 1."""
        lines = self.strata, self.positions, self.weights
        rows, weights = systematic_sample(*lines, n_draws, self.offset)
        return Sample(rows, np.ldexp(weights, -binary_exponent(weights)))

    def draw_once(self, n_draws):
        """Draw so many rows if there are, each once, in proportion to their weights.

        Return them, and the factors by which weights make up for rows that were not
        drawn. Rows that are due more than once are drawn, and weigh as before.
        """
        n_draws = min(n_draws, len(self.weights))
        chances = inclusion_chances(self.weights, n_draws)
        rows = np.unique(replace(self, weights=chances).sequence(n_draws))
        return rows, 1 / chances[rows]

    def sequence(self, n_draws):
        """Return so many rows, one per draw, some several times; an array of int."""
        order = np.lexsort((self.positions, self.strata))
        steps = (np.arange(n_draws) + self.offset) * (self.weights.sum() / n_draws)
        cumulative = np.cumsum(self.weights[order])
        drawn = np.searchsorted(cumulative, steps, side="right")
        return order[drawn.clip(max=len(order) - 1)]

    def take(self, rows):
        """Return the line-up of some of the rows."""
        lines = self.strata, self.positions, self.weights
        return Lineup(*(line[rows] for line in lines), self.offset)

    def split(self, fraction, groups=None):
        """Return the rows kept and held out, about a fraction of the weight.

        The split is even over the strata, as far as whole groups can be. A part is
        empty where there are too few rows.
        """
        if groups is not None:
            return self._split_groups(fraction, groups)
        n_rows = len(self.positions)
        drawn = self.sequence(max(1, round(fraction * n_rows)))
        held_out = np.isin(np.arange(n_rows), drawn)
        return np.flatnonzero(~held_out), np.flatnonzero(held_out)

    def _split_groups(self, fraction, groups):
        """Return the same of whole groups, each in the place of its first row."""
        order = np.lexsort((self.positions, self.strata))
        first = np.unique(groups[order], return_index=True)[1]
        number = np.unique(groups, return_inverse=True)[1].ravel()
        weights = np.bincount(number, self.weights)
        held_out, due = [], fraction * self.offset * weights.mean()
        for group in np.argsort(first):
            due += fraction * weights[group]
            if 2 * due > weights[group]:  # nearer to the fraction than without it
                held_out.append(group)
                due -= weights[group]
        held_out = np.isin(number, held_out or weights.argmin())
        return np.flatnonzero(~held_out), np.flatnonzero(held_out)


def inclusion_chances(weights, n_draws):
    """Return min(1, c w) for weights w, with c so that they add up to ``n_draws``."""
    due = np.sort(weights)[::-1]
    # With the first k rows drawn for certain, the others share the draws that remain.
    rest = np.cumsum(due[::-1])[::-1]
    factors = (n_draws - np.arange(n_draws)) / rest[:n_draws]
    certain = np.argmax(factors * due[:n_draws] <= 1)
    return np.minimum(1, factors[certain] * weights)


def bandwidth_draws(n_locations):
    """Return the number of images on which a median of distances is measured."""
    return max(_MEDIAN_IMAGES, math.isqrt(2 * MEDIAN_DISTANCES // n_locations))


def systematic_sample(strata, positions, weights, n_draws, offset):
    """Draw rows in equal steps of weight along an order of the rows.

    Rows (n,) are lined up by ``strata`` and, inside them, by ``positions``, numbers
    that depend on the row's image alone. Equal steps along their cumulative weight give
    every stratum its share, and the same images whether a row has weight 2 or stands
    there twice. ``offset`` in [0, 1) is the place of the first draw in its step. Return
    the rows drawn, each once, and how often each was drawn; where ``n_draws`` reaches
    the sum of the weights, or more than can be made, all rows with their weights.
    """
    if n_draws >= min(weights.sum(), _MOST_DRAWS):
        return np.arange(len(weights)), weights
    drawn = Lineup(strata, positions, weights, offset).sequence(n_draws)
    rows, counts = np.unique(drawn, return_counts=True)
    return rows, counts.astype(float)

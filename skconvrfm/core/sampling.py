"""Which images carry the patch AGOP: a draw that treats weights as repetitions."""

import math
from dataclasses import dataclass

import numpy as np

from .images import balanced_blocks

# Rows that are cast to float at once when they are projected.
_PROJECTION_BATCH = 256
# Distances of patches that settle a median, and the images that it takes at least.
_MEDIAN_DISTANCES = 2_000_000
_MEDIAN_IMAGES = 20


def content_positions(rows, rng):
    """A number for each row that depends on its content alone: a random projection.

    Parameters
    ----------
    rows : ndarray of shape (n, n_features)
        Flat images of any real dtype, cast batch by batch.
    rng : numpy.random.RandomState
        Where the direction comes from.

    Returns
    -------
    ndarray of shape (n,)
    """
    direction = rng.standard_normal(rows.shape[1])
    batches = balanced_blocks(slice(0, len(rows)), _PROJECTION_BATCH)
    return np.concatenate([rows[batch] @ direction for batch in batches])


@dataclass(frozen=True)
class Sample:
    """Some rows, each with a weight.

    Attributes
    ----------
    rows : ndarray of shape (m,), int
        Which rows.
    weights : ndarray of shape (m,)
        Their weights.
    """

    rows: np.ndarray
    weights: np.ndarray


@dataclass(frozen=True)
class Lineup:
    """Rows in an order that depends on their content, ready for draws.

    Attributes
    ----------
    strata, positions, weights, offset
        See `systematic_sample`.
    """

    strata: np.ndarray
    positions: np.ndarray
    weights: np.ndarray
    offset: float

    def draw(self, n_draws):
        """Draw so many rows, a `Sample`."""
        return Sample(
            *systematic_sample(
                self.strata, self.positions, self.weights, n_draws, self.offset
            )
        )


def bandwidth_draws(n_locations):
    """Images on which a median of distances is measured."""
    return max(_MEDIAN_IMAGES, math.isqrt(2 * _MEDIAN_DISTANCES // n_locations))


def systematic_sample(strata, positions, weights, n_draws, offset):
    """Draw rows in equal steps of weight along an order of the rows.

    Rows are lined up by stratum and, inside it, by position. Equal steps along
    their cumulative weight give every stratum its share, and give the same
    images whether a row has weight 2 or stands there twice.

    Parameters
    ----------
    strata : ndarray of shape (n,)
        A group, or a target, by which the draw is balanced.
    positions : ndarray of shape (n,)
        A number that depends on the row's image alone.
    weights : ndarray of shape (n,)
        The sample weights, all positive.
    n_draws : int
        Number of draws; where it reaches the sum of the weights, all rows are
        taken with their weights.
    offset : float
        Where in its first step the draw begins, in [0, 1).

    Returns
    -------
    rows : ndarray of shape (n_rows,)
        The rows drawn, each once.
    row_weights : ndarray of shape (n_rows,)
        How often each was drawn.
    """
    total = weights.sum()
    if n_draws >= total:
        return np.arange(len(weights)), weights
    order = np.lexsort((positions, strata))
    steps = (np.arange(n_draws) + offset) * (total / n_draws)
    drawn = np.searchsorted(np.cumsum(weights[order]), steps, side="right")
    rows, counts = np.unique(order[drawn.clip(max=len(order) - 1)], return_counts=True)
    return rows, counts.astype(float)

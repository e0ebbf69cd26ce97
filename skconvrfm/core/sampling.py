"""Which images carry the patch AGOP: a draw that treats weights as repetitions."""

import math
from dataclasses import dataclass

import numpy as np

from .blocks import image_blocks

# Rows that are cast to float at once when they are projected.
_PROJECTION_BATCH = 256
# Distances of patches that settle a median, and the images that it takes at least.
_MEDIAN_DISTANCES = 2_000_000
_MEDIAN_IMAGES = 20
# Draws that are made one by one; more would give every row what its weight gives it.
_MOST_DRAWS = 2**24


def content_positions(rows, rng):
    """A number for each row that depends on its content alone: a random projection.

    Parameters
    ----------
    rows : ndarray or StoredRows of shape (n, n_features)
        Flat images of any real dtype, cast batch by batch.
    rng : numpy.random.RandomState
        Where the direction comes from.

    Returns
    -------
    ndarray of shape (n,)
    """
    direction = rng.standard_normal(rows.shape[1])
    batches = image_blocks(rows, _PROJECTION_BATCH)
    # Row by row, so that equal rows get equal numbers, to the last bit.
    return np.concatenate(
        [np.einsum("ij,j->i", np.asarray(rows[batch]), direction) for batch in batches]
    )


def binary_exponent(values):
    """The exponent of the power of two that scales values to a size of about 1."""
    return int(np.frexp(np.abs(values).max())[1])


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
        """Draw so many rows, a `Sample`; weights are scaled to a size of about 1."""
        rows, weights = systematic_sample(
            self.strata, self.positions, self.weights, n_draws, self.offset
        )
        return Sample(rows, np.ldexp(weights, -binary_exponent(weights)))

    def sequence(self, n_draws):
        """So many rows, one a draw, some of them several times; an array of int."""
        return _systematic_rows(
            self.strata, self.positions, self.weights, n_draws, self.offset
        )

    def take(self, rows):
        """The line-up of some of the rows."""
        return Lineup(
            self.strata[rows], self.positions[rows], self.weights[rows], self.offset
        )

    def split(self, fraction):
        """Split the rows in two, evenly over the strata.

        Rows with the same content and stratum stay together, as if they were one row
        with the sum of their weights: a copy of a held-out row is not trained on.

        Parameters
        ----------
        fraction : float
            Of the weight, about, that the second part gets.

        Returns
        -------
        kept, held_out : ndarray of int
            The rows of both parts, in their order. A part is empty where there are too
            few different rows.
        """
        content = np.column_stack([self.strata, self.positions])
        _, first, group = np.unique(
            content, axis=0, return_index=True, return_inverse=True
        )
        group = group.ravel()
        n_draws = max(1, round(fraction * len(first)))
        drawn = _systematic_rows(
            self.strata[first],
            self.positions[first],
            np.bincount(group, self.weights),
            n_draws,
            self.offset,
        )
        held_out = np.isin(group, drawn)
        return np.flatnonzero(~held_out), np.flatnonzero(held_out)


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
        Number of draws; where it reaches the sum of the weights, or more than can be
        made, all rows are taken with their weights.
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
    if n_draws >= min(total, _MOST_DRAWS):
        return np.arange(len(weights)), weights
    drawn = _systematic_rows(strata, positions, weights, n_draws, offset)
    rows, counts = np.unique(drawn, return_counts=True)
    return rows, counts.astype(float)


def _systematic_rows(strata, positions, weights, n_draws, offset):
    """The row of each draw of a `systematic_sample`, in the order of the line."""
    order = np.lexsort((positions, strata))
    steps = (np.arange(n_draws) + offset) * (weights.sum() / n_draws)
    drawn = np.searchsorted(np.cumsum(weights[order]), steps, side="right")
    return order[drawn.clip(max=len(order) - 1)]

r"""What a linear machine has seen of images that went by: sums, and a sample.

Sums over rows are all that ridge regression needs, in whatever order they came:
`partial_fit` adds to them, and the machine is that of one fit to all rows. Single rows
are needed for probabilities, and for the patch AGOP of the next round. A sample stands
in for those that are gone: the rows with the smallest of numbers that depend on their
content alone, so that it is the same in any order, too.
"""

from dataclasses import dataclass, replace

import numpy as np

from .ridge import Moments
from .sampling import content_positions

# Rows that are kept, fewer where these are more pixels.
_MOST_ROWS = 1000
_LEAST_ROWS = 50
_MOST_PIXELS = 2**24


@dataclass(frozen=True, eq=False)
class Stream:
    """Sums over the rows that were seen, and some of the rows.

    Attributes
    ----------
    moments : Moments
        The sums of features and targets.
    n_rows : int
        Rows of positive weight.
    n_observations : float
        The sum of their weights before those of classes.
    sample : RowSample
        Some of the rows.
    """

    moments: Moments
    n_rows: int
    n_observations: float
    sample: "RowSample"

    def __add__(self, other):
        """What was seen of both."""
        return Stream(
            self.moments + other.moments,
            self.n_rows + other.n_rows,
            self.n_observations + other.n_observations,
            self.sample + other.sample,
        )

    def in_units(self):
        """The same with weights in the units of a fit.

        Weights count rows; where they do not even add up to the rows, they are read as
        having mean one; and those of classes do not change their sum.
        """
        unit = 1 / min(1.0, self.n_observations / self.n_rows)
        factor = unit * self.n_observations / self.moments.weight
        sample = replace(
            self.sample,
            weights=self.sample.weights * factor,
            counts=self.sample.counts * unit,
        )
        return replace(self, moments=self.moments.scaled(factor), sample=sample)


@dataclass(frozen=True, eq=False)
class RowSample:
    """Rows with the smallest keys, numbers that depend on their content.

    Attributes
    ----------
    keys : ndarray of shape (m,)
        The keys, in increasing order.
    rows : ndarray of shape (m, width)
        Flat images.
    targets : ndarray of shape (m, n_outputs)
        Their targets.
    weights, counts : ndarray of shape (m,)
        See `TrainingSet`.
    """

    keys: np.ndarray
    rows: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    counts: np.ndarray

    @classmethod
    def of(cls, rows, targets, weights, counts):
        """The sample of some rows, in memory or stored."""
        positions = content_positions(rows, np.random.RandomState(0))
        keys = _uniform_keys(positions)
        kept = _smallest(keys, rows.shape[1])
        return cls(
            keys[kept], np.array(rows[kept]), targets[kept], weights[kept], counts[kept]
        )

    def __add__(self, other):
        """The sample of the rows of both."""
        columns = [
            np.concatenate([getattr(self, name), getattr(other, name)])
            for name in vars(self)
        ]
        kept = _smallest(columns[0], self.rows.shape[1])
        return RowSample(*(column[kept] for column in columns))


def _smallest(keys, n_pixels):
    """The rows with the smallest keys, as many as a sample has of such images."""
    size = int(np.clip(_MOST_PIXELS // n_pixels, _LEAST_ROWS, _MOST_ROWS))
    return np.argsort(keys, kind="stable")[:size]


def _uniform_keys(positions):
    """Numbers that look drawn anew for every value: splitmix64 of its bits."""
    bits = positions.astype(np.float64).view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    return bits ^ (bits >> np.uint64(31))

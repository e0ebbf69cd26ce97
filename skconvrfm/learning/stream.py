"""Sums over rows that were seen by a linear machine, and a sample of them.

Ridge regression needs no more than sums over rows, in whatever order they came:
`partial_fit` adds to them, and the machine is that of one fit to all rows. Where single
rows are needed, a sample stands in for those that are gone: the rows with the smallest
of numbers that depend on their content alone, so that it too is the same in any order.
"""

from dataclasses import dataclass, replace

import numpy as np

from ..compute.sampling import content_positions
from .ridge import Moments

# Rows that are kept, fewer where these are more pixels.
_MOST_ROWS, _LEAST_ROWS, _MOST_PIXELS = 1000, 50, 2**24


@dataclass(frozen=True, eq=False)
class Stream:
    """Sums over the rows that were seen, and some of the rows."""

    moments: Moments  # of features and targets
    n_rows: int  # of positive weight
    n_observations: float  # sum of weights before those of classes
    sample: "RowSample"

    def __add__(self, other):
        """Return the sums and sample of the rows of both."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Stream(*(own + added for own, added in pairs))

    def in_units(self):
        """Return the same with weights in the units of a fit."""
        # Weights count rows; where they add up to less than the rows, they are read as
        # having mean one; and those of classes do not change their sum.
        unit = 1 / min(1.0, self.n_observations / self.n_rows)
        factor = unit * self.n_observations / self.moments.weight
        weights, counts = self.sample.weights * factor, self.sample.counts * unit
        sample = replace(self.sample, weights=weights, counts=counts)
        return replace(self, moments=self.moments.scaled(factor), sample=sample)


@dataclass(frozen=True, eq=False)
class RowSample:
    """Rows with the smallest keys, numbers that depend on their content."""

    keys: np.ndarray  # (m,), in increasing order
    rows: np.ndarray  # (m, width), flat images
    targets: np.ndarray  # (m, n_outputs)
    weights: np.ndarray  # (m,)
    counts: np.ndarray  # (m,), see `TrainingSet`

    @classmethod
    def of(cls, rows, targets, weights, counts):
        """Return the sample of some rows, in memory or stored."""
        keys = _uniform_keys(content_positions(rows, np.random.RandomState(0)))
        kept = _smallest(keys, rows.shape[1])
        some = (column[kept] for column in (targets, weights, counts))
        return cls(keys[kept], np.array(rows[kept]), *some)

    def __add__(self, other):
        """Return the sample of the rows of both."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        columns = [np.concatenate(pair) for pair in pairs]
        kept = _smallest(columns[0], self.rows.shape[1])
        return RowSample(*(column[kept] for column in columns))


def _smallest(keys, n_pixels):
    """Return the indices of the smallest keys, as many as a sample has."""
    size = int(np.clip(_MOST_PIXELS // n_pixels, _LEAST_ROWS, _MOST_ROWS))
    return np.argsort(keys, kind="stable")[:size]


def _uniform_keys(positions):
    """Return pseudo-random numbers of values: splitmix64 of their bits."""
    bits = positions.astype(np.float64).view(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits = (bits ^ (bits >> np.uint64(shift))) * np.uint64(factor)
    return bits ^ (bits >> np.uint64(31))

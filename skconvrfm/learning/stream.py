"""Sums over rows that were seen by a machine on features, and a sample of them.

Ridge regression needs no more than sums over rows, in whatever order they came:
`partial_fit` adds to them, and the machine is that of one fit to all rows. Where single
rows are needed, a sample stands in for those that are gone: the rows with the smallest
of numbers that depend on their content alone, so that it too is the same in any order.
"""

from dataclasses import dataclass, replace

import numpy as np

from ..compute.sampling import content_positions
from .primal import Moments
from .training_set import Observations, TrainingSet

# Rows that are kept, fewer where these are more pixels.
_MOST_ROWS, _LEAST_ROWS, _MOST_PIXELS = 1000, 50, 2**24


@dataclass(frozen=True, eq=False)
class Stream:
    """Sums over the rows that were seen, and some of the rows."""

    moments: Moments  # of features and targets
    total: float  # sum of weights before those of classes
    keys: np.ndarray  # of all distinct images, in increasing order
    sample: "RowSample"
    landmarks: TrainingSet | None = None  # of the features; None is of a linear kernel
    multiple: float | None = None  # of the median distance, their bandwidth

    @classmethod
    def of(cls, moments, total, rows, data, landmarks=None, multiple=None):
        """Return the stream of flat rows, the images of a `TrainingSet`."""
        keys = _uniform_keys(content_positions(data.images, np.random.RandomState(0)))
        columns = keys, rows, data.targets, data.weights, data.scatter
        sample = RowSample.of(*columns)
        return cls(moments, total, np.unique(keys), sample, landmarks, multiple)

    def __add__(self, other):
        """Return the sums and sample of the rows of both."""
        keys = np.union1d(self.keys, other.keys)
        # An image that was in both is one.
        moments = replace(self.moments + other.moments, n_rows=len(keys))
        sums = {"moments": moments, "total": self.total + other.total, "keys": keys}
        return replace(self, **sums, sample=self.sample + other.sample)

    def in_units(self):
        """Return the same with weights in the units of a fit."""
        # Weights count rows; where they add up to less than the images, they are read
        # as having mean one; and those of classes do not change their sum.
        total = max(self.total, len(self.keys))
        factor = total / self.moments.weight
        sample = replace(
            self.sample,
            weights=self.sample.weights * factor,
            scatter=self.sample.scatter * factor,
        )
        return replace(self, moments=self.moments.scaled(factor), sample=sample)


@dataclass(frozen=True, eq=False)
class RowSample:
    """Distinct images with the smallest keys, numbers that depend on their content."""

    keys: np.ndarray  # (m,), in increasing order
    rows: np.ndarray  # (m, width), flat images
    targets: np.ndarray  # (m, n_outputs)
    weights: np.ndarray  # (m,)
    scatter: np.ndarray  # (m, n_outputs), see `TrainingSet`

    @classmethod
    def of(cls, keys, rows, *columns):
        """Return the sample of distinct images, flat rows in memory or stored."""
        kept = _smallest(keys, rows.shape[1])
        return cls(keys[kept], np.array(rows[kept]), *(c[kept] for c in columns))

    def __add__(self, other):
        """Return the sample of the rows of both."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        keys, rows, targets, weights, scatter = map(np.concatenate, pairs)
        _, first, image = np.unique(keys, return_index=True, return_inverse=True)
        both = Observations(image.ravel(), targets, weights)
        targets, weights, between = both.of_images()
        columns = targets, weights, between + both.sum_by_image(scatter)
        return RowSample.of(keys[first], rows[first], *columns)


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

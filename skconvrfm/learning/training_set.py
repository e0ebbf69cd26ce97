"""Distinct training images, and the rows of which some are copies of an image."""

from dataclasses import dataclass, replace

import numpy as np

from ..compute.images import take
from ..compute.sampling import Lineup
from ..compute.stored import StoredImages
from ..features.maps import FeatureMaps, hold_maps, pass_through


@dataclass(frozen=True)
class Observations:
    """Targets and weights of single rows, of which some may be copies of an image."""

    image: np.ndarray  # (m,), number of the image in the training set
    targets: np.ndarray  # (m, n_outputs)
    weights: np.ndarray  # (m,), all positive

    def of_images(self):
        """Return the mean targets, weights and scatter of the n images.

        Their shapes are (n, n_outputs), (n,) and (n, n_outputs).
        """
        first = np.unique(self.image, return_index=True)[1]
        weights = np.bincount(self.image, self.weights)
        # Of equal targets this is the target, to the last bit.
        targets, share = self.targets[first], self.weights / weights[self.image]
        changes = share[:, None] * (self.targets - targets[self.image])
        targets = targets + self.sum_by_image(changes)
        squares = (self.targets - targets[self.image]) ** 2
        return targets, weights, self.sum_by_image(self.weights[:, None] * squares)

    def sum_by_image(self, values):
        """Return the sums of values (m, n_outputs) over the rows of each image."""
        columns = [np.bincount(self.image, column) for column in values.T]
        return np.stack(columns, axis=1)

    def take(self, images):
        """Return the rows of some images, numbered anew."""
        number = np.full(self.image.max() + 1, -1)
        number[images] = np.arange(len(images))
        kept = number[self.image] >= 0
        image = number[self.image[kept]]
        return Observations(image, self.targets[kept], self.weights[kept])


@dataclass(frozen=True)
class TrainingSet:
    """Distinct images with their targets and weights."""

    images: np.ndarray | StoredImages | FeatureMaps  # (n, h, w, c)
    targets: np.ndarray  # (n, n_outputs), means over the copies of an image
    weights: np.ndarray  # (n,), all positive
    scatter: np.ndarray  # (n, n_outputs), Σ w (y - ȳ)² over the copies
    lineup: Lineup  # order for draws
    observations: Observations
    groups: np.ndarray | None = None  # (n,), numbers of groups that are left out

    def take(self, images):
        """Return some of the images."""
        columns = (c[images] for c in (self.targets, self.weights, self.scatter))
        parts = self.lineup.take(images), self.observations.take(images)
        groups = None if self.groups is None else self.groups[images]
        if groups is not None and len(np.unique(groups)) < 2:
            groups = None  # without the only one there would be nothing to learn from
        return TrainingSet(take(self.images, images), *columns, *parts, groups)

    def draw_once(self, n_images):
        """Return so many of the images, whose weights stand for all."""
        rows, factors = self.lineup.draw_once(n_images)
        return self.take(rows).scaled(factors)

    def scaled(self, factor):
        """Return the same with all weights times a factor, or one for each image."""
        factor = np.broadcast_to(factor, self.weights.shape)
        weights, scatter = factor * self.weights, factor[:, None] * self.scatter
        lineup = replace(self.lineup, weights=weights)
        observations = replace(
            self.observations,
            weights=factor[self.observations.image] * self.observations.weights,
        )
        parts = {"lineup": lineup, "observations": observations}
        return replace(self, weights=weights, scatter=scatter, **parts)

    def behind(self, maps, resources):
        """Return the images as they are behind a layer of filters."""
        images = hold_maps(pass_through(self.images, [maps]), resources)
        return replace(self, images=images)

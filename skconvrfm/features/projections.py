"""Images under a patch metric: projections on eigenvectors, saliency, overlaps."""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import fold

from ..compute.images import Layer, to_tensor
from .maps import convolve
from .pools import average_pool, pool_grid


@dataclass(frozen=True)
class EigenProjections:
    """Rectified projections of patches on eigenvectors of the metric, pooled."""

    layer: Layer
    components: np.ndarray  # (n_components, d), the eigenvectors
    rectification: str | None  # "absolute", or "halves": positive and negative part
    pool: tuple[int, int] | None  # grid of means; None keeps all locations

    @property
    def shape(self):
        """Rows, columns and maps of an image's features."""
        return (*pool_grid(self.layer.locations, self.pool), self.n_maps)

    @property
    def n_maps(self):
        """Maps before pooling."""
        return len(self.components) * (2 if self.rectification == "halves" else 1)

    def __call__(self, images):
        """(n, h, w, c) → (n, rows, columns, n_maps)."""
        maps = _products(images, self.layer, self.components)
        if self.rectification == "absolute":
            maps = maps.abs()
        elif self.rectification == "halves":
            maps = torch.cat([maps.clamp(min=0), (-maps).clamp(min=0)], dim=3)
        return average_pool(maps, self.shape[:2])


@dataclass(frozen=True)
class Saliency:
    """Length of the transformed patch at each location."""

    layer: Layer
    transform: np.ndarray  # (d, d)

    @property
    def shape(self):
        """Rows, columns and maps of an image's features."""
        return (*self.layer.locations, 1)

    @property
    def n_maps(self):
        """Maps before the length is taken."""
        return len(self.transform)

    def __call__(self, images):
        """Return (n, rows, columns, 1) for images (n, h, w, c)."""
        return _products(images, self.layer, self.transform).norm(dim=3, keepdim=True)


@dataclass(frozen=True)
class SeenImage:
    """Images put together from transformed patches, each pixel a mean."""

    layer: Layer
    transform: np.ndarray  # (d, d), T or any other matrix on patches
    shape: tuple[int, int, int]  # (h, w, c) of an image

    @property
    def n_maps(self):
        """Maps that are put together."""
        return len(self.transform)

    def __call__(self, images):
        """Return images (n, h, w, c) for images of that shape."""
        patches = _products(images, self.layer, self.transform)
        return overlap_average(patches, self.layer, self.shape)


def _products(images, layer, matrix):
    """Return the rows of a numpy matrix times every patch of some images."""
    return convolve(images, layer, to_tensor(matrix, images.dtype, images.device))


def overlap_average(patches, layer, image_shape):
    """Return images of whose pixels each is the mean of the patch entries on it."""
    height, width, _ = image_shape
    top, bottom, left, right = layer.padding
    size = (height + top + bottom, width + left + right)
    columns = patches.flatten(1, 2).transpose(1, 2)
    sums = fold(columns, size, layer.patch)
    counts = fold(torch.ones_like(columns[:1]), size, layer.patch)
    means = (sums / counts)[:, :, top : top + height, left : left + width]
    return means.permute(0, 2, 3, 1)

"""Images under a patch metric: projections on eigenvectors, saliency, overlaps."""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn.functional import fold

from ..compute.blocks import balanced_blocks
from ..compute.images import Layer, to_tensor
from .maps import Band, LocationFeatures, convolve
from .pools import average_pool, pool_grid


@dataclass(frozen=True)
class EigenProjections(LocationFeatures):
    """Rectified projections of patches on eigenvectors of the metric, pooled."""

    layer: Layer
    components: np.ndarray  # (n_components, d), the eigenvectors
    rectification: str | None  # "absolute", or "halves": positive and negative part
    pool: tuple[int, int] | None  # grid of means; None keeps all locations

    @property
    def shape(self):
        """Rows, columns and maps of an image's features."""
        return (*self.grid, self.n_maps)

    @property
    def grid(self):
        """Rows and columns of the features."""
        return pool_grid(self.layer.locations, self.pool)

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
        return average_pool(maps, self.cells)


@dataclass(frozen=True)
class Saliency(LocationFeatures):
    """Length of the transformed patch at each location."""

    layer: Layer
    transform: np.ndarray  # (d, d)

    @property
    def shape(self):
        """Rows, columns and maps of an image's features."""
        return (*self.grid, 1)

    @property
    def grid(self):
        """Rows and columns of the features, all locations."""
        return self.layer.locations

    @property
    def n_maps(self):
        """Maps before the length is taken."""
        return len(self.transform)

    def at(self, layer, n_rows):
        """Return the features of a part of the locations."""
        return replace(self, layer=layer)

    def __call__(self, images):
        """Return (n, rows, columns, 1) for images (n, h, w, c)."""
        return _products(images, self.layer, self.transform).norm(dim=3, keepdim=True)


@dataclass(frozen=True)
class SeenImage(LocationFeatures):
    """Images put together from transformed patches, each pixel a mean."""

    layer: Layer
    transform: np.ndarray  # (d, d), T or any other matrix on patches
    shape: tuple[int, int, int]  # (h, w, c) of an image
    shown: slice | None = None  # rows of it that are put together; None is all

    @property
    def n_maps(self):
        """Maps that are put together."""
        return len(self.transform)

    def bands(self, largest, rows=None):
        """Yield `Band`s of rows of pixels, with all patches that lie on them."""
        rows = slice(0, self.shape[0]) if rows is None else rows
        reach, top = self.layer.patch[0] - 1, self.layer.padding[0]
        for part in balanced_blocks(rows, largest - reach):
            first, last = part.start + top - reach, part.stop + top
            locations = slice(max(0, first), min(last, self.layer.locations[0]))
            layer, (pixels, _) = self.layer.part(locations)
            shape = pixels.stop - pixels.start, *self.shape[1:]
            shown = slice(part.start - pixels.start, part.stop - pixels.start)
            features = replace(self, layer=layer, shape=shape, shown=shown)
            yield Band(features, pixels, part)

    def __call__(self, images):
        """Return rows of images (n, h, w, c) for images of that shape."""
        patches = _products(images, self.layer, self.transform)
        whole = overlap_average(patches, self.layer, self.shape)
        return whole if self.shown is None else whole[:, self.shown]


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

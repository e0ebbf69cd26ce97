"""Skip connections: maps of several layers side by side, as the kernel sees them."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..compute.blocks import image_blocks
from .gradient_moments import cell_places, spread
from .maps import Pixels, feature_rows, memory_numbers, pass_through
from .pools import average_pool, cell_areas, cell_slices, pool_grid


@dataclass(frozen=True)
class SideBySide:
    """Maps of layers, averaged over the grid of the last one, as one row of features.

    Each is multiplied by its scale; a layer whose scale is None is left out. Images are
    those of the first layer, which are mirrored if the last layer's are.
    """

    layers: tuple  # `FilterLayer`s, from the image up
    scales: tuple  # float or None of every layer
    part: slice | None = None  # of the features that are taken; None is all

    grid = (1, 1)

    @property
    def mirror(self):
        """True if features of an image and of its mirror are averaged."""
        return self.layers[-1].mirror

    @property
    def sizes(self):
        """Numbers of features of the layers that are seen."""
        return [math.prod(shape) for shape in self._shapes]

    @property
    def width(self):
        """Number of features of all layers."""
        return sum(self.sizes)

    @property
    def n_maps(self):
        """Number of features that are taken."""
        return len(range(self.width)[self.part or slice(None)])

    @property
    def shape(self):
        """Rows, columns and maps of the features: one place with all of them."""
        return (1, 1, self.n_maps)

    def only(self, part):
        """Return a slice of the features."""
        return replace(self, part=part)

    @property
    def _shapes(self):
        """Rows, columns and maps of the features of every layer that is seen."""
        return [(*self._grid(i), self.layers[i].n_maps) for i in self._seen]

    @property
    def _seen(self):
        return [i for i, scale in enumerate(self.scales) if scale is not None]

    def _grid(self, index):
        return pool_grid(self.layers[index].grid, self.layers[-1].grid)

    def _cells(self, index):
        """Return the cells of the grid on the maps of a layer."""
        pairs = zip(self.layers[index].grid, self._grid(index), strict=True)
        return [cell_slices(*pair) for pair in pairs]

    def join(self, maps):
        """Return features (n, D) of the maps (n, rows, columns, K) of every layer."""
        parts = [
            average_pool(maps[i], self._cells(i)).flatten(1) * self.scales[i]
            for i in self._seen
        ]
        return torch.cat(parts, 1)[:, self.part or slice(None)]

    def split(self, gradients):
        """Return gradients at the maps of every layer, None where it is left out.

        (n, n_outputs, rows, columns, K), from those at all features, (n, n_outputs, D).
        """
        sizes = self.sizes
        found = [None] * len(self.layers)
        for i, shape, part in zip(
            self._seen, self._shapes, gradients.split(sizes, 2), strict=True
        ):
            cells = self._cells(i)
            part = part.unflatten(2, shape) / cell_areas(cells).to(part)
            found[i] = spread(part, *cell_places(cells)) * self.scales[i]
        return found


@feature_rows.register(SideBySide)
def _rows(features, images, n_images, rows, resources):
    """Return the features of some of ``n_images``; rows are all there is."""
    _, numbers = memory_numbers(features, images, n_images, resources)
    largest = int(resources.memory / 4 / (resources.itemsize * numbers))
    out = np.empty((len(images), *features.shape), dtype=resources.numpy_dtype)
    rest = replace(resources, memory=resources.memory // 2)
    for part in image_blocks(images, largest):
        maps = [
            torch.from_numpy(
                feature_rows(
                    replace(layer, mirror=features.mirror),
                    pass_through(images[part], features.layers[:index]),
                    n_images,
                    None,
                    rest,
                )
            )
            if features.scales[index] is not None
            else None
            for index, layer in enumerate(features.layers)
        ]
        out[part] = features.join(maps).numpy()[:, None, None]
    return out


@memory_numbers.register(SideBySide)
def _memory(features, images, n_images, resources):
    """Return None, and the numbers of an image on the way."""
    numbers = features.width
    for index, layer in enumerate(features.layers):
        seen = pass_through(images, features.layers[:index])
        numbers += memory_numbers(layer, seen, n_images, resources)[1]
    return None, numbers


def unit_scales(features, images, weights, resources):
    """Return the scale of every layer at which its features have unit spread.

    That is a sum of variances of 1, over the weighted images. Scales of the features
    that are given are 1.
    """
    rows = feature_rows(features, images, len(images), None, resources)
    rows = rows.reshape(len(rows), -1).astype(np.float64)
    share = weights / weights.sum()
    variances = share @ (rows - share @ rows) ** 2
    parts = np.split(variances, np.cumsum(features.sizes)[:-1])
    spreads = iter([math.sqrt(part.sum()) or 1.0 for part in parts])
    return tuple(s if s is None else 1 / next(spreads) for s in features.scales)


def kernel_features(layers, scales, image_shape):
    """Return the features that a kernel sees, and the layers below them.

    Scales are those of `SideBySide`; none if the kernel sees the last layer alone, or
    images without a layer.
    """
    if scales:
        return SideBySide(tuple(layers), tuple(scales)), ()
    if not layers:
        return Pixels(image_shape), ()
    return layers[-1], tuple(layers[:-1])


def seen_layers(features):
    """Return scales of 1 for the layers that a kernel sees; none for the last alone."""
    if not any(layer.skip for layer in features[:-1]):
        return ()
    return (*(1.0 if layer.skip else None for layer in features[:-1]), 1.0)


def fitted_scales(features):
    """Return the scales of fitted layers, see `kernel_features`."""
    scales = tuple(layer.skip_scale_ for layer in features)
    return scales if any(scale is not None for scale in scales) else ()

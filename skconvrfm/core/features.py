r"""Feature maps of a convolution under a patch metric: drawn filters, and others.

For filters :math:`w \sim N(0, M)` the maps

.. math:: \text{relu: } \sqrt{2 / c}\, \max(w^\top v_u(x), 0), \qquad
          \text{identity: } w^\top v_u(x) / \sqrt c

are scaled so that, on average over many filters, the covariances of the convolutional
kernel of depth L without bias become those of depth L - 1 on the maps: the factors are
those of its recursion.

Source: Beaglehole et al., arXiv:2309.00570, Deep ConvRFM; the activation and the scale
are ours.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn.functional import conv2d, fold, pad

from . import compiled
from .blocks import balanced_blocks
from .images import Layer, cells, extract_patches, to_tensor
from .threads import own_threads, share_out

ACTIVATIONS = ("relu", "identity")
# Maps that are made together: more would spill from the cache of a CPU into memory that
# the system has to clear first; less would not fill a GPU.
_CPU_MAP_BYTES = 2**22
_GPU_MAP_BYTES = 2**28
# Entries of a patch from which a convolution beats a product with all patches.
_WIDE_PATCH = 64


def convolve(images, layer, filters, biases=None):
    """Inner products of filters with all patches.

    Parameters
    ----------
    images : Tensor of shape (n, h, w, c)
        Images, channels last.
    layer : Layer
        The patches.
    filters : Tensor of shape (n_filters, d)
        Filters, entries in the order (channel, row, column).
    biases : Tensor of shape (n_filters,), default=None
        What is added.

    Returns
    -------
    Tensor of shape (n, rows, columns, n_filters)
    """
    top, bottom, left, right = layer.padding
    maps = pad(images.permute(0, 3, 1, 2), (left, right, top, bottom))
    weight = filters.reshape(len(filters), images.shape[-1], *layer.patch)
    # Unasked, cuDNN would round to ten bits. What is not said here is switched off.
    cudnn = torch.backends.cudnn
    with cudnn.flags(
        enabled=cudnn.enabled,
        benchmark=cudnn.benchmark,
        deterministic=cudnn.deterministic,
        allow_tf32=False,
    ):
        return conv2d(maps, weight, biases).permute(0, 2, 3, 1)


def transformed_patches(images, layer, transform):
    """The patches T v of some images, location by location, images innermost.

    Parameters
    ----------
    images : Tensor of shape (n, h, w, c)
        Images, channels last.
    layer : Layer
        The patches.
    transform : Tensor of shape (d, d) or None
        The patch transform T; None is the identity.

    Returns
    -------
    Tensor of shape (rows, columns, d, n)
    """
    if transform is None:
        return extract_patches(images, layer)
    if len(transform) < _WIDE_PATCH:
        return transform @ extract_patches(images, layer)
    # The rows of T are filters: no patch is copied out of its image.
    return convolve(images, layer, transform).permute(1, 2, 3, 0).contiguous()


def overlap_average(patches, layer, image_shape):
    """Images in which every pixel is the mean of the patch entries that lie on it.

    Parameters
    ----------
    patches : Tensor of shape (n, rows, columns, d)
        A patch a location.
    layer : Layer
        Where the patches lie.
    image_shape : tuple of int
        Rows, columns and channels of an image.

    Returns
    -------
    Tensor of shape (n, h, w, c)
    """
    height, width, _ = image_shape
    top, bottom, left, right = layer.padding
    size = (height + top + bottom, width + left + right)
    columns = patches.flatten(1, 2).transpose(1, 2)
    sums = fold(columns, size, layer.patch)
    counts = fold(torch.ones_like(columns[:1]), size, layer.patch)
    means = (sums / counts)[:, :, top : top + height, left : left + width]
    return means.permute(0, 2, 3, 1)


def average_pool(maps, grid):
    """Means of maps over the cells of a grid, which part the locations evenly.

    Parameters
    ----------
    maps : Tensor of shape (n, rows, columns, n_maps)
        The maps.
    grid : tuple of int
        Rows and columns of cells, at most those of the maps.

    Returns
    -------
    Tensor of shape (n, grid rows, grid columns, n_maps)
    """
    rows, columns = (
        _cell_means(size, count, maps)
        for size, count in zip(maps.shape[1:3], grid, strict=True)
    )
    return torch.einsum("ri,nijk,cj->nrck", rows, maps, columns)


def _cell_means(size, count, like):
    """The matrix (cells, size) that averages over equal parts of a dimension."""
    means = like.new_zeros((count, size))
    for cell, part in enumerate(cells(size, count)):
        means[cell, part] = 1 / (part.stop - part.start)
    return means


@dataclass(frozen=True)
class FilterLayer:
    r"""A convolution with given filters, its activation and its pool.

    .. math:: \text{relu: } \sqrt 2\, \max(w^\top v_u(x) / \sqrt c + t, 0), \qquad
              \text{identity: } w^\top v_u(x) / \sqrt c + t

    and then means over the cells of a grid, raised to a power.

    Attributes
    ----------
    layer : Layer
        The patches.
    filters : ndarray of shape (n_filters, d)
        The filters w.
    activation : {"relu", "identity"}
        What follows the convolution.
    biases : ndarray of shape (n_filters,) or None
        The biases t; None is zero.
    pool : tuple of int or None
        Rows and columns of the grid of means, clipped to the map; None keeps all
        locations.
    power : float
        The power p that means m are raised to, with their sign: (m + o)ᵖ - oᵖ.
    offsets : ndarray of shape (n_filters,) or None
        The offsets o, which bound the slope at 0; None is zero.
    """

    layer: Layer
    filters: np.ndarray
    activation: str
    biases: np.ndarray | None = None
    pool: tuple[int, int] | None = None
    power: float = 1.0
    offsets: np.ndarray | None = None

    @property
    def n_maps(self):
        """Maps before pooling."""
        return len(self.filters)

    @property
    def shape(self):
        """Rows, columns and maps of what comes out of an image."""
        return (*self.grid, self.n_maps)

    @property
    def grid(self):
        """Rows and columns of what comes out: all locations where there is no pool."""
        return _grid(self.layer.locations, self.pool)

    @property
    def cells(self):
        """The cells' slices of rows, and those of columns."""
        return tuple(map(cells, self.layer.locations, self.grid))

    @property
    def gain(self):
        """What the activation multiplies with, to keep the variance of its input."""
        return math.sqrt(2) if self.activation == "relu" else 1.0

    def only(self, part):
        """The layer with a slice of its filters."""
        biases, offsets = (
            None if array is None else array[part]
            for array in (self.biases, self.offsets)
        )
        return replace(self, filters=self.filters[part], biases=biases, offsets=offsets)

    def affine(self, channels):
        """Filters and biases with all factors in them, float64 ndarrays.

        The activation, which is homogeneous, then does the rest.

        Parameters
        ----------
        channels : int
            Channels c of the images.
        """
        biases = np.zeros(self.n_maps) if self.biases is None else self.biases
        return self.filters * (self.gain / math.sqrt(channels)), biases * self.gain

    def find_library(self, n_images, device):
        """The compiled functions if they are worth it for so many images; or None.

        Parameters
        ----------
        n_images : int
            All images of the computation.
        device : torch.device
            Where it runs.
        """
        if device.type != "cpu":
            return None
        products = n_images * self.layer.n_locations * self.filters.size
        return compiled.load(products / compiled.PRODUCTS_A_PAIR)

    def __call__(self, images):
        """The feature maps of images, (n, h, w, c) → (n, rows, columns, n_filters)."""
        filters, biases = (
            to_tensor(array, images.dtype, images.device)
            for array in self.affine(images.shape[3])
        )
        maps = convolve(images, self.layer, filters, biases)
        maps = maps.relu_() if self.activation == "relu" else maps
        return self.raise_means(_pool(maps, self.pool))

    def raise_means(self, means):
        """Means to the power, with their sign."""
        if self.power == 1:
            return means
        offsets = self._offsets_like(means)
        raised = means.abs().add_(offsets).pow_(self.power)
        return raised.sub_(offsets.pow(self.power)).copysign_(means)

    def slopes(self, means):
        """The derivatives of the powers by the means; 0 where they are infinite."""
        if self.power == 1:
            return torch.ones_like(means)
        sizes = means.abs().add_(self._offsets_like(means))
        slopes = self.power * sizes.pow(self.power - 1)
        return slopes.masked_fill_(sizes == 0, 0)

    def _offsets_like(self, means):
        offsets = np.zeros(self.n_maps) if self.offsets is None else self.offsets
        return to_tensor(offsets, means.dtype, means.device)


def compute_maps(features, images, library):
    """Features of a block of images: compiled where there is a library.

    Array operations make the maps of a few images at a time.

    Parameters
    ----------
    features : callable
        As for `tiles.compute_features`; a `FilterLayer` where there is a library.
    images : Tensor of shape (n, h, w, c)
        Images, channels last.
    library : ctypes.CDLL or None
        From `FilterLayer.find_library`.

    Returns
    -------
    Tensor of shape (n, rows, columns, n_maps)
    """
    on_cpu = images.device.type == "cpu"
    with own_threads(on_cpu):
        if library is not None:
            means = compiled.filter_maps(library, features, images)
            return features.raise_means(means)
        every = slice(0, len(images))
        size = images.element_size() * features.layer.n_locations * features.n_maps
        if on_cpu:
            largest = _CPU_MAP_BYTES // size
            blocks = share_out(lambda part: features(images[part]), every, largest)
        else:
            parts = balanced_blocks(every, _GPU_MAP_BYTES // size)
            blocks = [features(images[part]) for part in parts]
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks)


def pass_through(images, layers):
    """Images behind some layers of filters, as pixels where there are none."""
    if not layers:
        return images
    if isinstance(images, FeatureMaps):
        return FeatureMaps(images.images, (*images.layers, *layers), images.n_whole)
    return FeatureMaps(images, tuple(layers))


class FeatureMaps:
    """Images as some layers of filters see them, computed when they are asked for.

    Behaves as an array of images of shape (n, rows, columns, n_filters) to those who
    slice it and call `to_tensor`, and holds no more than the pixels.

    Parameters
    ----------
    images : ndarray of shape (n, h, w, c)
        The images.
    layers : tuple of FilterLayer
        The layers, from the image up.
    n_whole : int, default=None
        Of how many images these are a part, whose maps are to be computed alike; None
        is these.
    """

    def __init__(self, images, layers, n_whole=None):
        self.images, self.layers = images, layers
        self.n_whole = len(images) if n_whole is None else n_whole
        self.shape = (len(images), *layers[-1].shape)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        """The images ``index``, a slice or an array of integers."""
        return FeatureMaps(self.images[index], self.layers, self.n_whole)

    @property
    def pixels(self):
        """The images themselves."""
        return self.images


@to_tensor.register
def _compute(
    maps: FeatureMaps, dtype: torch.dtype, device: torch.device
) -> torch.Tensor:
    """Compute a block of feature maps."""
    images = to_tensor(maps.images, dtype, device)
    for layer in maps.layers:
        images = compute_maps(layer, images, layer.find_library(maps.n_whole, device))
    return images


@dataclass(frozen=True)
class EigenProjections:
    """Rectified projections of patches on eigenvectors of the metric, pooled.

    Attributes
    ----------
    layer : Layer
        The patches.
    components : ndarray of shape (n_components, d)
        The eigenvectors.
    rectification : {"absolute", "halves"} or None
        The absolute value of a projection, or its positive and its negative part;
        None leaves it as it is.
    pool : tuple of int or None
        Rows and columns of the grid of means; None keeps all locations.
    """

    layer: Layer
    components: np.ndarray
    rectification: str | None
    pool: tuple[int, int] | None

    @property
    def shape(self):
        """Rows, columns and maps of an image's features."""
        return (*_grid(self.layer.locations, self.pool), self.n_maps)

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
        return _pool(maps, self.pool)


@dataclass(frozen=True)
class Saliency:
    """The length of the transformed patch at each location.

    Attributes
    ----------
    layer : Layer
        The patches.
    transform : ndarray of shape (d, d)
        The patch transform T.
    """

    layer: Layer
    transform: np.ndarray

    @property
    def shape(self):
        """Rows, columns and maps of an image's features."""
        return (*self.layer.locations, 1)

    @property
    def n_maps(self):
        """Maps before the length is taken."""
        return len(self.transform)

    def __call__(self, images):
        """(n, h, w, c) → (n, rows, columns, 1)."""
        products = _products(images, self.layer, self.transform)
        return products.norm(dim=3, keepdim=True)


@dataclass(frozen=True)
class SeenImage:
    """Images put together from transformed patches, each pixel a mean.

    Attributes
    ----------
    layer : Layer
        The patches.
    transform : ndarray of shape (d, d)
        The patch transform T, or any other matrix on patches.
    image_shape : tuple of int
        Rows, columns and channels of an image.
    """

    layer: Layer
    transform: np.ndarray
    image_shape: tuple[int, int, int]

    @property
    def shape(self):
        """Rows, columns and channels: those of the image."""
        return self.image_shape

    @property
    def n_maps(self):
        """Maps that are put together."""
        return len(self.transform)

    def __call__(self, images):
        """(n, h, w, c) → (n, h, w, c)."""
        patches = _products(images, self.layer, self.transform)
        return overlap_average(patches, self.layer, self.image_shape)


def _products(images, layer, matrix):
    """The rows of a numpy matrix times every patch of some images."""
    return convolve(images, layer, to_tensor(matrix, images.dtype, images.device))


def _pool(maps, pool):
    """Maps, pooled where there is a pool."""
    return maps if pool is None else average_pool(maps, _grid(maps.shape[1:3], pool))


def _grid(locations, pool):
    """A grid has no more cells than the map has locations; none is a cell for each."""
    if pool is None:
        return tuple(locations)
    return tuple(min(cells, size) for cells, size in zip(pool, locations, strict=True))

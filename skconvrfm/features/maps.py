"""Feature maps of a convolution under a patch metric: drawn filters, and others.

The factors are those of the convolutional kernel: on average over many filters drawn
from N(0, M), its covariances at depth L without bias are those at depth L - 1 on maps.

Source: Beaglehole et al., arXiv:2309.00570, Deep ConvRFM; the activation and the scale
are ours.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn.functional import conv2d, pad

from ..compute.blocks import balanced_blocks, image_blocks, largest_value
from ..compute.images import Layer, extract_patches, to_tensor
from ..compute.native import build, calls
from ..compute.parallel import halving_memory, spans
from ..compute.threads import own_threads, share_out
from .pools import average_pool, pool_grid

ACTIVATIONS = ("relu", "identity")
# Maps that are made together: more would spill from the cache of a CPU into memory that
# the system has to clear first; less would not fill a GPU.
_CPU_MAP_BYTES, _GPU_MAP_BYTES = 2**22, 2**28
# Images and features beyond this come from memory that the system has to clear first.
_CPU_BLOCK_BYTES = 2**24
_MAP_COPIES = 4  # alive while an image's features are computed
# Entries of a patch from which a convolution is faster than a product with all patches.
_WIDE_PATCH = 64


def convolve(images, layer, filters, biases=None):
    """Return inner products of filters with all patches, plus biases.

    Images (n, h, w, c), filters (K, d) and biases (K,) give (n, rows, columns, K).
    """
    top, bottom, left, right = layer.padding
    maps = pad(images.permute(0, 3, 1, 2), (left, right, top, bottom))
    weight = filters.reshape(len(filters), images.shape[-1], *layer.patch)
    # By default cuDNN rounds to ten bits. Flags that are not given are switched off.
    cudnn, names = torch.backends.cudnn, ("enabled", "benchmark", "deterministic")
    kept = {name: getattr(cudnn, name) for name in names}
    with cudnn.flags(allow_tf32=False, **kept):
        return conv2d(maps, weight, biases).permute(0, 2, 3, 1)


def transformed_patches(images, layer, transform):
    """Return the patches T v of images (n, h, w, c) as (rows, columns, d, n)."""
    if transform is None:
        return extract_patches(images, layer)
    if len(transform) < _WIDE_PATCH:
        return transform @ extract_patches(images, layer)
    # The rows of T are filters: no patch is copied out of its image.
    return convolve(images, layer, transform).permute(1, 2, 3, 0).contiguous()


@dataclass(frozen=True)
class FilterLayer:
    r"""A convolution with given filters, its activation and its pool.

    .. math:: \text{relu: } \sqrt 2\, \max(w^\top v_u(x) / \sqrt c + t, 0), \qquad
              \text{identity: } w^\top v_u(x) / \sqrt c + t

    and then means m over the cells of a grid, raised to a power with their sign:
    :math:`(m + o)^p - o^p`.
    """

    layer: Layer
    filters: np.ndarray  # (K, d), w
    activation: str  # "relu" or "identity"
    biases: np.ndarray | None = None  # (K,), t; None is zero
    pool: tuple[int, int] | None = None  # grid, clipped to the map; None is no pool
    power: float = 1.0  # p
    offsets: np.ndarray | None = None  # (K,), o, bound the slope at 0; None is zero

    @property
    def n_maps(self):
        """Maps before pooling."""
        return len(self.filters)

    @property
    def channels(self):
        """Channels of the images that the filters are for."""
        return self.filters.shape[1] // math.prod(self.layer.patch)

    @property
    def shape(self):
        """Rows, columns and maps of the features of an image."""
        return (*self.grid, self.n_maps)

    @property
    def grid(self):
        """Rows and columns of the features: all locations where there is no pool."""
        return pool_grid(self.layer.locations, self.pool)

    def only(self, part):
        """Return the layer with a slice of its filters."""
        arrays = self.filters, self.biases, self.offsets
        filters, biases, offsets = (a if a is None else a[part] for a in arrays)
        return replace(self, filters=filters, biases=biases, offsets=offsets)

    def affine(self, channels):
        """Return filters and biases with all factors in them, float64 ndarrays."""
        # This one keeps the variance; before the activation, which is homogeneous.
        gain = math.sqrt(2) if self.activation == "relu" else 1.0
        biases = np.zeros(self.n_maps) if self.biases is None else self.biases
        return self.filters * (gain / math.sqrt(channels)), biases * gain

    def find_library(self, n_images, device):
        """Return the compiled functions if they pay for so many images; or None."""
        if device.type != "cpu":
            return None
        products = n_images * self.layer.n_locations * self.filters.size
        return build.load(products / build.PRODUCTS_A_PAIR)

    def responses(self, images):
        """Return the input of the activation, with the factors of `affine`."""
        arrays = self.affine(images.shape[3])
        filters, biases = (to_tensor(a, images.dtype, images.device) for a in arrays)
        return convolve(images, self.layer, filters, biases)

    def __call__(self, images):
        """Return the feature maps (n, rows, columns, K) of images (n, h, w, c)."""
        maps = self.responses(images)
        maps = maps.relu_() if self.activation == "relu" else maps
        return self.raise_means(average_pool(maps, self.grid))

    def raise_means(self, means):
        """Return means to the power, with their sign."""
        if self.power == 1:
            return means
        offsets = self._offsets_like(means)
        raised = means.abs().add_(offsets).pow_(self.power)
        return raised.sub_(offsets.pow(self.power)).copysign_(means)

    def slopes(self, means):
        """Return the derivatives of the powers by the means; 0 for infinite ones."""
        if self.power == 1:
            return torch.ones_like(means)
        sizes = means.abs().add_(self._offsets_like(means))
        slopes = self.power * sizes.pow(self.power - 1)
        return slopes.masked_fill_(sizes == 0, 0)

    def _offsets_like(self, means):
        offsets = np.zeros(self.n_maps) if self.offsets is None else self.offsets
        return to_tensor(offsets, means.dtype, means.device)


@dataclass(frozen=True)
class Pixels:
    """Images as they are, in the place of the features of a layer."""

    image_shape: tuple[int, int, int]
    part: slice | None = None  # channels that are taken; None is all

    @property
    def layer(self):
        """Patches of one pixel each."""
        return Layer((1, 1), (0, 0, 0, 0), self.grid)

    @property
    def n_maps(self):
        """Channels that are taken."""
        return len(range(self.image_shape[2])[self.part or slice(None)])

    @property
    def grid(self):
        """Rows and columns of an image."""
        return self.image_shape[:2]

    @property
    def shape(self):
        """Rows, columns and channels."""
        return (*self.grid, self.n_maps)

    def only(self, part):
        """Return a slice of the channels."""
        return replace(self, part=part)

    def __call__(self, images):
        """Return the images, (n, h, w, c) → (n, h, w, n_maps)."""
        return images if self.part is None else images[..., self.part]


def compute_maps(features, images, library):
    """Return the features (n, rows, columns, K) of images, compiled with a library."""
    on_cpu = images.device.type == "cpu"
    with own_threads(on_cpu):
        if library is not None:
            return features.raise_means(calls.filter_maps(library, features, images))
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
    """Return images behind some layers of filters, as pixels where there are none."""
    if not layers:
        return images
    if isinstance(images, FeatureMaps):
        return FeatureMaps(images.pixels, (*images.layers, *layers), images.n_whole)
    return FeatureMaps(images, tuple(layers))


class FeatureMaps:
    """Images as some layers of filters see them, computed when they are asked for.

    Behaves as an array of images of shape (n, rows, columns, K) for slices and
    `to_tensor`, and holds no more than the pixels. Maps are computed as for ``n_whole``
    images, of which these are a part; None is these.
    """

    def __init__(self, pixels, layers, n_whole=None):
        self.pixels, self.layers = pixels, layers
        self.n_whole = len(pixels) if n_whole is None else n_whole
        self.shape = (len(pixels), *layers[-1].shape)

    def __len__(self):
        return len(self.pixels)

    def __getitem__(self, index):
        """Return the images ``index``, a slice or an array of integers."""
        return FeatureMaps(self.pixels[index], self.layers, self.n_whole)


@to_tensor.register(FeatureMaps)
def _compute(maps, dtype, device):
    """Compute a block of feature maps."""
    images = to_tensor(maps.pixels, dtype, device)
    for layer in maps.layers:
        images = compute_maps(layer, images, layer.find_library(maps.n_whole, device))
    return images


def hold_maps(images, resources):
    """Return feature maps as an array where that fits; else to be computed anew."""
    size = resources.itemsize * math.prod(images.shape)
    if not isinstance(images, FeatureMaps) or size > resources.memory // 4:
        return images
    held = np.empty(images.shape, dtype=resources.numpy_dtype)
    quick = _quick_block(images, images.shape[1:], resources)
    largest = min(len(held) * resources.memory // (16 * size), quick)
    for part in image_blocks(images, largest):
        held[part] = resources.tensor(images[part]).cpu().numpy()
    return held


def compute_features(features, images, resources):
    """Return the features (n, rows, columns, K) of images, computed block by block.

    ``features(images)`` of tensors has the attributes ``shape`` of an image's features,
    ``n_maps``, the maps that are alive on the way, and ``layer``.
    """
    worker = resources.one_worker()
    _, largest = _feature_block(features, images, len(images), worker)
    parts = spans(len(images), resources, largest=largest)
    tasks = ((features, images[part], len(images), worker) for part in parts)
    out = np.empty((len(images), *features.shape), dtype=resources.numpy_dtype)
    for part, block in zip(parts, resources.run(feature_rows, tasks), strict=True):
        out[part] = block
    return out


@halving_memory
def feature_rows(features, images, n_images, resources):
    """Return the features of some of ``n_images``, in blocks that fit in memory."""
    library, largest = _feature_block(features, images, n_images, resources)
    largest = min(largest, _quick_block(images, features.shape, resources))
    out = np.empty((len(images), *features.shape), dtype=resources.numpy_dtype)
    for part in image_blocks(images, largest):
        block = resources.tensor(images[part])
        maps = compute_maps(features, block, library)
        if not all(math.isfinite(value) for value in maps.aminmax()):
            raise ValueError(
                f"the features overflow {out.dtype}: X has values up to "
                f"{largest_value(images):.3g}; scale the images, as those of the fit "
                "and for instance to [0, 1], or take dtype='float64'."
            )
        out[part] = maps.cpu().numpy()
    return out


def _feature_block(features, images, n_images, resources):
    """Return the compiled functions where they pay, and how many images fit."""
    library = None
    if isinstance(features, FilterLayer):
        library = features.find_library(n_images, resources.device)
    numbers = 2 * math.prod(images.shape[1:]) + 2 * math.prod(features.shape)
    if library is None:
        numbers += _MAP_COPIES * features.layer.n_locations * features.n_maps
    return library, max(1, resources.memory // (2 * resources.itemsize * numbers))


def _quick_block(images, shape, resources):
    """Return the number of images from which on a larger block gains nothing."""
    if resources.device.type != "cpu":
        return len(images)
    numbers = max(math.prod(images.shape[1:]), math.prod(shape))
    return max(1, _CPU_BLOCK_BYTES // (resources.itemsize * numbers))

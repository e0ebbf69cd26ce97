"""Feature maps of a convolution under a patch metric: drawn filters, and others.

The factors are those of the convolutional kernel: on average over many filters drawn
from N(0, M), its covariances at depth L without bias are those at depth L - 1 on maps.

Source: Beaglehole et al., arXiv:2309.00570 (Deep ConvRFM); activation and scale: ours.
"""

import math
from dataclasses import dataclass, replace
from functools import singledispatch

import numpy as np
import torch
from torch.nn.functional import avg_pool2d, conv2d, pad

from ..compute.blocks import balanced_blocks, image_blocks, largest_value
from ..compute.images import Layer, extract_patches, mirror, take, to_tensor
from ..compute.native import build, calls
from ..compute.parallel import halving_memory, spans
from ..compute.progress import track
from ..compute.threads import own_threads, share_out, thread_count
from .pools import PowerPool, cell_slices, pool_grid

ACTIVATIONS = ("relu", "identity")
# Maps that are made together: more would spill from the cache of a CPU into memory that
# the system has to clear first; less would not fill a GPU.
_CPU_MAP_BYTES, _GPU_MAP_BYTES = 2**22, 2**28
# Images and features beyond this come from memory that the system has to clear first.
_CPU_BLOCK_BYTES = 2**24
_MAP_COPIES = 4  # alive while an image's features are computed
_PLACE_BYTES = 32  # that the compiled functions need for a location
# Entries of a patch from which a convolution is faster than a product with all patches.
_WIDE_PATCH = 64


def convolve(images, layer, filters, biases=None):
    """Return inner products of filters with all patches, plus biases.

    Images (n, h, w, c), filters (K, d) and biases (K,) give (n, rows, columns, K).
    """
    top, bottom, left, right = layer.padding
    maps = pad(images.permute(0, 3, 1, 2), (left, right, top, bottom))
    weight = filters.reshape(len(filters), images.shape[-1], *layer.patch)
    if images.device.type == "cpu":
        return conv2d(maps, weight, biases).permute(0, 2, 3, 1)
    # By default cuDNN rounds to ten bits. Flags that are not given are switched off.
    cudnn, names = torch.backends.cudnn, ("enabled", "benchmark", "deterministic")
    kept = {name: getattr(cudnn, name) for name in names}
    with cudnn.flags(allow_tf32=False, **kept):
        return conv2d(maps, weight, biases).permute(0, 2, 3, 1)


def patch_contrasts(images, layer):
    """Return means and variances of the entries of patches, (n, rows, columns)."""
    images = images.double()
    sums = torch.stack([images.sum(3), images.square().sum(3)], 1)
    top, bottom, left, right = layer.padding
    means = avg_pool2d(pad(sums, (left, right, top, bottom)), layer.patch, stride=1)
    mean, squares = (means / images.shape[3]).unbind(1)
    return mean, (squares - mean.square()).clamp_(min=0)


def transformed_patches(images, layer, transform):
    """Return the patches T v of images (n, h, w, c) as (rows, columns, d, n)."""
    if transform is None:
        return extract_patches(images, layer)
    if len(transform) < _WIDE_PATCH:
        return transform @ extract_patches(images, layer)
    # The rows of T are filters: no patch is copied out of its image.
    return convolve(images, layer, transform).permute(1, 2, 3, 0).contiguous()


@dataclass(frozen=True)
class Band:
    """Features of some rows of locations, or their part in the means of one row."""

    features: object  # of these locations alone, without a power
    pixels: slice  # rows of the image that they see
    rows: slice  # of the features of the image
    share: float = 1.0  # of the locations of these rows


class LocationFeatures:
    """Base of features that are pooled over the cells of a grid of locations."""

    mirror = False  # True averages the features of an image and of its mirror

    @property
    def cells(self):
        """Rows and columns of the cells, a pair of lists of slices."""
        return tuple(map(cell_slices, self.layer.locations, self.grid))

    @property
    def nothing(self):
        """Pool of no locations."""
        return 0.0

    @property
    def n_pooled(self):
        """Numbers that are pooled together into the features of an image."""
        return math.prod(self.shape)

    def bands(self, largest, rows=None):
        """Yield `Band`s of at most ``largest`` rows of locations, or of one.

        ``rows`` is a slice of the rows of the features; None is all.
        """
        every = self.cells[0]
        rows = slice(0, len(every)) if rows is None else rows
        start = rows.start
        while start < rows.stop:  # with as many cells of one height as fit
            first, stop = every[start].start, start + 1
            height = every[start].stop - first
            while stop < rows.stop and every[stop].stop - first <= largest:
                below = slice(every[stop - 1].stop, every[stop - 1].stop + height)
                if every[stop] != below:  # of another height, or overlapping
                    break
                stop += 1
            whole, size = slice(first, every[stop - 1].stop), (stop - start) * height
            for part in balanced_blocks(whole, largest):
                layer, (pixels, _) = self.layer.part(part)
                share = (part.stop - part.start) / size
                features = self.at(layer, stop - start)
                yield Band(features, pixels, slice(start, stop), share)
            start = stop

    def at(self, layer, n_rows):
        """Return the features of a part of the locations, without the power."""
        return replace(self, layer=layer, pool=(n_rows, self.grid[1]))

    def add_band(self, out, pooled, share):
        """Add what a `Band` pools of its locations, in its place, to an ndarray."""
        pooled *= share
        out += pooled

    def raise_means(self, means):
        """Return means to the power of the features, here 1."""
        return means


@dataclass(frozen=True)
class FilterLayer(PowerPool, LocationFeatures):
    r"""A convolution with given filters, its activation and its pool.

    .. math:: u = \text{relu: } \sqrt 2\, \max(w^\top v_u(x) / \sqrt c + t, 0), \qquad
              \text{identity: } w^\top v_u(x) / \sqrt c + t

    and then means m of :math:`u^p` over the cells of a grid, raised to a power:
    :math:`(m + o^p)^q - o^{pq}`. Products with normalised patches are divided by
    :math:`\sqrt{s_u^2 + \varepsilon}` with the variance :math:`s_u^2` of the entries
    of :math:`v_u`; their filters have a mean of 0. With p > 1 the powers are those of
    absolute values; with p = 1 a negative mean keeps its sign. :math:`p = \infty` is
    the maximum.
    """

    layer: Layer
    filters: np.ndarray  # (K, d), w
    activation: str  # "relu" or "identity"
    biases: np.ndarray | None = None  # (K,), t; None is zero
    pool: tuple | None = None  # grid, see `pool_grid`
    power: float | None = 1.0  # q; None leaves the means as they are
    offsets: np.ndarray | None = None  # (K,), o, bound the slope at 0; None is zero
    order: float = 1.0  # p
    overlap: float = 0.0
    floor: float | None = None  # ε of normalised patches; None takes them as they are
    mirror: bool = False

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

    def at(self, layer, n_rows):
        """Return the features of a part of the locations, without the power."""
        columns = self.grid[1] if self.pool is None else self.pool[1]
        return replace(self, layer=layer, pool=(n_rows, columns), power=None)

    def affine(self, channels):
        """Return filters and biases with all factors in them, float64 ndarrays."""
        # This one keeps the variance; before the activation, which is homogeneous.
        gain = math.sqrt(2) if self.activation == "relu" else 1.0
        biases = np.zeros(self.n_maps) if self.biases is None else self.biases
        filters, units = self.filters * (gain / math.sqrt(channels)), self.units
        return filters / units[:, None], biases * gain / units

    def find_library(self, n_images, device):
        """Return the compiled functions if they pay for so many images; or None."""
        whole = self.takes_maxima or self.order == int(self.order)
        if device.type != "cpu" or not whole:
            return None
        products = n_images * self.layer.n_locations * self.filters.size
        return build.load(products / build.PRODUCTS_A_PAIR)

    def responses(self, images):
        """Return u of all locations, with the factors of `affine`."""
        arrays = self.affine(images.shape[3])
        filters, biases = (to_tensor(a, images.dtype, images.device) for a in arrays)
        scales = self.patch_scales(images)
        if scales is None:
            maps = convolve(images, self.layer, filters, biases)
        else:
            maps = convolve(images, self.layer, filters) * scales[..., None] + biases
        return maps.relu_() if self.activation == "relu" else maps

    def patch_scales(self, images):
        """Return 1 / sqrt(s² + ε) of the patches of images, (n, rows, columns).

        None where patches are taken as they are.
        """
        if self.floor is None:
            return None
        _, variances = patch_contrasts(images, self.layer)
        return (variances + self.floor).rsqrt().to(images)

    def __call__(self, images):
        """Return the feature maps (n, rows, columns, K) of images (n, h, w, c)."""
        return self.raise_means(self.combine(self.pool_parts(self.responses(images))))


@dataclass(frozen=True)
class Pixels(LocationFeatures):
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

    def at(self, layer, n_rows):
        """Return some rows of the images."""
        return replace(self, image_shape=(n_rows, *self.image_shape[1:]))

    def __call__(self, images):
        """Return the images, (n, h, w, c) → (n, h, w, n_maps)."""
        return images if self.part is None else images[..., self.part]


def compute_maps(features, images, library):
    """Return the features (n, rows, columns, K) of images, compiled with a library."""
    on_cpu = images.device.type == "cpu"
    with own_threads(on_cpu):
        if library is not None:
            parts = calls.filter_maps(library, features, images)
            return features.raise_means(features.combine(parts))
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
        if isinstance(index, slice):
            return self.with_pixels(self.pixels[index])
        return self.with_pixels(take(self.pixels, index))

    def with_pixels(self, pixels):
        """Return the maps of other images, computed alike."""
        return FeatureMaps(pixels, self.layers, self.n_whole)

    @property
    def below(self):
        """Images that the top layer sees: feature maps, or the pixels."""
        if len(self.layers) == 1:
            return self.pixels
        return FeatureMaps(self.pixels, self.layers[:-1], self.n_whole)


@mirror.register(FeatureMaps)
def _mirror_pixels(maps):
    """Return the maps of mirrored images, which are not the mirrored maps."""
    return maps.with_pixels(mirror(maps.pixels))


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
    rest = replace(resources, memory=resources.memory - size)
    return feature_rows(images.layers[-1], images.below, images.n_whole, None, rest)


def load_rows(images, rows, resources):
    """Return rows of the pixels, or maps, of images, a tensor (n, rows, w, c).

    ``rows`` is a slice; None is all.
    """
    if isinstance(images, FeatureMaps):
        half = replace(resources, memory=resources.memory // 2)
        below = images.layers[-1], images.below, images.n_whole, rows, half
        return torch.as_tensor(feature_rows(*below), device=resources.device)
    if rows is not None:
        images = np.asarray(images)[:, rows]
    return resources.tensor(images)


def read(images):
    """Return images, or the pixels of feature maps, in memory."""
    if isinstance(images, FeatureMaps):
        return images.with_pixels(read(images.pixels))
    return np.asarray(images)


def read_with_mirrors(images):
    """Return images in memory, or feature maps of such pixels, then their mirrors."""
    if isinstance(images, FeatureMaps):
        return images.with_pixels(read_with_mirrors(images.pixels))
    images = np.asarray(images)
    return np.concatenate([images, mirror(images)])


def compute_features(features, images, resources):
    """Return the features (n, rows, columns, K) of images, computed block by block.

    ``features(images)`` of tensors has the attributes ``shape`` of an image's features,
    ``n_maps``, the maps that are alive on the way, ``layer``, and ``bands``.
    """
    worker = resources.one_worker()
    _, numbers = memory_numbers(features, images, len(images), worker)
    largest = int(worker.memory / 2 / (worker.itemsize * numbers))
    parts = spans(len(images), resources, largest=largest)
    tasks = ((features, images[part], len(images), None, worker) for part in parts)
    out = np.empty((len(images), *features.shape), dtype=resources.numpy_dtype)
    blocks = resources.run(feature_rows, tasks)
    for part, block in zip(track(parts, "features"), blocks, strict=True):
        out[part] = block
    return out


@singledispatch
@halving_memory
def feature_rows(features, images, n_images, rows, resources):
    """Return the features of some of ``n_images``, in blocks that fit in memory.

    ``rows`` is a slice of the rows of the features; None is all.
    """
    library, numbers = memory_numbers(features, images, n_images, resources)
    fitting = resources.memory / 2 / (resources.itemsize * numbers)  # images
    largest = min(fitting, _quick_block(images, features.shape, resources))
    n_rows = features.shape[0] if rows is None else rows.stop - rows.start
    out = np.empty((len(images), n_rows, *features.shape[1:]), resources.numpy_dtype)

    def fill(some, block):
        if rows is None and fitting >= 1:
            maps = compute_maps(features, resources.tensor(some), library)
            block[...] = maps.cpu().numpy()
        else:
            _fill_bands(features, some, rows, library, block, resources)

    for part in track(image_blocks(images, int(largest)), "features"):
        some = read(images[part]) if features.mirror else images[part]
        fill(some, out[part])
        if features.mirror:  # the sum of both is the same for an image and its mirror
            other = np.empty_like(out[part])
            fill(mirror(some), other)
            out[part] += other
            out[part] /= 2
        if not np.isfinite([out[part].min(), out[part].max()]).all():
            raise ValueError(
                f"the features overflow {out.dtype}: X has values up to "
                f"{largest_value(images):.3g}; scale the images, as those of the fit "
                "and for instance to [0, 1], or take dtype='float64'."
            )
    return out


def _fill_bands(features, images, rows, library, out, resources):
    """Put features of images into an array, by bands of locations that fit in memory.

    On a CPU the bands are shared out to the threads.
    """
    images = read(images)
    first = 0 if rows is None else rows.start
    on_cpu = resources.device.type == "cpu"
    with own_threads(on_cpu):
        threads = thread_count() if on_cpu else 1
        share = replace(resources, memory=resources.memory // threads)
        largest = band_rows(features, images, library, share)
        out[...] = features.nothing
        bands = list(features.bands(largest, rows))

        def pooled(part):
            [band] = bands[part]
            block = load_rows(images, band.pixels, share)
            return compute_maps(band.features, block, library).cpu().numpy()

        for wave in balanced_blocks(slice(0, len(bands)), threads):
            blocks = share_out(pooled, wave, 1)
            for band, block in zip(bands[wave], blocks, strict=True):
                at = out[:, band.rows.start - first : band.rows.stop - first]
                features.add_band(at, block, band.share)
    for at in balanced_blocks(slice(0, out.shape[1]), largest):
        out[:, at] = features.raise_means(torch.from_numpy(out[:, at])).numpy()


def band_rows(features, images, library, resources):
    """Return how many rows of locations of some images fit in memory."""
    layer, row = features.layer, 3 * math.prod(images.shape[2:])
    numbers = row + 2 * features.n_pooled / layer.locations[0]
    numbers += _map_numbers(features, images, library, resources) * layer.locations[1]
    available = resources.memory / (2 * resources.itemsize * len(images))
    return max(1, int((available - row * (layer.patch[0] - 1)) / numbers))


@singledispatch
def memory_numbers(features, images, n_images, resources):
    """Return the compiled functions where they pay, and the numbers of an image."""
    library = None
    if isinstance(features, FilterLayer):
        library = features.find_library(n_images, resources.device)
    numbers = 2 * math.prod(images.shape[1:]) + 2 * features.n_pooled
    each = _map_numbers(features, images, library, resources)
    numbers += each * features.layer.n_locations
    if features.mirror:
        numbers += math.prod(images.shape[1:]) + math.prod(features.shape)
    if isinstance(images, FeatureMaps):
        below = images.layers[-1], images.below, images.n_whole, resources
        numbers = max(numbers, memory_numbers(*below)[1])
    return library, numbers


def _map_numbers(features, images, library, resources):
    """Return the numbers that a location takes while its maps are made."""
    if library is not None:
        return _PLACE_BYTES // resources.itemsize
    # In float64 torch copies every patch out of its image.
    copied = 0 if resources.dtype == torch.float32 else images.shape[3]
    return _MAP_COPIES * features.n_maps + copied * math.prod(features.layer.patch)


def _quick_block(images, shape, resources):
    """Return the number of images from which on a larger block gains nothing."""
    if resources.device.type != "cpu":
        return len(images)
    numbers = max(math.prod(images.shape[1:]), math.prod(shape))
    return max(1, _CPU_BLOCK_BYTES // (resources.itemsize * numbers))

"""Images, the layers that look at them, patches and locations."""

import math
from dataclasses import dataclass, replace
from functools import singledispatch

import numpy as np
import torch
from torch.nn.functional import pad


@dataclass(frozen=True)
class Layer:
    """One convolution of stride one: its patch, its zero padding, its locations."""

    patch: tuple[int, int]  # rows and columns
    padding: tuple[int, int, int, int]  # zeros above, below, left and right
    locations: tuple[int, int]  # rows and columns of the map that it puts out

    @property
    def n_locations(self):
        """Number of locations."""
        return math.prod(self.locations)

    @property
    def image(self):
        """Rows and columns of the map that it looks at."""
        margins = sum(self.padding[:2]), sum(self.padding[2:])
        sizes = zip(self.locations, self.patch, margins, strict=True)
        return tuple(count + size - 1 - margin for count, size, margin in sizes)

    def mirror_entries(self, channels):
        """Return the indices of the entries of a patch in its mirror."""
        entries = np.arange(channels * math.prod(self.patch))
        return entries.reshape(-1, self.patch[1])[:, ::-1].ravel().copy()

    def part(self, rows, columns=None):
        """Return the layer at some locations, and the pixels of the image it sees.

        Rows and columns are slices of locations, None is all columns; the pixels are a
        pair of slices.
        """
        spans = rows, slice(0, self.locations[1]) if columns is None else columns
        margins, pixels, padding = (self.padding[:2], self.padding[2:]), [], []
        dimensions = zip(spans, self.image, self.patch, margins, strict=True)
        for span, size, patch, (before, _) in dimensions:
            start, stop = span.start - before, span.stop - before + patch - 1
            pixels.append(slice(max(0, start), min(size, stop)))
            padding += max(0, -start), max(0, stop - size)
        locations = tuple(span.stop - span.start for span in spans)
        return Layer(self.patch, tuple(padding), locations), tuple(pixels)


def convolution_layers(image_shape, patch_size, padding, depth):
    """Lay out ``depth`` convolutions of stride one on an image, a tuple of `Layer`.

    Patches are clipped to the map that they look at. With padding ``"same"`` each layer
    pads its own input with zeros, one more after than before for even patches.
    """
    rows, columns = np.broadcast_to(patch_size, 2).tolist()
    height, width = image_shape[:2]
    layers = []
    for _ in range(depth):
        patch = (min(rows, height), min(columns, width))
        margins = (0, 0, 0, 0)
        if padding == "same":
            top, left = ((size - 1) // 2 for size in patch)
            margins = (top, patch[0] - 1 - top, left, patch[1] - 1 - left)
        height += margins[0] + margins[1] - patch[0] + 1
        width += margins[2] + margins[3] - patch[1] + 1
        layers.append(Layer(patch, margins, (height, width)))
    return tuple(layers)


def cells(size, count):
    """Divide a dimension evenly into at most ``count`` slices, the cells of a pool."""
    count = min(size, count)
    return [slice(i * size // count, (i + 1) * size // count) for i in range(count)]


def as_images(X, image_shape, channels, scale=1.0):
    """Return flat rows as images (n, h, w, c): a view, or images that are read late.

    ``scale`` is what they are divided by.
    """
    if not isinstance(X, np.ndarray):
        return scaled(X.images(image_shape, channels), scale)
    height, width, depth = image_shape
    if channels == "first":
        images = X.reshape(-1, depth, height, width).transpose(0, 2, 3, 1)
    else:
        images = X.reshape(-1, height, width, depth)
    return scaled(images, scale)


def scaled(images, scale):
    """Return images over a number, by which they are divided when they are read."""
    return images if scale == 1.0 else ScaledImages(images, scale)


def take(images, rows):
    """Return some images, as `ChosenImages` where indexing would copy them."""
    if not isinstance(images, np.ndarray):
        return images[rows]
    return ChosenImages(images, np.asarray(rows))


class _ImagesOfOthers:
    """Base of images that are made of others, their ``images``, when they are read."""

    @property
    def shape(self):
        """Images, rows, columns and channels."""
        return (len(self), *self.images.shape[1:])

    @property
    def dtype(self):
        """The dtype of the pixels."""
        return self.images.dtype


@dataclass(frozen=True, eq=False)
class ScaledImages(_ImagesOfOthers):
    """Images that are divided by a number when they are read, in float64.

    So results in one precision do not depend on how the images are stored.
    """

    images: object  # (n, h, w, c)
    scale: float

    @property
    def dtype(self):
        """The dtype that such images would be stored in."""
        return np.result_type(self.images.dtype, np.float32)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        """Return some of these images, by a slice or an array of integers."""
        is_slice = isinstance(index, slice)
        part = self.images[index] if is_slice else take(self.images, index)
        return replace(self, images=part)

    def __array__(self, dtype=None, copy=None):
        """Read and divide the images."""
        images = np.divide(np.asarray(self.images), self.scale, dtype=np.float64)
        return images if dtype is None else images.astype(dtype, copy=False)


@dataclass(frozen=True, eq=False)
class ImagesOnDevice(_ImagesOfOthers):
    """Images, and a copy on a device of which blocks are taken, without a transfer."""

    images: object  # (n, h, w, c), on the host
    copy: torch.Tensor  # (n, h, w, c), as `to_tensor` returns it

    def __len__(self):
        return len(self.copy)

    def __getitem__(self, index):
        """Return some of these images, by a slice or an array of integers."""
        if isinstance(index, slice):
            return ImagesOnDevice(self.images[index], self.copy[index])
        rows = torch.as_tensor(index, device=self.copy.device)
        return ImagesOnDevice(take(self.images, index), self.copy[rows])

    def __array__(self, dtype=None, copy=None):
        """Return the images on the host."""
        return np.asarray(self.images, dtype)

    def __reduce__(self):  # a worker is sent the images of the host
        return np.asarray, (np.asarray(self),)


def on_device(images, dtype, device):
    """Return images in memory with a copy on a device, and stored ones as they are."""
    source = images.images if isinstance(images, ScaledImages) else images
    if not isinstance(source, np.ndarray):
        return images
    return ImagesOnDevice(images, to_tensor(images, dtype, device))


def unscaled(images):
    """Return images in memory, before they are divided by their scale."""
    while isinstance(images, ScaledImages | ImagesOnDevice):
        images = images.images
    return np.asarray(images)


def held(images):
    """Return images in memory; their division stays for when they are read."""
    if isinstance(images, ImagesOnDevice):
        return replace(images, images=held(images.images))
    if isinstance(images, ScaledImages):
        return replace(images, images=np.asarray(images.images))
    return np.asarray(images)


@dataclass(frozen=True, eq=False)
class ChosenImages(_ImagesOfOthers):
    """Some images of an array, which are copied no sooner than they are needed."""

    images: np.ndarray  # (n, h, w, c)
    rows: np.ndarray  # integers

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        """Return some of these images, by a slice or an array of integers."""
        return ChosenImages(self.images, self.rows[index])

    def __array__(self, dtype=None, copy=None):
        """Return the images, a view where they follow each other."""
        rows = self.rows
        if len(rows) and np.array_equal(rows, np.arange(len(rows)) + rows[0]):
            rows = slice(rows[0], rows[-1] + 1)
        images = self.images[rows]
        return images if dtype is None else images.astype(dtype, copy=False)

    def __reduce__(self):  # a worker is sent these images alone
        return np.asarray, (np.asarray(self),)


@singledispatch
def mirror(images):
    """Return images with their columns reversed, a view or read late.

    Other kinds of images register here.
    """
    if isinstance(images, np.ndarray):
        return images[:, :, ::-1]
    if isinstance(images, ImagesOnDevice):
        return ImagesOnDevice(mirror(images.images), images.copy.flip(2))
    return MirroredImages(images)


@dataclass(frozen=True, eq=False)
class MirroredImages(_ImagesOfOthers):
    """Stored or chosen images, whose columns are reversed when they are read."""

    images: object  # (n, h, w, c)

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        """Return some of these images; not read yet."""
        return MirroredImages(self.images[index])

    def __array__(self, dtype=None, copy=None):
        """Read the images."""
        images = mirror(np.asarray(self.images))
        return images if dtype is None else images.astype(dtype, copy=False)


@dataclass(frozen=True, eq=False)
class WithMirrors(_ImagesOfOthers):
    """Images (n, h, w, c), then the mirror of each; slices of the 2n are copied."""

    images: np.ndarray

    def __len__(self):
        return 2 * len(self.images)

    def __getitem__(self, part):
        n = len(self.images)
        mirrors = self.images[max(0, part.start - n) : max(0, part.stop - n)]
        return np.concatenate([self.images[part], mirror(mirrors)])


@singledispatch
def to_tensor(images, dtype, device):
    """Copy a block of images into a tensor; other kinds register here."""
    if isinstance(images, ImagesOnDevice):
        return images.copy.to(device, dtype)
    images = np.asarray(images)
    # Memory from torch begins where vectors do. Products of matrices are rounded in an
    # order that depends on it, and would not always come out the same.
    block = torch.empty(images.shape, dtype=dtype, device="cpu")
    try:
        with np.errstate(over="raise"):
            np.copyto(block.numpy(), images, casting="unsafe")
    except FloatingPointError as error:
        raise ValueError(
            f"dtype={torch.finfo(dtype).dtype!r} has no numbers as large as those of "
            f"X, up to {np.abs(images).max():.3g}; scale the images, or take "
            "dtype='float64'."
        ) from error
    return block.to(device)


def extract_patches(images, layer, rows=None):
    """Return the patches of images (n, h, w, c) as (rows, columns, d, n).

    ``rows`` is a slice of locations or None. Entries d run (channel, row, column).
    """
    if rows is not None:
        layer, (pixels, _) = layer.part(rows)
        images = images[:, pixels]
    top, bottom, left, right = layer.padding
    maps = pad(images.permute(3, 1, 2, 0), (0, 0, left, right, top, bottom))
    windows = maps.contiguous().unfold(1, layer.patch[0], 1)
    windows = windows.unfold(2, layer.patch[1], 1)
    patches = windows.permute(1, 2, 0, 4, 5, 3)
    return patches.reshape(len(patches), layer.locations[1], -1, len(images))

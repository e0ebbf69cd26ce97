"""Images, the layers that look at them, patches and locations."""

import math
from dataclasses import dataclass, field
from functools import singledispatch

import numpy as np
import torch
from torch.nn.functional import pad


@dataclass(frozen=True)
class Layer:
    """One convolution of stride one: its patch, its zero padding, its locations.

    Attributes
    ----------
    patch : tuple of int
        Rows and columns of a patch.
    padding : tuple of int
        Rows of zeros above and below, columns of zeros left and right.
    locations : tuple of int
        Rows and columns of the map that the layer puts out.
    """

    patch: tuple[int, int]
    padding: tuple[int, int, int, int]
    locations: tuple[int, int]

    @property
    def n_locations(self):
        """Number of locations."""
        return math.prod(self.locations)


@dataclass(frozen=True, eq=False)
class Readout:
    """Which locations of two images meet at the end of a kernel, and their weights.

    Attributes
    ----------
    left, right : tuple
        Indices of the locations of either image, in the maps of all layers: those at
        the same place in both meet.
    weights : ndarray of shape (rows, columns), default=None
        The weight of each meeting; None makes the kernel their mean.
    """

    left: tuple = (slice(None), slice(None))
    right: tuple = (slice(None), slice(None))
    weights: np.ndarray | None = None

    def meet(self, left, right):
        """Two blocks at the locations that meet."""
        return left.at(self.left), right.at(self.right)

    def sum(self, maps):
        """The kernel from its values at each meeting, (rows, columns, ...)."""
        if self.weights is None:
            return maps.mean((0, 1))
        return torch.tensordot(self._weights_like(maps), maps, 2)

    def derivative(self, maps):
        """The derivative of `sum` at each meeting, to be broadcast over the pairs."""
        if self.weights is None:
            return maps.new_full((1, 1, 1, 1), 1 / math.prod(maps.shape[:2]))
        return self._weights_like(maps)[..., None, None]

    def _weights_like(self, maps):
        return torch.as_tensor(self.weights, dtype=maps.dtype, device=maps.device)


# Every location meets its own.
FLATTEN = Readout()


@dataclass(frozen=True)
class ImageKernel:
    """What every kernel of images has; the tile's functions are for its kinds.

    Attributes
    ----------
    kind : str
        Which kernel.
    layers : tuple of Layer
        The convolutions, from the image up; the first one's patches are compared.
    channels : int
        Channels of an image.
    readout : Readout, default=FLATTEN
        The locations that are compared.
    """

    kind: str
    layers: tuple[Layer, ...]
    channels: int
    readout: Readout = field(default=FLATTEN, kw_only=True)

    @property
    def terms(self):
        """The kernels that add up to this one: itself."""
        return (self,)

    @property
    def patch_dim(self):
        """Entries d of a patch."""
        rows, columns = self.layers[0].patch
        return self.channels * rows * columns


@dataclass(frozen=True)
class ImageBlock:
    """What a tile needs to know of a block of images; the last dimension is theirs.

    Attributes
    ----------
    patches : Tensor of shape (rows, columns, d, n)
        Transformed patches T v.
    """

    patches: torch.Tensor

    def __len__(self):
        return self.patches.shape[-1]

    def __getitem__(self, index):
        """The images ``index`` (a slice) of the block."""
        return self._map(lambda array: array[..., index])

    def at(self, locations):
        """The block at some locations, a pair of indices, of each of its maps."""
        return self._map(lambda array: array[locations])

    def contiguous(self):
        """The block with its images next to each other in memory."""
        return self._map(torch.Tensor.contiguous)

    def __setitem__(self, index, block):
        """Put the images of another block in the place of some of this one's."""
        for mine, theirs in zip(self.tensors(), block.tensors(), strict=True):
            mine[..., index] = theirs

    def room_for(self, n):
        """A block of n images of this kind, to be filled."""
        return self._map(lambda array: array.new_empty((*array.shape[:-1], n)))

    def tensors(self):
        """All tensors of the block."""
        for value in vars(self).values():
            yield from value if isinstance(value, list) else [value]

    def _map(self, function):
        return type(self)(
            *(
                [function(v) for v in value]
                if isinstance(value, list)
                else function(value)
                for value in vars(self).values()
            )
        )


def convolution_layers(image_shape, patch_size, padding, depth):
    """Lay out ``depth`` convolutions of stride one on an image.

    Patches are clipped to the map that they look at. With ``"same"`` each layer
    pads its own input with zeros, one more after than before for even patches.

    Parameters
    ----------
    image_shape : tuple of int
        Rows and columns (and channels, ignored) of an image.
    patch_size : int or (int, int)
        Rows and columns of a patch.
    padding : {"valid", "same"}
        Whether maps shrink by the patch less one, or keep their size.
    depth : int
        Number of layers.

    Returns
    -------
    tuple of Layer
    """
    rows, columns = np.broadcast_to(patch_size, 2).tolist()
    height, width = image_shape[:2]
    layers = []
    for _ in range(depth):
        patch = (min(rows, height), min(columns, width))
        margins = (0, 0, 0, 0)
        if padding == "same":
            (top, left) = ((size - 1) // 2 for size in patch)
            margins = (top, patch[0] - 1 - top, left, patch[1] - 1 - left)
        height += margins[0] + margins[1] - patch[0] + 1
        width += margins[2] + margins[3] - patch[1] + 1
        layers.append(Layer(patch, margins, (height, width)))
    return tuple(layers)


def cells(size, count):
    """Part a dimension evenly into ``count`` slices, or as many as there is room for.

    The cells of a pool, along rows or columns.
    """
    count = min(size, count)
    return [slice(i * size // count, (i + 1) * size // count) for i in range(count)]


def as_images(X, image_shape, channels):
    """Flat rows as images of shape (n, h, w, c): a view, or stored images."""
    if not isinstance(X, np.ndarray):
        return X.images(image_shape, channels)
    height, width, depth = image_shape
    if channels == "first":
        return X.reshape(-1, depth, height, width).transpose(0, 2, 3, 1)
    return X.reshape(-1, height, width, depth)


@singledispatch
def to_tensor(images, dtype, device):
    """Copy a block of numpy images into a tensor; the only place that casts pixels.

    What stands for images registers itself here. A copy of just this block makes
    read-only, strided, byte-swapped and integer images alike.
    """
    images = np.asarray(images)
    # Memory from torch begins where vectors do. Products of matrices are rounded in an
    # order that depends on it, and would not always come out the same.
    block = torch.empty(images.shape, dtype=dtype)
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
    """All patches of some images, location by location, images innermost.

    Parameters
    ----------
    images : Tensor of shape (n, h, w, c)
        Images, channels last.
    layer : Layer
        The convolution that looks at them.

    rows : slice, default=None
        The rows of locations that are wanted; None is all.

    Returns
    -------
    Tensor of shape (rows, columns, d, n)
        Patch entries run (channel, row, column), as ``Conv2d.weight`` does.
    """
    rows = slice(0, layer.locations[0]) if rows is None else rows
    top, bottom, left, right = layer.padding
    maps = pad(images.permute(3, 1, 2, 0), (0, 0, left, right, top, bottom))
    maps = maps[:, rows.start : rows.stop + layer.patch[0] - 1]
    windows = maps.contiguous().unfold(1, layer.patch[0], 1)
    windows = windows.unfold(2, layer.patch[1], 1)
    patches = windows.permute(1, 2, 0, 4, 5, 3)
    return patches.reshape(len(patches), layer.locations[1], -1, len(images))

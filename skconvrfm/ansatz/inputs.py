"""Images in any form that users have them in, as inputs that a network takes.

Arrays, images of PIL and lists of numbers are laid out as `channels` and `image_shape`
say; torch tensors are as the network takes them. Elements of iterables are images or
batches, alone or with labels, in tuples, lists or dicts.
"""

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Number

import numpy as np
import torch
from sklearn.utils import check_array

from ..compute.images import to_tensor
from .network import Keywords, default_device

# Names in dicts: of what is not an input, and of images among other inputs.
_LABELS = {"label", "labels", "target", "targets", "y"}
_IMAGES = {"image", "images", "pixel_values", "x", "X", "input", "inputs", "img"}


@dataclass(frozen=True)
class Reading:
    """Conversion of images in some form to the inputs of a network."""

    dtype: torch.dtype  # of the network, for images
    device: torch.device
    n_dims: int | None  # of the locations of its convolutions
    lays_out: bool = True  # arrays, or they are as the network takes them
    is_text: bool = False  # of a network that embeds whole numbers
    image_shape: tuple | None = None
    channels: str = "last"
    # Names by which it takes the tensors of a dict; () is the dict itself, and None
    # the images in it.
    keywords: tuple | None = None

    def inputs(self, images):
        """Return a batch for the network."""
        if isinstance(images, Items):
            images = images.read()
        if not isinstance(images, Mapping):
            return self._tensor(images, self.lays_out)
        if self.keywords is None:
            return self._tensor(image_in(images), self.lays_out)
        kind, names = (Keywords, self.keywords) if self.keywords else (dict, images)
        return kind({name: self._tensor(images[name], False) for name in names})

    def _tensor(self, images, lays_out):
        if not isinstance(images, torch.Tensor):
            images = self._from_array(check_images(images), lays_out)
        # Other integers may be tokens, which an embedding takes as they are.
        is_image = images.is_floating_point() or images.dtype == torch.uint8
        return images.to(self.device, self.dtype if is_image else images.dtype)

    def _from_array(self, images, lays_out):
        if self._are_tokens(images, lays_out):
            return to_tensor(images, torch.int64, self.device)
        images = self.laid_out(images) if lays_out else images
        wide = torch.promote_types(self.dtype, torch.float32)
        return to_tensor(images, wide, self.device)

    def _are_tokens(self, images, lays_out):
        is_whole = images.dtype.kind in "iu" and images.dtype.itemsize >= 4
        return is_whole and (self.is_text or not lays_out)

    def laid_out(self, images):
        """Return an array as a view that is laid out as the network takes it."""
        if not self.lays_out or self._are_tokens(images, True):
            return images
        return lay_out(images, self.n_dims, self.image_shape, self.channels)

    def remedy(self, images):
        """Return how images of this form are read, for errors."""
        if isinstance(images, Items):
            images = images.read()
        if isinstance(images, Mapping):
            return f"Of dicts it got {list(images)}; labels are kept out."
        if isinstance(images, torch.Tensor) or not self.lays_out:
            return (
                "Torch batches, and the X of an estimator, are as the network takes "
                "them, mostly (n, channels, ...) of floating numbers: X.movedim(-1, 1) "
                "brings channels there that are last, X.float() changes whole numbers."
            )
        return (
            f"Arrays were read with channels={self.channels!r} and "
            f"image_shape={self.image_shape!r}; change these, or pass torch batches as "
            "the network takes them."
        )


class Items:
    """Single images of a dataset or list, read when they are needed."""

    def __init__(self, data, rows, like):
        self.data, self.rows, self.like = data, rows, like

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, rows):
        return Items(self.data, self.rows[rows], self.like)

    def __getstate__(self):
        # Workers get their part of a list only.
        if isinstance(self.data, (list, tuple)):
            part = [self.data[row] for row in self.rows]
            return vars(self) | {"data": part, "rows": range(len(part))}
        return vars(self)

    def read(self):
        """Return the images as one batch."""
        rows = [int(row) for row in self.rows]
        with default_device("cpu"):
            images = [split_labels(self.data[row])[0] for row in rows]
        return stack(images, rows, self.like)


def stack(images, numbers, like):
    """Return images as one batch; all must have the shape of the first, `like`."""
    if isinstance(like, Mapping):
        return {
            name: stack([one[name] for one in images], numbers, like[name])
            for name in like
        }
    for number, image in zip(numbers, images, strict=True):
        if image.shape != like.shape:
            raise ValueError(
                f"X has images of shapes {tuple(like.shape)} and {tuple(image.shape)} "
                f"(number {number}): bring them to one shape."
            )
    return (torch if isinstance(like, torch.Tensor) else np).stack(images)


def check_images(images):
    """Return images as a finite array of numbers."""
    any_shape = {"ensure_2d": False, "allow_nd": True}
    try:
        return check_array(images, dtype="numeric", input_name="X", **any_shape)
    except ValueError as error:
        if "inhomogeneous" not in str(error):
            raise
        raise ValueError(
            "X has elements of unequal shapes: bring images to one shape, and put "
            "labels behind them, as in (image, label)."
        ) from error


def is_array(value):
    """Return True if a value is an array, a tensor or an image of PIL."""
    arrays = hasattr(value, "__array__") or hasattr(value, "__array_interface__")
    return arrays and not isinstance(value, np.generic)


def _as_array(value):
    """Return an array as it is; an image of PIL becomes one."""
    return value if hasattr(value, "ndim") else np.asarray(value)


def split_labels(element):
    """Return the images of an element, an array or a dict of arrays, and its labels."""
    if isinstance(element, Mapping):
        labels = next((element[name] for name in element if name in _LABELS), None)
        inputs = {k: one for k, one in element.items() if k not in _LABELS}
        images = {k: _as_array(one) for k, one in inputs.items() if is_array(one)}
        if images:
            return images, labels
    elif is_array(element) and _as_array(element).ndim:
        return _as_array(element), None
    elif isinstance(element, (tuple, list)) and element:
        images, labels = split_labels(element[0])
        return images, element[1] if labels is None and len(element) > 1 else labels
    raise TypeError(
        f"X has a batch of type {type(element).__name__} without a tensor of images; "
        "batches and images are tensors or arrays, or tuples, lists or dicts with one."
    )


def image_in(images):
    """Return the images among the arrays of a dict: those of most axes."""
    named = {name: one for name, one in images.items() if name in _IMAGES}
    most = max(one.ndim for one in images.values())
    named = named or {k: one for k, one in images.items() if one.ndim == most}
    if len(named) > 1:
        raise TypeError(
            f"X has dicts in which each of {list(named)} may be the images: pass the "
            "tensors of images alone."
        )
    return next(iter(named.values()))


def keyword_readings(network, images):
    """Return the ways in which a network may take images, as `Reading.keywords`."""
    if not isinstance(images, Mapping):
        return [None]
    try:
        parameters = inspect.signature(network.forward).parameters
    except (TypeError, ValueError):
        parameters = {}
    named = tuple(name for name in images if name in parameters)
    if named:
        return [named]
    takes_all = any(one.kind is one.VAR_KEYWORD for one in parameters.values())
    return [*[tuple(images)] * takes_all, None, ()]


def single_readings(images, labels, n_dims, is_dataset):
    """Return, the likeliest first, if an element is a single image or a batch."""
    arrays = images.values() if isinstance(images, Mapping) else [images]
    ndim = max(array.ndim for array in arrays)
    if n_dims is not None:
        is_single = ndim <= n_dims + 1
    else:
        has_one_label = isinstance(labels, (Number, str)) or (
            labels is not None and np.ndim(labels) == 0
        )
        is_single = is_dataset or has_one_label
    return [is_single, not is_single]


def lay_out(X, n_dims, image_shape, channels):
    """Return images as a view (n, channels, ...), or as they are if n_dims is None."""
    last = channels == "last"
    if image_shape is not None:
        X = _shape_rows(X, n_dims or 2, image_shape, channels)
    elif n_dims is None:
        return X
    elif X.ndim == n_dims + 1:
        X = np.expand_dims(X, -1 if last else 1)
    elif X.ndim != n_dims + 2:
        raise ValueError(
            f"X has shape {X.shape}; a network of Conv{n_dims}d takes (n, "
            f"{n_dims} axes of pixels, channels), or with channels='first' (n, "
            "channels, ...). Pass image_shape=(h, w, c) for flat rows."
        )
    return np.moveaxis(X, -1, 1) if last else X


def _shape_rows(X, n_dims, image_shape, channels):
    """Rows as images, their channels on the side that `channels` says."""
    shape = tuple(image_shape)
    positive = all(isinstance(size, Integral) and size > 0 for size in shape)
    if len(shape) not in (n_dims, n_dims + 1) or not positive:
        raise ValueError(
            f"image_shape={image_shape!r} must have {n_dims} sizes, or with "
            f"the channels {n_dims + 1}, all positive integers."
        )
    *sizes, n_channels = (*shape, 1)[: n_dims + 1]
    laid_out = (*sizes, n_channels) if channels == "last" else (n_channels, *sizes)
    fits = (laid_out, tuple(sizes)) if n_channels == 1 else (laid_out,)
    if X.ndim == 2 and X.shape[1] != math.prod(shape):
        raise ValueError(
            f"image_shape={image_shape!r} has {math.prod(shape)} pixels, but "
            f"X has {X.shape[1]} features a row; they must agree."
        )
    if X.ndim != 2 and X.shape[1:] not in fits:
        raise ValueError(
            f"image_shape={image_shape!r} with channels={channels!r} "
            f"does not match X, whose images have shape {X.shape[1:]}; leave "
            "image_shape=None to take it from X."
        )
    return X.reshape(len(X), *laid_out)

"""Images, weights and resources as users pass them: checked, and made into arrays."""

from __future__ import annotations

import functools
import math
from numbers import Integral
from typing import cast

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_array, check_consistent_length
from sklearn.utils.validation import check_is_fitted, validate_data

from ._sequences import as_numpy, read_images, read_pairs, stacked
from ._sklearn_compat import StrOptions, check_sample_weight
from ._typing import Function
from .compute.blocks import SCANNED_BYTES, byte_blocks, squares_fit_float32
from .compute.devices import TORCH_DTYPES, resolve_device, resolve_dtype
from .compute.duplicates import near_duplicate_share
from .compute.images import as_images
from .compute.parallel import is_out_of_memory, parallel_resources, working_memory
from .compute.stored import StoredRows, stored_rows
from .compute.torch_state import plain_torch
from .compute.warn import warn_caller

# Fitted attributes that scikit-learn sets.
_OF_SKLEARN = {"n_features_in_", "feature_names_in_"}
# Layout of saved estimators.
_FORMAT = 4
# Numbers of channels that are usual.
_CHANNEL_COUNTS = (1, 3, 4)
# Share of rows with near-duplicates from which on groups are asked for.
_NEAR_DUPLICATES = 0.1
# Sides from which on flat rows look like colour images, or square ones.
_SMALLEST_COLOUR_SIDE, _SMALLEST_SQUARE_SIDE = 8, 4

# Constraints of the parameters of computation, of estimators and functions alike.
check_device_parameters = {
    "device": [str, torch.device],
    "dtype": [StrOptions({"auto", *TORCH_DTYPES})],
    "n_jobs": [Integral, None],
}

# scikit-learn adds up all values first, and large ones may be infinity less infinity.
summed_quietly = np.errstate(invalid="ignore")


def check_pair(value, name, single="a positive int"):
    """Return rows and columns as a pair of ints; ``single`` is for the error."""
    pair = (value,) * 2 if isinstance(value, Integral) else tuple(value)
    if len(pair) != 2 or not all(isinstance(s, Integral) and s >= 1 for s in pair):
        raise ValueError(
            f"{name}={value!r} is neither {single} nor a pair (rows, columns) of them."
        )
    return int(pair[0]), int(pair[1])


def make_resources(device, dtype, n_jobs, *arrays, learned=()):
    """Return `Resources` from parameters and scikit-learn's configuration.

    ``arrays`` are images, or None, whose dtypes decide ``dtype="auto"``, and values
    that float32 could not square; ``learned`` arrays decide by their values alone.
    """
    name = str(device)
    resolve_device(name)
    arrays = [array for array in arrays if array is not None]
    precision = resolve_dtype(dtype, *(array.dtype for array in arrays))
    if dtype == "auto" and precision == torch.float32:
        fit = all(map(squares_fit_float32, (*arrays, *learned)))
        precision = torch.float32 if fit else torch.float64
    return parallel_resources(name, precision, working_memory(), n_jobs)


@summed_quietly
def check_image_array(images, name):
    """Return images, or flat rows of square ones, as a finite array (n, h, w, c)."""
    images = as_numpy(images, name)
    if isinstance(images, list | tuple):
        images = [as_numpy(x, f"{name}[{i}]") for i, x in enumerate(images)]
    images = check_array(images, dtype="numeric", allow_nd=True, input_name=name)
    images = as_numbers(images, name)
    if images.ndim == 2:
        side = math.isqrt(images.shape[1])
        if side**2 == images.shape[1]:
            images = images.reshape(-1, side, side)
    if images.ndim not in (3, 4):
        raise ValueError(
            f"{name} has shape {images.shape}; images are (n, h, w), (n, h, w, c) or "
            "the flat rows of square images. Reshape other rows first, for instance "
            "X.reshape(-1, 28, 20)."
        )
    if 0 in images.shape:
        raise ValueError(f"{name} has shape {images.shape}, which has no pixels.")
    if images.ndim == 4 and _is_other_layout(images.shape[1:]):
        shape = ", ".join(map(str, images.shape[1:]))
        warn_caller(
            f"{name} of shape (n, {shape}) is read as (n, h, w, c), but looks like "
            f"(n, c, h, w): pass {name}.transpose(0, 2, 3, 1) if it is.",
        )
    return images[..., None] if images.ndim == 3 else images


def check_weights(sample_weight, X):
    """Return one weight per row of X as float64, none negative, not all zero."""
    if sample_weight is not None:
        sample_weight = as_numbers(sample_weight, "sample_weight")
    if sample_weight is not None and not sample_weight.any():
        raise ValueError(
            "sample_weight is all zero, so that no row is left: give some rows a "
            "positive weight."
        )
    weights = check_sample_weight(
        sample_weight, X, dtype=np.float64, ensure_non_negative=True
    )
    with np.errstate(over="ignore"):  # refused in better words
        total = weights.sum()
    if not np.isfinite(total):
        raise ValueError(
            f"sample_weight has values up to {weights.max():.3g}, whose sum overflows: "
            "scale the weights."
        )
    return weights


def check_groups(groups, X):
    """Return the number of the group of each row of X, or None for None."""
    if groups is None:
        return None
    groups = np.asarray(as_numpy(groups, "groups"))
    if groups.ndim != 1 or len(groups) != len(X):
        raise ValueError(
            f"groups has shape {groups.shape}, but X has {len(X)} rows: pass one label "
            "per row, an array of shape (n_samples,)."
        )
    labels = groups.astype(object)
    missing = np.flatnonzero([x is None or bool(x != x) for x in labels])  # NaN, NaT
    if len(missing):
        raise ValueError(
            f"groups[{missing[0]}] is {labels[missing[0]]!r}, which is no label: give "
            "a row without relatives a group of its own."
        )
    try:
        return np.unique(groups, return_inverse=True)[1].ravel()
    except TypeError as error:  # labels of several types have no order
        raise ValueError(
            f"groups has labels that cannot be compared ({error}): pass integers or "
            "strings."
        ) from error


def check_relatives(images, groups):
    """Refuse a single group, and warn of near-duplicates that are in no groups."""
    if groups is None:
        share = near_duplicate_share(images)
        if share >= _NEAR_DUPLICATES:
            warn_caller(
                f"{share:.0%} of the rows of X have a near-duplicate among the others, "
                "so that errors of left-out rows look too small, and ridge, bandwidth "
                "and round are chosen badly: pass groups to fit, one label per row "
                "that near-duplicates share, or groups=range(len(X)) if there are no "
                "related rows.",
            )
    elif len(np.unique(groups)) < 2:
        raise ValueError(
            "groups has only one group, of rows with a positive weight, where groups "
            "with copies of one image count as one: at least 2 are needed, of which "
            "one can be left out; leave groups=None if the rows are not related."
        )


def as_numbers(values, name):
    """Return real numbers as an array; refuse what numpy would make into numbers."""
    array = np.asarray(as_numpy(values, name))
    objects = array.flat if array.dtype == "O" else ()
    texts = any(isinstance(one, str | bytes) for one in objects)
    if array.dtype.kind in "MmSUV" or texts:
        raise ValueError(
            f"{name} has dtype {array.dtype}, which is not of real numbers: convert "
            f"{name}, dates and spans of time in a unit of your choice."
        )
    return array


def check_ridges(alpha):
    """Return the ridges as an array of positive numbers, or raise ValueError."""
    try:
        numbers = as_numbers(alpha, "alpha")
        alphas = np.atleast_1d(numbers).astype(np.float64, casting="same_kind")
    except (TypeError, ValueError) as error:
        raise ValueError(f"alpha={alpha!r} is not made of numbers.") from error
    if alphas.ndim != 1 or not len(alphas) or not (0 < alphas).all():
        raise ValueError(
            f"alpha={alpha!r} is neither a positive float nor a non-empty "
            "sequence of positive floats."
        )
    if not np.isfinite(alphas).all():
        raise ValueError(f"alpha={alpha!r} is not finite.")
    return alphas


class ImageInput(BaseEstimator):
    """Base of estimators of images, with image_shape and channels as parameters."""

    _parameter_constraints: dict = {
        "image_shape": [tuple, list, None],
        "channels": [StrOptions({"last", "first"})],
    }

    def __getstate__(self):
        return super().__getstate__() | {"_format": _FORMAT}

    def __setstate__(self, state):
        name, found = type(self).__name__, state.get("_format", 1)
        if type(found) is not int or found != _FORMAT:
            raise ValueError(
                f"this {name} was saved in format {found} by another version of "
                f"skconvrfm, and this one knows {_FORMAT}: use that one, or fit and "
                "save the estimator with this one."
            )
        super().__setstate__({k: v for k, v in state.items() if k != "_format"})
        # Those of scikit-learn may be there before the end of a fit, of which callbacks
        # take copies.
        if fitted_attributes(self).keys() - _OF_SKLEARN:
            try:
                self._check_fitted()
            except (AttributeError, TypeError) as error:
                raise ValueError(
                    f"this {name} was saved incompletely, or changed since ({error}): "
                    "fit and save it again."
                ) from error

    @summed_quietly
    def _validate_fit(self, X, y, reset=True):
        """Return X flat, y, and the shape of an image; ``reset`` begins anew."""
        image_shape, channels = self._image_parameters()
        X, y = read_pairs(X, y)
        X, shape = self._flatten(X, channels)
        if image_shape is None and shape is not None:
            _check_layout(shape, channels)
        options = {"multi_output": True, "y_numeric": False}
        checks = {"reset": reset, "ensure_min_samples": 2 if reset else 1}
        y = as_numpy(y, "y")
        if isinstance(X, StoredRows):
            y = validate_data(self, y=y, **options)
            check_consistent_length(X, y)
            self._check_stored(X, **checks)
        else:
            X, y = validate_data(self, X, y, dtype="numeric", **checks, **options)
            X = as_numbers(X, "X")
        resolved = _resolve_image_shape(image_shape, X.shape[1], shape)
        if reset and image_shape is None and shape is None and resolved[0] > 1:
            height, width = resolved[:2]
            warn_caller(
                f"X has flat rows of {height * width} columns, which are read as "
                f"square images: pass image_shape=({height}, {width}) if they are, or "
                f"image_shape=(1, {height * width}) for rows that are not images.",
            )
        return X, self._check_y(y), resolved

    @summed_quietly
    def _check_stored(self, X, reset, **options):
        """Have scikit-learn check stored rows block by block; nothing is kept."""
        if X.dtype.kind not in "biuf":
            raise ValueError(
                f"X is stored as {X.dtype}, but images are made of real numbers: store "
                "them in a dtype such as uint8 or float32."
            )
        blocks = byte_blocks(X, SCANNED_BYTES)
        # What is not floating is finite: the first block tells all.
        for block in blocks if X.dtype.kind == "f" else blocks[:1]:
            block = np.asarray(X[block])
            validate_data(self, block, dtype="numeric", reset=reset, **options)
            reset, options = False, {}

    def _image_parameters(self):
        """Return image_shape and channels of a fit, also of one without them."""
        return self.image_shape, self.channels

    def _check_y(self, y):
        """Return the targets, checked; here as they are."""
        return y

    def _flatten(self, X, channels):
        """Return images as flat rows, and the shape (h, w, c) that they had, if any."""
        X = read_images(X)
        stored = stored_rows(X)
        if stored is not None:
            return stored, _seen_shape(X.shape, channels)
        X = as_numpy(X, "X")
        X = stacked(X)
        ndim = getattr(X, "ndim", 2)
        if ndim not in (3, 4):
            return X, None
        X = np.asarray(X)
        shape = _seen_shape(X.shape, channels)
        return X.reshape(len(X), np.prod(shape, dtype=int)), shape

    @summed_quietly
    def _check_images(self, X):
        """Return X for a fitted estimator, as images of shape (n, h, w, c)."""
        check_is_fitted(self)
        X, shape = self._flatten(X, self.channels_)
        if shape is not None and shape != self.image_shape_:
            raise ValueError(
                f"X has images of shape {shape}, but {type(self).__name__} was fitted "
                f"on images of shape {self.image_shape_}."
            )
        if isinstance(X, StoredRows):
            self._check_stored(X, reset=False)
        else:
            X = as_numbers(validate_data(self, X, dtype="numeric", reset=False), "X")
        return as_images(X, self.image_shape_, self.channels_, self.scale_)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        tags.input_tags.three_d_array = True
        return tags


def _resolve_image_shape(image_shape, width, seen):
    """Return the shape (h, w, c) from image_shape, the array, or the width of a row."""
    if image_shape is not None:
        shape = tuple(image_shape)
        positive = all(isinstance(size, Integral) and size > 0 for size in shape)
        if len(shape) not in (2, 3) or not positive:
            raise ValueError(
                f"image_shape={image_shape!r} is neither (rows, columns) nor "
                "(rows, columns, channels) in positive integers."
            )
        shape = tuple(map(int, (*shape, 1)[:3]))
        if seen is not None and seen != shape:
            raise ValueError(
                f"image_shape={image_shape!r} does not match X, whose images "
                f"have shape {seen}; leave image_shape=None to take it from X."
            )
        if np.prod(shape) != width:
            raise ValueError(
                f"image_shape={image_shape!r} has {np.prod(shape)} pixels, "
                f"but X has {width} features per row; they must agree."
            )
        return shape
    if seen is not None:
        return seen
    side = round(np.sqrt(width))
    if side**2 == width and side >= _SMALLEST_SQUARE_SIDE:
        return (side, side, 1)
    side = round(np.sqrt(width / 3))
    if 3 * side**2 == width and side >= _SMALLEST_COLOUR_SIDE:
        raise ValueError(
            f"X has {width} features per row, which may be colour images: pass "
            f"image_shape=({side}, {side}, 3), or image_shape=(1, {width}) for "
            "rows that are not images."
        )
    return (1, width, 1)


def _seen_shape(shape, channels):
    """Return the shape (h, w, c) of the images in an array of this shape, or None."""
    if len(shape) == 3:
        return (*shape[1:], 1)
    if len(shape) == 4 and channels == "first":
        return (*shape[2:], shape[1])
    return tuple(shape[1:]) if len(shape) == 4 else None


def _is_other_layout(axes):
    """Return True if the first of three axes is probably that of the channels."""
    return axes[0] in _CHANNEL_COUNTS and min(axes[1:]) > max(_CHANNEL_COUNTS)


def _check_layout(shape, channels):
    """Refuse images (h, w, c) that are probably laid out the other way."""
    first = channels == "first"
    height, width, depth = shape
    axes = (depth, height, width) if first else shape
    if _is_other_layout(axes[::-1] if first else axes):
        seen, other = ("(n, c, h, w)", "(n, h, w, c)")[:: 1 if first else -1]
        raise ValueError(
            f"X of shape (n, {', '.join(map(str, axes))}) is read as {seen}, but looks "
            f"like {other}: pass channels={'last' if first else 'first'!r}, or "
            f"image_shape={shape} if it is meant."
        )


def all_or_nothing(method: Function) -> Function:
    """Let a method of an estimator that fails, or is interrupted, change nothing."""

    # Outside of scikit-learn's _fit_context, whose callbacks may fail as well.
    @functools.wraps(method)
    def call(self, *args, **kwargs):
        before = fitted_attributes(self)
        try:
            with plain_torch():
                return method(self, *args, **kwargs)
        except BaseException as error:
            for name in fitted_attributes(self):
                delattr(self, name)
            vars(self).update(before)
            explained = _explained(self, error)
            if explained is None:
                raise
            raise explained from error

    return cast(Function, call)


def _explained(estimator, error):
    """Return an error of torch with a remedy; None for any other error."""
    name, what = type(estimator).__name__, str(error).strip().partition("\n")[0]
    # The tiles' own errors, and numpy's, are of this type and say enough.
    if is_out_of_memory(error) and not isinstance(error, MemoryError):
        return MemoryError(
            f"{name} ran out of memory beyond its tiles, which working_memory bounds: "
            f"{what}. The ridge needs matrices of rows × rows, or of features × "
            "features: take fewer of them, or another device; without rows × rows: "
            "kernel='linear' with features=ConvFeatures()."
        )
    if isinstance(error, RuntimeError) and "CUDA error" in what:
        return RuntimeError(
            f"device={estimator.device!r} failed, and {name} is as it was: {what}. "
            "CUDA is not usable in this process any more: start another one, or pass "
            "device='cpu'."
        )
    return None


def fitted_attributes(estimator):
    """Return the fitted attributes of an estimator, by name."""
    own = vars(estimator).items()
    return {k: v for k, v in own if k.endswith("_") and not k.startswith("_")}

"""What all estimators share: the parameters of the learning, and how images come in."""

from __future__ import annotations

import functools
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from numbers import Integral, Real
from os import PathLike
from typing import Literal, cast, get_args, get_type_hints

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator
from sklearn.utils import Bunch
from sklearn.utils._param_validation import Interval, RealNotInt, StrOptions
from sklearn.utils.validation import (
    check_consistent_length,
    check_is_fitted,
    validate_data,
)

from ._typing import (
    Activation,
    Channels,
    Device,
    Dtype,
    File,
    Filters,
    Function,
    ImageShape,
    Kernel,
    Method,
    Padding,
    Pair,
    RandomState,
    Selection,
)
from .core.blocks import SCANNED_BYTES, byte_blocks, is_out_of_memory
from .core.checkpoint import ON_ERROR
from .core.convolutional import KINDS
from .core.features import ACTIVATIONS
from .core.filters import KINDS as FILTER_KINDS
from .core.filters import FilterBank
from .core.images import as_images
from .core.radial import RADIAL_KINDS
from .core.rounds import SELECTIONS
from .core.stored import StoredRows, is_stored
from .core.stream import Stream
from .kernels import KERNEL_CONSTRAINTS, as_numpy, summed_quietly

# Ridges in units of the largest diagonal entry of the kernel: half decades from
# nearly interpolating to the mean of a thousand rows.
DEFAULT_ALPHAS = tuple(
    float(f"{digit}e{exponent}") for exponent in range(-6, 2) for digit in (1, 3)
) + (100.0,)

# Enough for the windows of 3×3 patches to overlap twice; deeper costs more.
DEFAULT_DEPTH = 3

# Widths from which rows of 3·k² columns look like colour images: 3·8·8.
_SMALLEST_COLOUR_SIDE = 8
# Widths from which a flat row of k² columns is taken for a square image.
_SMALLEST_SQUARE_SIDE = 4

# Of the layout of saved estimators; a later one is refused.
STATE_FORMAT = 1
# Fitted attributes that are more than arrays, numbers and text: what they are made of.
_STRUCTURES = {"layers_": Bunch, "filter_bank_": FilterBank, "stream_": Stream}


class BaseConvRFM(BaseEstimator):
    """Parameters of a learned patch metric, and images as scikit-learn passes them."""

    _parameter_constraints: dict = {
        "image_shape": [tuple, list, None],
        "channels": [StrOptions({"last", "first"})],
        "kernel": [StrOptions({*KINDS, *RADIAL_KINDS})],
        **KERNEL_CONSTRAINTS,
        "method": [StrOptions({"auto", "exact", "features"})],
        "n_filters": [StrOptions({"auto"}), Interval(Integral, 1, None, closed="left")],
        "filters": [StrOptions(set(FILTER_KINDS))],
        "initial_metric": [StrOptions({"identity", "whiten"})],
        "activation": [StrOptions(set(ACTIVATIONS))],
        "threshold": [Interval(Real, None, None, closed="neither")],
        "antithetic": ["boolean"],
        "pool_power": [Interval(Real, 0, 1, closed="right")],
        "n_rounds": [Interval(Integral, 0, None, closed="left")],
        "agop_power": [Interval(Real, 0, None, closed="neither")],
        "agop_samples": [
            StrOptions({"auto"}),
            Interval(Integral, 1, None, closed="left"),
            Interval(RealNotInt, 0, 1, closed="right"),
            None,
        ],
        "alpha": [Interval(Real, 0, None, closed="neither"), "array-like"],
        "selection": [StrOptions(set(SELECTIONS))],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
        "checkpoint": [str, PathLike, None],
        "checkpoint_on_error": [StrOptions(set(ON_ERROR))],
    }

    def __init__(
        self,
        *,
        image_shape: ImageShape = None,
        channels: Channels = "last",
        kernel: Kernel = "ntk",
        depth: int = 3,
        patch_size: Pair = 3,
        padding: Padding = "valid",
        bias: float = 0.3,
        bandwidth: float | Literal["auto"] = "auto",
        method: Method = "auto",
        n_filters: int | Literal["auto"] = "auto",
        filters: Filters = "patches",
        initial_metric: Literal["identity", "whiten"] = "whiten",
        activation: Activation = "relu",
        threshold: float = 0.5,
        antithetic: bool = False,
        pool_power: float = 0.5,
        n_rounds: int = 4,
        agop_power: float = 0.5,
        agop_samples: float | Literal["auto"] | None = "auto",
        alpha: ArrayLike = DEFAULT_ALPHAS,
        selection: Selection = "gcv",
        device: Device = "auto",
        dtype: Dtype = "auto",
        n_jobs: int | None = None,
        random_state: RandomState = None,
        verbose: int = 0,
        checkpoint: File | None = None,
        checkpoint_on_error: Literal["raise", "restart"] = "raise",
    ) -> None:
        self.image_shape = image_shape
        self.channels = channels
        self.kernel = kernel
        self.depth = depth
        self.patch_size = patch_size
        self.padding = padding
        self.bias = bias
        self.bandwidth = bandwidth
        self.method = method
        self.n_filters = n_filters
        self.filters = filters
        self.initial_metric = initial_metric
        self.activation = activation
        self.threshold = threshold
        self.antithetic = antithetic
        self.pool_power = pool_power
        self.n_rounds = n_rounds
        self.agop_power = agop_power
        self.agop_samples = agop_samples
        self.alpha = alpha
        self.selection = selection
        self.device = device
        self.dtype = dtype
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose
        self.checkpoint = checkpoint
        self.checkpoint_on_error = checkpoint_on_error

    @summed_quietly
    def _validate_fit(self, X, y, reset=True):
        """X flat, y, and the shape of an image; ``reset`` begins anew."""
        X, shape = self._flatten(X)
        options = {"multi_output": True, "y_numeric": False}
        checks = {"reset": reset, "ensure_min_samples": 2 if reset else 1}
        y = as_numpy(y, "y")
        if isinstance(X, StoredRows):
            y = validate_data(self, y=y, **options)
            check_consistent_length(X, y)
            self._check_stored(X, **checks)
        else:
            X, y = validate_data(self, X, y, dtype="numeric", **checks, **options)
        return X, self._check_y(y), self._resolve_image_shape(X.shape[1], shape)

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

    def _check_y(self, y):
        """The targets, checked; here as they are."""
        return y

    def _flatten(self, X):
        """Images as flat rows, and the shape (h, w, c) that they had, if any."""
        X = as_numpy(X, "X")
        if is_stored(X):
            return StoredRows.of(X), self._seen_shape(X.shape)
        if getattr(X, "ndim", None) is None and not hasattr(X, "dtypes"):
            X = _nested_images(X)
        ndim = getattr(X, "ndim", 2)
        if ndim not in (3, 4):
            return X, None
        X = np.asarray(X)
        shape = self._seen_shape(X.shape)
        return X.reshape(len(X), np.prod(shape, dtype=int)), shape

    def _seen_shape(self, shape):
        """The shape (h, w, c) of the images in an array of this shape, if it tells."""
        if len(shape) == 3:
            return (*shape[1:], 1)
        if len(shape) == 4 and self.channels == "first":
            return (*shape[2:], shape[1])
        return tuple(shape[1:]) if len(shape) == 4 else None

    def _resolve_image_shape(self, width, seen):
        """The shape (h, w, c) from image_shape, the array, or the width of a row."""
        if self.image_shape is not None:
            shape = tuple(self.image_shape)
            positive = all(isinstance(size, Integral) and size > 0 for size in shape)
            if len(shape) not in (2, 3) or not positive:
                raise ValueError(
                    f"image_shape={self.image_shape!r} is neither (rows, columns) nor "
                    "(rows, columns, channels) in positive integers."
                )
            shape = tuple(map(int, (*shape, 1)[:3]))
            if seen is not None and seen != shape:
                raise ValueError(
                    f"image_shape={self.image_shape!r} does not match X, whose images "
                    f"have shape {seen}; leave image_shape=None to take it from X."
                )
            if np.prod(shape) != width:
                raise ValueError(
                    f"image_shape={self.image_shape!r} has {np.prod(shape)} pixels, "
                    f"but X has {width} features a row; they must agree."
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
                f"X has {width} features a row, which may be colour images: pass "
                f"image_shape=({side}, {side}, 3), or image_shape=(1, {width}) for "
                "rows that are not images."
            )
        return (1, width, 1)

    @summed_quietly
    def _check_images(self, X):
        """X for a fitted estimator, as images of shape (n, h, w, c)."""
        check_is_fitted(self)
        X, shape = self._flatten(X)
        if shape is not None and shape != self.image_shape_:
            raise ValueError(
                f"X has images of shape {shape}, but {type(self).__name__} was fitted "
                f"on images of shape {self.image_shape_}."
            )
        if isinstance(X, StoredRows):
            self._check_stored(X, reset=False)
        else:
            X = validate_data(self, X, dtype="numeric", reset=False)
        return as_images(X, self.image_shape_, self.channels)

    def __getstate__(self):
        """The attributes as they are saved: a file names no class but this one."""
        state = dict(super().__getstate__())
        plain = {name: _as_plain(state[name]) for name in _STRUCTURES if name in state}
        return state | plain | {"_format": STATE_FORMAT}

    def __setstate__(self, state):
        state = dict(state)
        found = state.pop("_format", 0)
        if found > STATE_FORMAT:
            raise ValueError(
                f"this {type(self).__name__} was saved in format {found} by a later "
                f"version of skconvrfm, and this one knows {STATE_FORMAT}: update "
                "skconvrfm, or fit and save the estimator with this version."
            )
        for name, structure in _STRUCTURES.items():
            if name in state:
                state[name] = _from_plain(structure, state[name])
        super().__setstate__(state)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        tags.input_tags.three_d_array = True
        return tags


def _nested_images(X):
    """Lists of images as an array; anything else as it is."""
    try:
        array = np.asarray(X)
    except ValueError:  # ragged: validate_data has the better words
        return X
    return array if array.ndim in (3, 4) else X


def _as_plain(value):
    """A value with dicts in the place of dataclasses and bunches."""
    if is_dataclass(value):
        value = {field.name: getattr(value, field.name) for field in fields(value)}
    if isinstance(value, dict):
        return {name: _as_plain(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_as_plain(item) for item in value]
    return value


def _from_plain(structure, value):
    """The inverse: a bunch or dataclass, or a list of them, of dicts."""
    if isinstance(value, list):
        return [_from_plain(structure, item) for item in value]
    if structure is Bunch:
        return Bunch(**value)
    # What may be None is a union.
    structures = filter(is_dataclass, get_args(structure) or [structure])
    structure = next(structures, None)
    if structure is None or value is None:
        return value
    parts = get_type_hints(structure)
    return structure(
        **{name: _from_plain(parts[name], item) for name, item in value.items()}
    )


def all_or_nothing(method: Function) -> Function:
    """Let a method of an estimator that fails, or is interrupted, change nothing.

    Outside of scikit-learn's `_fit_context`, whose callbacks may fail as well.
    """

    @functools.wraps(method)
    def call(self, *args, **kwargs):
        with _unchanged_on_failure(self):
            return method(self, *args, **kwargs)

    return cast(Function, call)


@contextmanager
def _unchanged_on_failure(estimator):
    """Put the fitted attributes back if the fit does not come to its end."""
    before = fitted_attributes(estimator)
    try:
        yield
    except BaseException as error:
        for name in fitted_attributes(estimator):
            delattr(estimator, name)
        vars(estimator).update(before)
        explained = _explained(estimator, error)
        if explained is None:
            raise
        raise explained from error


def _explained(estimator, error):
    """An error of torch in words that say what to do; None for any other error."""
    name, what = type(estimator).__name__, str(error).strip().partition("\n")[0]
    # The tiles' own errors, and numpy's, are of this type and say enough.
    if is_out_of_memory(error) and not isinstance(error, MemoryError):
        return MemoryError(
            f"{name} ran out of memory beyond its tiles, which working_memory bounds: "
            f"{what}. The ridge needs matrices of rows × rows, or of features × "
            "features: take fewer of them, method='features', or another device."
        )
    if isinstance(error, RuntimeError) and "CUDA error" in what:
        return RuntimeError(
            f"device={estimator.device!r} failed, and {name} is as it was: {what}. "
            "CUDA is not usable in this process any more: start another one, or pass "
            "device='cpu'."
        )
    return None


def fitted_attributes(estimator):
    """The fitted attributes of an estimator, by name."""
    return {
        name: value
        for name, value in vars(estimator).items()
        if name.endswith("_") and not name.startswith("_")
    }

"""Checks of fitted attributes, which users and files may have changed."""

import math
from numbers import Integral, Real

import numpy as np

from ..features.skips import fitted_scales, kernel_features
from ..kernels.whole import WholeKernel

_REMEDY = "fit the estimator again"


def check_layers(kernel, features, image_shape):
    """Return the shape of the maps that a fitted kernel sees above fitted layers.

    Refuse what does not fit the images, or one another.
    """
    shape = tuple(image_shape)
    for index, layer in enumerate(features):
        name = f"features_[{index}]"
        _check_image_shape(name, layer, shape)
        d = shape[2] * math.prod(layer.patch_shape_)
        filters = check_numbers(f"{name}.filters_", layer.filters_, (None, d))
        for array in ("biases_", "offsets_"):
            check_numbers(f"{name}.{array}", getattr(layer, array), (len(filters),))
        if layer.skip_scale_ is not None:
            check_positive(f"{name}.skip_scale_", layer.skip_scale_)
        shape = layer.maps_.shape
    if isinstance(kernel, WholeKernel):
        maps = [layer.maps_ for layer in features]
        top, _ = kernel_features(maps, fitted_scales(features), image_shape)
        shape = top.shape
    _check_image_shape("kernel_", kernel, shape)
    if hasattr(kernel, "bandwidth_"):
        check_positive("kernel_.bandwidth_", kernel.bandwidth_)
    return shape


def as_matrix(name, coef, n_rows, output_shape):
    """Return coefficients as a matrix with a column per output, or raise ValueError."""
    coef = check_numbers(name, coef, (n_rows, *output_shape))
    return coef.astype(np.float64).reshape(n_rows, -1)


def check_numbers(name, array, shape):
    """Return an array of finite real numbers of a shape; None is any size from 1."""
    real = isinstance(array, np.ndarray) and array.dtype.kind in "biuf"
    pairs = zip(np.shape(array), shape, strict=False)
    fits = [size == wanted or (wanted is None and size) for size, wanted in pairs]
    if not (real and array.ndim == len(shape) and all(fits)):
        found = f"shape {array.shape}" if real else f"type {type(array).__name__}"
        sizes = ", ".join("n" if size is None else str(size) for size in shape)
        raise ValueError(
            f"{name} has {found}, but real numbers of shape ({sizes}) are needed; "
            f"{_REMEDY}."
        )
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"{name} has values that are not finite; {_REMEDY}.")
    return array


def check_positive(name, number):
    """Refuse what is not a positive number, naming the attribute."""
    if not (isinstance(number, Real) and 0 < number < math.inf):
        raise ValueError(f"{name}={number!r} is not a positive number; {_REMEDY}.")


def check_not_negative(name, number):
    """Refuse what is a negative number, or none, naming the attribute."""
    if not (isinstance(number, Real) and 0 <= number < math.inf):
        raise ValueError(f"{name}={number!r} is not a number from 0 on; {_REMEDY}.")


def _check_image_shape(name, part, shape):
    """Refuse a fitted layer or kernel of images of another shape."""
    found = tuple(part.image_shape_)
    if found != shape or not all(isinstance(size, Integral) for size in found):
        raise ValueError(
            f"{name}.image_shape_ is {found}, but it sees images of shape {shape}; "
            f"{_REMEDY}."
        )

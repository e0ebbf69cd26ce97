"""The parameter `scale` of kernels and feature layers: what images are divided by."""

from __future__ import annotations

from numbers import Real

import numpy as np

from ._sklearn_compat import Interval, StrOptions
from .compute.blocks import SCANNED_BYTES, byte_blocks

SCALE_CONSTRAINTS = {
    "scale": [StrOptions({"auto"}), Interval(Real, 1e-12, 1e12, closed="both")]
}
SCALE_PARAMETER = """scale : float or "auto", default="auto"
        Number that images are divided by, 1 for images as they are. ``"auto"`` is 255
        for images whose values are all from 0 to 255, some beyond 1.5, as those of
        uint8 images, and 1 for others: images in [0, 1], with negative values, or of
        one row of pixels. A fit decides on its training images, and keeps the number as
        ``scale_`` of the estimator."""

_EIGHT_BITS = 255.0
_BEYOND_UNIT = 1.5  # images in [0, 1] may have some noise


def resolve_scale(scale, image_shape, *arrays):
    """Return what images are divided by, from the parameter and all of their arrays."""
    if scale != "auto":
        return float(scale)
    if image_shape[0] == 1:  # rows that are not images
        return 1.0
    return _EIGHT_BITS if _have_eight_bits(arrays) else 1.0


def _have_eight_bits(arrays):
    """Return True if all values are from 0 to 255, and some beyond 1.5."""
    found = False
    for array in arrays:
        for part in byte_blocks(array, SCANNED_BYTES):
            block = np.asarray(array[part])
            largest = block.max()
            if largest > _EIGHT_BITS or block.min() < 0:
                return False
            found = found or largest > _BEYOND_UNIT
    return found

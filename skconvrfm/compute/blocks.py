"""Blocks of images: slices of bounded size, and scans over stored values."""

import math

import numpy as np

# In float32, values up to this have squares that can be added up over the patches of
# ten layers, and values from its inverse on have squares that keep all digits.
_LARGEST_SQUARED = 1e12
# Bytes of stored images that are read at once to be looked at.
SCANNED_BYTES = 2**24
_MIRRORED_ROWS = 512  # of a matrix at once


def balanced_blocks(images, largest, multiple=1):
    """Cut a slice of images into slices of at most ``largest``, equal but for one.

    All but the last have a multiple of images, unless that is more than the largest.
    """
    n, unit = images.stop - images.start, multiple if multiple <= largest else 1
    n_units = -(-n // unit)
    count = max(1, -(-n_units // max(1, largest // unit)))
    ends = [min(n, unit * (n_units * i // count)) for i in range(count + 1)]
    return [
        slice(images.start + a, images.start + b)
        for a, b in zip(ends, ends[1:], strict=False)
    ]


def image_blocks(images, largest):
    """Return slices of all images, of at most ``largest`` images each."""
    return balanced_blocks(slice(0, len(images)), largest)


def byte_blocks(rows, n_bytes):
    """Return slices of all rows of an array, of so many bytes or one row each."""
    row_bytes = rows.dtype.itemsize * math.prod(rows.shape[1:])
    return image_blocks(rows, n_bytes // max(1, row_bytes))


def mirror_upper(matrix):
    """Copy the upper triangle of a square array to the lower one, in its place."""
    for part in image_blocks(matrix, _MIRRORED_ROWS):
        square = matrix[part, part]
        square[...] = np.triu(square) + np.triu(square, 1).T
        matrix[part.stop :, part] = matrix[part, part.stop :].T


def squares_fit_float32(images):
    """Return True if float32 can compute with the squares of some finite images."""
    if images.dtype.kind != "f" or images.dtype.itemsize < 4:
        return True  # there are no such values
    size = largest_value(images)
    return size == 0 or 1 / _LARGEST_SQUARED <= size <= _LARGEST_SQUARED


def largest_value(*arrays):
    """Return the largest absolute value in arrays, or in the pixels of feature maps."""
    largest = 0.0
    for array in arrays:
        array = getattr(array, "pixels", array)
        for part in byte_blocks(array, SCANNED_BYTES):
            block = np.asarray(array[part])
            largest = max(largest, float(block.max()), -float(block.min()))
    return largest

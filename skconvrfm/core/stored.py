"""Images that stay where they are, in a file, and are read a block at a time.

What stands for them knows their shape and dtype, gives out smaller parts of itself, and
reads when numpy asks it for an array; sent to a worker, it is a reference to the file.
"""

import math
import os
from dataclasses import dataclass, replace

import numpy as np

from .images import as_images

# Rows between two wanted ones that are read with them: one read costs more.
_READ_AHEAD = 8


def is_stored(X):
    """Whether X is an array that lives elsewhere than in memory.

    A numpy memmap, a dataset of h5py or zarr, and whatever else has a shape and a
    dtype, gives an array for a slice, and follows no protocol of arrays in memory.
    """
    if isinstance(X, StoredRows):
        return True
    if isinstance(X, np.ndarray):
        return isinstance(X, np.memmap) and X.ndim > 1 and bool(_MappedFile.of(X))
    sliced = all(hasattr(X, name) for name in ("shape", "dtype", "__getitem__"))
    in_memory = ("__dlpack__", "__array_namespace__", "iloc", "tocsr")
    return (
        sliced
        and hasattr(X, "__array__")
        and not any(hasattr(X, name) for name in in_memory)
        and len(X.shape) > 1
    )


@dataclass(frozen=True, eq=False)
class StoredRows:
    """Rows of pixels of stored images; an array of shape (n, width) that is read late.

    Attributes
    ----------
    source : object
        What can be sliced along the images, in any number of dimensions.
    rows : slice or ndarray of int
        The images that are meant.
    """

    source: object
    rows: slice | np.ndarray

    @classmethod
    def of(cls, X):
        """All rows of a stored array."""
        if isinstance(X, cls):
            return X
        return cls(_reference(X), slice(0, X.shape[0]))

    def __len__(self):
        if isinstance(self.rows, slice):
            return self.rows.stop - self.rows.start
        return len(self.rows)

    @property
    def shape(self):
        """Images, and pixels of each."""
        return len(self), math.prod(self.source.shape[1:])

    @property
    def dtype(self):
        """The dtype of the pixels."""
        return np.dtype(self.source.dtype)

    def __getitem__(self, index):
        """Some of the rows, by a slice or an array of integers; not read yet."""
        if not isinstance(self.rows, slice):
            return replace(self, rows=self.rows[index])
        start = self.rows.start
        if isinstance(index, slice):
            first, last, _ = index.indices(len(self))
            return replace(self, rows=slice(start + first, start + max(first, last)))
        return replace(self, rows=start + np.asarray(index))

    def __array__(self, dtype=None, copy=None):
        """Read the rows."""
        block = _read(self.source, self.rows).reshape(self.shape)
        return block if dtype is None else block.astype(dtype, copy=False)

    def images(self, image_shape, channels):
        """The same rows as `StoredImages`."""
        return StoredImages(self, image_shape, channels)


@dataclass(frozen=True, eq=False)
class StoredImages:
    """Stored rows as images; an array of shape (n, h, w, c) that is read late.

    Attributes
    ----------
    stored : StoredRows
        The rows.
    image_shape : tuple of int
        Rows, columns and channels of an image.
    channels : {"last", "first"}
        How the pixels of a row are laid out.
    """

    stored: StoredRows
    image_shape: tuple[int, int, int]
    channels: str

    def __len__(self):
        return len(self.stored)

    @property
    def shape(self):
        """Images, rows, columns and channels."""
        return (len(self), *self.image_shape)

    @property
    def dtype(self):
        """The dtype of the pixels."""
        return self.stored.dtype

    def __getitem__(self, index):
        """Some of the images, by a slice or an array of integers; not read yet."""
        return replace(self, stored=self.stored[index])

    def __array__(self, dtype=None, copy=None):
        """Read the images."""
        rows = self.stored.__array__(dtype)
        return as_images(rows, self.image_shape, self.channels)


def _read(source, rows):
    """Rows of a source as an array in memory, in their order, by few slices."""
    if isinstance(rows, slice):
        return np.asarray(source[rows])
    wanted, order = np.unique(rows, return_inverse=True)
    breaks = np.flatnonzero(np.diff(wanted) > _READ_AHEAD) + 1
    parts = [
        np.asarray(source[run[0] : run[-1] + 1])[run - run[0]]
        for run in np.split(wanted, breaks)
        if len(run)
    ]
    empty = np.empty((0, *source.shape[1:]), source.dtype)
    return np.concatenate(parts or [empty])[order.ravel()]


def _reference(X):
    """A picklable source for a stored array, itself where it is one."""
    if isinstance(X, np.memmap):
        return _MappedFile.of(X)
    if type(X).__module__.partition(".")[0] == "h5py":
        return _Dataset(X)
    return X


@dataclass(frozen=True, eq=False)
class _MappedFile:
    """The array behind a memmap, read from its file.

    Pages of a map, once they have been looked at, count as memory of this process.
    """

    path: str
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]

    @classmethod
    def of(cls, array):
        """The file behind a memmap; None where that holds it otherwise."""
        root = array
        while isinstance(root.base, np.memmap):
            root = root.base
        mapped = root._mmap is not None and root.filename is not None
        if not mapped or root.mode == "c" or not array.flags.c_contiguous:
            return None
        shift = array.ctypes.data - root.ctypes.data
        path = os.path.abspath(root.filename)
        return cls(path, array.dtype, root.offset + shift, array.shape)

    def __getitem__(self, rows):
        width = math.prod(self.shape[1:])
        count = (rows.stop - rows.start) * width
        offset = self.offset + rows.start * width * self.dtype.itemsize
        block = np.fromfile(self.path, self.dtype, count, offset=offset)
        if len(block) < count:
            raise ValueError(
                f"X is mapped from {self.path!r}, which has become too short to hold "
                f"its {self.shape[0]} images; write it again."
            )
        return block.reshape(-1, *self.shape[1:])


class _Dataset:
    """A dataset of an HDF5 file; a worker opens the file anew."""

    def __init__(self, dataset):
        self._dataset = dataset
        self.shape, self.dtype = dataset.shape, dataset.dtype

    def __getitem__(self, rows):
        return self._dataset[rows]

    def __reduce__(self):
        path = os.path.abspath(self._dataset.file.filename)
        return _open_dataset, (path, self._dataset.name)


def _open_dataset(path, name):
    """The dataset of a file that stays open as long as the dataset is in use."""
    import h5py

    return _Dataset(h5py.File(path, "r")[name])

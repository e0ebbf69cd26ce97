"""Images that stay in a file and are read a block at a time.

Their stand-ins know shape and dtype, give out smaller parts of themselves, and read
when numpy asks them for an array; sent to a worker, they are references to the file.
"""

import math
import os
from dataclasses import dataclass, replace

import numpy as np

from .images import as_images

# Rows between two wanted ones that are read with them: one read costs more.
_READ_AHEAD = 8


def is_stored(X):
    """Return True if X is an array that is not in memory.

    A numpy memmap, a dataset of h5py or zarr, or an object alike.
    """
    if isinstance(X, StoredRows):
        return True
    if isinstance(X, np.ndarray):
        return isinstance(X, np.memmap) and X.ndim > 1 and bool(_MappedFile.of(X))
    needed = {"shape", "dtype", "__getitem__", "__array__"}
    in_memory = {"__dlpack__", "__array_namespace__", "iloc", "tocsr"}
    found = {name for name in needed | in_memory if hasattr(X, name)}
    return found == needed and len(X.shape) > 1


@dataclass(frozen=True, eq=False)
class StoredRows:
    """Pixels of stored images; an array of shape (n, width) that is read late."""

    source: object  # can be sliced along the images
    rows: range | np.ndarray  # the images

    @classmethod
    def of(cls, X):
        """Return all rows of a stored array."""
        return X if isinstance(X, cls) else cls(_reference(X), range(X.shape[0]))

    def __len__(self):
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
        """Return some rows, by a slice or an array of integers; not read yet."""
        if isinstance(index, slice) or not isinstance(self.rows, range):
            return replace(self, rows=self.rows[index])
        return replace(self, rows=self.rows.start + np.asarray(index))

    def __array__(self, dtype=None, copy=None):
        """Read the rows."""
        block = _read(self.source, self.rows).reshape(self.shape)
        return block if dtype is None else block.astype(dtype, copy=False)

    def images(self, image_shape, channels):
        """Return the rows as `StoredImages`."""
        return StoredImages(self.source, self.rows, image_shape, channels)


@dataclass(frozen=True, eq=False)
class StoredImages(StoredRows):
    """Stored rows as images; an array of shape (n, h, w, c) that is read late."""

    image_shape: tuple[int, int, int]
    channels: str  # "last" or "first" in a row

    @property
    def shape(self):
        """Images, rows, columns and channels."""
        return (len(self), *self.image_shape)

    def __array__(self, dtype=None, copy=None):
        """Read the images."""
        return as_images(super().__array__(dtype), self.image_shape, self.channels)


def _read(source, rows):
    """Return rows of a source as an array in memory, in their order, by few slices."""
    if isinstance(rows, range):
        return np.asarray(source[rows.start : rows.stop])[:: rows.step]
    wanted, order = np.unique(rows, return_inverse=True)
    runs = np.split(wanted, np.flatnonzero(np.diff(wanted) > _READ_AHEAD) + 1)
    parts = [np.empty((0, *source.shape[1:]), source.dtype)]
    for run in filter(len, runs):
        parts.append(np.asarray(source[run[0] : run[-1] + 1])[run - run[0]])
    return np.concatenate(parts)[order.ravel()]


def _reference(X):
    """Return a picklable source for a stored array, itself where it is one."""
    if isinstance(X, np.memmap):
        return _MappedFile.of(X)
    if type(X).__module__.partition(".")[0] == "h5py":
        return _Dataset(X)
    return X


@dataclass(frozen=True, eq=False)
class _MappedFile:
    """The array of a memmap, read from its file: pages of a map take memory."""

    path: str
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]

    @classmethod
    def of(cls, array):
        """Return the file of a memmap; None where the content may differ from it."""
        root = array
        while isinstance(root.base, np.memmap):
            root = root.base
        mapped = root._mmap is not None and root.filename is not None
        if not mapped or root.mode == "c" or not array.flags.c_contiguous:
            return None
        offset = root.offset + array.ctypes.data - root.ctypes.data
        return cls(os.path.abspath(root.filename), array.dtype, offset, array.shape)

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
    """Return a dataset of a file that stays open as long as the dataset is in use."""
    import h5py

    return _Dataset(h5py.File(path, "r")[name])

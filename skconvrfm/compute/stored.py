"""Images that stay in a file and are read a block at a time.

Their stand-ins know shape and dtype, give out smaller parts of themselves, and read
when numpy asks them for an array; sent to a worker, they are references to the file.

A memmap stands for what it maps, and its path may have come to name another file. Its
own is opened once and compared with the map, and a worker that opens it again compares
inode, size and time. joblib would send the path alone: no memmap is passed on.
"""

import contextlib
import math
import mmap
import os
import shutil
import tempfile
import threading
import weakref
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from .blocks import byte_blocks
from .images import as_images
from .parallel import working_memory

# Rows between two wanted ones that are read with them: one read costs more.
_READ_AHEAD = 8
_COMPARED_BYTES = 2**22  # of a map and its file, at once


def stored_rows(X):
    """Return the `StoredRows` of an array that is not in memory; None for others.

    A numpy memmap, a dataset of h5py or zarr, or an object alike.
    """
    if isinstance(X, StoredRows):
        return X
    source = None
    if isinstance(X, np.ndarray):
        source = _MappedFile.of(X) if X.ndim > 1 else None
    elif _is_dataset(X):
        from_hdf5 = type(X).__module__.partition(".")[0] == "h5py"
        source = _Dataset.of(X) if from_hdf5 else X
    return None if source is None else StoredRows(source, range(X.shape[0]))


def _is_dataset(X):
    """Return True for objects that can be sliced like a dataset of h5py or zarr."""
    needed = {"shape", "dtype", "__getitem__", "__array__"}
    in_memory = {"__dlpack__", "__array_namespace__", "iloc", "tocsr"}
    found = {name for name in needed | in_memory if hasattr(X, name)}
    return found == needed and len(X.shape) > 1


def in_memory(array, name):
    """Return a copy of an array that is mapped from a file; any other as it is."""
    root = _find_map(array)
    if root is None:
        return array
    _check_length(root, name)
    return np.array(array)


def allocate(shape, dtype):
    """Return an array, beyond the working memory of scikit-learn in a temporary file.

    The file is removed with the array.
    """
    if math.prod(shape) * np.dtype(dtype).itemsize <= working_memory():
        return np.empty(shape, dtype)
    folder = tempfile.mkdtemp(prefix="skconvrfm-images-")
    array = np.memmap(os.path.join(folder, "images"), dtype, "w+", shape=shape)
    weakref.finalize(array.base, shutil.rmtree, folder, ignore_errors=True)
    return array


def _find_map(array):
    """Return the array of a whole map that an array is part of, or None."""
    while isinstance(array, np.ndarray):
        if isinstance(array.base, mmap.mmap):
            return array
        array = array.base
    return None


def _check_length(root, name):
    """Refuse a map whose file was cut off: reading it would end the process."""
    if not isinstance(root, np.memmap):
        return
    with contextlib.suppress(OSError):  # of no file
        if root.base.size() < root.offset + root.nbytes:
            raise ValueError(
                f"{name} is mapped from {str(root.filename)!r}, which has become too "
                f"short to hold it, {root.offset + root.nbytes} bytes; write it again."
            )


@dataclass(frozen=True, eq=False)
class StoredRows:
    """Pixels of stored images; an array of shape (n, width) that is read late."""

    source: object  # can be sliced along the images
    rows: range | np.ndarray  # the images

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


class _File:
    """A file that threads read, and that is opened again where it is sent to."""

    def __init__(self, path, status=None):
        self.path, self._lock = path, threading.Lock()
        self.status = _status(self._file.fileno()) if status is None else status

    def __reduce__(self):
        return _File, (self.path, self.status)

    @cached_property
    def _file(self):
        try:
            file = open(self.path, "rb", buffering=0)  # noqa: SIM115
        except OSError as error:
            raise OSError(
                error.errno,
                f"X is mapped from {self.path!r}, which cannot be opened: "
                f"{error.strerror}. Workers need it under this path until the call "
                "has ended; or pass np.array(X).",
            ) from error
        weakref.finalize(self, file.close)
        return file

    def read(self, offset, n_bytes):
        """Return some bytes as an array."""
        block = np.empty(n_bytes, dtype=np.uint8)
        missing = memoryview(block)
        # A read is cut off at 2 GiB.
        while missing and (count := self._read_into(missing, offset)):
            missing, offset = missing[count:], offset + count
        if missing or _status(self._file.fileno()) != self.status:
            raise ValueError(
                f"X is mapped from {self.path!r}, which was changed or replaced: leave "
                "the file alone until the call has ended, or pass np.array(X)."
            )
        return block

    def _read_into(self, view, offset):
        """Fill a view from an offset, and return the number of bytes read."""
        if hasattr(os, "preadv"):
            return os.preadv(self._file.fileno(), [view], offset)
        with self._lock:
            self._file.seek(offset)
            return self._file.readinto(view)


def _status(descriptor):
    """Return inode, size and time of an open file, which tell it from others."""
    status = os.fstat(descriptor)
    return status.st_ino, status.st_size, status.st_mtime_ns


@dataclass(frozen=True, eq=False)
class _MappedFile:
    """The array of a memmap, read from its file: pages of a map take memory."""

    file: _File
    dtype: np.dtype
    offset: int
    shape: tuple[int, ...]

    @classmethod
    def of(cls, array):
        """Return the file of a mapped array; None where it does not hold the same."""
        root = _find_map(array)
        if not isinstance(root, np.memmap) or root.filename is None:
            return None
        _check_length(root, "X")
        # Of mode "c", what was written is in this process alone.
        if root.mode == "c" or not array.flags.c_contiguous:
            return None
        if root.mode != "r":
            root.flush()
        path = os.path.abspath(root.filename)
        if not os.path.isfile(path):
            return None
        offset = root.offset + array.ctypes.data - root.ctypes.data
        with contextlib.suppress(OSError):
            found = cls(_File(path), array.dtype, offset, array.shape)
            return found if found._equals(array, root.base) else None
        return None

    def _equals(self, array, pages):
        """Return True if the file holds the bytes of a mapped array."""
        if self.file.status[1] < self.offset + array.nbytes:
            return False
        for rows in byte_blocks(array, _COMPARED_BYTES):
            equal = self[rows].tobytes() == array[rows].tobytes()
            if hasattr(mmap, "MADV_DONTNEED"):
                pages.madvise(mmap.MADV_DONTNEED)
            if not equal:
                return False
        return True

    def __getitem__(self, rows):
        shape = (rows.stop - rows.start, *self.shape[1:])
        row_bytes = self.dtype.itemsize * math.prod(self.shape[1:])
        offset = self.offset + rows.start * row_bytes
        block = self.file.read(offset, shape[0] * row_bytes)
        return block.view(self.dtype).reshape(shape)


@dataclass(frozen=True, eq=False)
class _Dataset:
    """A dataset of an HDF5 file, which is opened again where it is sent to."""

    path: str
    name: str
    dtype: np.dtype
    shape: tuple[int, ...]
    status: tuple | None  # of the file, where its driver tells

    @classmethod
    def of(cls, dataset):
        """Return a dataset that is open."""
        file = dataset.file
        if file.mode != "r":
            file.flush()
        options = dataset.name, dataset.dtype, dataset.shape, _hdf5_status(file)
        source = cls(os.path.abspath(file.filename), *options)
        vars(source)["dataset"] = dataset
        return source

    def __getstate__(self):
        return {k: v for k, v in vars(self).items() if k != "dataset"}

    @cached_property
    def dataset(self):
        """The dataset of the file, which stays open as long as it is in use."""
        import h5py

        file = h5py.File(self.path, "r")
        if self.status is not None and _hdf5_status(file) != self.status:
            raise ValueError(
                f"X is a dataset of {self.path!r}, which was changed or replaced: "
                "workers need it as it is until the call has ended."
            )
        return file[self.name]

    def __getitem__(self, rows):
        return self.dataset[rows]


def _hdf5_status(file):
    """Return the `_status` of an open HDF5 file, or None without a descriptor."""
    with contextlib.suppress(Exception):  # of any type, by driver and platform
        return _status(file.id.get_vfd_handle())
    return None

"""Files that are written completely or not at all, locks of files, rows in a file."""

import contextlib
import errno
import os
import shutil
import tempfile
import uuid
from dataclasses import dataclass, replace
from typing import IO

import numpy as np

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

TEMPORARY = ".tmp"
_HELD_BYTES = 2**26  # of rows that need no file


def write_whole(path, write):
    """Call ``write(file)`` on a file beside ``path``, sync it, and rename it."""
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}{TEMPORARY}")
    try:
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # elsewhere folders cannot be opened
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def try_lock(file):
    """Lock an open file until it is closed or its process ends.

    Return False where another one has the lock, None where files have no locks.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except (AttributeError, OSError):
        return None
    return True


@contextlib.contextmanager
def hold_lock(path):
    """Hold the lock of a file, made for it and removed at the end.

    Yield False where files have no locks. Raise BlockingIOError where another has it.
    """
    while True:
        file = open(path, "ab")  # noqa: SIM115
        locked = try_lock(file)
        # The last holder may have removed the file since it was opened.
        if locked is None or (locked and _is_at(file, path)):
            break
        file.close()
        if locked is False:
            raise BlockingIOError(errno.EAGAIN, "another one has the lock", str(path))
    try:
        yield bool(locked)
    finally:
        with contextlib.suppress(OSError):  # Windows keeps open files
            path.unlink()
        file.close()


def _is_at(file, path):
    """Return True if a path is that of an open file."""
    with contextlib.suppress(OSError):
        return os.path.samestat(os.fstat(file.fileno()), os.stat(path))
    return False


class _TemporaryFile(tempfile.SpooledTemporaryFile):
    """A temporary file that ends with its last reference, without a warning."""

    def __del__(self):
        self.close()


@dataclass(frozen=True)
class FileRows:
    """Rows of float64 numbers in a temporary file, which ends with the last of them.

    They are read when an ndarray of them is asked for; slices and arrays of increasing
    row numbers take some of them.
    """

    file: IO
    width: int
    numbers: np.ndarray  # (n,), of the rows in the file

    @classmethod
    def write(cls, blocks, n_rows, width):
        """Return rows that come in blocks; few bytes stay in memory.

        Raises OSError where the file would take more than half of the disk's room.
        """
        size = 8 * n_rows * width
        folder = tempfile.gettempdir()
        if size > _HELD_BYTES and 2 * size > shutil.disk_usage(folder).free:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), folder)
        file = _TemporaryFile(_HELD_BYTES)
        for block in blocks:
            file.write(block.tobytes())
        return cls(file, width, np.arange(n_rows))

    def __len__(self):
        return len(self.numbers)

    def __getitem__(self, part):
        return replace(self, numbers=self.numbers[part])

    def __array__(self, dtype=None, copy=None):
        ends = np.flatnonzero(np.diff(self.numbers) != 1) + 1
        runs = [self._read(run) for run in np.split(self.numbers, ends)]
        return np.concatenate(runs).astype(dtype or float, copy=False)

    def _read(self, run):
        """Return rows of consecutive numbers."""
        row_bytes = 8 * self.width
        self.file.seek(int(run[0]) * row_bytes)
        return np.frombuffer(self.file.read(len(run) * row_bytes)).reshape(len(run), -1)

"""Files that are written completely or not at all, and locks of files."""

import contextlib
import errno
import os
import uuid

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

TEMPORARY = ".tmp"


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

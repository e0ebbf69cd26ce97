"""Files that are there as a whole or not at all."""

import os
import uuid

TEMPORARY = ".tmp"


def write_whole(path, write):
    """Write a file beside its place, force it to the disk, and rename it.

    Parameters
    ----------
    path : pathlib.Path
        The file; what was there stays until the new one is complete.
    write : callable
        ``write(file)`` to a binary file.

    Raises
    ------
    OSError
        If it cannot be written; what was there is there still.
    """
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

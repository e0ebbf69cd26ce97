"""Rows in a temporary file."""

import errno
import shutil

import numpy as np
import pytest
from numpy.testing import assert_array_equal

from skconvrfm.compute import files
from skconvrfm.compute.files import FileRows


@pytest.mark.parametrize("held", [1, 2**26])
def test_rows_are_those_that_were_written(held, rng, monkeypatch):
    monkeypatch.setattr(files, "_HELD_BYTES", held)
    array = rng.normal(size=(50, 3))
    rows = FileRows.write((array[:20], array[20:23], array[23:]), 50, 3)
    for part in slice(None), slice(7, 31), np.array([0, 1, 2, 9, 10, 49]), slice(3, 4):
        assert_array_equal(np.asarray(rows[part]), array[part])
        assert_array_equal(np.asarray(rows[5:][:20]), array[5:25])
    assert len(rows[7:31]) == 24


def test_file_leaves_half_of_the_room(rng, monkeypatch):
    monkeypatch.setattr(files, "_HELD_BYTES", 1)
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(
        files.shutil, "disk_usage", lambda _: usage._replace(free=2 * 8 * 6 - 1)
    )
    with pytest.raises(OSError) as error:
        FileRows.write(iter([rng.normal(size=(2, 3))]), 2, 3)
    assert error.value.errno == errno.ENOSPC

"""Stored rows equal those of the array, whatever part of them is read."""

import pickle

import numpy as np
import pytest

from skconvrfm.compute.stored import StoredRows, is_stored


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (50, 4, 3, 2), dtype=np.uint8)


@pytest.fixture(params=["npy", "memmap", "part of a memmap", "h5py", "zarr"])
def stored(request, pixels, tmp_path):
    """Return equal pixels in a file."""
    path = tmp_path / "X"
    if request.param == "npy":
        np.save(path.with_suffix(".npy"), pixels)
        return np.load(path.with_suffix(".npy"), mmap_mode="r")
    if request.param.endswith("memmap"):
        before = 5 if "part" in request.param else 0
        shape = (before + 50, 4, 3, 2)
        file = np.memmap(path, np.uint8, "w+", offset=16, shape=shape)
        file[before:] = pixels
        return file[before:]
    if request.param == "h5py":
        h5py = pytest.importorskip("h5py")
        with h5py.File(path, "w") as file:
            file["images"] = pixels
        return h5py.File(path, "r")["images"]
    zarr = pytest.importorskip("zarr")
    array = zarr.create_array(
        str(path), shape=pixels.shape, dtype="u1", chunks=(7, 4, 3, 2)
    )
    array[:] = pixels
    return zarr.open_array(str(path), mode="r")


INDICES = [
    slice(0, 50),
    slice(10, 13),
    slice(48, 99),
    slice(20, 20),
    np.array([3, 1, 1, 49, 20, 22]),
    np.arange(0, 50, 3),
    np.array([], dtype=int),
]


@pytest.mark.parametrize("index", INDICES, ids=str)
def test_parts_equal_those_of_the_array(index, stored, pixels):
    assert is_stored(stored)
    rows = StoredRows.of(stored)
    flat = pixels.reshape(50, -1)
    assert rows.shape == flat.shape and rows.dtype == np.uint8
    part = rows[index]
    assert len(part) == len(flat[index])
    np.testing.assert_array_equal(part, flat[index])
    sent = pickle.loads(pickle.dumps(part))
    np.testing.assert_array_equal(sent, flat[index])


@pytest.mark.parametrize("outer", INDICES[:2] + INDICES[4:6], ids=str)
@pytest.mark.parametrize("inner", [slice(1, 3), np.array([2, 0])], ids=str)
def test_parts_of_parts_equal_those_of_the_array(outer, inner, stored, pixels):
    part = StoredRows.of(stored)[outer][inner]
    np.testing.assert_array_equal(part, pixels.reshape(50, -1)[outer][inner])


@pytest.mark.parametrize("channels", ["last", "first"])
def test_images_are_channels_last(channels, stored, pixels):
    shape = (4, 3, 2) if channels == "last" else (3, 2, 4)
    images = StoredRows.of(stored).images(shape, channels)[5:9]
    expected = pixels if channels == "last" else pixels.transpose(0, 2, 3, 1)
    assert images.shape == (4, *shape)
    np.testing.assert_array_equal(images, expected[5:9])


def test_pickles_of_stored_rows_are_small(tmp_path):
    file = np.memmap(tmp_path / "X", np.uint8, "w+", shape=(1000, 1000))
    assert len(pickle.dumps(StoredRows.of(file)[100:900])) < 2000


def test_arrays_in_memory_are_not_stored(tmp_path):
    pd = pytest.importorskip("pandas")
    array = np.zeros((5, 4))
    file = np.memmap(tmp_path / "X", np.uint8, "w+", shape=(6, 4))
    for values in (array, array.tolist(), pd.DataFrame(array), file.T, file[:, 0]):
        assert not is_stored(values)
    copied = np.memmap(tmp_path / "X", np.uint8, "c", shape=(6, 4))
    copied[0] = 1  # in this process alone
    assert not is_stored(copied)


def test_truncated_file_is_named(tmp_path):
    file = np.memmap(tmp_path / "X", np.uint8, "w+", shape=(6, 4))
    rows = StoredRows.of(file)
    (tmp_path / "X").write_bytes(b"short")
    with pytest.raises(ValueError, match=r"X' *, which has become too short"):
        np.asarray(rows[3:])

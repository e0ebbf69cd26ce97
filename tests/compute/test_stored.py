"""Stored rows equal those of the array, whatever becomes of their file."""

import os
import pickle
import sys
import tempfile

import numpy as np
import pytest
import torch
from joblib import parallel_config

from skconvrfm import ConvRFMClassifier, ConvRFMRegressor
from skconvrfm.compute.stored import StoredRows, stored_rows
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import ConvNTK, patch_agop


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (50, 4, 3, 2), dtype=np.uint8)


def open_npy(path, pixels):
    np.save(path.with_suffix(".npy"), pixels)
    return np.load(path.with_suffix(".npy"), mmap_mode="r")


def open_memmap(path, pixels, before=0):
    shape = (before + 50, 4, 3, 2)
    file = np.memmap(path, np.uint8, "w+", offset=16, shape=shape)
    file[before:] = pixels
    return file[before:]


def open_h5py(path, pixels):
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        file["images"] = pixels
    return h5py.File(path, "r")["images"]


def open_zarr(path, pixels):
    zarr = pytest.importorskip("zarr")
    shape = {"shape": pixels.shape, "chunks": (7, 4, 3, 2)}
    zarr.create_array(str(path), dtype="u1", **shape)[:] = pixels
    return zarr.open_array(str(path), mode="r")


FILES = {
    "npy": open_npy,
    "memmap": open_memmap,
    "part of a memmap": lambda path, pixels: open_memmap(path, pixels, 5),
    "h5py": open_h5py,
    "zarr": open_zarr,
}


@pytest.fixture(params=FILES)
def stored(request, pixels, tmp_path):
    """Return equal pixels in a file."""
    return FILES[request.param](tmp_path / "X", pixels)


INDICES = [
    slice(0, 50),
    slice(10, 13),
    slice(48, 99),
    slice(20, 20),
    np.array([3, 1, 1, 49, 20, 22]),
    np.arange(0, 50, 3),
    np.array([], dtype=int),
]


def test_parts_equal_those_of_the_array(stored, pixels):
    rows, flat = stored_rows(stored), pixels.reshape(50, -1)
    assert rows.shape == flat.shape and rows.dtype == np.uint8
    for index in INDICES:
        part = rows[index]
        assert len(part) == len(flat[index])
        np.testing.assert_array_equal(part, flat[index])
        sent = pickle.loads(pickle.dumps(part))
        np.testing.assert_array_equal(sent, flat[index])
        for inner in (slice(1, 3), np.array([2, 0])) if len(part) > 2 else ():
            np.testing.assert_array_equal(part[inner], flat[index][inner])


@pytest.mark.parametrize("channels", ["last", "first"])
def test_images_are_channels_last(channels, stored, pixels):
    shape = (4, 3, 2) if channels == "last" else (3, 2, 4)
    images = stored_rows(stored).images(shape, channels)[5:9]
    expected = pixels if channels == "last" else pixels.transpose(0, 2, 3, 1)
    assert images.shape == (4, *shape)
    np.testing.assert_array_equal(images, expected[5:9])


def test_pickles_of_stored_rows_are_small(tmp_path):
    file = np.memmap(tmp_path / "X", np.uint8, "w+", shape=(1000, 1000))
    assert len(pickle.dumps(stored_rows(file)[100:900])) < 2000


def test_arrays_in_memory_are_not_stored(tmp_path):
    pd = pytest.importorskip("pandas")
    array = np.zeros((5, 4))
    file = np.memmap(tmp_path / "X", np.uint8, "w+", shape=(6, 4))
    for values in (array, array.tolist(), pd.DataFrame(array), file.T, file[:, 0]):
        assert stored_rows(values) is None
    assert stored_rows(file + 1) is None
    copied = np.memmap(tmp_path / "X", np.uint8, "c", shape=(6, 4))
    copied[0] = 1  # in this process alone
    assert stored_rows(copied) is None


def test_views_and_orders_of_bytes_are_read_as_mapped(tmp_path):
    values = np.random.default_rng(0).normal(size=(9, 4, 3)).astype(">f8")
    values.tofile(tmp_path / "X")
    mapped = np.memmap(tmp_path / "X", ">f8", "r", shape=values.shape)
    for view in (mapped, np.asarray(mapped), mapped[2:], mapped.view(np.ndarray)[3:7]):
        found = stored_rows(view)
        assert found.dtype == values.dtype
        np.testing.assert_array_equal(found, np.reshape(view, (len(view), -1)))


@pytest.mark.parametrize("mode", ["r+", "w+"])
def test_pixels_that_were_just_written_to_a_map_are_read(mode, tmp_path):
    np.zeros((20, 5), np.uint8).tofile(tmp_path / "X")
    mapped = np.memmap(tmp_path / "X", np.uint8, mode, shape=(20, 5))
    mapped[3:] = 7
    np.testing.assert_array_equal(stored_rows(mapped), mapped)


def test_reads_go_on_where_the_system_cuts_them_off(tmp_path, monkeypatch):
    values = np.arange(1000, dtype=np.int16).reshape(100, 10)
    values.tofile(tmp_path / "X")
    mapped = np.memmap(tmp_path / "X", np.int16, "r", shape=values.shape)
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda f, b, at: preadv(f, [b[0][:7]], at))
    np.testing.assert_array_equal(stored_rows(mapped), values)
    monkeypatch.delattr(os, "preadv")  # as on Windows
    np.testing.assert_array_equal(stored_rows(mapped), values)


def test_a_file_stays_open_as_long_as_its_rows(tmp_path):
    folder = "/proc/self/fd"
    if not os.path.isdir(folder):
        pytest.skip("open files cannot be counted here")
    mapped = np.memmap(tmp_path / "X", np.uint8, "w+", shape=(20, 5))
    before = len(os.listdir(folder))
    rows = stored_rows(mapped)
    assert len(os.listdir(folder)) == before + 1
    del rows
    assert len(os.listdir(folder)) == before


# ------------------------------------------------------------- files that change


def make_images(seed=0):
    X = np.random.default_rng(seed).normal(size=(30, 6, 5)).astype(np.float32)
    return X, (X[:, 2, 2] * X[:, 3, 3] > 0).astype(int)


def replace(path, X):
    np.save(path.with_name("other.npy"), -X)
    os.replace(path.with_name("other.npy"), path)


def replace_at_the_same_time(path, X):
    time = path.stat().st_mtime_ns
    replace(path, X)
    os.utime(path, ns=(time, time))


CHANGES = {
    "keep": lambda path, X: None,
    "remove": lambda path, X: path.unlink(),
    "replace": replace,
    "at the same time": replace_at_the_same_time,
    "by a folder": lambda path, X: (path.unlink(), path.mkdir()),
}
if hasattr(os, "mkfifo"):
    CHANGES["by a pipe"] = lambda path, X: (path.unlink(), os.mkfifo(path))
LINEAR = ConvRFMClassifier("linear", ConvFeatures(6, patch_size=3), n_rounds=0)


@pytest.fixture
def mapped(tmp_path):
    np.save(tmp_path / "X.npy", make_images()[0])
    return np.load(tmp_path / "X.npy", mmap_mode="r")


# Pools of processes, which take a second, in the slow tier.
BACKENDS = pytest.mark.parametrize(
    "backend", ["threading", pytest.param("multiprocessing", marks=pytest.mark.slow)]
)


@pytest.mark.skipif(sys.platform == "win32", reason="mapped files stay there")
@BACKENDS
@pytest.mark.parametrize("change", CHANGES)
def test_memmap_is_what_it_maps_whatever_its_path_names(
    backend, change, mapped, tmp_path
):
    X, y = make_images()
    CHANGES[change](tmp_path / "X.npy", X)
    expected = LINEAR.fit(X, y).decision_function(X)
    np.testing.assert_array_equal(LINEAR.decision_function(mapped), expected)
    found = LINEAR.fit(mapped, y).decision_function(mapped[:10])
    np.testing.assert_allclose(found, expected[:10], rtol=1e-9)
    with parallel_config(backend, n_jobs=2):
        found = LINEAR.decision_function(mapped)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_content_that_was_written_to_the_file_in_place_counts(mapped, tmp_path):
    X, _ = make_images()
    np.save(tmp_path / "X.npy", -X)  # opens the same file and writes it anew
    np.testing.assert_array_equal(mapped, -X)
    np.testing.assert_array_equal(stored_rows(mapped), (-X).reshape(30, -1))


@pytest.mark.parametrize("change", ["replace", "at the same time", "remove"])
def test_rows_are_those_of_the_open_file_while_it_is_replaced(change, mapped, tmp_path):
    X, _ = make_images()
    rows = stored_rows(mapped)
    sent = pickle.dumps(rows)
    CHANGES[change](tmp_path / "X.npy", X)
    np.testing.assert_array_equal(rows, X.reshape(30, -1))
    # A worker, which opens the file again, refuses another one.
    with pytest.raises((OSError, ValueError), match=r"X\.npy.*(replaced|opened)"):
        np.asarray(pickle.loads(sent))


def test_file_that_is_written_in_the_midst_of_a_call_is_refused(mapped, tmp_path):
    X, _ = make_images()
    rows = stored_rows(mapped)
    os.utime(tmp_path / "X.npy", ns=(1, 1))  # however coarse the clock of the files
    np.save(tmp_path / "X.npy", -X)
    with pytest.raises(ValueError, match=r"X\.npy' *, which was changed or replaced"):
        np.asarray(rows[3:])


def test_truncated_file_is_named(mapped, tmp_path):
    _, y = make_images()
    model, rows = LINEAR.fit(mapped, y), stored_rows(mapped)
    os.truncate(tmp_path / "X.npy", 200)
    with pytest.raises(ValueError, match=r"X\.npy' *, which was changed or replaced"):
        np.asarray(rows[3:])
    # The map itself can no longer be read: the system would end the process.
    for call in (model.predict, ConvNTK()):
        with pytest.raises(ValueError, match=r"X is mapped .*X\.npy.*too short"):
            call(mapped)
    with pytest.raises(ValueError, match=r"X is mapped .*X\.npy.*too short"):
        model.predict(mapped.T)


def test_truncated_file_of_targets_or_weights_is_named(tmp_path):
    X, y = make_images()
    np.save(tmp_path / "y.npy", np.ones(9000))
    cut = np.load(tmp_path / "y.npy", mmap_mode="r")[:30]
    os.truncate(tmp_path / "y.npy", 200)
    with pytest.raises(ValueError, match=r"y is mapped from .*too short"):
        ConvRFMRegressor().fit(X, cut)
    with pytest.raises(ValueError, match=r"sample_weight is mapped from .*too short"):
        LINEAR.fit(X, y, sample_weight=cut)


LAYOUTS = {
    "offset": lambda path, X: _raw(path, X, offset=24),
    "Fortran order": lambda path, X: _raw(path, X, order="F"),
    "mode c": lambda path, X: _raw(path, X, mode="c"),
    "mode r+": lambda path, X: _raw(path, X, mode="r+"),
    "rows of a slice": lambda path, X: _raw(path, np.concatenate([X, X]))[30:],
    "every other row": lambda path, X: _raw(path, np.repeat(X, 2, axis=0))[::2],
    "columns of a slice": lambda path, X: _raw(path, np.concatenate([X, X], 2))[
        :, :, 5:
    ],
    "plain view": lambda path, X: np.asarray(_raw(path, X)),
    "no name": lambda path, X: _raw(tempfile.TemporaryFile(), X),
    "frombuffer": lambda path, X: np.frombuffer(_raw(path, X).base, "f4").reshape(
        X.shape
    ),
}


def _raw(path, X, mode="r", offset=0, order="C"):
    file = np.memmap(path, X.dtype, "w+", offset, X.shape, order)
    file[...] = X
    if not isinstance(path, os.PathLike):
        path.close()
        return file
    file.flush()
    return np.memmap(path, X.dtype, mode, offset, X.shape, order)


@BACKENDS
@pytest.mark.parametrize("layout", LAYOUTS)
def test_maps_of_any_layout_equal_their_array(layout, backend, tmp_path):
    X, y = make_images()
    mapped = LAYOUTS[layout](tmp_path / "X", X)
    if layout == "mode c":  # seen by this process alone
        mapped[:5] *= -1
        X = np.array(mapped)
    expected = LINEAR.fit(X, y).decision_function(X)
    kernel = ConvNTK(depth=1)(X)
    if layout != "no name":  # replaced, so that nothing can go by the path
        (tmp_path / "other").write_bytes(bytes(40_000))
        os.replace(tmp_path / "other", tmp_path / "X")
    model = LINEAR.fit(mapped, y)
    with parallel_config(backend, n_jobs=2):
        found = model.decision_function(mapped), ConvNTK(depth=1)(mapped)
    for actual, wanted in zip(found, (expected, kernel), strict=True):
        np.testing.assert_allclose(actual, wanted, rtol=1e-5, atol=1e-5)


def test_targets_weights_and_coefficients_may_be_mapped(tmp_path):
    X, y = make_images()
    weights = np.arange(30.0)
    maps = []
    for name, values in (("y", y), ("w", weights)):
        np.save(tmp_path / name, values)
        maps.append(np.load(tmp_path / f"{name}.npy", mmap_mode="r"))
    expected = LINEAR.fit(X, y, weights).decision_function(X)
    found = LINEAR.fit(X, *maps).decision_function(X)
    np.testing.assert_array_equal(found, expected)
    agops = [patch_agop(ConvNTK(), X, a, sample_weight=a) for a in (weights, maps[1])]
    np.testing.assert_array_equal(*agops)


def test_dataset_of_a_replaced_file_is_refused_by_a_worker(tmp_path):
    h5py = pytest.importorskip("h5py")
    X, _ = make_images()
    for name, values in (("X", X), ("other", -X)):
        with h5py.File(tmp_path / name, "w") as file:
            file["images"] = values
    rows = stored_rows(h5py.File(tmp_path / "X", "r")["images"])
    sent = pickle.dumps(rows)
    os.replace(tmp_path / "other", tmp_path / "X")
    np.testing.assert_array_equal(rows, X.reshape(30, -1))
    with pytest.raises(ValueError, match="which was changed or replaced"):
        np.asarray(pickle.loads(sent))


# ----------------------------------------------------------------------- tensors


@pytest.mark.parametrize(
    "name",
    ["bfloat16", "float8_e4m3fn", "float8_e5m2", "float8_e4m3fnuz", "float16"],
)
def test_small_floats_of_torch_are_converted_exactly(name):
    if not hasattr(torch, name):
        pytest.skip(f"no {name} in this torch")
    X, y = make_images()
    tensor = torch.tensor(X).to(getattr(torch, name))
    exact = tensor.double().numpy().astype(np.float32)
    expected = LINEAR.fit(exact, y).decision_function(exact)
    found = LINEAR.fit(tensor, torch.tensor(y)).decision_function(tensor)
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(ConvNTK()(tensor), ConvNTK()(exact))


TENSORS = {
    "requires grad": lambda X: X.requires_grad_(),
    "conjugate": lambda X: torch.complex(X, -X).conj().imag,
    "transposed": lambda X: X.permute(0, 2, 1).contiguous().permute(0, 2, 1),
    "parameter": torch.nn.Parameter,
}


@pytest.mark.parametrize("name", TENSORS)
def test_tensors_of_any_kind_equal_their_array(name):
    X, y = make_images()
    tensor = TENSORS[name](torch.tensor(X))
    expected = LINEAR.fit(X, y).decision_function(X)
    found = LINEAR.fit(tensor, y).decision_function(tensor)
    np.testing.assert_array_equal(found, expected)


def test_inference_tensors_and_integers_are_taken():
    X, y = make_images()
    with torch.inference_mode():
        tensor = torch.tensor(X)
    np.testing.assert_array_equal(ConvNTK()(tensor), ConvNTK()(X))
    for dtype in (torch.bool, torch.uint8, torch.int16, torch.int64):
        values = torch.tensor(3 * X).to(dtype)
        np.testing.assert_array_equal(
            LINEAR.fit(values, y).decision_function(values),
            LINEAR.fit(values.numpy(), y).decision_function(values.numpy()),
        )


def test_targets_weights_and_transforms_may_be_tensors_of_any_float():
    X, y = make_images()
    weights = torch.arange(30).bfloat16().requires_grad_()
    expected = LINEAR.fit(X, y, np.arange(30.0)).decision_function(X)
    found = LINEAR.fit(X, torch.tensor(y), weights).decision_function(X)
    np.testing.assert_array_equal(found, expected)
    expected = ConvRFMRegressor(n_rounds=0).fit(X, np.arange(30.0)).predict(X)
    found = ConvRFMRegressor(n_rounds=0).fit(X, weights).predict(X)
    np.testing.assert_array_equal(found, expected)
    transform = torch.eye(9).bfloat16().requires_grad_()
    expected = patch_agop(ConvNTK(), X, np.arange(30), patch_transform=np.eye(9))
    found = patch_agop(ConvNTK(), X, weights, patch_transform=transform)
    np.testing.assert_array_equal(found, expected)


REFUSED = {
    "sparse": (lambda X: X.flatten(1).to_sparse(), r"to_dense\(\)"),
    "meta": (lambda X: X.to("meta"), "tensor on meta"),
    "complex": (lambda X: torch.complex(X, X), "[Cc]omplex"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_tensors_without_numbers_are_refused_in_words(name):
    make, message = REFUSED[name]
    X, y = make_images()
    tensor = make(torch.tensor(X))
    model = LINEAR.fit(X, y)
    for call in (lambda: LINEAR.fit(tensor, y), lambda: model.predict(tensor)):
        with pytest.raises((TypeError, ValueError), match=message):
            call()


def test_stored_rows_are_not_opened_twice(mapped):
    rows = stored_rows(mapped)
    assert stored_rows(rows) is rows and isinstance(rows, StoredRows)

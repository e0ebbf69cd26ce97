"""Fits on images in files equal those on arrays, in the memory of blocks."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.base import clone

import skconvrfm
from skconvrfm import ConvRFMClassifier, ConvRFMRegressor, PatchAGOPTransformer
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import ConvNTK, Gaussian

SMALL = {"n_rounds": 1, "dtype": "float64"}
FEATURES = ConvFeatures(12, patch_size=3)
LOCATIONS = ConvFeatures(6, patch_size=3, pool_grid=None)
LINEAR = ConvRFMClassifier("linear", FEATURES, **SMALL)
MODELS = [
    LINEAR,
    ConvRFMRegressor("linear", [LOCATIONS, FEATURES], **SMALL),
    ConvRFMClassifier("linear", FEATURES, selection="holdout", **SMALL),
    ConvRFMClassifier(Gaussian(), FEATURES, **SMALL),
    ConvRFMClassifier(ConvNTK(depth=2), **SMALL),
    ConvRFMClassifier(ConvNTK(depth=1), LOCATIONS, **SMALL),
    PatchAGOPTransformer(LINEAR),
    PatchAGOPTransformer(LINEAR, output="features"),
]
MEBIBYTE = 2**20


@pytest.fixture
def images():
    """Noise with a stroke somewhere, in bytes: colour images and two classes."""
    rng = np.random.default_rng(0)
    X = rng.integers(0, 90, size=(60, 8, 7, 3), dtype=np.uint8)
    y = np.arange(60) % 2
    for image, label in zip(X, y, strict=True):
        r, c = rng.integers(0, 5), rng.integers(0, 4)
        image[r : r + 1 + 3 * label, c : c + 1 + 3 * (1 - label)] += 150
    return X, y


# ----------------------------------------------------------- where images may lie


def in_hdf5(X, folder):
    h5py = pytest.importorskip("h5py")
    with h5py.File(folder / "images.h5", "w") as file:
        # Chunks that blocks of images do not end with.
        chunks = (min(7, len(X)), *X.shape[1:])
        file.create_dataset("images", data=X, chunks=chunks, compression="gzip")
    return h5py.File(folder / "images.h5")["images"]


def in_zarr(X, folder):
    zarr = pytest.importorskip("zarr", minversion="3")
    chunks = (min(7, len(X)), *X.shape[1:])
    store = str(folder / "images.zarr")
    array = zarr.create_array(store, shape=X.shape, chunks=chunks, dtype=X.dtype)
    array[:] = X
    return zarr.open_array(store, mode="r")


def in_raw_file(X, folder):
    X.tofile(folder / "images.raw")
    return np.memmap(folder / "images.raw", dtype=X.dtype, mode="r", shape=X.shape)


def in_npy_file(X, folder):
    np.save(folder / "images.npy", X)
    return np.load(folder / "images.npy", mmap_mode="r")


PLACES = [in_hdf5, in_zarr, in_raw_file, in_npy_file]


def assert_close(actual, expected, tolerance):
    """Check equality to within a part of the largest expected value."""
    atol = tolerance * np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=atol)


def outputs(model, X):
    """Return the outputs of a model for images."""
    for name in ("decision_function", "transform", "predict"):
        if hasattr(model, name):
            return getattr(model, name)(X)


@pytest.mark.parametrize("model", MODELS, ids=str)
@pytest.mark.parametrize("place", PLACES)
def test_fit_on_a_file_equals_the_fit_on_the_array(place, model, images, tmp_path):
    X, y = images
    weights = np.arange(60) % 3  # of which a third is zero
    expected = clone(model).fit(X, y, sample_weight=weights)
    stored = place(X, tmp_path)
    found = clone(model).fit(stored, y, sample_weight=weights)
    assert found.image_shape_ == (8, 7, 3)
    assert_close(found.patch_agop_, expected.patch_agop_, 1e-8)
    assert_close(outputs(found, stored), outputs(expected, X), 1e-8)


FORMS = {
    "gray": (lambda X: X.reshape(60, 8, 21), {}),
    "flat": (lambda X: X.reshape(60, 168), {"image_shape": (8, 21)}),
    "channels first": (lambda X: X.transpose(0, 3, 1, 2), {"channels": "first"}),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("form", FORMS)
def test_files_may_hold_images_of_every_form(place, form, images, tmp_path):
    X, y = np.ascontiguousarray(FORMS[form][0](images[0])), images[1]
    model = clone(LINEAR).set_params(**FORMS[form][1])
    expected = clone(model).fit(X, y)
    stored = place(X, tmp_path)
    found = clone(model).fit(stored, y)
    assert found.image_shape_ == expected.image_shape_
    assert_close(found.decision_function(stored), expected.decision_function(X), 1e-8)


@pytest.mark.parametrize("place", PLACES)
def test_chunks_of_a_file_equal_one_fit(place, images, tmp_path):
    X, y = images
    features = clone(FEATURES).set_params(filters="gaussian", metric="identity")
    features.set_params(threshold=0, pool="mean")
    model = ConvRFMClassifier("linear", features, n_rounds=0, dtype="float64")
    expected = clone(model).fit(X, y)
    stored, found = place(X, tmp_path), clone(model)
    for start in (40, 0, 20):
        part = slice(start, start + 20)
        found.partial_fit(stored[part], y[part], classes=[0, 1])
    assert_close(found.decision_function(stored), expected.decision_function(X), 1e-8)


# ------------------------------------------------------------------------- memory

# What a child adds to what the package takes: the peak of its own address space.
# (ru_maxrss would begin with that of the parent, which these tests are run by.)
PROGRAM = """
import sys
from pathlib import Path
import numpy as np
from sklearn import set_config
from skconvrfm import ConvRFMClassifier
from skconvrfm.features import ConvFeatures

def peak():
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return 1024 * int(line.split()[1])

# A first fit loads what a fit needs: libraries, threads, compiled functions.
small = np.random.default_rng(0).integers(0, 255, (40, 8, 8), dtype=np.uint8)
features = ConvFeatures(4, patch_size=3)
ConvRFMClassifier("linear", features, n_rounds=1).fit(small, np.arange(40) % 2)
before = peak()
path, n, side, n_filters, memory = sys.argv[1], *map(int, sys.argv[2:])
set_config(working_memory=memory)
X = np.memmap(path, dtype=np.uint8, mode="r", shape=(n, side, side))
features = ConvFeatures(n_filters, patch_size=3)
model = ConvRFMClassifier("linear", features, n_rounds=1)
model.fit(X, np.arange(n) % 10)
print(peak() - before)
"""


def peak_of_a_fit(folder, n, side, n_filters, working_memory=1024):
    """Bytes by which a fit on a file of images raises the peak of a process."""
    path = folder / "images.raw"
    write_images(path, n, side)
    package = str(Path(skconvrfm.__file__).parents[1])
    done = subprocess.run(
        [
            *(sys.executable, "-c", PROGRAM, str(path)),
            *map(str, (n, side, n_filters, working_memory)),
        ],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join([package, os.environ.get("PYTHONPATH", "")]),
        },
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return int(done.stdout.split()[-1])


def write_images(path, n, side):
    """Images with a bright row, which is their class modulo ten, amid noise."""
    rng = np.random.default_rng(0)
    with open(path, "wb") as file:
        for start in range(0, n, 10_000):
            count = min(10_000, n - start)
            X = rng.integers(0, 90, size=(count, side, side), dtype=np.uint8)
            X[np.arange(count), np.arange(start, start + count) % 10] += 150
            X.tofile(file)


needs_proc = pytest.mark.skipif(
    not Path("/proc/self/status").is_file(), reason="reads the peak from /proc"
)


@pytest.mark.slow
@needs_proc
def test_images_in_a_file_are_not_cast_whole(tmp_path):
    n, side = 20_000, 64
    peak = peak_of_a_fit(tmp_path, n, side, n_filters=2, working_memory=64)
    # The pages of the file count as memory of the process while nobody else wants it.
    # float32 would be 4, and the file beside it: 5.
    assert peak < 2.5 * n * side**2


@needs_proc
@pytest.mark.slow
def test_two_hundred_thousand_images_take_a_gibibyte_and_a_half(tmp_path):
    peak = peak_of_a_fit(tmp_path, 200_000, 28, n_filters=256)
    assert peak < 1536 * MEBIBYTE

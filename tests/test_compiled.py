"""Compiled tiles equal those of array operations, and are done without in silence."""

import ctypes
import functools
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from by_hand import assert_close

from skconvrfm.core import compiled
from skconvrfm.core.tiles import Tiles
from skconvrfm.kernels import convolutional_kernel, make_kernel, patch_agop

LARGE, SMALL = compiled.WORTH_COMPILING, compiled.WORTH_COMPILING / 2
pytestmark = pytest.mark.skipif(
    not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="no C++ compiler here"
)


@pytest.fixture(scope="module")
def library_file():
    """Build the library, or take the one that other tests built."""
    path = compiled._library_path()
    if not path.exists():
        try:
            compiled._build(path)
        except (OSError, subprocess.SubprocessError):
            pytest.skip("the C++ compiler here does not build the library")
    return path


@pytest.fixture
def fresh(monkeypatch, tmp_path, library_file):
    """Act as a process that starts: an empty cache, a compiler that takes no time.

    Gives the cache folder and the list of files that were built.
    """
    built = []

    def build(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(library_file, path)
        built.append(path)

    monkeypatch.setattr(compiled, "_build", build)
    monkeypatch.setenv(compiled.CACHE, str(tmp_path / "cache"))
    monkeypatch.delenv(compiled.SWITCH, raising=False)
    begin_new_process(monkeypatch)
    return tmp_path / "cache", built


def begin_new_process(monkeypatch):
    """Forget, for one test, what this process has found and loaded."""
    for name in ("_load", "_was_in_cache"):
        function = getattr(compiled, name).__wrapped__
        monkeypatch.setattr(compiled, name, functools.cache(function))


# ---------------------------------------------------------------- the cache


def test_small_work_is_not_compiled(fresh):
    _, built = fresh
    assert compiled.load(SMALL) is None and built == []


def test_large_work_is_compiled_once_into_the_cache_folder(fresh):
    folder, built = fresh
    assert isinstance(compiled.load(LARGE), ctypes.CDLL)
    assert isinstance(compiled.load(LARGE), ctypes.CDLL)
    assert len(built) == 1 and built[0].parent == folder


def test_what_lies_in_the_cache_serves_small_work_too(fresh, monkeypatch):
    _, built = fresh
    compiled.load(LARGE)
    begin_new_process(monkeypatch)
    assert isinstance(compiled.load(SMALL), ctypes.CDLL) and len(built) == 1


def test_small_work_gives_one_result_all_through_a_process(fresh):
    # The library that large work built meanwhile would change the last bits.
    assert compiled.load(SMALL) is None
    assert isinstance(compiled.load(LARGE), ctypes.CDLL)
    assert compiled.load(SMALL) is None


def test_switch_decides_however_large_the_work(fresh, monkeypatch):
    monkeypatch.setenv(compiled.SWITCH, "0")
    assert compiled.load(LARGE) is None
    monkeypatch.setenv(compiled.SWITCH, "1")
    assert isinstance(compiled.load(0), ctypes.CDLL)


@pytest.mark.parametrize("given", ["XDG_CACHE_HOME", "HOME"])
def test_cache_folder_is_that_of_the_user_by_default(given, monkeypatch, tmp_path):
    monkeypatch.delenv(compiled.CACHE, raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv(given, str(tmp_path))
    expected = tmp_path if given == "XDG_CACHE_HOME" else tmp_path / ".cache"
    assert compiled._cache_folder() == expected / "skconvrfm"


def compiler(monkeypatch, tmp_path, *lines):
    """Take a shell script, to which "$target" is the file to make, for the compiler."""
    script = tmp_path / "compiler"
    script.write_text("\n".join(["#!/bin/sh", "for target; do :; done", *lines]))
    script.chmod(0o700)
    monkeypatch.setenv("CXX", str(script))


def test_library_is_built_whole_and_leaves_no_other_file(
    library_file, monkeypatch, tmp_path
):
    compiler(monkeypatch, tmp_path, f'cp "{library_file}" "$target"')
    path = tmp_path / "cache" / "made.so"
    compiled._build(path)
    assert os.listdir(path.parent) == ["made.so"]
    assert path.parent.stat().st_mode & 0o077 == 0  # for nobody else
    assert ctypes.CDLL(str(path)).kernel_value_double


def test_a_build_that_fails_leaves_no_file(monkeypatch, tmp_path):
    compiler(monkeypatch, tmp_path, 'echo half > "$target"', "exit 1")
    with pytest.raises(subprocess.CalledProcessError):
        compiled._build(tmp_path / "cache" / "made.so")
    assert os.listdir(tmp_path / "cache") == []


@pytest.mark.parametrize("change", ["source", "compiler", "processor"])
def test_another_source_compiler_or_processor_means_another_library(
    change, monkeypatch, tmp_path
):
    before = compiled._library_path()
    if change == "source":
        source = tmp_path / "compiled.cpp"
        source.write_text(compiled._SOURCE.read_text() + "\n// changed")
        monkeypatch.setattr(compiled, "_SOURCE", source)
    elif change == "compiler":
        monkeypatch.setenv("CXX", sys.executable)
    else:
        monkeypatch.setattr(compiled, "_processor", lambda: "flags: avx1024")
    assert compiled._library_path() != before


# --------------------------------------------------------- doing without it


def no_compiler(monkeypatch, tmp_path):
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))


def failing_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", shutil.which("false"))


def slow_compiler(monkeypatch, tmp_path):
    compiler(monkeypatch, tmp_path, "exec sleep 60")
    monkeypatch.setattr(compiled, "_BUILD_SECONDS", 0.1)


def no_folder(monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv(compiled.CACHE, str(tmp_path / "file" / "cache"))


def broken_library(monkeypatch, tmp_path):
    def build(path):
        path.parent.mkdir(parents=True)
        path.write_text("not a library")

    monkeypatch.setattr(compiled, "_build", build)


def nobody_at_home(monkeypatch, tmp_path):
    def home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv(compiled.CACHE)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(compiled.Path, "home", home)


OBSTACLES = [
    no_compiler,
    failing_compiler,
    slow_compiler,
    no_folder,
    broken_library,
    nobody_at_home,
]


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_where_nothing_can_be_built_array_operations_serve_in_silence(
    obstacle, monkeypatch, tmp_path, rng, recwarn, capfd
):
    X, coef = rng.normal(size=(5, 6, 6, 2)), rng.normal(size=5)
    monkeypatch.setenv(compiled.SWITCH, "0")
    expected = convolutional_kernel(X), patch_agop(X, coef)
    monkeypatch.delenv(compiled.SWITCH)
    monkeypatch.setenv(compiled.CACHE, str(tmp_path / "cache"))
    obstacle(monkeypatch, tmp_path)
    begin_new_process(monkeypatch)
    assert compiled.load(SMALL) is None
    assert compiled.load(LARGE) is None
    monkeypatch.setenv(compiled.SWITCH, "1")
    result = convolutional_kernel(X), patch_agop(X, coef)
    np.testing.assert_array_equal(result[0], expected[0])
    np.testing.assert_array_equal(result[1], expected[1])
    assert len(recwarn) == 0 and capfd.readouterr() == ("", "")


def test_a_budget_too_small_for_its_maps_does_without(compiled_tiles, rng):
    from sklearn import config_context

    X = rng.normal(size=(3, 40, 40))
    with config_context(working_memory=0.1):
        small = convolutional_kernel(X, depth=2)
    assert_close(small, convolutional_kernel(X, depth=2), 1e-12)


@pytest.mark.thorough
def test_import_builds_nothing_and_touches_no_gpu(tmp_path):
    code = (
        "import skconvrfm, skconvrfm.kernels, torch;"
        "assert not torch.cuda.is_initialized()"
    )
    folder = str(Path(compiled.__file__).parents[2])
    environment = {
        **os.environ,
        compiled.CACHE: str(tmp_path / "cache"),
        "PYTHONPATH": os.pathsep.join([folder, os.environ.get("PYTHONPATH", "")]),
    }
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    assert not (tmp_path / "cache").exists()


# ------------------------------------------------------------ equal results

SHAPES = {
    "plain": ((6, 6, 1), {}),
    "colour": ((7, 5, 3), {"depth": 2}),
    "same": ((5, 6, 1), {"padding": "same", "bias": 0.2}),
    "even": ((7, 7, 2), {"patch_size": (2, 4), "depth": 2}),
    "even, same": ((5, 5, 1), {"patch_size": 4, "padding": "same"}),
    "clipped": ((4, 9, 1), {"patch_size": 5, "depth": 4}),
    "one layer": ((6, 6, 2), {"depth": 1, "bias": 1.0}),
    "one pixel": ((1, 1, 3), {"depth": 2}),
    "one row": ((1, 12, 1), {}),
}


def blocks(shape, kind, dtype, rng, n_left=19, n_right=35, **options):
    """A kernel and two blocks of images, some blank, some equal."""
    options = {"depth": 3, "patch_size": 3, "padding": "valid", "bias": 0.0, **options}
    kernel = make_kernel(kind, shape, **options)
    left, right = (rng.normal(size=(n, *shape)) for n in (n_left, n_right))
    left[1], left[2, :2], right[3], right[5] = 0, 0, 0, left[4]
    return kernel, *(
        kernel.prepare_block(torch.tensor(images, dtype=dtype), None)
        for images in (left, right)
    )


@pytest.fixture
def library(compiled_tiles):
    return compiled.load(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("kind", ["ntk", "nngp"])
@pytest.mark.parametrize("shape", SHAPES)
def test_compiled_tiles_equal_array_tiles(shape, kind, dtype, library, rng):
    shape, options = SHAPES[shape]
    kernel, left, right = blocks(shape, kind, dtype, rng, **options)
    arrays = Tiles(kernel, left, right, 8)
    built = compiled.CompiledTiles(library, kernel, left, right)
    every = slice(0, len(left)), slice(0, len(right))
    coef = torch.tensor(rng.normal(size=(len(right), 3)), dtype=dtype)
    tolerance = 1e-12 if dtype == torch.float64 else 3e-5
    pairs = [
        (built.value(*every), arrays.value(*every)),
        *zip(built.pullback(*every, coef), arrays.pullback(*every, coef), strict=True),
    ]
    for ours, theirs in pairs:
        assert ours.dtype == dtype
        assert_close(ours.numpy(), theirs.numpy(), tolerance)


@pytest.mark.parametrize("rows", [slice(0, 19), slice(3, 4), slice(5, 18)])
@pytest.mark.parametrize("columns", [slice(0, 35), slice(8, 9), slice(16, 31)])
def test_parts_of_a_tile_equal_the_whole(rows, columns, library, rng):
    kernel, left, right = blocks((6, 6, 1), "ntk", torch.float64, rng)
    built = compiled.CompiledTiles(library, kernel, left, right)
    every = slice(0, len(left)), slice(0, len(right))
    whole = built.value(*every)
    assert torch.equal(built.value(rows, columns), whole[rows, columns])
    coef = torch.tensor(rng.normal(size=(35, 2)))
    weights, _ = built.pullback(*every, coef)
    part, part_self = built.pullback(rows, columns, coef[columns])
    assert torch.equal(part, weights[:, :, rows, columns])
    expected = Tiles(kernel, left, right, 8).pullback(rows, columns, coef[columns])
    torch.testing.assert_close(part_self, expected[1])


@pytest.mark.parametrize("offset", [-30, -7, 0, 3, 16, 40])
def test_above_the_diagonal_all_is_computed(offset, library, rng):
    kernel, left, right = blocks((5, 5, 1), "ntk", torch.float64, rng)
    every = slice(0, len(left)), slice(0, len(right))
    for tiles in (
        compiled.CompiledTiles(library, kernel, left, right),
        Tiles(kernel, left, right, 4),
    ):
        whole, part = tiles.value(*every), tiles.value(*every, offset)
        needed = torch.ones_like(whole, dtype=bool).triu(offset)
        assert torch.equal(part[needed], whole[needed])


def test_tiles_may_be_called_from_several_threads(library, rng):
    kernel, left, right = blocks((8, 8, 1), "ntk", torch.float64, rng)
    built = compiled.CompiledTiles(library, kernel, left, right)
    every = slice(0, len(left)), slice(0, len(right))
    expected = built.value(*every)
    with ThreadPoolExecutor(4) as pool:
        results = list(pool.map(lambda _: built.value(*every), range(12)))
    assert all(torch.equal(result, expected) for result in results)


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_results_do_not_depend_on_the_number_of_threads(threads, library, rng):
    kernel, left, right = blocks((8, 8, 1), "ntk", torch.float64, rng, 70)
    built = compiled.CompiledTiles(library, kernel, left, right)
    every = slice(0, len(left)), slice(0, len(right))
    coef = torch.ones(len(right), 1, dtype=torch.float64)
    before = torch.get_num_threads()
    expected = built.value(*every), *built.pullback(*every, coef)
    try:
        torch.set_num_threads(threads)
        results = built.value(*every), *built.pullback(*every, coef)
    finally:
        torch.set_num_threads(before)
    assert all(map(torch.equal, results, expected))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_polynomial_arccos_is_accurate_to_rounding(dtype, compiled_tiles):
    # One pixel, depth 1: the kernel is r (s / π + 2 k0 κ), with κ = cos of the angle.
    angles = np.linspace(0.02, np.pi - 0.02, 2001)
    Y = np.stack([np.cos(angles), np.sin(angles)], -1).astype(dtype)
    X = np.array([[1.0, 0.0]], dtype=dtype)
    kernel = convolutional_kernel(X[:, None, None], Y[:, None, None], depth=1)[0]
    assert kernel.dtype == dtype
    angles = np.arctan2(*Y.T[::-1].astype(np.float64))  # of what was rounded to dtype
    expected = np.sin(angles) / np.pi + 2 * (1 - angles / np.pi) * np.cos(angles)
    assert np.abs(2 * kernel - expected).max() < 50 * np.finfo(dtype).eps


def test_no_memory_for_the_maps_is_a_memory_error(library, rng):
    kernel, left, right = blocks((6, 6, 1), "ntk", torch.float64, rng)
    built = compiled.CompiledTiles(library, kernel, left, right)
    built._value = lambda *arguments: 1
    with pytest.raises(MemoryError, match="maps"):
        built.value(slice(0, 2), slice(0, 8))

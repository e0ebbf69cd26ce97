"""Clocks, memory and tables of the benchmarks are right."""

import json
import os
import subprocess
import sys
import time

import numpy as np
import pytest
from bench_fixtures import *  # noqa: F403

from benchmarks import harness


def test_smooth_images_are_seeded_smooth_and_in_range():
    images = harness.smooth_images(5, (16, 12, 3), seed=1)
    assert images.shape == (5, 16, 12, 3)
    assert images.dtype == np.float32
    np.testing.assert_array_equal(images.min(axis=(1, 2, 3)), 0)
    np.testing.assert_array_equal(images.max(axis=(1, 2, 3)), 1)
    np.testing.assert_array_equal(images, harness.smooth_images(5, (16, 12, 3), seed=1))
    assert np.abs(np.diff(images, axis=1)).mean() < 0.8 * images.std()


@pytest.mark.parametrize("shape", [(6, 5, 4), (6, 5, 4, 3)])
def test_load_images_scales_bytes_and_refuses_too_few(tmp_path, shape):
    path = tmp_path / "images.npz"
    np.savez(path, X_train=np.full(shape, 255, dtype=np.uint8))
    images = harness.load_images(path, 3)
    assert images.shape == (3, 5, 4, 3 if len(shape) == 4 else 1)
    assert (images == 1).all()
    with pytest.raises(ValueError, match="6 images in X_train, not 7"):
        harness.load_images(path, 7)


def test_format_table_aligns_and_rounds():
    table = harness.format_table(["case", "s"], [["a", 0.123456], ["longer", None]])
    assert table.splitlines() == [
        "======  =====",
        "case        s",
        "======  =====",
        "a       0.123",
        "longer      -",
        "======  =====",
    ]


def test_growth_exponent_of_a_power():
    sizes = np.array([10, 20, 40])
    assert harness.growth_exponent(sizes, 3.0 * sizes**2) == pytest.approx(2)


def test_timed_returns_seconds_and_result():
    measured, result = harness.timed(sum, [1, 2])
    assert result == 3
    assert measured.keys() == {"seconds", "cpu_seconds"}
    assert min(measured.values()) >= 0


def test_children_cpu_seconds_of_running_and_ended():
    before = harness.children_cpu_seconds()
    code = "import time\nwhile time.process_time() < 0.3: pass\nprint(); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    child = subprocess.Popen([sys.executable, "-c", code], **pipes)
    child.stdout.readline()
    assert harness.children_cpu_seconds() - before > 0.2
    child.communicate(b"\n")
    assert 0.2 < harness.children_cpu_seconds() - before < 3


def test_peak_memory_includes_freed_arrays():
    def allocate(mebibytes):
        np.ones(mebibytes * harness.MEBIBYTE, dtype=np.uint8)
        return "freed"

    rise, result = harness.peak_memory(allocate, 64)
    assert result == "freed"
    assert 60 < rise / harness.MEBIBYTE < 80
    rise, _ = harness.peak_memory(allocate, 16)
    assert rise / harness.MEBIBYTE < 32


def test_own_memory_includes_children_not_mapped_files(tmp_path):
    mapped = np.lib.format.open_memmap(
        tmp_path / "a.npy", "w+", dtype=np.uint8, shape=(48 * harness.MEBIBYTE,)
    )
    code = "a = bytearray(b'x') * 2**26; print(flush=True); input()"
    with harness.OwnMemory(0.001) as memory:
        mapped[:] = 1
        child = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        child.stdout.readline()
        time.sleep(0.1)
        child.communicate(b"\n")
    assert 60 < memory.peak / harness.MEBIBYTE < 100


# Python warns of threads that a child does not have; this one uses none.
@pytest.mark.filterwarnings("ignore:.*use of fork:DeprecationWarning")
def test_own_memory_excludes_pages_shared_by_fork():
    ballast = np.ones(200 * harness.MEBIBYTE, np.uint8)
    with harness.OwnMemory(0.001) as memory:
        child = os.fork()
        if not child:
            time.sleep(0.1)
            os._exit(0)
        os.waitpid(child, 0)
    assert memory.peak < ballast.nbytes / 4


def test_report_printed_and_written_as_json(tmp_path, capsys):
    path = tmp_path / "results.json"
    harness.report(["a table"], {"answer": 42}, path)
    assert "a table" in capsys.readouterr().out
    record = json.loads(path.read_text())
    assert record["answer"] == 42
    assert record["machine"]["versions"]["numpy"] == np.__version__
    assert record["machine"]["cores"] >= 1

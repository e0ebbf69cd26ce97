"""Fused programs equal array operations and neural-tangents, and are used when checked.

Without a GPU they run in Triton's interpreter, on a CPU.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from by_hand import assert_close
from kernels.test_oracle import AT_TEST, case, oracle  # noqa: F401

from skconvrfm.compute import tiles
from skconvrfm.compute.fused import check
from skconvrfm.compute.native import build
from skconvrfm.kernels import ConvNNGP, ConvNTK, patch_agop

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
if not CUDA:  # before Triton is imported
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton")

from skconvrfm.compute.fused import tiles as fused  # noqa: E402

# The interpreter computes both branches of a choice, with numpy, and the lanes of no
# image, which hold any numbers.
pytestmark = [
    pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning"),
]
# Small: the interpreter takes time for every operation, not for every lane.
SMALL = fused.Tuning(block=32, warps=1, right=32, left=4)
EVERY = {"all layers at once": 10**6, "bands": 24, "layer by layer": 1}  # registers


@pytest.fixture
def fused_tiles(monkeypatch):
    """Take fused programs for every tile of a convolutional kernel."""
    monkeypatch.setenv(build.SWITCH, "0")
    monkeypatch.setattr(
        tiles, "fuse", lambda kernel, *_, **__: kernel._with(fused=True)
    )
    monkeypatch.setattr(fused, "Tuning", lambda: SMALL)


def blocks_of(kernel, *arrays, dtype=torch.float64):
    """Prepare blocks of images by the kernel, without a transform."""
    images = (torch.as_tensor(a, dtype=dtype, device=DEVICE) for a in arrays)
    return [kernel.prepare_block(each, None) for each in images]


ORACLE = ["8x8_c3_L3_T_valid", "8x8_c3_L1_T_same", "blank8x8_c1_L2_I_valid"]


@pytest.mark.parametrize("case", ORACLE, indirect=True)
def test_values_and_agops_equal_neural_tangents(case, fused_tiles):  # noqa: F811
    T, some, where = case["T"], slice(0, 2), {"device": DEVICE.type}
    for Kernel, name in ((ConvNTK, "ntk"), (ConvNNGP, "nngp")):
        kernel = Kernel(**case["options"])
        values = kernel(case["test"][some], case["train"], patch_transform=T, **where)
        assert_close(values, case[f"Ktest_{name}"][some], AT_TEST)
    machine = case["train"], case["dual_coef"], case["test"][:3]
    agop = patch_agop(ConvNTK(**case["options"]), *machine, patch_transform=T, **where)
    assert_close(agop, case["agop_on_test0to2"], AT_TEST)


SHAPES = [
    ((7, 6, 2), {"depth": 4, "patch_size": 2, "bias": 0.3}),
    ((4, 5, 1), {"depth": 3, "patch_size": (3, 4), "padding": "same"}),
    ((7, 4, 1), {"depth": 2, "patch_size": (4, 1)}),
    ((3, 6, 2), {"depth": 2, "patch_size": (1, 5), "padding": "same", "bias": 0.5}),
    ((3, 3, 2), {"depth": 1}),
]


@pytest.mark.parametrize("registers", EVERY.values(), ids=EVERY)
@pytest.mark.parametrize(("shape", "options"), SHAPES)
def test_bands_and_groups_equal_array_operations(shape, options, registers, rng):
    # The Gaussian process goes along where it costs the least.
    Kernel = ConvNNGP if registers == EVERY["bands"] else ConvNTK
    kernel = Kernel(**options).bind(shape)
    left, right = blocks_of(kernel, *(rng.normal(size=(n, *shape)) for n in (3, 4)))
    sizes = {"block": 16, "warps": 1, "right": 16, "left": 2}
    tuning = fused.Tuning(**sizes, registers=registers)
    every = slice(0, 3), slice(0, 4)
    got = fused.FusedTiles(kernel, left, right, 2**24, tuning).value(*every)
    torch.testing.assert_close(got, kernel.value(left, right), rtol=1e-10, atol=1e-12)
    coef = torch.as_tensor(rng.normal(size=(4, 2)), device=DEVICE)
    opened = fused.FusedTiles(kernel, left, right, 2**24, tuning)
    pairs = opened.pullback(*every, coef), kernel.pullback(left, right, coef)
    for result, expected in zip(*pairs, strict=True):
        torch.testing.assert_close(result, expected, rtol=1e-9, atol=1e-11)


def test_image_with_itself_has_the_exact_diagonal_in_float32(rng):
    kernel = ConvNTK(depth=2, bias=0).bind((6, 6, 1))
    [block] = blocks_of(kernel, rng.normal(size=(3, 6, 6, 1)), dtype=torch.float32)
    every = slice(0, 3), slice(0, 3)
    got = fused.FusedTiles(kernel, block, block, 2**24, SMALL).value(*every)
    exact = kernel.diagonal(block)
    torch.testing.assert_close(got.diagonal(), exact, rtol=1e-6, atol=0)


def test_triangle_equals_that_of_all_values(rng):
    kernel = ConvNTK(depth=1).bind((5, 5, 1))
    [block] = blocks_of(kernel, rng.normal(size=(9, 5, 5, 1)))
    opened = fused.FusedTiles(kernel, block, block, 2**24, SMALL)
    whole = opened.value(slice(0, 9), slice(0, 9))
    half = opened.value(slice(0, 9), slice(0, 9), 0)
    assert torch.equal(half.triu(), whole.triu())
    lower = opened.value(slice(4, 9), slice(2, 9), 0)
    assert torch.equal(lower[:, 2:].triu(), whole[4:, 4:].triu())


def test_programs_compile_for_a_gpu(environment, tmp_path):
    environment |= {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = sys.executable, str(Path(__file__).with_name("fused_compile.py"))
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["4", "4"]  # of a kernel of two layers, each


# When they are used


@pytest.fixture
def first_use(monkeypatch, tmp_path):
    """Begin anew: no record, nothing failed; count the comparisons."""
    monkeypatch.setenv(build.CACHE, str(tmp_path))
    monkeypatch.setenv(build.SWITCH, "1")
    monkeypatch.setattr(check, "_FAILED", set())
    check._passes.cache_clear()
    counted = []
    monkeypatch.setattr(check, "compare", lambda *given: counted.append(given))
    yield counted
    check._passes.cache_clear()


def test_programs_that_passed_are_not_compared_again(first_use):
    kernel = ConvNTK().bind((9, 9, 1))
    for _ in range(2):
        assert check.wanted(0, kernel, DEVICE)
        check._passes.cache_clear()  # as in another process
    assert len(first_use) == 1
    assert check.wanted(0, ConvNNGP().bind((9, 9, 1)), DEVICE)
    assert len(first_use) == 2


def test_programs_are_used_where_the_work_is_worth_it(first_use, monkeypatch):
    kernel = ConvNTK().bind((9, 9, 1))
    monkeypatch.setenv(build.SWITCH, "0")
    assert not check.wanted(1e30, kernel, DEVICE)
    monkeypatch.delenv(build.SWITCH)
    assert not check.wanted(check.WORTH_FUSING / 2, kernel, DEVICE)
    assert not first_use
    assert check.wanted(check.WORTH_FUSING, kernel, DEVICE)


def test_pullbacks_are_worth_it_earlier_and_pools_never(monkeypatch):
    monkeypatch.setattr(check, "wanted", lambda work, *_: work >= check.WORTH_FUSING)
    resources, image = SimpleNamespace(device=torch.device("cuda")), (32, 32, 3)
    kernel, pooled = (ConvNTK(pool_grid=g).bind(image) for g in (None, 2))
    assert tiles.fuse(kernel, 2000**2 / 2, resources).fused
    assert tiles.fuse(kernel, 200 * 2000, resources, pullback=True).fused
    assert not tiles.fuse(kernel, 200 * 2000, resources).fused
    assert not tiles.fuse(pooled, 2000**2, resources).fused
    assert not tiles.fuse(
        kernel, 1e9, SimpleNamespace(device=torch.device("cpu"))
    ).fused


def test_wrong_programs_are_given_up_with_one_warning(first_use, monkeypatch):
    monkeypatch.setattr(check, "compare", lambda *_: 1 / 0)
    kernel = ConvNTK().bind((9, 9, 1))
    with pytest.warns(UserWarning, match="without its fused programs.*ZeroDivision"):
        assert not check.wanted(0, kernel, DEVICE)
    assert not check.wanted(0, kernel, DEVICE)


@pytest.mark.parametrize("Kernel", [ConvNTK, ConvNNGP])
def test_comparison_finds_a_wrong_program(Kernel, monkeypatch):
    monkeypatch.setattr(fused, "Tuning", lambda: SMALL)
    check.compare(Kernel.specimen(), DEVICE)
    power = fused._self_weights
    monkeypatch.setattr(fused, "_self_weights", lambda *a: power(*a) * 1.001)
    with pytest.raises(ArithmeticError, match=re.escape("off by 1.0e-03")):
        check.compare(Kernel.specimen(), DEVICE)


def test_program_that_fails_later_gives_way_to_array_operations(
    first_use, fused_tiles, monkeypatch, rng
):
    X = rng.normal(size=(4, 5, 5))
    monkeypatch.setattr(fused, "_value", lambda *_: 1 / 0)
    with pytest.warns(UserWarning, match="without its fused programs") as caught:
        got = ConvNTK(depth=1)(X, device=DEVICE.type)
    assert len(caught) == 1
    monkeypatch.undo()
    assert_close(got, ConvNTK(depth=1)(X, device=DEVICE.type), 1e-12)


def test_failed_allocation_is_tried_again_with_less(
    first_use, fused_tiles, monkeypatch, rng
):
    plain, asked = fused._value, []

    def fail_once(*arguments):
        asked.append(1)
        if len(asked) == 1:
            raise torch.cuda.OutOfMemoryError("out of memory")
        return plain(*arguments)

    monkeypatch.setattr(fused, "_value", fail_once)
    X = rng.normal(size=(3, 4, 4))
    with pytest.warns(RuntimeWarning, match="going on with tiles of half the size"):
        got = ConvNTK(depth=1)(X, device=DEVICE.type)
    assert len(asked) == 2
    assert np.isfinite(got).all()

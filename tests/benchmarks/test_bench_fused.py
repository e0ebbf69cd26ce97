"""Fused GPU kernels equal neural-tangents and the plain steps.

On a CPU this needs Triton's interpreter, ``TRITON_INTERPRET=1``, which `conftest` or
this file sets before Triton is imported; on a GPU the same tests run on the card.
"""

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch

CUDA = torch.cuda.is_available()
if not CUDA and not os.environ.get("COMPILE_ONLY"):
    os.environ["TRITON_INTERPRET"] = "1"
pytest.importorskip("triton")

from benchmarks import fused  # noqa: E402

# The interpreter computes both branches of a choice, with numpy.
pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:divide by zero:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning"),
]
DEVICE = torch.device("cuda" if CUDA else "cpu")
# Small blocks: the interpreter takes time for every operation, not for every lane.
TUNING = fused.Tuning(block=16, warps=1, right=16, left=4)
if CUDA:
    TUNING = fused.Tuning(block=32, warps=1, right=32, left=4)
CASES = [
    *(f"8x8_c1_L{depth}_{metric}_valid" for depth in (1, 2, 3) for metric in "IT"),
    *(f"8x8_c3_L{depth}_{metric}_valid" for depth in (1, 2, 3) for metric in "IT"),
    *(f"8x8_c3_L1_{metric}_same" for metric in "IT"),
    *(f"blank8x8_c1_L{depth}_{metric}_valid" for depth in (1, 2) for metric in "IT"),
]


def make_kernel(image_shape, depth, *, tangent=True, patch=(3, 3), same=False, bias=0):
    """Return a stand-in with the attributes that the fused kernels read."""
    height, width, channels = image_shape
    layers = []
    for _ in range(depth):
        padding = (0, 0, 0, 0)
        if same:
            top, left = ((size - 1) // 2 for size in patch)
            padding = (top, patch[0] - 1 - top, left, patch[1] - 1 - left)
        height += padding[0] + padding[1] - patch[0] + 1
        width += padding[2] + padding[3] - patch[1] + 1
        layers.append(
            SimpleNamespace(patch=patch, padding=padding, locations=(height, width))
        )
    return SimpleNamespace(
        kind="ntk" if tangent else "nngp",
        tangent=tangent,
        layers=layers,
        channels=channels,
        bias=bias,
        parallel_gap=lambda dtype: 32 * torch.finfo(dtype).eps,
    )


def make_block(kernel, images, transform=None, dtype=torch.float64):
    """A prepared block of images (n, h, w, c)."""
    layer = kernel.layers[0]
    top, bottom, left, right = layer.padding
    maps = torch.as_tensor(images, dtype=torch.float64).permute(3, 1, 2, 0)
    maps = torch.nn.functional.pad(maps, (0, 0, left, right, top, bottom))
    windows = maps.unfold(1, layer.patch[0], 1).unfold(2, layer.patch[1], 1)
    patches = windows.permute(1, 2, 0, 4, 5, 3).flatten(2, 4)
    if transform is not None:
        patches = torch.as_tensor(transform, dtype=torch.float64) @ patches
    block = fused._reference_block(kernel, patches.contiguous())
    return fused._Sample(
        block.patches.to(DEVICE, dtype),
        [root.to(DEVICE, dtype) for root in block.roots],
        [root.to(DEVICE, dtype) for root in block.inverse_roots],
    )


def assert_close(actual, expected, tolerance):
    """Compare relative to the largest value."""
    actual = actual.double().cpu().numpy() if torch.is_tensor(actual) else actual
    assert actual.shape == expected.shape
    assert np.isfinite(actual).all()
    difference = np.abs(actual - expected).max()
    assert difference <= tolerance * np.abs(expected).max()


@pytest.fixture(scope="session")
def oracle(shared):
    """Return the values of neural-tangents."""
    with np.load(shared / "oracle" / "ntk_reference.npz") as values:
        return {key: value.astype(np.float64) for key, value in values.items()}


def case_of(oracle, name, tangent=True):
    """Kernel, transform, blocks and expected values of one case."""
    size, channels, depth, metric, padding = name.split("_")
    metric_name = {"I": "identity", "T": "transform"}[metric]
    prefix = f"{size}_{channels}_{depth}_{metric_name}_{padding}/"
    transform = oracle[f"patch_transform_{channels}"] if metric == "T" else None
    images = [oracle[f"images/{part}_{size}_{channels}"] for part in ("test", "train")]
    kernel = make_kernel(
        images[0].shape[1:], int(depth[1:]), tangent=tangent, same=padding == "same"
    )
    expected = {
        key.removeprefix(prefix): value
        for key, value in oracle.items()
        if key.startswith(prefix)
    }
    return kernel, transform, images, expected


@pytest.mark.parametrize("tangent", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_values_equal_neural_tangents(oracle, name, tangent):
    kernel, transform, images, expected = case_of(oracle, name, tangent)
    left, right = images[0][:2], images[1]
    left, right = (make_block(kernel, x, transform) for x in (left, right))
    got = fused.value(kernel, left, right, tuning=TUNING)
    assert_close(got, expected["Ktest_ntk" if tangent else "Ktest_nngp"][:2], 1e-10)


@pytest.mark.parametrize("name", [CASES[4], CASES[11], CASES[13], CASES[17]])
def test_values_in_single_precision(oracle, name):
    kernel, transform, images, expected = case_of(oracle, name)
    left, right = images[0][:2], images[1]
    left, right = (
        make_block(kernel, x, transform, torch.float32) for x in (left, right)
    )
    got = fused.value(kernel, left, right, tuning=TUNING)
    assert_close(got, expected["Ktest_ntk"][:2], 1e-5)


@pytest.mark.parametrize("name", CASES)
def test_gradients_equal_neural_tangents(oracle, name):
    kernel, transform, images, expected = case_of(oracle, name)
    left, right = images[0][:1], images[1]
    left, right = (make_block(kernel, x, transform) for x in (left, right))
    coef = torch.as_tensor(oracle["dual_coef"], device=DEVICE)
    weights, own = fused.pullback(kernel, left, right, coef, tuning=TUNING)
    sums = torch.einsum("hwij,jo,hwdj->oihwd", weights, coef, right.patches)
    sums = sums + 2 * torch.einsum("hwio,hwdi->oihwd", own, left.patches)
    if transform is not None:
        sums = sums @ torch.as_tensor(transform, device=DEVICE)
    assert_close(sums / kernel.channels, expected["grads_on_test0to2"][:, :1], 1e-10)


SHAPES = {
    "deep": {"image_shape": (9, 8, 2), "depth": 4, "patch": (2, 2), "bias": 0.3},
    "same, even patch": {"image_shape": (4, 6, 1), "depth": 3, "patch": (3, 4)}
    | {"same": True},
    "tall patch": {"image_shape": (9, 6, 1), "depth": 2, "patch": (4, 1)},
    "wide patch, same": {"image_shape": (3, 7, 2), "depth": 2, "patch": (1, 5)}
    | {"same": True, "bias": 0.5},
    "whole image": {"image_shape": (3, 3, 2), "depth": 1},
}
FEW = {"all layers at once": 10**6, "bands": 24, "layer by layer": 1}


@pytest.mark.parametrize("few", FEW)
@pytest.mark.parametrize("shape", SHAPES)
def test_bands_and_groups_equal_plain_steps(shape, few):
    # The Gaussian process goes along where it costs the least.
    kernel = make_kernel(tangent=few != "bands", **SHAPES[shape])
    rng = np.random.default_rng(0)
    images = [rng.standard_normal((n, *SHAPES[shape]["image_shape"])) for n in (3, 5)]
    left, right = (make_block(kernel, x) for x in images)
    coef = torch.as_tensor(rng.standard_normal((5, 2)))
    exact = fused._reference(kernel, left.patches.cpu(), right.patches.cpu(), coef)
    tuning = fused.Tuning(block=16, warps=1, right=16, left=2, registers=2 * FEW[few])
    got = (
        fused.value(kernel, left, right, tuning=tuning),
        *fused.pullback(kernel, left, right, coef.to(DEVICE), tuning=tuning),
    )
    for result, expected in zip(got, exact, strict=True):
        assert_close(result, expected.numpy(), 1e-10)


def test_an_image_with_itself_has_the_exact_diagonal():
    kernel = make_kernel((6, 6, 1), 2)
    images = np.random.default_rng(1).standard_normal((3, 6, 6, 1))
    block = make_block(kernel, images, dtype=torch.float32)
    got = fused.value(kernel, block, block, tuning=TUNING).diagonal()
    theta = fused._window_sum(block.roots[0].square(), kernel.layers[1])
    exact = theta + 2 * block.roots[1].square()
    assert_close(got, exact.mean((0, 1)).double().cpu().numpy(), 1e-6)


def test_a_triangle_is_enough():
    kernel = make_kernel((5, 5, 1), 2)
    images = np.random.default_rng(2).standard_normal((9, 5, 5, 1))
    block = make_block(kernel, images)
    whole = fused.value(kernel, block, block, tuning=TUNING)
    half = fused.value(kernel, block, block, diagonal=0, tuning=TUNING)
    assert torch.equal(half.triu(), whole.triu())


def test_the_check_on_first_use():
    assert fused.available(DEVICE) == CUDA
    fused._check(DEVICE)

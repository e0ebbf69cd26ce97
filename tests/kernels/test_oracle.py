"""Kernels, gradients and AGOPs equal those of neural-tangents, an independent program.

The reference values lie outside the project; without them these tests skip, and
test_formulas.py and test_agop.py hold the kernel against its formulas alone.
"""

import numpy as np
import pytest
from by_hand import assert_close, gradients_by_pullback

from skconvrfm.kernels import ConvNNGP, ConvNTK, patch_agop

CASES = [
    *(f"8x8_c1_L{depth}_{metric}_valid" for depth in (1, 2, 3) for metric in "IT"),
    *(f"8x8_c3_L{depth}_{metric}_valid" for depth in (1, 2, 3) for metric in "IT"),
    *(f"8x8_c3_L1_{metric}_same" for metric in "IT"),
    *(f"blank8x8_c1_L{depth}_{metric}_valid" for depth in (1, 2) for metric in "IT"),
]
KERNELS = {"ntk": ConvNTK, "nngp": ConvNNGP}
# Relative to the largest value. At a training image a patch meets itself, where
# the kernel has a kink.
AT_TEST, AT_TRAINING, IN_FLOAT32 = 1e-10, 1e-7, 1e-4
PLACES = pytest.mark.parametrize(
    ("where", "tolerance"), [("test", AT_TEST), ("train", AT_TRAINING)]
)


@pytest.fixture(scope="module")
def oracle(shared):
    with np.load(shared / "oracle" / "ntk_reference.npz") as values:
        # Images are stored in float32, which here would mean "compute in float32".
        return {key: value.astype(np.float64) for key, value in values.items()}


@pytest.fixture(params=CASES)
def case(request, oracle):
    """Return one case of the reference: images, hyperparameters, expected values."""
    size, channels, depth, metric, padding = request.param.split("_")
    metric_name = {"I": "identity", "T": "transform"}[metric]
    prefix = f"{size}_{channels}_{depth}_{metric_name}_{padding}/"
    transform = oracle[f"patch_transform_{channels}"] if metric == "T" else None
    return {
        "train": oracle[f"images/train_{size}_{channels}"],
        "test": oracle[f"images/test_{size}_{channels}"],
        "dual_coef": oracle["dual_coef"],
        "options": {"depth": int(depth[1:]), "padding": padding, "bias": 0},
        "T": transform,
        **{
            k.removeprefix(prefix): v for k, v in oracle.items() if k.startswith(prefix)
        },
    }


def test_every_case_of_the_reference_is_tried(oracle):
    cases = {key.split("/")[0] for key in oracle if "/Ktest_ntk" in key}
    assert len(cases) == len(CASES) == 18


@pytest.mark.parametrize("name", KERNELS)
def test_kernels_equal_the_reference(case, name, tiles):
    kernel, T = KERNELS[name](**case["options"]), case["T"]
    between = kernel(case["test"], case["train"], patch_transform=T)
    assert_close(between, case[f"Ktest_{name}"], AT_TEST)
    among, expected = kernel(case["train"], patch_transform=T), case[f"Ktrain_{name}"]
    assert_close(np.triu(among, 1), np.triu(expected, 1), AT_TEST)
    assert_close(among, expected, AT_TRAINING)


@PLACES
def test_agops_and_gradients_equal_the_reference(case, where, tolerance, tiles):
    kernel, T = ConvNTK(**case["options"]), case["T"]
    machine = case["train"], case["dual_coef"], case[where][:3]
    agop = patch_agop(kernel, *machine, patch_transform=T)
    assert_close(agop, case[f"agop_on_{where}0to2"], tolerance)
    gradients = gradients_by_pullback(kernel, *machine, T)
    assert_close(gradients, case[f"grads_on_{where}0to2"], tolerance)


def test_float32_is_close_to_the_reference(case, tiles):
    options = {"dtype": "float32", "patch_transform": case["T"]}
    for name, Kernel in KERNELS.items():
        kernel = Kernel(**case["options"])
        between = kernel(case["test"], case["train"], **options)
        assert_close(between, case[f"Ktest_{name}"], IN_FLOAT32)
        among = kernel(case["train"], **options)
        assert_close(among, case[f"Ktrain_{name}"], IN_FLOAT32)
    kernel = ConvNTK(**case["options"])
    for where in ("test", "train"):
        machine = case["train"], case["dual_coef"], case[where][:3]
        agop = patch_agop(kernel, *machine, **options)
        assert_close(agop, case[f"agop_on_{where}0to2"], IN_FLOAT32)

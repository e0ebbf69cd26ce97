"""Kernels, gradients and AGOPs equal those of neural-tangents, an independent program.

The reference values lie outside the project; without them these tests skip, and
test_convolutional.py and test_agop.py hold the kernel against its formulas alone.
"""

import numpy as np
import pytest
from by_hand import assert_close, gradients_by_pullback

from skconvrfm.kernels import convolutional_kernel, patch_agop

CASES = [
    *(f"8x8_c1_L{depth}_{metric}_valid" for depth in (1, 2, 3) for metric in "IT"),
    *(f"8x8_c3_L{depth}_{metric}_valid" for depth in (1, 2, 3) for metric in "IT"),
    *(f"8x8_c3_L1_{metric}_same" for metric in "IT"),
    *(f"blank8x8_c1_L{depth}_{metric}_valid" for depth in (1, 2) for metric in "IT"),
]
# Relative to the largest value. At a training image a patch meets itself, where
# the kernel has a kink.
AT_TEST, AT_TRAINING, IN_FLOAT32 = 1e-10, 1e-7, 1e-4


@pytest.fixture(scope="module")
def oracle(shared):
    with np.load(shared / "oracle" / "ntk_reference.npz") as values:
        # Images are stored in float32, which here would mean "compute in float32".
        return {key: value.astype(np.float64) for key, value in values.items()}


@pytest.fixture(params=CASES)
def case(request, oracle):
    """Return one case of the reference: images, options and expected values."""
    size, channels, depth, metric, padding = request.param.split("_")
    metric_name = {"I": "identity", "T": "transform"}[metric]
    prefix = f"{size}_{channels}_{depth}_{metric_name}_{padding}/"
    transform = oracle[f"patch_transform_{channels}"] if metric == "T" else None
    return {
        "train": oracle[f"images/train_{size}_{channels}"],
        "test": oracle[f"images/test_{size}_{channels}"],
        "dual_coef": oracle["dual_coef"],
        "options": {
            "depth": int(depth[1:]),
            "padding": padding,
            "patch_transform": transform,
        },
        **{
            k.removeprefix(prefix): v for k, v in oracle.items() if k.startswith(prefix)
        },
    }


def test_every_case_of_the_reference_is_tried(oracle):
    cases = {key.split("/")[0] for key in oracle if "/Ktest_ntk" in key}
    assert len(cases) == len(CASES) == 18


@pytest.mark.parametrize("kind", ["ntk", "nngp"])
def test_kernels_equal_the_reference(case, kind, tiles):
    options = {"kind": kind, **case["options"]}
    between = convolutional_kernel(case["test"], case["train"], **options)
    assert_close(between, case[f"Ktest_{kind}"], AT_TEST)
    among, expected = (
        convolutional_kernel(case["train"], **options),
        case[f"Ktrain_{kind}"],
    )
    assert_close(np.triu(among, 1), np.triu(expected, 1), AT_TEST)
    assert_close(among, expected, AT_TRAINING)


@pytest.mark.parametrize("where", ["test", "train"])
def test_agops_equal_the_reference(case, where, tiles):
    agop = patch_agop(
        case["train"], case["dual_coef"], case[where][:3], **case["options"]
    )
    expected = case[f"agop_on_{where}0to2"]
    assert_close(agop, expected, AT_TEST if where == "test" else AT_TRAINING)


@pytest.mark.parametrize("where", ["test", "train"])
def test_gradients_equal_the_reference(case, where, tiles):
    gradients = gradients_by_pullback(
        case["train"], case["dual_coef"], case[where][:3], **case["options"]
    )
    expected = case[f"grads_on_{where}0to2"]
    assert_close(gradients, expected, AT_TEST if where == "test" else AT_TRAINING)


def test_float32_is_close_to_the_reference(case, tiles):
    options = {"dtype": "float32", **case["options"]}
    for kind in ("ntk", "nngp"):
        between = convolutional_kernel(
            case["test"], case["train"], kind=kind, **options
        )
        assert_close(between, case[f"Ktest_{kind}"], IN_FLOAT32)
        among = convolutional_kernel(case["train"], kind=kind, **options)
        assert_close(among, case[f"Ktrain_{kind}"], IN_FLOAT32)
    for where in ("test", "train"):
        agop = patch_agop(case["train"], case["dual_coef"], case[where][:3], **options)
        assert_close(agop, case[f"agop_on_{where}0to2"], IN_FLOAT32)

"""Whatever does not fit is refused before it reaches the compiled functions."""

import re
import subprocess
import sys
from pathlib import Path

import native_stand_ins as stand_ins
import numpy as np
import pytest
import torch

from skconvrfm.compute.images import Layer
from skconvrfm.compute.native import build, checks

SCRIPT = Path(__file__).with_name("native_mutations.py")


@pytest.mark.slow
def test_changed_arguments_are_refused_and_end_no_process(environment):
    if not any(map(build.shutil.which, ("g++", "clang++", "c++"))):
        pytest.skip("no C++ compiler here")
    done = subprocess.run(
        [sys.executable, str(SCRIPT)],
        env={**environment, build.SWITCH: "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-300:] + done.stderr[-3000:]
    refused, _ = re.findall(r"\d+", done.stdout.splitlines()[-1])
    assert int(refused) > 2000


def without_memory():
    array = torch.zeros(2, 3)
    array.untyped_storage().resize_(0)
    return array


# Arguments of the check, and what the message has.
ARRAYS = {
    "shape": ((torch.zeros(2, 4),), "weights has shape (2, 4); expected (2, 3)"),
    "sizes": (
        (torch.zeros(2, 3, 1), ("n", "m", 1, "k")),
        "weights has shape (2, 3, 1); expected (2, m, 1, k)",
    ),
    "dtype": (
        (torch.zeros(2, 3), ("n", 3), torch.float64),
        "weights has dtype torch.float32; expected torch.float64",
    ),
    "half": ((torch.zeros(2, 3, dtype=torch.half),), "float32 or torch.float64"),
    "no tensor": ((np.zeros((2, 3)),), "ndarray"),
    "elsewhere": ((torch.zeros(2, 3, device="meta"),), "CPU"),
    "sparse": ((torch.zeros(2, 3).to_sparse(),), "CPU"),
    "negated": ((torch.complex(*torch.ones(2, 2, 3)).conj().imag,), "CPU"),
    "freed": ((without_memory(),), "memory"),
    "strides": ((torch.zeros(3, 2).T, ("n", 3), None, True), "strides"),
}


@pytest.mark.parametrize("case", ARRAYS)
def test_message_names_the_array_and_what_is_expected(case):
    (array, *rest), message = ARRAYS[case]
    shape, *options = rest or [("n", 3)]
    with pytest.raises(TypeError if case == "no tensor" else ValueError) as caught:
        checks.check_array("weights", array, shape, {"n": 2}, *options)
    assert message in str(caught.value)
    checks.check_array("weights", torch.zeros(3, 2).T, ("n", 3), {"n": 2})


def test_named_sizes_are_kept_where_an_array_fits_and_only_there():
    sizes = {"n": 2}
    checks.check_array("weights", torch.zeros(2, 5), ("n", "m"), sizes)
    assert sizes == {"n": 2, "m": 5}
    with pytest.raises(ValueError):
        checks.check_array("coef", torch.zeros(7, 6), ("k", "m"), sizes)
    assert sizes == {"n": 2, "m": 5}


def test_more_entries_than_cpp_counts_are_refused():
    checks.check_count(checks.LARGEST)
    with pytest.raises(ValueError, match="entries"):
        checks.check_count(checks.LARGEST + 1)


@pytest.mark.parametrize(
    "part", [slice(-1, 2), slice(4, 3), slice(0, 21), slice(3, 9), slice(0, 8, 2)]
)
def test_slices_outside_a_block_are_refused(part):
    assert checks.check_span("columns", slice(8, 19), 20, 8) == slice(8, 19)
    with pytest.raises(ValueError, match="columns"):
        checks.check_span("columns", part, 20, 8)


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("patch", [1, 2, 5, (3, 9)])
def test_kernels_of_all_layouts_are_accepted(patch, padding):
    kernel = stand_ins.make_kernel((7, 6, 2), depth=2, patch=patch, padding=padding)
    checks.check_kernel(kernel)


@pytest.mark.parametrize(
    "layer",
    [
        Layer((3, 3), (0, 0, 0, 0), (5, 6)),  # locations of another image
        Layer((3, 3), (3, 0, 0, 0), (7, 4)),  # windows of nothing but zeros
        Layer((3, 3), (2, 2, 2, 2), (8, 8)),  # larger than the map below
        Layer((7, 7), (6, 0, 6, 0), (6, 6)),  # a patch that is not clipped
        Layer((0, 1), (0, 0, 0, 0), (7, 6)),
    ],
    ids=str,
)
def test_layers_that_read_beyond_their_maps_are_refused(layer):
    kernel = stand_ins.make_kernel((8, 8, 1), depth=1)
    kernel.layers += (layer,)
    with pytest.raises(ValueError, match=r"layers\[1\]"):
        checks.check_kernel(kernel)


def filters_of(**changes):
    layer = Layer((3, 3), (0, 0, 0, 0), (6, 6))
    features = stand_ins.make_filters(layer, 1, np.ones((5, 9)), "relu", np.ones(5))
    vars(features).update(changes)
    return features


@pytest.mark.parametrize(
    ("filters", "biases", "rows", "message"),
    [
        (np.ones((5, 36)), np.ones(5), 8, r"filters has shape \(5, 36\).*\(5, 9\)"),
        (np.ones((5, 9)), np.ones(99), 8, r"biases has shape \(99,\).*\(5\)"),
        (np.ones((5, 9)), np.ones(5), 9, r"layer.locations is \(6, 6\).*\(7, 6\)"),
    ],
)
def test_filters_of_another_patch_are_refused(filters, biases, rows, message):
    features = filters_of(affine=lambda channels: (filters, biases))
    with pytest.raises(ValueError, match=message):
        checks.check_filters(features, torch.zeros(2, rows, 8, 1))


@pytest.mark.parametrize(
    "along", [(0, 3), (1, 6), (0, 3, 3, 6), (0, 4, 2, 6), (0,), (), (0, -1, 6), (0, 7)]
)
def test_edges_that_do_not_divide_the_map_are_refused(along):
    for edges in ((along, (0, 6)), ((0, 6), along), ((0, 6),)):
        with pytest.raises(ValueError, match="edges"):
            checks.check_filters(filters_of(edges=edges), torch.zeros(2, 8, 8, 1))


@pytest.mark.parametrize("order", [0, 1.5, 9, -1, np.nan, -np.inf, None, "1"])
def test_orders_that_are_not_compiled_are_refused(order):
    with pytest.raises(ValueError, match="order is"):
        checks.check_filters(filters_of(order=order), torch.zeros(2, 8, 8, 1))

"""Pooled kernels compare all locations of a cell with each other."""

import itertools
import math

import numpy as np
import pytest
import torch
from by_hand import (
    agop_of_gradients,
    assert_close,
    gradients_by_autograd,
    kernel_by_hand,
    margins,
    patches_by_hand,
    relu_by_hand,
)
from joblib import parallel_config
from sklearn import config_context

from skconvrfm import ConvRFMClassifier
from skconvrfm.core.features import average_pool
from skconvrfm.core.images import cells
from skconvrfm.core.pooling import PooledKernel
from skconvrfm.core.tiles import find_library, kernel_product, tile_pairs
from skconvrfm.kernels import (
    convolutional_kernel,
    make_kernel,
    make_resources,
    patch_agop,
    patch_kernel,
)

# name: shape of an image, options of the kernel
CASES = {
    "depth 1": ((6, 5, 1), {"depth": 1, "pool_grid": (1, 1)}),
    "depth 1, cells": ((7, 6, 2), {"depth": 1, "pool_grid": (2, 3), "bias": 0.3}),
    "depth 2": ((7, 6, 1), {"depth": 2, "pool_grid": (1, 1), "bias": 0.3}),
    "depth 2, cells": ((7, 8, 2), {"depth": 2, "pool_grid": (2, 2)}),
    "depth 3": ((8, 9, 1), {"depth": 3, "pool_grid": (2, 3), "patch_size": (2, 3)}),
    "same": ((4, 5, 2), {"depth": 2, "pool_grid": (2, 2), "padding": "same"}),
    "same, bias": (
        (4, 4, 1),
        {"depth": 3, "pool_grid": (1, 1), "padding": "same", "bias": 0.3},
    ),
    "same, even patch": (
        (5, 4, 1),
        {"depth": 2, "pool_grid": (2, 1), "padding": "same", "patch_size": (2, 4)},
    ),
    "map smaller than patch": (
        (6, 5, 1),
        {"depth": 3, "pool_grid": (1, 1), "patch_size": 4},
    ),
    "more cells than locations": ((5, 4, 1), {"depth": 1, "pool_grid": (2, 9)}),
    "laplace": ((6, 5, 2), {"kind": "laplace", "pool_grid": (2, 3)}),
    "gaussian, same": (
        (4, 5, 1),
        {"kind": "gaussian", "pool_grid": (1, 2), "padding": "same"},
    ),
}
BANDWIDTH = 2.0
KINDS = ("ntk", "nngp", "laplace", "gaussian")
ALL_KINDS = pytest.mark.parametrize("kind", KINDS)


def window_places(size, patch_size, padding):
    """Where a dimension's windows look: one 0/1 matrix (out, in) for each entry."""
    patch = min(size, patch_size)
    before = margins(patch)[0] if padding == "same" else 0
    count = size if padding == "same" else size - patch + 1
    return [np.eye(count, size, entry - before) for entry in range(patch)]


def cell_means(size, count):
    """The matrix (cells, size) of means over the cells of a dimension."""
    count = min(size, count)
    cell = [
        next(c for c in range(count) if u < (c + 1) * size // count)
        for u in range(size)
    ]
    members = np.equal.outer(range(count), cell)
    return members / members.sum(1, keepdims=True)


def pooled_kernel_of_patches(
    p,
    q,
    *,
    pool_grid,
    channels,
    kind="ntk",
    depth=1,
    patch_size=3,
    padding="valid",
    bias=0.0,
    patch_transform=None,
    xp=np,
):
    """K(x, z) from the patches of x and of z, by all pairs of their locations."""
    sizes, pair = p.shape[:2], np.broadcast_to(patch_size, 2)
    if patch_transform is not None:
        p, q = p @ patch_transform, q @ patch_transform
    p, q = (v.reshape(-1, v.shape[-1]) for v in (p, q))
    if kind in ("laplace", "gaussian"):
        r = ((p[:, None] - q[None]) ** 2).sum(-1) / BANDWIDTH**2
        values = xp.exp(-xp.sqrt(r) if kind == "laplace" else -r / 2)
    else:
        s, a, b = p @ q.T, (p * p).sum(-1), (q * q).sum(-1)
        s, a, b = (m / channels + bias**2 for m in (s, a, b))
        theta = s
        for layer in range(depth):
            if layer:
                rows, columns = map(window_places, sizes, pair, [padding] * 2)
                sizes = len(rows[0]), len(columns[0])
                places = [
                    xp.asarray(np.kron(*both))
                    for both in itertools.product(rows, columns)
                ]
                s, theta = (sum(e @ m @ e.T for e in places) for m in (s, theta))
                a, b = (sum(e @ m for e in places) for m in (a, b))
                s, a, b = s + bias**2, a + bias**2, b + bias**2
                theta = theta + s
            s, theta = relu_by_hand(s, theta, xp.sqrt(a[:, None] * b[None]), xp)
        values = s + theta if kind == "ntk" else s
    means = xp.asarray(np.kron(*map(cell_means, sizes, pool_grid)))
    return ((means @ values) * means).sum() / len(means)


@pytest.fixture(
    params=[
        (name, kind)
        for name, (_, options) in CASES.items()
        for kind in ([options["kind"]] if "kind" in options else ["ntk", "nngp"])
    ],
    ids=": ".join,
)
def case(request, rng):
    """Return images X and Y and the options of a pooled kernel."""
    name, kind = request.param
    shape, options = CASES[name]
    X, Y = rng.normal(size=(3, *shape)), rng.normal(size=(2, *shape))
    return X, Y, {**options, "kind": kind}


def some_transform(X, options):
    """A symmetric patch transform."""
    rows, columns = np.broadcast_to(options.get("patch_size", 3), 2)
    kernel = make_kernel("ntk", X.shape[1:], (rows, columns), "valid")
    root = np.random.default_rng(1).normal(size=(kernel.patch_dim, kernel.patch_dim))
    return (root + root.T) / 5


def pooled_kernel(X, Y=None, *, kind="ntk", **options):
    """The package's kernel of any kind."""
    if kind in ("ntk", "nngp"):
        return convolutional_kernel(X, Y, kind=kind, **{"depth": 1, **options})
    return patch_kernel(X, Y, kind=kind, bandwidth=BANDWIDTH, **options)


def pooled_agop(X, coef, Y=None, **options):
    """The package's AGOP of any kind."""
    options = {"depth": 1, "bandwidth": BANDWIDTH, **options}
    return patch_agop(X, coef, Y, **options)


# ------------------------------------------------------------------- values


@pytest.mark.parametrize("transformed", [False, True])
def test_the_kernel_is_that_of_all_pairs_of_locations(case, transformed, tiles):
    X, Y, options = case
    if transformed:
        options["patch_transform"] = some_transform(X, options)
    expected = kernel_by_hand(X, Y, of_patches=pooled_kernel_of_patches, **options)
    assert_close(pooled_kernel(X, Y, **options), expected, 1e-12)


@ALL_KINDS
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_a_cell_for_every_location_is_no_pool(kind, padding, rng):
    X, Y = rng.normal(size=(4, 6, 5, 2)), rng.normal(size=(3, 6, 5, 2))
    coef, options = rng.normal(size=(4, 2)), {"kind": kind, "padding": padding}
    if kind in ("ntk", "nngp"):
        options |= {"depth": 2, "bias": 0.3}
    finest = {**options, "pool_grid": (6, 5)}
    for images in (Y, None):
        expected = pooled_kernel(X, images, **options)
        assert_close(pooled_kernel(X, images, **finest), expected, 1e-12)
        expected = pooled_agop(X, coef, images, **options)
        assert_close(pooled_agop(X, coef, images, **finest), expected, 1e-11)


@ALL_KINDS
def test_one_number_is_a_square_grid(kind, rng):
    X = rng.normal(size=(4, 6, 5))
    square = pooled_kernel(X, kind=kind, pool_grid=(2, 2))
    np.testing.assert_array_equal(pooled_kernel(X, kind=kind, pool_grid=2), square)


@ALL_KINDS
@pytest.mark.parametrize("grid", [(1, 1), (2, 2)])
def test_the_kernel_is_symmetric_and_positive_semi_definite(kind, grid, rng):
    X = rng.normal(size=(20, 6, 6, 2))
    X[10:] = X[:10] + 1e-6 * rng.normal(size=(10, 6, 6, 2))
    matrix = pooled_kernel(X, kind=kind, pool_grid=grid)
    np.testing.assert_array_equal(matrix, matrix.T)
    between = pooled_kernel(X, X.copy(), kind=kind, pool_grid=grid)
    assert_close(between, matrix, 1e-9)  # near-duplicates are sensitive to rounding
    eigenvalues = np.linalg.eigvalsh(matrix)
    assert eigenvalues[0] > -1e-10 * eigenvalues[-1]


@ALL_KINDS
def test_a_global_pool_does_not_see_where_the_content_is(kind, rng):
    content, others = rng.normal(size=(3, 3, 2)), rng.normal(size=(4, 13, 13, 2))
    here, there = np.zeros((2, 1, 13, 13, 2))
    here[0, 4:7, 4:7], there[0, 6:9, 5:8] = content, content
    options = {"kind": kind}
    if kind in ("ntk", "nngp"):
        options |= {"depth": 2, "bias": 0.3}
    near, far = (
        pooled_kernel(images, others, pool_grid=1, **options)
        for images in (here, there)
    )
    assert_close(far, near, 1e-12)
    near, far = (pooled_kernel(x, others, **options) for x in (here, there))
    assert np.abs(far - near).max() > 1e-3 * np.abs(near).max()


@pytest.mark.parametrize("bias", [0.0, 0.3])
def test_the_kernel_is_that_of_many_pooled_random_features(bias, rng):
    X, n_filters = rng.normal(size=(3, 5, 6, 2)), 200_000
    patches = np.stack([patches_by_hand(x) for x in X])  # (3, 3, 4, 18)
    filters = rng.normal(size=(18, n_filters)) / math.sqrt(2)
    biases = bias * rng.normal(size=n_filters)
    pools = [
        math.sqrt(2) * np.maximum(patches[:, rows, columns] @ filters + biases, 0)
        for rows in (slice(0, 1), slice(1, 3))
        for columns in (slice(0, 2), slice(2, 4))
    ]
    features = np.stack([maps.mean((1, 2)) for maps in pools], axis=1)
    expected = np.einsum("icf,jcf->ij", features, features) / (4 * n_filters)
    matrix = convolutional_kernel(X, kind="nngp", depth=1, bias=bias, pool_grid=2)
    assert_close(matrix, expected, 0.02)


@ALL_KINDS
def test_blank_images_are_finite(kind, rng):
    X, coef = rng.normal(size=(5, 6, 6)), rng.normal(size=5)
    X[0, :4], X[1] = 0, 0
    options = {"kind": kind, "pool_grid": (2, 2), "patch_transform": np.diag(range(9))}
    matrix, agop = pooled_kernel(X, **options), pooled_agop(X, coef, **options)
    assert np.isfinite(matrix).all() and np.isfinite(agop).all()
    if kind in ("ntk", "nngp"):
        assert (matrix[1] == 0).all()


def test_the_bandwidth_is_measured_as_without_a_pool(rng):
    X, coef = rng.normal(size=(8, 5, 5)), rng.normal(size=8)
    kernel = make_kernel("laplace", (5, 5, 1), 3, "valid", pool_grid=1)
    images = torch.from_numpy(X[..., None])
    measured = kernel.measured(images, torch.ones(8, dtype=torch.float64), None)
    options = {"bandwidth": measured.bandwidth, "pool_grid": 1}
    assert_close(patch_kernel(X, pool_grid=1), patch_kernel(X, **options), 1e-13)
    automatic = patch_agop(X, coef, kind="laplace", pool_grid=1)
    assert_close(automatic, patch_agop(X, coef, kind="laplace", **options), 1e-13)


# ---------------------------------------------------------------- gradients


@pytest.mark.parametrize("transformed", [False, True])
def test_the_agop_is_that_of_automatic_differentiation(case, transformed, rng):
    X, Y, options = case
    coef = rng.normal(size=(3, 2))
    if transformed:
        options["patch_transform"] = some_transform(X, options)
    gradients = gradients_by_autograd(
        X, coef, Y, of_patches=pooled_kernel_of_patches, **options
    )
    weights = np.array([1.0, 2.5])
    agop = pooled_agop(X, coef, Y, sample_weight=weights, **options)
    assert_close(agop, agop_of_gradients(gradients, weights), 1e-11)


@ALL_KINDS
def test_the_agop_is_that_of_finite_differences(kind, rng):
    X, z, coef = rng.normal(size=(3, 5, 4, 1)), rng.normal(size=(5, 4, 1)), np.ones(3)
    options = {"kind": kind, "pool_grid": (2, 1), "padding": "same"}
    if kind in ("ntk", "nngp"):
        options |= {"depth": 2, "bias": 0.3}
    *centres, patches = (patches_by_hand(x, 3, "same") for x in (*X, z))

    def f(patches):
        return sum(
            pooled_kernel_of_patches(centre, patches, channels=1, **options)
            for centre in centres
        )

    gradients, step = np.zeros((1, 1, *patches.shape)), 1e-5
    for index in np.ndindex(patches.shape):
        change = np.zeros_like(patches)
        change[index] = step
        slope = (f(patches + change) - f(patches - change)) / (2 * step)
        gradients[(0, 0, *index)] = slope
    agop = pooled_agop(X, coef, z[None], **options)
    assert_close(agop, agop_of_gradients(gradients), 1e-8)


def test_the_agop_of_two_pixels_is_that_of_the_formula():
    (x, z), h = ([0.3, -1.0], [0.7, 0.2]), 1.5
    slopes = [
        sum(-(b - a) / h**2 * math.exp(-((b - a) ** 2) / (2 * h**2)) / 4 for a in x)
        for b in z
    ]
    agop = patch_agop(
        np.array([[x]]),
        [2.0],
        np.array([[z]]),
        kind="gaussian",
        patch_size=1,
        bandwidth=h,
        pool_grid=1,
    )
    expected = 2.0**2 * sum(slope**2 for slope in slopes)
    np.testing.assert_allclose(agop, [[expected]], rtol=1e-12)


@ALL_KINDS
def test_the_agop_is_symmetric_and_positive_semi_definite(kind, rng):
    X, coef = rng.normal(size=(8, 6, 6, 2)), rng.normal(size=(8, 3))
    agop = pooled_agop(X, coef, kind=kind, pool_grid=2)
    np.testing.assert_array_equal(agop, agop.T)
    eigenvalues = np.linalg.eigvalsh(agop)
    assert eigenvalues[0] > -1e-12 * eigenvalues[-1]


def test_more_outputs_than_centres_add_up(rng):
    X, coef = rng.normal(size=(6, 6, 6)), rng.normal(size=(6, 50))
    parts = [pooled_agop(X, column, depth=2, pool_grid=2) for column in coef.T]
    assert_close(pooled_agop(X, coef, depth=2, pool_grid=2), sum(parts), 1e-11)


# -------------------------------------------------------------------- tiles


@pytest.fixture
def everything(rng):
    """Return a function that computes all there is of a pooled kernel."""
    X, Y = rng.normal(size=(23, 7, 6, 2)), rng.normal(size=(5, 7, 6, 2))
    coef = rng.normal(size=(23, 3))

    def compute(kind, depth, n_jobs=None, dtype="auto", device="cpu"):
        options = {"kind": kind, "pool_grid": (2, 2)}
        if kind in ("ntk", "nngp"):
            options["depth"] = depth
        resources = make_resources(device, dtype, n_jobs, X)
        kernel = make_kernel(
            kind, X.shape[1:], 3, "valid", depth, 0.0, BANDWIDTH, (2, 2)
        )
        options |= {"n_jobs": n_jobs, "dtype": dtype, "device": device}
        return [
            pooled_kernel(X, **options),
            pooled_kernel(X, Y, **options),
            pooled_agop(X, coef, Y, **options),
            kernel_product(kernel, Y, X, None, coef, resources),
        ]

    return compute


TWO_KINDS = pytest.mark.parametrize(("kind", "depth"), [("ntk", 2), ("laplace", 1)])


@pytest.mark.thorough
@TWO_KINDS
@pytest.mark.parametrize("budget", [1e-5, 0.05, 1])
def test_results_do_not_depend_on_working_memory(kind, depth, budget, everything):
    expected = everything(kind, depth)
    with config_context(working_memory=budget):
        results = everything(kind, depth)
    for result, value in zip(results, expected, strict=True):
        assert_close(result, value, 1e-11)


@TWO_KINDS
def test_results_do_not_depend_on_workers(kind, depth, everything):
    expected = everything(kind, depth)
    with parallel_config("threading"):
        results = everything(kind, depth, n_jobs=2)
    for result, value in zip(results, expected, strict=True):
        assert_close(result, value, 1e-12)


@TWO_KINDS
def test_float32_is_close_to_float64(kind, depth, everything):
    for single, value in zip(
        everything(kind, depth, dtype="float32"), everything(kind, depth), strict=True
    ):
        assert_close(single, value, 1e-4)


@pytest.mark.parametrize("pullback", [False, True])
def test_a_tile_takes_no_more_than_without_a_pool(pullback, monkeypatch):
    monkeypatch.setenv("SKCONVRFM_COMPILE", "1")
    resources = make_resources("cpu", "float64", None, np.empty(0))
    plain, pooled = (
        make_kernel("ntk", (8, 8, 1), 3, "valid", 2, pool_grid=grid)
        for grid in (None, (2, 2))
    )
    assert isinstance(pooled, PooledKernel)
    pairs = tile_pairs(plain, resources, pullback)
    assert tile_pairs(pooled, resources, pullback) == pairs
    assert find_library(pooled, 10**9, resources, pullback) is None


@pytest.mark.gpu
@TWO_KINDS
def test_cuda_equals_the_cpu(kind, depth, everything):
    for ours, theirs in zip(
        everything(kind, depth, device="cuda"), everything(kind, depth), strict=True
    ):
        assert_close(ours, theirs, 1e-9)


# -------------------------------------------------------------------- cells


@pytest.mark.parametrize(("size", "count"), [(1, 1), (7, 3), (8, 2), (5, 5), (3, 7)])
def test_cells_part_a_dimension_as_average_pooling_does(size, count):
    parts = cells(size, count)
    means = average_pool(
        torch.arange(size)[None, :, None, None].double(), (len(parts), 1)
    )
    positions = [range(part.start, part.stop) for part in parts]
    assert [u for part in positions for u in part] == list(range(size))
    assert means.flatten().tolist() == pytest.approx([np.mean(p) for p in positions])


# ------------------------------------------------------------------- errors


@pytest.mark.parametrize("grid", [(1, 2, 3), (0, 1), (2.0, 1), []])
def test_what_is_no_pair_is_refused(grid, rng):
    X = rng.normal(size=(3, 5, 5))
    for function in (convolutional_kernel, patch_kernel):
        with pytest.raises(ValueError, match="pool_grid=.*nor a pair"):
            function(X, pool_grid=grid)
    with pytest.raises(ValueError, match="pool_grid=.*nor a pair"):
        patch_agop(X, np.ones(3), pool_grid=grid)


@pytest.mark.parametrize("grid", [0, 1.5, "global"])
def test_what_is_no_positive_int_is_refused(grid, rng):
    with pytest.raises(ValueError, match="'pool_grid' parameter"):
        convolutional_kernel(rng.normal(size=(3, 5, 5)), pool_grid=grid)


@pytest.mark.parametrize("kernel", ["ntk", "laplace"])
def test_the_estimators_take_the_grid_to_the_exact_kernel(kernel, rng):
    X, y = rng.normal(size=(24, 7, 6)), np.arange(24) % 2
    model = ConvRFMClassifier(
        method="exact", kernel=kernel, depth=3, patch_size=2, n_rounds=1, pool_grid=2
    ).fit(X[:20], y[:20])
    options = {"patch_size": 2, "pool_grid": (2, 2)}
    options["patch_transform"] = model.patch_transform_
    if kernel == "ntk":
        K = convolutional_kernel(X[20:], X[:20], depth=3, bias=0.3, **options)
    else:
        bandwidth = model.bandwidth_
        K = patch_kernel(X[20:], X[:20], kind=kernel, bandwidth=bandwidth, **options)
    scores = (K @ model.dual_coef_ + model.intercept_)[:, 0]
    assert_close(model.decision_function(X[20:]), scores, 1e-9)

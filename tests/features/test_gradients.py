"""Patch AGOPs of feature layers equal automatic differentiation of the same network."""

import math
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from by_hand import assert_close
from joblib import parallel_config
from sklearn import config_context
from torch.nn.functional import pad

from skconvrfm._input import make_resources
from skconvrfm.compute.native import build
from skconvrfm.features import ConvFeatures, gradient_moments
from skconvrfm.features import gradients as gradients_module
from skconvrfm.features.maps import compute_features, pass_through
from skconvrfm.kernels import Gaussian, Laplace
from skconvrfm.learning.feature_sums import LinearReadout, RadialReadout


def linear_agop(*arguments):
    return gradients_module.linear_agop(*arguments).agop


def layer_agops(*arguments):
    return [one.agop for one in gradients_module.layer_agops(*arguments)]


IMAGE = (7, 6, 2)
BANDWIDTH = 2.0
READOUTS = ["linear", "gaussian", "laplace"]
# Layers from the image up.
NETWORKS = {
    "root": [{}],
    "mean": [{"pool": "mean"}],
    "no pool": [{"pool_grid": None}],
    "global pool": [{"pool_grid": 1, "activation": "identity"}],
    "same, cells of a size": [{"padding": "same", "pool_size": (2, 3)}],
    "identity, root, same": [{"activation": "identity", "padding": "same"}],
    "two layers": [{"pool_size": 2, "pool": "mean"}, {"pool_grid": 1}],
    "two layers, root": [{"pool_grid": (3, 2)}, {"pool_grid": (1, 2), "patch_size": 2}],
    "two layers, no pool": [{"pool_grid": None}, {"pool_grid": (2, 1)}],
    "two layers, same": [
        {"padding": "same", "pool_size": 2, "patch_size": (2, 3)},
        {"padding": "same", "activation": "identity", "pool": "mean"},
    ],
    "three layers": [
        {"pool_grid": None, "pool": "mean"},
        {"padding": "same", "pool_size": 2},
        {"patch_size": 2, "padding": "same", "pool_grid": (2, 1)},
    ],
    "three layers, identity": [
        {"padding": "same", "activation": "identity", "pool_grid": None},
        {"patch_size": (1, 2), "pool": "mean", "pool_grid": (4, 4)},
        {"patch_size": 3, "activation": "identity", "pool_grid": None},
    ],
    "two layers, norm over maxima": [
        {"pool_size": 2, "pool": "max", "padding": "same", "pool_overlap": 0.5},
        {"pool_grid": 1, "pool": "norm"},
    ],
    "two layers, overlaps": [
        {"pool_size": 2, "pool": (2, 1), "padding": "same", "pool_overlap": 1.0},
        {"pool_grid": (2, 3), "patch_size": 2, "pool_overlap": 0.4},
    ],
    "two layers, maxima": [
        {"pool_size": 2, "pool": "norm", "activation": "identity"},
        {"pool_grid": 2, "patch_size": 2, "pool": "max", "pool_overlap": 1},
    ],
    "normalised": [{"normalize": 0.3, "padding": "same"}],
    "three layers, normalised": [
        {"pool_size": 2, "normalize": 0.3, "patch_size": 2},
        {"padding": "same", "pool_grid": None, "normalize": 0.3, "pool": "norm"},
        {"patch_size": 2, "normalize": 0.3, "activation": "identity"},
    ],
    "three layers, all pools": [
        {"padding": "same", "pool_size": 1, "pool": "max", "pool_overlap": 1},
        {"padding": "same", "pool_size": 2, "pool": "norm", "pool_overlap": 0.5},
        {"patch_size": 2, "pool": (1.5, 0.75), "pool_grid": (1, 2)},
    ],
}
POOLS = ["root", "mean", "norm", "max", (1, 2.0), (2, 0.5), (2.5, 0.3)]
# One layer of every pool, activation and overlap.
POOLED = {
    f"{pool}, {activation}, overlap {overlap}": {
        "pool": pool,
        "activation": activation,
        "pool_overlap": overlap,
    }
    for pool, activation, overlap in product(
        POOLS, ["relu", "identity"], [0.0, 0.3, 1.0]
    )
}


def make_layers(network, rng, image_shape=IMAGE):
    """Layers with random filters, biases and offsets, the first wider than the rest."""
    layers = []
    for index, options in enumerate(network):
        defaults = {"patch_size": 3, "pool_grid": (3, 3)}
        if options.get("pool_size") is None:
            defaults["pool_grid"] = (2, 3)
        features = ConvFeatures(5 - index, **{**defaults, **options})
        features = features.bind(image_shape)
        d, n = image_shape[2] * math.prod(features.layer_.patch), 5 - index
        filters, biases = rng.normal(size=(n, d)) / 2, rng.normal(size=n)
        offsets = rng.uniform(0.01, 0.2, size=n)
        floor = features.normalize
        if floor is not None:
            filters -= filters.mean(1, keepdims=True)
        layers.append(features.with_filters(filters, biases, offsets, floor))
        image_shape = layers[-1].shape
    return tuple(layers)


def make_readout(name, width, n_outputs, rng):
    """A readout of features, as the package has it and by its formula."""
    n = width if name == "linear" else 6
    coef, centres = rng.normal(size=(n, n_outputs)), rng.normal(size=(6, width))
    if name == "linear":
        return LinearReadout(coef), lambda row: row @ torch.from_numpy(coef)
    Kernel = Gaussian if name == "gaussian" else Laplace

    def outputs(row):
        r = (torch.from_numpy(centres) - row).norm(dim=1) / BANDWIDTH
        values = torch.exp(-(r**2) / 2 if name == "gaussian" else -r)
        return values @ torch.from_numpy(coef)

    kernel = Kernel(BANDWIDTH).bind((1, 1, width))
    return RadialReadout(kernel, centres, coef), outputs


def forward(layer, maps):
    """Patches (rows, columns, d) that a layer sees, and its features (r, c, K)."""
    (rows, columns), (top, bottom, left, right) = layer.layer.patch, layer.layer.padding
    padded = pad(maps, (0, 0, left, right, top, bottom))
    patches = padded.unfold(0, rows, 1).unfold(1, columns, 1).flatten(2)
    if layer.floor is not None:
        patches = patches - patches.mean(2, keepdim=True)
        patches = (
            patches / (patches.square().mean(2, keepdim=True) + layer.floor).sqrt()
        )
    responses = patches @ torch.from_numpy(layer.filters).T / math.sqrt(maps.shape[2])
    responses = responses + torch.from_numpy(layer.biases)
    if layer.activation == "relu":
        responses = math.sqrt(2) * responses.relu()
    p, q = layer.order, layer.power
    powers = responses if p in (1, math.inf) else responses.abs() ** p
    means = powers
    if layer.pool is not None:
        bounds = [
            overlapping(size, min(count, size), layer.overlap)
            for size, count in zip(responses.shape[:2], layer.pool, strict=True)
        ]
        pool = torch.amax if p == math.inf else torch.mean
        means = torch.stack(
            [
                torch.stack([pool(powers[a:b, c:d], (0, 1)) for c, d in bounds[1]])
                for a, b in bounds[0]
            ]
        )
    if q == 1:
        return patches, means
    offsets = torch.from_numpy(layer.offsets) ** p
    raised = (means.abs() + offsets) ** q - offsets**q
    return patches, torch.sign(means) * raised


def overlapping(size, count, overlap):
    """First and last location of cells that reach into their neighbours."""
    bounds = []
    for i in range(count):
        a, b = i * size // count, (i + 1) * size // count
        reach = math.floor(overlap * (b - a) + 0.5)
        bounds.append((max(a - reach, 0), min(b + reach, size)))
    return bounds


def agops_by_autograd(layers, outputs, images, weights):
    """Patch AGOP of every layer; each patch is a variable of its own."""
    totals = [0] * len(layers)
    for image, weight in zip(images, weights, strict=True):
        maps, patches = torch.from_numpy(image).requires_grad_(), []
        for layer in layers:
            seen, maps = forward(layer, maps)
            patches.append(seen)
        for output in outputs(maps.flatten()):
            gradients = torch.autograd.grad(output, patches, retain_graph=True)
            for index, gradient in enumerate(gradients):
                rows = gradient.flatten(0, 1).numpy()
                totals[index] = totals[index] + weight * rows.T @ rows
    return [total / weights.sum() for total in totals]


def resources_of(images, n_jobs=None):
    return make_resources("cpu", "float64", n_jobs, images)


def assert_agops_close(agops, expected, tolerance):
    assert len(agops) == len(expected)
    for agop, value in zip(agops, expected, strict=True):
        assert agop.dtype == np.float64
        np.testing.assert_array_equal(agop, agop.T)
        assert_close(agop, value, tolerance)


@pytest.fixture
def images(rng):
    return rng.normal(size=(4, *IMAGE)), np.array([1.0, 2.0, 0.5, 3.0])


def agops_and_expected(layers, readout, images, rng, n_outputs=3):
    """AGOPs of all layers, and the same by automatic differentiation."""
    width = math.prod(layers[-1].shape)
    readout, outputs = make_readout(readout, width, n_outputs, rng)
    agops = layer_agops(layers, readout, *images, resources_of(images[0]))
    by_autograd = mirrored_agops_by_autograd if layers[-1].mirror else agops_by_autograd
    expected = by_autograd(layers, outputs, *images)
    if has_linear_agop(layers, readout):
        agop = linear_agop(layers[0], readout.coef, *images, resources_of(images[0]))
        assert_close(agop, expected[0], 1e-12)
    return agops, expected


def has_linear_agop(layers, readout):
    [*below, top] = layers
    is_linear = isinstance(readout, LinearReadout)
    return is_linear and not (below or top.mirror or top.overlap)


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("network", NETWORKS)
def test_agops_of_all_layers_equal_automatic_differentiation(
    network, readout, mirror, images, rng
):
    layers = with_mirror(make_layers(NETWORKS[network], rng), mirror)
    agops, expected = agops_and_expected(layers, readout, images, rng)
    assert all(value.any() for value in expected)
    assert_agops_close(agops, expected, 1e-9)
    if mirror:
        entries = layers[0].layer.mirror_entries(layers[0].channels)
        assert_close(agops[0][np.ix_(entries, entries)], agops[0], 1e-14)


# Patch, padding, and cost of the products: a route by images, or by rows. Even patches
# have no mirror at one side; the grid divides the map unevenly.
BY_IMAGES, BY_ROWS = -(10**6), 10**6
LAYOUTS = [
    *((3, "valid", BY_ROWS), (3, "same", BY_IMAGES), (2, "same", BY_ROWS)),
    *((2, "valid", BY_IMAGES), ((2, 4), "valid", BY_IMAGES)),
    *(((2, 4), "same", BY_ROWS), ((1, 6), "same", BY_IMAGES)),
]


@pytest.mark.parametrize("readout", ["linear", "gaussian"])
@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("pool", POOLED)
def test_features_and_agop_of_every_pool(
    pool, layout, mirror, readout, images, rng, monkeypatch
):
    patch_size, padding, cost = layout
    monkeypatch.setattr(gradient_moments, "_PRODUCT_COST", cost)
    options = {"padding": padding, "patch_size": patch_size, "pool_grid": (2, 4)}
    [layer] = make_layers([{**POOLED[pool], **options}], rng)
    features = compute_features(layer, images[0], resources_of(images[0]))
    expected = [forward(layer, torch.from_numpy(x))[1].numpy() for x in images[0]]
    assert_close(features, np.array(expected), 1e-12)
    layers = with_mirror((layer,), mirror)
    assert_agops_close(*agops_and_expected(layers, readout, images, rng), 1e-9)


@pytest.mark.parametrize("memory", [1e-5, 0.05])
@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("pool", POOLED)
def test_moments_of_every_pool_independent_of_memory(pool, mirror, memory, rng):
    images, weights = rng.normal(size=(3, 12, 6, 2)), rng.uniform(0.5, 2, size=3)
    layers = with_mirror(make_layers([POOLED[pool]], rng, (12, 6, 2)), mirror)
    readout, _ = make_readout("linear", math.prod(layers[0].shape), 3, rng)

    def compute():
        at = readout, images, weights, resources_of(images)
        [found] = gradients_module.layer_agops(layers, *at)
        importances = gradients_module.importances(layers[0], *at)
        assert_close(importances, found.importance, 1e-12)
        if not has_linear_agop(layers, readout):
            return [found.agop]
        return [found.agop, linear_agop(*layers, readout.coef, *at[1:])]

    expected = compute()
    with config_context(working_memory=memory):
        assert_agops_close(compute(), expected, 1e-12)


@pytest.mark.parametrize("overlap", [0.0, 1.0])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_equal_maxima_share_the_gradient(overlap, dtype, rng):
    """A flat image has equal responses at all locations: the AGOP is that of means."""
    images = np.broadcast_to(rng.normal(size=(3, 1, 1, 2)), (3, *IMAGE))
    options = {"pool_overlap": overlap, "activation": "identity"}
    [layer] = make_layers([{"pool": "max", **options}], rng)
    readout, _ = make_readout("linear", math.prod(layer.shape), 3, rng)
    resources = make_resources("cpu", dtype, None, images)
    agops = [
        layer_agops((pool,), readout, images, np.ones(3), resources)
        for pool in (layer, replace(layer, order=1.0))
    ]
    assert_agops_close(*agops, 1e-12 if dtype == "float64" else 1e-5)


@pytest.mark.parametrize("n_outputs", [1, 2, 20])
@pytest.mark.parametrize("cost", [BY_IMAGES, BY_ROWS], ids=["by images", "by rows"])
def test_both_routes_of_a_cell_moment_agree(n_outputs, cost, images, rng, monkeypatch):
    monkeypatch.setattr(gradient_moments, "_PRODUCT_COST", cost)
    for network, readout in (("two layers", "gaussian"), ("root", "linear")):
        layers = make_layers(NETWORKS[network], rng)
        pair = agops_and_expected(layers, readout, images, rng, n_outputs)
        assert_agops_close(*pair, 1e-9)


EVEN = {"patch_size": 2, "padding": "same"}
MACHINES = {  # layers, readout, mirror
    "root": (NETWORKS["root"], "linear", False),
    "two layers": (NETWORKS["two layers"], "gaussian", False),
    "three layers": (NETWORKS["three layers"], "laplace", False),
    "mirrored norm": ([{"pool": "norm", **EVEN}], "gaussian", True),
    "mirrored maxima": (
        [{"pool": "max", "pool_overlap": 1.0, "patch_size": 2}],
        "gaussian",
        True,
    ),
    "two, mirrored": (
        [{"pool_size": 2, **EVEN}, {"pool_grid": 1, "patch_size": 2}],
        "gaussian",
        True,
    ),
}


@pytest.mark.parametrize(("memory", "n_jobs"), [(1e-5, None), (0.05, 2), (1, 3)])
@pytest.mark.parametrize("machine", MACHINES)
def test_agops_independent_of_memory_and_workers(machine, memory, n_jobs, rng):
    images, weights = rng.normal(size=(13, 19, 6, 2)), rng.uniform(0.5, 2, size=13)
    network, readout, mirror = MACHINES[machine]
    layers = with_mirror(make_layers(network, rng, (19, 6, 2)), mirror)
    readout, _ = make_readout(readout, math.prod(layers[-1].shape), 3, rng)

    def compute(n_jobs=None):
        at = images, weights, resources_of(images, n_jobs)
        agops = layer_agops(layers, readout, *at)
        if has_linear_agop(layers, readout):
            agops.append(linear_agop(*layers, readout.coef, *at))
        return agops

    expected = compute()
    with config_context(working_memory=memory), parallel_config("threading"):
        assert_agops_close(compute(n_jobs), expected, 1e-12)


@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize(
    ("network", "readout"),
    [
        ("root", "gaussian"),
        ("two layers", "linear"),
        ("two layers", "gaussian"),
        ("three layers", "gaussian"),
        ("three layers, all pools", "gaussian"),
    ],
)
def test_weights_are_repeated_images_and_float32_is_close(
    network, readout, mirror, images, rng
):
    layers = with_mirror(make_layers(NETWORKS[network], rng), mirror)
    readout, _ = make_readout(readout, math.prod(layers[-1].shape), 3, rng)
    X, counts = images[0], np.array([1, 3, 2, 1])
    weighted = layer_agops(layers, readout, X, counts, resources_of(X))
    repeated = np.repeat(X, counts, axis=0)
    expected = layer_agops(layers, readout, repeated, np.ones(7), resources_of(X))
    assert_agops_close(weighted, expected, 1e-12)
    in_float32 = make_resources("cpu", "float32", None, X)
    single = layer_agops(layers, readout, X, counts, in_float32)
    assert_agops_close(single, expected, 1e-4)


def test_inactive_filters_have_a_gradient_of_zero(images, rng):
    """Also where the slope of the root at a mean of zero is infinite."""
    [layer] = make_layers(NETWORKS["root"], rng)
    layer = replace(layer, biases=np.full(5, -1e3), offsets=None)
    readout, _ = make_readout("linear", math.prod(layer.shape), 2, rng)
    resources = resources_of(images[0])
    for agop in (
        linear_agop(layer, readout.coef, *images, resources),
        *layer_agops((layer,), readout, *images, resources),
    ):
        assert not agop.any()


def test_agop_that_overflows_is_refused(images, rng):
    [layer] = make_layers(NETWORKS["mean"], rng)
    readout, _ = make_readout("linear", math.prod(layer.shape), 2, rng)
    readout, resources = LinearReadout(1e200 * readout.coef), resources_of(images[0])
    for call in (
        lambda: layer_agops((layer,), readout, *images, resources),
        lambda: linear_agop(layer, readout.coef, *images, resources),
    ):
        with pytest.raises(ValueError, match="AGOP overflows float64: X has values up"):
            call()


def test_gradients_use_no_automatic_differentiation(images, rng, monkeypatch):
    monkeypatch.setenv(build.SWITCH, "0")
    layers = make_layers(NETWORKS["two layers"], rng)
    readout, _ = make_readout("gaussian", math.prod(layers[-1].shape), 3, rng)
    with torch.inference_mode():
        inside = layer_agops(layers, readout, *images, resources_of(images[0]))
    outside = layer_agops(layers, readout, *images, resources_of(images[0]))
    assert_agops_close(inside, outside, 1e-14)


# ------------------------------------- features averaged over an image and its mirror


def mirrored_agops_by_autograd(layers, outputs, images, weights):
    """Patch AGOPs of features averaged over images and mirrors, and Σ of both passes.

    A patch of an image and the mirrored patch of the mirror are one variable.
    """
    totals, size = [0] * len(layers), layers[0].layer.patch
    for image, weight in zip(images, weights, strict=True):
        passes, rows = [], []
        for side in (image, image[:, ::-1].copy()):
            maps, patches = torch.from_numpy(side).requires_grad_(), []
            for layer in layers:
                seen, maps = forward(layer, maps)
                patches.append(seen)
            passes.append(patches)
            rows.append(maps.flatten())
        for output in outputs((rows[0] + rows[1]) / 2):
            gradients = [
                torch.autograd.grad(output, patches, retain_graph=True)
                for patches in passes
            ]
            for index, pair in enumerate(zip(*gradients, strict=True)):
                if index:
                    flat = [g.flatten(0, 1).numpy() for g in pair]
                else:
                    left = layers[0].layer.padding[2]
                    flat = by_patch(pair, image.shape[1], size, left)
                moment = sum(g.T @ g for g in flat)
                totals[index] = totals[index] + weight * moment
    return [total / weights.sum() for total in totals]


def by_patch(pair, width, size, left):
    """Gradients at the patches of each column of an image, and at their mirrors."""
    columns, own, other = {}, pair[0].numpy(), pair[1].numpy()
    mirrored = other.reshape(*other.shape[:2], -1, *size)[..., ::-1]
    mirrored = mirrored.reshape(other.shape)
    for u in range(own.shape[1]):  # by the pixel at which patches begin
        columns[u - left] = columns.get(u - left, 0) + own[:, u]
        start = width - (u - left) - size[1]
        columns[start] = columns.get(start, 0) + mirrored[:, u]
    gradients = np.concatenate(list(columns.values()))
    mirrors = gradients.reshape(len(gradients), -1, *size)[..., ::-1]
    # Half of each: the mean over images and mirrors.
    return [g / math.sqrt(2) for g in (gradients, mirrors.reshape(gradients.shape))]


def with_mirror(layers, mirror=True):
    return (*layers[:-1], replace(layers[-1], mirror=mirror))


@pytest.mark.parametrize("network", ["root", "two layers, same", "three layers"])
def test_mirrored_agop_is_that_of_mirrored_images(network, images, rng):
    layers = with_mirror(make_layers(NETWORKS[network], rng))
    readout, _ = make_readout("laplace", math.prod(layers[-1].shape), 3, rng)
    X, weights = images
    agops, mirrors = (
        layer_agops(layers, readout, side, weights, resources_of(X))
        for side in (X, X[:, :, ::-1])
    )
    assert_agops_close(agops, mirrors, 1e-12)


@pytest.mark.parametrize("memory", [1e-5, 1])
def test_mirrored_agop_of_a_layer_on_maps_is_its_own_in_the_network(
    memory, images, rng
):
    """Maps of mirrored images are no mirrored maps: both passes add up."""
    layers = with_mirror(make_layers(NETWORKS["two layers"], rng))
    readout, _ = make_readout("gaussian", math.prod(layers[-1].shape), 3, rng)
    X, weights = images
    *_, expected = layer_agops(layers, readout, X, weights, resources_of(X))
    with config_context(working_memory=memory):
        maps = pass_through(X, layers[:1])
        [agop] = layer_agops(layers[1:], readout, maps, weights, resources_of(X))
    assert_close(agop, expected, 1e-12)

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


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("network", NETWORKS)
def test_agops_of_all_layers_equal_automatic_differentiation(
    network, readout, images, rng
):
    layers = make_layers(NETWORKS[network], rng)
    readout, outputs = make_readout(readout, math.prod(layers[-1].shape), 3, rng)
    agops = layer_agops(layers, readout, *images, resources_of(images[0]))
    expected = agops_by_autograd(layers, outputs, *images)
    assert all(value.any() for value in expected)
    assert_agops_close(agops, expected, 1e-9)


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("pool", POOLED)
def test_agop_of_every_pool_equals_automatic_differentiation(
    pool, padding, images, rng
):
    layers = make_layers([{**POOLED[pool], "padding": padding}], rng)
    width = math.prod(layers[0].shape)
    readout, outputs = make_readout("gaussian", width, 3, rng)
    agops = layer_agops(layers, readout, *images, resources_of(images[0]))
    assert_agops_close(agops, agops_by_autograd(layers, outputs, *images), 1e-9)
    # Features as well.
    features = compute_features(layers[0], images[0], resources_of(images[0]))
    expected = [forward(layers[0], torch.from_numpy(x))[1].numpy() for x in images[0]]
    assert_close(features, np.array(expected), 1e-12)


@pytest.mark.parametrize(
    "pool", [n for n, o in POOLED.items() if not o["pool_overlap"]]
)
def test_linear_agop_of_every_pool_equals_that_of_the_sweep(pool, images, rng):
    [layer] = make_layers([POOLED[pool]], rng)
    readout, outputs = make_readout("linear", math.prod(layer.shape), 3, rng)
    agop = linear_agop(layer, readout.coef, *images, resources_of(images[0]))
    [expected] = agops_by_autograd((layer,), outputs, *images)
    assert_close(agop, expected, 1e-9)


@pytest.mark.parametrize("memory", [1e-5, 0.05])
@pytest.mark.parametrize("pool", [n for n in POOLED if "1.0" in n or "0.0" in n])
def test_agops_of_every_pool_do_not_depend_on_memory(pool, memory, rng):
    images, weights = rng.normal(size=(5, 19, 6, 2)), rng.uniform(0.5, 2, size=5)
    layers = make_layers([POOLED[pool]], rng, (19, 6, 2))
    readout, _ = make_readout("linear", math.prod(layers[0].shape), 3, rng)

    def compute():
        resources = resources_of(images)
        agops = layer_agops(layers, readout, images, weights, resources)
        if layers[0].overlap:
            return agops
        return [*agops, linear_agop(*layers, readout.coef, images, weights, resources)]

    expected = compute()
    with config_context(working_memory=memory):
        assert_agops_close(compute(), expected, 1e-12)


@pytest.mark.parametrize("memory", [1e-5, 1024])
@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("pool", POOLED)
def test_importances_are_the_diagonal_of_second_moments(pool, mirror, memory, rng):
    images, weights = rng.normal(size=(5, 19, 6, 2)), rng.uniform(0.5, 2, size=5)
    [layer] = make_layers([POOLED[pool]], rng, (19, 6, 2))
    layer = replace(layer, mirror=mirror)
    readout, _ = make_readout("gaussian", math.prod(layer.shape), 3, rng)
    at = readout, images, weights, resources_of(images)
    [found] = gradients_module.layer_agops((layer,), *at)
    with config_context(working_memory=memory):
        importances = gradients_module.importances(
            layer, *at[:-1], resources_of(images)
        )
    assert_close(importances, found.importance, 1e-12)


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


@pytest.mark.parametrize(
    "network", [name for name, n in NETWORKS.items() if len(n) == 1]
)
@pytest.mark.parametrize("n_outputs", [1, 3])
def test_linear_agop_equals_that_of_the_sweep(network, n_outputs, images, rng):
    [layer] = make_layers(NETWORKS[network], rng)
    readout, outputs = make_readout("linear", math.prod(layer.shape), n_outputs, rng)
    resources = resources_of(images[0])
    agop = linear_agop(layer, readout.coef, *images, resources)
    [swept] = layer_agops((layer,), readout, *images, resources)
    assert_close(agop, swept, 1e-12)
    [expected] = agops_by_autograd((layer,), outputs, *images)
    assert_close(agop, expected, 1e-12)


@pytest.mark.parametrize("n_outputs", [1, 2, 20])
@pytest.mark.parametrize("cost", [-(10**6), 10**6], ids=["by images", "by rows"])
def test_both_routes_of_a_cell_moment_agree(n_outputs, cost, images, rng, monkeypatch):
    layers = make_layers(NETWORKS["two layers"], rng)
    width = math.prod(layers[-1].shape)
    readout, outputs = make_readout("gaussian", width, n_outputs, rng)
    monkeypatch.setattr(gradient_moments, "_PRODUCT_COST", cost)
    agops = layer_agops(layers, readout, *images, resources_of(images[0]))
    expected = agops_by_autograd(layers, outputs, *images)
    assert_agops_close(agops, expected, 1e-9)


@pytest.fixture
def machine(rng):
    """Return a function of n_jobs that computes the AGOPs of some machines."""
    images, weights = rng.normal(size=(37, *IMAGE)), rng.uniform(0.5, 2, size=37)
    networks = [
        make_layers(NETWORKS[name], rng)
        for name in ("root", "two layers", "three layers")
    ]
    readouts = [
        make_readout(name, math.prod(layers[-1].shape), 3, rng)[0]
        for layers, name in zip(
            networks, ("linear", "gaussian", "laplace"), strict=True
        )
    ]

    def compute(n_jobs=None):
        resources = resources_of(images, n_jobs)
        agops = [
            linear_agop(networks[0][0], readouts[0].coef, images, weights, resources)
        ]
        for layers, readout in zip(networks, readouts, strict=True):
            agops += layer_agops(layers, readout, images, weights, resources)
        return agops

    return compute


@pytest.mark.parametrize("memory", [1e-5, 0.05, 1])
def test_agops_independent_of_memory(memory, machine):
    expected = machine()
    with config_context(working_memory=memory):
        assert_agops_close(machine(), expected, 1e-12)


@pytest.mark.parametrize("n_jobs", [2, 3])
def test_agops_independent_of_workers(n_jobs, machine):
    expected = machine()
    with parallel_config("threading"):
        assert_agops_close(machine(n_jobs), expected, 1e-12)


@pytest.mark.parametrize("readout", ["linear", "gaussian"])
def test_weights_equal_repeated_images(readout, images, rng):
    layers = make_layers(NETWORKS["two layers"], rng)
    readout, _ = make_readout(readout, math.prod(layers[-1].shape), 3, rng)
    X, counts = images[0], np.array([1, 3, 2, 1])
    resources = resources_of(X)
    weighted = layer_agops(layers, readout, X, counts, resources)
    repeated = np.repeat(X, counts, axis=0)
    expected = layer_agops(layers, readout, repeated, np.ones(7), resources)
    assert_agops_close(weighted, expected, 1e-12)


@pytest.mark.parametrize(
    "network", ["root", "two layers", "three layers", "three layers, all pools"]
)
def test_float32_is_close_to_float64(network, images, rng):
    layers = make_layers(NETWORKS[network], rng)
    readout, _ = make_readout("gaussian", math.prod(layers[-1].shape), 3, rng)
    single, double = (
        layer_agops(layers, readout, *images, make_resources("cpu", d, None, images[0]))
        for d in ("float32", "float64")
    )
    assert_agops_close(single, double, 1e-4)


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
    readout = LinearReadout(1e200 * readout.coef)
    with pytest.raises(ValueError, match="AGOP overflows float64: X has values up to"):
        layer_agops((layer,), readout, *images, resources_of(images[0]))
    with pytest.raises(ValueError, match="AGOP overflows float64: X has values up to"):
        linear_agop(layer, readout.coef, *images, resources_of(images[0]))


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


def with_mirror(layers):
    return (*layers[:-1], replace(layers[-1], mirror=True))


def assert_symmetric(agop, layer):
    entries = layer.layer.mirror_entries(layer.channels)
    assert_close(agop[np.ix_(entries, entries)], agop, 1e-14)


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("network", NETWORKS)
def test_mirrored_agops_of_all_layers_equal_automatic_differentiation(
    network, readout, images, rng
):
    layers = with_mirror(make_layers(NETWORKS[network], rng))
    readout, outputs = make_readout(readout, math.prod(layers[-1].shape), 3, rng)
    agops = layer_agops(layers, readout, *images, resources_of(images[0]))
    expected = mirrored_agops_by_autograd(layers, outputs, *images)
    assert_agops_close(agops, expected, 1e-9)
    assert_symmetric(agops[0], layers[0])


@pytest.mark.parametrize("patch_size", [3, 2, (2, 4), (1, 6)])
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("cost", [-(10**6), 10**6], ids=["by images", "by rows"])
@pytest.mark.parametrize(
    "pool", [n for n in POOLED if n.endswith(("relu, overlap 0.0", "overlap 0.3"))]
)
def test_mirrored_agop_of_every_pool_equals_automatic_differentiation(
    pool, cost, padding, patch_size, images, rng, monkeypatch
):
    """Even patches have no mirror at one side; grids divide the map unevenly."""
    monkeypatch.setattr(gradient_moments, "_PRODUCT_COST", cost)
    options = {"padding": padding, "patch_size": patch_size, "pool_grid": (2, 4)}
    layers = with_mirror(make_layers([{**POOLED[pool], **options}], rng))
    readout, outputs = make_readout("gaussian", math.prod(layers[0].shape), 3, rng)
    agops = layer_agops(layers, readout, *images, resources_of(images[0]))
    expected = mirrored_agops_by_autograd(layers, outputs, *images)
    assert_agops_close(agops, expected, 1e-9)


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


@pytest.mark.parametrize("n_jobs", [None, 2])
@pytest.mark.parametrize("memory", [1e-5, 0.05, 1])
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_mirrored_agops_do_not_depend_on_memory_and_workers(
    padding, memory, n_jobs, rng
):
    images, weights = rng.normal(size=(5, 19, 6, 2)), rng.uniform(0.5, 2, size=5)
    options = {"patch_size": 2, "padding": padding}
    networks = [
        [{"pool": "norm", **options}],
        [{"pool": "max", "pool_overlap": 1.0, **options}],
        [{"pool_size": 2, **options}, {"pool_grid": 1, "patch_size": 2}],
    ]
    machines = []
    for network in networks:
        layers = with_mirror(make_layers(network, rng, (19, 6, 2)))
        width = math.prod(layers[-1].shape)
        machines.append((layers, make_readout("gaussian", width, 3, rng)[0]))

    def compute(n_jobs=None):
        resources = resources_of(images, n_jobs)
        found = [layer_agops(*m, images, weights, resources) for m in machines]
        return sum(found, [])

    expected = compute()
    with config_context(working_memory=memory), parallel_config("threading"):
        assert_agops_close(compute(n_jobs), expected, 1e-12)


def test_mirrored_weights_equal_repeated_images(images, rng):
    layers = with_mirror(make_layers(NETWORKS["two layers"], rng))
    readout, _ = make_readout("gaussian", math.prod(layers[-1].shape), 3, rng)
    X, counts = images[0], np.array([1, 3, 2, 1])
    weighted = layer_agops(layers, readout, X, counts, resources_of(X))
    repeated = np.repeat(X, counts, axis=0)
    expected = layer_agops(layers, readout, repeated, np.ones(7), resources_of(X))
    assert_agops_close(weighted, expected, 1e-12)


@pytest.mark.parametrize("network", ["root", "two layers", "three layers, all pools"])
def test_mirrored_float32_is_close_to_float64(network, images, rng):
    layers = with_mirror(make_layers(NETWORKS[network], rng))
    readout, _ = make_readout("gaussian", math.prod(layers[-1].shape), 3, rng)
    single, double = (
        layer_agops(layers, readout, *images, make_resources("cpu", d, None, images[0]))
        for d in ("float32", "float64")
    )
    assert_agops_close(single, double, 1e-4)


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

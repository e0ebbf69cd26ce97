"""Maps of several layers side by side: features, gradients, and their machines."""

import math
import pickle

import numpy as np
import pytest
import torch
from by_hand import assert_close
from numpy.testing import assert_array_equal
from sklearn import config_context
from sklearn.base import clone
from test_gradients import (
    IMAGE,
    NETWORKS,
    forward,
    make_layers,
    make_readout,
    resources_of,
)

from skconvrfm import ConvRFMClassifier, ConvRFMRegressor, PatchAGOPTransformer
from skconvrfm.features import ConvFeatures
from skconvrfm.features.gradients import layer_agops
from skconvrfm.features.maps import compute_features
from skconvrfm.features.skips import SideBySide
from skconvrfm.kernels import ConvNTK, Gaussian

DEEP = {name: n for name, n in NETWORKS.items() if len(n) > 1}
BELOW = ConvFeatures(5, patch_size=3, pool_size=2, candidates=2, skip=True)
TOP = ConvFeatures(6, patch_size=2, pool_grid=2, candidates=2)
OPTIONS = {"n_rounds": 2, "selection": "last"}
MACHINES = {
    "gaussian": ConvRFMClassifier("gaussian", [BELOW, TOP], **OPTIONS),
    "laplace, mirrored": ConvRFMClassifier(
        "laplace", [BELOW, clone(TOP).set_params(mirror=True)], **OPTIONS
    ),
    "linear": ConvRFMRegressor("linear", [BELOW, TOP], **OPTIONS),
    "wide linear": ConvRFMRegressor(
        "linear", [BELOW, clone(TOP).set_params(n_filters=30)], **OPTIONS
    ),
    "three layers": ConvRFMRegressor(
        Gaussian(2.0),
        [ConvFeatures(4, patch_size=3, pool_grid=None, skip=True), BELOW, TOP],
        **OPTIONS,
    ),
}


@pytest.fixture
def data(rng):
    X = rng.normal(size=(40, 10, 9)).astype(np.float32)
    y = np.arange(40) % 2
    X[y == 1, 4:6, 3:5] += 1.5
    return X, y


def scales_of(layers):
    """Return scales of layers that the kernel sees but for the second of three."""
    return tuple(
        None if i == 1 < len(layers) - 1 else 0.5 + i for i in range(len(layers))
    )


def side_by_side(layers, scales, image):
    """Patches of every layer, and the features of an image, by hand."""
    maps, patches, every = torch.from_numpy(image).requires_grad_(), [], []
    for layer in layers:
        seen, maps = forward(layer, maps)
        patches.append(seen)
        every.append(maps)
    parts = []
    for found, scale in zip(every, scales, strict=True):
        if scale is None:
            continue
        rows, columns = (
            [(i * n // c, (i + 1) * n // c) for i in range(c)]
            for n, c in zip(
                found.shape, map(min, found.shape, maps.shape[:2]), strict=False
            )
        )
        parts += [
            scale * found[a:b, c:d].mean((0, 1)) for a, b in rows for c, d in columns
        ]
    return patches, torch.cat(parts)


@pytest.mark.parametrize("memory", [1e-5, 1024])
@pytest.mark.parametrize("network", DEEP)
def test_features_are_scaled_means_over_the_last_grid(network, memory, rng):
    layers, images = make_layers(DEEP[network], rng), rng.normal(size=(4, *IMAGE))
    top = SideBySide(layers, scales_of(layers))
    expected = [
        side_by_side(layers, top.scales, image)[1].detach().numpy() for image in images
    ]
    with config_context(working_memory=memory):
        features = compute_features(top, images, resources_of(images))
        assert_close(features.reshape(4, -1), np.array(expected), 1e-12)
        part = compute_features(top.only(slice(3, 9)), images, resources_of(images))
    assert_array_equal(part, features[..., 3:9])


@pytest.mark.parametrize("readout", ["linear", "gaussian"])
@pytest.mark.parametrize("network", DEEP)
def test_agops_equal_automatic_differentiation(network, readout, rng):
    layers, images = make_layers(DEEP[network], rng), rng.normal(size=(3, *IMAGE))
    scales, weights = scales_of(layers), np.array([1.0, 2.0, 0.5])
    width = SideBySide(layers, scales).width
    readout, outputs = make_readout(readout, width, 3, rng)
    totals = [0] * len(layers)
    for image, weight in zip(images, weights, strict=True):
        patches, features = side_by_side(layers, scales, image)
        for output in outputs(features):
            found = torch.autograd.grad(output, patches, retain_graph=True)
            for index, gradient in enumerate(found):
                rows = gradient.flatten(0, 1).numpy()
                totals[index] = totals[index] + weight * rows.T @ rows
    agops = layer_agops(layers, readout, images, weights, resources_of(images), scales)
    for found, total in zip(agops, totals, strict=True):
        assert_close(found.agop, total / weights.sum(), 1e-9)


@pytest.mark.parametrize("name", MACHINES)
def test_every_layer_has_unit_spread(name, data):
    X, y = data
    fitted = clone(MACHINES[name]).fit(X, y)
    transformer = PatchAGOPTransformer(MACHINES[name], output="features").fit(X, y)
    features = transformer.transform(X).astype(float)
    assert features.shape == (40, math.prod(fitted.kernel_.image_shape_))
    assert len(transformer.get_feature_names_out()) == features.shape[1]
    seen = [layer for layer in fitted.features_ if layer.skip_scale_ is not None]
    assert len(seen) == len(fitted.features_)
    np.testing.assert_allclose(features.var(0).sum(), len(seen), 1e-4)
    if hasattr(fitted, "coef_"):
        outputs = features @ fitted.coef_ + fitted.intercept_
        assert_close(fitted.predict(X), outputs, 1e-4)


@pytest.mark.parametrize("name", MACHINES)
def test_weights_are_repeated_rows_and_fits_are_continued(name, data):
    X, y = data
    weights = 1 + np.arange(40) % 3
    weighted = clone(MACHINES[name]).fit(X, y, sample_weight=weights)
    repeated = clone(MACHINES[name]).fit(X.repeat(weights, 0), y.repeat(weights))
    method = getattr(weighted, "decision_function", weighted.predict)
    other = getattr(repeated, "decision_function", repeated.predict)
    assert_close(method(X), other(X), 1e-4)
    model = clone(MACHINES[name]).set_params(warm_start=True).fit(X, y, weights)
    expected = model.predict(X)
    assert_array_equal(expected, weighted.predict(X))
    assert_array_equal(pickle.loads(pickle.dumps(model)).predict(X), expected)
    model.set_params(n_rounds=0).fit(X, y, weights)
    assert_close(model.predict(X), expected, 1e-4)


def test_sums_of_batches_equal_one_fit(data):
    X, y = data
    model = clone(MACHINES["linear"]).set_params(n_rounds=0)
    model.partial_fit(X[:25], y[:25])
    scales = [layer.skip_scale_ for layer in model.features_]
    model.partial_fit(X[25:], y[25:])
    assert [layer.skip_scale_ for layer in model.features_] == scales
    assert model.score(X, y) > 0


def test_skip_of_the_last_layer_changes_nothing(data):
    X, y = data
    below = clone(BELOW).set_params(skip=False)
    for layers in ([below, TOP], [TOP]):
        top = clone(layers[-1]).set_params(skip=True)
        models = [
            ConvRFMClassifier("gaussian", [*layers[:-1], last], n_rounds=1).fit(X, y)
            for last in (layers[-1], top)
        ]
        assert_array_equal(*(model.decision_function(X) for model in models))


def test_skip_below_a_kernel_of_patches_is_refused(data):
    layer = ConvFeatures(5, patch_size=3, pool_grid=None, skip=True)
    with pytest.raises(ValueError, match=r"features\[0\]\.skip=True has no effect"):
        ConvRFMClassifier(ConvNTK(depth=1), layer).fit(*data)

"""Features averaged over an image and its mirror, and machines made of them."""

import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from by_hand import assert_close
from numpy.testing import assert_array_equal
from sklearn import config_context
from sklearn.base import clone

from skconvrfm import ConvRFMClassifier, ConvRFMRegressor
from skconvrfm._input import make_resources
from skconvrfm.compute.images import (
    ChosenImages,
    convolution_layers,
    mirror,
    to_tensor,
)
from skconvrfm.compute.native import calls
from skconvrfm.compute.sampling import Sample
from skconvrfm.features import ConvFeatures
from skconvrfm.features import maps as maps_module
from skconvrfm.features.filters import patch_moments
from skconvrfm.features.maps import (
    FilterLayer,
    compute_features,
    feature_rows,
    pass_through,
)

CPU = torch.device("cpu")
TOP = {"patch_size": 3, "pool_grid": 2, "mirror": True}
TWO = [
    ConvFeatures(5, patch_size=3, pool_size=2, candidates=2, learn=False),
    ConvFeatures(6, **{**TOP, "patch_size": 2}, candidates=2),
]
OPTIONS = {"n_rounds": 1, "selection": "last"}
MACHINES = {
    "gaussian": ConvRFMClassifier("gaussian", ConvFeatures(6, **TOP), **OPTIONS),
    "laplace, norm": ConvRFMClassifier(
        "laplace", ConvFeatures(6, pool="norm", candidates=3, **TOP), **OPTIONS
    ),
    "linear": ConvRFMClassifier("linear", ConvFeatures(6, **TOP), **OPTIONS),
    "wide linear": ConvRFMClassifier(
        "linear", ConvFeatures(40, filters="gaussian", pool="max", **TOP), **OPTIONS
    ),
    "even, padded": ConvRFMClassifier(
        "gaussian",
        ConvFeatures(6, padding="same", **{**TOP, "patch_size": 4, "pool_grid": None}),
        **OPTIONS,
    ),
    "two layers": ConvRFMRegressor("gaussian", TWO, **OPTIONS),
    "linear of two": ConvRFMRegressor("linear", TWO, **OPTIONS),
}


def flip(X):
    return np.ascontiguousarray(X[:, :, ::-1])


@pytest.fixture
def data(rng):
    X = rng.normal(size=(40, 9, 8))
    return X, (X[:, 2, 1] * X[:, 2, 2] + X[:, 3, 0] > 0).astype(int)


@pytest.fixture(params=MACHINES)
def machine(request):
    return clone(MACHINES[request.param])


def scores(model, X):
    return getattr(model, "decision_function", model.predict)(X)


# ------------------------------------------------------------------------ features


@pytest.fixture(
    params=["root", "norm", "max, overlap", "no pool", "uneven", "even, padded"]
)
def layer(request, rng):
    """A layer of filters for images of 19 × 8 pixels with two channels."""
    size, padding = ((2, 4), "same") if "even" in request.param else (3, "valid")
    shape = convolution_layers((19, 8), size, padding, 1)[0]
    d = 2 * shape.patch[0] * shape.patch[1]
    offsets = rng.uniform(0.01, 0.1, size=5)
    grids = {"no pool": None, "uneven": (3, 4)}
    options = {
        "root": {"power": 0.5},
        "norm": {"order": 4.0, "power": 0.25},
        "max, overlap": {"order": np.inf, "overlap": 0.5},
    }
    return FilterLayer(
        shape,
        rng.normal(size=(5, d)),
        "relu",
        rng.normal(size=5),
        grids.get(request.param, (3, 2)),
        offsets=offsets,
        mirror=True,
        **options.get(request.param, {}),
    )


def features_of(layer, X, dtype="float64", n_jobs=None):
    return compute_features(layer, X, make_resources("cpu", dtype, n_jobs, X))


@pytest.mark.parametrize("memory", [1e-5, 0.02, 1024])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_features_are_the_mean_over_an_image_and_its_mirror(
    dtype, memory, layer, tiles, rng
):
    X = rng.normal(size=(7, 19, 8, 2))
    plain = replace(layer, mirror=False)
    sides = [plain(torch.from_numpy(x.copy())).numpy() for x in (X, X[:, :, ::-1])]
    with config_context(working_memory=memory):
        found = features_of(layer, X, dtype)
        mirrored = features_of(layer, X[:, :, ::-1], dtype)
        rows = slice(0, 1)
        resources = make_resources("cpu", dtype, None, X)
        some = feature_rows(layer, X, len(X), rows, resources)
    tolerance = 1e-12 if dtype == "float64" else 1e-5
    assert found.dtype == dtype
    assert_close(found.astype(float), sum(sides) / 2, tolerance)
    assert_array_equal(found, mirrored)
    assert_close(some.astype(float), found[:, rows].astype(float), tolerance)


@pytest.mark.parametrize("memory", [1e-5, 0.02, 1024])
def test_features_of_two_layers_are_of_mirrored_pixels(memory, tiles, rng):
    first = convolution_layers((9, 8), 3, "valid", 1)[0]
    below = FilterLayer(first, rng.normal(size=(5, 18)), "relu", None, (4, 3))
    above = convolution_layers((4, 3), 2, "same", 1)[0]
    top = FilterLayer(above, rng.normal(size=(4, 20)), "relu", pool=(2, 2), mirror=True)
    X = rng.normal(size=(6, 9, 8, 2))
    sides = [
        replace(top, mirror=False)(below(torch.from_numpy(x.copy()))).numpy()
        for x in (X, X[:, :, ::-1])
    ]
    with config_context(working_memory=memory):
        resources = make_resources("cpu", "float64", None, X)
        for images in (X, X[:, :, ::-1], ChosenImages(X, np.arange(6))):
            maps = pass_through(images, [below])
            found = compute_features(top, maps, resources)
            assert_close(found, sum(sides) / 2, 1e-12)


def test_mirror_of_feature_maps_is_the_maps_of_mirrored_pixels(layer, rng):
    X = rng.normal(size=(5, 19, 8, 2))
    below = replace(layer, mirror=False)
    maps = mirror(pass_through(ChosenImages(X, np.array([3, 1, 4])), [below]))
    assert maps.shape == (3, *layer.shape) and maps.n_whole == 3
    expected = below(torch.from_numpy(X[[3, 1, 4], :, ::-1].copy()))
    assert_close(to_tensor(maps, torch.float64, CPU).numpy(), expected.numpy(), 1e-12)


def test_mirrored_features_take_one_pass_each(layer, compiled_tiles, monkeypatch, rng):
    counts, filter_maps = [], calls.filter_maps

    def counting(library, layer, images):
        counts.append(len(images))
        return filter_maps(library, layer, images)

    monkeypatch.setattr(calls, "filter_maps", counting)
    X = rng.normal(size=(6, 19, 8, 2))
    expected = features_of(layer, X)
    assert counts == [6, 6]
    for n_images in (1, 4):
        monkeypatch.setattr(maps_module, "_quick_block", lambda *_, n=n_images: n)
        for n_jobs in (None, 1):
            assert_close(features_of(layer, X, n_jobs=n_jobs), expected, 1e-13)


# ------------------------------------------------------------------------ machines


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_fits_are_symmetric_and_are_saved_and_continued(dtype, machine, data):
    X, y = data
    machine.set_params(dtype=dtype, warm_start=True).fit(X, y)
    expected = scores(machine, X)
    assert_array_equal(scores(machine, flip(X)), expected)
    first = machine.features_[0]
    if dtype == "float64":
        entries = first.layer_.mirror_entries(1)
        for name in ("initial_transform_", "filter_transform_", "patch_transform_"):
            assert_symmetric(getattr(first, name), entries)
        assert_symmetric(first.patch_covariance_, entries)
        assert_symmetric(first.patch_agop_, entries)
        assert_close(first.patch_mean_[entries], first.patch_mean_, 1e-12)
    again = pickle.loads(pickle.dumps(machine))
    assert again.features_[-1].mirror is True
    assert_array_equal(scores(again, X), expected)
    machine.features_[-1].mirror = False
    assert np.abs(scores(machine, X) - scores(machine, flip(X))).max() > 1e-4
    again.fit(X, y)
    assert_array_equal(scores(again, X), scores(again, flip(X)))


def assert_symmetric(matrix, entries):
    assert_close(matrix[np.ix_(entries, entries)], matrix, 1e-8)


@pytest.mark.parametrize("name", ["gaussian", "laplace, norm", "two layers"])
def test_moments_of_the_first_layer_are_those_of_images_and_mirrors(name, data):
    (X, y), machine = data, clone(MACHINES[name])
    first, *above = machine.set_params(dtype="float64").fit(X, y).features_
    images = np.concatenate([X, flip(X)])[..., None]
    resources = make_resources("cpu", "float64", None, images)
    sample = Sample(np.arange(len(images)), np.ones(len(images)))
    expected = patch_moments(images, first.layer_, sample, resources)
    assert_close(first.patch_covariance_, expected.covariance, 1e-10)
    for layer in above:  # of the images alone
        maps = pass_through(X[..., None], [first.maps_])
        sample = Sample(np.arange(len(X)), np.ones(len(X)))
        expected = patch_moments(maps, layer.layer_, sample, resources)
        assert_close(layer.patch_covariance_, expected.covariance, 1e-10)


@pytest.mark.parametrize("name", ["linear", "wide linear", "linear of two"])
def test_stream_of_batches_is_one_fit_under_the_mirror(name, data):
    X, y = data
    model = clone(MACHINES[name]).set_params(n_rounds=0, selection="gcv")
    model.set_params(dtype="float64", alpha=0.1)
    expected = scores(clone(model).fit(X, y).partial_fit(flip(X), y), X)
    streamed = model.fit(X, y)
    for rows in (slice(13), slice(13, 40)):
        streamed.partial_fit(flip(X[rows]), y[rows])
    assert_close(scores(streamed, X), expected, 1e-8)
    assert_array_equal(scores(streamed, X), scores(streamed, flip(X)))


def test_held_out_rows_choose_under_the_mirror(data):
    model = clone(MACHINES["gaussian"]).set_params(selection="holdout").fit(*data)
    assert_array_equal(scores(model, data[0]), scores(model, flip(data[0])))


def test_symmetric_problem_is_learned_better_under_the_mirror(rng):
    """A bar that leans to one side or to the other is of one class."""
    X, y = rng.normal(size=(240, 10, 10)), np.arange(240) % 2
    for index in np.flatnonzero(y):  # first to the right, then to the left
        columns = range(2, 8) if index < 120 else range(7, 1, -1)
        X[index, range(2, 8), columns] += 1.5
    layer = ConvFeatures(32, patch_size=4, pool_grid=2)
    train = slice(0, 120)
    model = ConvRFMClassifier("gaussian", layer, n_rounds=0).fit(X[train], y[train])
    plain = model.score(X[120:], y[120:])
    model.set_params(features__mirror=True).fit(X[train], y[train])
    assert model.score(X[120:], y[120:]) > plain + 0.1

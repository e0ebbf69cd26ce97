"""Filters chosen by importance, and layers that learn, or do not."""

import numpy as np
import pytest
import torch
from doubles import Callback
from numpy.testing import assert_allclose, assert_array_equal
from same import assert_same
from sklearn.base import clone

from skconvrfm import ConvRFMClassifier, ConvRFMRegressor
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import ConvNTK
from skconvrfm.learning.rounds import transform_from_agop

ONE = [ConvFeatures(6, patch_size=3, pool_grid=2, candidates=3)]
TWO = [
    ConvFeatures(5, patch_size=3, pool_size=2, candidates=2, learn=False),
    ConvFeatures(6, patch_size=2, pool_grid=2, candidates=3, shrinkage=1.0),
]
MIRRORED = [TWO[0], clone(TWO[1]).set_params(mirror=True)]
MACHINES = {
    "gaussian": ConvRFMClassifier("gaussian", ONE, n_rounds=1, selection="last"),
    "laplace": ConvRFMClassifier("laplace", ONE, n_rounds=1, selection="last"),
    "linear": ConvRFMClassifier("linear", ONE, n_rounds=1, selection="last"),
    "two layers": ConvRFMClassifier("gaussian", TWO, n_rounds=2, selection="last"),
    "mirrored": ConvRFMClassifier("gaussian", MIRRORED, n_rounds=2, selection="last"),
    "linear, mirrored": ConvRFMClassifier(
        "linear", MIRRORED[1:], n_rounds=2, selection="last"
    ),
    "linear of two": ConvRFMRegressor("linear", TWO, n_rounds=2, selection="last"),
}


def add_crosses(images, arm, size, rng):
    """Add a cross to each image, somewhere in it."""
    places = rng.integers(arm, images.shape[1] - arm - 1, (len(images), 2))
    for image, (row, column) in zip(images, places, strict=True):
        image[row - arm : row + arm + 1, column] += size
        image[row, column - arm : column + arm + 1] += size


@pytest.fixture
def data(rng):
    """Return noise in which one class has a faint cross somewhere."""
    X, y = rng.normal(size=(60, 11, 10)), np.arange(60) % 2
    add_crosses(X[1::2], 1, 2.0, rng)
    return X, y


@pytest.fixture(params=MACHINES)
def machine(request):
    return clone(MACHINES[request.param]).set_params(dtype="float64")


def responses_and_outputs(model, X):
    """Return the responses of every layer, and the outputs, under autograd."""
    if model.features_[-1].mirror:
        X = np.concatenate([X, X[:, :, ::-1]])
    maps, seen = torch.tensor(X[..., None]).permute(0, 3, 1, 2), []
    for layer in model.features_:
        filters, biases = layer.maps_.affine(maps.shape[1])
        weight = torch.tensor(filters).reshape(
            len(filters), maps.shape[1], *layer.patch_shape_
        )
        responses = torch.nn.functional.conv2d(maps, weight, torch.tensor(biases))
        responses.requires_grad_()
        seen.append(responses)
        pooled = layer.maps_.combine(
            layer.maps_.pool_parts(responses.relu().permute(0, 2, 3, 1))
        )
        offsets = torch.tensor(layer.offsets_)
        maps = ((pooled + offsets) ** 0.5 - offsets**0.5).permute(0, 3, 1, 2)
    rows = maps.permute(0, 2, 3, 1).flatten(1)
    if model.features_[-1].mirror:
        rows = rows.unflatten(0, (2, -1)).mean(0)
    if model.kernel_.is_linear:
        return seen, rows @ torch.tensor(model.coef_.reshape(rows.shape[1], -1))
    r = (rows[:, None] - torch.tensor(model.X_fit_)).square().sum(2)
    kernel = torch.exp(-r / (2 * model.kernel_.bandwidth_**2))
    return seen, kernel @ torch.tensor(model.dual_coef_.reshape(len(model.X_fit_), -1))


@pytest.mark.parametrize("name", sorted(MACHINES.keys() - {"laplace"}))
def test_importance_is_the_mean_squared_gradient_at_the_responses(name, data):
    model = clone(MACHINES[name]).set_params(dtype="float64", agop_samples=None)
    model.fit(*data)
    seen, outputs = responses_and_outputs(model, data[0])
    expected = [0] * len(seen)
    for output in outputs.T:
        gradients = torch.autograd.grad(output.sum(), seen, retain_graph=True)
        for layer, gradient in enumerate(gradients):
            squares = gradient.square().sum((0, 2, 3)) / len(data[0])
            expected[layer] = expected[layer] + squares
    for layer, value in zip(model.features_, expected, strict=True):
        assert_allclose(layer.importance_, value, rtol=1e-8)


@pytest.mark.parametrize("name", ["gaussian", "laplace", "linear"])
def test_most_important_candidates_are_kept(name, data):
    model = clone(MACHINES[name]).fit(*data)
    # All candidates are the filters of a layer of three times as many.
    every = clone(model).set_params(
        features=ConvFeatures(18, patch_size=3, pool_grid=2)
    )
    every = every.set_params(n_rounds=0, selection="gcv").fit(*data)
    [layer] = every.features_
    order = np.argsort(-layer.importance_)
    kept = np.sort(order[:6])
    assert_allclose(model.features_[0].directions_, layer.directions_[kept])
    assert_allclose(model.features_[0].unit_biases_, layer.unit_biases_[kept])


def test_filters_below_a_mirrored_layer_are_chosen_under_its_mirror(data):
    model = clone(MACHINES["mirrored"]).fit(*data)
    options = {"n_filters": 10, "candidates": 1, "pool_size": None, "pool_grid": 2}
    every = clone(TWO[0]).set_params(**options, mirror=True)
    every = ConvRFMClassifier("gaussian", every, n_rounds=0).fit(*data).features_[0]
    kept = np.sort(np.argsort(-every.importance_)[:5])
    assert_allclose(model.features_[0].directions_, every.directions_[kept])
    plain = clone(MACHINES["two layers"]).fit(*data).features_[0]
    assert np.abs(plain.directions_ - model.features_[0].directions_).max() > 0.1


def test_first_round_has_an_even_part_of_the_candidates(data):
    model = clone(MACHINES["gaussian"]).set_params(n_rounds=0).fit(*data)
    every = clone(model).set_params(
        features=ConvFeatures(18, patch_size=3, pool_grid=2)
    )
    expected = every.fit(*data).features_[0].directions_[::3]
    assert_array_equal(model.features_[0].directions_, expected)


def test_chosen_filters_find_a_faint_pattern(rng):
    """A cross in noise, of which few patches show anything."""
    X, y = rng.normal(size=(600, 16, 16)), np.arange(600) % 2
    add_crosses(X[1::2], 2, 1.5, rng)
    layer = ConvFeatures(8, patch_size=5, pool="norm", pool_grid=1, candidates=8)
    model = ConvRFMClassifier("gaussian", layer, n_rounds=1, selection="last")
    fixed = clone(model).set_params(n_rounds=0).fit(X[:300], y[:300])
    chosen = model.fit(X[:300], y[:300])
    assert chosen.score(X[300:], y[300:]) > fixed.score(X[300:], y[300:]) + 0.05


def test_weights_equal_repeated_rows(machine, data):
    X, y = data
    counts = np.arange(60) % 3
    weighted = clone(machine).fit(X, y, counts)
    repeated = clone(machine).fit(np.repeat(X, counts, 0), np.repeat(y, counts))
    for one, other in zip(weighted.features_, repeated.features_, strict=True):
        assert_allclose(one.filters_, other.filters_, atol=1e-9)


def test_order_of_rows_changes_nothing(machine, data, rng):
    X, y = data
    order = rng.permutation(60)
    one, other = clone(machine).fit(X, y), clone(machine).fit(X[order], y[order])
    for layer, same in zip(one.features_, other.features_, strict=True):
        assert_allclose(layer.filters_, same.filters_, atol=1e-8)


@pytest.mark.parametrize("name", ["gaussian", "mirrored", "linear of two"])
def test_fit_that_was_interrupted_goes_on_with_the_same_filters(name, data, tmp_path):
    machine = clone(MACHINES[name])
    expected = clone(machine).fit(*data)

    class Stop(Callback):
        def __init__(self, at):
            self.at = at

        def on_fit_task_end(self, *_, **__):
            self.at -= 1
            if self.at < 0:
                raise KeyboardInterrupt

    pytest.importorskip("sklearn.callback", reason="scikit-learn 1.9 has them")
    machine.set_params(checkpoint=tmp_path)
    for at in range(2):
        with pytest.raises(KeyboardInterrupt):
            clone(machine).set_callbacks(Stop(at)).fit(*data)
    found = machine.fit(*data)
    for one, other in zip(found.features_, expected.features_, strict=True):
        assert_same(one.filters_, other.filters_)
        assert_same(one.importance_, other.importance_)


def test_partial_fit_chooses_from_its_first_images(data):
    X, y = data
    model = clone(MACHINES["linear"]).partial_fit(X, y)
    expected = clone(MACHINES["linear"]).fit(X, y)
    assert_allclose(model.features_[0].filters_, expected.features_[0].filters_)
    filters = model.features_[0].filters_
    model.partial_fit(X + 1, y)
    assert_array_equal(
        model.features_[0].directions_, expected.features_[0].directions_
    )
    assert len(filters) == 6


def test_warm_start_keeps_the_chosen_filters(data):
    model = clone(MACHINES["gaussian"]).set_params(warm_start=True).fit(*data)
    before = model.features_[0].directions_
    assert_array_equal(model.fit(*data).features_[0].directions_, before)


def test_layer_that_does_not_learn_keeps_its_metric(data):
    model = clone(MACHINES["two layers"]).fit(*data)
    below, top = model.features_
    assert_array_equal(below.patch_transform_, below.initial_transform_)
    assert np.abs(top.patch_transform_ - top.initial_transform_).max() > 0.1
    assert len(model.history_["round"]) == 3


def test_rounds_end_where_nothing_is_left_to_learn(data):
    features = [clone(layer).set_params(learn=False) for layer in TWO]
    model = ConvRFMClassifier("gaussian", features, n_rounds=4).fit(*data)
    assert len(model.history_["round"]) == 2
    model.set_params(features=[layer.set_params(candidates=1) for layer in features])
    assert len(model.fit(*data).history_["round"]) == 1


@pytest.mark.parametrize("power", [0.25, 1.0])
def test_power_of_a_layer_is_its_own(power, data):
    layer = ConvFeatures(6, patch_size=3, agop_power=power)
    model = ConvRFMClassifier("linear", layer, n_rounds=1, selection="last")
    former = clone(model).set_params(n_rounds=0).fit(*data).features_[0]
    expected = transform_from_agop(former.patch_agop_, power, former.initial_transform_)
    found = model.fit(*data).features_[0].patch_transform_
    assert_allclose(found, expected, rtol=1e-5, atol=1e-8)


def test_shrinkage_is_in_units_of_the_mean_variance(data):
    layer = ConvFeatures(6, patch_size=3, shrinkage=2.0)
    [fitted] = ConvRFMClassifier("linear", layer, n_rounds=0).fit(*data).features_
    covariance = fitted.patch_covariance_
    shrunk = covariance + 2 * np.trace(covariance) / 9 * np.eye(9)
    found = fitted.initial_transform_
    assert_allclose(found @ shrunk @ found, np.eye(9), atol=1e-10)


@pytest.mark.parametrize("options", [{"candidates": 2}, {"learn": False}])
def test_choice_below_a_kernel_of_patches_is_refused(options, data):
    [(name, value)] = options.items()
    layer = ConvFeatures(4, patch_size=3, pool_grid=None, **options)
    model = ConvRFMClassifier(ConvNTK(depth=1), layer)
    message = rf"features\[0\]\.{name}={value} has no effect below kernel=ConvNTK"
    with pytest.raises(ValueError, match=message):
        model.fit(*data)

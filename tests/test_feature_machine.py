"""The linear machine: its kernel, its ridge on either side, its AGOP, its memory."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from by_hand import assert_close, patches_by_hand
from sklearn import config_context

from skconvrfm.core.feature_machine import (
    Design,
    FeatureKernelPath,
    feature_agop,
    feature_moments_path,
    feature_product,
)
from skconvrfm.core.features import FilterLayer
from skconvrfm.core.filters import (
    FilterBank,
    PatchMoments,
    draw_patches,
    patch_moments,
    to_one_length,
)
from skconvrfm.core.images import convolution_layers
from skconvrfm.core.machine import TrainingSet
from skconvrfm.core.sampling import Lineup, Sample
from skconvrfm.kernels import make_resources

ALPHAS = np.array([1e-4, 1e-2, 1.0])


def layer_of(image_shape, patch_size=3, padding="valid"):
    return convolution_layers(image_shape, patch_size, padding, 1)[0]


def make_features(rng, image_shape=(7, 6, 2), n_filters=5, pool=(2, 2), **options):
    layer = layer_of(image_shape, padding=options.pop("padding", "valid"))
    d = image_shape[2] * math.prod(layer.patch)
    return FilterLayer(
        layer,
        rng.normal(size=(n_filters, d)),
        options.pop("activation", "relu"),
        rng.normal(size=n_filters),
        pool,
    )


def make_data(rng, n, image_shape=(7, 6, 2), n_outputs=2, weights=None):
    weights = np.ones(n) if weights is None else weights
    images = rng.normal(size=(n, *image_shape))
    targets = np.tanh(images[:, 2, 2:4, 0] * images[:, 3, 2:4, 1])[:, :n_outputs]
    lineup = Lineup(np.zeros(n), images.sum((1, 2, 3)), weights, 0.3)
    return TrainingSet(images, targets, weights, weights, lineup)


def resources_of(data, dtype="float64", n_jobs=None):
    return make_resources("cpu", dtype, n_jobs, data.images)


@pytest.mark.parametrize("power", [1.0, 0.5])
@pytest.mark.parametrize("pool", [(1, 1), (2, 3), None])
@pytest.mark.parametrize("activation", ["relu", "identity"])
@pytest.mark.parametrize("padding", ["valid", "same"])
def test_the_agop_is_that_of_automatic_differentiation(
    pool, activation, padding, power, rng
):
    features = make_features(rng, pool=pool, activation=activation, padding=padding)
    offsets = rng.uniform(size=features.n_maps) / 10
    features = replace(features, power=power, offsets=offsets)
    data = make_data(rng, 4, weights=np.array([1.0, 2.0, 0.5, 3.0]))
    coef = rng.normal(size=(math.prod(features.shape), 3))
    measured = feature_agop(
        features, coef, data.images, data.weights, resources_of(data)
    )

    top, bottom, left, right = features.layer.padding
    padded = np.pad(data.images, ((0, 0), (top, bottom), (left, right), (0, 0)))
    rows, columns = features.layer.locations
    expected = 0
    for image, weight in zip(padded, data.weights, strict=True):
        # Every patch is a variable of its own.
        patches = torch.tensor(
            np.array(
                [
                    [image[r : r + 3, c : c + 3].transpose(2, 0, 1).ravel()]
                    for r in range(rows)
                    for c in range(columns)
                ]
            )[:, 0],
            requires_grad=True,
        )
        response = patches @ torch.tensor(features.filters.T) / math.sqrt(2)
        response = response + torch.tensor(features.biases)
        if activation == "relu":
            response = math.sqrt(2) * response.relu()
        maps = response.reshape(rows, columns, -1)
        cells = [
            maps[r, c].mean((0, 1))
            for r in features.cells[0]
            for c in features.cells[1]
        ]
        means = torch.cat(cells)
        if power != 1:
            added = torch.tensor(np.tile(offsets, len(cells)))
            raised = (means.abs() + added) ** power - added**power
            means = torch.copysign(raised, means)
        for output in means @ torch.tensor(coef):
            [gradient] = torch.autograd.grad(output, patches, retain_graph=True)
            expected = expected + weight * gradient.T @ gradient
    assert_close(measured, expected.numpy() / data.weights.sum(), 1e-12)


WEIGHTS = {
    "equal": np.ones(30),
    "unequal": np.linspace(0.2, 4.0, 30),
    "integer": np.arange(30) % 3 + 1.0,
}


@pytest.fixture(params=list(WEIGHTS))
def weights(request):
    return WEIGHTS[request.param]


@pytest.fixture(params=[4, 40], ids=["few features", "many features"])
def design(request, weights, rng):
    data = make_data(rng, 30, weights=weights)
    features = make_features(rng, n_filters=request.param)
    return Design(features, data, resources_of(data))


def test_both_sides_give_the_same_machines(design):
    dual, primal = (
        FeatureKernelPath(design, ALPHAS),
        feature_moments_path(design, ALPHAS),
    )
    np.testing.assert_allclose(primal.gcv(), dual.gcv(), rtol=1e-7)
    np.testing.assert_allclose(primal.loo_loss(), dual.loo_loss(), rtol=1e-7)
    assert primal.scale == pytest.approx(dual.scale)
    for alpha in ALPHAS:
        one, other = primal.solve(alpha), dual.solve(alpha)
        for name in ("coef", "intercept", "loo_prediction", "held_out_prediction"):
            assert_close(getattr(one, name), getattr(other, name), 1e-6)
        assert one.gcv == pytest.approx(other.gcv, rel=1e-7)
        assert one.loo_loss == pytest.approx(other.loo_loss, rel=1e-7)


@pytest.mark.parametrize("side", [FeatureKernelPath, feature_moments_path])
def test_all_ridges_side_by_side_are_those_one_by_one(side, design):
    path = side(design, ALPHAS)
    coef, intercepts = path.coefficients()
    solutions = [path.solve(alpha) for alpha in ALPHAS]
    assert_close(coef, np.hstack([s.coef for s in solutions]), 1e-10)
    assert_close(intercepts, np.concatenate([s.intercept for s in solutions]), 1e-10)


def test_the_coefficients_solve_the_weighted_ridge_problem(design):
    path = feature_moments_path(design, ALPHAS)
    solution = path.solve(1e-2)
    data = design.data
    phi = design.rows.compute(design.resources)
    assert phi.shape == (30, design.width)
    residual = data.targets - phi @ solution.coef - solution.intercept
    pull = phi.T @ (data.weights[:, None] * residual)
    assert_close(pull, 1e-2 * path.scale * solution.coef, 1e-8)
    np.testing.assert_allclose(data.weights @ residual, 0, atol=1e-9)
    assert path.scale == pytest.approx((phi**2).sum(1).max())
    product = feature_product(
        design.features, data.images, solution.coef, design.resources
    )
    assert_close(product, phi @ solution.coef, 1e-12)


@pytest.mark.parametrize("n_filters", [4, 40])
def test_noise_is_not_taken_for_signal_with_few_features_or_many(n_filters, rng):
    """The constant is no direction that GCV may spend for nothing."""
    data = make_data(rng, 30)
    noise = TrainingSet(
        data.images, rng.normal(size=(30, 2)), data.weights, data.counts, data.lineup
    )
    design = Design(make_features(rng, n_filters=n_filters), noise, resources_of(data))
    alphas = np.logspace(-12, 2, 15)
    sides = [FeatureKernelPath]
    if not design.wide:
        sides.append(feature_moments_path)
    for side in sides:
        gcv = side(design, alphas).gcv()
        assert np.isfinite(gcv).all() and (gcv > 0.1 * gcv[-1]).all()
        assert alphas[gcv.argmin()] > 1e-2


@pytest.mark.parametrize("working_memory", [0.004, 0.1])
@pytest.mark.parametrize("n_filters", [4, 40])
def test_features_that_do_not_fit_are_computed_again(working_memory, n_filters, rng):
    data = make_data(rng, 30)
    features = make_features(rng, n_filters=n_filters)
    held = Design(features, data, resources_of(data))
    with config_context(working_memory=working_memory):
        small = Design(features, data, resources_of(data))
    if working_memory == 0.004:
        assert small.rows.values is None
    for side in (FeatureKernelPath, feature_moments_path):
        one, other = (side(design, ALPHAS).solve(1e-2) for design in (held, small))
        assert_close(one.coef, other.coef, 1e-8)
        assert_close(one.loo_prediction, other.loo_prediction, 1e-8)


def test_single_precision_is_summed_in_double(rng):
    data = make_data(rng, 30)
    features = make_features(rng)
    exact, rounded = (
        Design(features, data, resources_of(data, dtype))
        for dtype in ("float64", "float32")
    )
    assert rounded.rows.compute(rounded.resources).dtype == np.float32
    assert_close(rounded.moments().gram, exact.moments().gram, 1e-5)
    assert_close(rounded.kernel_matrix(), exact.kernel_matrix(), 1e-5)


def test_filters_take_the_metric_of_the_round(rng):
    directions, numbers = rng.normal(size=(6, 18)), rng.normal(size=6)
    bank = FilterBank(directions, numbers, 0.3, 0.0, 1.0, moments=None, initial=None)
    layer, T = layer_of((7, 6, 2)), np.diag(np.arange(18.0))
    features = bank.under(T, layer, 2, "relu", (2, 2))
    assert_close(features.filters, directions @ T, 1e-14)
    assert_close(features.biases, 0.3 * numbers, 1e-14)
    assert features.shape == (2, 2, 6)
    assert bank.under(None, layer, 2, "relu", None).filters is directions


def test_whitened_patches_are_filters_with_the_covariance_of_the_metric(rng):
    """Like normal ones; and thresholds and means are those of their responses."""
    root = np.linalg.qr(rng.normal(size=(4, 4)))[0] * [[1.0], [1.2], [1.5], [2.0]]
    patches = rng.normal(size=(20_000, 4)) @ root + 3
    moments = PatchMoments(patches.mean(0), np.cov(patches.T))
    initial = moments.whitening()
    directions = to_one_length((patches - moments.mean) @ initial)
    np.testing.assert_allclose((directions**2).sum(1), 4)
    bank = FilterBank(
        directions, np.zeros(20_000), 0.0, 0.5, 1.0, moments, initial=initial
    )
    layer = layer_of((2, 2, 1), patch_size=2)
    features = bank.under(initial, layer, 1, "relu", None)
    covariance = features.filters.T @ features.filters / 20_000
    # Shrinkage leaves the weak directions a little weaker.
    assert_close(covariance, initial @ initial, 0.3)
    threshold = 0.5 * np.sqrt(
        ((features.filters @ moments.covariance) * features.filters).sum(1)
    )
    np.testing.assert_allclose(
        (patches @ features.filters[:50].T + features.biases[:50]).mean(0),
        -threshold[:50],
        atol=1e-9,
    )


def test_a_patch_that_is_the_mean_makes_a_filter_of_zero():
    assert not to_one_length(np.zeros((2, 3))).any()


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_the_moments_of_patches_are_weighted(padding, rng):
    X, weights = 5 + rng.normal(size=(40, 5, 4, 2)), rng.uniform(0.5, 3, size=20)
    rows = rng.permutation(40)[:20]
    layer = layer_of((5, 4, 2), padding=padding)
    resources = make_resources("cpu", "float32", None, X)
    moments = patch_moments(X, layer, Sample(rows, weights), resources)
    patches = np.array([patches_by_hand(x, padding=padding) for x in X[rows]])
    patches, each = patches.reshape(-1, 18), patches[0, ..., 0].size
    every = np.repeat(weights, each)
    mean = np.average(patches, axis=0, weights=every)
    assert_close(moments.mean, mean, 1e-6)
    expected = np.cov(patches.T, aweights=every, ddof=0)
    assert_close(moments.covariance, expected, 1e-5)


def test_the_moments_of_float32_images_are_summed_in_float64():
    X = 1 + np.random.default_rng(0).random((40, 28, 28, 1), dtype=np.float32).cumsum(1)
    layer = layer_of((28, 28, 1), patch_size=7)
    sample = Sample(np.arange(40), np.ones(40))
    low, high = (
        patch_moments(X, layer, sample, make_resources("cpu", dtype, None, X))
        for dtype in ("float32", "float64")
    )
    assert_close(low.covariance, high.covariance, 1e-12)
    assert_close(low.whitening(), high.whitening(), 1e-9)


def test_drawn_patches_are_patches_and_blank_ones_are_left_out(rng):
    X = np.zeros((30, 6, 6, 1))
    X[:, 4:, 4:] = rng.normal(size=(30, 2, 2, 1))  # in one corner alone
    rows = np.repeat(np.arange(30), 2)
    layer, centre = layer_of((6, 6, 1), patch_size=2), np.zeros(4)
    resources = make_resources("cpu", "float64", None, X)
    draws = np.random.RandomState(0)
    drawn = draw_patches(X, layer, rows, centre, draws, resources)
    assert drawn.shape == (60, 4) and (drawn != 0).any(1).all()
    for patch, row in zip(drawn, rows, strict=True):
        patches = patches_by_hand(X[row], patch_size=2).reshape(-1, 4)
        assert (patches == patch).all(1).any()
    blank = draw_patches(0 * X, layer, rows, centre, draws, resources)
    assert not blank.any()

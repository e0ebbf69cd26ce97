"""Ridge regression on features: both sides, sums over rows, readouts, memory."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from by_hand import assert_close
from sklearn import config_context

from skconvrfm._input import make_resources
from skconvrfm.compute.images import convolution_layers
from skconvrfm.compute.sampling import Lineup
from skconvrfm.features.maps import FilterLayer, Pixels
from skconvrfm.kernels import Gaussian, Laplace
from skconvrfm.learning.feature_sums import (
    Design,
    LinearReadout,
    RadialReadout,
    readout_outputs,
)
from skconvrfm.learning.primal import PrimalRidgePath
from skconvrfm.learning.ridge import RidgePath
from skconvrfm.learning.training_set import Observations, TrainingSet

ALPHAS = np.array([1e-4, 1e-2, 1.0])
IMAGE = (7, 6, 2)


def make_features(rng, n_filters=5):
    [layer] = convolution_layers(IMAGE, 3, "valid", 1)
    filters, biases = rng.normal(size=(n_filters, 18)), rng.normal(size=n_filters)
    return FilterLayer(layer, filters, "relu", biases, (2, 2))


def make_data(rng, n, weights=None, targets=None):
    weights = np.ones(n) if weights is None else weights
    images = rng.normal(size=(n, *IMAGE))
    if targets is None:
        targets = np.tanh(images[:, 2, 2:4, 0] * images[:, 3, 2:4, 1])
    lineup = Lineup(np.zeros(n), images.sum((1, 2, 3)), weights, 0.3)
    scatter = 0.1 * rng.random((n, targets.shape[1]))
    observations = Observations(np.arange(n), targets, weights)
    return TrainingSet(images, targets, weights, scatter, lineup, observations)


def resources_of(data, dtype="float64", n_jobs=None):
    return make_resources("cpu", dtype, n_jobs, data.images)


def options_of(design, alphas):
    data = design.data
    device = design.resources.device
    columns = data.targets, data.weights, alphas, device, data.scatter.sum()
    return *columns, data.groups


def dual_path(design, alphas=ALPHAS):
    options = options_of(design, alphas)
    return RidgePath(design.kernel_matrix(), *options, design.combine)


def primal_path(design, alphas=ALPHAS):
    options = options_of(design, alphas)
    return PrimalRidgePath(design.moments(), design, *options)


BOTH_SIDES = pytest.mark.parametrize("side", [dual_path, primal_path])
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
    data = make_data(rng, 30, weights)
    return Design(make_features(rng, request.param), data, resources_of(data))


def test_both_sides_give_the_same_machines(design):
    dual, primal = dual_path(design), primal_path(design)
    np.testing.assert_allclose(primal.gcv(), dual.gcv(), rtol=1e-7)
    np.testing.assert_allclose(primal.loo_loss(), dual.loo_loss(), rtol=1e-7)
    assert primal.scale == pytest.approx(dual.scale)
    for alpha in ALPHAS:
        one, other = primal.solve(alpha), dual.solve(alpha)
        for name in ("coef", "intercept", "loo_prediction"):
            assert_close(getattr(one, name), getattr(other, name), 1e-6)
        assert one.gcv == pytest.approx(other.gcv, rel=1e-7)
        assert one.loo_loss == pytest.approx(other.loo_loss, rel=1e-7)


GROUPS = {
    "pairs": np.arange(30) // 2,
    "scattered": np.arange(30) % 7,
    "more rows than features": np.minimum(np.arange(30), 3),
}


@BOTH_SIDES
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("groups", GROUPS)
def test_left_out_groups_are_those_of_a_refit(side, groups, dtype, weights, rng):
    groups, data = GROUPS[groups], make_data(rng, 30, weights)
    resources = resources_of(data, dtype)
    features = make_features(rng, 5)
    path = side(Design(features, replace(data, groups=groups), resources))
    left_out = [path.solve(alpha).loo_prediction for alpha in ALPHAS]
    for group in np.unique(groups):
        rows = np.flatnonzero(groups == group)
        rest = Design(features, data.take(np.flatnonzero(groups != group)), resources)
        phi = Design(features, data, resources).rows.compute(resources)[rows]
        # Ridges are in units of the longest row, which may be among those left out.
        scaled = ALPHAS * path.scale / rest.moments().largest
        for alpha, found in zip(scaled, left_out, strict=True):
            solution = primal_path(rest).solve(alpha)
            expected = phi @ solution.coef + solution.intercept
            assert_close(found[rows], expected, 1e-6)
    losses = [
        (weights @ (data.targets - found) ** 2).sum() + data.scatter.sum()
        for found in left_out
    ]
    assert_close(path.loo_loss(), np.array(losses) / weights.sum(), 1e-9)


@BOTH_SIDES
def test_groups_of_single_rows_are_leave_one_out(side, design):
    alone = Design(
        design.rows.features,
        replace(design.data, groups=np.arange(30)[::-1]),
        design.resources,
    )
    assert_close(side(alone).loo_loss(), side(design).loo_loss(), 1e-8)


@BOTH_SIDES
def test_coefficients_of_all_ridges_are_those_of_each(side, design):
    path = side(design)
    coef, intercepts = path.coefficients()
    solutions = [path.solve(alpha) for alpha in ALPHAS]
    assert_close(coef, np.hstack([s.coef for s in solutions]), 1e-10)
    assert_close(intercepts, np.concatenate([s.intercept for s in solutions]), 1e-10)


@BOTH_SIDES
def test_coefficients_solve_the_weighted_ridge_problem(side, design):
    path = side(design)
    solution = path.solve(1e-2)
    data = design.data
    phi = design.rows.compute(design.resources)
    assert phi.shape == (30, design.width)
    residual = data.targets - phi @ solution.coef - solution.intercept
    pull = phi.T @ (data.weights[:, None] * residual)
    assert_close(pull, 1e-2 * path.scale * solution.coef, 1e-7)
    np.testing.assert_allclose(data.weights @ residual, 0, atol=1e-8)
    assert path.scale == pytest.approx((phi**2).sum(1).max())


@pytest.mark.parametrize("n_filters", [4, 40])
def test_gcv_of_noise_chooses_a_large_ridge(n_filters, rng):
    """The constant is no direction that GCV may spend for nothing."""
    data = make_data(rng, 30, targets=rng.normal(size=(30, 2)))
    design = Design(make_features(rng, n_filters), data, resources_of(data))
    alphas = np.logspace(-12, 2, 15)
    for side in [dual_path] if design.wide else [dual_path, primal_path]:
        gcv = side(design, alphas).gcv()
        assert np.isfinite(gcv).all() and (gcv > 0.1 * gcv[-1]).all()
        assert alphas[gcv.argmin()] > 1e-2


@BOTH_SIDES
@pytest.mark.parametrize("working_memory", [0.004, 0.1])
@pytest.mark.parametrize("n_filters", [4, 40])
def test_features_that_do_not_fit_are_computed_again(
    side, working_memory, n_filters, rng
):
    data, features = make_data(rng, 30), make_features(rng, n_filters)
    held = Design(features, data, resources_of(data))
    with config_context(working_memory=working_memory):
        small = Design(features, data, resources_of(data))
    if working_memory == 0.004:
        assert small.rows.values is None
    one, other = (side(design).solve(1e-2) for design in (held, small))
    assert_close(one.coef, other.coef, 1e-8)
    assert_close(one.loo_prediction, other.loo_prediction, 1e-8)


def test_single_precision_is_summed_in_double(rng):
    data, features = make_data(rng, 30), make_features(rng)
    exact, rounded = (
        Design(features, data, resources_of(data, dtype))
        for dtype in ("float64", "float32")
    )
    assert rounded.rows.compute(rounded.resources).dtype == np.float32
    assert_close(rounded.moments().gram, exact.moments().gram, 1e-5)
    assert_close(rounded.kernel_matrix(), exact.kernel_matrix(), 1e-5)


# ------------------------------------------------------------------- readouts


@pytest.mark.parametrize("name", ["linear", "gaussian", "laplace"])
@pytest.mark.parametrize("pixels", [False, True])
@pytest.mark.parametrize("working_memory", [0.01, 64])
def test_readout_outputs_are_their_formula(name, pixels, working_memory, rng):
    data = make_data(rng, 30)
    features = Pixels(IMAGE) if pixels else make_features(rng)
    phi = features(torch.from_numpy(data.images)).flatten(1).numpy()
    centres, width = phi[:9], phi.shape[1]
    coef = rng.normal(size=(width if name == "linear" else 9, 2))
    distances = np.linalg.norm(phi[:, None] - centres, axis=2) / 3
    if name == "linear":
        readout, expected = LinearReadout(coef), phi @ coef
    elif name == "gaussian":
        kernel = Gaussian(3.0).bind((1, 1, width))
        readout = RadialReadout(kernel, centres, coef)
        expected = np.exp(-(distances**2) / 2) @ coef
    else:
        kernel = Laplace(3.0).bind((1, 1, width))
        readout = RadialReadout(kernel, centres, coef)
        expected = np.exp(-distances) @ coef
    with config_context(working_memory=working_memory):
        resources = resources_of(data)
        outputs = readout_outputs(features, data.images, readout, resources)
    assert outputs.dtype == np.float64
    assert_close(outputs, expected, 1e-10)
    rows = torch.from_numpy(phi[:4])
    gradients = readout.gradients(rows)
    assert gradients.shape == (4, 2, width)
    assert math.prod(gradients.shape[1:]) <= readout.numbers


def test_wide_design_has_more_features_than_rows(rng):
    data = make_data(rng, 30)
    few, many = (
        Design(make_features(rng, n_filters), data, resources_of(data))
        for n_filters in (7, 8)
    )
    assert not few.wide and few.width == 28
    assert many.wide and many.width == 32

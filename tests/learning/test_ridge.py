"""The ridge path equals refits: solutions, left-out rows, GCV, weights."""

import numpy as np
import pytest
import torch
from by_hand import assert_close

from skconvrfm.learning import ridge
from skconvrfm.learning.ridge import RidgePath

ALPHAS = np.array([1e-3, 0.1, 10.0])
CPU = torch.device("cpu")
WEIGHTS = {
    "equal": np.ones(12),
    "integer": np.array([1.0, 2, 3, 1, 1, 2, 1, 4, 1, 1, 2, 1]),
    "real": np.linspace(0.1, 3, 12),
}


@pytest.fixture(params=ALPHAS)
def alpha(request):
    return request.param


@pytest.fixture(params=WEIGHTS)
def weights(request):
    return WEIGHTS[request.param]


@pytest.fixture
def problem(rng):
    """Return a kernel matrix whose largest diagonal entry is 1, and targets."""
    root = rng.normal(size=(12, 20))
    matrix = root @ root.T
    return matrix / np.diagonal(matrix).max(), rng.normal(size=(12, 2)) + [5, 0]


def solve(matrix, targets, weights, alpha):
    path = RidgePath(matrix, targets, np.asarray(weights, float), ALPHAS, CPU)
    return path.solve(alpha)


def solve_directly(matrix, targets, weights, alpha):
    """Coefficients and intercept from the bordered linear system."""
    n = len(matrix)
    system = np.ones((n + 1, n + 1))
    system[:n, :n] = matrix + alpha * np.diag(1 / weights)
    system[n, n] = 0
    right = np.vstack([targets, np.zeros(targets.shape[1])])
    solution = np.linalg.solve(system, right)
    return solution[:n], solution[n]


def leave_out(matrix, targets, weights, alpha, row):
    """Prediction for a row of a refit without it."""
    kept = np.delete(np.arange(len(weights)), row)
    coef, intercept = solve_directly(
        matrix[np.ix_(kept, kept)], targets[kept], weights[kept], alpha
    )
    return matrix[row, kept] @ coef + intercept


def smoother(matrix, weights, alpha):
    """The matrix that makes fitted values of targets, column by column."""
    coef, intercept = solve_directly(matrix, np.eye(len(matrix)), weights, alpha)
    return matrix @ coef + intercept


def test_solution_equals_that_of_the_linear_system(problem, weights, alpha):
    matrix, targets = problem
    coef, intercept = solve_directly(matrix, targets, weights, alpha)
    solution = solve(matrix, targets, weights, alpha)
    assert solution.alpha == alpha
    assert_close(solution.coef, coef, 1e-10)
    assert_close(solution.intercept, intercept, 1e-10)


def test_solution_minimises_the_penalised_loss(problem, weights, alpha, rng):
    matrix, targets = problem
    solution = solve(matrix, targets, weights, alpha)

    def loss(coef, intercept):
        residual = targets - matrix @ coef - intercept
        penalty = alpha * np.trace(coef.T @ matrix @ coef)
        return weights @ (residual**2).sum(1) + penalty

    least = loss(solution.coef, solution.intercept)
    for _ in range(20):
        change = 0.01 * rng.normal(size=targets.shape), 0.01 * rng.normal(size=2)
        assert least < loss(solution.coef + change[0], solution.intercept + change[1])


def test_leave_one_out_predictions_equal_refits(problem, weights, alpha):
    matrix, targets = problem
    solution = solve(matrix, targets, weights, alpha)
    left_out = [leave_out(matrix, targets, weights, alpha, row) for row in range(12)]
    expected = np.array(left_out)
    assert_close(solution.loo_prediction, expected, 1e-8)
    loss = np.average(((targets - expected) ** 2).sum(1), weights=weights)
    assert solution.loo_loss == pytest.approx(loss, rel=1e-8)


GROUPS = {
    "scattered": np.array([0, 1, 2, 0, 1, 2, 0, 1, 2, 2, 2, 0]),
    "half of the rows and single ones": np.maximum(np.arange(12), 5),
}


@pytest.mark.parametrize("groups", GROUPS)
def test_left_out_groups_equal_refits(problem, weights, alpha, groups):
    matrix, targets = problem
    groups = GROUPS[groups]
    path = RidgePath(matrix, targets, weights, ALPHAS, CPU, groups=groups)
    solution, expected = path.solve(alpha), np.empty_like(targets)
    for group in np.unique(groups):
        kept, rows = np.flatnonzero(groups != group), np.flatnonzero(groups == group)
        coef, intercept = solve_directly(
            matrix[np.ix_(kept, kept)], targets[kept], weights[kept], alpha
        )
        expected[rows] = matrix[np.ix_(rows, kept)] @ coef + intercept
    assert_close(solution.loo_prediction, expected, 1e-8)
    loss = np.average(((targets - expected) ** 2).sum(1), weights=weights)
    assert solution.loo_loss == pytest.approx(loss, rel=1e-8)
    assert path.loo_loss()[ALPHAS == alpha] == pytest.approx(loss, rel=1e-8)
    assert solution.gcv == solve(matrix, targets, weights, alpha).gcv


@pytest.mark.parametrize("block", [1, 3, 100])
def test_left_out_groups_do_not_depend_on_blocks(problem, block, monkeypatch):
    matrix, targets = problem
    options = targets, WEIGHTS["real"], ALPHAS, CPU
    groups = GROUPS["scattered"]
    expected = RidgePath(matrix, *options, groups=groups).loo_loss()
    for name in ("GROUP_ROWS", "_GROUP_COLUMNS"):
        monkeypatch.setattr(ridge, name, block)
    found = RidgePath(matrix, *options, groups=groups).loo_loss()
    assert_close(found, expected, 1e-10)


def test_gcv_is_its_formula(problem, weights, alpha):
    matrix, targets = problem
    hat = smoother(matrix, weights, alpha)
    residual = targets - hat @ targets
    mean_loss = weights @ (residual**2).sum(1) / weights.sum()
    expected = mean_loss / (1 - np.trace(hat) / 12) ** 2
    solution = solve(matrix, targets, weights, alpha)
    assert solution.gcv == pytest.approx(expected, rel=1e-9)
    assert 1 < np.trace(hat) < 12


def test_weights_equal_repeated_rows(problem, alpha):
    matrix, targets = problem
    counts = WEIGHTS["integer"].astype(int)
    rows = np.repeat(np.arange(12), counts)
    weighted = solve(matrix, targets, counts, alpha)
    repeated = solve(
        matrix[np.ix_(rows, rows)], targets[rows], counts[rows] ** 0, alpha
    )
    assert_close(repeated.intercept, weighted.intercept, 1e-9)
    summed = np.add.reduceat(repeated.coef, np.cumsum(counts) - counts)
    assert_close(summed, weighted.coef, 1e-9)


def test_scatter_of_copies_is_part_of_the_criteria(problem, alpha, rng):
    matrix, means = problem
    noise = rng.normal(size=(3, *means.shape))
    noise -= noise.mean(0)
    scatter, weights = (noise**2).sum(), np.full(12, 3.0)
    path = RidgePath(matrix, means, weights, ALPHAS, CPU, scatter)
    without = RidgePath(matrix, means, weights, ALPHAS, CPU)
    predictions = path.solve(alpha).loo_prediction
    loss = ((means + noise - predictions) ** 2).sum(2).mean()
    assert path.solve(alpha).loo_loss == pytest.approx(loss, rel=1e-10)
    hat = smoother(matrix, weights, alpha)
    share = scatter / weights.sum() / (1 - np.trace(hat) / 12) ** 2
    expected = without.solve(alpha).gcv + share
    assert path.solve(alpha).gcv == pytest.approx(expected, rel=1e-8)


def test_path_equals_its_single_ridges(problem, weights):
    matrix, targets = problem
    path = RidgePath(matrix, targets, weights, ALPHAS, CPU)
    solutions = [solve(matrix, targets, weights, alpha) for alpha in ALPHAS]
    np.testing.assert_allclose(path.gcv(), [s.gcv for s in solutions], rtol=1e-12)
    np.testing.assert_allclose(
        path.loo_loss(), [s.loo_loss for s in solutions], rtol=1e-12
    )
    coef, intercepts = path.coefficients()
    assert_close(coef, np.hstack([s.coef for s in solutions]), 1e-12)
    assert_close(intercepts, np.concatenate([s.intercept for s in solutions]), 1e-12)


def test_intercept_is_not_penalised(problem, weights, alpha):
    matrix, targets = problem
    solution = solve(matrix, targets, weights, alpha)
    shifted = solve(matrix, targets + 1e3, weights, alpha)
    assert_close(shifted.intercept, solution.intercept + 1e3, 1e-10)
    np.testing.assert_allclose(shifted.coef, solution.coef, atol=1e-7)
    assert shifted.gcv == pytest.approx(solution.gcv, rel=1e-7)


def test_predictions_invariant_under_a_constant_added_to_the_kernel(problem, alpha):
    # Its scale does change: alpha is measured in units of the largest diagonal entry.
    matrix, targets = problem
    solution = solve(matrix, targets, np.ones(12), alpha)
    lifted = solve(matrix + 3.0, targets, np.ones(12), alpha / 4.0)
    assert_close(lifted.loo_prediction, solution.loo_prediction, 1e-8)


@pytest.mark.parametrize("factor", [1e-6, 1e6])
def test_predictions_invariant_under_scaling_of_the_kernel(
    factor, problem, weights, alpha
):
    matrix, targets = problem
    solution = solve(matrix, targets, weights, alpha)
    scaled = solve(factor * matrix, targets, weights, alpha)
    assert scaled.gcv == pytest.approx(solution.gcv, rel=1e-9)
    assert_close(factor * scaled.coef, solution.coef, 1e-8)
    assert_close(scaled.loo_prediction, solution.loo_prediction, 1e-8)


def test_kernel_of_zeros_predicts_the_mean_of_other_rows(problem, weights, alpha):
    _, targets = problem
    solution = solve(np.zeros((12, 12)), targets, weights, alpha)
    mean = np.average(targets, axis=0, weights=weights)
    assert_close(solution.intercept, mean, 1e-12)
    for row in range(12):
        kept = np.arange(12) != row
        rest = np.average(targets[kept], axis=0, weights=weights[kept])
        np.testing.assert_allclose(solution.loo_prediction[row], rest)


def test_singular_kernel_gives_the_least_squares_fit(rng):
    root = rng.normal(size=(12, 2))
    matrix, targets = root @ root.T, rng.normal(size=(12, 1))
    solution = solve(matrix, targets, np.ones(12), 1e-9)
    assert np.isfinite(solution.gcv) and solution.gcv > 0
    residual = targets - matrix @ solution.coef - solution.intercept
    design = np.column_stack([root, np.ones(12)])
    fitted = design @ np.linalg.lstsq(design, targets, rcond=None)[0]
    np.testing.assert_allclose(residual, targets - fitted, atol=1e-4)


def test_kernel_matrix_and_targets_are_not_written_to(problem, weights):
    matrix, targets = problem
    before = matrix.copy(), targets.copy(), weights.copy()
    solve(matrix, targets, weights, 0.1)
    for array, copy in zip((matrix, targets, weights), before, strict=True):
        np.testing.assert_array_equal(array, copy)

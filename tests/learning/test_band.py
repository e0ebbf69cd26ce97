"""The band form of a matrix has its systems, its inverse's trace and its rounding."""

import numpy as np
import pytest
import torch

from skconvrfm.learning import band
from skconvrfm.learning.band import BandForm
from skconvrfm.learning.ridge import inverse_factor

RIDGES = [1e-3, 0.5, 20.0]


def definite(n, rank, rng):
    """Return a positive semidefinite matrix with a largest diagonal entry of 1."""
    root = rng.normal(size=(n, rank))
    matrix = root @ root.T
    return matrix / np.diagonal(matrix).max()


@pytest.mark.parametrize("n", [1, 2, 5, 8, 9, 16, 17, 61])
@pytest.mark.parametrize("rank", [1, 3, 100])
def test_systems_and_traces_equal_those_of_the_matrix(n, rank, rng, monkeypatch):
    monkeypatch.setattr(band, "_WIDTH", 8)
    matrix, right = definite(n, rank, rng), rng.normal(size=(n, 3))
    form = BandForm(torch.tensor(matrix))
    rotated = form.rotate(torch.tensor(right))
    ridges, solutions, traces = form.solve(RIDGES, rotated)
    np.testing.assert_array_equal(ridges, RIDGES)
    for ridge, solution, trace in zip(RIDGES, solutions, traces, strict=True):
        inverse = np.linalg.inv(matrix + ridge * np.eye(n))
        expected = inverse @ right
        scale = np.abs(expected).max()
        found = form.rotate_back(solution)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-11 * scale)
        assert float(trace) == pytest.approx(np.trace(inverse), rel=1e-11)


def test_rotation_is_orthogonal_and_leaves_its_argument(rng, monkeypatch):
    monkeypatch.setattr(band, "_WIDTH", 4)
    form = BandForm(torch.tensor(definite(19, 19, rng)))
    right = torch.tensor(rng.normal(size=(19, 2)))
    before = right.clone()
    rotated = form.rotate(right)
    np.testing.assert_allclose(form.rotate_back(rotated), right, atol=1e-13)
    np.testing.assert_allclose(rotated.norm(dim=0), right.norm(dim=0), rtol=1e-13)
    np.testing.assert_array_equal(right, before)


@pytest.mark.parametrize("n", [6, 40])
def test_no_eigenvalue_exceeds_the_bound(n, rng, monkeypatch):
    monkeypatch.setattr(band, "_WIDTH", 8)
    matrix = definite(n, n, rng)
    largest = np.linalg.eigvalsh(matrix).max()
    assert largest <= BandForm(torch.tensor(matrix)).bound < 20 * largest


def test_ridges_below_negative_eigenvalues_are_doubled(rng, monkeypatch):
    monkeypatch.setattr(band, "_WIDTH", 8)
    vectors = np.linalg.qr(rng.normal(size=(30, 30)))[0]
    values = np.linspace(0.1, 1, 30)
    values[3] = -1e-4
    form = BandForm(torch.tensor((vectors * values) @ vectors.T))
    ridges = form.above_rounding([1e-5, 3e-4, 1e-2])
    np.testing.assert_allclose(ridges, [3.2e-4, 3e-4, 1e-2])


def test_vanishing_ridge_is_the_rounding_of_the_matrix(rng):
    [ridge] = BandForm(torch.eye(3, dtype=torch.float64)).above_rounding([1e-300])
    assert float(ridge) == np.finfo(float).eps


def test_inverse_factor_is_a_root_of_the_inverse(rng):
    matrix = definite(9, 20, rng)
    root = inverse_factor(torch.tensor(matrix)).numpy()
    np.testing.assert_allclose(root @ root.T, np.linalg.inv(matrix), rtol=1e-8)
    np.testing.assert_array_equal(root, np.triu(root))
    with pytest.raises(np.linalg.LinAlgError, match="not definite"):
        inverse_factor(torch.tensor(-matrix))

"""Filter covariances, their correlation with patch AGOPs, and standard errors."""

import math

import numpy as np
import pytest
import torch
from ansatz_networks import (
    IMAGES,
    Recurrent,
    expand,
    filter_covariance,
    make,
    measure,
)
from torch import nn

from benchmarks import networks
from skconvrfm.ansatz.layers import (
    FilterSpace,
    agop_from_outputs,
    covariance_correlation,
    filter_blocks,
    find_layers,
    matrix_power,
    second_moment,
)


def test_find_layers_maps_all_names_of_a_layer():
    layers = find_layers(Recurrent())
    assert set(layers) == {"conv", "alias", "twin"}
    assert len(set(layers.values())) == 1


class Branches(nn.Module):
    """Layers that are not called, not used, detached and blind."""

    def __init__(self):
        super().__init__()
        self.uncalled = nn.Conv2d(3, 4, 3)
        self.unused = nn.Conv2d(3, 4, 3)
        self.detached = nn.Conv2d(3, 4, 3)
        self.blind = nn.Conv2d(3, 4, 3)
        self.single = nn.Conv2d(4, 1, 1)
        self.dot = nn.Conv2d(1, 2, 1)

    def forward(self, x):
        self.unused(x)
        with torch.no_grad():
            frozen_features = self.detached(x).tanh()
        seen = self.blind(x) * 0 + frozen_features
        return self.dot(self.single(seen))


REASONS = {
    "unused": "no output depends on it, or the network detaches it",
    "detached": "no output depends on it, or the network detaches it",
    "blind": "its patch AGOP is zero",
    "single": "",
    "dot": "its filter covariance is constant",
    "uncalled": "the network does not call it",
}


def test_reason_for_undefined_correlation():
    layers, _ = measure(Branches(), torch.randn(4, 3, 5, 5))
    assert list(layers) == list(REASONS)  # those that are never called come last
    for name, layer in layers.items():
        correlation, reason = layer.correlation("pearson", 1.0)
        assert reason == REASONS[name]
        assert math.isnan(correlation) == bool(reason)
    assert layers["dot"].correlation("cosine", 1.0) == (pytest.approx(1), "")


def test_reason_for_non_finite_weights():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        network[1].weight[0] = math.nan
    layers, _ = measure(network, torch.randn(4, 3, 5, 5))
    assert layers["0"].correlation("cosine", 1.0)[1] == "its patch AGOP is not finite"
    reason = layers["1"].correlation("cosine", 0.5)[1]
    assert reason == "its filter covariance is not finite"
    assert math.isnan(layers["0"].standard_error("cosine", 1.0))


def test_reason_for_outputs_without_gradient():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(x).flatten(1).argmax(1)

    layers, _ = measure(Constant(), torch.randn(4, 3, 5, 5))
    assert layers["conv"].correlation("pearson", 1.0)[1].startswith("no output")


@pytest.fixture
def weight():
    """Fewer filters than entries of a patch."""
    return torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_agop_from_output_gradients_equals_definition(weight, groups):
    gradients = torch.randn(5, 6, 7, dtype=torch.float64)
    moment = second_moment(gradients, groups)
    agop = agop_from_outputs(weight, moment, groups)
    size = 6 // groups
    for group, matrix in enumerate(agop):
        rows = slice(group * size, (group + 1) * size)
        delta = gradients[:, rows].transpose(0, 1).flatten(1)
        patches = weight[rows].flatten(1).T @ delta
        torch.testing.assert_close(matrix, patches @ patches.T)


@pytest.mark.parametrize("kind", ["pearson", "cosine"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("n_filters", [6, 90], ids=["fewer filters", "fewer entries"])
def test_correlation_in_coordinates_equals_correlation_of_matrices(
    kind, groups, n_filters
):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(n_filters, 4, 3, 3, generator=generator).double()
    root = torch.randn(groups, n_filters // groups, n_filters // groups).double()
    moment = root @ root.mT
    space = FilterSpace.spanned_by(filter_blocks(weight, groups))
    agop = space.filters.mT @ moment @ space.filters
    dense = agop_from_outputs(weight, moment, groups)
    torch.testing.assert_close(expand(space, agop), dense)
    for power in (1.0, 0.5):
        entries = np.stack(
            [
                filter_covariance(weight, groups).flatten(),
                matrix_power(dense, power).flatten(),
            ]
        )
        if kind == "pearson":
            entries -= entries.mean(axis=1, keepdims=True)
        expected = entries[0] @ entries[1] / np.prod(np.linalg.norm(entries, axis=1))
        actual = space.correlation(space.covariance, matrix_power(agop, power), kind)
        assert actual == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("kind", ["pearson", "cosine"])
def test_covariance_correlation_equals_correlation_of_matrices(weight, kind):
    other = weight + torch.randn(weight.shape, dtype=torch.float64)
    entries = [filter_covariance(w, 2).flatten() for w in (weight, other)]
    if kind == "pearson":
        entries = [values - values.mean() for values in entries]
    expected = torch.cosine_similarity(*entries, dim=0)
    actual = covariance_correlation(weight, other, 2, kind)
    assert actual == pytest.approx(float(expected))
    assert covariance_correlation(weight, 3 * weight, 2, kind) == pytest.approx(1)


def test_matrix_power_half_squares_to_matrix():
    factor = torch.randn(2, 5, 3, dtype=torch.float64)
    matrices = factor @ factor.mT
    root = matrix_power(matrices, 0.5)
    torch.testing.assert_close(root @ root, matrices)
    assert matrix_power(matrices, 1) is matrices


def test_standard_error_equals_jackknife_over_batches():
    network, x = make("plain")
    x = torch.randn(12, *x.shape[1:], dtype=torch.float64)
    layers, _ = measure(network, x, batch=3)
    parts = [measure(network, x[start : start + 3])[0]["2"] for start in (0, 3, 6, 9)]
    total = sum(part.agop for part in parts)
    space = layers["2"].space
    left_out = [
        space.correlation(space.covariance, total - part.agop, "pearson")
        for part in parts
    ]
    expected = math.sqrt(3 / 4 * np.sum((left_out - np.mean(left_out)) ** 2))
    assert layers["2"].standard_error("pearson", 1.0) == pytest.approx(expected)


@pytest.mark.thorough
def test_standard_error_close_to_spread_of_samples():
    torch.manual_seed(0)
    network = networks.alexnet(width=2)
    errors, found = [], []
    for _ in range(25):
        layers, _ = measure(network, torch.randn(20, 3, 16, 16))
        found.append(layers["features.3"].correlation("pearson", 1.0)[0])
        errors.append(layers["features.3"].standard_error("pearson", 1.0))
    assert 0.5 < np.mean(errors) / np.std(found) < 2


def test_no_standard_error_for_one_batch():
    network, x = make("plain")
    layers, _ = measure(network, x, batch=IMAGES)
    assert math.isnan(layers["2"].standard_error("pearson", 1.0))

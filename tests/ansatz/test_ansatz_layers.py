"""Filter covariances, their correlation with patch AGOPs, and standard errors."""

import math
from itertools import product

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
from skconvrfm.ansatz.layers import find_layers
from skconvrfm.ansatz.matrices import (
    FilterSpace,
    covariance_correlation,
    filter_blocks,
    matrix_power,
)
from skconvrfm.ansatz.statistics import layer_statistics


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
        values, reason = layer_statistics(layer, [], "pearson", (1.0,))
        assert reason == REASONS[name]
        assert math.isnan(values.get("correlation", math.nan)) == bool(reason)
    values, reason = layer_statistics(layers["dot"], [], "cosine", (1.0,))
    assert (values["correlation"], reason) == (pytest.approx(1), "")


def test_reason_for_non_finite_weights():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        network[1].weight[0] = math.nan
    layers, _ = measure(network, torch.randn(4, 3, 5, 5))
    for name, matrix in (("0", "patch AGOP"), ("1", "filter covariance")):
        found = layer_statistics(layers[name], [], "cosine", (0.5,))
        assert found == ({}, f"its {matrix} is not finite")


def test_reason_for_outputs_without_gradient():
    class Constant(nn.Sequential):
        def forward(self, x):
            return super().forward(x).flatten(1).argmax(1)

    layers, _ = measure(Constant(nn.Conv2d(3, 4, 3)), torch.randn(4, 3, 5, 5))
    _, reason = layer_statistics(layers["0"], [], "pearson", (1.0,))
    assert reason.startswith("no output")


@pytest.fixture
def weight():
    """Fewer filters than entries of a patch."""
    return torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize("kind", ["pearson", "cosine"])
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("n_filters", [6, 90], ids=["fewer filters", "fewer entries"])
def test_correlation_in_coordinates_equals_correlation_of_matrices(
    kind, groups, n_filters
):
    generator, d = torch.Generator().manual_seed(0), 36
    weight = torch.randn(n_filters, 4, 3, 3, generator=generator).double()
    root = torch.randn(groups, n_filters // groups, n_filters // groups).double()
    moment = root @ root.mT
    space = FilterSpace.spanned_by(filter_blocks(weight, groups))
    agop = space.filters.mT @ moment @ space.filters
    filters = filter_blocks(weight, groups)
    dense = filters.mT @ moment @ filters
    torch.testing.assert_close(expand(space, agop), dense)
    identity = np.tile(np.eye(d).flatten(), groups)
    for power, traceless in product((1.0, 0.5), (False, True)):
        pair = filter_covariance(weight, groups), matrix_power(dense, power)
        entries = np.stack([matrix.flatten() for matrix in pair])
        if traceless:
            entries -= np.outer(entries @ identity, identity) / identity.sum()
        if kind == "pearson":
            entries -= entries.mean(axis=1, keepdims=True)
        expected = entries[0] @ entries[1] / np.prod(np.linalg.norm(entries, axis=1))
        pair = space.covariance, matrix_power(agop, power)
        actual = space.correlation(*pair, kind, traceless)
        assert actual == pytest.approx(expected, abs=1e-7 if power < 1 else 1e-9)


@pytest.mark.parametrize("kind", ["pearson", "cosine"])
def test_covariance_correlation_equals_correlation_of_matrices(weight, kind):
    other = weight + torch.randn(weight.shape, dtype=torch.float64)
    entries = [filter_covariance(w, 2).flatten() for w in (weight, other)]
    if kind == "pearson":
        entries = [values - values.mean() for values in entries]
    expected = torch.cosine_similarity(*entries, dim=0)
    first, second = filter_blocks(weight, 2), filter_blocks(other, 2)
    actual = covariance_correlation(first, second, kind)
    assert actual == pytest.approx(float(expected))
    assert covariance_correlation(first, 3 * first, kind) == pytest.approx(1)


def test_matrix_power_half_squares_to_matrix():
    factor = torch.randn(2, 5, 3, dtype=torch.float64)
    matrices = factor @ factor.mT
    root = matrix_power(matrices, 0.5)
    torch.testing.assert_close(root @ root, matrices)
    assert matrix_power(matrices, 1) is matrices


@pytest.mark.slow
def test_standard_error_close_to_spread_of_samples():
    torch.manual_seed(0)
    network = networks.alexnet(width=2)
    errors, found = [], []
    for _ in range(25):
        layers, _ = measure(network, torch.randn(20, 3, 16, 16))
        values, _ = layer_statistics(layers["features.3"], [], "pearson", (1.0,))
        found.append(values["correlation"])
        errors.append(values["standard_error"])
    assert 0.5 < np.mean(errors) / np.std(found) < 2


def test_no_standard_error_for_one_batch():
    network, x = make("plain")
    layers, _ = measure(network, x, batch=IMAGES)
    values, _ = layer_statistics(layers["2"], [], "pearson", (1.0,))
    assert math.isnan(values["standard_error"])

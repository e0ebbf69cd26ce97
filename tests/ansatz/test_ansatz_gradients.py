"""AGOPs from gradients at the outputs equal those of unfolded patches."""

import copy
import math

import pytest
import torch
from ansatz_networks import (
    IMAGES,
    VARIANTS,
    Recurrent,
    agop_by_patches,
    assert_equal_agops,
    filter_covariance,
    make,
    measure,
    patch_agop,
)
from torch import nn

from skconvrfm.ansatz.gradients import MAX_FOLDS
from skconvrfm.ansatz.statistics import layer_statistics


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_agop_equals_sum_over_unfolded_patches(name):
    network, x = make(name)
    layers, measurement = measure(network, x)
    assert layers
    for layer in layers.values():
        assert_equal_agops(
            layer, measurement, agop_by_patches(network, [layer.name], x)
        )


def test_calls_sharing_a_weight_are_summed_in_one_layer():
    torch.manual_seed(0)
    network = Recurrent().double()
    x = torch.randn(IMAGES, 3, 4, 4, dtype=torch.float64)
    layers, measurement = measure(network, x)
    assert list(layers) == ["conv"]
    expected = agop_by_patches(network, ["conv", "alias", "twin"], x)
    assert_equal_agops(layers["conv"], measurement, expected)
    assert layers["conv"].sums.n_patches == IMAGES * (16 + 16 + 4)


def test_agop_of_last_layer_equals_filter_covariance():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).double()
    layers, measurement = measure(network, torch.randn(4, 3, 4, dtype=torch.float64))
    assert_equal_agops(layers["1"], measurement, filter_covariance(network[1].weight))


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_agop_independent_of_directions_per_pass(at_once):
    network, x = make("resnet")
    expected, _ = measure(network, x)
    actual, _ = measure(network, x, n_directions_at_once=at_once)
    for name, layer in actual.items():
        torch.testing.assert_close(layer.agop, expected[name].agop)


class Unbatchable(torch.autograd.Function):
    """An operation whose gradient cannot be taken for several directions at once."""

    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, gradient):
        gradient.numpy()
        return 2 * gradient


def test_fallback_for_operations_without_batched_gradient():
    torch.manual_seed(0)

    class Network(nn.Sequential):
        def forward(self, x):
            return Unbatchable.apply(super().forward(x)).tanh()

    network = Network(nn.Conv2d(3, 4, 2)).double()
    x = torch.randn(2, 3, 4, 4, dtype=torch.float64)
    layers, measurement = measure(network, x, n_directions_at_once=8)
    expected = agop_by_patches(network, ["0"], x)
    assert_equal_agops(layers["0"], measurement, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_agop_in_lower_precision_close_to_float64(dtype):
    network, x = make("vgg, batch norm")
    expected, _ = measure(network, x)
    actual, _ = measure(copy.deepcopy(network).to(dtype), x.to(dtype))
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    for name, layer in actual.items():
        error = (patch_agop(layer) - patch_agop(expected[name])).norm()
        assert error < tolerance * patch_agop(expected[name]).norm()


@pytest.mark.slow
def test_random_directions_unbiased():
    network, x = make("alexnet")
    network = nn.Sequential(network.features, nn.Flatten())  # many outputs
    exact, _ = measure(network, x)
    runs = [measure(network, x, outputs=4, seed=seed)[0] for seed in range(40)]
    for name, layer in exact.items():
        agops = torch.stack([patch_agop(run[name]) for run in runs])
        bias = agops.mean(0) - patch_agop(layer)
        noise = agops.std(0) / math.sqrt(len(runs))
        assert noise.norm() < 0.2 * patch_agop(layer).norm()
        assert bias.norm() < 1.5 * noise.norm()


def test_random_directions_seeded_and_exact_if_they_are_no_fewer_than_outputs():
    network, x = make("plain")
    first, again, other = (
        measure(network, x, outputs=3, seed=seed)[0]["2"].agop for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    network, x = make("mobilenet")
    exact, _ = measure(network, x)
    actual, _ = measure(network, x, outputs=2)
    for name, layer in actual.items():
        assert torch.equal(layer.agop, exact[name].agop)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_agop_under_callers_no_grad_and_inference_mode(mode):
    network, x = make("plain")
    expected, _ = measure(network, x)
    with mode():
        actual, _ = measure(network, x + 0)
    for name, layer in actual.items():
        assert torch.equal(layer.agop, expected[name].agop)


def test_fewer_folds_if_memory_is_short():
    network, x = make("plain")
    x = torch.randn(24, *x.shape[1:], dtype=torch.float64)
    many, _ = measure(network, x, batch=1)
    few, _ = measure(network, x, batch=1, memory=1)
    assert len(many["2"].sums.moments) == MAX_FOLDS
    assert len(few["2"].sums.moments) == 2
    torch.testing.assert_close(many["2"].agop, few["2"].agop)
    values, _ = layer_statistics(few["2"], [], "pearson", (1.0,))
    assert values["standard_error"] > 0

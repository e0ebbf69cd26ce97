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

from skconvrfm.ansatz.gradients import MAX_FOLDS, frozen


@pytest.mark.thorough
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

    class Network(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 2)

        def forward(self, x):
            return Unbatchable.apply(self.conv(x)).tanh()

    network, x = Network().double(), torch.randn(2, 3, 4, 4, dtype=torch.float64)
    layers, measurement = measure(network, x, n_directions_at_once=8)
    expected = agop_by_patches(network, ["conv"], x)
    assert_equal_agops(layers["conv"], measurement, expected)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_agop_in_lower_precision_close_to_float64(dtype):
    network, x = make("vgg, batch norm")
    expected, _ = measure(network, x)
    actual, _ = measure(copy.deepcopy(network).to(dtype), x.to(dtype))
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    for name, layer in actual.items():
        error = (patch_agop(layer) - patch_agop(expected[name])).norm()
        assert error < tolerance * patch_agop(expected[name]).norm()


@pytest.mark.thorough
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


def test_random_directions_repeatable_and_seeded():
    network, x = make("plain")
    first, again, other = (
        measure(network, x, outputs=3, seed=seed)[0]["2"].agop for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_agop_exact_if_outputs_do_not_exceed_directions():
    network, x = make("mobilenet")
    exact, _ = measure(network, x)
    actual, _ = measure(network, x, outputs=2)
    for name, layer in actual.items():
        assert torch.equal(layer.agop, exact[name].agop)


class Fragile(nn.Module):
    """Changes its buffers whenever it is called, and can be told to fail."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.drop = nn.Dropout(0.9)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(1))
        self.fails = False

    def forward(self, x):
        self.calls += 1
        self.last = x.mean().reshape(1)
        x = self.drop(self.norm(self.conv(x)))
        if self.fails:
            raise RuntimeError("asked to fail")
        return x


def state_of(network):
    """All that must not change, with the identity of the tensors."""
    return {
        "modes": [module.training for module in network.modules()],
        "flags": [parameter.requires_grad for parameter in network.parameters()],
        "tensors": [
            (name, id(tensor), tensor.detach().clone(), str(tensor.device))
            for name, tensor in [*network.named_parameters(), *network.named_buffers()]
        ],
        "gradients": [
            None if parameter.grad is None else (id(parameter.grad), parameter.grad + 0)
            for parameter in network.parameters()
        ],
        "hooks": [
            [*module._forward_hooks, *module._forward_pre_hooks]
            for module in network.modules()
        ],
    }


def assert_same_state(before, after):
    assert before.keys() == after.keys()
    for key in ("modes", "flags", "hooks"):
        assert before[key] == after[key]
    for (name, identity, value, device), found in zip(
        before["tensors"], after["tensors"], strict=True
    ):
        assert (name, identity, device) == (found[0], found[1], found[3])
        assert torch.equal(value, found[2])
    for value, found in zip(before["gradients"], after["gradients"], strict=True):
        assert (value is None) == (found is None)
        assert value is None or (
            value[0] == found[0] and torch.equal(value[1], found[1])
        )


@pytest.mark.parametrize("fails", [False, True])
def test_network_unchanged_after_measurement(fails):
    network = Fragile().train()
    network.norm.eval()
    network.conv.bias.requires_grad_(False)
    x = torch.randn(4, 3, 5, 5)
    network(x).sum().backward()
    seen = []
    network.conv.register_forward_hook(lambda *call: seen.append(call))
    before = state_of(network)
    network.fails = fails
    if fails:
        with pytest.raises(RuntimeError, match="asked to fail"):
            measure(network, x)
    else:
        measure(network, x)
    assert seen  # the user's hooks work meanwhile
    assert_same_state(before, state_of(network))


def test_measurement_in_evaluation_mode():
    torch.manual_seed(0)
    network = Fragile().train()
    x = torch.randn(4, 3, 5, 5)
    random = torch.get_rng_state()
    (one,), (other,) = (measure(network, x, batch=n)[0].values() for n in (1, 4))
    torch.testing.assert_close(one.agop, other.agop)
    assert torch.equal(random, torch.get_rng_state())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_agop_under_callers_no_grad_and_inference_mode(mode):
    network, x = make("plain")
    expected, _ = measure(network, x)
    with mode():
        actual, _ = measure(network, x + 0)
    for name, layer in actual.items():
        assert torch.equal(layer.agop, expected[name].agop)


@pytest.mark.parametrize("layer", [nn.LazyConv2d(3, 3), nn.LazyBatchNorm2d()])
def test_lazy_layers_refused(layer):
    with pytest.raises(ValueError, match="lazy layers without weights: call it"):
        with frozen(nn.Sequential(layer)):
            pass


class Returning(nn.Module):
    """Wraps what a network returns."""

    def __init__(self, network, wrap):
        super().__init__()
        self.network = network
        self.wrap = wrap

    def forward(self, x):
        return self.wrap(self.network(x))


class Logits:
    def __init__(self, logits):
        self.loss = None
        self.logits = logits


@pytest.mark.parametrize(
    "wrap",
    [
        lambda f: (f, 2 * f),
        lambda f: [None, f],
        lambda f: {"out": f, "aux": 3 * f},
        lambda f: {"hidden": 2 * f, "logits": f},
        lambda f: Logits(f),
        lambda f: f.reshape(len(f), 2, -1, 1),
    ],
    ids=["tuple", "list", "dict", "dict with logits", "logits", "many axes"],
)
def test_outputs_extracted_from_returned_structures(wrap):
    network, x = make("plain")
    expected, _ = measure(network, x)
    actual, _ = measure(Returning(network, wrap), x)
    assert torch.equal(actual["network.2"].agop, expected["2"].agop)


@pytest.mark.parametrize(
    ("wrap", "found"),
    [(lambda f: f.sum(), "shape ()"), (lambda f: "no", "no tensor")],
    ids=["scalar", "text"],
)
def test_outputs_without_one_row_per_image_refused(wrap, found):
    network, x = make("plain")
    with pytest.raises(ValueError, match="output for 2 images") as error:
        measure(Returning(network, wrap), x)
    assert found in str(error.value)


def test_fewer_folds_if_memory_is_short():
    network, x = make("plain")
    x = torch.randn(24, *x.shape[1:], dtype=torch.float64)
    many, _ = measure(network, x, batch=1)
    few, _ = measure(network, x, batch=1, memory=1)
    assert len(many["2"].sums.moments) == MAX_FOLDS
    assert len(few["2"].sums.moments) == 2
    torch.testing.assert_close(many["2"].agop, few["2"].agop)
    assert few["2"].standard_error("pearson", 1.0) > 0


def test_parameters_made_under_inference_mode_refused():
    with torch.inference_mode():
        network = nn.Sequential(nn.Conv2d(3, 4, 3))
    network.train()
    with pytest.raises(
        ValueError, match="Sequential has parameters made under torch.i"
    ):
        measure(network, torch.randn(4, 3, 5, 5))
    assert network.training and network[0].weight.requires_grad


def test_all_flags_restored_if_one_of_them_raises():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))
    network[1].bias.requires_grad_(False)
    flags = [parameter.requires_grad for parameter in network.parameters()]

    def fail_to_restore(flag):
        if flag:
            raise RuntimeError("no flag")

    network[1].weight.requires_grad_ = fail_to_restore
    with pytest.raises(RuntimeError, match="no flag"):
        with frozen(network):
            assert not network.training
    assert [parameter.requires_grad for parameter in network.parameters()] == flags
    assert all(module.training for module in network.modules())


def test_network_unchanged_if_freezing_fails():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)).train()

    def fail_to_freeze(flag):
        if not flag:
            raise RuntimeError("no flag")

    network[1].weight.requires_grad_ = fail_to_freeze
    with pytest.raises(RuntimeError, match="no flag"):
        with frozen(network):
            pass
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert all(module.training for module in network.modules())


def test_network_moved_outside_of_inference_mode(monkeypatch):
    network = nn.Sequential(nn.Conv2d(3, 4, 3))
    moves = []
    monkeypatch.setattr(
        network,
        "to",
        lambda device: moves.append((str(device), torch.is_inference_mode_enabled())),
    )
    with torch.inference_mode(), frozen(network, torch.device("meta")) as device:
        assert device.type == "meta"
    assert moves == [("meta", False), ("cpu", False)]

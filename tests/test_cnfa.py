"""AGOPs from gradients at the outputs equal those of unfolded patches, one by one."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from benchmarks import networks
from skconvrfm.core import cnfa
from skconvrfm.core.cnfa import (
    AnsatzMeasurement,
    FilterSpace,
    agop_from_outputs,
    covariance_correlation,
    filter_blocks,
    filter_covariance,
    find_layers,
    frozen,
    matrix_power,
    second_moment,
)

IMAGES = 3


# ------------------------------------------------------------------ the slow way


class ByPatches(nn.Module):
    """A layer that cuts out every patch and multiplies it with the filters.

    Zeros are added to the patches; the gradient of these zeros is that of the patches,
    each of them a variable of its own.
    """

    def __init__(self, layer):
        super().__init__()
        self.layer = layer
        self.zeros = []

    def forward(self, x):
        weight, bias = self.effective_weight(), self.layer.bias
        groups = getattr(self.layer, "groups", 1)
        patches, shape = self.cut_out(x, groups)
        zeros = torch.zeros_like(patches, requires_grad=True)
        self.zeros.append(zeros)
        filters = weight.reshape(groups, len(weight) // groups, -1)
        out = torch.einsum("gkd,nlgd->nlgk", filters, patches + zeros)
        out = out.flatten(2)
        if bias is not None:
            out = out + bias
        if isinstance(self.layer, nn.Linear):
            return out.reshape(*shape, -1)
        return out.transpose(1, 2).reshape(len(x), -1, *shape)

    def effective_weight(self):
        if isinstance(self.layer, StandardizedConv):
            return self.layer.standardized()
        return self.layer.weight

    def cut_out(self, x, groups):
        """Patches of shape (n, locations, groups, d), and the shape of locations."""
        if isinstance(self.layer, nn.Linear):
            return x.reshape(len(x), -1, 1, x.shape[-1]), x.shape[:-1]
        sizes, steps = self.layer.kernel_size, self.layer.dilation
        x = self.pad(x)
        for axis, (size, step) in enumerate(zip(sizes, steps, strict=True)):
            # Each call puts the entries of the patch along this axis last.
            x = x.unfold(2 + axis, step * (size - 1) + 1, self.layer.stride[axis])
            x = x[..., ::step]
        n, channels, *rest = x.shape
        n_dims = len(sizes)
        x = x.reshape(n, groups, channels // groups, *rest)
        order = (0, *range(3, 3 + n_dims), 1, 2, *range(3 + n_dims, 3 + 2 * n_dims))
        x = x.permute(order)
        return x.reshape(n, -1, groups, math.prod(x.shape[2 + n_dims :])), rest[:n_dims]

    def pad(self, x):
        layer = self.layer
        margins = []
        for axis in reversed(range(len(layer.kernel_size))):
            if layer.padding == "same":
                total = layer.dilation[axis] * (layer.kernel_size[axis] - 1)
                margins += [total // 2, total - total // 2]
            elif layer.padding == "valid":
                margins += [0, 0]
            else:
                margins += 2 * [layer.padding[axis]]
        mode = layer.padding_mode
        return functional.pad(x, margins, "constant" if mode == "zeros" else mode)


def agop_by_patches(network, names, x):
    """The patch AGOP of the layers of these names, by automatic differentiation.

    Parameters
    ----------
    network : nn.Module
    names : list of str
        More than one where layers share a weight.
    x : Tensor of shape (n, ...)

    Returns
    -------
    Tensor of shape (groups, d, d)
        Averaged over images.
    """
    network = copy.deepcopy(network).eval()
    slow = {}
    for name in names:
        layer = network.get_submodule(name)
        parent, _, attribute = name.rpartition(".")
        slow.setdefault(id(layer), ByPatches(layer))
        setattr(network.get_submodule(parent), attribute, slow[id(layer)])
    outputs = network(x).reshape(len(x), -1)
    zeros = [z for module in slow.values() for z in module.zeros]
    agop = 0
    for image in outputs:
        for value in image:
            for gradient in torch.autograd.grad(value, zeros, retain_graph=True):
                # Over images and locations; the other images have no gradient.
                agop = agop + torch.einsum("nlgd,nlge->gde", gradient, gradient)
    return agop / len(x)


def measure(network, x, *, batch=2, **options):
    """Measure all layers in batches."""
    layers = list(dict.fromkeys(find_layers(network).values()))
    measurement = AnsatzMeasurement(network, layers, **options)
    with frozen(network):
        for number, images in enumerate(x.split(batch)):
            measurement.add(images, number)
    return {layer.name: layer for layer in measurement.in_forward_order()}, measurement


# -------------------------------------------------------------- networks to test


class StandardizedConv(nn.Conv2d):
    """A convolution that uses another weight than it has."""

    def standardized(self):
        mean = self.weight.mean((1, 2, 3), keepdim=True)
        return (self.weight - mean) / self.weight.std((1, 2, 3), keepdim=True)

    def forward(self, x):
        return functional.conv2d(x, self.standardized(), self.bias, padding=1)


class Recurrent(nn.Module):
    """Calls one layer twice, and another, which has the same weight, once."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.alias = self.conv
        self.twin = nn.Conv2d(3, 3, 3, padding=1, stride=2)
        self.twin.weight = self.conv.weight

    def forward(self, x):
        x = torch.tanh(self.conv(x))
        return torch.tanh(self.twin(torch.tanh(self.alias(x))))


class WithLinear(nn.Module):
    """A linear layer on every pixel, then one on all."""

    def __init__(self):
        super().__init__()
        self.pixels = nn.Linear(3, 5)
        self.readout = nn.Linear(5 * 7 * 6, 3)

    def forward(self, x):
        x = torch.tanh(self.pixels(x.movedim(1, -1)))
        return self.readout(x.flatten(1))


def around(layer, *, n_dims=2, channels=4):
    """A network that has the layer in its middle, and changes its output in place."""
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[n_dims - 1]
    return nn.Sequential(
        conv(3, channels, 2), nn.Tanh(), layer, nn.ReLU(inplace=True), conv(8, 2, 1)
    )


VARIANTS = {
    "plain": lambda: around(nn.Conv2d(4, 8, 3)),
    "stride": lambda: around(nn.Conv2d(4, 8, (3, 2), stride=(2, 1))),
    "dilation": lambda: around(nn.Conv2d(4, 8, 2, dilation=(2, 3))),
    "padding": lambda: around(nn.Conv2d(4, 8, 3, padding=(2, 1))),
    "valid": lambda: around(nn.Conv2d(4, 8, 3, padding="valid")),
    "same, even": lambda: around(nn.Conv2d(4, 8, (2, 4), padding="same", dilation=2)),
    "circular": lambda: around(nn.Conv2d(4, 8, 3, padding=2, padding_mode="circular")),
    "reflect": lambda: around(nn.Conv2d(4, 8, 3, padding=1, padding_mode="reflect")),
    "replicate": lambda: around(
        nn.Conv2d(4, 8, 3, padding="same", padding_mode="replicate")
    ),
    "no bias": lambda: around(nn.Conv2d(4, 8, 3, bias=False)),
    "groups": lambda: around(nn.Conv2d(4, 8, 3, groups=2)),
    "depthwise": lambda: around(nn.Conv2d(4, 8, 3, groups=4, stride=2)),
    "strictly depthwise": lambda: around(
        nn.Conv2d(8, 8, 3, groups=8, padding=1), channels=8
    ),
    "1-d": lambda: around(nn.Conv1d(4, 8, 3, dilation=2, stride=2), n_dims=1),
    "3-d": lambda: around(
        nn.Conv3d(4, 8, (2, 1, 3), padding=(0, 1, 1), groups=2), n_dims=3
    ),
    "more filters than pixels": lambda: around(nn.Conv2d(4, 8, 1)),
    "weight norm": lambda: around(parametrizations.weight_norm(nn.Conv2d(4, 8, 3))),
    "spectral norm": lambda: around(parametrizations.spectral_norm(nn.Conv2d(4, 8, 3))),
    "standardized weight": lambda: around(StandardizedConv(4, 8, 3, padding=1)),
    "linear": WithLinear,
    "alexnet": lambda: networks.alexnet(width=2, n_classes=2),
    "vgg": lambda: networks.VGG((1, 1), width=2, n_classes=2),
    "vgg, batch norm": lambda: networks.VGG((1, 1), width=2, batch_norm=True),
    "resnet": lambda: networks.ResNet(networks.BasicBlock, (1, 1, 1, 1), width=2),
    "bottlenecks": lambda: networks.ResNet(networks.Bottleneck, (1, 1, 1, 1), width=2),
    "mobilenet": lambda: networks.mobilenet(width=2, n_classes=2),
}


def make(name):
    """A network in float64 with statistics and a batch that suits it."""
    torch.manual_seed(0)
    network = VARIANTS[name]().double()
    n_dims = {"1-d": 1, "3-d": 3}.get(name, 2)
    shape = {1: (13,), 2: (7, 6), 3: (5, 4, 5)}[n_dims]
    if name in (
        "alexnet",
        "vgg",
        "vgg, batch norm",
        "resnet",
        "bottlenecks",
        "mobilenet",
    ):
        shape = (16, 16)
    x = torch.randn(IMAGES, 3, *shape, dtype=torch.float64)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return network, x


def assert_equal_agops(layer, measurement, expected):
    actual = layer.patch_agop() / measurement.n_images
    torch.testing.assert_close(
        actual, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max())
    )


# --------------------------------------------------------------------- exactness


@pytest.mark.thorough
@pytest.mark.parametrize("name", VARIANTS)
def test_agops_equal_those_of_patches(name):
    network, x = make(name)
    layers, measurement = measure(network, x)
    assert layers
    for layer in layers.values():
        assert_equal_agops(
            layer, measurement, agop_by_patches(network, [layer.name], x)
        )


def test_calls_and_twins_of_one_weight_add_up_in_one_layer():
    torch.manual_seed(0)
    network = Recurrent().double()
    x = torch.randn(IMAGES, 3, 4, 4, dtype=torch.float64)
    layers, measurement = measure(network, x)
    assert list(layers) == ["conv"]
    expected = agop_by_patches(network, ["conv", "alias", "twin"], x)
    assert_equal_agops(layers["conv"], measurement, expected)
    assert layers["conv"].n_patches == IMAGES * (16 + 16 + 4)


def test_a_layer_has_all_its_names():
    layers = find_layers(Recurrent())
    assert set(layers) == {"conv", "alias", "twin"}
    assert len(set(layers.values())) == 1


def test_agop_of_the_last_layer_is_its_filter_covariance():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)).double()
    layers, measurement = measure(network, torch.randn(4, 3, 4, dtype=torch.float64))
    assert_equal_agops(layers["1"], measurement, filter_covariance(network[1].weight))


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_directions_in_chunks_give_the_same(at_once):
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


def test_operations_that_cannot_be_batched_are_taken_one_by_one():
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
def test_lower_precision_stays_near(dtype):
    network, x = make("vgg, batch norm")
    expected, _ = measure(network, x)
    actual, _ = measure(copy.deepcopy(network).to(dtype), x.to(dtype))
    tolerance = 1e-5 if dtype == torch.float32 else 5e-2
    for name, layer in actual.items():
        error = (layer.patch_agop() - expected[name].patch_agop()).norm()
        assert error < tolerance * expected[name].patch_agop().norm()


# ------------------------------------------------------------- random directions


@pytest.mark.thorough
def test_random_directions_are_unbiased():
    network, x = make("alexnet")
    network = nn.Sequential(network.features, nn.Flatten())  # many outputs
    exact, _ = measure(network, x)
    runs = [measure(network, x, outputs=4, seed=seed)[0] for seed in range(40)]
    for name, layer in exact.items():
        agops = torch.stack([run[name].patch_agop() for run in runs])
        bias = agops.mean(0) - layer.patch_agop()
        noise = agops.std(0) / math.sqrt(len(runs))
        assert noise.norm() < 0.2 * layer.patch_agop().norm()
        assert bias.norm() < 1.5 * noise.norm()


def test_random_directions_are_repeatable_and_differ_by_seed():
    network, x = make("plain")
    first, again, other = (
        measure(network, x, outputs=3, seed=seed)[0]["2"].agop for seed in (0, 0, 1)
    )
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)


def test_no_more_outputs_than_directions_are_exact():
    network, x = make("mobilenet")
    exact, _ = measure(network, x)
    actual, _ = measure(network, x, outputs=2)
    for name, layer in actual.items():
        assert torch.equal(layer.agop, exact[name].agop)


# ------------------------------------------------------------------- left as found


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
def test_the_network_is_left_as_it_was_found(fails):
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


def test_dropout_and_batch_statistics_are_off():
    torch.manual_seed(0)
    network = Fragile().train()
    x = torch.randn(4, 3, 5, 5)
    random = torch.get_rng_state()
    (one,), (other,) = (measure(network, x, batch=n)[0].values() for n in (1, 4))
    torch.testing.assert_close(one.agop, other.agop)
    assert torch.equal(random, torch.get_rng_state())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_gradients_are_found_where_the_caller_has_turned_them_off(mode):
    network, x = make("plain")
    expected, _ = measure(network, x)
    with mode():
        actual, _ = measure(network, x + 0)
    for name, layer in actual.items():
        assert torch.equal(layer.agop, expected[name].agop)


# ----------------------------------------------------- what cannot be correlated


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


def test_layers_without_a_correlation_say_why():
    layers, _ = measure(Branches(), torch.randn(4, 3, 5, 5))
    assert list(layers) == list(REASONS)  # those that are never called come last
    for name, layer in layers.items():
        correlation, reason = layer.correlation("pearson", 1.0)
        assert reason == REASONS[name]
        assert math.isnan(correlation) == bool(reason)
    assert layers["dot"].correlation("cosine", 1.0) == (pytest.approx(1), "")


def test_weights_that_are_not_finite_are_named():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 2, 1))
    with torch.no_grad():
        network[1].weight[0] = math.nan
    layers, _ = measure(network, torch.randn(4, 3, 5, 5))
    assert layers["0"].correlation("cosine", 1.0)[1] == "its patch AGOP is not finite"
    reason = layers["1"].correlation("cosine", 0.5)[1]
    assert reason == "its filter covariance is not finite"
    assert math.isnan(layers["0"].standard_error("cosine", 1.0))


def test_a_network_whose_outputs_do_not_depend_on_its_layers():
    class Constant(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x):
            return self.conv(x).flatten(1).argmax(1)

    layers, _ = measure(Constant(), torch.randn(4, 3, 5, 5))
    assert layers["conv"].correlation("pearson", 1.0)[1].startswith("no output")


@pytest.mark.parametrize("layer", [nn.LazyConv2d(3, 3), nn.LazyBatchNorm2d()])
def test_lazy_layers_are_refused(layer):
    with pytest.raises(ValueError, match="lazy layers without weights: call it"):
        with frozen(nn.Sequential(layer)):
            pass


# ------------------------------------------------------------------------ outputs


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
def test_outputs_are_found_in_what_the_network_returns(wrap):
    network, x = make("plain")
    expected, _ = measure(network, x)
    actual, _ = measure(Returning(network, wrap), x)
    assert torch.equal(actual["network.2"].agop, expected["2"].agop)


@pytest.mark.parametrize(
    ("wrap", "found"),
    [(lambda f: f.sum(), "shape ()"), (lambda f: "no", "no tensor")],
    ids=["scalar", "text"],
)
def test_outputs_that_are_not_one_an_image_are_refused(wrap, found):
    network, x = make("plain")
    with pytest.raises(ValueError, match="output for 2 images") as error:
        measure(Returning(network, wrap), x)
    assert found in str(error.value)


# ----------------------------------------------------------------------- matrices


@pytest.fixture
def weight():
    """Fewer filters than entries of a patch."""
    return torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0)).double()


@pytest.mark.parametrize("groups", [1, 2, 6])
def test_agop_is_the_moment_between_the_filters(weight, groups):
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
def test_correlation_in_coordinates_is_that_of_the_matrices(kind, groups, n_filters):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(n_filters, 4, 3, 3, generator=generator).double()
    root = torch.randn(groups, n_filters // groups, n_filters // groups).double()
    moment = root @ root.mT
    space = FilterSpace.spanned_by(filter_blocks(weight, groups))
    agop = space.filters.mT @ moment @ space.filters
    dense = agop_from_outputs(weight, moment, groups)
    torch.testing.assert_close(space.expand(agop), dense)
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
def test_covariance_correlation_is_that_of_the_matrices(weight, kind):
    other = weight + torch.randn(weight.shape, dtype=torch.float64)
    entries = [filter_covariance(w, 2).flatten() for w in (weight, other)]
    if kind == "pearson":
        entries = [values - values.mean() for values in entries]
    expected = torch.cosine_similarity(*entries, dim=0)
    actual = covariance_correlation(weight, other, 2, kind)
    assert actual == pytest.approx(float(expected))
    assert covariance_correlation(weight, 3 * weight, 2, kind) == pytest.approx(1)


def test_matrix_power_is_the_root_that_multiplies_back():
    factor = torch.randn(2, 5, 3, dtype=torch.float64)
    matrices = factor @ factor.mT
    root = matrix_power(matrices, 0.5)
    torch.testing.assert_close(root @ root, matrices)
    assert matrix_power(matrices, 1) is matrices


# ----------------------------------------------------------------- standard error


def test_standard_error_is_the_jackknife_over_batches():
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
def test_standard_error_predicts_the_spread_of_draws():
    torch.manual_seed(0)
    network = networks.alexnet(width=2)
    errors, found = [], []
    for _ in range(25):
        layers, _ = measure(network, torch.randn(20, 3, 16, 16))
        found.append(layers["features.3"].correlation("pearson", 1.0)[0])
        errors.append(layers["features.3"].standard_error("pearson", 1.0))
    assert 0.5 < np.mean(errors) / np.std(found) < 2


def test_one_batch_has_no_standard_error():
    network, x = make("plain")
    layers, _ = measure(network, x, batch=IMAGES)
    assert math.isnan(layers["2"].standard_error("pearson", 1.0))


def test_batches_share_folds_where_memory_is_short():
    network, x = make("plain")
    x = torch.randn(24, *x.shape[1:], dtype=torch.float64)
    many, _ = measure(network, x, batch=1)
    few, _ = measure(network, x, batch=1, memory=1)
    assert len(many["2"].sums.moments) == cnfa.MAX_FOLDS
    assert len(few["2"].sums.moments) == 2
    torch.testing.assert_close(many["2"].agop, few["2"].agop)
    assert few["2"].standard_error("pearson", 1.0) > 0

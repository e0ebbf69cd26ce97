"""Networks of every kind, their measurement, and patch AGOPs patch by patch."""

import copy
import math

import numpy as np
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrizations

from benchmarks import networks
from skconvrfm.ansatz.gradients import AnsatzMeasurement
from skconvrfm.ansatz.layers import find_layers
from skconvrfm.ansatz.matrices import filter_blocks
from skconvrfm.ansatz.network import frozen

IMAGES = 3


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
        if isinstance(self.layer, nn.ConvTranspose2d):  # whose patch is one location
            shape = len(x), groups, x.shape[1] // groups, -1
            locations = x.reshape(shape).permute(0, 3, 1, 2)
            zeros = torch.zeros_like(locations, requires_grad=True)
            self.zeros.append(zeros)
            return self.layer(x + zeros.permute(0, 2, 3, 1).reshape(x.shape))
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
        dtype = next(network.parameters()).dtype  # half precision is widened
        for number, images in enumerate(x.to(dtype).split(batch)):
            measurement.add(images, number)
    return {layer.name: layer for layer in measurement.in_forward_order()}, measurement


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


def around(layer):
    """A network that has the layer in its middle, and changes its output in place."""
    conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[len(layer.kernel_size) - 1]
    first, last = conv(3, layer.in_channels, 2), conv(8, 2, 1)
    return nn.Sequential(first, nn.Tanh(), layer, nn.ReLU(inplace=True), last)


conv, transposed = nn.Conv2d, nn.ConvTranspose2d
UP = {"stride": 2, "padding": 1, "output_padding": (1, 0)}
DEEP = {"padding": (0, 1, 1), "groups": 2}
LAYERS = {
    "plain": lambda: conv(4, 8, 3),
    "stride": lambda: conv(4, 8, (3, 2), stride=(2, 1)),
    "dilation": lambda: conv(4, 8, 2, dilation=(2, 3)),
    "padding": lambda: conv(4, 8, 3, padding=(2, 1)),
    "valid": lambda: conv(4, 8, 3, padding="valid"),
    "same, even": lambda: conv(4, 8, (2, 4), padding="same", dilation=2),
    "circular": lambda: conv(4, 8, 3, padding=2, padding_mode="circular"),
    "reflect": lambda: conv(4, 8, 3, padding=1, padding_mode="reflect"),
    "replicate": lambda: conv(4, 8, 3, padding="same", padding_mode="replicate"),
    "no bias": lambda: conv(4, 8, 3, bias=False),
    "groups": lambda: conv(4, 8, 3, groups=2),
    "depthwise": lambda: conv(4, 8, 3, groups=4, stride=2),
    "strictly depthwise": lambda: conv(8, 8, 3, groups=8, padding=1),
    "1-d": lambda: nn.Conv1d(4, 8, 3, dilation=2, stride=2),
    "3-d": lambda: nn.Conv3d(4, 8, (2, 1, 3), **DEEP),
    "transposed": lambda: transposed(4, 8, (3, 2), **UP),
    "transposed, groups": lambda: transposed(12, 8, 2, 1, 0, 0, 4, False, 2),
    "transposed, few filters": lambda: transposed(12, 8, 1),
    "more filters than pixels": lambda: conv(4, 8, 1),
    "weight norm": lambda: parametrizations.weight_norm(conv(4, 8, 3)),
    "spectral norm": lambda: parametrizations.spectral_norm(conv(4, 8, 3)),
    "standardized weight": lambda: StandardizedConv(4, 8, 3, padding=1),
}
FOUR, SMALL = (1, 1, 1, 1), {"width": 2, "n_classes": 2}
NETWORKS = {
    "alexnet": lambda: networks.alexnet(**SMALL),
    "vgg": lambda: networks.VGG((1, 1), **SMALL),
    "vgg, batch norm": lambda: networks.VGG((1, 1), width=2, batch_norm=True),
    "resnet": lambda: networks.ResNet(networks.BASIC, FOUR, width=2),
    "bottlenecks": lambda: networks.ResNet(networks.BOTTLENECK, FOUR, width=2),
    "mobilenet": lambda: networks.mobilenet(**SMALL),
}
VARIANTS = [*LAYERS, "linear", *NETWORKS]
SHAPES = {"1-d": (13,), "3-d": (5, 4, 5), **dict.fromkeys(NETWORKS, (16, 16))}


def make(name):
    """A network in float64 with statistics and a batch that suits it."""
    torch.manual_seed(0)
    if name == "linear":
        network = WithLinear().double()
    else:
        make = NETWORKS.get(name) or (lambda: around(LAYERS[name]()))
        network = make().double()
    x = torch.randn(IMAGES, 3, *SHAPES.get(name, (7, 6)), dtype=torch.float64)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2)
    return network, x


def filter_covariance(weight, groups=1):
    """The covariance of the filters of each group, (groups, d, d)."""
    filters = filter_blocks(weight, groups)
    return filters.mT @ filters


def expand(space, matrices):
    """The (d × d) matrices that have these coordinates in a space of filters."""
    if space.basis is None:
        return matrices
    return space.basis @ matrices @ space.basis.mT


def patch_agop(layer):
    """The patch AGOP of a measured layer, (groups, d, d), summed over images."""
    return expand(layer.space, layer.agop)


def assert_equal_agops(layer, measurement, expected):
    actual = patch_agop(layer) / measurement.sums.n_images
    torch.testing.assert_close(
        actual, expected, rtol=1e-9, atol=1e-9 * float(expected.abs().max())
    )


def values(report, name="correlation"):
    """A column of a report."""
    return np.array([getattr(row, name) for row in report])


def batches(images, size=7):
    """Torch batches of channels-last images."""
    return torch.from_numpy(np.moveaxis(images, -1, 1).copy()).split(size)

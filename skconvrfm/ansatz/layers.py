r"""Filter covariance and patch AGOP of the layers of any torch network.

A convolution with filters W (k × d) answers a patch v_u with the output W v_u + b. With
each patch a variable of its own, the gradient of the network's output f_o is
∂f_o/∂v_u = Wᵀ δ_o,u, where δ_o,u is its gradient at the *output* of the layer. So,
for any stride, padding and dilation, and for any network around the layer,

    filter covariance   WᵀW
    patch AGOP          Wᵀ S W        S = (1/n) Σ_x Σ_o Σ_u δ δᵀ        (k × k)

No patch is unfolded, and one backward pass serves all layers. With groups there is one
W and one S per group. A linear layer is the case whose one patch is its whole input. A
transposed convolution maps the channels of one location to a patch of its output: its
"patch" has the entries of that location, and Wᵀ δ is the convolution of δ with it.
The ansatz is that of Beaglehole et al., arXiv:2309.00570; the identity is the chain
rule.
"""

import copy
import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import nn
from torch.nn import functional

from .matrices import FilterSpace, filter_blocks, second_moment

_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear, *_TRANSPOSED)
KINDS = ("full", "pointwise", "depthwise", "grouped", "transposed", "linear")


def _added(first, second):
    """Two dicts, added by key."""
    common = first.keys() & second.keys()
    return first | second | {key: first[key] + second[key] for key in common}


@dataclass
class LayerSums:
    """Sums over batches for one layer: plain data, to be sent and added."""

    weight: torch.Tensor  # that the first call used; that of the module before it
    n_patches: int | None = 0  # locations × calls × images
    # By fold the second moments at the outputs, or the AGOPs if these are smaller; none
    # if no output of the network depends on the layer.
    moments: dict = field(default_factory=dict)

    def __add__(self, other):
        moments = _added(self.moments, other.moments)
        return LayerSums(self.weight, self.n_patches + other.n_patches, moments)


@dataclass
class AnsatzSums:
    """Sums over batches for a network."""

    n_images: int
    layers: dict  # LayerSums by name, in the order of first calls

    def snapshot(self):
        """Return the sums as they are now."""
        layers = {name: copy.copy(sums) for name, sums in self.layers.items()}
        return AnsatzSums(self.n_images, layers)

    def __add__(self, other):
        layers = _added(self.layers, other.layers)
        return AnsatzSums(self.n_images + other.n_images, layers)


def kind_of(module):
    """Return the kind of a layer, one of `KINDS`."""
    if isinstance(module, _TRANSPOSED):
        return "transposed"
    if isinstance(module, nn.Linear):
        return "linear"
    if module.groups > 1:
        return "depthwise" if module.weight.shape[1] == 1 else "grouped"
    return "pointwise" if max(module.kernel_size) == 1 else "full"


class MeasuredLayer:
    """A convolution or linear layer of a network, and the sums over its batches."""

    covariance_name = "filter covariance"

    def __init__(self, name, module):
        self.name, self.kind = name, kind_of(module)
        self.modules = [module]  # and those with which it shares its weight
        self.groups = getattr(module, "groups", 1)
        self.stride = getattr(module, "stride", ())
        self.n_dims = len(self.stride)  # of a location; 0 for a linear layer
        self.sums = LayerSums(module.weight.detach())

    @property
    def filters(self):
        """The filters W of each group, (groups, k / groups, d) in float64."""
        blocks = filter_blocks(self.sums.weight, self.groups)
        return blocks.mT if self.kind == "transposed" else blocks

    @property
    def matrix_sizes(self):
        """Filters of a group, and entries of a patch."""
        sizes = len(self.sums.weight) // self.groups, self.sums.weight[0].numel()
        return sizes[::-1] if self.kind == "transposed" else sizes

    @property
    def moment_size(self):
        """Rows of the matrices that are summed: of AGOPs, or of S if it is smaller."""
        n_filters, n_entries = self.matrix_sizes
        return n_entries if self.kind == "transposed" else min(n_filters, n_entries)

    @cached_property
    def space(self):
        """The space of the filters, once the layer was called."""
        return FilterSpace.spanned_by(self.filters)

    def note_call(self, weight, n_patches):
        """Record a call: the weight that it used, and its patches."""
        if not self.sums.n_patches:
            self.sums.weight = weight.detach()
        self.sums.n_patches += n_patches

    def moment_of(self, gradient):
        """Return the sum over the locations of a gradient at an output of the layer.

        It is Σ δδᵀ, or of a transposed convolution Σ Wᵀδ (Wᵀδ)ᵀ, its AGOP.
        """
        if self.kind == "transposed":
            convolve = getattr(functional, f"conv{self.n_dims}d")
            [module, *_], weight = self.modules, self.sums.weight.to(gradient)
            options = module.stride, module.padding, module.dilation, self.groups
            gradient = convolve(gradient, weight, None, *options)
        # Channels second, locations third, of linear layers just one.
        sizes = gradient.shape[gradient.ndim - 1 - self.n_dims :]
        rows = gradient.reshape(-1, sizes[0], math.prod(sizes[1:]))
        return second_moment(rows, self.groups)

    def add(self, moment, fold):
        """Add a sum of `moment_of` over a batch to those of a fold."""
        n_filters, n_entries = self.matrix_sizes
        # With fewer filters the moment is as small as the AGOP in coordinates.
        if n_filters >= n_entries and self.kind != "transposed":
            moment = self.filters.mT @ moment @ self.filters
        self.sums.moments = _added(self.sums.moments, {fold: moment})

    def agop_of(self, moment):
        """Return the AGOP in the coordinates of `space` from a sum of `add`."""
        if self.space.basis is None:
            return moment
        transposed = self.kind == "transposed"
        map_ = self.space.basis if transposed else self.space.filters
        return map_.mT @ moment @ map_

    @property
    def agop(self):
        """The patch AGOP in the coordinates of `space`, summed over images."""
        return self.agop_of(sum(self.sums.moments.values()))

    def matrices(self, n_images):
        """Filter covariance and mean AGOP in coordinates, and the basis of these."""
        return self.space.covariance, self.agop / (n_images or 1), self.space.basis


class LearnedMetric(MeasuredLayer):
    """A layer of a ConvRFM estimator; its metric T Tᵀ is the filter covariance."""

    covariance_name, stride, groups, kind = "patch metric", (), 1, "full"

    def __init__(self, name, layer):
        self.name = name
        options = {"dtype": torch.float64, "device": "cpu"}
        weight = torch.as_tensor(layer.patch_transform_, **options).T
        agop = torch.as_tensor(layer.patch_agop_, **options)[None]
        # One fold, so no standard error: the images were chosen in the fit.
        self.sums = LayerSums(weight, n_patches=None, moments={0: agop})


def find_layers(network):
    """Return each `MeasuredLayer` of a network by all names of its modules.

    Modules that share a weight in the same way are one layer, named after the first.
    """
    layers, by_weight = {}, {}
    for name, module in network.named_modules(remove_duplicate=False):
        if not isinstance(module, LAYERS):
            continue
        parameter = module._parameters.get("weight")
        owner = module if parameter is None else parameter
        key = id(owner), kind_of(module), getattr(module, "groups", 1)
        key += (module.weight.ndim,)
        if key not in by_weight:
            by_weight[key] = MeasuredLayer(name, module)
        elif module not in by_weight[key].modules:
            by_weight[key].modules.append(module)
        layers[name] = by_weight[key]
    return layers

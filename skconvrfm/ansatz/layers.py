r"""Filter covariance and patch AGOP of the layers of any torch network.

A convolution with filters W (k × d) answers a patch v_u with the output W v_u + b. With
each patch a variable of its own, the gradient of the network's output f_o is
∂f_o/∂v_u = Wᵀ δ_o,u, where δ_o,u is its gradient at the *output* of the layer. So,
for any stride, padding and dilation, and for any network around the layer,

    filter covariance   WᵀW
    patch AGOP          Wᵀ S W        S = (1/n) Σ_x Σ_o Σ_u δ δᵀ        (k × k)

No patch is unfolded, and one backward pass serves all layers. With groups there is one
W and one S per group. A linear layer is the case whose one patch is its whole input.
The ansatz is that of Beaglehole et al., arXiv:2309.00570; the identity is the chain
rule.
"""

import math
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import nn

from ..compute.blocks import balanced_blocks

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
CORRELATIONS = ("pearson", "cosine")

# Numbers of gradients that are copied at once.
_COPIED = 2**22
# Sums of squares in float32 that are larger than this have all their digits.
_SMALLEST = 1e-24

# Below this share of a matrix's squared norm its variance is rounding.
CONSTANT = 1e-14


def filter_blocks(weight, groups=1):
    """Return the filters of a weight (k, ...) as (groups, k / groups, d), float64."""
    # Entries of a patch are in the order (channel, row, column).
    return weight.detach().cpu().double().reshape(groups, len(weight) // groups, -1)


def agop_from_outputs(weight, second_moment, groups=1):
    """Return the patch AGOP WᵀSW (groups, d, d) from S (groups, k/groups, k/groups)."""
    filters = filter_blocks(weight, groups)
    return filters.mT @ second_moment.cpu().double() @ filters


def second_moment(gradients, groups=1):
    """Return Σ δδᵀ (groups, k / groups, k / groups) of gradients (m, k, locations).

    It is in float64; products have the gradients' precision, float32 at least.
    """
    moment = _sum_of_products(gradients, groups)
    largest = float(moment.abs().max())
    if gradients.dtype != torch.float64 and not _SMALLEST < largest < math.inf:
        # Their squares are too small for float32, or too large.
        size = max(float(gradients.max()), -float(gradients.min()))
        if 0 < size < math.inf:
            scale = 2.0 ** math.frexp(size)[1]
            return _sum_of_products(gradients, groups, scale) * scale**2
    return moment


def _sum_of_products(gradients, groups, scale=1.0):
    """Add up the products of gradients, divided by a scale, from blocks of them."""
    m, k, n_locations = gradients.shape
    dtype = torch.promote_types(gradients.dtype, torch.float32)
    at_once = max(1, _COPIED // k)
    total = 0
    for images in balanced_blocks(slice(0, m), at_once // n_locations):
        rows = gradients[images].transpose(0, 1).reshape(groups, k // groups, -1)
        for part in rows.split(at_once, dim=2):
            part = part.to(dtype) if scale == 1 else part.to(dtype) / scale
            total = total + (part @ part.mT).double()
    return total.cpu()


def matrix_power(matrices, power):
    """Return a positive power of positive semi-definite matrices, up to rounding."""
    if power == 1:
        return matrices
    eigenvalues, vectors = torch.linalg.eigh(matrices)
    return (vectors * eigenvalues.clamp(min=0).unsqueeze(-2) ** power) @ vectors.mT


@dataclass(frozen=True)
class FilterSpace:
    """Space that the filters of each group span, for matrices in its coordinates.

    WᵀW and WᵀSW vanish outside, so the small matrices have their norms: with 512
    filters on patches of 4608 entries, an 81st of the entries.
    """

    filters: torch.Tensor  # their coordinates, (groups, n_filters, r)
    basis: torch.Tensor | None  # orthonormal, (groups, d, r); None if r = d
    ones: torch.Tensor  # the vector of ones, (groups, r), for sums over all entries
    n_entries: int  # of the d × d matrices of all groups

    @classmethod
    def spanned_by(cls, filters):
        """Return the space spanned by filters of shape (groups, n_filters, d)."""
        groups, n_filters, d = filters.shape
        if n_filters < d:
            basis, triangle = torch.linalg.qr(filters.mT)
            return cls(triangle.mT, basis, basis.sum(1), groups * d * d)
        return cls(filters, None, filters.new_ones(groups, d), groups * d * d)

    @property
    def covariance(self):
        """The filter covariance."""
        return self.filters.mT @ self.filters

    def variation(self, matrices, kind):
        """Squared norm of matrices, about their mean for "pearson"; 0 if constant."""
        norm = self._inner(matrices, matrices, "cosine")
        variation = self._inner(matrices, matrices, kind)
        return variation if variation > CONSTANT * norm else 0.0

    def correlation(self, a, b, kind):
        """Correlation over the entries of all groups, NaN if it is undefined.

        "pearson" takes the mean over entries off first, "cosine" does not. The zeros
        between groups are no entries: both matrices have them by construction.
        """
        size = math.sqrt(self.variation(a, kind) * self.variation(b, kind))
        return self._inner(a, b, kind) / size if size > 0 else math.nan

    def _inner(self, a, b, kind):
        product = float((a * b).sum())
        if kind == "cosine":
            return product
        sums = (torch.einsum("gi,gij,gj->", self.ones, m, self.ones) for m in (a, b))
        return product - float(math.prod(sums)) / self.n_entries


def covariance_correlation(weight, other, groups, kind):
    """Correlation of the filter covariances of two weights of the same shape."""
    filters = torch.cat([filter_blocks(w, groups) for w in (weight, other)], dim=1)
    space = FilterSpace.spanned_by(filters)
    first, second = space.filters.chunk(2, dim=1)
    return space.correlation(first.mT @ first, second.mT @ second, kind)


def correlate(space, name, agop, kind, power):
    """Return the correlation of a space's covariance and an AGOP, and why it is NaN."""
    matrices = {name: space.covariance, "patch AGOP": agop}
    for name, matrix in matrices.items():
        if not matrix.isfinite().all():
            return math.nan, f"its {name} is not finite"
    matrices["patch AGOP"] = matrix_power(agop, power)
    for name, matrix in matrices.items():
        if not matrix.any():
            return math.nan, f"its {name} is zero"
        if not space.variation(matrix, kind):
            return math.nan, f"its {name} is constant"
    return space.correlation(*matrices.values(), kind), ""


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

    def __add__(self, other):
        layers = _added(self.layers, other.layers)
        return AnsatzSums(self.n_images + other.n_images, layers)


class MeasuredLayer:
    """A convolution or linear layer of a network, and the sums over its batches."""

    covariance_name = "filter covariance"

    def __init__(self, name, module):
        self.name = name
        self.kind = next(cls.__name__ for cls in LAYERS if isinstance(module, cls))
        self.modules = [module]  # and those with which it shares its weight
        self.groups = getattr(module, "groups", 1)
        self.stride = getattr(module, "stride", ())
        self.n_dims = len(self.stride)  # of a location; 0 for a linear layer
        self.sums = LayerSums(module.weight.detach())

    @property
    def matrix_sizes(self):
        """Filters of a group, and entries of a patch."""
        return len(self.sums.weight) // self.groups, self.sums.weight[0].numel()

    @cached_property
    def space(self):
        """The space of the filters, once the layer was called."""
        return FilterSpace.spanned_by(filter_blocks(self.sums.weight, self.groups))

    def note_call(self, weight, n_patches):
        """Record a call: the weight that it used, and its patches."""
        if not self.sums.n_patches:
            self.sums.weight = weight.detach()
        self.sums.n_patches += n_patches

    def add(self, moment, fold):
        """Add the second moment of a batch to those of a fold."""
        n_filters, n_entries = self.matrix_sizes
        # With fewer filters the moment is as small as the AGOP in coordinates.
        if n_filters >= n_entries:
            moment = agop_from_outputs(self.sums.weight, moment, self.groups)
        self.sums.moments = _added(self.sums.moments, {fold: moment})

    def _in_coordinates(self, moments):
        """The AGOP in the coordinates of `space` from sums of `add`."""
        filters = self.space.filters
        return moments if self.space.basis is None else filters.mT @ moments @ filters

    @property
    def agop(self):
        """The patch AGOP in the coordinates of `space`, summed over images."""
        return self._in_coordinates(sum(self.sums.moments.values()))

    def correlation(self, kind, power):
        """Correlation of filter covariance and patch AGOP, and why it is NaN."""
        if self.sums.n_patches == 0:
            return math.nan, "the network does not call it"
        if not self.sums.moments:
            return math.nan, "no output depends on it, or the network detaches it"
        return correlate(self.space, self.covariance_name, self.agop, kind, power)

    def standard_error(self, kind, power):
        """Jackknife standard error of the correlation: leave out one fold in turn."""
        moments = self.sums.moments.values()
        if len(moments) < 2 or not sum(moments).isfinite().all():
            return math.nan
        space, total = self.space, self.agop
        agops = (total - self._in_coordinates(moment) for moment in moments)
        powers = (matrix_power(agop, power) for agop in agops)
        left_out = [space.correlation(space.covariance, one, kind) for one in powers]
        options = {"dtype": torch.float64, "device": "cpu"}
        spread = torch.tensor(left_out, **options).std(correction=0)
        return float(spread * math.sqrt(len(left_out) - 1))


class LearnedMetric(MeasuredLayer):
    """A layer of a ConvRFM estimator; its metric T Tᵀ is the filter covariance."""

    covariance_name, stride, groups = "patch metric", (), 1

    def __init__(self, name, kind, layer):
        self.name, self.kind = name, kind
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
        key = (id(owner), getattr(module, "groups", 1), len(module.weight.shape))
        if key not in by_weight:
            by_weight[key] = MeasuredLayer(name, module)
        elif module not in by_weight[key].modules:
            by_weight[key].modules.append(module)
        layers[name] = by_weight[key]
    return layers

r"""Filter covariance and patch AGOP of the layers of any torch network.

A convolution with filters W (k × d) answers a patch v_u with the output W v_u + b. With
each patch a variable of its own, the gradient of the network's output f_o is
∂f_o/∂v_u = Wᵀ δ_o,u, where δ_o,u is its gradient at the *output* of the layer. So,
whatever stride, padding and dilation, and whatever stands around the layer,

    filter covariance   WᵀW
    patch AGOP          Wᵀ S W        S = (1/n) Σ_x Σ_o Σ_u δ δᵀ        (k × k)

No patch is unfolded, and one backward pass serves all layers. With groups there is one
W and one S a group. A linear layer is the case whose one patch is its whole input.

The sum over outputs is either taken output by output, or estimated without bias by
random directions v with E[v vᵀ] = I, for the gradient is linear in the direction.

Source: the ansatz is that of Beaglehole et al., arXiv:2309.00570; the identity is the
chain rule.
"""

import copy
import itertools
import math
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import torch
from torch import nn
from torch.autograd.graph import get_gradient_edge
from torch.nn import functional
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode

from .blocks import image_blocks

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
LAYERS = (*CONVOLUTIONS, nn.Linear)
CORRELATIONS = ("pearson", "cosine")

# Parts of the images whose spread gives the standard error; fewer if memory is short.
MAX_FOLDS = 10
# Tensors that autograd keeps for each output of a layer: itself, normalised, rectified,
# and one more for a shortcut.
KEPT_PER_OUTPUT = 4
# Images times directions of one backward pass on a GPU, enough to keep it busy.
GPU_PULLBACK_IMAGES = 256
# Below this share of a matrix's squared norm its variance is rounding.
CONSTANT = 1e-14

_LINEAR_MAPS = (
    functional.conv1d,
    functional.conv2d,
    functional.conv3d,
    functional.linear,
)


# --------------------------------------------------------------------- matrices


def filter_blocks(weight, groups=1):
    """The filters as matrices, one a group.

    Parameters
    ----------
    weight : Tensor of shape (k, ...)
        Weight of a convolution or of a linear layer; ``weight[i]`` is a filter.
    groups : int, default=1
        Groups of the convolution.

    Returns
    -------
    Tensor of shape (groups, k / groups, d), float64
        Entries of a patch in the order (channel, row, column).
    """
    weight = weight.detach().cpu().double()
    return weight.reshape(groups, len(weight) // groups, -1)


def filter_covariance(weight, groups=1):
    """The covariance WᵀW of the filters of each group.

    Parameters
    ----------
    weight : Tensor of shape (k, ...)
        Weight of a convolution or of a linear layer.
    groups : int, default=1
        Groups of the convolution.

    Returns
    -------
    Tensor of shape (groups, d, d), float64
    """
    filters = filter_blocks(weight, groups)
    return filters.mT @ filters


def agop_from_outputs(weight, second_moment, groups=1):
    """The patch AGOP WᵀSW from gradients at the outputs of the layer.

    Parameters
    ----------
    weight : Tensor of shape (k, ...)
        Weight of a convolution or of a linear layer.
    second_moment : Tensor of shape (groups, k / groups, k / groups)
        The sum S of δδᵀ over outputs and locations, averaged over images.
    groups : int, default=1
        Groups of the convolution.

    Returns
    -------
    Tensor of shape (groups, d, d), float64
    """
    filters = filter_blocks(weight, groups)
    return filters.mT @ second_moment.cpu().double() @ filters


def second_moment(gradients, groups=1):
    """The sum of δδᵀ over everything but the channels.

    Parameters
    ----------
    gradients : Tensor of shape (m, k, locations)
        Gradients at the outputs of a layer.
    groups : int, default=1
        Groups of the convolution.

    Returns
    -------
    Tensor of shape (groups, k / groups, k / groups), float64
        Products are taken in the precision of the gradients, in float32 at least.
    """
    channels = gradients.shape[1]
    rows = gradients.transpose(0, 1).reshape(groups, channels // groups, -1)
    if rows.dtype != torch.float64:
        rows = rows.float()
    return (rows @ rows.mT).cpu().double()


def matrix_power(matrices, power):
    """Powers of symmetric positive semi-definite matrices.

    Parameters
    ----------
    matrices : Tensor of shape (..., r, r)
        The matrices; negative eigenvalues, which are rounding, count as 0.
    power : float
        The power, positive.

    Returns
    -------
    Tensor of shape (..., r, r)
    """
    if power == 1:
        return matrices
    eigenvalues, vectors = torch.linalg.eigh(matrices)
    return (vectors * eigenvalues.clamp(min=0).unsqueeze(-2) ** power) @ vectors.mT


@dataclass(frozen=True)
class FilterSpace:
    """The space that the filters of each group span, and their coordinates in it.

    WᵀW and WᵀSW vanish outside this space, so that norms and inner products of the
    (r × r) matrices of coordinates are theirs. With 512 filters on patches of 4608
    entries they have an 81st part of the entries.

    Attributes
    ----------
    filters : Tensor of shape (groups, n_filters, r)
        Coordinates of the filters.
    basis : Tensor of shape (groups, d, r) or None
        Orthonormal basis of the space; None where it is the whole space, r = d.
    ones : Tensor of shape (groups, r)
        Coordinates of the vector of ones, which give the sum over all entries.
    n_entries : int
        Entries of the d × d matrices of all groups.
    """

    filters: torch.Tensor
    basis: torch.Tensor | None
    ones: torch.Tensor
    n_entries: int

    @classmethod
    def spanned_by(cls, filters):
        """The space spanned by filters of shape (groups, n_filters, d)."""
        groups, n_filters, d = filters.shape
        if n_filters < d:
            basis, triangle = torch.linalg.qr(filters.mT)
            return cls(triangle.mT, basis, basis.sum(1), groups * d * d)
        return cls(filters, None, filters.new_ones(groups, d), groups * d * d)

    @property
    def covariance(self):
        """The filter covariance in coordinates."""
        return self.filters.mT @ self.filters

    def expand(self, matrices):
        """The (d × d) matrices of which the coordinates are given."""
        if self.basis is None:
            return matrices
        return self.basis @ matrices @ self.basis.mT

    def variation(self, matrices, kind):
        """Squared norm of matrices, about their mean for "pearson"; 0 if constant."""
        norm = self._inner(matrices, matrices, "cosine")
        variation = self._inner(matrices, matrices, kind)
        return variation if variation > CONSTANT * norm else 0.0

    def correlation(self, a, b, kind):
        """Correlation of matrices over the entries of all groups, NaN if undefined.

        Parameters
        ----------
        a, b : Tensor of shape (groups, r, r)
            Matrices in coordinates.
        kind : {"pearson", "cosine"}
            Whether the mean over entries is taken off first. The zeros between
            groups are no entries: both matrices have them by construction.

        Returns
        -------
        float
        """
        size = math.sqrt(self.variation(a, kind) * self.variation(b, kind))
        return self._inner(a, b, kind) / size if size > 0 else math.nan

    def _inner(self, a, b, kind):
        product = float((a * b).sum())
        if kind == "cosine":
            return product
        return product - self._sum(a) * self._sum(b) / self.n_entries

    def _sum(self, matrices):
        return float(torch.einsum("gi,gij,gj->", self.ones, matrices, self.ones))


def covariance_correlation(weight, other, groups, kind):
    """Correlation of the filter covariances of two weights of one shape.

    Parameters
    ----------
    weight, other : Tensor of shape (k, ...)
        The weights.
    groups : int
        Groups of the convolution.
    kind : {"pearson", "cosine"}
        See :meth:`FilterSpace.correlation`.

    Returns
    -------
    float
    """
    filters = torch.cat([filter_blocks(w, groups) for w in (weight, other)], dim=1)
    space = FilterSpace.spanned_by(filters)
    first, second = space.filters.chunk(2, dim=1)
    return space.correlation(first.mT @ first, second.mT @ second, kind)


# ----------------------------------------------------------------------- layers


@dataclass
class LayerSums:
    """What batches add up to for a layer: plain, to be sent and added.

    Attributes
    ----------
    weight : Tensor of shape (k, ...)
        What the first call used.
    n_patches : int
        Patches seen: locations × calls × images.
    reached : bool
        Whether an output of the network depends on the layer.
    moments : dict of int to Tensor
        By fold the second moments at the outputs, or the AGOPs where these are smaller.
    """

    weight: torch.Tensor
    n_patches: int = 0
    reached: bool = False
    moments: dict = field(default_factory=dict)

    def __add__(self, other):
        return LayerSums(
            self.weight,
            self.n_patches + other.n_patches,
            self.reached or other.reached,
            {
                fold: self.moments.get(fold, 0) + other.moments.get(fold, 0)
                for fold in self.moments | other.moments
            },
        )


@dataclass
class AnsatzSums:
    """What batches add up to for a network.

    Attributes
    ----------
    n_images : int
        Images seen.
    layers : dict of str to LayerSums
        By name, in the order of first calls.
    """

    n_images: int
    layers: dict

    def __add__(self, other):
        layers = dict(self.layers)
        for name, sums in other.layers.items():
            layers[name] = layers[name] + sums if name in layers else sums
        return AnsatzSums(self.n_images + other.n_images, layers)


class MeasuredLayer:
    """A layer, and what was summed up for it.

    Parameters
    ----------
    name : str
        Its name in the network.
    module : nn.Module
        The convolution or linear layer.

    Attributes
    ----------
    modules : list of nn.Module
        The layer, and those with which it shares its weight.
    sums : LayerSums or None
        None until it is called.
    """

    def __init__(self, name, module):
        self.name = name
        self.modules = [module]
        self.groups = getattr(module, "groups", 1)
        self.stride = getattr(module, "stride", ())
        self.n_dims = len(self.stride)  # of a location; 0 for a linear layer
        self.sums = None

    @property
    def kind(self):
        """The class of torch.nn that the layer belongs to."""
        return next(cls.__name__ for cls in LAYERS if isinstance(self.modules[0], cls))

    @property
    def weight(self):
        """The weight that the first call used, or else that of the module."""
        return (
            self.modules[0].weight.detach() if self.sums is None else self.sums.weight
        )

    @property
    def n_patches(self):
        """Patches seen: locations × calls × images."""
        return 0 if self.sums is None else self.sums.n_patches

    @property
    def matrix_sizes(self):
        """Filters of a group, and entries of a patch."""
        weight = self.weight
        return len(weight) // self.groups, weight[0].numel()

    @cached_property
    def space(self):
        """The space of the filters, of a layer that was called."""
        return FilterSpace.spanned_by(filter_blocks(self.weight, self.groups))

    def see(self, weight, n_patches):
        """Take note of a call: the weight that it used, and its patches."""
        if self.sums is None:
            self.sums = LayerSums(weight.detach())
        self.sums.n_patches += n_patches

    def add(self, moment, fold):
        """Add the second moment of a batch to those of a fold.

        With fewer filters than entries it is as small as the AGOP in coordinates, for
        which the filters would have to be factorised wherever a batch is measured.
        """
        n_filters, n_entries = self.matrix_sizes
        if n_filters >= n_entries:
            moment = agop_from_outputs(self.weight, moment, self.groups)
        moments = self.sums.moments
        moments[fold] = moments.get(fold, 0) + moment

    def _in_coordinates(self, moments):
        """The AGOP in the coordinates of `space` from sums of `add`."""
        if self.space.basis is None:
            return moments
        return self.space.filters.mT @ moments @ self.space.filters

    @property
    def agop(self):
        """The patch AGOP in the coordinates of `space`, summed over images."""
        return self._in_coordinates(sum(self.sums.moments.values()))

    def patch_agop(self):
        """The patch AGOP, a Tensor of shape (groups, d, d), summed over images."""
        return self.space.expand(self.agop)

    def correlation(self, kind, power):
        """Correlation of filter covariance and patch AGOP, and why it is NaN.

        Parameters
        ----------
        kind : {"pearson", "cosine"}
            See :meth:`FilterSpace.correlation`.
        power : float
            Power of the AGOP.

        Returns
        -------
        correlation : float
        reason : str
            Empty where there is a correlation.
        """
        if self.sums is None:
            return math.nan, "the network does not call it"
        if not self.sums.reached:
            return math.nan, "no output depends on it, or the network detaches it"
        matrices = {"filter covariance": self.space.covariance, "patch AGOP": self.agop}
        return correlate(self.space, matrices, kind, power)

    def standard_error(self, kind, power):
        """Jackknife standard error of the correlation: leave out one fold in turn."""
        if self.sums is None or len(self.sums.moments) < 2:
            return math.nan
        covariance, total = self.space.covariance, self.agop
        if not total.isfinite().all():
            return math.nan
        agops = map(self._in_coordinates, self.sums.moments.values())
        left_out = torch.tensor(
            [
                self.space.correlation(
                    covariance, matrix_power(total - agop, power), kind
                )
                for agop in agops
            ],
            dtype=torch.float64,
        )
        return float(left_out.std(correction=0) * math.sqrt(len(left_out) - 1))


def correlate(space, matrices, kind, power):
    """Correlate a matrix with the power of an AGOP, or say why that is not possible.

    Parameters
    ----------
    space : FilterSpace
        Whose coordinates the matrices are in.
    matrices : dict of str to Tensor of shape (groups, r, r)
        Two matrices by name; the second is the AGOP.
    kind : {"pearson", "cosine"}
        See :meth:`FilterSpace.correlation`.
    power : float
        Power of the AGOP.

    Returns
    -------
    correlation : float
    reason : str
        Empty where there is a correlation.
    """
    for name, matrix in matrices.items():
        if not matrix.isfinite().all():
            return math.nan, f"its {name} is not finite"
    first, agop = matrices.values()
    powers = dict(zip(matrices, (first, matrix_power(agop, power)), strict=True))
    for name, matrix in powers.items():
        if not matrix.any():
            return math.nan, f"its {name} is zero"
        if not space.variation(matrix, kind):
            return math.nan, f"its {name} is constant"
    return space.correlation(*powers.values(), kind), ""


def find_layers(network):
    """The convolutions and linear layers of a network, by all their names.

    Layers that share one weight in the same way are one layer.

    Parameters
    ----------
    network : nn.Module
        The network.

    Returns
    -------
    dict of str to MeasuredLayer
        In the order of registration; a layer is named after the first of its names.
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


# ------------------------------------------------------------------ measurement


@contextmanager
def frozen(network, device=None):
    """Put a network into evaluation mode without gradients; put everything back.

    Modes, ``requires_grad``, buffers and device are afterwards what they were, also
    after an exception. ``train()`` of the modules is not called, for some networks
    do more in it than to set the mode.

    Parameters
    ----------
    network : nn.Module
        The network.
    device : torch.device, default=None
        Where to move it meanwhile; None leaves it where it is.

    Yields
    ------
    torch.device
        Where it is.

    Raises
    ------
    ValueError
        If weights are not initialised yet.
    """
    tensors = itertools.chain(network.parameters(), network.buffers())
    if any(map(is_lazy, tensors)):
        raise ValueError(
            f"{type(network).__name__} has lazy layers without weights: call it on a "
            "batch first."
        )
    home = device_of(network)
    modes = [(module, module.training) for module in network.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in network.parameters()]
    buffers = [
        (module, name, buffer, buffer.clone())
        for module in network.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    moves = device is not None and device != home
    try:
        for module, _ in modes:
            module.training = False
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        if moves:
            network.to(device)
        yield device if moves else home
    finally:
        if moves:
            network.to(home)
        for module, mode in modes:
            module.training = mode
        for parameter, flag in flags:
            parameter.requires_grad_(flag)
        for module, name, buffer, content in buffers:
            module._buffers[name] = buffer
            if not torch.equal(buffer, content):
                with torch.no_grad():
                    buffer.copy_(content)


def device_of(network):
    """Where the parameters (or else the buffers) of a network are."""
    for tensor in itertools.chain(network.parameters(), network.buffers()):
        return tensor.device
    return torch.device("cpu")


class OutputError(ValueError):
    """What a network returns is not one row of outputs an image."""


class _WeightsInUse(TorchFunctionMode):
    """Remembers the weight of the last linear map.

    It is what a layer multiplied with, also where that is not its parameter, as in
    convolutions that standardise their weight.
    """

    weight = None

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func in _LINEAR_MAPS:
            self.weight = args[1] if len(args) > 1 else kwargs["weight"]
        return func(*args, **kwargs)


def run_network(network, inputs, layers, see):
    """Call a network, and see every output of the layers.

    Parameters
    ----------
    network : nn.Module
        The network.
    inputs : Tensor of shape (n, ...)
        A batch.
    layers : list of MeasuredLayer
        The layers to watch.
    see : callable
        ``see(layer, weight, output)`` is called after every call of a layer, with the
        weight that it used; it may return another output, or None.

    Returns
    -------
    Tensor of shape (n, n_outputs)
        The outputs of the network.

    Raises
    ------
    OutputError
        If the network does not return a tensor with a row an image.
    """
    with ExitStack() as stack:
        in_use = stack.enter_context(_WeightsInUse())

        def forget(module, args):
            in_use.weight = None

        def after(layer, module, args, output):
            weight = in_use.weight
            if weight is None or weight.shape != layer.weight.shape:
                weight = module.weight
            return see(layer, weight, output)

        for layer in layers:
            for module in layer.modules:
                # The output of the layer itself, before the user's hooks.
                hook = module.register_forward_hook(
                    lambda *call, layer=layer: after(layer, *call), prepend=True
                )
                stack.callback(hook.remove)
                stack.callback(module.register_forward_pre_hook(forget).remove)
        outputs = _first_tensor(network(inputs))
    if outputs is None or outputs.ndim == 0 or len(outputs) != len(inputs):
        found = "no tensor" if outputs is None else f"shape {tuple(outputs.shape)}"
        raise OutputError(
            f"The network's output for {len(inputs)} images has {found}; it must be "
            "(n_images, ...): wrap the network in a module that returns that."
        )
    return outputs.reshape(len(outputs), -1)


def _first_tensor(outputs):
    """The logits among what a network returns, or the first tensor in it."""
    if isinstance(outputs, torch.Tensor):
        return outputs
    if isinstance(getattr(outputs, "logits", None), torch.Tensor):
        return outputs.logits
    if isinstance(outputs, dict):
        if "logits" in outputs:
            return outputs["logits"]
        outputs = list(outputs.values())
    if isinstance(outputs, (tuple, list)):
        found = (_first_tensor(value) for value in outputs)
        return next((value for value in found if value is not None), None)
    return None


def count_outputs(network, inputs, layers):
    """Elements that the layers put out, in the order in which they are first called.

    Parameters
    ----------
    network : nn.Module
        The network, frozen.
    inputs : Tensor of shape (n, ...)
        A batch.
    layers : list of MeasuredLayer
        The layers to watch.

    Returns
    -------
    dict of MeasuredLayer to int
        Only the layers that are called.
    """
    counts = {}

    def see(layer, weight, output):
        counts[layer] = counts.get(layer, 0) + output.numel()

    with torch.no_grad():
        run_network(network, inputs, layers, see)
    return counts


class AnsatzMeasurement:
    """Sums up the patch AGOPs of the layers of a network, batch by batch.

    Parameters
    ----------
    network : nn.Module
        The network, :func:`frozen` while batches are added.
    layers : list of MeasuredLayer
        The layers to measure.
    outputs : "all" or int, default="all"
        All outputs of the network, or that many random directions in their place; a
        network with no more outputs than that is measured exactly.
    seed : int, default=0
        Seed of the directions.
    memory : int, default=2**30
        Bytes for the gradients of one pass, and for the sums that are kept.
    largest : int, default=None
        Images that go through the network together at most: larger batches go in
        parts. None is a whole batch.
    max_folds : int, default=MAX_FOLDS
        Parts that the batches are dealt out to, for the standard error.
    n_directions_at_once : int, default=None
        Directions of one backward pass. None is 1 on a CPU, which gains nothing from
        more, and on a GPU what keeps it busy and fits the memory.

    Attributes
    ----------
    n_images : int
        Images seen.
    """

    def __init__(
        self,
        network,
        layers,
        *,
        outputs="all",
        seed=0,
        memory=2**30,
        largest=None,
        max_folds=MAX_FOLDS,
        n_directions_at_once=None,
    ):
        self.network = network
        self.layers = list(layers)
        self.outputs = outputs
        self.seed = seed
        self.memory = memory
        self.largest = largest
        self.n_directions_at_once = n_directions_at_once
        self.n_images = 0
        self._n_folds = self._count_folds(max_folds)
        self._in_order = {}

    def in_forward_order(self):
        """The layers in the order of their first calls, those never called last."""
        return list(dict.fromkeys([*self._in_order, *self.layers]))

    def sums(self):
        """What was summed up.

        Returns
        -------
        AnsatzSums
        """
        layers = {layer.name: layer.sums for layer in self._in_order}
        return AnsatzSums(self.n_images, layers)

    def take(self, sums):
        """Have these sums in place of one's own.

        Parameters
        ----------
        sums : AnsatzSums
            Of batches of the same network.
        """
        by_name = {layer.name: layer for layer in self.layers}
        self.n_images = sums.n_images
        self._in_order = {by_name[name]: None for name in sums.layers}
        for name, of_layer in sums.layers.items():
            by_name[name].sums = of_layer

    def add(self, inputs, number):
        """Add a batch.

        Parameters
        ----------
        inputs : Tensor of shape (n, ...)
            The batch, on the device of the network.
        number : int
            Of the batch among all, which decides its fold and its random directions.
        """
        # The sums of this batch first: that of a layer may be larger than its AGOP.
        moments = {}
        with torch.inference_mode(False), torch.enable_grad():
            for part in image_blocks(inputs, self.largest or len(inputs)):
                outputs, calls = self._call(_ordinary(inputs[part]))
                # Of the whole batch: they do not depend on the parts that it goes in.
                shape = len(inputs), outputs.shape[1]
                at_once = self.n_directions_at_once or self._at_once(outputs, calls)
                for directions, scale in self._directions(shape, number, at_once):
                    chosen = directions[:, part].to(outputs)
                    for gradients in self._pull_back(outputs, calls, chosen):
                        self._sum_up(gradients, calls, scale, moments)
        for layer, moment in moments.items():
            layer.add(moment, number % self._n_folds)
        self.n_images += len(inputs)

    def _sum_up(self, gradients, calls, scale, moments):
        """Add the gradients of some directions to the second moments by layer."""
        for (layer, _, _), gradient in zip(calls, gradients, strict=True):
            if gradient is not None:
                layer.sums.reached = True
                rows = _channels_second(gradient, layer.n_dims)
                moment = scale * second_moment(rows, layer.groups)
                moments[layer] = moments.get(layer, 0) + moment

    def _call(self, inputs):
        """The outputs of the network, and (layer, where its gradient is, size)."""
        calls = []
        anchor = torch.zeros((), requires_grad=True, device=inputs.device)

        def see(layer, weight, output):
            self._in_order[layer] = None
            layer.see(weight, output.numel() // len(weight))
            with torch.enable_grad():  # where the network forbids it, too
                if not output.requires_grad:
                    # The first layers: the graph begins here.
                    output = output + anchor.to(output.dtype)
            # An edge of the graph stays what it is when the network goes on to
            # change the output in place, which the tensor does not.
            calls.append((layer, get_gradient_edge(output), output.numel()))
            return output

        return run_network(self.network, inputs, self.layers, see), calls

    def _directions(self, shape, number, at_once):
        """Directions in chunks of shape (m, n, n_outputs), each with its scale."""
        n, n_outputs = shape
        exact = self.outputs == "all" or self.outputs >= n_outputs
        total = n_outputs if exact else self.outputs
        rng = np.random.default_rng((self.seed, number))
        for start in range(0, total, at_once):
            m = min(at_once, total - start)
            if exact:
                v = torch.zeros(m, n, n_outputs)
                v[torch.arange(m), :, torch.arange(start, start + m)] = 1
            else:  # signs, which have the smallest variance
                signs = rng.integers(0, 2, size=(m, n, n_outputs), dtype=np.int8)
                v = 2.0 * torch.from_numpy(signs) - 1
            yield v, 1.0 if exact else 1 / total

    def _at_once(self, outputs, calls):
        """How many directions of one backward pass."""
        if outputs.device.type == "cpu":
            return 1
        size = outputs.element_size() * sum(n_elements for _, _, n_elements in calls)
        fits = self.memory // (2 * max(1, size))  # a gradient, and its copy in a sum
        return max(1, min(fits, GPU_PULLBACK_IMAGES // len(outputs)))

    def _pull_back(self, outputs, calls, directions):
        """Gradients of ``directions · outputs`` at the calls; None where there is none.

        Images do not see each other, so that one pass serves a whole batch. Yields one
        sequence of gradients for all directions, or one a direction.
        """
        if not calls or not outputs.requires_grad:
            return
        edges = [edge for _, edge, _ in calls]
        options = {"retain_graph": True, "allow_unused": True}
        if len(directions) > 1 and self.n_directions_at_once != 1:
            try:
                gradients = torch.autograd.grad(
                    outputs, edges, directions, is_grads_batched=True, **options
                )
            except RuntimeError:
                # Some operation cannot be batched: from now on one by one, where a
                # real error comes up again.
                self.n_directions_at_once = 1
            else:
                yield gradients
                return
        for direction in directions:
            yield torch.autograd.grad(outputs, edges, direction, **options)

    def _count_folds(self, most):
        """As many folds as are useful and as memory holds; at least two."""
        sizes = (
            8 * layer.groups * min(layer.matrix_sizes) ** 2 for layer in self.layers
        )
        return max(1, min(most, max(2, self.memory // max(1, sum(sizes)))))


def measure_batches(measurements, batches, first, in_turn):
    """Add batches to measurements of several networks: what a task does.

    Parameters
    ----------
    measurements : list of AnsatzMeasurement
        Without batches, their networks :func:`frozen`.
    batches : iterable of Tensor
        The batches.
    first : int
        Number of the first one among all.
    in_turn : bool
        Whether no other task runs meanwhile. Otherwise the networks are copied: hooks
        of one task would see the calls of another.

    Returns
    -------
    ndarray of AnsatzSums
        One a network; such arrays can be added.
    """
    if not in_turn:
        measurements = copy.deepcopy(measurements)
    for number, batch in enumerate(batches, first):
        for measurement in measurements:
            measurement.add(batch, number)
    return np.array([measurement.sums() for measurement in measurements], dtype=object)


def _ordinary(inputs):
    """Inputs that autograd can keep, also where they were made in inference mode."""
    return inputs.clone() if inputs.is_inference() else inputs


def _channels_second(gradients, n_dims):
    """Gradients at the output of a layer as (m, channels, locations)."""
    if n_dims == 0:  # linear: channels last, locations before
        channels = gradients.shape[-1]
        return gradients.reshape(-1, channels).unsqueeze(2)
    channels = gradients.shape[-1 - n_dims]
    return gradients.reshape(-1, channels, math.prod(gradients.shape[-n_dims:]))

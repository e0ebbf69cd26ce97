r"""The convolutional NTK and NNGP on one tile: value and pullback.

With patches :math:`v_u(x)`, patch transform :math:`T`, c channels and a bias of
standard deviation :math:`\beta`, the recursion of a ReLU network of any depth
with a flattened linear readout needs covariances of equal locations only::

    layer 1    S = <T v_u(x), T v_u(z)> / c + bias²        Θ = S
               a = |T v_u(x)|² / c + bias²    b = |T v_u(z)|² / c + bias²
    ReLU       r = sqrt(a b)   κ = S / r   k0 = 1 - arccos(κ) / π   s = sqrt(1 - κ²)
               S' = r (s / π + k0 κ)          Θ' = k0 Θ
    layer l    S = window sum of S' + bias²   Θ = window sum of Θ' + S
               a, b = window sum of a, b + bias²
    readout    NNGP = mean of S' over u       NTK = mean of S' + Θ' over u

Two images may as well meet at an offset, location u of one and u + δ of the other: the
maps then hold the locations that lie in both, and the readout weighs them.

A tile pairs a block of images on the left (rows) with one on the right
(columns); its arrays have shape (map rows, map columns, n_left, n_right), the
pairs innermost, so that every window sum is a sum of contiguous runs.

Source: Arora et al., arXiv:1904.11955 (Eqs. 12-16); Beaglehole et al.,
arXiv:2309.00570, for the patch transform and its gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from numbers import Integral, Real

import torch
from sklearn.base import clone

from .._docs import fill_in
from .._scale import SCALE_PARAMETER
from .._sklearn_compat import Interval
from .._typing import KernelMetric, Padding, Pair, Scale
from ..compute.window_sums import window_sum, window_sum_adjoint
from ..features.maps import transformed_patches
from .base import (
    METRIC_PARAMETER,
    MIRROR_PARAMETER,
    PATCH_PARAMETERS,
    ImageBlock,
    PatchKernel,
)

# κ of a patch with itself, or with its multiple, comes out this close to 1 in units
# of eps, after any number of layers.
_PARALLEL_ROUNDINGS = 32
_LARGEST_BIAS = 1e100  # whose square does not overflow
_LARGEST_WINDOW = 12  # rows or columns, from which programs for a GPU grow too large

_PARAMETERS = f"""depth : int, default=3
        Number of convolutions. Deeper kernels see wider parts of an image; the cost
        is linear. 3 lets the windows of 3×3 patches overlap twice.
    {PATCH_PARAMETERS}
    bias : float, default=0.3
        Standard deviation of the bias of each convolution. With 0, as in the paper,
        the kernel is homogeneous, and on few features it cannot place a threshold;
        0.3 serves standardised columns and images in [0, 1] (measured: see "The
        bias" in the guide).
    {METRIC_PARAMETER}
    pool_grid : int, (int, int) or None, default=None
        Rows and columns of a grid: the last layer's maps are averaged over each of its
        cells before the readout, so that what moves within a cell stays alike. 1 is a
        global average; None keeps all locations. A pool of cells of a × b locations
        takes up to (2a - 1)(2b - 1) times as long.
    {MIRROR_PARAMETER}
    {SCALE_PARAMETER}"""


class ConvolutionalKernel(PatchKernel):
    """Base of the kernels of infinitely wide convolutional ReLU networks."""

    _parameter_constraints: dict = {
        **PatchKernel._parameter_constraints,
        "depth": [Interval(Integral, 1, None, closed="left")],
        "bias": [Interval(Real, 0, _LARGEST_BIAS, closed="both")],
    }

    def __init__(
        self,
        depth: int = 3,
        *,
        patch_size: Pair = 3,
        padding: Padding = "valid",
        bias: float = 0.3,
        metric: KernelMetric = "identity",
        pool_grid: Pair | None = None,
        mirror: bool = False,
        scale: Scale = "auto",
    ) -> None:
        self.depth = depth
        self.patch_size = patch_size
        self.padding = padding
        self.bias = bias
        self.metric = metric
        self.pool_grid = pool_grid
        self.mirror = mirror
        self.scale = scale

    def below(self):
        """Return the kernel of a feature layer below, as deep as the whole network."""
        return clone(self).set_params(depth=self.depth + 1)

    @property
    def has_compiled_tiles(self):
        """True if there are compiled tiles of the kernel."""
        return self.pool_grid is None

    @property
    def has_fused_tiles(self):
        """True if there are fused programs of the kernel, for a GPU."""
        # Those of a pool would be compiled anew for every offset.
        small = all(max(layer.patch) <= _LARGEST_WINDOW for layer in self.layers[1:])
        return small and self.pool_grid is None

    @classmethod
    def specimen(cls):
        """Return a small bound kernel of the class, on which programs are checked."""
        return cls(depth=2, padding="same", bias=0.0).bind((7, 6, 2))

    @property
    def patch_scale(self):
        """Factor of the inner products of patches."""
        return 1 / self.channels

    @staticmethod
    def parallel_gap(dtype):
        """Return the largest 1 - κ that passes for rounding of parallel patches."""
        return _PARALLEL_ROUNDINGS * torch.finfo(dtype).eps

    def prepare_block(self, images, transform, pixels=False):
        """Return patches under a transform, and their variances, a `Block`.

        Without a transform it may have ``pixels`` (h, w, c, n) in the place of patches.
        """
        bias = float(self.bias) ** 2
        if pixels:
            patches = images.permute(1, 2, 3, 0).contiguous()
            squares = window_sum(patches.square().sum(2), self.layers[0])
        else:
            patches = transformed_patches(images, self.layers[0], transform)
            squares = patches.square().sum(2)
        variances = [squares / self.channels + bias]
        for layer in self.layers[1:]:
            variances.append(window_sum(variances[-1], layer) + bias)
        if float(self.bias) == 0 and transform is not None:
            # A patch in the null space of T comes out as rounding noise: blank it.
            noise = torch.finfo(images.dtype).eps * torch.linalg.matrix_norm(transform)
            squares = images.square().sum(3).permute(1, 2, 0)
            lengths = window_sum(squares, self.layers[0])
            blank_below = noise.square() * lengths * self.patch_dim
            variances[0] = variances[0].where(variances[0] > blank_below, 0)
        roots = [variance.sqrt() for variance in variances]
        inverse_roots = [torch.where(root > 0, 1 / root, 0) for root in roots]
        return Block(patches, roots, inverse_roots)

    def diagonal(self, block):
        """Return k(x, x) of every image of a block: κ = 1, so S' = a and Θ' = Θ."""
        if self.is_pooled:
            return None  # it takes as long as any other value
        theta = block.roots[0].square()
        for layer, root in zip(self.layers[1:], block.roots[1:], strict=True):
            theta = window_sum(theta, layer) + root.square()
        value = block.roots[-1].square()
        return (value + theta if self.tangent else value).mean((0, 1))

    def _pair_value(self, left, right):
        covariance, theta = _first_covariance(self, left, right)
        for index in range(len(self.layers)):
            if index:
                covariance, theta = _next_covariance(self, index, covariance, theta)
            covariance, theta = _relu(left, right, index, covariance, theta)
        value = self.readout.sum(covariance)
        return value if theta is None else value + self.readout.sum(theta)

    def _pair_pullback(self, left, right, dual_coef):
        # w is ∂k/∂S + ∂k/∂Θ at layer 1. β is ∂k/∂a, already summed over j with the
        # coefficients: its window sums are the same for all j, so they are taken
        # after that sum, once per output.
        inputs = [_first_covariance(self, left, right)]
        for index in range(1, len(self.layers)):
            covariance, theta = _relu(left, right, index - 1, *inputs[-1])
            inputs.append(_next_covariance(self, index, covariance, theta))

        # Below: `d_name` is the derivative of k with respect to `name`.
        d_out = d_theta_out = self.readout.derivative(inputs[-1][0])
        # Variances are those of the whole map, wherever the images meet.
        shape = *self.layers[-1].locations, len(left), dual_coef.shape[1]
        d_variance = d_out.new_zeros(shape)
        for index in reversed(range(len(self.layers))):
            covariance, theta = inputs.pop()
            cosine = _cosine(left, right, index, covariance)
            sine, k0 = _arc_cosine(cosine)
            d_covariance = d_out * k0
            d_scale = d_out * sine / math.pi
            if self.tangent:
                inverse = _outer(left.inverse_roots[index], right.inverse_roots[index])
                through_k0 = d_theta_out * theta * _inverse_sine(sine) * inverse
                through_k0 = through_k0 / math.pi
                d_scale = d_scale - through_k0 * cosine
                d_theta = d_theta_out * k0
                # Θ = window sum of Θ' + S
                d_covariance = d_covariance + through_k0 + d_theta
            d_scale = d_scale * right.roots[index][:, :, None, :]
            inverse = left.inverse_roots[index][..., None] / 2
            d_variance[self.readout.left] += (d_scale @ dual_coef) * inverse
            if index:
                layer = self.layers[index]
                d_out = window_sum_adjoint(d_covariance, layer)
                d_variance = window_sum_adjoint(d_variance, layer)
                if self.tangent:
                    d_theta_out = window_sum_adjoint(d_theta, layer)
        blank = left.roots[0] == 0
        return d_covariance.masked_fill_(blank[..., None], 0), d_variance


@fill_in(parameters=_PARAMETERS)
class ConvNTK(ConvolutionalKernel):
    """Convolutional neural tangent kernel: of a wide network trained in all layers.

    The kernel of an infinitely wide ReLU network with `depth` convolutions of stride
    1, a flatten and a linear readout (Arora et al., arXiv:1904.11955), whose patches
    are measured in a metric M = T Tᵀ (Beaglehole et al., arXiv:2309.00570), which
    :class:`~skconvrfm.ConvRFMClassifier` learns. :class:`ConvNNGP` is that of a network
    of which the readout alone is trained.

    Values grow by rows·columns of the patch in each layer; the ridge of the estimators
    is in units of the largest diagonal entry. No array of size pairs × locations
    exceeds the ``working_memory`` of :func:`sklearn.get_config`.

    Parameters
    ----------
    %(parameters)s

    Examples
    --------
    >>> import numpy as np
    >>> from skconvrfm.kernels import ConvNTK
    >>> X = np.random.default_rng(0).normal(size=(5, 64))
    >>> ConvNTK(depth=2)(X).shape
    (5, 5)
    >>> from sklearn.svm import SVC
    >>> SVC(kernel=ConvNTK(depth=1)).fit(X, [0, 1, 0, 1, 1]).predict(X).shape
    (5,)
    """

    tangent = True


@fill_in(parameters=_PARAMETERS)
class ConvNNGP(ConvolutionalKernel):
    """Convolutional NNGP kernel: of a wide network of which the readout is trained.

    The covariance of the Gaussian process that an infinitely wide network with random
    weights is (Novak et al., arXiv:1810.05148). See :class:`ConvNTK`, mostly the better
    one, for what they share.

    Parameters
    ----------
    %(parameters)s

    Examples
    --------
    >>> import numpy as np
    >>> from skconvrfm.kernels import ConvNNGP
    >>> ConvNNGP(pool_grid=2)(np.random.default_rng(0).normal(size=(5, 8, 8))).shape
    (5, 5)
    """

    tangent = False


@dataclass(frozen=True)
class Block(ImageBlock):
    """Transformed patches, and the variances (a or b) of the recursion by layer."""

    roots: list[torch.Tensor]  # of the variances, (rows, columns, n); 0 if blank
    inverse_roots: list[torch.Tensor]  # 0 if blank


def _first_covariance(kernel, left, right):
    """Return S and Θ at layer 1."""
    covariance = left.patches.transpose(-1, -2) @ right.patches
    covariance = covariance / kernel.channels + float(kernel.bias) ** 2
    return covariance, covariance if kernel.tangent else None


def _next_covariance(kernel, index, covariance, theta):
    """Return S and Θ at layer ``index`` from S' and Θ' of the layer below."""
    layer = kernel.layers[index]
    covariance = window_sum(covariance, layer) + float(kernel.bias) ** 2
    return covariance, None if theta is None else window_sum(theta, layer) + covariance


def _relu(left, right, index, covariance, theta):
    """Return S' and Θ' of layer ``index`` from its S and Θ."""
    scale = _outer(left.roots[index], right.roots[index])
    cosine = _cosine(left, right, index, covariance)
    sine, k0 = _arc_cosine(cosine)
    covariance = scale * (sine / math.pi + k0 * cosine)
    return covariance, None if theta is None else k0 * theta


def _outer(left, right):
    """Return products of every pair, location by location."""
    return left[..., None] * right[:, :, None, :]


def _cosine(left, right, index, covariance):
    """Return κ in [-1, 1]; 0 where either patch is blank, 1 where they are parallel."""
    inverse = _outer(left.inverse_roots[index], right.inverse_roots[index])
    cosine = (covariance * inverse).clamp_(-1, 1)
    # arccos turns a rounding of κ near 1 into its square root: an image and its copy
    # would have another kernel than the image with itself.
    gap = ConvolutionalKernel.parallel_gap(cosine.dtype)
    return cosine.masked_fill_(cosine > 1 - gap, 1)


def _arc_cosine(cosine):
    """Return s = sqrt(1 - κ²) and k0 = 1 - arccos(κ) / π."""
    sine = ((1 - cosine) * (1 + cosine)).sqrt_()
    return sine, 1 - torch.arccos(cosine) / math.pi


def _inverse_sine(sine):
    """Return 1 / s, and 0 where patches are parallel, or opposite, to rounding."""
    # The gradient stays bounded there while 1 / s does not: its large parts cancel, and
    # their squares would not. 0 is the symmetric value at the kink.
    floor = math.sqrt(2 * ConvolutionalKernel.parallel_gap(sine.dtype)) / 2
    return torch.where(sine > floor, 1 / sine.clamp_min(floor), 0)

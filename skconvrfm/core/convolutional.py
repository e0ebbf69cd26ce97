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

import math
from dataclasses import dataclass

import torch

from .features import transformed_patches
from .images import ImageBlock, ImageKernel

KINDS = ("ntk", "nngp")
# κ of a patch with itself, or with its multiple, comes out this close to 1 in units
# of eps, after any number of layers.
_PARALLEL_ROUNDINGS = 32


@dataclass(frozen=True)
class ConvolutionalKernel(ImageKernel):
    """What defines the kernel but for the patch transform.

    Attributes
    ----------
    kind : {"ntk", "nngp"}
        Tangent kernel of the infinitely wide network, or its Gaussian process.
    layers : tuple of Layer
        The convolutions, from the image up.
    channels : int
        Channels of an image.
    bias : float
        Standard deviation of the bias of every convolution.
    """

    bias: float = 0.0

    @property
    def patch_scale(self):
        """What the inner products of patches are multiplied by."""
        return 1 / self.channels

    # There is no bandwidth to measure.
    unmeasured = False

    @staticmethod
    def parallel_gap(dtype):
        """The largest 1 - κ that passes for rounding of parallel patches."""
        return _PARALLEL_ROUNDINGS * torch.finfo(dtype).eps

    def prepare_block(self, images, transform):
        """Patches, transformed, and the variances of a block of images.

        Parameters
        ----------
        images : Tensor of shape (n, h, w, c)
            The images.
        transform : Tensor of shape (d, d) or None
            The patch transform T; None is the identity.

        Returns
        -------
        Block
        """
        patches = transformed_patches(images, self.layers[0], transform)
        variances = layer_variances(self, patches)
        if self.bias == 0 and transform is not None:
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
        """k(x, x) of every image of a block: κ = 1, so S' = a and Θ' = Θ exactly."""
        theta = block.roots[0].square()
        for layer, root in zip(self.layers[1:], block.roots[1:], strict=True):
            theta = window_sum(theta, layer) + root.square()
        value = block.roots[-1].square()
        if self.kind == "ntk":
            value = value + theta
        return value.mean((0, 1))

    def value(self, left, right):
        """The kernel between two blocks.

        Parameters
        ----------
        left, right : Block
            The images of the rows and of the columns.

        Returns
        -------
        Tensor of shape (len(left), len(right))
        """
        left, right = self.readout.meet(left, right)
        covariance, theta = _first_covariance(self, left, right)
        for index in range(len(self.layers)):
            if index:
                covariance, theta = _next_covariance(self, index, covariance, theta)
            covariance, theta = _relu(left, right, index, covariance, theta)
        value = self.readout.sum(covariance)
        return value if theta is None else value + self.readout.sum(theta)

    def pullback(self, left, right, dual_coef):
        r"""Gradients of f_o = Σ_j dual_coef[j, o] k(·, x_j) at the left images.

        With respect to the patches of a left image z, each its own variable,

        .. math:: g_{o,u}(z) = \frac1c T \Bigl[\sum_j \alpha_{jo} w_{zj}(u) T v_u(x_j)
                  + 2 \beta_{zo}(u) T v_u(z)\Bigr]

        where w and β serve all outputs from one backward sweep, and 1/c is
        `patch_scale`. β is ∂k/∂a, already summed over j with the coefficients: its
        window sums are the same for all j, so they are taken after that sum, once an
        output.

        Parameters
        ----------
        left, right : Block
            Images z at which to differentiate, and centres x_j.
        dual_coef : Tensor of shape (len(right), n_outputs)
            The coefficients α of the centres.

        Returns
        -------
        weights : Tensor of shape (rows, columns, len(left), len(right))
            w: ∂k/∂S + ∂k/∂Θ at layer 1, where the images meet.
        self_weights : Tensor of shape (rows, columns, len(left), n_outputs)
            β: Σ_j α_jo ∂k/∂a at layer 1, everywhere.
        """
        tangent = self.kind == "ntk"
        left, right = self.readout.meet(left, right)
        inputs = [_first_covariance(self, left, right)]
        for index in range(1, len(self.layers)):
            covariance, theta = _relu(left, right, index - 1, *inputs[-1])
            inputs.append(_next_covariance(self, index, covariance, theta))

        # Below: `d_name` is the derivative of k with respect to `name`.
        top = inputs[-1][0]
        d_out = self.readout.derivative(top)
        d_theta_out = d_out if tangent else None
        # Variances are those of the whole map, wherever the images meet.
        d_variance = top.new_zeros(
            (*self.layers[-1].locations, len(left), dual_coef.shape[1])
        )
        for index in reversed(range(len(self.layers))):
            covariance, theta = inputs.pop()
            cosine = _cosine(left, right, index, covariance)
            sine, k0 = _arc_cosine(cosine)
            d_covariance = d_out * k0
            d_scale = d_out * sine / math.pi
            d_theta = None
            if tangent:
                inverse = _outer(left.inverse_roots[index], right.inverse_roots[index])
                through_k0 = (
                    d_theta_out * theta * _inverse_sine(sine) * inverse / math.pi
                )
                d_covariance = d_covariance + through_k0
                d_scale = d_scale - through_k0 * cosine
                d_theta = d_theta_out * k0
            d_scale = d_scale * right.roots[index][:, :, None, :]
            d_variance[self.readout.left] += (d_scale @ dual_coef) * (
                left.inverse_roots[index][..., None] / 2
            )
            if tangent:
                d_covariance = d_covariance + d_theta  # Θ = window sum of Θ' + S
            if index:
                layer = self.layers[index]
                d_out = window_sum_adjoint(d_covariance, layer)
                d_variance = window_sum_adjoint(d_variance, layer)
                if tangent:
                    d_theta_out = window_sum_adjoint(d_theta, layer)
        blank = left.roots[0] == 0
        return d_covariance.masked_fill_(blank[..., None], 0), d_variance


@dataclass(frozen=True)
class Block(ImageBlock):
    """Transformed patches, and what the recursion needs of one image alone.

    Attributes
    ----------
    roots, inverse_roots : list of Tensor of shape (rows, columns, n)
        The square root of the variance (a or b) at each layer, and its inverse;
        both are 0 where a patch is blank.
    """

    roots: list[torch.Tensor]
    inverse_roots: list[torch.Tensor]


def window_sum(maps, layer):
    """Sum the leading two dimensions of ``maps`` over the windows of ``layer``."""
    (rows, columns), (top, bottom, left, right) = layer.patch, layer.padding
    maps = _sliding_sum(_pad_dim(maps, 0, top, bottom), 0, rows)
    return _sliding_sum(_pad_dim(maps, 1, left, right), 1, columns)


def window_sum_adjoint(maps, layer):
    """Spread each location over its window: the transpose of ``window_sum``."""
    (rows, columns), (top, bottom, left, right) = layer.patch, layer.padding
    before, after = rows - 1 - top, rows - 1 - bottom
    maps = _sliding_sum(_pad_dim(maps, 0, before, after), 0, rows)
    before, after = columns - 1 - left, columns - 1 - right
    return _sliding_sum(_pad_dim(maps, 1, before, after), 1, columns)


def _pad_dim(maps, dim, before, after):
    """Zeros before and after along one of the two leading dimensions."""
    if before == after == 0:
        return maps
    shape = list(maps.shape)
    shape[dim] += before + after
    padded = maps.new_zeros(shape)
    padded.narrow(dim, before, maps.shape[dim]).copy_(maps)
    return padded


def _sliding_sum(maps, dim, size):
    """Sums of ``size`` neighbours along ``dim``, in about log2(size) additions."""
    count = maps.shape[dim] - size + 1
    total, offset, width, power = None, 0, 1, maps
    while True:  # power holds sums of `width` neighbours; size is read bit by bit
        if size & width:
            part = power.narrow(dim, offset, count)
            total = part if total is None else total + part
            offset += width
        if 2 * width > size:
            return total
        length = power.shape[dim] - width
        power = power.narrow(dim, 0, length) + power.narrow(dim, width, length)
        width *= 2


def layer_variances(kernel, patches):
    """The variances a of every layer, a list of (rows, columns, n) tensors."""
    bias = kernel.bias**2
    variance = patches.square().sum(2) / kernel.channels + bias
    variances = [variance]
    for layer in kernel.layers[1:]:
        variance = window_sum(variance, layer) + bias
        variances.append(variance)
    return variances


def _first_covariance(kernel, left, right):
    """S and Θ at layer 1."""
    covariance = left.patches.transpose(-1, -2) @ right.patches
    covariance = covariance / kernel.channels + kernel.bias**2
    return covariance, covariance if kernel.kind == "ntk" else None


def _next_covariance(kernel, index, covariance, theta):
    """S and Θ at layer ``index`` from S' and Θ' of the layer below."""
    layer = kernel.layers[index]
    covariance = window_sum(covariance, layer) + kernel.bias**2
    return covariance, None if theta is None else window_sum(theta, layer) + covariance


def _relu(left, right, index, covariance, theta):
    """S' and Θ' of layer ``index`` from its S and Θ."""
    scale = _outer(left.roots[index], right.roots[index])
    cosine = _cosine(left, right, index, covariance)
    sine, k0 = _arc_cosine(cosine)
    covariance = scale * (sine / math.pi + k0 * cosine)
    return covariance, None if theta is None else k0 * theta


def _outer(left, right):
    """Products of every pair, location by location."""
    return left[..., None] * right[:, :, None, :]


def _cosine(left, right, index, covariance):
    """κ in [-1, 1]; 0 where either patch is blank, 1 where they are parallel."""
    inverse = _outer(left.inverse_roots[index], right.inverse_roots[index])
    cosine = (covariance * inverse).clamp_(-1, 1)
    # arccos turns a rounding of κ near 1 into its square root: an image and its copy
    # would have another kernel than the image with itself.
    gap = ConvolutionalKernel.parallel_gap(cosine.dtype)
    return cosine.masked_fill_(cosine > 1 - gap, 1)


def _arc_cosine(cosine):
    """s = sqrt(1 - κ²) and k0 = 1 - arccos(κ) / π."""
    sine = ((1 - cosine) * (1 + cosine)).sqrt_()
    return sine, 1 - torch.arccos(cosine) / math.pi


def _inverse_sine(sine):
    """1 / s, and 0 where two patches are parallel, or opposite, to rounding.

    The gradient stays bounded there while 1 / s does not: its two large parts
    cancel, and their squares would not. The value 0 is the symmetric one at the
    kink of a patch with itself.
    """
    floor = math.sqrt(2 * ConvolutionalKernel.parallel_gap(sine.dtype)) / 2
    return torch.where(sine > floor, 1 / sine.clamp_min(floor), 0)

r"""Laplace and Gaussian kernels of patches, averaged over locations, on one tile.

With patches :math:`v_u(x)`, patch transform :math:`T` and bandwidth h,

.. math:: k(x, z) = \frac1P \sum_u κ(r_u), \qquad
          r_u = \| T (v_u(x) - v_u(z)) \| / h,

where κ(r) = exp(-r) (Laplace) or exp(-r²/2) (Gaussian). With respect to the patch of z
at u, its gradient is

.. math:: \frac{-κ'(r_u)}{P h^2 r_u} \, T [T v_u(x) - T v_u(z)],

which has the form of the convolutional one: w = -κ'(r) / (P h² r), and β = -w / 2.

Source: the Laplace kernel of recursive feature machines, Radhakrishnan et al.,
arXiv:2212.13881, put on patches.
"""

from dataclasses import dataclass, replace

import torch

from .features import transformed_patches
from .images import ImageBlock, ImageKernel

RADIAL_KINDS = ("laplace", "gaussian")
# Squared distances come out this close to 0 for equal patches, in units of eps times
# their squared lengths.
_EQUAL_ROUNDINGS = 32


@dataclass(frozen=True)
class PatchKernel(ImageKernel):
    """What defines a patch kernel but for the patch transform.

    Attributes
    ----------
    kind : {"laplace", "gaussian"}
        The profile κ.
    layers : tuple of one Layer
        The patches.
    channels : int
        Channels of an image.
    bandwidth : float or None
        The bandwidth h; None where it is yet to be measured.
    """

    bandwidth: float | None = None

    # What the inner products of patches are multiplied by.
    patch_scale = 1.0

    @property
    def unmeasured(self):
        """Whether the bandwidth is yet to be measured."""
        return self.bandwidth is None

    def measured(self, images, weights, transform):
        """The kernel with the weighted median of distances for a bandwidth.

        Distances are those of equal locations of two images, each weighted by the
        product of the images' weights. Equal patches are left out, so that an image
        of weight 2 gives what it gives twice. If all are equal, lengths of patches
        are taken in place of distances; if all of them are 0, the bandwidth is 1.

        Parameters
        ----------
        images : Tensor of shape (n, h, w, c)
            Some images.
        weights : Tensor of shape (n,), float64
            Their weights.
        transform : Tensor of shape (d, d) or None
            The patch transform T; None is the identity.

        Returns
        -------
        PatchKernel
        """
        block = self.prepare_block(images, transform)
        first, second = torch.triu_indices(len(images), len(images), 1)
        squares = _squared_distances(block, block)[:, :, first, second].flatten(0, 1)
        pair_weights = (weights[first] * weights[second]).expand_as(squares)
        if not (squares > 0).any():
            squares = block.squares.flatten(0, 1)
            pair_weights = weights.expand_as(squares)
        positive = squares > 0
        if not positive.any():
            return replace(self, bandwidth=1.0)
        squares, order = squares[positive].sort()
        cumulative = pair_weights[positive][order].cumsum(0)
        middle = torch.searchsorted(cumulative, cumulative[-1:] / 2)
        return replace(self, bandwidth=float(squares[middle].sqrt()))

    def prepare_block(self, images, transform):
        """Patches, transformed, and their squared lengths.

        Parameters
        ----------
        images : Tensor of shape (n, h, w, c)
            The images.
        transform : Tensor of shape (d, d) or None
            The patch transform T; None is the identity.

        Returns
        -------
        PatchBlock

        Raises
        ------
        ValueError
            If squared distances may overflow, which would pass for far apart.
        """
        patches = transformed_patches(images, self.layers[0], transform)
        squares = patches.square().sum(2)
        limits = torch.finfo(squares.dtype)
        if len(images) and not squares.max() <= limits.max / 4:
            raise ValueError(
                f"the kernel overflows {limits.dtype}: X has values up to "
                f"{images.abs().max():.3g}, which are squared and added up over a "
                "patch; scale the images, for instance to [0, 1], or take "
                "dtype='float64'."
            )
        return PatchBlock(patches, squares)

    def diagonal(self, block):
        """k(x, x) of every image of a block, which is κ(0) = 1."""
        return block.patches.new_ones(len(block))

    def value(self, left, right):
        """The kernel between two blocks.

        Parameters
        ----------
        left, right : PatchBlock
            The images of the rows and of the columns.

        Returns
        -------
        Tensor of shape (len(left), len(right))
        """
        left, right = self.readout.meet(left, right)
        distances = self._distances(left, right)
        if self.kind == "laplace":
            profile = distances.neg_().exp_()
        else:
            profile = distances.square_().div_(-2).exp_()
        return self.readout.sum(profile)

    def _distances(self, left, right):
        """r of every pair and location."""
        squares = _squared_distances(left, right)
        return squares.sqrt_().div_(self._divisor(squares))

    def _divisor(self, like):
        """The bandwidth, as far as the dtype has a number for it."""
        limits = torch.finfo(like.dtype)
        return min(max(self.bandwidth, limits.tiny), limits.max)

    def pullback(self, left, right, dual_coef):
        """Gradients of f_o = Σ_j dual_coef[j, o] k(·, x_j) at the left images.

        Parameters
        ----------
        left, right : PatchBlock
            Images z at which to differentiate, and centres x_j.
        dual_coef : Tensor of shape (len(right), n_outputs)
            The coefficients α of the centres.

        Returns
        -------
        weights : Tensor of shape (rows, columns, len(left), len(right))
            w of the module's docstring, where the images meet.
        self_weights : Tensor of shape (rows, columns, len(left), n_outputs)
            β, summed over the centres with the coefficients, everywhere.
        """
        left, right = self.readout.meet(left, right)
        distances = self._distances(left, right)
        equal = distances == 0
        if self.kind == "laplace":
            inverse = 1 / distances.masked_fill(equal, 1)
            weights = distances.neg_().exp_().mul_(inverse)
        else:
            weights = distances.square_().div_(-2).exp_()
        # The gradient is 0 where patches are equal, whatever it is divided by; at the
        # kink of the Laplace kernel that is the symmetric value.
        weights.masked_fill_(equal, 0)
        weights *= self.readout.derivative(weights)
        # One after the other: their square may be more than there are numbers for.
        weights.div_(self._divisor(weights)).div_(self._divisor(weights))
        self_weights = weights.new_zeros(
            (*self.layers[0].locations, len(left), dual_coef.shape[1])
        )
        self_weights[self.readout.left] = (weights @ dual_coef).div_(-2)
        return weights, self_weights


@dataclass(frozen=True)
class PatchBlock(ImageBlock):
    """Transformed patches and their lengths.

    Attributes
    ----------
    squares : Tensor of shape (rows, columns, n)
        Their squared lengths.
    """

    squares: torch.Tensor


def _squared_distances(left, right):
    """‖T (v_u(x) - v_u(z))‖² of every pair and location, exactly 0 if equal."""
    sums = left.squares[..., None] + right.squares[:, :, None, :]
    products = left.patches.transpose(-1, -2) @ right.patches
    squares = sums - 2 * products
    rounding = _EQUAL_ROUNDINGS * torch.finfo(sums.dtype).eps * sums
    return squares.masked_fill_(squares <= rounding, 0)

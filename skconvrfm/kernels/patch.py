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

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

from .._docs import fill_in
from .._scale import SCALE_PARAMETER
from .._typing import KernelMetric, Padding, Pair, Scale
from ..compute.blocks import balanced_blocks
from ..compute.images import take
from ..compute.sampling import MEDIAN_DISTANCES
from ..features.maps import load_rows, transformed_patches
from .base import (
    METRIC_PARAMETER,
    MIRROR_PARAMETER,
    PATCH_PARAMETERS,
    ImageBlock,
    PatchKernel,
)
from .profiles import (
    BANDWIDTH,
    GaussianProfile,
    LaplaceProfile,
    median_distance,
    pair_squares,
)

_PARAMETERS = f"""bandwidth : float or "auto", default="auto"
        Distance of patches at which the kernel has fallen to %(fallen)s. ``"auto"`` is
        the median distance of the patches of two images at one location, under the
        patch metric and measured anew in every round; equal patches are left out, and
        of many images an even draw is taken.
    {PATCH_PARAMETERS}
    {METRIC_PARAMETER}
    pool_grid : int, (int, int) or None, default=None
        Rows and columns of a grid: all pairs of locations in one of its cells are
        compared, and the kernel is the mean over cells, so that what moves within a
        cell stays alike. 1 compares all locations with all; None compares equal
        locations only. With cells of a × b locations it takes a · b times as long, and
        the diagonal is no longer made of ones.
    {MIRROR_PARAMETER}
    {SCALE_PARAMETER}"""


class RadialPatchKernel(PatchKernel):
    """Base of the kernels of distances of patches; ``profile`` and ``slope`` differ."""

    _parameter_constraints: dict = {
        **PatchKernel._parameter_constraints,
        "bandwidth": BANDWIDTH,
    }

    def __init__(
        self,
        bandwidth: float | Literal["auto"] = "auto",
        *,
        patch_size: Pair = 3,
        padding: Padding = "valid",
        metric: KernelMetric = "identity",
        pool_grid: Pair | None = None,
        mirror: bool = False,
        scale: Scale = "auto",
    ) -> None:
        self.bandwidth = bandwidth
        self.patch_size = patch_size
        self.padding = padding
        self.metric = metric
        self.pool_grid = pool_grid
        self.mirror = mirror
        self.scale = scale

    def measured_on(self, images, sample, transform, resources):
        """Return the kernel with the median distance of patches for bandwidth.

        Distances are those at equal locations of the images of a `Sample`.
        """
        images, transform = take(images, sample.rows), resources.tensor(transform)
        layer, n = self.layers[0], len(sample.rows)
        # Evenly spaced rows of locations, where these are more than enough.
        step = math.ceil(layer.n_locations * n * (n - 1) / 2 / MEDIAN_DISTANCES)
        numbers = layer.locations[1] * n * (5 * self.patch_dim + 8 * n)
        together = resources.memory // 8 // (resources.itemsize * numbers)
        every = slice(0, layer.locations[0])
        bands = balanced_blocks(every, together)
        if step > 1:
            bands = [slice(r, r + 1) for r in range(step // 2, every.stop, step)]
        n_rows = sum(band.stop - band.start for band in bands)
        # Made before the bands: small arrays between large ones fragment the heap.
        options = {"dtype": resources.dtype, "device": resources.device}
        shape = n_rows, layer.locations[1]
        distances = torch.empty((*shape, n * (n - 1) // 2), **options)
        squares, start = torch.empty((*shape, n), **options), 0
        for band in bands:
            part, (rows, _) = layer.part(band)
            pixels = load_rows(images, rows, resources)
            block = self._with(layers=(part,)).prepare_block(pixels, transform)
            products = block.patches.transpose(-1, -2) @ block.patches
            at = slice(start, start := start + part.locations[0])
            distances[at] = pair_squares(products, block.squares)
            squares[at] = block.squares
        weights = torch.tensor(
            sample.weights, dtype=torch.float64, device=squares.device
        )
        return self._with(bandwidth_=median_distance(distances, squares, weights))

    def prepare_block(self, images, transform, pixels=False):
        """Return patches, transformed, and their squared lengths, a `PatchBlock`."""
        patches = transformed_patches(images, self.layers[0], transform)
        squares = patches.square().sum(2)
        limits = torch.finfo(squares.dtype)
        # An overflow would pass for a large distance.
        if len(images) and not squares.max() <= limits.max / 4:
            raise ValueError(
                f"the kernel overflows {limits.dtype}: X has values up to "
                f"{images.abs().max():.3g}, which are squared and added up over a "
                "patch; scale the images, for instance to [0, 1], or take "
                "dtype='float64'."
            )
        return PatchBlock(patches, squares)

    def diagonal(self, block):
        """Return k(x, x) of every image of a block, κ(0) = 1; None with a pool."""
        return None if self.is_pooled else block.patches.new_ones(len(block))

    def _pair_value(self, left, right):
        return self.readout.sum(self.profile(self._distances(left, right)))

    def _pair_pullback(self, left, right, dual_coef):
        weights = self.slope(self._distances(left, right))
        weights *= self.readout.derivative(weights)
        # One after the other: their square may overflow.
        weights.div_(self._divisor(weights)).div_(self._divisor(weights))
        shape = *self.layers[0].locations, len(left), dual_coef.shape[1]
        self_weights = weights.new_zeros(shape)
        self_weights[self.readout.left] = (weights @ dual_coef).div_(-2)
        return weights, self_weights

    def _distances(self, left, right):
        """Return r of every pair and location."""
        products = left.patches.transpose(-1, -2) @ right.patches
        return self._scaled_distances(products, left.squares, right.squares)


@fill_in(parameters=_PARAMETERS, fallen="exp(-1/2)")
class PatchGaussian(GaussianProfile, RadialPatchKernel):
    """Gaussian kernel of patches, averaged over locations.

    ``k(x, z)`` is the mean over locations u of ``exp(-r² / 2)``, where ``r`` is the
    length of ``T @ (patch u of x - patch u of z) / bandwidth``. Patches whose squared
    distance is rounding beside their squared lengths count as equal. :class:`Gaussian`
    is the kernel of whole images or maps. Source: Radhakrishnan et al., Science 383
    (2024).

    Parameters
    ----------
    %(parameters)s

    Examples
    --------
    >>> import numpy as np
    >>> from skconvrfm.kernels import PatchGaussian
    >>> PatchGaussian(3.0)(np.random.default_rng(0).normal(size=(5, 8, 8))).shape
    (5, 5)
    """


@fill_in(parameters=_PARAMETERS, fallen="exp(-1)")
class PatchLaplace(LaplaceProfile, RadialPatchKernel):
    """Laplace kernel of patches, averaged over locations.

    ``k(x, z)`` is the mean over locations u of ``exp(-r)``, where ``r`` is the length
    of ``T @ (patch u of x - patch u of z) / bandwidth``. Its tails are heavier than
    those of :class:`PatchGaussian`, so that its bandwidth matters less. Source:
    Radhakrishnan et al., Science 383 (2024).

    Parameters
    ----------
    %(parameters)s

    Examples
    --------
    >>> import numpy as np
    >>> from skconvrfm.kernels import PatchLaplace
    >>> PatchLaplace(3.0)(np.random.default_rng(0).normal(size=(5, 8, 8))).shape
    (5, 5)
    """


@dataclass(frozen=True)
class PatchBlock(ImageBlock):
    """Transformed patches and their squared lengths."""

    squares: torch.Tensor  # (rows, columns, n)

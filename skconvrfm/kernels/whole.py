r"""Kernels of whole images, or of the maps behind feature layers.

Between flat rows φ, with bandwidth h,

.. math:: \text{Gaussian } e^{-r^2/2}, \qquad \text{Laplace } e^{-r}, \qquad
          r = \| \varphi - \varphi' \| / h; \qquad
          \text{Linear } \langle \varphi, \varphi' \rangle.

For :math:`f_o(\varphi) = \sum_j \alpha_{jo} k(\varphi, \varphi_j)` of a distance, the
gradient is

.. math:: \nabla f_o = (w \circ \alpha_o)^\top \Phi
          - \Bigl(\sum_j w_j \alpha_{jo}\Bigr) \varphi, \qquad
          w_j = \frac{-κ'(r_j)}{h^2 r_j},

two products for all outputs and images of a block; where φ itself is among the centres,
its own term vanishes. All products are float64.
"""

from __future__ import annotations

import copy
import math
from typing import Literal

import numpy as np
import torch

from .._docs import fill_in
from .._scale import SCALE_PARAMETER
from .._typing import Scale
from ..compute.blocks import (
    balanced_blocks,
    byte_blocks,
    image_blocks,
    largest_value,
    mirror_upper,
)
from ..compute.images import to_tensor
from .base import BaseKernel, even_sample
from .profiles import (
    BANDWIDTH,
    GaussianProfile,
    LaplaceProfile,
    median_distance,
    pair_squares,
)

BANDWIDTH_IMAGES = 1000  # whose pairs are enough for a median distance
_ROWS = 1024  # of a matrix of all rows with all that are worked on at once
_STRIP_BYTES = 2**22  # of a matrix that become the kernel at once
_PRODUCT_NUMBERS = 2**19  # of the rows whose products are taken at once, in float64

_PARAMETERS = f"""bandwidth : float or "auto", default="auto"
        Distance at which the kernel has fallen to %(fallen)s. ``"auto"`` is the median
        distance of two images, weighted and measured anew in every round; in a fit
        times 1, 2, 4, ... or 32, which `selection` chooses with the ridge of the first
        round (see :ref:`bandwidths` for what this gains).
    {SCALE_PARAMETER}"""


class WholeKernel(BaseKernel):
    """Base of kernels of whole images or maps, as flat rows."""

    def _check_transform(self, transform):
        if transform is not None:
            raise ValueError(
                f"patch_transform does not apply to {type(self).__name__}, a kernel of "
                "whole images; take a patch kernel, such as PatchGaussian, or None."
            )

    def _matrix(self, X, Y, transform, resources):
        others, kernel = X if Y is None else Y, self
        if self.unmeasured:
            sample = even_sample(others, BANDWIDTH_IMAGES)
            kernel = self.measured(others, sample.weights, sample.rows)
        # Tiles with the copies that their distances take.
        largest = min(math.isqrt(resources.memory // 64), _ROWS)
        lengths = squared_lengths(X)
        other_lengths = lengths if Y is None else squared_lengths(Y)
        matrix = np.empty((len(X), len(others)), dtype=resources.numpy_dtype)
        for rows in image_blocks(X, largest):
            for columns in image_blocks(others, largest):
                if Y is None and columns.stop <= rows.start:
                    continue
                products = inner_products(X[rows], others[columns], resources.device)
                pair = lengths[rows], other_lengths[columns]
                pair = (torch.as_tensor(a, device=resources.device) for a in pair)
                with np.errstate(over="ignore"):  # refused below
                    tile = kernel.of_products(products, *pair).cpu().numpy()
                    matrix[rows, columns] = tile
        if Y is None:  # products of matrices round a pair in either order differently
            mirror_upper(matrix)
        if not np.isfinite(matrix).all():
            raise ValueError(
                f"the kernel overflows {matrix.dtype}: X has values up to "
                f"{largest_value(X, X if Y is None else Y):.3g}, whose products are "
                "added up over an image; scale the images, for instance to [0, 1], or "
                "take dtype='float64'."
            )
        return matrix


class RadialKernel(WholeKernel):
    """Base of the kernels of distances; ``profile`` and ``slope`` differ."""

    _parameter_constraints: dict = {
        **WholeKernel._parameter_constraints,
        "bandwidth": BANDWIDTH,
    }

    def __init__(
        self, bandwidth: float | Literal["auto"] = "auto", *, scale: Scale = "auto"
    ) -> None:
        self.bandwidth = bandwidth
        self.scale = scale

    def measured(self, images, weights, some=slice(None)):
        """Return the kernel with the median distance of some images as bandwidth.

        Images are an array with one row each, ``some`` of which have the weights.
        """
        products = inner_products(images, images, torch.device("cpu"), some)
        weights = torch.tensor(weights, dtype=torch.float64, device="cpu")
        kernel = copy.copy(self)
        squares = products.diagonal()
        distances = pair_squares(products, squares)
        kernel.bandwidth_ = median_distance(distances, squares, weights)
        return kernel

    def stretched(self, factor):
        """Return the kernel with so many times the bandwidth."""
        kernel = copy.copy(self)
        kernel.bandwidth_ = self.bandwidth_ * factor
        return kernel

    def value(self, left, right):
        """Return the kernel between float64 rows, a Tensor (len(left), len(right))."""
        return self.profile(self._distances(left, right))

    def of_products(self, products, left, right):
        """Return the kernel from inner products and squared lengths of rows."""
        return self.profile(self._scaled_distances(products, left, right))

    def matrix_of(self, products):
        """Turn inner products ΦΦᵀ of rows, float64, into the kernel, in their place."""
        squares = torch.tensor(np.diagonal(products), device="cpu")
        matrix = torch.from_numpy(products)
        for part in byte_blocks(matrix, _STRIP_BYTES):
            matrix[part] = self.of_products(matrix[part], squares[part], squares)
        return products

    def pullback_weights(self, rows, centres):
        """Return the w of the gradients at float64 rows, (len(rows), len(centres))."""
        return self.slope(self._distances(rows, centres)).div_(self.bandwidth_**2)

    def _distances(self, left, right):
        """Return r of every pair."""
        lengths = left.square().sum(1), right.square().sum(1)
        return self._scaled_distances(left @ right.T, *lengths)


@fill_in(parameters=_PARAMETERS, fallen="exp(-1/2)")
class Gaussian(GaussianProfile, RadialKernel):
    """Gaussian kernel of whole images, or of the maps behind feature layers.

    A nonlinear readout: ``k(x, z) = exp(-r² / 2)``, where ``r`` is the distance of
    images, or of their maps behind :class:`~skconvrfm.features.ConvFeatures`, over the
    bandwidth. :class:`PatchGaussian` carries a patch metric itself.

    Parameters
    ----------
    %(parameters)s

    Examples
    --------
    >>> import numpy as np
    >>> from skconvrfm.kernels import Gaussian
    >>> Gaussian()(np.random.default_rng(0).normal(size=(5, 8, 8))).shape
    (5, 5)
    """


@fill_in(parameters=_PARAMETERS, fallen="exp(-1)")
class Laplace(LaplaceProfile, RadialKernel):
    """Laplace kernel of whole images, or of the maps behind feature layers.

    ``k(x, z) = exp(-r)``, where ``r`` is the distance of images, or of their pooled
    maps, over the bandwidth. Its tails are heavier than those of :class:`Gaussian`,
    which is mostly the more accurate. :class:`PatchLaplace` is that of patches.

    Parameters
    ----------
    %(parameters)s

    Examples
    --------
    >>> import numpy as np
    >>> from skconvrfm.kernels import Laplace
    >>> Laplace(bandwidth=10.0)(np.random.default_rng(0).normal(size=(5, 8, 8))).shape
    (5, 5)
    """


@fill_in(scale=SCALE_PARAMETER)
class Linear(WholeKernel):
    """Inner product of whole images, or of the maps behind feature layers.

    Behind :class:`~skconvrfm.features.ConvFeatures` this is ridge regression on random
    convolutional features, linear in the number of images: it streams from files, and
    sums over images determine it (``partial_fit``). :class:`Gaussian` is a nonlinear
    readout of the same maps, more accurate, of n² pairs or n times `landmarks`.

    Parameters
    ----------
    %(scale)s

    Examples
    --------
    >>> import numpy as np
    >>> from skconvrfm.kernels import Linear
    >>> Linear()(np.random.default_rng(0).normal(size=(5, 8, 8))).shape
    (5, 5)
    """

    is_linear = True

    def __init__(self, *, scale: Scale = "auto") -> None:
        self.scale = scale

    def value(self, left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        """Return the kernel between float64 rows, a Tensor (len(left), len(right))."""
        return left @ right.T

    def of_products(self, products: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        """Return the kernel from inner products, these themselves."""
        return products


def inner_products(left, right, device, some=slice(None)):
    """Return the inner products of some rows of two arrays of images, in float64."""
    pair = [np.asarray(images).reshape(len(images), -1) for images in (left, right)]
    shape = [len(np.arange(len(rows))[some]) for rows in pair]
    total = torch.zeros(shape, dtype=torch.float64, device=device)
    width = pair[0].shape[1]
    for part in balanced_blocks(slice(0, width), _PRODUCT_NUMBERS // max(shape)):
        first, second = (to_tensor(r[some, part], total.dtype, device) for r in pair)
        total.addmm_(first, second.T)
    return total


def squared_lengths(images):
    """Return the squared lengths of images as flat rows, in float64."""
    lengths = np.empty(len(images))
    for part in byte_blocks(images, _STRIP_BYTES):
        rows = np.asarray(images[part]).reshape(part.stop - part.start, -1)
        lengths[part] = np.einsum("ij,ij->i", rows, rows, dtype=np.float64)
    return lengths

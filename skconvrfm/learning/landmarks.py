r"""Landmarks: the rows of a kernel machine as features of a few of them (Nyström).

For M landmarks Z among the training rows X,

.. math:: \Phi = K(X, Z) \, V, \qquad V V^\top = K(Z, Z)^{-1},

has :math:`\Phi \Phi^\top \approx K(X, X)`, exactly where Z are all rows, and the ridge
regression on Φ with coefficients β is the machine :math:`f(x) = k(x, Z) \, V \beta`.
It takes n·M values of the kernel, M² numbers of memory, and M³ operations.

V comes from the Cholesky factor with complete pivoting, which ends where what is left
of the diagonal is rounding: landmarks that the others span have coefficients of zero,
and nothing is added to the diagonal.

Source: Williams and Seeger (2001); Rudi, Carratino and Rosasco (2017) for the machine.
"""

import contextlib
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch
from scipy.linalg import lapack

from ..compute.blocks import image_blocks, mirror_upper
from ..compute.files import FileRows
from ..compute.parallel import run_in_turn
from ..compute.progress import track
from ..compute.tiles import kernel_diagonal, kernel_matrix
from ..kernels.base import PatchKernel
from ..kernels.whole import RadialKernel, inner_products, squared_lengths
from .feature_sums import PRODUCT_ROWS, FeatureRows, ImageRows, Passes

_ROUNDINGS = 16  # of the diagonal, which end the pivots


class LandmarkDesign(Passes):
    """Features Φ of training images, which a temporary file keeps for later passes.

    Parameters
    ----------
    columns : PatchColumns or MapColumns
        The kernel of images with the landmarks.
    data : TrainingSet
        All training images, as ``columns`` see them.
    resources : Resources
    """

    def __init__(self, columns, data, resources):
        self.basis = inverse_root(columns.square(resources), columns.rounding)
        rows = LandmarkRows(columns, self.basis, data.images)
        if resources.run is run_in_turn:  # in this process, which has the file
            with contextlib.suppress(OSError):  # computed at every pass, without room
                rows = replace(rows, values=rows.write(resources))
        super().__init__(rows, data, resources)

    def moments(self, some=None):
        """Return the sums over all or some rows, with the scale of the whole kernel."""
        largest = self._diagonal[slice(None) if some is None else some].max()
        return replace(super().moments(some), largest=float(largest))

    @cached_property
    def _diagonal(self):
        """k(x, x) of every row, (n,)."""
        return self.rows.columns.diagonal(self.data.images, self.resources)

    def coefficients(self, coef):
        """Return the coefficients of the landmarks, Vβ."""
        return self.basis @ coef

    def unexplained(self):
        """Return k(x, x) less the squared length of the features of every row."""
        lengths = [length for _, length in self.map_rows(_squared_lengths)]
        return self._diagonal - np.concatenate(lengths)


@dataclass(frozen=True)
class LandmarkRows(ImageRows):
    """Rows of Φ: images and what makes features of them, or a file of these."""

    columns: "PatchColumns | MapColumns"
    basis: np.ndarray  # V, (M, rank)
    images: object  # (n, h, w, c)
    values: FileRows | None = None

    @property
    def width(self):
        """Number of features."""
        return self.basis.shape[1]

    def write(self, resources):
        """Return the rows in a temporary file."""
        blocks = (block.cpu().numpy() for _, block in self.blocks(resources))
        return FileRows.write(blocks, len(self), self.width)

    def blocks(self, resources, numbers=0):
        """Yield (slice of rows, their values as a tensor), as much as fits.

        ``numbers`` in float64 are needed for each row, beside those of its features.
        """
        numbers = 8 * (4 * len(self.basis) + self.columns.numbers + numbers)
        largest = min(resources.memory // 4 // numbers, PRODUCT_ROWS)
        basis = torch.as_tensor(self.basis, device=resources.device)
        for part in track(image_blocks(self.images, largest), "rows"):
            if self.values is None:
                yield part, self.columns(self.images[part], resources) @ basis
            else:
                values = np.asarray(self.values[part])
                yield part, torch.as_tensor(values, device=resources.device)


@dataclass(frozen=True)
class PatchColumns:
    """A kernel of patches between images and landmarks."""

    kernel: PatchKernel  # bound, with its bandwidth
    landmarks: object  # (M, h, w, c)
    transform: np.ndarray | None
    rounding: float  # of the precision in which it is computed

    numbers = 0  # in float64 that a row takes, beside one for each landmark

    def __call__(self, images, resources):
        """Return K(X, Z), a float64 Tensor (n, M)."""
        pair = np.asarray(images), self.landmarks, self.transform
        matrix = kernel_matrix(self.kernel, *pair, resources)
        return torch.as_tensor(matrix, device=resources.device).double()

    def square(self, resources):
        """Return K(Z, Z), an ndarray (M, M) of float64."""
        pair = self.landmarks, None, self.transform
        return kernel_matrix(self.kernel, *pair, resources).astype(np.float64)

    def diagonal(self, images, resources):
        """Return k(x, x) of images, (n,)."""
        return kernel_diagonal(self.kernel, images, self.transform, resources)


@dataclass(frozen=True)
class MapColumns:
    """A kernel of whole maps between images and landmarks."""

    features: object  # the maps that the kernel sees
    kernel: RadialKernel  # with its bandwidth
    landmarks: np.ndarray  # (M, D), features
    n_whole: int  # images of which all calls see a part, computed alike

    rounding = np.finfo(float).eps  # of the products

    @property
    def numbers(self):
        """Numbers in float64 that a row takes, beside one for each landmark."""
        return self.landmarks.shape[1]

    @cached_property
    def lengths(self):
        """Squared lengths of the landmarks."""
        return squared_lengths(self.landmarks)

    def __call__(self, images, resources):
        """Return K(X, Z), a float64 Tensor (n, M)."""
        rows = FeatureRows(self.features, images, self.n_whole).compute(resources)
        device = resources.device
        products = inner_products(rows, self.landmarks, device)
        lengths = (squared_lengths(rows), self.lengths)
        lengths = (torch.as_tensor(each, device=device) for each in lengths)
        return self.kernel.of_products(products, *lengths)

    def square(self, resources):
        """Return K(Z, Z), an ndarray (M, M) of float64."""
        products = inner_products(self.landmarks, self.landmarks, resources.device)
        matrix = self.kernel.matrix_of(products.cpu().numpy())
        mirror_upper(matrix)
        return matrix

    def diagonal(self, images, resources):
        """Return k(x, x) of images, (n,)."""
        return np.ones(len(images))


def _squared_lengths(n, blocks, device):
    """Return the squared lengths of n rows, (n,)."""
    lengths = np.empty(n)
    for rows, block in blocks:
        lengths[rows] = block.square().sum(1).cpu().numpy()
    return lengths


def inverse_root(matrix, rounding):
    """Return V, (M, rank), with VVᵀ the inverse of a positive semidefinite matrix.

    ``rounding`` is that of its entries, relative to the largest; rows of V are zero for
    what others span up to that. The matrix is overwritten.
    """
    largest = np.diagonal(matrix).max()
    factor, pivots, rank, _ = lapack.dpstrf(
        matrix.T, tol=_ROUNDINGS * rounding * largest, overwrite_a=1
    )
    if largest <= 0:
        return np.zeros((len(matrix), 1))  # blanks only
    vectors = np.zeros((len(matrix), rank))
    inverse, _ = lapack.dtrtri(np.asfortranarray(factor[:rank, :rank]), overwrite_c=1)
    vectors[pivots[:rank] - 1, :rank] = np.triu(inverse)
    return vectors

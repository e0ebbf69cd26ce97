"""Second moments at the outputs of layers, AGOPs, and matrices of filters' spaces."""

import math
from dataclasses import dataclass
from functools import cached_property

import torch

from ..compute.blocks import balanced_blocks

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
    d: int

    @classmethod
    def spanned_by(cls, filters):
        """Return the space spanned by filters of shape (groups, n_filters, d)."""
        groups, n_filters, d = filters.shape
        if n_filters < d:
            basis, triangle = torch.linalg.qr(filters.mT)
            return cls(triangle.mT, basis, basis.sum(1), d)
        return cls(filters, None, filters.new_ones(groups, d), d)

    @cached_property
    def covariance(self):
        """The filter covariance."""
        return self.filters.mT @ self.filters

    def variation(self, matrices, kind, traceless=False):
        """Squared norm of matrices, about their mean for "pearson"; 0 if constant."""
        norm = self._inner(matrices, matrices, "cosine")
        variation = self._inner(matrices, matrices, kind, traceless)
        return variation if variation > CONSTANT * norm else 0.0

    def correlation(self, a, b, kind, traceless=False):
        """Correlation over the entries of all groups, NaN if it is undefined.

        "pearson" takes the mean over entries off first, "cosine" does not; before that
        ``traceless`` takes off the multiple of the identity that has the trace. The
        zeros between groups are no entries: both matrices have them by construction.
        """
        options = kind, traceless
        size = math.sqrt(self.variation(a, *options) * self.variation(b, *options))
        return self._inner(a, b, *options) / size if size > 0 else math.nan

    def _inner(self, a, b, kind, traceless=False):
        """Σ a_ij b_ij of matrices less parts of them, from their own sums and traces.

        A matrix a with trace t and sum s becomes a - t/n I, whose sum is s - t.
        """
        product, groups = float((a * b).sum()), len(self.ones)
        if kind == "cosine" and not traceless:
            return product
        sums = [self._sum(matrices) for matrices in (a, b)]
        if traceless:
            traces = [float(matrices.diagonal(0, -2, -1).sum()) for matrices in (a, b)]
            product -= math.prod(traces) / (groups * self.d)
            sums = [s - t for s, t in zip(sums, traces, strict=True)]
        if kind == "pearson":
            product -= math.prod(sums) / (groups * self.d**2)
        return product

    def _sum(self, matrices):
        """Sum over the entries of d × d matrices."""
        return float(((matrices @ self.ones[:, :, None])[:, :, 0] * self.ones).sum())

    def eigenvalue_correlation(self, a, b):
        """Pearson correlation of the eigenvalues, by rank, of positive matrices."""
        rest = a.new_zeros(len(a), self.d - a.shape[-1])
        values = [torch.linalg.eigvalsh(matrices) for matrices in (a, b)]
        values = [torch.cat([rest, some], 1).flatten() for some in values]
        if any(float(some.max()) == float(some.min()) for some in values):
            return math.nan
        return float(torch.corrcoef(torch.stack(values))[0, 1])

    def eigenvector_overlap(self, a, b):
        """Mean squared cosine of the principal angles of leading eigenspaces.

        They are those of the first tenth of the eigenvectors, at least one of each
        group; of random spaces it is about a tenth.
        """
        n = math.ceil(a.shape[-1] / 10)
        spaces = [torch.linalg.eigh(matrices)[1][..., -n:] for matrices in (a, b)]
        return float((spaces[0].mT @ spaces[1]).square().sum((1, 2)).mean() / n)


def covariance_correlation(filters, others, kind):
    """Correlation of the covariances of two sets of filters of the same shape."""
    space = FilterSpace.spanned_by(torch.cat([filters, others], dim=1))
    first, second = space.filters.chunk(2, dim=1)
    return space.correlation(first.mT @ first, second.mT @ second, kind)

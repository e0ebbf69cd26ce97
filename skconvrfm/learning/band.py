r"""Symmetric matrices in band form, in which a ridge costs next to nothing.

Householder reflections bring A to :math:`A = Q B Q^\top` with B of half-width b: about
:math:`2 n^3` operations, nearly all of them products of matrices, where eigenvectors
take ten times as long. As a block tridiagonal matrix with diagonal blocks :math:`D_i`
and :math:`E_i` below them, :math:`B + \lambda` has the pivots

.. math:: S_0 = D_0 + \lambda, \quad
          S_{i+1} = D_{i+1} + \lambda - E_i S_i^{-1} E_i^\top,

from which systems are solved, and the diagonal blocks of the inverse follow upwards:

.. math:: G_i = S_i^{-1} + F_i^\top G_{i+1} F_i, \quad F_i = E_i S_i^{-1}.

Both take :math:`O(n b^2)` operations for a ridge. Source: Bischof, Lang and Sun (2000)
for the reduction; the compact form of the reflections is that of Schreiber and Van Loan
(1989).
"""

import torch

_WIDTH = 64  # b: wide enough for products of matrices, narrow beside n


class BandForm:
    """The band form of a symmetric positive semidefinite matrix, which is overwritten.

    Parameters
    ----------
    matrix : Tensor of shape (n, n), float64
        The matrix.
    """

    def __init__(self, matrix):
        self._n, self._reflections = len(matrix), []
        self._diagonal, self._below = [], []
        for start in range(0, self._n, _WIDTH):
            end = start + _WIDTH
            self._diagonal.append(matrix[start:end, start:end].clone())
            if end < self._n:
                self._below.append(self._reduce(matrix, start, end))
        #: Largest sum of absolute values of a row of B, no less than any eigenvalue.
        self.bound = float(self._row_sums().max())

    def _reduce(self, matrix, start, end):
        """Reflect rows from ``end`` on, so that columns ``start:end`` are in the band.

        Returns
        -------
        Tensor
            The block of the band below the diagonal one.
        """
        panel, rest = matrix[end:, start:end], matrix[end:, end:]
        packed, factors = torch.geqrf(panel)
        vectors = packed[:, : len(factors)].tril(-1)
        vectors.diagonal().fill_(1)
        # The product of the reflections is I - V T Vᵀ.
        inner = (vectors.T @ vectors).triu(1) * factors[:, None]
        inner.diagonal().fill_(1)
        kept = torch.linalg.solve_triangular(inner, torch.diag(factors), upper=True)
        spread = vectors @ kept
        update = rest @ spread
        update -= vectors @ (spread.T @ update) / 2
        both = torch.hstack([vectors, update]), torch.hstack([update, vectors])
        rest.addmm_(both[0], both[1].T, alpha=-1)
        self._reflections.append((end, vectors, kept))
        return packed[:_WIDTH].triu()

    def _row_sums(self):
        sums = [block.abs().sum(1) for block in self._diagonal]
        for index, block in enumerate(self._below):
            sums[index] += block.abs().sum(0)
            sums[index + 1] += block.abs().sum(1)
        return torch.cat(sums)

    def rotate(self, right):
        """Return Qᵀ R for columns R (n, c)."""
        right = right.clone()
        for start, vectors, kept in self._reflections:
            right[start:] -= vectors @ (kept.T @ (vectors.T @ right[start:]))
        return right

    def rotate_back(self, right):
        """Return Q R for columns R (n, c)."""
        right = right.clone()
        for start, vectors, kept in reversed(self._reflections):
            right[start:] -= vectors @ (kept @ (vectors.T @ right[start:]))
        return right

    def above_rounding(self, ridges):
        """Return ridges as a tensor, each doubled while it is rounding of A.

        A kernel matrix that was computed in float32 has eigenvalues below zero; the
        half of each ridge that is returned makes all of them positive.
        """
        least = torch.finfo(torch.float64).eps * self.bound
        ridges = self._diagonal[0].new_tensor(ridges).clamp(min=least)
        if self._is_definite(ridges.min() / 2):
            return ridges
        for index in range(len(ridges)):
            while not self._is_definite(ridges[index] / 2):
                ridges[index] *= 2
        return ridges

    def _is_definite(self, ridge):
        return not self._factor(ridge.reshape(1))[2]

    def solve(self, ridges, right):
        """Return (B + λ)⁻¹ R and the trace of (B + λ)⁻¹ for several ridges λ.

        Parameters
        ----------
        ridges : sequence of float
            Ridges, which `above_rounding` may raise.
        right : Tensor of shape (n, c)
            Columns R.

        Returns
        -------
        ridges : Tensor of shape (n_ridges,)
        solutions : Tensor of shape (n_ridges, n, c)
        traces : Tensor of shape (n_ridges,)
        """
        ridges = self.above_rounding(ridges)
        factors, links, _ = self._factor(ridges)
        parts = [right[:_WIDTH].expand(len(ridges), -1, -1)]
        for index, link in enumerate(links, 1):
            own = right[index * _WIDTH : (index + 1) * _WIDTH]
            parts.append(own - link @ parts[-1])
        parts = [
            torch.cholesky_solve(*pair) for pair in zip(parts, factors, strict=True)
        ]
        inverse = torch.cholesky_inverse(factors[-1])
        traces = _traces(inverse)
        for index in reversed(range(len(links))):
            link = links[index]
            parts[index] -= link.mT @ parts[index + 1]
            inverse = torch.cholesky_inverse(factors[index]) + link.mT @ inverse @ link
            traces += _traces(inverse)
        return ridges, torch.cat(parts, 1), traces

    def _factor(self, ridges):
        """Factor B + λ for several ridges.

        Returns
        -------
        factors : list of Tensor of shape (n_ridges, b, b)
            Cholesky factors of the pivots S.
        links : list of Tensor of shape (n_ridges, b, b)
            F of all pivots but the last.
        failed : bool
            Whether one of the matrices is not positive definite.
        """
        factors, links, carried, failed = [], [], 0.0, False
        shift = ridges[:, None, None]
        for index, block in enumerate(self._diagonal):
            eye = torch.eye(len(block), dtype=block.dtype, device=block.device)
            factor, info = torch.linalg.cholesky_ex(block + shift * eye - carried)
            if bool(info.any()):
                failed = True
                break
            factors.append(factor)
            if index < len(self._below):
                below = self._below[index]
                turned = below.T.expand(len(ridges), -1, -1)
                links.append(torch.cholesky_solve(turned, factor).mT)
                carried = links[-1] @ below.T
        return factors, links, failed


def _traces(matrices):
    return matrices.diagonal(dim1=-2, dim2=-1).sum(-1)

r"""Ridge regression on D features, for a whole path of ridges, from sums over rows.

With features Φ and K = ΦΦᵀ, the machine of `ridge` comes from the D × D matrix :math:`A
= \tilde\Phi^\top W \tilde\Phi`, where features are centred at their weighted mean: the
coefficients are :math:`(A + \lambda)^{-1} \tilde\Phi^\top W \tilde y`, the degrees of
freedom :math:`1 + \operatorname{tr} A (A + \lambda)^{-1}`, of which the one is the
intercept's, and :math:`H_{ii} = w_i (1 / \sum w + \tilde\varphi_i^\top (A +
\lambda)^{-1} \tilde\varphi_i)`.

Groups g that are left out have the residuals :math:`(I - H_{gg})^{-1} r_g`, with the
training residuals r. A group of more rows than features is taken off the sums, and what
is left is solved anew.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..compute.blocks import image_blocks
from .covariance import Covariance
from .ridge import EPS, GROUP_ROWS, BasePath, group_batches, left_share, solve_left

_SHIFT_ROWS = 512  # of a matrix that are corrected at once


@dataclass(frozen=True)
class Moments:
    r"""Sums over rows that a ridge regression on features needs.

    Those of two sets of rows add up to those of both, in any order: :math:`\Sigma =
    \Sigma_1 + \Sigma_2 + \frac{w_1 w_2}{w_1 + w_2} \delta\delta^\top` with the
    difference δ of the means (Chan, Golub and LeVeque 1983).
    """

    n_rows: int  # distinct
    weight: float  # Σ w
    mean: np.ndarray  # (D,), weighted, μ
    target_mean: np.ndarray  # (n_outputs,), ȳ
    gram: np.ndarray  # (D, D), Σ w (φ - μ)(φ - μ)ᵀ
    cross: np.ndarray  # (D, n_outputs), Σ w (φ - μ)(y - ȳ)ᵀ
    spread: np.ndarray  # (n_outputs,), Σ w (y - ȳ)², with the scatter of copies
    largest: float  # squared length of a row, the scale of the ridges

    def __add__(self, other):
        """Return the moments of the rows of both, as if no row were in both."""
        weight = self.weight + other.weight
        share = other.weight / weight
        factor, shift = self.weight * share, other.mean - self.mean
        target_shift = other.target_mean - self.target_mean
        gram = self.gram + other.gram
        for rows in image_blocks(gram, _SHIFT_ROWS):
            gram[rows] += np.outer(factor * shift[rows], shift)
        cross = self.cross + other.cross + np.outer(factor * shift, target_shift)
        spread = self.spread + other.spread + factor * target_shift**2
        largest = max(self.largest, other.largest)
        n_rows = self.n_rows + other.n_rows
        means = self.mean + share * shift, self.target_mean + share * target_shift
        return Moments(n_rows, weight, *means, gram, cross, spread, largest)

    def without(self, part):
        """Return the moments of all rows but a part of them."""
        return self + replace(part.scaled(-1), n_rows=-part.n_rows)

    def with_scatter(self, scatter):
        """Return the moments with the scatter of copies, (n_rows, n_outputs)."""
        return replace(self, spread=self.spread + scatter.sum(0))

    def scaled(self, factor):
        """Return the moments with all weights times a factor."""
        if factor == 1:
            return self
        names = "weight", "gram", "cross", "spread"
        return replace(self, **{name: factor * getattr(self, name) for name in names})


class PrimalRidgePath(BasePath):
    """The regressions of `RidgePath` from the `Moments` of D features.

    The `Passes` make other passes over the features of single rows. Targets, weights,
    scatter and groups, see `RidgePath`, are of these rows, which may be some of those
    in the moments.
    """

    def __init__(
        self, moments, design, targets, weights, alphas, device, scatter, groups=None
    ):
        super().__init__(moments.largest, targets, weights, alphas, scatter)
        self._moments, self._design, self._n_rows = moments, design, moments.n_rows
        self._device, self._groups = device, groups
        self._total, self._spread = moments.weight, float(moments.spread.sum())
        self._mean, self._target_mean = moments.mean, moments.target_mean
        self._cross = torch.tensor(moments.cross, device=device) / math.sqrt(self.scale)
        self._decompose(self._cross)

    def _matrix(self):
        """Return the Gram matrix in units of the scale."""
        gram = torch.tensor(self._moments.gram, device=self._device)
        return gram.div_(self.scale)

    def loo_loss(self):
        """Return the same as `RidgePath.loo_loss`, in one pass over the features."""
        total = self._total_scatter
        for rows, (residuals, _) in self._left_out_parts(self.alphas):
            total = total + self._weights[rows] @ (residuals**2).sum(-1).T
        return total / self._weights.sum()

    def _left_out(self, alpha):
        """Return the same as for `RidgePath`, by one pass."""
        residuals = np.empty(self._targets.shape)
        inflation = np.empty(len(residuals))
        for rows, found in self._left_out_parts([alpha]):
            [residuals[rows]], [inflation[rows]] = found
        return residuals, inflation

    def _left_out_parts(self, alphas):
        """Yield (rows, (residuals where they are left out, their inflation)).

        Shapes are (n_alphas, n, n_outputs) and (n_alphas, n).
        """
        if self._groups is not None:
            yield from self._left_out_groups(alphas)
            return
        for rows, (predictions, hats) in self._pass(alphas):
            kept = left_share(1 - self._weights[rows] * hats, self._n_rows)
            residuals = (self._targets[rows] - predictions) / kept[..., None]
            yield rows, (residuals, 1 / kept)

    def _left_out_groups(self, alphas):
        """Yield the same for groups, each by the machine without it."""
        large, passes = [], []
        machine = self._mean, *self._readouts(alphas)
        for rows in group_batches(self._groups, GROUP_ROWS):
            if rows.shape[1] > len(self._mean):
                large.extend(rows)
                continue
            targets = self._targets[rows] - self._target_mean
            function = GroupPass(targets, self._weights[rows], *machine)
            passes.append((rows.ravel(), function))
        yield from self._design.map_parts(passes)
        for rows in large:
            rest = self._moments.without(self._design.moments(rows))
            options = self._targets, self._weights, self.alphas, self._device
            path = PrimalRidgePath(rest, self._design, *options, self._scatter)
            for part, (predictions, hats) in path._pass(alphas, rows):
                residuals = self._targets[part] - predictions
                yield part, (residuals, 1 + self._weights[part] * hats)

    def _covariance(self, alpha):
        """Return the `Covariance` at one ridge."""
        vectors, [weights] = self._inverses([alpha])
        root = (vectors * (weights / self.scale).sqrt()).cpu().numpy()
        learned, offsets = self._design.coefficients(root), root.T @ self._mean
        basis, prior = self._design.basis, 1 / self._ridge(alpha)
        if basis is None:
            basis, prior = learned[:, :0], 0.0
        explained = math.sqrt(prior) * basis
        return Covariance.of(explained, learned, offsets, prior, 1 / self._total)

    def _unexplained(self, alpha):
        return self._design.unexplained() / self._ridge(alpha)

    def _ridge(self, alpha):
        """Return the ridge for features as they are given."""
        return self.scale * float(self._band.above_rounding([alpha])[0])

    def _readouts(self, alphas):
        """Return vectors, and for features along them coefficients and the root of H.

        Their shapes are (D, D), (n_alphas, D, n_outputs) and (n_alphas, 1 + D).
        """
        vectors, inverses = self._inverses(alphas)
        coefs = inverses[..., None] * (vectors.T @ self._cross) / math.sqrt(self.scale)
        base = inverses.new_full((len(alphas), 1), 1 / self._total)
        roots = torch.hstack([base, inverses / self.scale]).sqrt()
        return tuple(array.cpu().numpy() for array in (vectors, coefs, roots))

    def _gcv(self, alphas):
        ridges, solutions, traces = self._band.solve(alphas, self._rotated)
        explained = (self._rotated * solutions).sum((1, 2))
        explained += ridges * solutions.square().sum((1, 2))
        total = self._total
        losses = (self._spread - explained.cpu().numpy()) / total
        # Rounding must not make it zero.
        losses = np.maximum(losses, EPS * self._spread / total)
        freedom = 1 + len(self._mean) - (ridges * traces).cpu().numpy()
        return losses / left_share(1 - freedom / self._n_rows, self._n_rows) ** 2

    def _given(self, coef):
        return self._design.coefficients(coef)

    def _machines(self, alphas):
        """Return coefficients for the features as they are given, and intercepts."""
        _, solutions, _ = self._band.solve(alphas, self._rotated)
        coefs = self._rotated_back(solutions) / math.sqrt(self.scale)
        coefs = coefs.cpu().numpy()
        return coefs, self._target_mean - self._mean @ coefs

    def _pass(self, alphas, rows=None):
        """Return pairs (rows, their predictions and H_ii / w_i), see `RowPass`."""
        vectors, inverses = self._inverses(alphas)
        parts = vectors.cpu().numpy(), (inverses / self.scale).cpu().numpy()
        base = 1 / self._total
        function = RowPass(self._mean, *parts, base, *self._machines(alphas))
        return self._design.map_rows(function, rows)


@dataclass(frozen=True)
class RowPass:
    """Predictions and leverages of rows in a pass over the features; picklable."""

    mean: np.ndarray  # (D,), μ
    vectors: np.ndarray  # (D, D), V of the inverse V diag(u) Vᵀ
    inverses: np.ndarray  # (n_alphas, D), u, for features as given
    base: float  # 1 / Σ w, the share of the intercept
    coefs: np.ndarray  # (n_alphas, D, n_outputs)
    intercepts: np.ndarray  # (n_alphas, n_outputs)

    def __call__(self, n, blocks, device):
        """Return predictions (n_alphas, n, n_outputs) and H_ii / w_i (n_alphas, n)."""
        mean, vectors, inverses, coefs = (
            torch.as_tensor(array, device=device)
            for array in (self.mean, self.vectors, self.inverses, self.coefs)
        )
        # Made before the blocks: small arrays between large ones fragment the heap.
        predictions = np.empty((len(coefs), n, coefs.shape[2]))
        hats = np.empty((len(coefs), n))
        for rows, block in blocks:
            predictions[:, rows] = (block @ coefs).cpu().numpy()
            squares = ((block - mean) @ vectors).square_()
            hats[:, rows] = (inverses @ squares.T).cpu().numpy()
        return predictions + self.intercepts[:, None], hats + self.base


@dataclass(frozen=True)
class GroupPass:
    """Residuals of groups that are left out, in a pass over their rows; picklable."""

    targets: np.ndarray  # (n_groups, size, n_outputs), less their mean
    weights: np.ndarray  # (n_groups, size)
    mean: np.ndarray  # (D,), μ
    vectors: np.ndarray  # (D, D), V of the inverse V diag(u) Vᵀ
    coefs: np.ndarray  # (n_alphas, D, n_outputs), along the vectors
    roots: np.ndarray  # (n_alphas, 1 + D), H = W^½ Ψ (Ψ W^½)ᵀ for Ψ = [1, φ] roots

    def __call__(self, n, blocks, device):
        """Return residuals (n_alphas, n, n_outputs) and inflations (n_alphas, n)."""
        targets, weights, mean, vectors, coefs, roots = (
            torch.as_tensor(array, device=device) for array in vars(self).values()
        )
        rows = mean.new_ones(n, 1 + len(mean))
        for part, block in blocks:
            rows[part, 1:] = (block - mean) @ vectors
        rows = rows.reshape(*weights.shape, -1)
        weight_roots = weights.sqrt()[..., None]
        residuals, inflations = [], []
        for coef, root in zip(coefs, roots, strict=True):
            hat = rows * (weight_roots * root)
            left = -(hat @ hat.mT)
            left.diagonal(dim1=1, dim2=2).add_(1)
            own = weight_roots * (targets - rows[..., 1:] @ coef)
            own, inflation = solve_left(left, own)
            residuals.append(own / weight_roots)
            inflations.append(inflation)
        return (
            torch.stack(residuals).reshape(len(coefs), n, -1).cpu().numpy(),
            torch.stack(inflations).reshape(len(coefs), n).cpu().numpy(),
        )

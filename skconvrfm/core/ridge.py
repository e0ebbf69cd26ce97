r"""Ridge regression for a whole path of ridges from one decomposition.

For sample weights W = diag(w) and an intercept b that is not penalised,

.. math:: \min_{\alpha, b} \sum_i w_i \|y_i - (K\alpha)_i - b\|^2
          + \lambda \operatorname{tr} \alpha^\top K \alpha

is solved by :math:`\alpha = P y` with :math:`A = K + \lambda W^{-1}` and
:math:`P = A^{-1} - A^{-1}1 1^\top A^{-1} / (1^\top A^{-1} 1)`; and the training
residuals are :math:`\lambda W^{-1} \alpha`, the leave-one-out residuals
:math:`\alpha_i / P_{ii}`, the degrees of freedom
:math:`n - \lambda \sum_i P_{ii} / w_i`. All come from the eigenvectors of
:math:`W^{1/2} K W^{1/2}`, for every ridge.

With D features Φ and K = ΦΦᵀ, the same machine comes from the D × D matrix
:math:`A = \tilde\Phi^\top W \tilde\Phi`, where features are centred at their weighted
mean: the coefficients are :math:`(A + \lambda)^{-1} \tilde\Phi^\top W \tilde y`, the
degrees of freedom :math:`1 + \operatorname{tr} A (A + \lambda)^{-1}`, of which the one
is the intercept's, and :math:`H_{ii} = w_i (1 / \sum w + \tilde\varphi_i^\top
(A + \lambda)^{-1} \tilde\varphi_i)`. The centred n × n matrix has a null direction, the
constant; neither form leaves it in a trace, where it would make GCV vanish at tiny
ridges.

Source: Golub, Heath and Wahba (1979) for GCV; the leave-one-out formula with
an intercept is that of least-squares support vector machines (Cawley 2006).
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import scipy.linalg
import torch

from .blocks import image_blocks

# Rows of a matrix that are corrected at once.
_SHIFT_ROWS = 512
# What is left of 1 - H_ii, or of the mean of these, where it is rounding.
_EPS = np.finfo(float).eps


@dataclass(frozen=True)
class RidgeSolution:
    """The machine at one ridge, and what it would say of left-out rows.

    Attributes
    ----------
    alpha : float
        The ridge λ.
    coef : ndarray of shape (n, n_outputs) or (D, n_outputs)
        The coefficients, for the kernel matrix or the features as they were given.
    intercept : ndarray of shape (n_outputs,)
        The intercept.
    gcv : float
        Generalised cross-validation, summed over outputs.
    loo_loss : float
        Weighted mean of the squared leave-one-out residuals, summed over outputs.
    loo_prediction : ndarray of shape (n, n_outputs)
        Prediction of each row by the machine fitted without it.
    held_out_prediction : ndarray of shape (n, n_outputs)
        Prediction of each row by the machine fitted with one of its observations less
        (or without it, if it is less than one): equal for weights and repeated rows.
    """

    alpha: float
    coef: np.ndarray
    intercept: np.ndarray
    gcv: float
    loo_loss: float
    loo_prediction: np.ndarray
    held_out_prediction: np.ndarray


@dataclass(frozen=True)
class _DualRidge:
    """One ridge of a `RidgePath`: α, the intercept, diag P, and α_i / P_ii."""

    coef: torch.Tensor
    intercept: torch.Tensor
    diagonal: torch.Tensor
    loo_residual: torch.Tensor


class _Path:
    """What the paths of both sides share: the criterion, and the least ridge.

    They have ``alphas``, the eigenvalues, and ``_gcv`` of a ridge.
    """

    def gcv(self):
        """The criterion GCV at every ridge, an ndarray of shape (n_alphas,).

        ``Σw Σ w_i r_i² / (Σw - tr H)²``, without forming anything of size n².
        """
        return np.array([self._gcv(alpha) for alpha in self.alphas])

    def _at_least_rounding(self, alpha):
        """A ridge; where it is rounding beside the eigenvalues, as much as that."""
        eps = torch.finfo(self._eigenvalues.dtype).eps
        return max(alpha, eps * float(self._eigenvalues.max()))


class RidgePath(_Path):
    """The ridge regressions of one kernel matrix, for every ridge at once.

    Parameters
    ----------
    kernel_matrix : ndarray of shape (n, n)
        The kernel matrix K; its scale is set by its largest diagonal entry, so
        that ridges mean the same for every kernel.
    targets : ndarray of shape (n, n_outputs)
        The targets Y.
    weights : ndarray of shape (n,)
        The sample weights w, all positive. A row of weight 2 counts as two rows.
    alphas : ndarray of shape (n_alphas,)
        The ridges λ, in units of the largest diagonal entry of K.
    device : torch.device
        Where the decomposition is computed, in float64.
    counts : ndarray of shape (n,), default=None
        How many observations each row stands for; None is the weights. They differ
        where classes have weights.
    """

    def __init__(self, kernel_matrix, targets, weights, alphas, device, counts=None):
        largest = float(np.diagonal(kernel_matrix).max())
        # A kernel of blanks only is zero: leave it so, rather than divide by it.
        self.scale = largest if largest > 0 else 1.0
        self.alphas = alphas
        self._targets = torch.tensor(targets, dtype=torch.float64, device=device)
        self._weights = torch.tensor(weights, dtype=torch.float64, device=device)
        counts = weights if counts is None else counts
        self._counts = torch.tensor(counts, dtype=torch.float64, device=device)
        root = self._weights.sqrt()
        scaled = torch.tensor(kernel_matrix, dtype=torch.float64, device=device)
        scaled *= root[:, None] * root / self.scale
        eigenvalues, self._vectors = eigh(scaled)
        self._eigenvalues = eigenvalues.clamp_(min=0)
        self._ones = self._vectors.T @ root
        self._rotated = self._vectors.T @ (root[:, None] * self._targets)

    def loo_loss(self):
        """The mean squared leave-one-out residual at every ridge."""
        losses = [self._loo_loss(self._at(alpha).loo_residual) for alpha in self.alphas]
        return np.array(losses)

    def coefficients(self):
        """All ridges' coefficients side by side, and their intercepts.

        Returns
        -------
        coef : ndarray of shape (n, n_alphas * n_outputs)
            The coefficients.
        intercepts : ndarray of shape (n_alphas * n_outputs,)
            The intercepts.
        """
        ridges = [self._at(alpha) for alpha in self.alphas]
        coef = torch.cat([ridge.coef for ridge in ridges], 1)
        return self._given(coef), torch.cat([r.intercept for r in ridges]).cpu().numpy()

    def solve(self, alpha):
        """The machine at the ridge ``alpha``, a `RidgeSolution`."""
        ridge, effective = self._at(alpha), self._at_least_rounding(alpha)
        residual = effective * ridge.coef / self._weights[:, None]
        # Taking a share of the weight w_i away divides the residual by 1 - share H_ii.
        kept = effective * ridge.diagonal / self._weights  # 1 - H_ii
        share = 1 / self._counts.clamp_min(1)
        held_out_residual = residual / (1 - share * (1 - kept))[:, None]
        return RidgeSolution(
            alpha=float(alpha),
            coef=self._given(ridge.coef),
            intercept=ridge.intercept.cpu().numpy(),
            gcv=self._gcv(alpha),
            loo_loss=self._loo_loss(ridge.loo_residual),
            loo_prediction=(self._targets - ridge.loo_residual).cpu().numpy(),
            held_out_prediction=(self._targets - held_out_residual).cpu().numpy(),
        )

    def _at(self, alpha):
        """The dual coefficients at one ridge, for the scaled kernel matrix."""
        inverse, intercept, remainder = self._reduce(alpha)
        root = self._weights.sqrt()[:, None]
        coef = root * (self._vectors @ (inverse[:, None] * remainder))
        projected_ones = root[:, 0] * (self._vectors @ (inverse * self._ones))
        diagonal = self._weights * (self._vectors.square() @ inverse)
        diagonal -= projected_ones.square() / (self._ones.square() @ inverse)
        # 1 - H_ii = λ P_ii / w_i, which rounding must not make zero.
        least = _EPS * self._weights / self._at_least_rounding(alpha)
        diagonal = torch.maximum(diagonal, least)
        return _DualRidge(coef, intercept, diagonal, coef / diagonal[:, None])

    def _given(self, coef):
        """Coefficients for the kernel matrix as it was given."""
        return (coef / self.scale).cpu().numpy()

    def _loo_loss(self, loo_residual):
        loss = (self._weights @ loo_residual.square()).sum() / self._weights.sum()
        return float(loss)

    def _reduce(self, alpha):
        """(Λ + λ)⁻¹, the intercept, and the rotated targets less the intercept."""
        inverse = 1 / (self._eigenvalues + self._at_least_rounding(alpha))
        weighted = self._ones * inverse
        intercept = (weighted @ self._rotated) / (weighted @ self._ones)
        return inverse, intercept, self._rotated - self._ones[:, None] * intercept

    def _residual_freedom(self, alpha, inverse):
        """Σw - tr H, the degrees of freedom that are left to the residuals."""
        taken = (self._ones * inverse).square().sum() / (self._ones.square() @ inverse)
        rank = len(self._eigenvalues)
        return self._weights.sum() - rank + alpha * (inverse.sum() - taken)

    def _gcv(self, alpha):
        inverse, _, remainder = self._reduce(alpha)
        alpha, total = self._at_least_rounding(alpha), self._weights.sum()
        loss = (alpha * inverse[:, None] * remainder).square().sum() / total
        left = self._residual_freedom(alpha, inverse) / total
        return float(loss / left.clamp_min(_EPS) ** 2)


def eigh(matrix):
    """Eigenvalues and eigenvectors of a symmetric matrix, which is overwritten."""
    if matrix.device.type != "cpu":
        return torch.linalg.eigh(matrix)
    # On a CPU, divide and conquer in LAPACK takes two thirds of torch's time.
    values, vectors = scipy.linalg.eigh(
        matrix.numpy().T, overwrite_a=True, check_finite=False, driver="evd"
    )
    return torch.from_numpy(values), torch.from_numpy(vectors)


@dataclass(frozen=True)
class Moments:
    r"""What a ridge regression needs to know of features, summed over rows.

    Those of two sets of rows add up to those of both, in any order:
    :math:`\Sigma = \Sigma_1 + \Sigma_2 + \frac{w_1 w_2}{w_1 + w_2} \delta\delta^\top`
    with the difference δ of the means (Chan, Golub and LeVeque 1983).

    Attributes
    ----------
    weight : float
        Σ w.
    mean : ndarray of shape (D,)
        The weighted mean μ.
    target_mean : ndarray of shape (n_outputs,)
        That of the targets, ȳ.
    gram : ndarray of shape (D, D)
        Σ w (φ - μ)(φ - μ)ᵀ.
    cross : ndarray of shape (D, n_outputs)
        Σ w (φ - μ)(y - ȳ)ᵀ.
    spread : ndarray of shape (n_outputs,)
        Σ w (y - ȳ)².
    largest : float
        The largest squared length of a row, which sets the scale of the ridges.
    """

    weight: float
    mean: np.ndarray
    target_mean: np.ndarray
    gram: np.ndarray
    cross: np.ndarray
    spread: np.ndarray
    largest: float

    def __add__(self, other):
        """The moments of the rows of both."""
        weight = self.weight + other.weight
        share = other.weight / weight
        factor = self.weight * share
        shift = other.mean - self.mean
        target_shift = other.target_mean - self.target_mean
        gram = self.gram + other.gram
        for rows in image_blocks(gram, _SHIFT_ROWS):
            gram[rows] += np.outer(factor * shift[rows], shift)
        return Moments(
            weight=weight,
            mean=self.mean + share * shift,
            target_mean=self.target_mean + share * target_shift,
            gram=gram,
            cross=self.cross + other.cross + np.outer(factor * shift, target_shift),
            spread=self.spread + other.spread + factor * target_shift**2,
            largest=max(self.largest, other.largest),
        )

    def scaled(self, factor):
        """The moments with all weights times a factor."""
        if factor == 1:
            return self
        sums = {
            name: factor * getattr(self, name)
            for name in ("weight", "gram", "cross", "spread")
        }
        return replace(self, **sums)


class PrimalRidgePath(_Path):
    """The same regressions from D features, where they are fewer than the rows.

    Parameters
    ----------
    moments : Moments
        Sums over all rows.
    map_rows : callable
        ``map_rows(function)`` → pairs (slice of rows, ``function(n, blocks, device)``
        of their features), anew at every call: what concerns single rows takes another
        pass over the features.
    targets, weights, counts
        See `RidgePath`; of these rows, which may be some of those in the sums.
    alphas, device
        See `RidgePath`.
    """

    def __init__(
        self, moments, map_rows, targets, weights, alphas, device, counts=None
    ):
        self.scale = moments.largest if moments.largest > 0 else 1.0
        self.alphas = alphas
        self._map_rows, self._targets, self._weights = map_rows, targets, weights
        self._counts = weights if counts is None else counts
        self._total, self._spread = moments.weight, float(moments.spread.sum())
        self._mean, self._target_mean = moments.mean, moments.target_mean
        gram = torch.tensor(moments.gram, device=device)
        eigenvalues, self._vectors = eigh(gram.div_(self.scale))
        self._eigenvalues = eigenvalues.clamp_(min=0)
        cross = torch.tensor(moments.cross, device=device) / math.sqrt(self.scale)
        self._projections = self._vectors.T @ cross

    def loo_loss(self):
        """As `RidgePath.loo_loss`, in one pass over the features."""
        total = 0.0
        for rows, (predictions, hats) in self._pass(self.alphas):
            residual = self._targets[rows] - predictions
            loo = (residual / _kept(self._weights[rows] * hats)[..., None]) ** 2
            total = total + self._weights[rows] @ loo.sum(-1).T
        return total / self._weights.sum()

    def coefficients(self):
        """As `RidgePath.coefficients`, for the features."""
        pairs = [self._coefficients(alpha) for alpha in self.alphas]
        coefs, intercepts = zip(*pairs, strict=True)
        return np.hstack(coefs), np.concatenate(intercepts)

    def solve(self, alpha):
        """The machine at the ridge ``alpha``, a `RidgeSolution`; takes one pass."""
        passed = [row for _, row in self._pass([alpha])]
        predictions, hats = map(np.hstack, zip(*passed, strict=True))
        residual, hats = self._targets - predictions[0], self._weights * hats[0]
        share = 1 / np.maximum(self._counts, 1)
        held_out_residual = residual / _kept(share * hats)[:, None]
        loo_residual = residual / _kept(hats)[:, None]
        loss = (self._weights @ loo_residual**2).sum() / self._weights.sum()
        coef, intercept = self._coefficients(alpha)
        return RidgeSolution(
            alpha=float(alpha),
            coef=coef,
            intercept=intercept,
            gcv=self._gcv(alpha),
            loo_loss=float(loss),
            loo_prediction=self._targets - loo_residual,
            held_out_prediction=self._targets - held_out_residual,
        )

    def _gcv(self, alpha):
        alpha, total = self._at_least_rounding(alpha), self._total
        inverse = 1 / (self._eigenvalues + alpha)
        explained = (1 + alpha * inverse) * inverse / total
        loss = self._spread / total - float(
            explained @ self._projections.square().sum(1)
        )
        left = 1 - (1 + float(self._eigenvalues @ inverse)) / total
        return max(loss, 0.0) / max(left, _EPS) ** 2

    def _coefficients(self, alpha):
        """Coefficients for the features as they are given, and the intercept."""
        inverse = 1 / (self._eigenvalues + self._at_least_rounding(alpha))
        coef = self._vectors @ (inverse[:, None] * self._projections)
        coef = (coef / math.sqrt(self.scale)).cpu().numpy()
        return coef, self._target_mean - self._mean @ coef

    def _pass(self, alphas):
        """Pairs (slice of rows, their predictions and H_ii / w_i), see `RowPass`."""
        coefs, intercepts = zip(*map(self._coefficients, alphas), strict=True)
        inverses = [
            1 / (self._eigenvalues + self._at_least_rounding(alpha)) / self.scale
            for alpha in alphas
        ]
        return self._map_rows(
            RowPass(
                mean=self._mean,
                vectors=self._vectors.cpu().numpy(),
                inverses=torch.stack(inverses).cpu().numpy(),
                base=1 / self._total,
                coefs=np.stack(coefs),
                intercepts=np.stack(intercepts),
            )
        )


@dataclass(frozen=True)
class RowPass:
    """What a pass over the features computes of each row; picklable.

    Attributes
    ----------
    mean : ndarray of shape (D,)
        The mean μ of the features.
    vectors : ndarray of shape (D, D)
        The eigenvectors of their Gram matrix.
    inverses : ndarray of shape (n_alphas, D)
        1 / (eigenvalue + ridge), for the features as they are given.
    base : float
        1 / Σ w, the share of the intercept.
    coefs : ndarray of shape (n_alphas, D, n_outputs)
        The coefficients.
    intercepts : ndarray of shape (n_alphas, n_outputs)
        The intercepts.
    """

    mean: np.ndarray
    vectors: np.ndarray
    inverses: np.ndarray
    base: float
    coefs: np.ndarray
    intercepts: np.ndarray

    def __call__(self, n, blocks, device):
        """Predictions for n rows of features, and H_ii / w_i.

        Parameters
        ----------
        n : int
            How many rows there are.
        blocks : iterable of (slice, Tensor)
            Their features in float64.
        device : torch.device
            Where the features are.

        Returns
        -------
        predictions : ndarray of shape (n_alphas, n, n_outputs)
            The predictions.
        hats : ndarray of shape (n_alphas, n)
            The leverages.
        """
        mean, vectors, inverses, coefs = (
            torch.as_tensor(array, device=device)
            for array in (self.mean, self.vectors, self.inverses, self.coefs)
        )
        # Made before the blocks: little things among large ones tear up the heap.
        predictions = np.empty((len(coefs), n, coefs.shape[2]))
        hats = np.empty((len(coefs), n))
        for rows, block in blocks:
            predictions[:, rows] = (block @ coefs).cpu().numpy()
            squares = ((block - mean) @ vectors).square_()
            hats[:, rows] = (inverses @ squares.T).cpu().numpy()
        return predictions + self.intercepts[:, None], hats + self.base


def _kept(hat):
    """1 - H_ii, which rounding must not make zero."""
    return np.maximum(1 - hat, _EPS)

r"""Kernel ridge regression for a whole path of ridges from one decomposition.

For sample weights W = diag(w) and an intercept b that is not penalised,

.. math:: \min_{\alpha, b} \sum_i w_i \|y_i - (K\alpha)_i - b\|^2
          + \lambda \operatorname{tr} \alpha^\top K \alpha

is solved by :math:`\alpha = P y` with :math:`A = K + \lambda W^{-1}` and
:math:`P = A^{-1} - A^{-1}1 1^\top A^{-1} / (1^\top A^{-1} 1)`; and the training
residuals are :math:`\lambda W^{-1} \alpha`, the leave-one-out residuals
:math:`\alpha_i / P_{ii}`, the degrees of freedom
:math:`n - \lambda \sum_i P_{ii} / w_i`. All come from the eigenvectors of
:math:`W^{1/2} K W^{1/2}`, for every ridge.

Source: Golub, Heath and Wahba (1979) for GCV; the leave-one-out formula with
an intercept is that of least-squares support vector machines (Cawley 2006).
"""

from dataclasses import dataclass

import numpy as np
import scipy.linalg
import torch


@dataclass(frozen=True)
class RidgeSolution:
    """The machine at one ridge, and what it would say of left-out rows.

    Attributes
    ----------
    alpha : float
        The ridge λ.
    dual_coef : ndarray of shape (n, n_outputs)
        The coefficients, for the kernel matrix as it was given.
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
    dual_coef: np.ndarray
    intercept: np.ndarray
    gcv: float
    loo_loss: float
    loo_prediction: np.ndarray
    held_out_prediction: np.ndarray


class RidgePath:
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
        eigenvalues, self._vectors = _eigh(scaled)
        self._eigenvalues = eigenvalues.clamp_(min=0)
        self._ones = self._vectors.T @ root
        self._rotated = self._vectors.T @ (root[:, None] * self._targets)

    def gcv(self):
        """The criterion GCV at every ridge, an ndarray of shape (n_alphas,).

        ``Σw Σ w_i r_i² / (Σw - tr H)²``, without forming anything of size n².
        """
        return np.array([self._gcv(alpha) for alpha in self.alphas])

    def loo_loss(self):
        """The mean squared leave-one-out residual at every ridge."""
        return np.array([self.solve(alpha).loo_loss for alpha in self.alphas])

    def solve(self, alpha):
        """The machine at the ridge ``alpha``, a `RidgeSolution`."""
        inverse, intercept, remainder = self._reduce(alpha)
        root = self._weights.sqrt()[:, None]
        coef = root * (self._vectors @ (inverse[:, None] * remainder))
        residual = alpha * coef / self._weights[:, None]

        projected_ones = root[:, 0] * (self._vectors @ (inverse * self._ones))
        diagonal = self._weights * (self._vectors.square() @ inverse)
        diagonal -= projected_ones.square() / (self._ones.square() @ inverse)
        loo_residual = coef / diagonal[:, None]
        total = self._weights.sum()
        loo_loss = (self._weights @ loo_residual.square()).sum() / total
        # Taking a share of the weight w_i away divides the residual by 1 - share H_ii.
        kept = alpha * diagonal / self._weights  # 1 - H_ii
        share = 1 / self._counts.clamp_min(1)
        held_out_residual = residual / (1 - share * (1 - kept))[:, None]
        return RidgeSolution(
            alpha=float(alpha),
            dual_coef=(coef / self.scale).cpu().numpy(),
            intercept=intercept.cpu().numpy(),
            gcv=self._gcv(alpha),
            loo_loss=float(loo_loss),
            loo_prediction=(self._targets - loo_residual).cpu().numpy(),
            held_out_prediction=(self._targets - held_out_residual).cpu().numpy(),
        )

    def _reduce(self, alpha):
        """(Λ + λ)⁻¹, the intercept, and the rotated targets less the intercept."""
        inverse = 1 / (self._eigenvalues + alpha)
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
        loss = (alpha * inverse[:, None] * remainder).square().sum()
        total = self._weights.sum()
        return float(total * loss / self._residual_freedom(alpha, inverse) ** 2)


def _eigh(matrix):
    """Eigenvalues and eigenvectors of a symmetric matrix, which is overwritten."""
    if matrix.device.type != "cpu":
        return torch.linalg.eigh(matrix)
    # On a CPU, divide and conquer in LAPACK takes two thirds of torch's time.
    values, vectors = scipy.linalg.eigh(
        matrix.numpy().T, overwrite_a=True, check_finite=False, driver="evd"
    )
    return torch.from_numpy(values), torch.from_numpy(vectors)

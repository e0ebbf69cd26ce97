r"""Ridge regression for a whole path of ridges from one decomposition.

For sample weights W = diag(w) and an intercept b that is not penalised,

.. math:: \min_{\alpha, b} \sum_i w_i \|y_i - (K\alpha)_i - b\|^2
          + \lambda \operatorname{tr} \alpha^\top K \alpha

is solved by :math:`\alpha = P y` with :math:`A = K + \lambda W^{-1}` and
:math:`P = A^{-1} - A^{-1}1 1^\top A^{-1} / (1^\top A^{-1} 1)`; and the training
residuals are :math:`\lambda W^{-1} \alpha`, the leave-one-out residuals
:math:`\alpha_i / P_{ii}`, the degrees of freedom
:math:`n - \lambda \sum_i P_{ii} / w_i`. Machines and GCV come from the band form of
:math:`W^{1/2} K W^{1/2}`, for every ridge; leave-one-out at one ridge from the inverse
of a Cholesky factor, at several from eigenvectors.

Rows are distinct images: copies are one row, with the sum of their weights and the mean
of their targets, whose scatter :math:`s = \sum_i w_i \|y_i - \bar y\|^2` over the
copies is added to the squared residuals. Both criteria then follow the error on other
images, however often an image was drawn: leave-one-out leaves out all copies, and

.. math:: \mathrm{GCV}(\lambda) = \frac{\sum_i w_i \|r_i\|^2 + s}{\sum_i w_i} \Big/
          \Bigl(1 - \frac{\operatorname{tr} H}{n}\Bigr)^2

counts n distinct images against the degrees of freedom, not the sum of the weights.

The centred n × n matrix would have a null direction, the constant; this form does not
leave it in a trace, where it would make GCV vanish at tiny ridges. Where rows come in
groups, whole groups g are left out: their residuals are :math:`P_{gg}^{-1} \alpha_g`.

Source: Golub, Heath and Wahba (1979) for GCV; the leave-one-out formula with
an intercept is that of least-squares support vector machines (Cawley 2006).
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import scipy.linalg
import torch
from scipy.linalg import lapack

from ..compute.blocks import balanced_blocks, image_blocks
from .band import BandForm
from .covariance import Covariance, noise_variance

GROUP_ROWS, _GROUP_COLUMNS = 512, 1024  # of vectors that are multiplied at once
EPS = np.finfo(float).eps  # least 1 - H_ii, or mean of these


@dataclass(frozen=True)
class RidgeSolution:
    """The machine at one ridge, and its predictions of left-out rows."""

    alpha: float  # λ
    coef: np.ndarray  # (n or D, n_outputs), for the kernel matrix or features as given
    intercept: np.ndarray  # (n_outputs,)
    gcv: float  # summed over outputs
    loo_loss: float  # weighted mean of squares, summed over outputs
    loo_prediction: np.ndarray  # (n, n_outputs), by the machine without the row
    noise: np.ndarray | None = None  # σ², (n_outputs,), where it was asked for
    covariance: Covariance | None = None  # the same


class BasePath:
    """Base of the paths of both sides."""

    def __init__(self, largest, targets, weights, alphas, scatter):
        # A kernel of blanks only is zero, and stays so.
        self.scale = largest if largest > 0 else 1.0
        self.alphas, self._targets, self._weights = alphas, targets, weights
        self._scatter, self._total_scatter = scatter, np.sum(scatter)

    def gcv(self):
        """Return GCV at every ridge."""
        return self._gcv(self.alphas)

    def coefficients(self):
        """Return all ridges' coefficients side by side, and all their intercepts."""
        coefs, intercepts = self._machines(self.alphas)
        return self._given(np.hstack(coefs)), np.concatenate(intercepts)

    def coefficients_at(self, alpha):
        """Return the coefficients at one ridge."""
        return self._given(self._machines([alpha])[0][0])

    def solve(self, alpha, with_covariance=False):
        """Return the machine at the ridge ``alpha``, a `RidgeSolution`."""
        [coef], [intercept] = self._machines([alpha])
        loo_residual, inflation = self._left_out(alpha)
        machine = float(alpha), self._given(coef), intercept
        errors = float(self._gcv([alpha])[0]), self._loo_loss(loo_residual)
        solution = RidgeSolution(*machine, *errors, self._targets - loo_residual)
        if not with_covariance:
            return solution
        columns = loo_residual, inflation, self._weights, self._scatter
        noise = noise_variance(*columns, self._unexplained(alpha))
        return replace(solution, noise=noise, covariance=self._covariance(alpha))

    def _unexplained(self, alpha):
        """Return what the features leave of the variance h of every row."""
        return 0.0

    def _given(self, coef):
        """Return coefficients of `_machines` for the matrix, or features, as given."""
        return coef

    def _loo_loss(self, loo_residual):
        loss = (self._weights @ loo_residual**2).sum() + self._total_scatter
        return float(loss / self._weights.sum())

    def _decompose(self, right):
        """Bring the matrix to band form, and columns ``right`` to its coordinates."""
        self._band = BandForm(self._matrix())
        self._rotated = self._band.rotate(right)

    def _rotated_back(self, solutions):
        """Return solutions (n_ridges, n, c) in the coordinates of the matrix."""
        columns = self._band.rotate_back(torch.hstack([*solutions]))
        return columns.reshape(len(columns), len(solutions), -1).permute(1, 0, 2)

    @cached_property
    def _eigen(self):
        """Eigenvalues and eigenvectors of the matrix."""
        return eigh(self._matrix())

    def _inverses(self, alphas):
        """Return vectors V and weights u, (A + λ)⁻¹ = V diag(u) Vᵀ, u for each ridge.

        Those of one ridge are of a Cholesky factor, a fraction of the time.
        """
        ridges = self._band.above_rounding(alphas)
        if len(alphas) > 1:
            values, vectors = self._eigen
            return vectors, 1 / (values + ridges[:, None])
        matrix = self._matrix()
        matrix.diagonal().add_(ridges)
        vectors = inverse_factor(matrix)
        return vectors, vectors.new_ones(1, len(vectors))


class RidgePath(BasePath):
    """The ridge regressions of one kernel matrix K (n, n), for every ridge at once.

    The scale of K is set by its largest diagonal entry, in whose units the ridges
    ``alphas`` are, so that they mean the same for every kernel. Targets are (n,
    n_outputs), weights (n,), all positive: a row of weight 2 counts as two rows.
    ``scatter`` (n, n_outputs) is that of the targets of copies, or 0, ``groups`` (n,)
    the numbers of the groups that are left out, or None. ``combine`` turns coefficients
    of rows into those of features.
    """

    def __init__(
        self,
        kernel_matrix,
        targets,
        weights,
        alphas,
        device,
        scatter=0.0,
        groups=None,
        combine=None,
    ):
        if not isinstance(kernel_matrix, torch.Tensor):
            kernel_matrix = torch.from_numpy(kernel_matrix)
        largest = float(kernel_matrix.diagonal().max())
        super().__init__(largest, targets, weights, alphas, scatter)
        self._combine, self._groups = combine, groups
        self._kernel_matrix, self._last = kernel_matrix, None
        self._options = {"dtype": torch.float64, "device": device}
        self._root = torch.tensor(weights, **self._options).sqrt()
        # Centred targets keep their digits where they are far from zero.
        self._mean = np.average(targets, axis=0, weights=weights)
        centred = torch.tensor(targets - self._mean, **self._options)
        ones = torch.ones_like(centred[:, :1])
        self._decompose(self._root[:, None] * torch.hstack([ones, centred]))

    def _matrix(self):
        """Return W½ K W½ in units of the scale."""
        matrix = self._kernel_matrix.to(**self._options, copy=True)
        return matrix.mul_(self._root / self.scale).mul_(self._root[:, None])

    def _machines(self, alphas):
        """Return dual coefficients for the scaled kernel matrix, and intercepts."""
        _, _, intercepts, duals = self._reduce(alphas)
        coefs = self._root[:, None] * self._rotated_back(duals)
        return coefs.cpu().numpy(), intercepts + self._mean

    def _given(self, coef):
        coef = coef / self.scale
        return coef if self._combine is None else self._combine(coef)

    def loo_loss(self):
        """Return the mean squared residual of left-out rows, or groups, of all."""
        vectors, weights = self._inverses(self.alphas)
        pairs = zip(self.alphas, weights, strict=True)
        left_out = (self._left_out(alpha, vectors, each)[0] for alpha, each in pairs)
        return np.array([*map(self._loo_loss, left_out)])

    def _left_out(self, alpha, vectors=None, weights=None):
        """Return the residuals of rows, or groups, left out, and their inflation.

        That is the diagonal of (I - H)⁻¹ of what is left out together. ``vectors`` and
        ``weights`` are those of `_inverses`, where they are known.
        """
        if vectors is None:
            vectors, [weights] = self._inverse_at(alpha)
        ridge, _, _, [dual] = self._reduce([alpha])
        dual = self._band.rotate_back(dual)
        ones = vectors.T @ self._root
        spread = ones.square() @ weights
        ones = vectors @ (weights * ones) / spread.sqrt()
        if self._groups is not None:
            parts = ridge, dual, ones, vectors, weights
            dual, inflation = self._solve_groups(*parts)
        else:
            # 1 - H_ii = λ P_ii / w_i, which rounding must not make zero.
            kept = ridge * (vectors.square() @ weights - ones.square())
            kept = left_share(kept.cpu().numpy(), len(kept))
            dual = ridge * dual / torch.as_tensor(kept, device=dual.device)[:, None]
            inflation = 1 / kept
        return (dual / self._root[:, None]).cpu().numpy(), inflation

    def _inverse_at(self, alpha):
        """Return the vectors and weights of one ridge, once for several uses."""
        if self._last is None or self._last[0] != alpha:
            self._last = alpha, self._inverses([alpha])
        return self._last[1]

    def _solve_groups(self, ridge, dual, ones, vectors, weights):
        """Return the weighted residuals of each group by the machine without it.

        With them comes their inflation, an array.
        """
        residuals, inflation = torch.empty_like(dual), torch.empty_like(dual[:, 0])
        columns = balanced_blocks(slice(0, len(weights)), _GROUP_COLUMNS)
        for rows in group_batches(self._groups, GROUP_ROWS):
            rows = torch.as_tensor(rows, device=dual.device)
            block = -ones[rows][..., None] * ones[rows][:, None]
            for part in columns:
                own = vectors[:, part][rows]
                block += (own * weights[part]) @ own.mT
            # I - H_gg = λ P_gg between the roots of weights.
            found, inflation[rows] = solve_left(ridge * block, dual[rows])
            residuals[rows] = ridge * found
        return residuals, inflation.cpu().numpy()

    def _covariance(self, alpha):
        """Return the `Covariance` at one ridge."""
        vectors, [weights] = self._inverse_at(alpha)
        ridge = float(self._band.above_rounding([alpha])[0])
        vectors = vectors * weights.sqrt()
        ones = vectors.T @ self._root
        ones, length = vectors @ ones, ones.norm()
        roots = torch.hstack([vectors, ones[:, None] / length])
        roots = self._root[:, None] * roots / math.sqrt(ridge)
        roots = self._given(roots.cpu().numpy())
        offset = [1 / (float(length) * math.sqrt(ridge))]
        prior = 1 / (ridge * self.scale)
        return Covariance.of(roots[:, :-1], roots[:, -1:], offset, prior)

    def _reduce(self, alphas):
        """Return ridges, tr P, intercepts and W^-½ α in the coordinates of the band.

        They are tensors, the intercepts an array, with an entry for each ridge.
        """
        ridges, solutions, traces = self._band.solve(alphas, self._rotated)
        ones, duals = solutions[..., :1], solutions[..., 1:]
        root = self._rotated[:, :1].T
        spread = root @ ones
        intercepts = (root @ duals) / spread
        traces = traces - (ones.square().sum(1, keepdim=True) / spread)[:, 0, 0]
        return ridges, traces, intercepts[:, 0].cpu().numpy(), duals - ones * intercepts

    def _gcv(self, alphas):
        ridges, traces, _, duals = self._reduce(alphas)
        losses = ridges.square() * duals.square().sum((1, 2))
        mean_losses = (losses.cpu().numpy() + self._total_scatter) / self._weights.sum()
        # n - tr H, the degrees of freedom that are left to the residuals.
        n = len(self._root)
        left = (ridges * traces).cpu().numpy() / n
        return mean_losses / left_share(left, n) ** 2


def inverse_factor(matrix):
    """Return V, upper triangular, VVᵀ = A⁻¹ of a definite matrix, and overwrite it."""
    if matrix.device.type != "cpu":
        factor = torch.linalg.cholesky(matrix)
        eye = torch.eye(len(matrix), dtype=matrix.dtype, device=matrix.device)
        return torch.linalg.solve_triangular(factor, eye, upper=False).T
    # In place, and a third of the operations.
    factor, failed = lapack.dpotrf(matrix.numpy().T, overwrite_a=1)
    if failed:
        raise np.linalg.LinAlgError(f"the matrix is not definite: dpotrf {failed}.")
    return torch.from_numpy(lapack.dtrtri(factor, overwrite_c=1)[0])


def eigh(matrix):
    """Return eigenvalues and eigenvectors of a symmetric matrix, and overwrite it."""
    if matrix.device.type != "cpu" or len(matrix) == 1:  # which SciPy 1.10 refuses
        return torch.linalg.eigh(matrix)
    # On a CPU, divide and conquer in LAPACK takes two thirds of torch's time.
    values, vectors = scipy.linalg.eigh(
        matrix.numpy().T, overwrite_a=True, check_finite=False, driver="evd"
    )
    return torch.from_numpy(values), torch.from_numpy(vectors)


def group_batches(groups, largest):
    """Return the rows of groups, arrays (n_groups, size) of about ``largest`` rows."""
    order = np.argsort(groups, kind="stable")
    starts, sizes = np.unique(groups[order], return_index=True, return_counts=True)[1:]
    batches = []
    for size in np.unique(sizes):
        rows = order[starts[sizes == size][:, None] + np.arange(size)]
        batches += [rows[part] for part in image_blocks(rows, largest // size)]
    return batches


def solve_left(left, residuals):
    """Return (I - H_gg)⁻¹ r_g of several groups, and the diagonal of the inverses.

    Rounding must not make them singular.
    """
    left.diagonal(dim1=1, dim2=2).add_(EPS)
    eye = torch.eye(left.shape[1], dtype=left.dtype, device=left.device)
    columns = torch.cat([residuals, eye.expand(left.shape)], 2)
    found = torch.linalg.solve(left, columns)
    n_outputs = residuals.shape[2]
    return found[..., :n_outputs], found[..., n_outputs:].diagonal(dim1=1, dim2=2)


def left_share(share, n_rows):
    """Return 1 - H_ii, or its mean, which rounding must not make zero.

    It is one for a single row, without which nothing would be left to predict from.
    """
    return np.maximum(share, EPS) if n_rows > 1 else np.ones_like(share)

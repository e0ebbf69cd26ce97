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

With D features Φ and K = ΦΦᵀ, the same machine comes from the D × D matrix
:math:`A = \tilde\Phi^\top W \tilde\Phi`, where features are centred at their weighted
mean: the coefficients are :math:`(A + \lambda)^{-1} \tilde\Phi^\top W \tilde y`, the
degrees of freedom :math:`1 + \operatorname{tr} A (A + \lambda)^{-1}`, of which the one
is the intercept's, and :math:`H_{ii} = w_i (1 / \sum w + \tilde\varphi_i^\top
(A + \lambda)^{-1} \tilde\varphi_i)`. The centred n × n matrix has a null direction, the
constant; neither form leaves it in a trace, where it would make GCV vanish at tiny
ridges.

Where rows come in groups, whole groups g are left out: their residuals are
:math:`P_{gg}^{-1} \alpha_g`, and on features :math:`(I - H_{gg})^{-1} r_g` with the
training residuals r. A group of more rows than features is taken off the sums, and what
is left is solved anew.

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

_SHIFT_ROWS = 512  # of a matrix that are corrected at once
_GROUP_ROWS, _GROUP_COLUMNS = 512, 1024  # of vectors that are multiplied at once
_EPS = np.finfo(float).eps  # least 1 - H_ii, or mean of these


@dataclass(frozen=True)
class RidgeSolution:
    """The machine at one ridge, and its predictions of left-out rows."""

    alpha: float  # λ
    coef: np.ndarray  # (n or D, n_outputs), for the kernel matrix or features as given
    intercept: np.ndarray  # (n_outputs,)
    gcv: float  # summed over outputs
    loo_loss: float  # weighted mean of squares, summed over outputs
    loo_prediction: np.ndarray  # (n, n_outputs), by the machine without the row


class _Path:
    """Base of the paths of both sides."""

    def __init__(self, largest, targets, weights, alphas, scatter):
        # A kernel of blanks only is zero, and stays so.
        self.scale = largest if largest > 0 else 1.0
        self.alphas, self._targets, self._weights = alphas, targets, weights
        self._scatter = scatter

    def gcv(self):
        """Return GCV at every ridge."""
        return self._gcv(self.alphas)

    def coefficients(self):
        """Return all ridges' coefficients side by side, and all their intercepts."""
        coefs, intercepts = self._machines(self.alphas)
        return self._given(np.hstack(coefs)), np.concatenate(intercepts)

    def solve(self, alpha):
        """Return the machine at the ridge ``alpha``, a `RidgeSolution`."""
        [coef], [intercept] = self._machines([alpha])
        loo_residual = self._left_out(alpha)
        machine = float(alpha), self._given(coef), intercept
        errors = float(self._gcv([alpha])[0]), self._loo_loss(loo_residual)
        return RidgeSolution(*machine, *errors, self._targets - loo_residual)

    def _given(self, coef):
        """Return coefficients of `_machines` for the matrix, or features, as given."""
        return coef

    def _loo_loss(self, loo_residual):
        loss = (self._weights @ loo_residual**2).sum() + self._scatter
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


class RidgePath(_Path):
    """The ridge regressions of one kernel matrix K (n, n), for every ridge at once.

    The scale of K is set by its largest diagonal entry, in whose units the ridges
    ``alphas`` are, so that they mean the same for every kernel. Targets are (n,
    n_outputs), weights (n,), all positive: a row of weight 2 counts as two rows.
    ``scatter`` is that of the targets of copies, ``groups`` (n,) the numbers of the
    groups that are left out, or None. ``combine`` turns coefficients of rows into those
    of features.
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
        largest = float(np.diagonal(kernel_matrix).max())
        super().__init__(largest, targets, weights, alphas, scatter)
        self._combine, self._groups = combine, groups
        self._kernel_matrix = kernel_matrix
        self._options = {"dtype": torch.float64, "device": device}
        self._root = torch.tensor(weights, **self._options).sqrt()
        # Centred targets keep their digits where they are far from zero.
        self._mean = np.average(targets, axis=0, weights=weights)
        centred = torch.tensor(targets - self._mean, **self._options)
        ones = torch.ones_like(centred[:, :1])
        self._decompose(self._root[:, None] * torch.hstack([ones, centred]))

    def _matrix(self):
        """Return W½ K W½ in units of the scale."""
        matrix = torch.tensor(self._kernel_matrix, **self._options)
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
        left_out = (self._left_out(alpha, vectors, each) for alpha, each in pairs)
        return np.array([*map(self._loo_loss, left_out)])

    def _left_out(self, alpha, vectors=None, weights=None):
        """Return the leave-one-out residuals, or those of groups that are left out.

        ``vectors`` and ``weights`` are those of `_inverses`, where they are known.
        """
        if vectors is None:
            vectors, [weights] = self._inverses([alpha])
        ridge, _, _, [dual] = self._reduce([alpha])
        dual = self._band.rotate_back(dual)
        ones = vectors.T @ self._root
        spread = ones.square() @ weights
        ones = vectors @ (weights * ones) / spread.sqrt()
        if self._groups is not None:
            dual = self._solve_groups(ridge, dual, ones, vectors, weights)
        else:
            # 1 - H_ii = λ P_ii / w_i, which rounding must not make zero.
            kept = ridge * (vectors.square() @ weights - ones.square())
            kept = _left(kept.cpu().numpy(), len(kept))
            dual = ridge * dual / torch.as_tensor(kept, device=dual.device)[:, None]
        return (dual / self._root[:, None]).cpu().numpy()

    def _solve_groups(self, ridge, dual, ones, vectors, weights):
        """Return the weighted residuals of each group by the machine without it."""
        residuals = torch.empty_like(dual)
        columns = balanced_blocks(slice(0, len(weights)), _GROUP_COLUMNS)
        for rows in group_batches(self._groups, _GROUP_ROWS):
            rows = torch.as_tensor(rows, device=dual.device)
            block = -ones[rows][..., None] * ones[rows][:, None]
            for part in columns:
                own = vectors[:, part][rows]
                block += (own * weights[part]) @ own.mT
            # I - H_gg = λ P_gg between the roots of weights.
            residuals[rows] = ridge * _solve_left(ridge * block, dual[rows])
        return residuals

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
        mean_losses = (losses.cpu().numpy() + self._scatter) / self._weights.sum()
        # n - tr H, the degrees of freedom that are left to the residuals.
        n = len(self._root)
        left = (ridges * traces).cpu().numpy() / n
        return mean_losses / _left(left, n) ** 2


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


class PrimalRidgePath(_Path):
    """The regressions of `RidgePath` from the `Moments` of D features.

    The `Design` makes other passes over the features of single rows. Targets, weights,
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
        total = self._scatter
        for rows, residuals in self._left_out_parts(self.alphas):
            total = total + self._weights[rows] @ (residuals**2).sum(-1).T
        return total / self._weights.sum()

    def _left_out(self, alpha):
        """Return the same as for `RidgePath`, by one pass."""
        residuals = np.empty(self._targets.shape)
        for rows, (part,) in self._left_out_parts([alpha]):
            residuals[rows] = part
        return residuals

    def _left_out_parts(self, alphas):
        """Yield (rows, residuals (n_alphas, n, n_outputs) where they are left out)."""
        if self._groups is not None:
            yield from self._left_out_groups(alphas)
            return
        for rows, (predictions, hats) in self._pass(alphas):
            kept = _left(1 - self._weights[rows] * hats, self._n_rows)
            yield rows, (self._targets[rows] - predictions) / kept[..., None]

    def _left_out_groups(self, alphas):
        """Yield the same for groups, each by the machine without it."""
        large, passes = [], []
        machine = self._mean, *self._readouts(alphas)
        for rows in group_batches(self._groups, _GROUP_ROWS):
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
            for part, (predictions, _) in path._pass(alphas, rows):
                yield part, self._targets[part] - predictions

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
        losses = np.maximum(losses, _EPS * self._spread / total)
        freedom = 1 + len(self._mean) - (ridges * traces).cpu().numpy()
        return losses / _left(1 - freedom / self._n_rows, self._n_rows) ** 2

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
        """Return the residuals, an ndarray of shape (n_alphas, n, n_outputs)."""
        targets, weights, mean, vectors, coefs, roots = (
            torch.as_tensor(array, device=device) for array in vars(self).values()
        )
        rows = mean.new_ones(n, 1 + len(mean))
        for part, block in blocks:
            rows[part, 1:] = (block - mean) @ vectors
        rows = rows.reshape(*weights.shape, -1)
        weight_roots = weights.sqrt()[..., None]
        residuals = []
        for coef, root in zip(coefs, roots, strict=True):
            hat = rows * (weight_roots * root)
            left = -(hat @ hat.mT)
            left.diagonal(dim1=1, dim2=2).add_(1)
            own = weight_roots * (targets - rows[..., 1:] @ coef)
            residuals.append(_solve_left(left, own) / weight_roots)
        return torch.stack(residuals).reshape(len(coefs), n, -1).cpu().numpy()


def group_batches(groups, largest):
    """Return the rows of groups, arrays (n_groups, size) of about ``largest`` rows."""
    order = np.argsort(groups, kind="stable")
    starts, sizes = np.unique(groups[order], return_index=True, return_counts=True)[1:]
    batches = []
    for size in np.unique(sizes):
        rows = order[starts[sizes == size][:, None] + np.arange(size)]
        batches += [rows[part] for part in image_blocks(rows, largest // size)]
    return batches


def _solve_left(left, residuals):
    """Return (I - H_gg)⁻¹ r_g of several groups; rounding must not make it singular."""
    left.diagonal(dim1=1, dim2=2).add_(_EPS)
    return torch.linalg.solve(left, residuals)


def _left(share, n_rows):
    """Return 1 - H_ii, or its mean, which rounding must not make zero.

    It is one for a single row, without which nothing would be left to predict from.
    """
    return np.maximum(share, _EPS) if n_rows > 1 else np.ones_like(share)

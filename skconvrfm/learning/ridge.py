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

import numpy as np
import scipy.linalg
import torch

from ..compute.blocks import balanced_blocks, image_blocks

_SHIFT_ROWS = 512  # of a matrix that are corrected at once
_GROUP_ROWS, _GROUP_COLUMNS = 512, 1024  # of eigenvectors that are multiplied at once
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
        return np.array([self._gcv(alpha) for alpha in self.alphas])

    def loo_loss(self):
        """Return the mean squared residual of left-out rows, or groups, of all."""
        return np.array([self._loo_loss(self._left_out(a)) for a in self.alphas])

    def coefficients(self):
        """Return all ridges' coefficients side by side, and all their intercepts."""
        coefs, intercepts = zip(*map(self._machine, self.alphas), strict=True)
        return self._given(np.hstack(coefs)), np.concatenate(intercepts)

    def solve(self, alpha):
        """Return the machine at the ridge ``alpha``, a `RidgeSolution`."""
        coef, intercept = self._machine(alpha)
        loo_residual = self._left_out(alpha)
        machine = float(alpha), self._given(coef), intercept
        errors = self._gcv(alpha), self._loo_loss(loo_residual)
        return RidgeSolution(*machine, *errors, self._targets - loo_residual)

    def _given(self, coef):
        """Return coefficients of `_machine` for the matrix, or features, as given."""
        return coef

    def _loo_loss(self, loo_residual):
        loss = (self._weights @ loo_residual**2).sum() + self._scatter
        return float(loss / self._weights.sum())

    def _decompose(self, matrix):
        eigenvalues, self._vectors = eigh(matrix)
        self._eigenvalues = eigenvalues.clamp_(min=0)

    def _at_least_rounding(self, alpha):
        """Return a ridge, or the rounding of the eigenvalues where that is larger."""
        return max(alpha, _EPS * float(self._eigenvalues.max()))

    def _inverse(self, alpha):
        return 1 / (self._eigenvalues + self._at_least_rounding(alpha))


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
        options = {"dtype": torch.float64, "device": device}
        self._root = torch.tensor(weights, **options).sqrt()
        scaled = torch.tensor(kernel_matrix, **options)
        scaled *= self._root[:, None] * self._root / self.scale
        self._decompose(scaled)
        self._ones = self._vectors.T @ self._root
        weighted = self._root[:, None] * torch.tensor(targets, **options)
        self._rotated = self._vectors.T @ weighted

    def _machine(self, alpha):
        """Return dual coefficients for the scaled kernel matrix, and the intercept."""
        inverse, intercept, remainder = self._reduce(alpha)
        coef = self._root[:, None] * (self._vectors @ (inverse[:, None] * remainder))
        return coef.cpu().numpy(), intercept.cpu().numpy()

    def _given(self, coef):
        coef = coef / self.scale
        return coef if self._combine is None else self._combine(coef)

    def _left_out(self, alpha):
        """Return the leave-one-out residuals, or those of groups that are left out."""
        if self._groups is not None:
            return self._left_out_groups(alpha)
        inverse, effective = self._inverse(alpha), self._at_least_rounding(alpha)
        ones = self._vectors @ (inverse * self._ones)
        taken = ones.square() / (self._ones.square() @ inverse)
        # 1 - H_ii = λ P_ii / w_i, which rounding must not make zero.
        kept = effective * (self._vectors.square() @ inverse - taken)
        kept = _left(kept.cpu().numpy(), len(kept))
        coef, _ = self._machine(alpha)
        return effective * coef / (self._weights * kept)[:, None]

    def _left_out_groups(self, alpha):
        """Return the residuals of each group by the machine without it."""
        inverse, _, remainder = self._reduce(alpha)
        dual = self._vectors @ (inverse[:, None] * remainder)
        ones = self._vectors @ (inverse * self._ones)
        ones /= (self._ones.square() @ inverse).sqrt()
        residuals, effective = torch.empty_like(dual), self._at_least_rounding(alpha)
        columns = balanced_blocks(slice(0, len(inverse)), _GROUP_COLUMNS)
        for rows in group_batches(self._groups, _GROUP_ROWS):
            rows = torch.as_tensor(rows, device=dual.device)
            block = -ones[rows][..., None] * ones[rows][:, None]
            for part in columns:
                vectors = self._vectors[:, part][rows]
                block += (vectors * inverse[part]) @ vectors.mT
            # I - H_gg = λ P_gg between the roots of weights.
            left_out = effective * _solve_left(effective * block, dual[rows])
            residuals[rows] = left_out / self._root[rows][..., None]
        return residuals.cpu().numpy()

    def _reduce(self, alpha):
        """Return (Λ + λ)⁻¹, the intercept, and rotated targets less the intercept."""
        inverse = self._inverse(alpha)
        weighted = self._ones * inverse
        intercept = (weighted @ self._rotated) / (weighted @ self._ones)
        return inverse, intercept, self._rotated - self._ones[:, None] * intercept

    def _gcv(self, alpha):
        inverse, _, remainder = self._reduce(alpha)
        alpha = self._at_least_rounding(alpha)
        loss = float((alpha * inverse[:, None] * remainder).square().sum())
        taken = (self._ones * inverse).square().sum() / (self._ones.square() @ inverse)
        # n - tr H, the degrees of freedom that are left to the residuals.
        left = float(alpha * (inverse.sum() - taken)) / len(self._eigenvalues)
        mean_loss = (loss + self._scatter) / float(self._weights.sum())
        return mean_loss / float(_left(left, len(inverse))) ** 2


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
        self._decompose(torch.tensor(moments.gram, device=device).div_(self.scale))
        cross = torch.tensor(moments.cross, device=device) / math.sqrt(self.scale)
        self._projections = self._vectors.T @ cross

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
        machine = self._mean, self._vectors.cpu().numpy(), *self._readouts(alphas)
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
        """Return, for features along the eigenvectors, coefficients and the root of H.

        Their shapes are (n_alphas, D, n_outputs) and (n_alphas, 1 + D).
        """
        inverses = torch.stack([self._inverse(alpha) for alpha in alphas])
        coefs = inverses[..., None] * self._projections / math.sqrt(self.scale)
        base = inverses.new_full((len(alphas), 1), 1 / self._total)
        roots = torch.hstack([base, inverses / self.scale]).sqrt()
        return coefs.cpu().numpy(), roots.cpu().numpy()

    def _gcv(self, alpha):
        alpha, total = self._at_least_rounding(alpha), self._total
        inverse = self._inverse(alpha)
        explained = (1 + alpha * inverse) * inverse / total
        explained = float(explained @ self._projections.square().sum(1))
        loss = self._spread / total - explained
        left = 1 - (1 + float(self._eigenvalues @ inverse)) / self._n_rows
        loss = max(loss, _EPS * self._spread / total)  # rounding must not make it zero
        return loss / float(_left(left, self._n_rows)) ** 2

    def _machine(self, alpha):
        """Return coefficients for the features as they are given, and the intercept."""
        coef = self._vectors @ (self._inverse(alpha)[:, None] * self._projections)
        coef = (coef / math.sqrt(self.scale)).cpu().numpy()
        return coef, self._target_mean - self._mean @ coef

    def _pass(self, alphas, rows=None):
        """Return pairs (rows, their predictions and H_ii / w_i), see `RowPass`."""
        coefs, intercepts = zip(*map(self._machine, alphas), strict=True)
        inverses = torch.stack([self._inverse(alpha) for alpha in alphas]) / self.scale
        vectors, inverses = self._vectors.cpu().numpy(), inverses.cpu().numpy()
        machines = np.stack(coefs), np.stack(intercepts)
        function = RowPass(self._mean, vectors, inverses, 1 / self._total, *machines)
        return self._design.map_rows(function, rows)


@dataclass(frozen=True)
class RowPass:
    """Predictions and leverages of rows in a pass over the features; picklable."""

    mean: np.ndarray  # (D,), μ
    vectors: np.ndarray  # (D, D), eigenvectors of the Gram matrix
    inverses: np.ndarray  # (n_alphas, D), 1 / (eigenvalue + ridge), features as given
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
    vectors: np.ndarray  # (D, D), eigenvectors of the Gram matrix
    coefs: np.ndarray  # (n_alphas, D, n_outputs), along the eigenvectors
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

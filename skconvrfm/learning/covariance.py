r"""Variance of predictions: ridge regression as the mean of a Gaussian process.

The machine of `ridge` is the posterior mean of :math:`y = b + f(x) + \varepsilon` where
b is any constant, f a Gaussian process with covariance :math:`\tau^2 k / s`, s the
scale of K, and the noise of a row of weight w has variance :math:`\sigma^2 / w`, for
:math:`\lambda = \sigma^2 / \tau^2`. A new target then has the variance :math:`\sigma^2
(1 + h(x))`, where, with :math:`A = K / s + \lambda W^{-1}` and :math:`a = A^{-1} 1`,

.. math:: \lambda h(x) = \frac{k(x, x)}{s} - \frac{k^\top A^{-1} k}{s^2}
          + \frac{(1 - a^\top k / s)^2}{1^\top a},

and on features, with the sums of `primal`, :math:`h(x) = 1 / \sum w +
\tilde\varphi^\top (\tilde\Phi^\top W \tilde\Phi + \lambda s)^{-1} \tilde\varphi`.
Landmarks do not explain all of f: what is left of it, :math:`(k(x, x) -
\|\varphi\|^2) / \lambda s`, is added, so that h grows away from them.

Noise
-----

The residual :math:`e_i` of a left-out row has the variance :math:`\sigma^2 (1 / w_i +
h_i)`, where :math:`h_i` is that of the machine without the row, :math:`h_i = (1 / (1 -
H_{ii}) - 1) / w_i`; of a group, :math:`1 / (1 - H_{ii})` is the diagonal of :math:`(I -
H_{gg})^{-1}`. A row is the mean of w copies with the scatter s, each of which would
have had the variance :math:`\sigma^2 (1 + h_i)`, so that

.. math:: \sigma^2 = \frac{1}{\sum_i w_i} \sum_i \frac{w_i e_i^2 + s_i}{1 + h_i}

gives standardised errors of left-out copies the mean square 1, whether or not the
kernel is that of the data. Source: Rasmussen and Williams (2006), sections 2.7 and
8.3.4; Bachoc (2013) for the variance by cross-validation.
"""

from dataclasses import dataclass

import numpy as np

from .fitted import check_not_negative, check_numbers


@dataclass(frozen=True, eq=False)
class Covariance:
    r"""Variance of the function at x, in units of the noise.

    It is :math:`h(x) = \kappa k(x, x) + b + \sum_j \pm (r_j^\top c(x) - t_j)^2`, where
    the columns c(x) are those that the coefficients of the machine are of: features of
    x, or its kernel with the centres.
    """

    roots: np.ndarray  # r, (n_coefs, m)
    offsets: np.ndarray  # t, (m,)
    signs: np.ndarray  # (m,), 1 and -1
    prior: float  # κ
    base: float = 0.0  # b

    @classmethod
    def of(cls, explained, learned, offsets, prior, base=0.0):
        """Return the covariance of roots that explain, -1, and of others, 1."""
        counts = explained.shape[1], learned.shape[1]
        offsets = np.concatenate([np.zeros(counts[0]), offsets])
        signs = np.repeat([-1.0, 1.0], counts)
        roots = np.hstack([explained, learned])
        return cls(roots, offsets, signs, float(prior), float(base))

    def check(self, name, n_coefs):
        """Refuse what is of another number of coefficients, or not finite."""
        roots = check_numbers(f"{name}.roots", self.roots, (n_coefs, None))
        for part in ("offsets", "signs"):
            check_numbers(f"{name}.{part}", getattr(self, part), roots.shape[1:])
        for part in ("prior", "base"):
            check_not_negative(f"{name}.{part}", getattr(self, part))

    def variances(self, outputs, diagonal):
        """Return h(x), (n,), from c(x)ᵀ r, which is overwritten, and k(x, x)."""
        outputs -= self.offsets
        squares = np.square(outputs, out=outputs) @ self.signs
        # Rounding must not make it negative.
        return np.maximum(squares + self.prior * diagonal + self.base, 0.0)


def keeps_covariance(model):
    """Return True if the covariance of a model takes no more bytes than it may."""
    has_landmarks, n_coefs = model.landmarks is not None, model.n_coefs
    n_rows = len(model.data.images) if model.moments is None else n_coefs
    size = covariance_size(n_coefs, n_rows, has_landmarks)
    return size <= model.covariance_bytes


def covariance_size(n_coefs, n_rows, has_landmarks):
    """Return the bytes of the roots of a covariance."""
    return 8 * n_coefs * (2 * n_coefs if has_landmarks else min(n_coefs, n_rows))


def noise_variance(residuals, inflation, weights, scatter, unexplained=0.0):
    """Return σ² of each output, (n_outputs,), from residuals of left-out rows.

    ``inflation`` (n,) is the diagonal of (I - H)⁻¹ of what is left out together,
    ``unexplained`` what landmarks leave of h.
    """
    variances = np.maximum((inflation - 1) / weights, 0) + np.maximum(unexplained, 0)
    squares = weights[:, None] * residuals**2 + scatter
    return (1 / (1 + variances)) @ squares / weights.sum()

"""Profiles κ of a scaled distance r, for kernels of patches and of whole images."""

import math
from numbers import Real

import numpy as np
import torch

from .._sklearn_compat import Interval, StrOptions

# Squared distances come out this close to 0 for equal rows, in units of eps times their
# squared lengths.
EQUAL_ROUNDINGS = 32

BANDWIDTH = [StrOptions({"auto"}), Interval(Real, 0, None, closed="neither")]


class Profile:
    """Base of profiles; adds the parameter ``bandwidth`` to a kernel."""

    def bind(self, image_shape):
        """Return a copy of the kernel for images of shape (h, w, c), checked."""
        bound = super().bind(image_shape)
        if self.bandwidth != "auto":
            bound.bandwidth_ = float(self.bandwidth)
        return bound

    @property
    def unmeasured(self):
        """True if the bandwidth is measured anew in every round."""
        return self.bandwidth == "auto"

    def _scaled_distances(self, products, left, right):
        """Return r of every pair, from inner products and squared lengths."""
        squares = squared_distances(products, left, right)
        return squares.sqrt_().div_(self._divisor(squares))

    def _divisor(self, like):
        """Return the bandwidth, clipped to the numbers of the dtype."""
        limits = torch.finfo(like.dtype)
        return min(max(self.bandwidth_, limits.tiny), limits.max)


class GaussianProfile(Profile):
    """The profile κ(r) = exp(-r²/2)."""

    @staticmethod
    def profile(distances):
        """Return κ(r); overwrites the distances."""
        return distances.square_().div_(-2).exp_()

    @staticmethod
    def slope(distances):
        """Return -κ'(r) / r, and 0 where r is 0; overwrites the distances."""
        equal = distances == 0
        return GaussianProfile.profile(distances).masked_fill_(equal, 0)


class LaplaceProfile(Profile):
    """The profile κ(r) = exp(-r)."""

    @staticmethod
    def profile(distances):
        """Return κ(r); overwrites the distances."""
        return distances.neg_().exp_()

    @staticmethod
    def slope(distances):
        """Return -κ'(r) / r, and 0, the symmetric value at the kink, where r is 0."""
        equal = distances == 0
        inverse = 1 / distances.masked_fill(equal, 1)
        return LaplaceProfile.profile(distances).mul_(inverse).masked_fill_(equal, 0)


def squared_distances(products, left, right):
    """Return ‖φ - φ'‖² (..., n, m) from products and squared lengths, 0 if equal."""
    sums = left[..., None] + right[..., None, :]
    squares = sums - 2 * products
    rounding = EQUAL_ROUNDINGS * torch.finfo(sums.dtype).eps * sums
    return squares.masked_fill_(squares <= rounding, 0)


def pair_squares(products, squares):
    """Return ‖φ - φ'‖² of all pairs of n rows, (..., n (n - 1) / 2)."""
    n = squares.shape[-1]
    first, second = torch.triu_indices(n, n, 1, device=squares.device)
    return squared_distances(products, squares, squares)[..., first, second]


def median_distance(distances, squares, weights):
    """Return the weighted median distance of two of n rows, a bandwidth.

    ``distances`` are the `pair_squares`, ``squares`` (..., n) the squared lengths. A
    pair weighs the product of its weights. Equal rows are left out, so that a row of
    weight 2 is as two copies; of all equal ones the length is taken, and 1 if it is 0.
    """
    n = len(weights)
    first, second = torch.triu_indices(n, n, 1, device=weights.device)
    median = weighted_median(distances, weights[first] * weights[second])
    return math.sqrt(median or weighted_median(squares, weights)) or 1.0


def weighted_median(values, weights):
    """Return the weighted median of the positive values; 0 where there are none.

    Weights are those of the last dimension.
    """
    if not values.numel():
        return 0.0
    weights = weights.cpu().numpy()
    values = values.reshape(-1, len(weights)).cpu().numpy()
    ordered = np.sort(values, axis=None)

    def weight_up_to(value):
        counted = values <= value
        counted &= values > 0
        return counted.sum(0) @ weights

    low, high = int(np.searchsorted(ordered, 0, side="right")), len(ordered) - 1
    if low > high:
        return 0.0
    half = weight_up_to(ordered[-1]) / 2
    while low < high:
        middle = (low + high) // 2
        if weight_up_to(ordered[middle]) >= half:
            high = middle
        else:
            low = middle + 1
    return float(ordered[low])

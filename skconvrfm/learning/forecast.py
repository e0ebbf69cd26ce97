"""Memory and time of a fit with a matrix of all pairs, before it is computed."""

import copy
import math
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np
import torch
from sklearn.base import clone

from ..compute.images import take
from ..compute.memory import free_memory
from ..compute.warn import warn_caller
from ..kernels.base import PatchKernel
from .band import BandForm
from .covariance import covariance_size
from .ridge import inverse_factor

# Bytes per pair of centres at the worst moment of the ridge path beside the kernel
# matrix: its band form, or weighted copy, and an inverse with its square, or LAPACK's
# space; and those of landmarks, an inverse root and sums over the rows.
_PATH_BYTES, _LANDMARK_BYTES = 24, 16
_COVARIANCE_BYTES = 24  # of the roots of the best round, and of another on their way
# Predicted seconds from which on a fit is announced, and those that are recommended.
LONG_FIT, SHORT_FIT = 600, 60
_FEWEST = 100  # landmarks that are recommended
_LITTLE_MORE = 1.25  # times the least time, to recommend landmarks
# Rows from which on the time is worth a measurement, and rows of that measurement.
_MEASURED_ROWS, _TILE_ROWS, _SOLVE_ROWS = 3000, 48, 1024

ALTERNATIVE = (
    "or kernel='linear' with features=ConvFeatures(), whose cost is linear in the "
    "rows, or fewer rows"
)


@dataclass(frozen=True)
class Costs:
    """Seconds of the parts of a round on this machine."""

    solve: float  # of a ridge path of `_SOLVE_ROWS` rows
    pair: float  # of a value of the kernel
    image: float  # of the features of an image

    def of_round(self, n, n_centres):
        """Return the seconds of a round of n rows and so many centres."""
        solve = self.solve / _SOLVE_ROWS**3
        if n_centres >= n - 1:
            return solve * n**3 + self.pair * n**2 / 2 + self.image * n
        # Sums over the rows, whose features a file keeps, and those that are left out.
        rows = n * (self.pair * n_centres + self.image)
        return solve * (n_centres**3 + 2 * n * n_centres**2) + rows

    def of_fit(self, n, n_centres, n_rounds, n_fits):
        """Return the seconds of all fits that `_count_fits` counts.

        Those to choose by, beside the rounds, are of the landmarks alone.
        """
        rounds = (n_rounds + 1) * self.of_round(n, n_centres)
        return rounds + (n_fits - n_rounds - 1) * self.of_round(n_centres, n_centres)

    def landmarks_within(self, seconds, n, *counts):
        """Return the landmarks, a round number, that take so many seconds.

        Where passes over the rows alone take longer, those that take little more.
        """
        sizes = [d * 10**k for k in range(2, 7) for d in range(1, 10)]
        longest = max(seconds, _LITTLE_MORE * self.of_fit(n, _FEWEST, *counts))
        fitting = [m for m in sizes if self.of_fit(n, m, *counts) <= longest]
        return max([m for m in fitting if m < n] or [_FEWEST])


def check_fit(recipe, data, n_rounds):
    """Refuse a fit whose matrices exceed the free memory, and warn of a long one."""
    if recipe.kernel.is_linear:
        return
    n, name = len(data.images), type(recipe.kernel).__name__
    n_centres, n_bytes = n, _PATH_BYTES + recipe.resources.itemsize
    if recipe.has_landmarks(data):
        n_centres, n_bytes = recipe.landmarks, n_bytes + _LANDMARK_BYTES
        name = f"{name} and {n_centres} landmarks"
    size = covariance_size(n_centres, n, recipe.has_landmarks(data))
    if size <= recipe.covariance_bytes:
        n_bytes += _COVARIANCE_BYTES
    needed = n_bytes * n_centres**2
    free = free_memory(recipe.resources.device)
    if needed > free:
        fewer = min(1000, max(2, math.isqrt(int(free / n_bytes / 2))))
        raise MemoryError(
            f"a fit of {n} rows with {name} needs {needed / 2**30:.1f} GiB for its "
            f"matrices of {n_centres} × {n_centres}, and {free / 2**30:.1f} GiB are "
            f"free: take landmarks={fewer}, {ALTERNATIVE}."
        )
    if n < _MEASURED_ROWS:
        return
    counts = _count_fits(recipe, n_rounds)
    costs = measure_costs(recipe, data)
    seconds = costs.of_fit(n, n_centres, *counts)
    if seconds >= LONG_FIT:
        fewer = costs.landmarks_within(SHORT_FIT, n, *counts)
        minutes = costs.of_fit(n, fewer, *counts) / 60
        warn_caller(
            f"a fit of {n} rows with {name} will take about "
            f"{seconds / 60:.0f} minutes ({counts[0] + 1} rounds, by the speed of its "
            f"first tiles): take landmarks={fewer}, with which it takes about "
            f"{max(1, minutes):.0f} min, {ALTERNATIVE}.",
        )


def _count_fits(recipe, n_rounds):
    """Return how many rounds there are after round 0, and fits in all."""
    if isinstance(recipe.kernel, PatchKernel):
        return n_rounds, n_rounds + 1
    layers = recipe.features
    chosen = 0 if recipe.start else sum(layer.candidates > 1 for layer in layers)
    if not any(layer.learn for layer in layers):
        n_rounds = min(n_rounds, int(chosen > 0))
    # One for each bank of candidates; and the least bandwidth is compared with another.
    more = chosen * (n_rounds > 0) + (getattr(recipe.kernel, "bandwidth", 1) == "auto")
    return n_rounds, n_rounds + 1 + more


def measure_costs(recipe, data):
    """Return the `Costs` of a round, from a few images, tiles and a small solve."""
    solve = _solve_seconds(recipe.resources.device)
    # Only the first stage's images are there.
    rows = np.linspace(0, len(data.images) - 1, _TILE_ROWS).astype(int)
    if isinstance(recipe.kernel, PatchKernel):
        model = _plain(recipe).model(data.take(rows)).with_metric(None)
        return Costs(solve, 2 * _seconds(model.design) / _TILE_ROWS**2, 0.0)
    few = rows[::4]  # whose time is that of what is done once
    model = _plain(recipe).model(data.take(few)).with_metric(None)
    images = [take(data.images, some) for some in (rows, few)]
    all_, once = (_seconds(model.features_of, some) for some in images)
    return Costs(solve, 0.0, max(0.0, all_ - once) / (len(rows) - len(few)))


def _plain(recipe):
    """Return a recipe whose layers are quickly made, and maps as long as otherwise."""
    plain = {"candidates": 1, "metric": "identity"}
    layers = tuple(clone(layer).set_params(**plain) for layer in recipe.features)
    # The source of draws is for the fit.
    return replace(recipe, features=layers, rng=copy.deepcopy(recipe.rng))


def _seconds(function, *arguments):
    """Return the seconds of a call, the second one unless that is long."""
    for _ in range(2):  # the first run compiles and loads
        start = perf_counter()
        function(*arguments)
        seconds = perf_counter() - start
        if seconds > 1:
            break
    return seconds


def _solve_seconds(device):
    """Return the seconds of a small band form and an inverse."""
    matrix = torch.eye(_SOLVE_ROWS, dtype=torch.float64, device=device) + 1
    start = perf_counter()
    float(BandForm(matrix.clone()).bound + inverse_factor(matrix).sum())
    return perf_counter() - start

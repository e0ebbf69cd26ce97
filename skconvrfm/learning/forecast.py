"""Memory and time of a fit with a matrix of all pairs, before it is computed."""

import warnings
from time import perf_counter

import numpy as np
import torch

from ..compute.memory import free_memory
from ..kernels.base import PatchKernel
from .band import BandForm
from .ridge import inverse_factor

# Bytes per pair of rows at the worst moment of the ridge path beside the kernel matrix:
# its band form, or weighted copy, and an inverse with its square, or LAPACK's space.
_PATH_BYTES = 24
# Predicted seconds from which on a fit is announced.
LONG_FIT = 600
# Rows from which on the time is worth a measurement, and rows of that measurement.
_MEASURED_ROWS, _TILE_ROWS, _SOLVE_ROWS = 3000, 48, 1024

ALTERNATIVE = (
    "take kernel='linear' with features=ConvFeatures(), whose cost is linear in the "
    "rows, or fewer rows"
)


def check_fit(recipe, data, n_rounds):
    """Refuse a fit whose matrices exceed the free memory, and warn of a long one."""
    if recipe.kernel.is_linear:
        return
    n, name = len(data.images), type(recipe.kernel).__name__
    needed = (_PATH_BYTES + recipe.resources.itemsize) * n**2
    free = free_memory(recipe.resources.device)
    if needed > free:
        raise MemoryError(
            f"a fit of {n} rows with {name} needs {needed / 2**30:.1f} GiB for its "
            f"matrices of {n} × {n}, and {free / 2**30:.1f} GiB are free: "
            f"{ALTERNATIVE}."
        )
    if n < _MEASURED_ROWS:
        return
    n_rounds, n_fits = _count_fits(recipe, n_rounds)
    seconds = n_fits * predicted_seconds(recipe, data)
    if seconds >= LONG_FIT:
        warnings.warn(
            f"a fit of {n} rows with {name} will take about "
            f"{seconds / 60:.0f} minutes ({n_rounds + 1} rounds, by the speed of its "
            f"first tiles): {ALTERNATIVE}.",
            stacklevel=2,
        )


def _count_fits(recipe, n_rounds):
    """Return how many rounds there are after round 0, and fits in all."""
    parts = recipe.kernel, *recipe.features
    names = {getattr(part, name, None) for part in parts for name in ("metric", "pool")}
    both = "auto" in names and not recipe.choices  # round 0 is fitted under two of them
    if isinstance(recipe.kernel, PatchKernel):
        return n_rounds, n_rounds + 1 + both
    layers = recipe.features
    chosen = 0 if recipe.start else sum(layer.candidates > 1 for layer in layers)
    if not any(layer.learn for layer in layers):
        n_rounds = min(n_rounds, int(chosen > 0))
    # One for each bank of candidates; and the least bandwidth is compared with another.
    more = chosen * (n_rounds > 0) + (getattr(recipe.kernel, "bandwidth", 1) == "auto")
    return n_rounds, n_rounds + 1 + both + more


def predicted_seconds(recipe, data):
    """Return the seconds of one round, from those of a few tiles and a small solve."""
    n = len(data.images)
    seconds = _solve_seconds(recipe.resources.device) * (n / _SOLVE_ROWS) ** 3
    if not isinstance(recipe.kernel, PatchKernel):
        return seconds
    # Only the first stage's images are there.
    model = recipe.model(data.take(np.linspace(0, n - 1, _TILE_ROWS).astype(int)))
    for _ in range(2):  # the first run compiles and loads
        start = perf_counter()
        model.with_metric(None).design()
        total = perf_counter() - start
        if total > 1:
            break
    return seconds + total * (n / _TILE_ROWS) ** 2


def _solve_seconds(device):
    """Return the seconds of a small band form and an inverse."""
    matrix = torch.eye(_SOLVE_ROWS, dtype=torch.float64, device=device) + 1
    start = perf_counter()
    float(BandForm(matrix.clone()).bound + inverse_factor(matrix).sum())
    return perf_counter() - start

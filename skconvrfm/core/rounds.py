r"""The loop over rounds: fit, score, take the patch AGOP, measure patches anew.

::

    T ← I
    for round 0..R:   K from T;  ridge path;  choose ridge;  score the round
                      if not last:  G = patch AGOP;  T ← sqrt(d) Gᵖ / ‖Gᵖ‖_F
    keep the round with the best score

The loop knows a *machine* that offers ``design``, ``ridge_path`` and ``patch_agop``,
and not which kernel is behind it.

Source: Beaglehole et al., arXiv:2309.00570, Algorithm 1; the selection by a
criterion of the training data is ours, as is the factor sqrt(d), the norm of
the identity, which keeps the bias as large against the patches as in round 0.
"""

from dataclasses import dataclass
from time import perf_counter

import numpy as np

from .ridge import RidgeSolution

SELECTIONS = ("gcv", "loo", "last")


@dataclass(frozen=True)
class Round:
    """One fitted round.

    Attributes
    ----------
    index : int
        Its number; 0 is the fixed kernel.
    transform : ndarray of shape (d, d)
        The patch transform T that it measured patches with.
    solution : RidgeSolution
        The machine that it fitted.
    criterion : float
        What rounds are compared by: smaller is better.
    """

    index: int
    transform: np.ndarray
    solution: RidgeSolution
    criterion: float


def transform_from_agop(agop, power):
    """The patch transform T = sqrt(d) Gᵖ / ‖Gᵖ‖_F of a patch AGOP G.

    Parameters
    ----------
    agop : ndarray of shape (d, d)
        The patch AGOP, symmetric.
    power : float
        The power p; negative eigenvalues, which are rounding, count as 0.

    Returns
    -------
    ndarray of shape (d, d) or None
        None where the AGOP is zero: the machine is constant, and no direction of
        a patch means more to it than another.
    """
    eigenvalues, vectors = np.linalg.eigh(agop)
    largest = eigenvalues[-1]
    if not largest > 0:
        return None
    powers = np.clip(eigenvalues / largest, 0, None) ** power
    transform = (vectors * powers) @ vectors.T
    transform = (transform + transform.T) / 2
    return transform * (np.sqrt(len(agop)) / np.linalg.norm(transform))


def fit_rounds(machine, *, patch_dim, n_rounds, agop_power, selection, score, report):
    """Fit the rounds and choose one.

    Parameters
    ----------
    machine : object
        Offers ``design(transform)``, what a ridge is fitted to (a kernel matrix);
        ``ridge_path(design)``, a `RidgePath`; and ``patch_agop(dual_coef,
        transform)``, an ndarray of shape (d, d). A transform of None is the identity.
    patch_dim : int
        Entries d of a patch.
    n_rounds : int
        Rounds after round 0.
    agop_power : float
        The power p of the AGOP.
    selection : {"gcv", "loo", "last"}
        What chooses ridge and round; "last" takes the last round, and the ridge by
        GCV.
    score : callable
        ``score(loo_prediction)`` → float, recorded in the history.
    report : callable
        ``report(best_round, history)`` after every round; rounds end when it
        returns True.

    Returns
    -------
    best : Round
        The chosen round.
    agop : ndarray of shape (d, d)
        The patch AGOP of its machine.
    history : dict of list
        What happened, one entry a round.
    """
    keys = ("round", "alpha", "gcv", "loo_loss", "loo_score")
    clocks = ("seconds_kernel", "seconds_solve", "seconds_agop")
    history = {key: [] for key in keys + clocks}
    transform = best = best_agop = None
    for index in range(n_rounds + 1):
        start = perf_counter()
        design = machine.design(transform)
        measured = perf_counter()
        solution = _choose_ridge(machine.ridge_path(design), selection)
        del design
        seconds = [measured - start, perf_counter() - measured, 0.0]
        criterion = solution.loo_loss if selection == "loo" else solution.gcv
        current = Round(
            index,
            np.eye(patch_dim) if transform is None else transform,
            solution,
            criterion,
        )
        chosen = best is None or selection == "last" or criterion < best.criterion
        if chosen:
            best, best_agop = current, None
        if index < n_rounds:
            start = perf_counter()
            agop = machine.patch_agop(solution.dual_coef, transform)
            seconds[2] = perf_counter() - start
            if chosen:
                best_agop = agop
            transform = transform_from_agop(agop, agop_power)
        _record(history, current, score(solution.loo_prediction), seconds)
        if report(best, history) or transform is None:
            break
    if best_agop is None:
        start = perf_counter()
        best_agop = machine.patch_agop(
            best.solution.dual_coef, best.transform if best.index else None
        )
        history["seconds_agop"][best.index] += perf_counter() - start
    return best, best_agop, history


def _choose_ridge(path, selection):
    """The solution at the ridge that the criterion likes best."""
    criterion = path.loo_loss() if selection == "loo" else path.gcv()
    if not np.isfinite(criterion).all():
        raise ValueError(
            f"the error of the fit is not finite for alpha={path.alphas.min():g}: take "
            "larger ridges, or scale the targets y."
        )
    return path.solve(path.alphas[np.argmin(criterion)])


def _record(history, current, score, seconds):
    """Append one round to the history."""
    solution = current.solution
    values = (current.index, solution.alpha, solution.gcv, solution.loo_loss, score)
    for key, value in zip(history, (*values, *seconds), strict=True):
        history[key].append(value)

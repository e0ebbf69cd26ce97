r"""The loop over rounds: fit, score, take the patch AGOP, measure patches anew.

::

    T ← I
    for round 0..R:   K from T;  ridge path;  choose ridge;  score the round
                      if not last:  G = patch AGOP;  T ← sqrt(d) Gᵖ / ‖Gᵖ‖_F
    keep the round with the best score

and the loop over layers around it, Deep ConvRFM::

    for layer 0..D-1: fit the rounds on the present maps;  T ← that of the round kept
                      draw filters from N(0, T Tᵀ);  maps ← activation(filters * maps)
    keep the layer with the best score

The loops know a *machine*, and not which kernel is behind it. It offers ``under(T)``,
itself under a patch transform; ``design()``, what a ridge is fitted to (a kernel
matrix); ``ridge_path(design)``, a `RidgePath`; ``patch_agop(dual_coef)``, an ndarray of
shape (d, d); and ``patch_dim``, which is d. A transform of None is the identity.

Source: Beaglehole et al., arXiv:2309.00570, Algorithm 1 and Deep ConvRFM; the selection
by a criterion of the training data is ours, as is the factor sqrt(d), the norm of the
identity, which keeps the bias as large against the patches as in round 0.
"""

import functools
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
    machine : object
        The machine under the patch transform of the round.
    solution : RidgeSolution
        The machine's coefficients at the chosen ridge.
    criterion : float
        What rounds are chosen by; lower is better.
    """

    index: int
    machine: object
    solution: RidgeSolution
    criterion: float

    @property
    def transform(self):
        """The patch transform T that the round measured patches with."""
        transform = self.machine.transform
        return np.eye(self.machine.patch_dim) if transform is None else transform

    def patch_agop(self):
        """The patch AGOP of the round's predictor."""
        return self.machine.patch_agop(self.solution.dual_coef)


@dataclass(frozen=True)
class FittedRounds:
    """The rounds of one machine.

    Attributes
    ----------
    best : Round
        The chosen round.
    agop : ndarray of shape (d, d)
        The patch AGOP of its predictor.
    history : dict of list
        What happened, one entry a round.
    stopped : bool
        Whether a report asked for the end.
    """

    best: Round
    agop: np.ndarray
    history: dict
    stopped: bool


@dataclass(frozen=True)
class FittedLayer:
    """One layer: its rounds, and the filters that they led to.

    Attributes
    ----------
    rounds : FittedRounds
        The rounds on the maps that the layer sees.
    filter_transform : ndarray of shape (d, d)
        The square root of the covariance of the filters.
    filters : ndarray of shape (n_filters, d)
        The filters that pass the maps on.
    """

    rounds: FittedRounds
    filter_transform: np.ndarray
    filters: np.ndarray


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


def leading_eigenvectors(matrix, n_components):
    """The leading eigenvectors of a symmetric matrix, each with a sign of its own.

    Parameters
    ----------
    matrix : ndarray of shape (d, d)
        A patch AGOP, or a patch transform.
    n_components : int
        How many; no more than d are given.

    Returns
    -------
    ndarray of shape (n_components, d)
        In the order of their eigenvalues, the largest entry of each positive.
    """
    vectors = np.linalg.eigh(matrix)[1].T[::-1][:n_components]
    peaks = np.abs(vectors).argmax(axis=1)[:, None]
    return vectors * np.sign(np.take_along_axis(vectors, peaks, axis=1))


def fit_rounds(machine, *, n_rounds, agop_power, selection, score, report):
    """Fit the rounds and choose one.

    Parameters
    ----------
    machine : object
        See the module's docstring.
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
    FittedRounds
    """
    keys = ("round", "alpha", "gcv", "loo_loss", "loo_score", "spectrum")
    clocks = ("seconds_kernel", "seconds_solve", "seconds_agop")
    history = {key: [] for key in keys + clocks}
    transform = best = best_agop = None
    for index in range(n_rounds + 1):
        start = perf_counter()
        current = machine.under(transform)
        design = current.design()
        measured = perf_counter()
        solution = _choose_ridge(current.ridge_path(design), selection)
        del design
        seconds = [measured - start, perf_counter() - measured, 0.0]
        criterion = solution.loo_loss if selection == "loo" else solution.gcv
        current = Round(index, current, solution, criterion)
        chosen = best is None or _is_better(current, best, selection)
        if chosen:
            best, best_agop = current, None
        if index < n_rounds:
            start = perf_counter()
            agop = current.patch_agop()
            seconds[2] = perf_counter() - start
            if chosen:
                best_agop = agop
            transform = transform_from_agop(agop, agop_power)
        _record(history, current, score(solution.loo_prediction), seconds)
        stopped = bool(report(best, history))
        if stopped or transform is None:
            break
    if best_agop is None:
        start = perf_counter()
        best_agop = best.patch_agop()
        history["seconds_agop"][best.index] += perf_counter() - start
    return FittedRounds(best, best_agop, history, stopped)


def fit_layers(machine, pass_on, *, n_layers, draw, report, selection, **rounds):
    """Fit layer upon layer, until one stops.

    Parameters
    ----------
    machine : object
        The machine of the first layer, see the module's docstring.
    pass_on : callable
        ``pass_on(machine, filters)`` → the machine of the next layer.
    n_layers : int
        Number of layers.
    draw : callable
        ``draw(transform)`` → filters with the covariance T Tᵀ.
    report : callable
        ``report(layers, best_round, history)`` after every round, with the layers that
        are finished; the fit ends when it returns True.
    selection : {"gcv", "loo", "last"}
        What chooses ridge and round.
    **rounds : object
        The other parameters of `fit_rounds`.

    Returns
    -------
    list of FittedLayer
        The layers, from the image up.
    """
    layers = []
    for _ in range(n_layers):
        if layers:
            machine = pass_on(machine, layers[-1].filters)
        fitted = fit_rounds(
            machine,
            selection=selection,
            report=functools.partial(report, tuple(layers)),
            **rounds,
        )
        transform = filter_transform(fitted, rounds["agop_power"])
        layers.append(FittedLayer(fitted, transform, draw(transform)))
        if fitted.stopped:
            break
    return layers


def best_layer(rounds, selection):
    """The index of the layer whose chosen round is the best."""
    best = 0
    for index, current in enumerate(rounds):
        if _is_better(current, rounds[best], selection):
            best = index
    return best


def filter_transform(fitted, power):
    """The learned patch transform, from which the filters of a layer are drawn.

    That of the chosen round; where this is round 0, which has learned none yet, the one
    that the AGOP of its predictor gives.
    """
    if fitted.best.index:
        return fitted.best.transform
    learned = transform_from_agop(fitted.agop, power)
    return fitted.best.transform if learned is None else learned


def _is_better(current, best, selection):
    """Whether a later round, or layer, is to be preferred."""
    return selection == "last" or current.criterion < best.criterion


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
    shares = _spectrum(current.transform)
    for key, value in zip(history, (*values, shares, *seconds), strict=True):
        history[key].append(value)


def _spectrum(transform):
    """Eigenvalues of the metric T Tᵀ, the largest first, as shares of their sum."""
    eigenvalues = np.linalg.eigvalsh(transform) ** 2
    return np.sort(eigenvalues)[::-1] / eigenvalues.sum()

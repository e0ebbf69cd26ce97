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

The loops know a *machine*, and not which model is behind it. It offers ``under(T)``,
itself under a patch transform; ``design()``, what a ridge is fitted to (a kernel
matrix, or features); ``ridge_path(design)``, a `RidgePath` or its like;
``patch_agop(coef)``, an ndarray of shape (d, d); ``held_out_loss(path)``, an error a
ridge; ``patch_dim``, which is d; ``initial_transform``, that of round 0; and
``optimism``, the share by which the criteria of a round that learned from the same
labels are too low. A transform of None is the identity, or, for ``under``, the initial
one.

Source: Beaglehole et al., arXiv:2309.00570, Algorithm 1 and Deep ConvRFM; the selection
by a criterion of the training data is ours, as is the factor sqrt(d), the norm of the
identity, which keeps the bias as large against the patches as in round 0.
"""

import functools
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np

from .features import FilterLayer
from .ridge import RidgeSolution

SELECTIONS = ("gcv", "loo", "holdout", "last")


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
        return self.machine.patch_agop(self.solution.coef)


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
class Progress:
    """How far the rounds of one machine have come, between two of them.

    Attributes
    ----------
    history : dict of list
        What happened, one entry a round.
    best : Round or None
        The round chosen so far.
    agop : ndarray of shape (d, d) or None
        The patch AGOP of its predictor, where it was taken.
    transform : ndarray of shape (d, d) or None
        The patch transform of the round to come.
    stopped : bool
        Whether a report asked for the end.
    ended : bool
        Whether no round is to come.
    """

    history: dict
    best: Round | None = None
    agop: np.ndarray | None = None
    transform: np.ndarray | None = None
    stopped: bool = False
    ended: bool = False


class Journal:
    """Keeps the progress of layers, so that a fit can go on from it; this one none."""

    def load(self, layer, machine):
        """How far the rounds of a layer had come, a `Progress`; None is not begun.

        Parameters
        ----------
        layer : int
            The layer's number.
        machine : object
            Its machine.
        """

    def save(self, layer, progress):
        """Keep the `Progress` of a layer."""


@dataclass(frozen=True)
class FittedLayer:
    """One layer: its rounds, and the filters that they led to.

    Attributes
    ----------
    rounds : FittedRounds
        The rounds on the maps that the layer sees.
    filter_transform : ndarray of shape (d, d)
        The square root of the covariance of the filters.
    maps : FilterLayer
        The filters that pass the maps on.
    """

    rounds: FittedRounds
    filter_transform: np.ndarray
    maps: FilterLayer


def transform_from_agop(agop, power, initial=None):
    """The patch transform T = sqrt(d) Gᵖ / ‖Gᵖ‖_F of a patch AGOP G.

    Where the rounds began from another transform T₀ than the identity, G is that of the
    patches T₀ v, which is T₀⁻¹ G T₀⁻¹, and T the square root of T₀ (T T) T₀.

    Parameters
    ----------
    agop : ndarray of shape (d, d)
        The patch AGOP, symmetric.
    power : float
        The power p; eigenvalues that are rounding, negative ones too, count as 0.
    initial : ndarray of shape (d, d), default=None
        The transform T₀, symmetric and regular; None is the identity.

    Returns
    -------
    ndarray of shape (d, d) or None
        None where the AGOP is zero: the machine is constant, and no direction of
        a patch means more to it than another.
    """
    if initial is not None:
        inverse = np.linalg.inv(initial)
        seen = transform_from_agop(_symmetric(inverse @ agop @ inverse), power)
        if seen is None:
            return None
        # U S Vᵀ of T T₀ gives V S Vᵀ, the root of its square.
        _, lengths, vectors = np.linalg.svd(seen @ initial)
        return _symmetric((vectors.T * lengths) @ vectors)
    eigenvalues, vectors = np.linalg.eigh(agop)
    largest = eigenvalues[-1]
    if not largest > 0:
        return None
    ratios = eigenvalues / largest
    # With fewer filters than entries some are rounding, and its root would not be.
    ratios[ratios < len(agop) * np.finfo(float).eps] = 0
    powers = ratios**power
    transform = _symmetric((vectors * powers) @ vectors.T)
    return transform * (np.sqrt(len(agop)) / np.linalg.norm(transform))


def _symmetric(matrix):
    """A matrix that is symmetric but for rounding, without it."""
    return (matrix + matrix.T) / 2


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


def fit_rounds(
    machine,
    *,
    n_rounds,
    agop_power,
    selection,
    score,
    report,
    alphas=None,
    progress=None,
    save=lambda progress: None,
):
    """Fit the rounds and choose one.

    Parameters
    ----------
    machine : object
        See the module's docstring.
    n_rounds : int
        Rounds after round 0.
    agop_power : float
        The power p of the AGOP.
    selection : {"gcv", "loo", "holdout", "last"}
        What chooses ridge and round: an error of the training rows, or that of the
        machine's held-out rows; "last" takes the last round, and the ridge by GCV.
    score : callable
        ``score(loo_prediction)`` → float, recorded in the history.
    report : callable
        ``report(best_round, history)`` after every round; rounds end when it
        returns True.
    alphas : sequence of float, default=None
        The ridge of every round, where a former fit has chosen them; the last round is
        then taken.
    progress : Progress, default=None
        From where to go on; None is the beginning.
    save : callable, default=nothing
        ``save(progress)`` after every round, and after the last AGOP.

    Returns
    -------
    FittedRounds
    """
    if progress is None:
        progress = Progress(_empty_history(selection))
    history, best, best_agop = progress.history, progress.best, progress.agop
    while not progress.ended:
        index, transform = len(history["round"]), progress.transform
        start = perf_counter()
        current = machine.under(transform)
        design = current.design()
        measured = perf_counter()
        path = current.ridge_path(design)
        if alphas is None:
            alpha, criterion = _choose_ridge(current, path, selection)
        else:
            alpha, criterion = alphas[index], np.nan
        solution = path.solve(alpha)
        del design, path
        seconds = [measured - start, perf_counter() - measured, 0.0]
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
            transform = transform_from_agop(agop, agop_power, machine.initial_transform)
        _record(history, current, score(solution.loo_prediction), seconds)
        # What was not reported is not kept either, and is done again.
        stopped = bool(report(best, history))
        ended = stopped or transform is None or index == n_rounds
        progress = Progress(history, best, best_agop, transform, stopped, ended)
        save(progress)
    if best_agop is None:
        start = perf_counter()
        best_agop = best.patch_agop()
        history["seconds_agop"][best.index] += perf_counter() - start
        save(replace(progress, agop=best_agop))
    return FittedRounds(best, best_agop, history, progress.stopped)


def fit_layers(
    machine,
    *,
    n_layers,
    pass_on,
    maps,
    report,
    agop_power,
    plan=None,
    journal=None,
    **rounds,
):
    """Fit layer upon layer, until one stops.

    Parameters
    ----------
    machine : object
        The machine of the first layer, see the module's docstring.
    n_layers : int
        Number of layers.
    pass_on : callable
        ``pass_on(machine, maps)`` → the machine of the next layer.
    maps : callable
        ``maps(fitted_rounds, transform)`` → the `FilterLayer` that passes maps on,
        from the learned transform.
    report : callable
        ``report(layers, best_round, history)`` after every round, with the layers that
        are finished; the fit ends when it returns True.
    agop_power : float
        The power p of the AGOP.
    plan : list of list of float, default=None
        The ridges of the rounds of every layer, where a former fit has chosen them.
    journal : Journal, default=None
        What keeps the progress of the layers, and has that of a fit to go on with.
        Layers that are finished are passed through again, for filters are drawn anew.
    **rounds : object
        The other parameters of `fit_rounds`.

    Returns
    -------
    list of FittedLayer
        The layers, from the image up.
    """
    journal = Journal() if journal is None else journal
    layers = []
    for index in range(n_layers):
        if layers:
            machine = pass_on(machine, layers[-1].maps)
        if plan is not None:
            rounds |= {"alphas": plan[index], "n_rounds": len(plan[index]) - 1}
        fitted = fit_rounds(
            machine,
            agop_power=agop_power,
            report=functools.partial(report, tuple(layers)),
            progress=journal.load(index, machine),
            save=functools.partial(journal.save, index),
            **rounds,
        )
        transform = filter_transform(fitted, agop_power)
        layers.append(FittedLayer(fitted, transform, maps(fitted, transform)))
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
    machine = fitted.best.machine
    learned = transform_from_agop(fitted.agop, power, machine.initial_transform)
    return fitted.best.transform if learned is None else learned


def _is_better(current, best, selection):
    """Whether a later round, or layer, is to be preferred."""
    if selection == "last":
        return True
    # What learned from the same labels looks better by so much than it is.
    optimism = 0 if selection == "holdout" else current.machine.optimism
    return current.criterion < (1 - optimism) * best.criterion


def _choose_ridge(machine, path, selection):
    """The ridge that the criterion likes best, and its value there."""
    if selection == "loo":
        criterion = path.loo_loss()
    elif selection == "holdout":
        criterion = machine.held_out_loss(path)
    else:
        criterion = path.gcv()
    if not np.isfinite(criterion).all():
        raise ValueError(
            f"the error of the fit is not finite for alpha={path.alphas.min():g}: take "
            "larger ridges, or scale the targets y."
        )
    chosen = np.argmin(criterion)
    return path.alphas[chosen], float(criterion[chosen])


def _empty_history(selection):
    """The history before the first round, with a list for each key."""
    keys = ["round", "alpha", "gcv", "loo_loss", "loo_score", "spectrum"]
    if selection == "holdout":
        keys.append("holdout_loss")
    clocks = ["seconds_kernel", "seconds_solve", "seconds_agop"]
    return {key: [] for key in keys + clocks}


def _record(history, current, score, seconds):
    """Append one round to the history."""
    solution = current.solution
    values = [current.index, solution.alpha, solution.gcv, solution.loo_loss, score]
    values.append(_spectrum(current.transform))
    if "holdout_loss" in history:
        values.append(current.criterion)
    for key, value in zip(history, values + seconds, strict=True):
        history[key].append(value)


def _spectrum(transform):
    """Eigenvalues of the metric T Tᵀ, the largest first, as shares of their sum."""
    eigenvalues = np.linalg.eigvalsh(transform) ** 2
    return np.sort(eigenvalues)[::-1] / eigenvalues.sum()

r"""The loop over rounds: fit, score, take the patch AGOPs, measure patches anew.

::

    T ← I
    for round 0..R:   K from T;  ridge path;  choose ridge;  score the round
                      end if the criterion has not improved for some rounds
                      if not last:  G = patch AGOP;  T ← sqrt(d) Gᵖ / ‖Gᵖ‖_F
    keep the round with the best score

for the metric of a kernel of patches, or those of all feature layers under a kernel of
their maps; and the loop over stages around it, Deep ConvRFM::

    for layer 0..D-1: fit the rounds on the present maps;  T ← that of the round kept
                      draw filters from N(0, T Tᵀ);  maps ← activation(filters * maps)
    keep the layer with the best score

Source: Beaglehole et al., arXiv:2309.00570, Algorithm 1 and Deep ConvRFM; the selection
by a criterion of the training data is ours, as is the factor sqrt(d), the norm of the
identity, which keeps the bias as large against the patches as in round 0.
"""

from dataclasses import dataclass, field, replace
from time import perf_counter

import numpy as np

from ..features.filters import FilterBank, draw_bank
from ..features.layer import ConvFeatures
from ..features.maps import FilterLayer
from .covariance import keeps_covariance
from .ridge import RidgeSolution

SELECTIONS = ("gcv", "loo", "holdout", "last")
# Eigenvalues below this part of the largest are those of a null space, blurred by
# rounding: of a transform, and of an AGOP in units in the last place.
_NULL_SPACE, _NULL_UNITS = 1e-6, 64
_PEAK = 1 - 1e-6  # of the largest entry of an eigenvector, from which others are peaks
# Multiples of the median distance that a bandwidth may be, each taken where it lowers
# the criterion by this part. Below the median the accuracy falls with the criteria.
MULTIPLES, _GAIN = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0), 0.01
CHOICE_IMAGES = 1000  # on which alternatives are compared
CLOCKS = ("seconds_kernel", "seconds_solve", "seconds_agop")


@dataclass(frozen=True)
class Round:
    """One fitted round."""

    index: int  # 0 is the fixed kernel
    model: object  # under the patch transforms of the round
    solution: RidgeSolution  # at the chosen ridge
    criterion: float  # error by which rounds are chosen

    @property
    def transforms(self):
        """The patch transform T of each layer that learns, as arrays."""
        pairs = zip(self.model.transforms, self.model.patch_dims, strict=True)
        return tuple(np.eye(d) if t is None else t for t, d in pairs)

    def patch_agops(self):
        """Return the patch AGOPs of the round's predictor."""
        return self.model.patch_agops(self.solution.coef)

    def learned_transforms(self, agops, power):
        """Return the transforms of the round, or after round 0 those of its AGOPs."""
        if self.index:
            return self.transforms
        found = self.next_transforms(agops, power)
        pairs = zip(found or self.transforms, self.transforms, strict=True)
        return tuple(own if new is None else new for new, own in pairs)

    def next_transforms(self, agops, power):
        """Return the transforms of the round that follows, None where nothing learns.

        ``power`` is that of layers without one of their own.
        """
        found = [one.agop for one in agops]
        initials = self.model.initial_transforms
        return transforms_from(found, self.model.powers(power), initials)


@dataclass(frozen=True)
class Progress:
    """Rounds of one model that are done, between two of them."""

    history: dict  # of lists, one entry per round
    best: Round | None = None  # chosen so far
    agops: tuple | None = None  # of its predictor, where they were taken
    transforms: tuple | None = None  # of the round to come
    chosen: tuple = ()  # numbers of the filters of the rounds to come
    stopped: bool = False  # by a report
    ended: bool = False  # no round is to come
    choice: int = 0  # of the alternatives of the model


@dataclass(frozen=True)
class Schedule:
    """Numbers and criteria by which a model is learned."""

    n_rounds: int  # after round 0
    agop_power: float  # p
    selection: str  # of SELECTIONS; "last" takes the ridge by GCV
    patience: int | None = None  # rounds without improvement that end; None is all
    plan: list | None = None  # `StagePlan` of every stage, of a former fit

    def of_stage(self, stage):
        """Return the schedule of a stage, which takes the ridges of the plan if any."""
        if self.plan is None:
            return self
        plan = self.plan[stage]
        given = {"n_rounds": plan.n_rounds, "selection": "last", "patience": None}
        return replace(self, plan=plan, **given)

    def ends(self, history):
        """Return True if no round is to follow those of a history."""
        criterion = history["criterion"]
        index = len(criterion) - 1
        if index >= self.n_rounds or self.patience is None or self.selection == "last":
            return index >= self.n_rounds
        return index - int(np.argmin(criterion)) >= self.patience


@dataclass(frozen=True)
class StagePlan:
    """Ridges of the rounds of a stage, up to the last, and of its bandwidth."""

    alphas: list
    multiple: float | None  # of the median distance

    @classmethod
    def of(cls, stage):
        """Return the plan that repeats the chosen round of a `FittedStage`."""
        alphas = stage.history["alpha"][: stage.best.index + 1]
        return cls(alphas, stage.best.model.multiple)

    @property
    def n_rounds(self):
        """Rounds after round 0."""
        return len(self.alphas) - 1


class Watcher:
    """Scores, takes note of and keeps rounds; this one does nothing."""

    def score(self, loo_prediction):
        """Return the score of the predictions of left-out rows, for the history."""

    def report(self, stages, best, history, ends):
        """Take note of finished stages and the best round; True ends the fit.

        ``ends`` is True if the stage has no other round.
        """

    def load(self, stage, model):
        """Return the `Progress` of a stage in a former run, or None."""

    def save(self, stage, progress):
        """Keep the `Progress` of a stage."""


@dataclass(frozen=True)
class FittedStage:
    """Rounds of one model, and the feature layer that passes its maps on, if any."""

    best: Round  # the chosen round
    agops: tuple  # of its predictor
    learned_transforms: tuple  # also where round 0 was chosen
    history: dict  # of lists, one entry per round
    stopped: bool  # by a report
    features: ConvFeatures | None = None  # below the next stage
    bank: FilterBank | None = None
    maps: FilterLayer | None = None


@dataclass
class _Clock:
    """Seconds of the parts of a round, by the names of the history."""

    seconds: dict = field(default_factory=dict)
    begun: float = field(default_factory=perf_counter)

    def lap(self, name):
        """Give the time since the last lap to a part."""
        now = perf_counter()
        self.seconds[name] = self.seconds.get(name, 0) + now - self.begun
        self.begun = now

    def skip(self):
        """Give the time since the last lap to no part."""
        self.begun = perf_counter()


def fit_rounds(model, schedule, watcher=None, stages=()):
    """Fit the rounds of a model above ``stages`` and choose one, a `FittedStage`."""
    watcher, stage = Watcher() if watcher is None else watcher, len(stages)
    progress = watcher.load(stage, model) or Progress(_empty_history(schedule, model))
    if progress.best is not None:
        model = model.alternatives[progress.choice]
    if progress.chosen:
        model = model.with_filters(progress.chosen)
    while not progress.ended:
        index, clock = len(progress.history["round"]), _Clock()
        if index:
            learned = progress.transforms, progress.best.model.multiple
            current = _fit_round(model, *learned, schedule, index, clock)
        else:
            choice, current = _fit_first_round(model, schedule, clock)
            model = model.alternatives[choice]
            progress = replace(progress, choice=choice)
        score = watcher.score(current.solution.loo_prediction)
        _record(progress.history, current, score)
        agops = transforms = None
        ends = schedule.ends(progress.history)
        clock.skip()
        if not ends and model.has_candidates:
            model = model.with_filters()
            transforms = model.initial_transforms
        elif not ends:
            agops = current.patch_agops()
            transforms = current.next_transforms(agops, schedule.agop_power)
        clock.lap("seconds_agop")
        if is_better(current, progress.best, schedule.selection):
            progress = replace(progress, best=current, agops=agops)
        for name, seconds in clock.seconds.items():
            progress.history[name].append(seconds)
        # A round that was not reported is not kept either, and is done again.
        known = stages, progress.best, progress.history, transforms is None
        stopped = bool(watcher.report(*known))
        ends = {"stopped": stopped, "ended": stopped or transforms is None}
        learned = {"transforms": transforms, "chosen": model.chosen}
        progress = replace(progress, **learned, **ends)
        watcher.save(stage, progress)
    return _finish(progress, schedule, watcher, stage)


def _fit_first_round(model, schedule, clock):
    """Return the number of the alternative that is chosen, and its round 0."""
    choice, tried = choose_alternative(model, schedule, clock)
    if tried is not None and tried.model.data is model.data:  # and not of a sample
        return choice, tried
    chosen = model.alternatives[choice]
    multiple = choose_bandwidth(chosen, schedule, clock)
    return choice, _fit_round(chosen, None, multiple, schedule, 0, clock)


def choose_alternative(model, schedule, clock=None):
    """Return the number of the alternative that is chosen, and round 0 of its sample.

    There is no round where there is nothing to choose.
    """
    models, options = model.alternatives, (None, None, schedule, 0, clock or _Clock())
    if schedule.plan is not None or len(models) == 1:
        return 0, None
    tried = [_fit_round(one.on_sample(CHOICE_IMAGES), *options) for one in models]
    handicaps = [1 + one.handicap for one in models]
    best = np.argmin(np.multiply(handicaps, [one.criterion for one in tried]))
    return int(best), tried[best]


def choose_bandwidth(model, schedule, clock=None):
    """Return the multiple of a bandwidth by the landmarks alone, None if they are all.

    A pass over all rows for each would take far longer.
    """
    there = schedule.plan is not None or not model.chooses_bandwidth
    if there or model.landmarks is None:
        return model.multiple
    options = None, None, schedule, 0, clock or _Clock()
    return _fit_round(model.on_landmarks(), *options).model.multiple


def _fit_round(model, transforms, multiple, schedule, index, clock):
    """Return the `Round` of a model under some transforms, and a bandwidth.

    In round 0 there are none yet, and the bandwidth is chosen.
    """
    model = model.with_metric(transforms)
    if multiple is None and schedule.plan is not None:
        multiple = schedule.plan.multiple
    if multiple is not None:
        model = model.stretched(multiple)
    design = model.design()
    clock.lap("seconds_kernel")
    fitted = solve_round(model, design, schedule, index)
    clock.lap("seconds_solve")
    return fitted


def _finish(progress, schedule, watcher, stage):
    """Return the chosen round with its AGOPs, which the last round has yet to take."""
    best, agops, history = progress.best, progress.agops, progress.history
    if agops is None:
        begun = perf_counter()
        agops = best.patch_agops()
        history["seconds_agop"][best.index] += perf_counter() - begun
        watcher.save(stage, replace(progress, agops=agops))
    learned = best.learned_transforms(agops, schedule.agop_power)
    return FittedStage(best, agops, learned, history, progress.stopped)


def fit_stages(recipe, data, schedule, watcher=None, held_out=None):
    """Fit the models of a `Recipe` on a `TrainingSet`, a list of `FittedStage`.

    Deep ConvRFM has several stages, each on the maps of the one below. Finished ones of
    a former run are passed through again, for filters are drawn anew.
    """
    stages, landmarks = [], recipe.landmarks_of(data)
    n_stages = recipe.n_stages if schedule.plan is None else len(schedule.plan)
    for index in range(n_stages):
        model = recipe.model(data, held_out, landmarks, index)
        stage = fit_rounds(model, schedule.of_stage(index), watcher, tuple(stages))
        if index + 1 < recipe.n_stages:
            stage = _with_filters(stage, recipe, data, index)
            data, held_out, landmarks = (
                part and part.behind(stage.maps, recipe.resources)
                for part in (data, held_out, landmarks)
            )
        stages.append(stage)
        if stage.stopped:
            break
    return stages


def _with_filters(stage, recipe, data, index):
    """Return a stage with the filters that carry its metric to the next one."""
    features = recipe.features[index].bind(data.images.shape[1:])
    bank = draw_bank(features, data.images, data.lineup, recipe.rng, recipe.resources)
    [transform] = stage.learned_transforms
    if bank.initial is not None and stage.best.model.initial is None:
        transform = _in_metric(transform, bank.initial)
    maps = bank.under(transform, features)
    return replace(stage, features=features, bank=bank, maps=maps)


def best_stage(rounds, selection):
    """Return the index of the stage whose chosen round is the best."""
    best = 0
    for index, current in enumerate(rounds):
        if is_better(current, rounds[best], selection):
            best = index
    return best


def is_better(current, best, selection):
    """Return True if a later round, or stage, is to be preferred."""
    if best is None or selection == "last":
        return True
    # A model that learned from the same labels looks better by so much than it is.
    optimism = 0 if selection == "holdout" else current.model.optimism
    return current.criterion < (1 - optimism) * best.criterion


def transforms_from(agops, powers, initials):
    """Return the transforms of AGOPs, the initial one for a zero, None if all are.

    Layers whose power is None keep the initial one as well.
    """
    found = [
        None if power is None else transform_from_agop(agop, power, initial)
        for agop, power, initial in zip(agops, powers, initials, strict=True)
    ]
    if all(transform is None for transform in found):
        return None
    pairs = zip(found, initials, strict=True)
    return tuple(initial if new is None else new for new, initial in pairs)


def transform_from_agop(agop, power, initial=None):
    """Return the patch transform T = sqrt(d) Gᵖ / ‖Gᵖ‖_F of a patch AGOP G, or None.

    Where the rounds began from another transform T₀ than the identity, G is that of the
    patches T₀ v, which is T₀⁻¹ G T₀⁻¹, and T the square root of T₀ (T T) T₀.
    Eigenvalues that are rounding count as 0. A G of zero (a constant model) has none.
    """
    if initial is not None:
        inverse = np.linalg.inv(initial)
        seen = transform_from_agop(_symmetric(inverse @ agop @ inverse), power)
        return None if seen is None else _in_metric(seen, initial)
    eigenvalues, vectors = np.linalg.eigh(agop)
    largest = eigenvalues[-1]
    if not largest > 0:
        return None
    ratios = eigenvalues / largest
    # With fewer filters than entries some are rounding, and its root would not be.
    ratios[ratios < len(agop) * np.finfo(float).eps] = 0
    transform = _symmetric((vectors * ratios**power) @ vectors.T)
    return transform * (np.sqrt(len(agop)) / np.linalg.norm(transform))


def _in_metric(transform, initial):
    """Return the square root of T₀ (T T) T₀."""
    # U S Vᵀ of T T₀ gives V S Vᵀ, the root of its square.
    _, lengths, vectors = np.linalg.svd(transform @ initial)
    return _symmetric((vectors.T * lengths) @ vectors)


def _symmetric(matrix):
    """Return a matrix without the rounding by which it is not symmetric."""
    return (matrix + matrix.T) / 2


def rank(transform, power, dtype):
    """Return the number of eigenvalues of a transform Gᵖ that are not rounding.

    G was computed in ``dtype``.
    """
    rounding = max(_NULL_SPACE, (_NULL_UNITS * np.finfo(dtype).eps) ** power)
    values = np.linalg.eigvalsh(transform)
    return int((values > rounding * values[-1]).sum())


def leading_eigenvectors(matrix, n_components):
    """Return the leading eigenvectors (n_components, d), their first peaks positive."""
    vectors = np.linalg.eigh(matrix)[1].T[::-1][:n_components]
    sizes = np.abs(vectors)
    # Under a mirror vectors are even or odd: their peaks are equal up to rounding.
    peaks = (sizes > _PEAK * sizes.max(axis=1, keepdims=True)).argmax(axis=1)[:, None]
    return vectors * np.sign(np.take_along_axis(vectors, peaks, axis=1))


def solve_round(model, design, schedule, index):
    """Return the round of a model, with the best ridge and, once, bandwidth."""
    if not model.chooses_bandwidth:
        return _solve_ridge(model, design, schedule, index)
    best = None
    for multiple in MULTIPLES:
        stretched = model.stretched(multiple)
        current = _solve_ridge(stretched, design, schedule, index)
        if best and not current.criterion < (1 - _GAIN) * best.criterion:
            break
        best = current
    return best


def _solve_ridge(model, design, schedule, index):
    """Return the round of a model with the best ridge."""
    path = model.ridge_path(design)
    alpha, criterion = _choose_ridge(model, path, schedule, index)
    return Round(index, model, path.solve(alpha, keeps_covariance(model)), criterion)


def _choose_ridge(model, path, schedule, index):
    """Return the ridge with the least criterion, and its value there."""
    if schedule.plan is not None:
        return schedule.plan.alphas[index], np.nan
    if schedule.selection == "holdout":
        criterion = model.held_out_loss(path)
    elif schedule.selection == "loo" or model.data.groups is not None:
        criterion = path.loo_loss()  # of groups GCV knows nothing
    else:
        criterion = path.gcv()
    if not np.isfinite(criterion).all():
        raise ValueError(
            f"the error of the fit is not finite for alpha={path.alphas.min():g}: take "
            "larger ridges, or scale the targets y."
        )
    chosen = np.argmin(criterion)
    return path.alphas[chosen], float(criterion[chosen])


def _empty_history(schedule, model):
    """Return the history before the first round, with a list for each key."""
    keys = "round", "alpha", "criterion", "gcv", "loo_loss", "loo_score", "spectra"
    held_out = ("holdout_loss",) if schedule.selection == "holdout" else ()
    bandwidth = ("bandwidth",) if hasattr(model.kernel, "bandwidth") else ()
    return {key: [] for key in (*keys, *bandwidth, *held_out, *CLOCKS)}


def _record(history, current, score):
    """Append one round to the history, but its seconds."""
    values = vars(current.solution) | {"round": current.index, "loo_score": score}
    values["criterion"] = current.criterion
    values["spectra"] = [_spectrum(transform) for transform in current.transforms]
    values["holdout_loss"] = current.criterion
    values["bandwidth"] = getattr(current.model.kernel, "bandwidth_", None)
    for key in history.keys() - set(CLOCKS):
        history[key].append(values[key])


def _spectrum(transform):
    """Return the eigenvalues of T Tᵀ as shares of their sum, the largest first."""
    eigenvalues = np.linalg.eigvalsh(transform) ** 2
    return np.sort(eigenvalues)[::-1] / eigenvalues.sum()

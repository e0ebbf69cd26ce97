"""The loop over rounds, with a model of which every answer is known."""

import copy
from types import SimpleNamespace

import numpy as np
import pytest
from by_hand import assert_close
from numpy.testing import assert_allclose, assert_array_equal

from skconvrfm.features.gradients import LayerAgop
from skconvrfm.learning.rounds import (
    Round,
    Schedule,
    StagePlan,
    Watcher,
    best_stage,
    fit_rounds,
    leading_eigenvectors,
    transform_from_agop,
    transforms_from,
)


class Machine(Watcher):
    """A model of one layer, of which every answer is prepared, and its watcher.

    The ridges of each round are a list of (alpha, gcv, loo).
    """

    optimism = 0.0
    initial_transforms = (None,)
    patch_dims = (2,)
    has_candidates = False
    chosen = ()
    kernel, data = None, SimpleNamespace(groups=None)
    multiple, chooses_bandwidth, landmarks = None, False, None
    n_coefs, covariance_bytes, moments = 1, 0, True

    def __init__(self, rounds, agop=None, optimism=0.0, stop_after=None):
        self.rounds, self.seen, self.agop_rounds = rounds, [], []
        self.agop = np.diag([4.0, 1.0]) if agop is None else agop
        self.optimism, self.stop_after, self.reports = optimism, stop_after, []

    @property
    def alternatives(self):
        return (self,)

    def powers(self, default):
        return (default,)

    def with_metric(self, transforms):
        model = copy.copy(self)
        model.transforms = (None,) if transforms is None else transforms
        return model

    def design(self):
        self.seen.append(self.transforms[0])
        return len(self.seen) - 1

    def ridge_path(self, design):
        alphas, gcv, loo = map(np.array, zip(*self.rounds[design], strict=True))

        def solve(alpha, with_covariance):
            chosen = list(alphas).index(alpha)
            return SimpleNamespace(
                alpha=alpha,
                gcv=gcv[chosen],
                loo_loss=loo[chosen],
                loo_prediction=design,
                coef=design,
            )

        return SimpleNamespace(
            alphas=alphas, gcv=lambda: gcv, loo_loss=lambda: loo, solve=solve
        )

    def patch_agops(self, coef):
        self.agop_rounds.append(coef)
        return (LayerAgop((coef + 1) * self.agop),)

    def score(self, loo_prediction):
        return -loo_prediction

    def report(self, stages, best, history, ends):
        self.reports.append((best.index, len(history["round"])))
        return len(self.reports) == self.stop_after


ROUNDS = [
    [(0.1, 3.0, 9.0), (1.0, 4.0, 5.0)],
    [(0.1, 2.0, 8.0), (1.0, 1.0, 9.0)],
    [(0.1, 7.0, 3.0), (1.0, 6.0, 4.0)],
    [(0.1, 8.0, 6.0), (1.0, 9.0, 7.0)],
]


def fit(machine, selection="gcv", n_rounds=3):
    fitted = fit_rounds(machine, Schedule(n_rounds, 0.5, selection), machine)
    [agop] = fitted.agops
    return fitted.best, agop.agop, fitted.history


@pytest.mark.parametrize(
    ("selection", "index", "alphas"),
    [
        ("gcv", 1, [0.1, 1.0, 1.0, 0.1]),
        ("loo", 2, [1.0, 0.1, 0.1, 0.1]),
        ("last", 3, [0.1, 1.0, 1.0, 0.1]),
    ],
)
def test_selection_chooses_ridge_and_round(selection, index, alphas):
    machine = Machine(ROUNDS)
    best, agop, history = fit(machine, selection)
    assert best.index == index
    assert_array_equal(history["alpha"], alphas)
    assert_array_equal(history["round"], range(4))
    assert_array_equal(history["loo_score"], [0, -1, -2, -3])
    assert_array_equal(agop, (index + 1) * machine.agop)
    assert len(machine.agop_rounds) == len(set(machine.agop_rounds))  # each once


def test_plan_sets_the_ridges_and_takes_the_last_round():
    schedule = Schedule(3, 0.5, "loo", plan=[StagePlan([1.0, 0.1, 1.0], None)])
    schedule = schedule.of_stage(0)
    fitted = fit_rounds(Machine(ROUNDS), schedule)
    assert fitted.best.index == 2
    assert_array_equal(fitted.history["alpha"], [1.0, 0.1, 1.0])


def test_of_equal_rounds_the_first_is_kept():
    best, _, _ = fit(Machine([[(1.0, 2.0, 2.0)]] * 4))
    assert best.index == 0
    assert_array_equal(best.transforms[0], np.eye(2))


def test_round_takes_the_metric_of_the_agop_before_it():
    machine = Machine(ROUNDS)
    best, _, _ = fit(machine)
    assert machine.seen[0] is None
    expected = np.diag([2.0, 1.0]) * np.sqrt(2 / 5)
    for transform in machine.seen[1:]:
        assert_allclose(transform, expected)
    assert best.transforms[0] is machine.seen[1]


def test_no_rounds_is_round_zero_with_its_agop():
    machine = Machine(ROUNDS)
    fitted = fit_rounds(machine, Schedule(0, 0.5, "gcv"))
    assert fitted.best.index == 0 and len(fitted.history["round"]) == 1
    assert_array_equal(fitted.agops[0].agop, machine.agop)
    # The transform that its AGOP gives, for filters of a layer above.
    expected = transform_from_agop(machine.agop, 0.5)
    assert_array_equal(fitted.learned_transforms[0], expected)


def test_report_can_end_the_rounds():
    machine = Machine(ROUNDS, stop_after=2)
    fitted = fit_rounds(machine, Schedule(3, 0.5, "gcv"), machine)
    assert machine.reports == [(0, 1), (1, 2)]
    assert len(fitted.history["round"]) == 2 and fitted.stopped


def test_agop_of_zero_ends_the_rounds():
    best, agop, history = fit(Machine(ROUNDS, agop=np.zeros((2, 2))))
    assert best.index == 0 and len(history["round"]) == 1
    assert not agop.any()


def test_round_must_be_better_by_more_than_its_optimism():
    rounds = [[(1.0, gcv, gcv)] for gcv in (1.0, 0.985, 0.97, 0.96)]
    assert fit(Machine(rounds))[0].index == 3
    for selection in ("gcv", "loo"):
        assert fit(Machine(rounds, optimism=0.02), selection)[0].index == 2


def test_best_stage_is_the_first_with_the_least_criterion():
    def stages(*criteria, optimism=0.0):
        model = SimpleNamespace(optimism=optimism)
        return [Round(0, model, None, criterion) for criterion in criteria]

    assert best_stage(stages(3.0, 1.0, 1.0), "gcv") == 1
    assert best_stage(stages(3.0, 1.0, 2.0), "last") == 2
    assert best_stage(stages(1.0, 0.985, optimism=0.02), "gcv") == 0
    assert best_stage(stages(1.0, 0.985, optimism=0.02), "holdout") == 1


# --------------------------------------------------------------- transforms


@pytest.mark.parametrize("power", [0.25, 0.5, 1.0, 2.0])
def test_transform_is_a_power_with_the_norm_of_the_identity(rng, power):
    root = rng.normal(size=(5, 5))
    agop = root @ root.T
    transform = transform_from_agop(agop, power)
    assert_array_equal(transform, transform.T)
    assert np.linalg.norm(transform) == pytest.approx(np.sqrt(5))
    eigenvalues, vectors = np.linalg.eigh(agop)
    expected = (vectors * eigenvalues**power) @ vectors.T
    scale = np.sqrt(5) / np.linalg.norm(expected)
    assert_allclose(transform, expected * scale, atol=1e-12)


@pytest.mark.parametrize("scale", [1e-300, 1e-20, 1e20, 1e300])
def test_transform_invariant_under_scaling_of_the_agop(scale):
    agop = np.array([[2.0, 1.0], [1.0, 3.0]])
    assert_allclose(
        transform_from_agop(scale * agop, 2.0), transform_from_agop(agop, 2.0)
    )


def test_negative_eigenvalues_count_as_zero():
    transform = transform_from_agop(np.diag([1.0, -1e-17]), 0.5)
    assert_allclose(transform, np.diag([np.sqrt(2), 0]))


def test_agop_of_zero_has_no_transform():
    zero, one = np.zeros((3, 3)), np.eye(2)
    assert transform_from_agop(zero, 0.5) is None
    initials = [2 * np.eye(3), None]
    assert transforms_from([zero, zero], [0.5, 0.5], [None, 2 * np.eye(3)]) is None
    # A layer that learned nothing, or does not learn, keeps its initial transform.
    for agops, powers in (([zero, one], [0.5, 0.5]), ([np.eye(3), one], [None, 0.5])):
        first, second = transforms_from(agops, powers, initials)
        assert_array_equal(first, 2 * np.eye(3))
        assert_allclose(second, one)
    assert transforms_from([one, one], [None, None], [None, None]) is None


def test_round_from_whitened_patches_is_a_round_on_whitened_images(rng):
    """T is the root of T₀ T' T' T₀, where T' comes from the AGOP of patches T₀ v."""
    initial, agop = (a @ a.T for a in rng.normal(size=(2, 5, 5)))
    T = transform_from_agop(agop, 0.5, initial)
    inverse = np.linalg.inv(initial)
    learned = transform_from_agop(inverse @ agop @ inverse, 0.5)
    assert_close(T @ T, initial @ learned @ learned @ initial, 1e-8)
    assert_close(T, T.T, 1e-14)
    assert (np.linalg.eigvalsh(T) > 0).all()


def test_signs_of_odd_eigenvectors_do_not_depend_on_rounding(rng):
    """Under a mirror their entries come in pairs of one size and both signs."""
    root = rng.normal(size=(6, 6))
    matrix = root @ root.T
    matrix = matrix + matrix[::-1, ::-1]
    expected = leading_eigenvectors(matrix, 6)
    for _ in range(20):
        noise = 1 + 1e-13 * rng.normal(size=(6, 6))
        noise = (noise + noise.T) / 2
        assert_allclose(leading_eigenvectors(matrix * noise, 6), expected, atol=1e-8)

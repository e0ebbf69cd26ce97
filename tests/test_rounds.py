"""The loop over rounds, with a machine of which every answer is known."""

from types import SimpleNamespace

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal

from skconvrfm.core.rounds import fit_rounds, transform_from_agop


class Machine:
    """Answers with prepared criteria; the ridge is a list of (alpha, gcv, loo)."""

    initial_transform = None
    optimism = 0.0

    def __init__(self, rounds, agop=None):
        self.rounds, self.transforms, self.agops = rounds, [], []
        self.agop = np.diag([4.0, 1.0]) if agop is None else agop

    def under(self, transform):
        return MachineUnder(self, transform)


class MachineUnder:
    """The machine under a patch transform."""

    patch_dim = 2
    initial_transform = None

    @property
    def optimism(self):
        return self.machine.optimism

    def __init__(self, machine, transform):
        self.machine, self.transform = machine, transform

    def design(self):
        self.machine.transforms.append(self.transform)
        return len(self.machine.transforms) - 1

    def ridge_path(self, design):
        alphas, gcv, loo = map(np.array, zip(*self.machine.rounds[design], strict=True))

        def solve(alpha):
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

    def patch_agop(self, coef):
        self.machine.agops.append(coef)
        return (coef + 1) * self.machine.agop


ROUNDS = [
    [(0.1, 3.0, 9.0), (1.0, 4.0, 5.0)],
    [(0.1, 2.0, 8.0), (1.0, 1.0, 9.0)],
    [(0.1, 7.0, 3.0), (1.0, 6.0, 4.0)],
    [(0.1, 8.0, 6.0), (1.0, 9.0, 7.0)],
]


def fit(machine, selection="gcv", n_rounds=3, report=lambda best, history: False):
    fitted = fit_rounds(
        machine,
        n_rounds=n_rounds,
        agop_power=0.5,
        selection=selection,
        score=lambda prediction: -prediction,
        report=report,
    )
    return fitted.best, fitted.agop, fitted.history


@pytest.mark.parametrize(
    ("selection", "index", "alphas"),
    [
        ("gcv", 1, [0.1, 1.0, 1.0, 0.1]),
        ("loo", 2, [1.0, 0.1, 0.1, 0.1]),
        ("last", 3, [0.1, 1.0, 1.0, 0.1]),
    ],
)
def test_the_selection_chooses_ridge_and_round(selection, index, alphas):
    machine = Machine(ROUNDS)
    best, agop, history = fit(machine, selection)
    assert best.index == index
    assert_array_equal(history["alpha"], alphas)
    assert_array_equal(history["round"], range(4))
    assert_array_equal(history["loo_score"], [0, -1, -2, -3])
    assert_array_equal(agop, (index + 1) * machine.agop)


def test_of_equal_rounds_the_first_is_kept():
    best, _, _ = fit(Machine([[(1.0, 2.0, 2.0)]] * 4))
    assert best.index == 0
    assert_array_equal(best.transform, np.eye(2))


def test_each_agop_is_taken_once():
    for selection in ("gcv", "loo", "last"):
        machine = Machine(ROUNDS)
        fit(machine, selection)
        assert len(machine.agops) == len(set(machine.agops))


def test_patches_are_measured_in_the_metric_of_the_round_before():
    machine = Machine(ROUNDS)
    best, _, _ = fit(machine)
    assert machine.transforms[0] is None
    expected = np.diag([2.0, 1.0]) * np.sqrt(2 / 5)
    for transform in machine.transforms[1:]:
        assert_allclose(transform, expected)
    assert best.transform is machine.transforms[1]


def test_no_rounds_are_round_zero():
    machine = Machine(ROUNDS)
    best, agop, history = fit(machine, n_rounds=0)
    assert best.index == 0 and len(history["round"]) == 1
    assert_array_equal(agop, machine.agop)


def test_a_report_can_end_the_rounds():
    seen = []

    def report(best, history):
        seen.append((best.index, len(history["round"])))
        return len(seen) == 2

    _, _, history = fit(Machine(ROUNDS), report=report)
    assert seen == [(0, 1), (1, 2)]
    assert len(history["round"]) == 2


def test_a_constant_machine_ends_the_rounds():
    best, agop, history = fit(Machine(ROUNDS, agop=np.zeros((2, 2))))
    assert best.index == 0 and len(history["round"]) == 1
    assert not agop.any()


@pytest.mark.parametrize("power", [0.25, 0.5, 1.0, 2.0])
def test_the_transform_is_a_power_with_the_norm_of_the_identity(rng, power):
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
def test_the_scale_of_the_agop_does_not_matter(scale):
    agop = np.array([[2.0, 1.0], [1.0, 3.0]])
    assert_allclose(
        transform_from_agop(scale * agop, 2.0), transform_from_agop(agop, 2.0)
    )


def test_negative_eigenvalues_are_rounding():
    transform = transform_from_agop(np.diag([1.0, -1e-17]), 0.5)
    assert_allclose(transform, np.diag([np.sqrt(2), 0]))


def test_a_zero_agop_has_no_transform():
    assert transform_from_agop(np.zeros((3, 3)), 0.5) is None


def test_a_round_must_be_better_by_more_than_its_optimism():
    machine = Machine([[(1.0, gcv, gcv)] for gcv in (1.0, 0.985, 0.97, 0.96)])
    assert fit(machine)[0].index == 3
    machine = Machine([[(1.0, gcv, gcv)] for gcv in (1.0, 0.985, 0.97, 0.96)])
    machine.optimism = 0.02
    for selection in ("gcv", "loo"):
        machine.transforms.clear()
        assert fit(machine, selection)[0].index == 2

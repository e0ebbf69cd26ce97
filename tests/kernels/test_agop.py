"""The patch AGOP is the average of outer products of gradients, by either route."""

import numpy as np
import pytest
from by_hand import assert_close, some_transform
from sklearn import config_context

from skconvrfm.kernels import ConvNNGP, ConvNTK, patch_agop
from skconvrfm.kernels import agop as agop_module
from skconvrfm.kernels.agop import compress_outputs

ROUTES = ["_sum_by_outputs", "_sum_without_outputs"]
CASES = {
    "plain": ConvNTK(depth=2, bias=0),
    "nngp": ConvNNGP(depth=2, bias=0),
    "deep, bias": ConvNTK(depth=3, bias=0.5),
    "same, even": ConvNTK(depth=2, bias=0, padding="same", patch_size=(2, 3)),
    "one layer": ConvNTK(depth=1, padding="same", bias=0.1),
}
KERNEL = ConvNTK(depth=2, bias=0)


def force_route(name, largest, monkeypatch):
    """Take one of the two routes whatever it costs, some images at a time."""
    route = getattr(agop_module, name)
    monkeypatch.setattr(agop_module, "_choose_route", lambda *_: (route, largest))


@pytest.fixture(params=ROUTES)
def route(request, monkeypatch):
    force_route(request.param, 4, monkeypatch)
    return request.param


@pytest.fixture
def machine(rng):
    """Return centres, images and coefficients of three outputs."""
    X, Y = rng.normal(size=(6, 6, 6, 2)), rng.normal(size=(5, 6, 6, 2))
    return X, Y, rng.normal(size=(6, 3))


@pytest.mark.parametrize("transformed", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_routes_agree(case, transformed, tiles, machine, monkeypatch):
    """Each route equals the one that is taken, which equals the formulas."""
    X, Y, dual_coef = machine
    X[3, :4] = 0
    T = some_transform(CASES[case], X) if transformed else None
    for images, weights in ((Y, np.array([1.0, 0.0, 2.5, 0.3, 1.0])), (None, None)):
        task = CASES[case], X, dual_coef, images
        options = {"patch_transform": T, "sample_weight": weights}
        expected = patch_agop(*task, **options)
        for name in ROUTES:
            with monkeypatch.context() as patch:
                force_route(name, 4, patch)
                agop = patch_agop(*task, **options)
            assert_close(agop, expected, 1e-12)
            np.testing.assert_array_equal(agop, agop.T)
            eigenvalues = np.linalg.eigvalsh(agop)
            assert eigenvalues[0] > -1e-12 * eigenvalues[-1]


def test_images_are_the_centres_and_coefficients_a_column_by_default(machine):
    X, Y, dual_coef = machine
    given = patch_agop(KERNEL, X, dual_coef, X.copy())
    assert_close(patch_agop(KERNEL, X, dual_coef), given, 1e-13)
    flat = patch_agop(KERNEL, X, dual_coef[:, 0], Y)
    assert_close(flat, patch_agop(KERNEL, X, dual_coef[:, :1], Y), 1e-13)


def test_weights_equal_repeated_images_up_to_a_factor(route, machine):
    X, Y, dual_coef = machine
    counts = np.array([1, 3, 2, 0, 1])
    repeated = patch_agop(KERNEL, X, dual_coef, np.repeat(Y, counts, axis=0))
    for factor in (1, 1e-3, 9):
        weighted = patch_agop(KERNEL, X, dual_coef, Y, sample_weight=factor * counts)
        assert_close(weighted, repeated, 1e-12)


def test_agop_is_a_sum_over_outputs_whatever_their_basis(route, machine, rng):
    X, Y, dual_coef = machine
    agop = patch_agop(KERNEL, X, dual_coef, Y)
    parts = [patch_agop(KERNEL, X, column, Y) for column in dual_coef.T]
    assert_close(agop, sum(parts), 1e-12)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    assert_close(patch_agop(KERNEL, X, dual_coef @ rotation, Y), agop, 1e-12)


@pytest.mark.parametrize("n_outputs", [5, 6, 7, 50])
def test_more_outputs_than_centres_are_compressed(n_outputs, machine, rng):
    X, Y, _ = machine
    dual_coef = rng.normal(size=(6, n_outputs))
    compressed = compress_outputs(dual_coef)
    assert compressed.shape == (6, min(6, n_outputs))
    assert_close(compressed @ compressed.T, dual_coef @ dual_coef.T, 1e-13)
    parts = [patch_agop(KERNEL, X, column, Y) for column in dual_coef.T]
    assert_close(patch_agop(KERNEL, X, dual_coef, Y), sum(parts), 1e-11)


def test_blank_images_add_nothing(route, machine):
    X, Y, dual_coef = machine
    with_blanks = patch_agop(
        KERNEL,
        np.concatenate([X, np.zeros_like(X[:2])]),
        np.concatenate([dual_coef, np.ones((2, 3))]),
        np.concatenate([Y, np.zeros_like(Y)]),
    )
    assert_close(with_blanks, patch_agop(KERNEL, X, dual_coef, Y) / 2, 1e-12)


@pytest.mark.parametrize(
    ("n_outputs", "route"), [(1, "_sum_by_outputs"), (200, "_sum_without_outputs")]
)
def test_the_cheaper_route_is_taken(n_outputs, route, monkeypatch, rng):
    taken = []
    function = getattr(agop_module, route)
    monkeypatch.setattr(
        agop_module, route, lambda *task: taken.append(route) or function(*task)
    )
    X = rng.normal(size=(200, 5, 5, 3))
    patch_agop(ConvNTK(depth=1), X, rng.normal(size=(200, n_outputs)), X[:50])
    assert taken


@pytest.mark.parametrize("budget", [1e-5, 0.05, 1])
def test_routes_independent_of_memory_and_close_in_float32(
    budget, route, tiles, machine
):
    X, Y, dual_coef = machine
    expected = patch_agop(KERNEL, X, dual_coef, Y)
    with config_context(working_memory=budget):
        assert_close(patch_agop(KERNEL, X, dual_coef, Y), expected, 1e-11)
        single = patch_agop(KERNEL, X, dual_coef, Y, dtype="float32")
    assert single.dtype == np.float64
    assert_close(single, expected, 1e-5)


@pytest.mark.parametrize("transformed", [False, True])
def test_wide_patches_take_the_route_without_outputs_in_any_memory(
    transformed, tiles, monkeypatch, rng
):
    """Patches of a deeper layer: 64 channels of 3×3."""
    X, coef = rng.normal(size=(20, 6, 6, 64)), rng.normal(size=(20, 10))
    T = np.diag(rng.random(576)) if transformed else None
    function, taken = agop_module._sum_without_outputs, []
    monkeypatch.setattr(
        agop_module,
        "_sum_without_outputs",
        lambda *task: taken.append(len(task[2])) or function(*task),
    )

    def compute():
        return patch_agop(ConvNTK(depth=2), X, coef, X[:6], patch_transform=T)

    expected = compute()
    with config_context(working_memory=4):
        assert_close(compute(), expected, 1e-12)
    assert taken[0] == 6 and len(taken) > 1 and sum(taken[1:]) == 6
    force_route("_sum_by_outputs", 6, monkeypatch)
    assert_close(compute(), expected, 1e-11)

"""Kernels averaged over mirror images: values, metrics, gradients, predictions."""

import itertools
import pickle

import numpy as np
import pytest
import torch
from by_hand import (
    agop_of_gradients,
    assert_close,
    kernel_of_patches,
    margins,
    patches_by_hand,
    some_transform,
)
from joblib import parallel_config
from sklearn import config_context
from sklearn.base import clone

from skconvrfm import ConvRFMClassifier, ConvRFMRegressor
from skconvrfm._input import make_resources
from skconvrfm.compute import images as image_module
from skconvrfm.compute import tiles as tiles_module
from skconvrfm.compute.images import MirroredImages, WithMirrors, mirror, take
from skconvrfm.compute.sampling import Sample
from skconvrfm.compute.tiles import kernel_product
from skconvrfm.features.filters import patch_moments
from skconvrfm.kernels import (
    ConvNNGP,
    ConvNTK,
    PatchGaussian,
    PatchLaplace,
    patch_agop,
)
from skconvrfm.kernels import agop as agop_module

KERNELS = {
    "one layer": ConvNTK(depth=1, padding="same", mirror=True),
    "three layers": ConvNTK(depth=3, bias=0.1, mirror=True),
    "nngp, no bias": ConvNNGP(depth=2, bias=0, patch_size=(2, 3), mirror=True),
    "even patches, padded": ConvNTK(2, padding="same", patch_size=2, mirror=True),
    "wide patches, padded": ConvNNGP(2, padding="same", patch_size=4, mirror=True),
    "pool, even": ConvNTK(depth=2, pool_grid=1, mirror=True),
    "pool, uneven": ConvNTK(depth=1, pool_grid=2, mirror=True),
    "gaussian": PatchGaussian(2.0, mirror=True),
    "laplace": PatchLaplace(3.0, padding="same", patch_size=(3, 2), mirror=True),
}
ALL = pytest.mark.parametrize("name", KERNELS)
METRICS = ["none", "commutes", "any"]
# Kernels of which k(Px, Pz) is k(x, z) under a metric that commutes with the mirror.
EVEN = {"one layer", "three layers", "nngp, no bias", "pool, even", "gaussian"}


def plain(kernel):
    return clone(kernel).set_params(mirror=False)


def flip(X):
    return X[:, :, ::-1]


def metric(kind, kernel, X):
    """A symmetric transform that commutes with the mirror, or any."""
    if kind == "none":
        return None
    T = some_transform(kernel, X)
    return T if kind == "any" else kernel.bind(X.shape[1:]).over_mirror(T)


@pytest.fixture
def machine(rng):
    """Return centres, images and coefficients of two outputs."""
    X, Y = rng.normal(size=(5, 5, 5, 2)), rng.normal(size=(3, 5, 5, 2))
    return X, Y, rng.normal(size=(5, 2))


# ------------------------------------------------------------------------ values


@pytest.mark.parametrize("kind", METRICS)
@ALL
def test_kernel_is_the_mean_over_both_mirrors(name, kind, tiles, machine):
    X, Y, coef = machine
    kernel = KERNELS[name]
    T = metric(kind, kernel, X)
    for left, right in ((X, Y), (X, X)):
        pairs = itertools.product((left, flip(left)), (right, flip(right)))
        sides = [plain(kernel)(a, b, patch_transform=T) for a, b in pairs]
        K = kernel(left, right, patch_transform=T)
        assert_close(K, sum(sides) / 4, 1e-12)
        for pair in ((flip(left), right), (left, flip(right))):
            assert_close(kernel(*pair, patch_transform=T), K, 1e-12)
    among = kernel(X, patch_transform=T)
    assert_close(among, K, 1e-12)
    np.testing.assert_array_equal(among, among.T)
    eigenvalues = np.linalg.eigvalsh(among)
    assert eigenvalues[0] > -1e-12 * eigenvalues[-1]
    resources = make_resources("cpu", "float64", None, X)
    product = kernel_product(kernel.bind(X.shape[1:]), Y, X, T, coef, resources)
    assert_close(product, kernel(Y, X, patch_transform=T) @ coef, 1e-12)


@ALL
def test_two_kernels_are_averaged_where_that_is_exact(name, machine):
    X, _, _ = machine
    kernel = KERNELS[name].bind(X.shape[1:])
    counts = [
        len(list(kernel.mirror_sides(metric(kind, kernel, X)))) for kind in METRICS
    ]
    assert counts == ([2, 2, 4] if name in EVEN else [4, 4, 4])
    assert len(plain(kernel).bind(X.shape[1:]).mirror_sides(None)) == 1


def test_rounding_of_a_metric_does_not_double_the_time(machine, rng):
    X, _, _ = machine
    kernel = KERNELS["three layers"].bind(X.shape[1:])
    T = metric("commutes", kernel, X)
    assert kernel.commutes_with_mirror(T * (1 + 1e-15 * rng.random(T.shape)))
    assert not kernel.commutes_with_mirror(T + 1e-9 * some_transform(kernel, X))


def everything(kernel, X, Y, kind, n_jobs=None):
    """All that is computed over tiles."""
    coef = np.random.default_rng(2).normal(size=(len(X), 3))
    options = {"patch_transform": metric(kind, kernel, X), "n_jobs": n_jobs}
    yield kernel(X, **options)
    yield kernel(X, Y, **options)
    yield patch_agop(kernel, X, coef, Y, **options)


@pytest.mark.parametrize("kind", ["commutes", "any"])
@pytest.mark.parametrize(("budget", "n_jobs"), [(1e-5, None), (0.01, None), (9, 2)])
def test_mirrors_independent_of_memory_and_workers(
    budget, n_jobs, kind, tiles, machine
):
    X, Y, _ = machine
    task = KERNELS["three layers"], np.repeat(X[:3], 2, axis=0) + 0.1, Y[:2], kind
    expected = list(everything(*task))
    with config_context(working_memory=budget), parallel_config("threading"):
        for found, value in zip(everything(*task, n_jobs), expected, strict=True):
            assert_close(found, value, 1e-10)


def test_strips_of_two_kernels_fit_where_one_did(rng):
    X = rng.normal(size=(40, 6, 6, 1))
    kernel = ConvNTK(depth=1).bind(X.shape[1:])
    with config_context(working_memory=0.05):
        resources = make_resources("cpu", "float64", None, X)
        rows = [
            max(s.stop - s.start for s in tiles_module._strips(k, X, 10**3, resources))
            for k in (kernel, kernel._with(mirror=True))
        ]
    assert rows[1] <= max(1, rows[0] // 2)


def test_stored_images_are_mirrored_block_by_block(tmp_path, monkeypatch, rng):
    X, Y = rng.normal(size=(6, 5, 5, 1)), rng.normal(size=(40, 5, 5, 1))
    np.save(tmp_path / "images.npy", Y)
    stored = np.load(tmp_path / "images.npy", mmap_mode="r")
    read, to_tensor = [], MirroredImages.__array__
    monkeypatch.setattr(
        image_module.MirroredImages,
        "__array__",
        lambda self, *a, **k: read.append(len(self)) or to_tensor(self, *a, **k),
    )
    # Even patches with padding, whose mirrors are not the patches of an image.
    kernel = ConvNTK(depth=2, patch_size=2, padding="same", mirror=True)
    model = ConvRFMRegressor(kernel, n_rounds=0).fit(X, rng.normal(size=6))
    expected = model.predict(Y)
    assert not read
    with config_context(working_memory=0.1):
        found = model.predict(stored)
    assert_close(found, expected, 1e-11)
    assert set(read) <= set(range(1, 20)) and sum(read) == 80  # for both sides of X


def test_mirrored_images_are_an_array_that_is_read_late(rng):
    X = rng.normal(size=(6, 3, 4, 2)).astype(np.float32)
    some = mirror(take(X, [4, 1, 2]))
    assert (len(some), some.shape, some.dtype) == (3, (3, 3, 4, 2), X.dtype)
    np.testing.assert_array_equal(np.asarray(some[1:]), flip(X[[1, 2]]))
    assert np.asarray(some, dtype=float).dtype == float
    both, expected = WithMirrors(X), np.concatenate([X, flip(X)])
    assert (len(both), both.shape, both.dtype) == (12, expected.shape, X.dtype)
    for part in (slice(0, 2), slice(3, 9), slice(6, 12), slice(8, 11)):
        np.testing.assert_array_equal(both[part], expected[part])


# --------------------------------------------------------------------- gradients


def mirrored_entries(patches, kernel):
    """Patches (..., d) with their columns reversed."""
    columns = min(np.broadcast_to(kernel.patch_size, 2)[1], 5)
    return patches.unflatten(-1, (-1, columns)).flip(-1).flatten(-2)


def extended_patches(kernel, z):
    """The patches of an image, with those of its mirror, (rows, more columns, d)."""
    columns = min(np.broadcast_to(kernel.patch_size, 2)[1], z.shape[1])
    before, after = margins(columns) if kernel.padding == "same" else (0, 0)
    shift = after - before
    wider = np.pad(z, ((0, 0), (2 * shift, 0), (0, 0)))
    return torch.from_numpy(
        patches_by_hand(wider, kernel.patch_size, kernel.padding)[:, shift:]
    ), shift


def both_sides(kernel, patches, shift):
    """The patches of an image and those of its mirror, from all of them."""
    mirrored = mirrored_entries(patches[:, : patches.shape[1] - shift].flip(1), kernel)
    return patches[:, shift:], mirrored


def agop_by_autograd(kernel, X, dual_coef, Y, transform, weights):
    """The patch AGOP of the symmetric predictor, of the images and their mirrors."""
    T = None if transform is None else torch.from_numpy(transform)
    sides = [*X, *flip(X)]
    centres = [patches_by_hand(x, kernel.patch_size, kernel.padding) for x in sides]
    coef, gradients = torch.from_numpy(np.tile(dual_coef, (2, 1)) / 4), []
    for z in Y:
        patches, shift = extended_patches(kernel, z)
        own, mirrored = both_sides(kernel, patches, shift)
        for side, image in ((own, z), (mirrored, z[:, ::-1])):
            seen = patches_by_hand(image, kernel.patch_size, kernel.padding)
            np.testing.assert_array_equal(side, seen)

        def outputs(patches, shift=shift):
            values = [
                sum(
                    kernel_of_patches(
                        kernel, torch.from_numpy(c), side, X.shape[-1], T, torch
                    )
                    for side in both_sides(kernel, patches, shift)
                )
                for c in centres
            ]
            return torch.stack(values) @ coef

        jacobian = torch.autograd.functional.jacobian(outputs, patches)
        gradients.append(jacobian.numpy())
    agop = agop_of_gradients(np.stack(gradients, axis=1), weights)
    return kernel.bind(X.shape[1:]).over_mirror(agop)


@pytest.mark.parametrize("kind", METRICS)
@ALL
def test_agop_is_that_of_the_symmetric_predictor(name, kind, tiles, machine):
    X, Y, dual_coef = machine
    kernel, weights = KERNELS[name], np.array([1.0, 0.3, 2.0])
    T = metric(kind, kernel, X)
    expected = agop_by_autograd(kernel, X, dual_coef, Y, T, weights)
    options = {"patch_transform": T, "sample_weight": weights}
    agop = patch_agop(kernel, X, dual_coef, Y, **options)
    assert_close(agop, expected, 1e-9)
    np.testing.assert_array_equal(agop, agop.T)
    np.testing.assert_array_equal(agop, kernel.bind(X.shape[1:]).over_mirror(agop))
    assert np.linalg.eigvalsh(agop)[0] > -1e-12 * np.abs(agop).max()


@pytest.mark.parametrize("name", ["three layers", "gaussian", "even patches, padded"])
def test_agop_follows_finite_differences_of_the_predictor(name, rng):
    """One patch covers the image: its gradient is that of the image itself."""
    X, z = rng.normal(size=(4, 3, 3, 1)), rng.normal(size=(1, 3, 3, 1))
    kernel = clone(KERNELS[name]).set_params(patch_size=3, padding="valid")
    coef, step = rng.normal(size=(4, 1)), 1e-5
    kernel.set_params(**({"depth": 1} if isinstance(kernel, ConvNTK) else {}))
    T = some_transform(kernel, X)

    def predict(image):
        return (kernel(image, X, patch_transform=T) @ coef).item()

    gradient = np.empty(9)
    for entry in range(9):
        change = step * np.eye(9)[entry].reshape(z.shape)
        gradient[entry] = (predict(z + change) - predict(z - change)) / (2 * step)
    expected = kernel.bind((3, 3, 1)).over_mirror(np.outer(gradient, gradient))
    assert_close(patch_agop(kernel, X, coef, z, patch_transform=T), expected, 1e-7)


def test_mirrored_centres_take_any_route(machine, monkeypatch, rng):
    """The route for any metric gives the same where the metric commutes."""
    X, Y, dual_coef = machine
    for name, coef in (
        ("three layers", dual_coef),
        ("one layer", rng.normal(size=(5, 12))),  # more outputs than centres
    ):
        task = KERNELS[name], X, coef, Y
        parts = [patch_agop(KERNELS[name], X, column, Y) for column in coef.T]
        assert_close(patch_agop(*task), sum(parts), 1e-11)
        for route in ("_sum_by_outputs", "_sum_without_outputs", "_sum_over_mirror"):
            with monkeypatch.context() as patch:
                choice = getattr(agop_module, route), 2
                patch.setattr(agop_module, "_choose_route", lambda *_, c=choice: c)
                assert_close(patch_agop(*task), sum(parts), 1e-11)


# -------------------------------------------------------------------------- fits


@pytest.fixture
def data(rng):
    X = rng.normal(size=(40, 6, 6))
    return X, (X[:, 2, 1] * X[:, 2, 2] + X[:, 3, 0] > 0).astype(int)


FITTED = {
    "ntk": ConvRFMClassifier(ConvNTK(depth=2, mirror=True), n_rounds=2),
    "whitened": ConvRFMClassifier(
        ConvNTK(depth=2, metric="whiten", mirror=True), n_rounds=2, selection="last"
    ),
    "bandwidth": ConvRFMClassifier(
        PatchGaussian(metric="auto", mirror=True), n_rounds=1, selection="loo"
    ),
    "even": ConvRFMClassifier(
        ConvNTK(2, patch_size=2, padding="same", metric="whiten", mirror=True),
        n_rounds=1,
        selection="holdout",
    ),
}


@pytest.mark.parametrize("name", FITTED)
def test_predictions_and_metrics_are_those_of_mirrored_images(name, data, monkeypatch):
    seen, Kernel = [], type(FITTED[name].kernel)
    sides = Kernel.mirror_sides

    def watching(self, T):
        seen.append((self, T))
        return sides(self, T)

    monkeypatch.setattr(Kernel, "mirror_sides", watching)
    X, y = data
    model = clone(FITTED[name]).fit(X, y)
    new = np.random.default_rng(1).normal(size=(9, 6, 6))
    expected = model.decision_function(new)
    assert_close(model.decision_function(flip(new)), expected, 1e-11)
    assert any(T is not None for _, T in seen)
    for kernel, T in [*seen, (model.kernel_, model.patch_agop_)]:
        if T is not None:
            np.testing.assert_array_equal(kernel.over_mirror(T), T)
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.decision_function(new), expected)
    matrix = model.kernel_(
        new, X, patch_transform=model.patch_transform_
    )  # of the bandwidth that the same images give
    assert_close(matrix @ model.dual_coef_[:, 0] + model.intercept_, expected, 1e-9)


def test_mirrored_training_images_give_the_same_machine(data):
    X, y = data
    kernel = ConvNTK(depth=2, metric="whiten", mirror=True)
    models = [
        ConvRFMClassifier(kernel, n_rounds=1, agop_samples=None, alpha=0.01).fit(A, y)
        for A in (X, flip(X))
    ]
    first, second = (m.decision_function(X) for m in models)
    assert_close(second, first, 1e-8)


def test_whitening_is_that_of_patches_and_their_mirrors(data):
    X, y = data
    kernel = ConvNTK(depth=1, metric="whiten", mirror=True)
    model = ConvRFMClassifier(kernel, n_rounds=0).fit(X, y)
    images = np.concatenate([X, flip(X)])[..., None]
    bound = kernel.bind((6, 6, 1))
    resources = make_resources("cpu", "float64", None, images)
    sample = Sample(np.arange(len(images)), np.ones(len(images)))
    moments = patch_moments(images, bound.layer_, sample, resources)
    assert_close(model.patch_transform_, moments.whitening(), 1e-10)


def test_warm_start_takes_the_mirror_of_a_former_metric(data):
    X, y = data
    model = ConvRFMClassifier(ConvNTK(depth=2), n_rounds=1, warm_start=True).fit(X, y)
    model.set_params(kernel__mirror=True).fit(X, y)
    T = model.patch_transform_
    np.testing.assert_array_equal(model.kernel_.over_mirror(T), T)

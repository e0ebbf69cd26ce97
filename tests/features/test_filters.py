"""Filters that carry a metric: draws, moments of patches, thresholds and centres."""

import numpy as np
import pytest
import torch
from by_hand import assert_close, patches_by_hand
from sklearn import config_context

from skconvrfm._input import make_resources
from skconvrfm.compute.images import convolution_layers
from skconvrfm.compute.parallel import Resources
from skconvrfm.compute.sampling import Lineup, Sample
from skconvrfm.features import ConvFeatures
from skconvrfm.features import filters as filters_module
from skconvrfm.features.filters import (
    FilterBank,
    PatchMoments,
    draw_filters,
    draw_patches,
    drawn_moments,
    patch_moments,
    to_one_length,
)


def layer_of(image_shape, patch_size=3, padding="valid"):
    return convolution_layers(image_shape, patch_size, padding, 1)[0]


def test_covariance_of_filters_converges_to_the_metric(rng):
    T = rng.normal(size=(9, 9))
    T = (T + T.T) / 2
    M, errors = T @ T.T, []
    for n_filters in (100, 10_000, 1_000_000):
        filters = draw_filters(T, n_filters, np.random.RandomState(0))
        covariance = filters.T @ filters / n_filters
        errors.append(np.linalg.norm(covariance - M) / np.linalg.norm(M))
    assert errors[2] < 0.01
    assert errors[2] < errors[1] < errors[0]
    rate = np.log(errors[0] / errors[2]) / np.log(1e4)
    assert 0.4 < rate < 0.6  # 1 / sqrt(n_filters)


def test_whitened_patches_have_the_identity_for_a_covariance(rng):
    root = rng.normal(size=(6, 6))
    covariance = root @ root.T
    T = PatchMoments(np.zeros(6), covariance).whitening()
    shrunk = covariance + 0.1 * np.trace(covariance) / 6 * np.eye(6)
    assert_close(T @ shrunk @ T, np.eye(6), 1e-10)
    blank = PatchMoments(np.zeros(6), np.zeros((6, 6))).whitening()
    np.testing.assert_array_equal(blank, np.eye(6))


def test_filters_take_the_metric_of_the_round(rng):
    directions, numbers = rng.normal(size=(6, 18)), rng.normal(size=6)
    moments = PatchMoments(rng.normal(size=18), np.eye(18))
    bank = FilterBank(directions, numbers, moments, initial=None)
    features = ConvFeatures(6, patch_size=3, threshold=0, pool_grid=2, pool="mean")
    features, T = features.bind((7, 6, 2)), np.diag(np.arange(18.0))
    maps = bank.under(T, features)
    assert_close(maps.filters, directions @ T, 1e-14)
    assert_close(maps.biases, 0.3 * numbers, 1e-14)
    assert maps.shape == (2, 2, 6)
    assert bank.under(None, features).filters is directions


def test_whitened_patches_are_filters_with_the_covariance_of_the_metric(rng):
    """Like normal ones; and thresholds and means are those of their responses."""
    root = np.linalg.qr(rng.normal(size=(4, 4)))[0] * [[1.0], [1.2], [1.5], [2.0]]
    patches = rng.normal(size=(20_000, 4)) @ root + 3
    moments = PatchMoments(patches.mean(0), np.cov(patches.T))
    initial = moments.whitening()
    directions = to_one_length((patches - moments.mean) @ initial)
    np.testing.assert_allclose((directions**2).sum(1), 4)
    bank = FilterBank(directions, np.zeros(20_000), moments, initial)
    features = ConvFeatures(patch_size=2, bias=0, threshold=0.5, pool_grid=None)
    maps = bank.under(initial, features.bind((2, 2, 1)))
    covariance = maps.filters.T @ maps.filters / 20_000
    # Shrinkage leaves the weak directions a little weaker.
    assert_close(covariance, initial @ initial, 0.3)
    threshold = 0.5 * np.sqrt(
        ((maps.filters @ moments.covariance) * maps.filters).sum(1)
    )
    responses = patches @ maps.filters[:50].T + maps.biases[:50]
    np.testing.assert_allclose(responses.mean(0), -threshold[:50], atol=1e-9)


def test_patch_that_is_the_mean_makes_a_filter_of_zero():
    assert not to_one_length(np.zeros((2, 3))).any()


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_moments_of_patches_are_weighted(padding, rng):
    X, weights = 5 + rng.normal(size=(40, 5, 4, 2)), rng.uniform(0.5, 3, size=20)
    rows = rng.permutation(40)[:20]
    layer = layer_of((5, 4, 2), padding=padding)
    resources = make_resources("cpu", "float32", None, X)
    moments = patch_moments(X, layer, Sample(rows, weights), resources)
    patches = np.array([patches_by_hand(x, padding=padding) for x in X[rows]])
    patches, each = patches.reshape(-1, 18), patches[0, ..., 0].size
    every = np.repeat(weights, each)
    mean = np.average(patches, axis=0, weights=every)
    assert_close(moments.mean, mean, 1e-6)
    expected = np.cov(patches.T, aweights=every, ddof=0)
    assert_close(moments.covariance, expected, 1e-5)


def test_moments_of_float32_images_are_summed_in_float64():
    X = 1 + np.random.default_rng(0).random((40, 28, 28, 1), dtype=np.float32).cumsum(1)
    layer = layer_of((28, 28, 1), patch_size=7)
    sample = Sample(np.arange(40), np.ones(40))
    low, high = (
        patch_moments(X, layer, sample, make_resources("cpu", dtype, None, X))
        for dtype in ("float32", "float64")
    )
    assert_close(low.covariance, high.covariance, 1e-12)
    assert_close(low.whitening(), high.whitening(), 1e-9)


def test_drawn_patches_are_patches_and_blank_ones_are_left_out(rng):
    X = np.zeros((30, 6, 6, 1))
    X[:, 4:, 4:] = rng.normal(size=(30, 2, 2, 1))  # in one corner alone
    rows = np.repeat(np.arange(30), 2)
    layer = layer_of((6, 6, 1), patch_size=2)
    centred = PatchMoments(np.zeros(4), np.eye(4))
    resources = make_resources("cpu", "float64", None, X)
    draws = np.random.RandomState(0)
    drawn = draw_patches(X, layer, rows, centred, draws, resources)
    assert drawn.shape == (60, 4) and (drawn != 0).any(1).all()
    for patch, row in zip(drawn, rows, strict=True):
        patches = patches_by_hand(X[row], patch_size=2).reshape(-1, 4)
        assert (patches == patch).all(1).any()
    blank = draw_patches(0 * X, layer, rows, centred, draws, resources)
    assert not blank.any()


@pytest.fixture(params=[1e-5, 1024], ids=["little memory", "enough memory"])
def small_blocks(request, monkeypatch):
    """Blocks of few patches, and images that are held or read by bands."""
    monkeypatch.setattr(filters_module, "_BLOCK_NUMBERS", 100)
    with config_context(working_memory=request.param):
        yield


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_patches_do_not_depend_on_blocks_and_memory(padding, small_blocks, rng):
    X, weights = 5 + rng.normal(size=(6, 9, 8, 2)), rng.uniform(0.5, 3, size=5)
    layer, rows = layer_of((9, 8, 2), padding=padding), np.array([5, 1, 1, 0, 4])
    some, enough = (
        make_resources("cpu", "float64", None, X),
        Resources("cpu", torch.float64, 2**30),
    )
    blocks = patch_moments(X, layer, Sample(rows, weights), some)
    draws = draw_patches(X, layer, rows, blocks, np.random.RandomState(0), some)
    filters_module._BLOCK_NUMBERS = 2**20  # set back by the fixture
    whole = patch_moments(X, layer, Sample(rows, weights), enough)
    assert_close(blocks.mean, whole.mean, 1e-13)
    assert_close(blocks.covariance, whole.covariance, 1e-12)
    drawn = draw_patches(X, layer, rows, blocks, np.random.RandomState(0), enough)
    np.testing.assert_array_equal(draws, drawn)
    patches = np.array([patches_by_hand(x, padding=padding) for x in X[rows]])
    patches = patches.reshape(5, -1, 18)
    lengths = ((patches - blocks.mean) ** 2).sum(2).cumsum(1)
    heights = np.random.RandomState(0).uniform(size=5) * lengths[:, -1]
    expected = patches[np.arange(5), (lengths <= heights[:, None]).sum(1)]
    assert_close(drawn, expected - blocks.mean, 1e-13)


def test_moments_of_large_images_are_those_of_spaced_rows(small_blocks, rng):
    X = rng.normal(size=(2, 12, 6, 1))
    layer, resources = layer_of((12, 6, 1)), make_resources("cpu", "float64", None, X)
    sample = Sample(np.arange(2), np.ones(2))
    moments = patch_moments(X, layer, sample, resources, step=3)
    patches = np.array([patches_by_hand(x)[1::3] for x in X]).reshape(-1, 9)
    assert_close(moments.mean, patches.mean(0), 1e-13)
    assert_close(moments.covariance, np.cov(patches.T, ddof=0), 1e-12)


def test_all_locations_count_where_they_are_affordable(monkeypatch, rng):
    steps, X = [], rng.normal(size=(4, 6, 6, 1))
    lineup = Lineup(np.zeros(4), np.arange(4.0), np.ones(4), 0.5)
    monkeypatch.setattr(filters_module, "patch_moments", lambda *a: steps.append(a[4]))
    layer, resources = layer_of((6, 6, 1)), make_resources("cpu", "float64", None, X)
    all_operations = 4 * 2 * 16 * 9**2
    for operations in (1e11, all_operations, all_operations / 2.5):
        monkeypatch.setattr(filters_module, "_MOMENT_OPERATIONS", operations)
        drawn_moments(X, layer, lineup, resources)
    assert steps == [1, 1, 3]

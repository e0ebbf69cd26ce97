"""Compiled filters: the maps of the array operations, without the maps in memory."""

import numpy as np
import pytest
import torch
from by_hand import assert_close
from numpy.testing import assert_array_equal
from sklearn import config_context

from skconvrfm.core import compiled, features
from skconvrfm.core.features import FilterLayer, compute_maps, pass_through
from skconvrfm.core.images import Layer, convolution_layers, to_tensor
from skconvrfm.core.tiles import compute_features, hold_maps
from skconvrfm.kernels import make_resources

CPU = torch.device("cpu")
# Image, filters, patch, padding, pool.
SHAPES = {
    "plain": ((9, 8, 1), 16, 3, "valid", (2, 2)),
    "colour, odd filters": ((9, 7, 3), 37, (3, 2), "valid", (3, 2)),
    "one filter": ((6, 6, 2), 1, 3, "valid", (2, 2)),
    "five vectors": ((7, 6, 2), 80, 3, "same", (2, 3)),
    "same": ((6, 7, 2), 70, 5, "same", (2, 3)),
    "even, same": ((5, 5, 1), 33, 4, "same", (5, 1)),
    "no pool": ((7, 6, 2), 20, 3, "valid", None),
    "no pool, same": ((7, 6, 2), 129, 3, "same", None),
    "global": ((9, 9, 3), 20, 3, "valid", (1, 1)),
    "unequal cells": ((11, 12, 2), 18, 3, "same", (4, 5)),
    "more cells than locations": ((4, 5, 1), 18, 3, "valid", (7, 7)),
    "a row": ((1, 14, 2), 40, (1, 5), "valid", (1, 3)),
    "a column": ((14, 1, 2), 40, (5, 1), "same", (3, 1)),
    "one pixel": ((1, 1, 5), 24, 1, "valid", None),
    "one location": ((3, 3, 4), 50, 3, "valid", (1, 1)),
    "wide": ((10, 9, 1), 30, 7, "valid", (2, 1)),
    "deep": ((5, 5, 96), 35, 3, "same", (2, 2)),
}
BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)


@pytest.fixture
def library(compiled_tiles):
    return compiled.load(0)


def filters_on(shape, rng, activation="relu", biases=True):
    """A layer of random filters."""
    image_shape, n_filters, patch, padding, pool = shape
    [layer] = convolution_layers(image_shape, patch, padding, 1)
    d = image_shape[2] * layer.patch[0] * layer.patch[1]
    return FilterLayer(
        layer,
        rng.normal(size=(n_filters, d)),
        activation,
        rng.normal(size=n_filters) if biases else None,
        pool,
    )


def images_for(shape, dtype, rng, n=11):
    """Images, one of them blank."""
    images = rng.normal(size=(n, *shape[0]))
    images[1] = 0
    return torch.tensor(images, dtype=dtype)


@BOTH
@pytest.mark.parametrize("activation", ["relu", "identity"])
@pytest.mark.parametrize("shape", SHAPES)
def test_compiled_filters_equal_array_operations(
    shape, activation, dtype, library, rng
):
    layer = filters_on(SHAPES[shape], rng, activation)
    images = images_for(SHAPES[shape], dtype, rng)
    ours, theirs = compute_maps(layer, images, library), layer(images)
    assert ours.dtype == dtype and ours.shape == (11, *layer.shape)
    tolerance = 1e-13 if dtype == torch.float64 else 2e-6
    assert_close(ours.numpy(), theirs.numpy(), tolerance)


def test_zeros_may_lie_on_any_side(library, rng):
    layer = Layer((2, 3), (2, 0, 1, 3), (7, 9))
    filters = FilterLayer(layer, rng.normal(size=(5, 12)), "relu", pool=(3, 4))
    images = torch.from_numpy(rng.normal(size=(4, 6, 7, 2)))
    ours = compiled.filter_maps(library, filters, images)
    assert_close(ours.numpy(), filters(images).numpy(), 1e-13)


@pytest.mark.parametrize("n", [1, 2, 5, 6, 7])
@pytest.mark.parametrize("shape", ["one location", "no pool", "unequal cells"])
def test_an_image_has_the_same_maps_in_any_company(shape, n, library, rng):
    layer = filters_on(SHAPES[shape], rng)
    images = images_for(SHAPES[shape], torch.float32, rng, 24)
    whole = compiled.filter_maps(library, layer, images)
    for first in range(0, 24 - n, n):
        part = compiled.filter_maps(library, layer, images[first : first + n])
        assert torch.equal(part, whole[first : first + n])


@BOTH
@pytest.mark.parametrize("threads", [2, 3, 5])
def test_threads_do_not_change_a_bit(threads, dtype, library, rng):
    layer = filters_on(SHAPES["unequal cells"], rng)
    images = images_for(SHAPES["unequal cells"], dtype, rng, 17)
    expected, before = compute_maps(layer, images, library), torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        result = compute_maps(layer, images, library)
        assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
    assert torch.equal(result, expected)


def test_a_blank_image_gives_what_the_biases_say(library, rng):
    layer = filters_on(SHAPES["colour, odd filters"], rng)
    blank = torch.zeros(2, 9, 7, 3, dtype=torch.float64)
    means = compiled.filter_maps(library, layer, blank).numpy()
    expected = np.sqrt(2) * np.maximum(layer.biases, 0)
    assert_close(means, np.broadcast_to(expected, means.shape), 1e-15)


def test_filters_need_no_biases(library, rng):
    layer = filters_on(SHAPES["plain"], rng, biases=False)
    images = images_for(SHAPES["plain"], torch.float64, rng)
    ours = compiled.filter_maps(library, layer, images)
    assert_close(ours.numpy(), layer(images).numpy(), 1e-13)
    assert not ours[1].any()


def test_a_pixel_that_is_no_number_is_not_hidden(library, rng):
    layer = filters_on(SHAPES["plain"], rng)
    images = images_for(SHAPES["plain"], torch.float32, rng)
    images[3, 4, 4] = torch.nan
    ours = compiled.filter_maps(library, layer, images)
    assert torch.equal(ours.isnan(), layer(images).isnan()) and ours[3].isnan().any()


def test_images_may_lie_in_any_order_of_memory(library, rng):
    layer = filters_on(SHAPES["colour, odd filters"], rng)
    images = images_for(SHAPES["colour, odd filters"], torch.float64, rng, 12)
    expected = compiled.filter_maps(library, layer, images[::2])
    planar = images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)[::2]
    assert torch.equal(compiled.filter_maps(library, layer, planar), expected)
    pixels = images.numpy()[::2]
    pixels.flags.writeable = False
    resources = make_resources("cpu", "float64", None, pixels)
    assert_array_equal(compute_features(layer, pixels, resources), expected.numpy())


def test_no_memory_is_a_memory_error(library, rng):
    class Full:
        filter_lanes_double = library.filter_lanes_double
        filter_maps_double = staticmethod(lambda *arguments: 1)

    layer = filters_on(SHAPES["plain"], rng)
    images = images_for(SHAPES["plain"], torch.float64, rng)
    with pytest.raises(MemoryError, match="map"):
        compiled.filter_maps(Full, layer, images)


# ------------------------------------------------------------ where it is called


@pytest.fixture
def calls(monkeypatch):
    """The images of each call of the compiled function."""
    seen, filter_maps = [], compiled.filter_maps

    def watching(library, layer, images):
        seen.append(len(images))
        return filter_maps(library, layer, images)

    monkeypatch.setattr(compiled, "filter_maps", watching)
    return seen


@pytest.fixture
def stack(rng):
    """Two layers of filters on images of 9×8 with two channels."""
    first, second = convolution_layers((9, 8), 3, "valid", 2)
    return [
        FilterLayer(first, rng.normal(size=(5, 18)), "relu"),
        FilterLayer(second, rng.normal(size=(20, 45)), "relu", pool=(2, 2)),
    ]


def features_of(layer, X, n_jobs=None):
    return compute_features(layer, X, make_resources("cpu", "float64", n_jobs, X))


@pytest.mark.thorough
@pytest.mark.parametrize("memory", [1, 64])
@pytest.mark.parametrize("n_jobs", [None, 2])
def test_features_do_not_depend_on_blocks_or_workers(
    memory, n_jobs, calls, stack, compiled_tiles, rng
):
    X = rng.normal(size=(300, 9, 8, 2))
    expected = stack[0](torch.from_numpy(X)).numpy()
    with config_context(working_memory=memory):
        result = features_of(stack[0], X, n_jobs)
    assert_close(result, expected, 1e-13)
    if n_jobs is None:  # else in another process, which may have no compiled tiles
        assert sum(calls) == 300 and (len(calls) > 1) == (memory == 1)
        assert_array_equal(result, features_of(stack[0], X))


def test_maps_of_every_layer_are_compiled(calls, stack, compiled_tiles, rng):
    X = rng.normal(size=(6, 9, 8, 2))
    maps = pass_through(X, stack)
    expected = stack[1](stack[0](torch.from_numpy(X))).numpy()
    assert_close(to_tensor(maps, torch.float64, CPU).numpy(), expected, 1e-13)
    assert calls == [6, 6]
    held = hold_maps(maps, make_resources("cpu", "float64", None, X))
    assert_close(held, expected, 1e-13)
    assert calls == [6] * 4


def test_the_whole_computation_decides_whether_to_compile(monkeypatch, stack, rng):
    works = []
    monkeypatch.setattr(compiled, "load", works.append)
    X = rng.normal(size=(40, 9, 8, 2))
    maps = pass_through(pass_through(X, stack[:1]), stack[1:])
    to_tensor(maps[:3], torch.float64, CPU)
    to_tensor(maps[[1, 2]][:1], torch.float64, CPU)
    # Images × locations × filters × entries of a patch.
    products = [40 * 42 * 5 * 18, 40 * 20 * 20 * 45]
    expected = [p / compiled.PRODUCTS_A_PAIR for p in products]
    assert works == expected * 2
    with config_context(working_memory=1):
        features_of(stack[0], X)
    assert set(works[4:]) == {expected[0]}


def test_without_a_compiler_array_operations_serve(
    calls, stack, array_tiles, monkeypatch, rng
):
    X = rng.normal(size=(30, 9, 8, 2))
    expected = stack[0](torch.from_numpy(X)).numpy()
    whole = features_of(stack[0], X)
    monkeypatch.setattr(features, "_CPU_MAP_BYTES", 20_000)  # a few images at a time
    few = features_of(stack[0], X)
    maps = to_tensor(pass_through(X, stack[:1]), torch.float64, CPU).numpy()
    for result in (whole, few, maps):
        assert_close(result, expected, 1e-13)
    assert calls == []


def test_other_devices_and_features_are_not_compiled(stack, compiled_tiles, calls, rng):
    assert stack[0].find_library(10, torch.device("meta")) is None
    assert stack[0].find_library(10, CPU) is not None
    X = rng.normal(size=(4, 9, 8, 2))
    [layer] = convolution_layers((9, 8), 3, "valid", 1)
    features_of(features.Saliency(layer, np.eye(18)), X)
    assert calls == []

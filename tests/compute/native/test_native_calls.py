"""Compiled functions equal their formulas, whatever the threads and the parts."""

from concurrent.futures import ThreadPoolExecutor

import native_stand_ins as stand_ins
import numpy as np
import pytest
import torch
from native_stand_ins import SHAPES, make_blocks, make_filters, make_kernel

from skconvrfm.compute.images import Layer, convolution_layers
from skconvrfm.compute.native import build, calls

BOTH = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
# Image, filters, patch, padding, pool.
FILTERS = {
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


@pytest.fixture(scope="module")
def library():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(build.SWITCH, "1")
        if not any(map(build.shutil.which, ("g++", "clang++", "c++"))):
            pytest.skip("no C++ compiler here")
        return build.load(0)


def assert_near(ours, theirs, tolerance):
    """Equal up to a part of the largest value."""
    theirs = theirs.double()
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


def every(left, right):
    return slice(0, left.patches.shape[-1]), slice(0, right.patches.shape[-1])


# ------------------------------------------------------------------ kernels


@BOTH
@pytest.mark.parametrize("pixels", [True, False])
@pytest.mark.parametrize("tangent", [True, False])
@pytest.mark.parametrize("shape", SHAPES)
def test_value_and_pullback_equal_the_recursion(
    shape, tangent, pixels, dtype, library, rng
):
    is_double = dtype == torch.float64
    for blank in (True, False):
        options = {"tangent": tangent, "blank": blank, "pixels": pixels}
        kernel, left, right = make_blocks(shape, dtype, rng, 9, 35, **options)
        tiles, spans = (
            calls.CompiledTiles(library, kernel, left, right),
            every(left, right),
        )
        value, first = tiles.value(*spans), stand_ins.first_layer(kernel, left, right)
        expected = stand_ins.recursion(kernel, *first, kernel.parallel_gap(dtype))
        assert value.dtype == dtype
        assert_near(value, expected, 1e-12 if is_double else 3e-5)

    coef = torch.tensor(rng.normal(size=(35, 3)), dtype=dtype)
    s, a, b = first  # of images without blank ones
    s, a = s.requires_grad_(), a.expand_as(s).clone().requires_grad_()
    gap = kernel.parallel_gap(torch.float64)
    stand_ins.recursion(kernel, s, a, b, gap).sum().backward()
    ours, theirs = tiles.pullback(*spans, coef), (s.grad, a.grad @ coef.double())
    for result, expected in zip(ours, theirs, strict=True):
        assert result.dtype == dtype
        assert_near(result, expected, 1e-9 if is_double else 3e-3)


@pytest.fixture
def tiles(library, rng):
    """Return the compiled tiles of 70 × 35 images, and slices of all of them."""
    kernel, left, right = make_blocks("plain", torch.float64, rng, 70)
    return calls.CompiledTiles(library, kernel, left, right), *every(left, right)


def test_pullback_is_zero_at_blank_patches(tiles):
    tiles, *spans = tiles
    coef = torch.ones(35, 1, dtype=torch.float64)
    weights, self_weights = tiles.pullback(*spans, coef)
    assert not weights[:, :, 1].any() and weights[:, :, 0].any()
    assert weights.isfinite().all() and self_weights.isfinite().all()


@pytest.mark.parametrize("rows", [slice(0, 19), slice(3, 4), slice(5, 18), slice(4, 4)])
@pytest.mark.parametrize("columns", [slice(0, 35), slice(8, 9), slice(16, 31)])
def test_parts_of_a_tile_equal_the_whole(rows, columns, tiles, rng):
    tiles, *spans = tiles
    whole = tiles.value(*spans)
    assert torch.equal(tiles.value(rows, columns), whole[rows, columns])
    coef = torch.tensor(rng.normal(size=(35, 2)))
    weights, _ = tiles.pullback(*spans, coef)
    part, _ = tiles.pullback(rows, columns, coef[columns])
    assert torch.equal(part, weights[:, :, rows, columns])


def test_tile_is_complete_above_the_diagonal(tiles):
    tiles, *spans = tiles
    whole = tiles.value(*spans)
    for offset in (-30, -7, 0, 3, 16, 40):
        needed = torch.ones_like(whole, dtype=bool).triu(offset)
        part = tiles.value(*spans, offset)
        assert torch.equal(part[needed], whole[needed])


def test_strided_blocks_equal_contiguous_ones(library, rng):
    kernel, left, right = make_blocks("even", torch.float64, rng)
    expected = calls.CompiledTiles(library, kernel, left, right)
    strided = [
        stand_ins.SimpleNamespace(
            patches=block.patches.transpose(1, 3).contiguous().transpose(1, 3),
            roots=[root.mT.contiguous().mT for root in block.roots],
            inverse_roots=[root.mT.contiguous().mT for root in block.inverse_roots],
        )
        for block in (left, right)
    ]
    assert not strided[0].patches.is_contiguous()
    result = calls.CompiledTiles(library, kernel, *strided)
    spans = every(left, right)
    assert torch.equal(result.value(*spans), expected.value(*spans))


@pytest.mark.parametrize("count", [1, 2, 5])
def test_tiles_independent_of_threads(count, tiles, set_threads):
    tiles, *spans = tiles
    coef = torch.ones(35, 1, dtype=torch.float64)

    def compute(_=None):
        return tiles.value(*spans), *tiles.pullback(*spans, coef)

    expected = compute()
    set_threads(count)
    with ThreadPoolExecutor(4) as pool:  # several calls at a time
        for found in (compute(), *pool.map(compute, range(4))):
            assert all(map(torch.equal, found, expected))


@BOTH
def test_polynomial_arccos_is_accurate_to_rounding(dtype, library):
    # One pixel, depth 1: the kernel is r (s / π + 2 k0 κ), with κ = cos of the angle.
    angles = torch.linspace(0.02, np.pi - 0.02, 2001, dtype=torch.float64)
    images = torch.stack([angles.cos(), angles.sin()], -1).to(dtype)[:, None, None]
    kernel = make_kernel((1, 1, 2), depth=1)
    left = stand_ins.make_block(kernel, torch.tensor([[[[1.0, 0.0]]]], dtype=dtype))
    right = stand_ins.make_block(kernel, images)
    value = calls.CompiledTiles(library, kernel, left, right).value(*every(left, right))
    cosine, sine = images[:, 0, 0].double().T  # of what was rounded to dtype
    angles = torch.atan2(sine, cosine)
    expected = angles.sin() / np.pi + 2 * (1 - angles / np.pi) * angles.cos()
    assert (2 * value[0] - expected).abs().max() < 50 * torch.finfo(dtype).eps


def test_no_memory_for_the_maps_is_a_memory_error(tiles):
    tiles, *_ = tiles
    tiles._value = lambda *arguments: 1
    with pytest.raises(MemoryError, match="maps"):
        tiles.value(slice(0, 2), slice(0, 8))


# ----------------------------------------------------------------- products


@BOTH
@pytest.mark.parametrize("sizes", [(3, 5, 9, 16), (17, 1, 27, 70), (2, 30, 1, 3)])
@pytest.mark.parametrize("n_outputs", [1, 8, 11])
def test_products_equal_their_formulas(sizes, n_outputs, dtype, library, rng):
    locations, m, d, n = sizes
    w, v, coef = (
        torch.tensor(rng.normal(size=shape), dtype=dtype)
        for shape in ((locations, m, n), (locations, d, n), (n_outputs, n))
    )
    tolerance = 1e-13 if dtype == torch.float64 else 2e-5
    gram = torch.einsum("uzj,uzk,jk->ujk", *(x.double() for x in (w, w, coef.T @ coef)))
    product = calls.gram_product(library, w, coef.T @ coef, v)
    assert_near(product, torch.einsum("ujk,udk->udj", gram, v.double()), tolerance)


@BOTH
@pytest.mark.parametrize("pixels", [True, False])
@pytest.mark.parametrize("n_outputs", [1, 8, 11])
@pytest.mark.parametrize("shape", ["colour", "even, same", "clipped", "one pixel"])
def test_output_products_equal_their_formula(
    shape, n_outputs, pixels, dtype, library, rng
):
    kernel, _, block = make_blocks(shape, dtype, rng, n_right=300, pixels=pixels)
    layer, n = kernel.layers[0], 300
    sizes = (layer.n_locations, 5, n), (n_outputs, n)
    w, coef = (torch.tensor(rng.normal(size=size), dtype=dtype) for size in sizes)
    patches = stand_ins.patches_of(kernel, block).flatten(0, 1).double()
    expected = torch.einsum("uzk,ok,udk->uzod", w.double(), coef.double(), patches)
    tolerance = 1e-13 if dtype == torch.float64 else 2e-5
    for weights in (w, w.transpose(0, 1).contiguous().transpose(0, 1)):
        out = torch.ones(expected.shape, dtype=dtype)
        calls.add_output_product(library, weights, coef, block.patches, layer, out)
        assert_near(out, 1 + expected, tolerance)


# ------------------------------------------------------------------ filters


def filters_on(shape, rng, activation="relu", order=1):
    image_shape, n_filters, patch, padding, pool = shape
    [layer] = convolution_layers(image_shape, patch, padding, 1)
    d = image_shape[2] * layer.patch[0] * layer.patch[1]
    filters, biases = rng.normal(size=(n_filters, d)), rng.normal(size=n_filters)
    options = activation, biases, pool, order
    return make_filters(layer, image_shape[2], filters, *options)


def images_for(shape, dtype, rng, n=11):
    images = rng.normal(size=(n, *shape[0]))
    images[1] = 0
    return torch.tensor(images, dtype=dtype)


def check_maps(library, features, images, lower=1e-5):
    """Check maps of filters, with a tolerance for those in float32."""
    maps = calls.filter_maps(library, features, images)
    assert maps.dtype == images.dtype
    tolerance = 1e-13 if maps.dtype == torch.float64 else lower
    assert_near(maps, stand_ins.maps_by_formula(features, images), tolerance)


@BOTH
@pytest.mark.parametrize("activation", ["relu", "identity"])
@pytest.mark.parametrize("shape", FILTERS)
def test_filter_maps_equal_array_operations(shape, activation, dtype, library, rng):
    features = filters_on(FILTERS[shape], rng, activation)
    check_maps(library, features, images_for(FILTERS[shape], dtype, rng), 3e-6)


@BOTH
@pytest.mark.parametrize("order", [2, 3, 4, 8, np.inf])
@pytest.mark.parametrize("activation", ["relu", "identity"])
@pytest.mark.parametrize("shape", ["plain", "no pool", "unequal cells", "global"])
def test_powers_and_maxima_equal_array_operations(
    shape, activation, order, dtype, library, rng
):
    features = filters_on(FILTERS[shape], rng, activation, order)
    check_maps(library, features, images_for(FILTERS[shape], dtype, rng))


@BOTH
@pytest.mark.parametrize("order", [1, 4, np.inf])
def test_cells_between_any_edges(order, dtype, library, rng):
    features = filters_on(FILTERS["unequal cells"], rng, "identity", order)
    features.edges = (0, 1, 2, 7, 11), (0, 5, 12)
    check_maps(library, features, images_for(FILTERS["unequal cells"], dtype, rng))


def test_filter_maps_with_unequal_zeros_at_the_edges(library, rng):
    layer = Layer((2, 3), (2, 0, 1, 3), (7, 9))
    filters, biases = rng.normal(size=(5, 12)), np.zeros(5)
    features = make_filters(layer, 2, filters, "relu", biases, (3, 4))
    check_maps(library, features, torch.from_numpy(rng.normal(size=(4, 6, 7, 2))))


@pytest.mark.parametrize("n", [0, 1, 2, 5, 6, 7])
@pytest.mark.parametrize("order", [1, 4, np.inf])
@pytest.mark.parametrize("shape", ["one location", "no pool", "unequal cells"])
def test_filter_maps_independent_of_batch(shape, order, n, library, rng):
    features = filters_on(FILTERS[shape], rng, order=order)
    images = images_for(FILTERS[shape], torch.float32, rng, 24)
    whole = calls.filter_maps(library, features, images)
    for first in range(0, 24 - n, max(n, 9)):
        part = calls.filter_maps(library, features, images[first : first + n])
        assert torch.equal(part, whole[first : first + n])


@BOTH
@pytest.mark.parametrize("count", [2, 3, 5])
def test_filter_maps_independent_of_threads(count, dtype, library, set_threads, rng):
    features = filters_on(FILTERS["unequal cells"], rng)
    images = images_for(FILTERS["unequal cells"], dtype, rng, 17)
    expected = calls.filter_maps(library, features, images)
    set_threads(count)
    assert torch.equal(calls.filter_maps(library, features, images), expected)


def test_filter_maps_of_a_blank_image_are_its_biases(library, rng):
    features = filters_on(FILTERS["colour, odd filters"], rng)
    blank = torch.zeros(2, 9, 7, 3, dtype=torch.float64)
    maps = calls.filter_maps(library, features, blank)
    expected = torch.from_numpy(features.affine(3)[1]).clamp_min(0)
    assert_near(maps, expected.expand_as(maps), 1e-15)


@pytest.mark.parametrize("order", [1, 2, np.inf])
@pytest.mark.parametrize("where", [0, 4, 8])
def test_filter_maps_keep_nan(where, order, library, rng):
    features = filters_on(FILTERS["plain"], rng, order=order)
    images = images_for(FILTERS["plain"], torch.float32, rng)
    images[3, where, 4] = torch.nan
    maps = calls.filter_maps(library, features, images)
    expected = stand_ins.maps_by_formula(features, images)
    assert torch.equal(maps.isnan(), expected.isnan()) and maps[3].isnan().any()


def test_filter_maps_independent_of_memory_order(library, rng):
    features = filters_on(FILTERS["colour, odd filters"], rng)
    images = images_for(FILTERS["colour, odd filters"], torch.float64, rng, 12)
    expected = calls.filter_maps(library, features, images[::2])
    planar = images.permute(0, 3, 1, 2).contiguous().permute(0, 2, 3, 1)[::2]
    assert torch.equal(calls.filter_maps(library, features, planar), expected)
    filters, biases = features.affine(3)
    for order in (np.asfortranarray, lambda array: array.astype(">f8")):
        features.affine = lambda c, order=order: (order(filters), biases)
        assert torch.equal(calls.filter_maps(library, features, images[::2]), expected)


def test_no_memory_for_the_places_is_a_memory_error(library, rng):
    class Full:
        filter_lanes_double = library.filter_lanes_double
        filter_maps_double = staticmethod(lambda *arguments: 1)

    features = filters_on(FILTERS["plain"], rng)
    images = images_for(FILTERS["plain"], torch.float64, rng)
    with pytest.raises(MemoryError, match="map"):
        calls.filter_maps(Full, features, images)

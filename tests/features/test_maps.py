"""Feature maps: convolution, activation, pool, compiled or not, held or streamed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from by_hand import assert_close, patches_by_hand
from joblib import parallel_config
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import config_context

from skconvrfm._input import make_resources
from skconvrfm.compute.images import convolution_layers, extract_patches, to_tensor
from skconvrfm.compute.native import build, calls
from skconvrfm.compute.tiles import kernel_matrix
from skconvrfm.features import maps as maps_module
from skconvrfm.features.filters import draw_filters
from skconvrfm.features.maps import (
    FeatureMaps,
    FilterLayer,
    compute_features,
    convolve,
    hold_maps,
    load_rows,
    pass_through,
    transformed_patches,
)
from skconvrfm.features.pools import average_pool, cell_edges, cell_slices
from skconvrfm.features.projections import (
    EigenProjections,
    Saliency,
    SeenImage,
    overlap_average,
)
from skconvrfm.kernels import ConvNNGP, ConvNTK

CPU = torch.device("cpu")


def layer_of(image_shape, patch_size=3, padding="valid"):
    return convolution_layers(image_shape, patch_size, padding, 1)[0]


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_convolution_is_the_product_with_every_patch(padding, rng):
    images, filters = rng.normal(size=(3, 7, 6, 2)), rng.normal(size=(5, 18))
    layer = layer_of((7, 6), padding=padding)
    maps = convolve(torch.from_numpy(images), layer, torch.from_numpy(filters))
    expected = [patches_by_hand(x, padding=padding) @ filters.T for x in images]
    assert_close(maps.numpy(), np.array(expected), 1e-13)


@pytest.mark.parametrize("name", ["enabled", "benchmark", "deterministic"])
def test_convolution_leaves_all_of_cudnn_but_its_rounding(name, monkeypatch):
    cudnn, seen = torch.backends.cudnn, []

    def conv2d(*arguments):
        seen.append((getattr(cudnn, name), cudnn.allow_tf32))
        return torch.nn.functional.conv2d(*arguments)

    monkeypatch.setattr(maps_module, "conv2d", conv2d)
    images, filters = (  # not on the CPU, which has no cuDNN
        torch.empty(shape, device="meta") for shape in ((3, 7, 6, 2), (5, 18))
    )
    for value in (False, True):
        monkeypatch.setattr(cudnn, name, value)
        convolve(images, layer_of((7, 6)), filters)
        assert seen.pop() == (value, False) and getattr(cudnn, name) == value


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_wide_patches_are_transformed_like_narrow_ones(padding, rng):
    images = torch.from_numpy(rng.normal(size=(3, 7, 6, 8)))
    layer, T = layer_of((7, 6), padding=padding), torch.from_numpy(rng.random((72, 72)))
    expected = T @ extract_patches(images, layer)
    assert_close(transformed_patches(images, layer, T).numpy(), expected.numpy(), 1e-13)


@pytest.mark.parametrize("activation", ["relu", "identity"])
def test_many_filters_give_the_covariances_of_the_next_layer(activation, rng):
    """The kernel of depth 1 on the maps tends to that of depth 2 on the images."""
    X, T = rng.normal(size=(4, 6, 6, 2)), rng.normal(size=(18, 18))
    T = (T + T.T) / 8
    filters = draw_filters(T, 20_000, np.random.RandomState(0))
    layer = FilterLayer(layer_of((6, 6)), filters, activation)
    maps = layer(torch.from_numpy(X)).numpy()
    if activation == "relu":
        measured = ConvNNGP(depth=1, bias=0, scale=1)(maps)
        expected = ConvNNGP(depth=2, bias=0)(X, patch_transform=T)
    else:
        p = np.stack([patches_by_hand(x) @ T for x in X])
        measured = np.einsum("iuvf,juvf->ijuv", maps, maps) / maps.shape[-1]
        expected = np.einsum("iuvd,juvd->ijuv", p, p) / 2
    assert_close(measured, expected, 0.03)


@pytest.mark.parametrize("overlap", [0.0, 0.4])
def test_pool_averages_over_the_cells_of_a_map(overlap, rng):
    maps = torch.from_numpy(rng.normal(size=(2, 5, 7, 3)))
    slices = [cell_slices(*pair, overlap) for pair in ((5, 2), (7, 3))]
    rows, columns = (slice(0, 2), slice(2, 5)), (slice(0, 2), slice(2, 4), slice(4, 7))
    if overlap:
        rows = slice(0, 3), slice(1, 5)
        columns = slice(0, 3), slice(1, 5), slice(3, 7)
    assert slices == [list(rows), list(columns)]
    expected = [[maps[:, r, c].mean((1, 2)).numpy() for c in columns] for r in rows]
    expected = np.moveaxis(np.array(expected), 2, 0)
    assert_allclose(average_pool(maps, slices), expected, rtol=1e-12)
    edges = [cell_edges(along) for along in slices]
    parts = average_pool(maps, [cell_slices(at[-1], at) for at in edges])
    assert_allclose(average_pool(parts, slices, edges), expected, rtol=1e-12)
    every = average_pool(maps, [cell_slices(size, size) for size in (5, 7)])
    assert every is maps


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_patches_put_back_give_the_image(padding, rng):
    images = torch.from_numpy(rng.normal(size=(2, 7, 6, 3)))
    layer = layer_of((7, 6), (3, 2), padding)
    patches = extract_patches(images, layer).permute(3, 0, 1, 2)
    assert_allclose(overlap_average(patches, layer, (7, 6, 3)), images, rtol=1e-12)


# ------------------------------------------------------- maps in place of images


@pytest.fixture
def stack(rng):
    """Two layers of filters on images of 9×8 with two channels."""
    first, second = convolution_layers((9, 8), 3, "valid", 2)
    return [
        FilterLayer(first, rng.normal(size=(5, 18)), "relu"),
        FilterLayer(second, rng.normal(size=(20, 45)), "relu", pool=(2, 2)),
    ]


def test_feature_maps_stand_for_an_array_of_images(stack, rng):
    X = rng.integers(0, 256, size=(9, 9, 8, 2)).astype(np.uint8)
    maps = pass_through(pass_through(X, stack[:1]), stack[1:])
    assert isinstance(maps, FeatureMaps)
    assert maps.shape == (9, 2, 2, 20) and len(maps) == 9
    assert maps.pixels is X
    whole = to_tensor(maps, torch.float64, CPU)
    expected = stack[1](stack[0](torch.from_numpy(X.astype(float))))
    assert_allclose(whole, expected, rtol=1e-12)
    part = to_tensor(maps[[2, 5]], torch.float64, CPU)
    assert_allclose(part, whole[[2, 5]], rtol=1e-10)
    assert pass_through(X, []) is X


def test_maps_are_held_only_where_they_fit(stack, rng):
    X = rng.normal(size=(50, 9, 8, 2))
    maps = pass_through(X, stack[:1])
    resources = make_resources("cpu", "float64", None, X)
    held = hold_maps(maps, resources)
    assert isinstance(held, np.ndarray) and held.shape == maps.shape
    small = type(resources)("cpu", torch.float64, held.nbytes)
    assert hold_maps(maps, small) is maps
    assert hold_maps(X, resources) is X
    kernel = ConvNTK(depth=1).bind(maps.shape[1:])
    pair = [kernel_matrix(kernel, m, None, None, resources) for m in (maps, held)]
    assert_close(*pair, 1e-12)


# ---------------------------------------------- images that are larger than the memory


def features_of_many_kinds(layer, rng):
    """Features of 23 × 9 images by what bands of locations have to know."""
    d = 2 * layer.patch[0] * layer.patch[1]
    filters, T = rng.normal(size=(5, d)), rng.normal(size=(d, d))
    offsets = rng.uniform(0.01, 0.1, size=5)
    return {
        "no pool": FilterLayer(layer, filters, "relu"),
        "root": FilterLayer(layer, filters, "relu", offsets, (3, 2), 0.5, offsets),
        "many cells": FilterLayer(layer, filters, "relu", None, (8, 4)),
        "every location, root": FilterLayer(
            layer, filters, "relu", None, layer.locations, 0.5, offsets
        ),
        **{
            f"{order}, {overlap}": FilterLayer(
                layer, filters, activation, offsets, grid, q, offsets, order, overlap
            )
            for order, q, activation, grid, overlap in [
                (4.0, 0.25, "relu", (3, 2), 0.0),
                (np.inf, 1.0, "relu", (3, 2), 0.0),
                (2.5, 1.5, "identity", (8, 4), 0.3),
                (np.inf, 1.0, "identity", (5, 4), 0.5),
                (1.0, 0.5, "relu", layer.locations, 1.0),
            ]
        },
        "eigen": EigenProjections(layer, T[:3], "halves", (2, 2)),
        "saliency": Saliency(layer, T),
        "image": SeenImage(layer, T, (23, 9, 2)),
    }


@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("size", [(3, 3), (2, 3)])
@pytest.mark.parametrize("largest", [1, 3, 7, 100])
def test_bands_of_locations_add_up_to_the_features(largest, size, padding, rng):
    X = torch.from_numpy(rng.normal(size=(2, 23, 9, 2)))
    layer = layer_of((23, 9), size, padding)
    for name, features in features_of_many_kinds(layer, rng).items():
        whole = torch.full((2, *features.shape), features.nothing, dtype=X.dtype)
        for band in features.bands(largest):
            block = band.features(X[:, band.pixels]).numpy()
            features.add_band(whole[:, band.rows].numpy(), block, band.share)
        assert_close(features.raise_means(whole).numpy(), features(X).numpy(), 1e-13)
        some = [band.rows for band in features.bands(largest, slice(1, 2))]
        assert all(rows == slice(1, 2) for rows in some), name


@pytest.mark.parametrize("memory", [1e-5, 0.02])
def test_features_of_images_larger_than_the_memory(memory, tiles, rng):
    X = rng.normal(size=(3, 23, 9, 2))
    for features in features_of_many_kinds(layer_of((23, 9)), rng).values():
        expected = features_of(features, X)
        with config_context(working_memory=memory):
            assert_close(features_of(features, X), expected, 1e-13)


@pytest.mark.parametrize("memory", [1e-5, 0.02])
def test_maps_of_layers_larger_than_the_memory(memory, tiles, rng):
    first, second = convolution_layers((23, 9), 3, "same", 2)
    below = FilterLayer(first, rng.normal(size=(5, 18)), "relu", None, (11, 9))
    second = layer_of((11, 9), padding="same")
    above = FilterLayer(second, rng.normal(size=(4, 45)), "relu", None, (2, 2))
    X = rng.normal(size=(3, 23, 9, 2))
    maps = pass_through(X, [below])
    resources = make_resources("cpu", "float64", None, X)
    expected = compute_features(above, maps, resources)
    with config_context(working_memory=memory):
        resources = make_resources("cpu", "float64", None, X)
        assert_close(compute_features(above, maps, resources), expected, 1e-13)
        rows = load_rows(maps, slice(2, 5), resources).numpy()
    assert_close(rows, to_tensor(maps, torch.float64, CPU)[:, 2:5].numpy(), 1e-13)


# ------------------------------------------------- where compiled maps are called


@pytest.fixture
def compiled(monkeypatch):
    """The images of each call of the compiled function."""
    seen, filter_maps = [], calls.filter_maps

    def watching(library, layer, images):
        seen.append(len(images))
        return filter_maps(library, layer, images)

    monkeypatch.setattr(calls, "filter_maps", watching)
    return seen


def features_of(layer, X, n_jobs=None):
    return compute_features(layer, X, make_resources("cpu", "float64", n_jobs, X))


@pytest.mark.parametrize("overlap", [0.0, 0.5])
@pytest.mark.parametrize("activation", ["relu", "identity"])
@pytest.mark.parametrize(
    ("order", "power"),
    [(1, 1), (1, 0.5), (2, 0.5), (4, 0.25), (3, 1), (2.5, 1), (np.inf, 1)],
)
def test_features_equal_array_operations(
    order, power, activation, overlap, stack, tiles, rng
):
    filters, biases = rng.normal(size=(37, 18)), rng.normal(size=37)
    pool = (2, 3), power, rng.uniform(0.01, 0.1, size=37), order, overlap
    layer = FilterLayer(stack[0].layer, filters, activation, biases, *pool)
    X = rng.normal(size=(11, 9, 8, 2))
    X[1] = 0
    expected = layer(torch.from_numpy(X)).numpy()
    assert_close(features_of(layer, X), expected, 1e-13)
    pixels = X[::-1, :, ::-1]
    pixels.flags.writeable = False
    expected = layer(torch.from_numpy(pixels.copy())).numpy()
    assert_close(features_of(layer, pixels), expected, 1e-13)


@pytest.mark.parametrize("scale", [1e-12, 1e-6, 255.0, 1e12])
@pytest.mark.parametrize(("order", "power"), [(4.0, 0.25), (8.0, 0.125)])
def test_norms_in_float32_neither_overflow_nor_vanish(scale, order, power, tiles, rng):
    X, filters = rng.normal(size=(5, 9, 8, 2)), rng.normal(size=(7, 18))
    offsets, biases = np.full(7, 0.03), rng.normal(size=7)
    pool = (2, 3), power, offsets, order
    layer = FilterLayer(layer_of((9, 8)), filters, "relu", biases, *pool)
    large = replace(layer, biases=scale * biases, offsets=scale * offsets)
    resources = make_resources("cpu", "float32", None, X)
    found = compute_features(large, scale * X, resources)
    assert_close(found.astype(float), scale * features_of(layer, X), 1e-5)


@pytest.mark.parametrize("memory", [0.1, 64])
@pytest.mark.parametrize("n_jobs", [None, 2])
def test_features_independent_of_blocks_and_workers(
    memory, n_jobs, compiled, stack, compiled_tiles, rng
):
    X = rng.normal(size=(60, 9, 8, 2))
    expected = stack[0](torch.from_numpy(X)).numpy()
    with config_context(working_memory=memory), parallel_config("threading"):
        result = features_of(stack[0], X, n_jobs)
    assert_close(result, expected, 1e-13)
    assert sum(compiled) == 60 and len(compiled) > (memory < 1)
    assert_array_equal(result, features_of(stack[0], X))


def test_maps_of_every_layer_are_compiled(compiled, stack, compiled_tiles, rng):
    X = rng.normal(size=(6, 9, 8, 2))
    maps = pass_through(X, stack)
    expected = stack[1](stack[0](torch.from_numpy(X))).numpy()
    assert_close(to_tensor(maps, torch.float64, CPU).numpy(), expected, 1e-13)
    assert compiled == [6, 6]
    held = hold_maps(maps, make_resources("cpu", "float64", None, X))
    assert_close(held, expected, 1e-13)
    assert compiled == [6] * 4
    assert stack[0].find_library(10, torch.device("meta")) is None
    assert stack[0].find_library(10, CPU) is not None
    features_of(Saliency(layer_of((9, 8)), np.eye(18)), X)
    assert compiled == [6] * 4


def test_the_whole_computation_decides_whether_to_compile(monkeypatch, stack, rng):
    works = []
    monkeypatch.setattr(build, "load", works.append)
    X = rng.normal(size=(40, 9, 8, 2))
    maps = pass_through(pass_through(X, stack[:1]), stack[1:])
    to_tensor(maps[:3], torch.float64, CPU)
    to_tensor(maps[[1, 2]][:1], torch.float64, CPU)
    # Images × locations × filters × entries of a patch.
    products = [40 * 42 * 5 * 18, 40 * 20 * 20 * 45]
    expected = [p / build.PRODUCTS_A_PAIR for p in products]
    assert works == expected * 2
    with config_context(working_memory=1):
        features_of(stack[0], X)
    assert set(works[4:]) == {expected[0]}


def test_without_a_compiler_array_operations_serve(
    compiled, stack, array_tiles, monkeypatch, rng
):
    X = rng.normal(size=(30, 9, 8, 2))
    expected = stack[0](torch.from_numpy(X)).numpy()
    whole = features_of(stack[0], X)
    monkeypatch.setattr(maps_module, "_CPU_MAP_BYTES", 20_000)  # a few images at a time
    few = features_of(stack[0], X)
    maps = to_tensor(pass_through(X, stack[:1]), torch.float64, CPU).numpy()
    for result in (whole, few, maps):
        assert_close(result, expected, 1e-13)
    assert compiled == []

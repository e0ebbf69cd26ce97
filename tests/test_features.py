"""Feature maps: filters of a metric, convolution, activation, pooling, streaming."""

import numpy as np
import pytest
import torch
from by_hand import assert_close, patches_by_hand
from numpy.testing import assert_allclose

from skconvrfm.core.features import (
    FeatureMaps,
    FilterLayer,
    average_pool,
    convolve,
    overlap_average,
    pass_through,
    transformed_patches,
)
from skconvrfm.core.filters import draw_filters
from skconvrfm.core.images import convolution_layers, extract_patches, to_tensor
from skconvrfm.core.tiles import hold_maps, kernel_matrix
from skconvrfm.kernels import convolutional_kernel, make_kernel, make_resources


def layer_of(image_shape, patch_size=3, padding="valid"):
    return convolution_layers(image_shape, patch_size, padding, 1)[0]


def test_the_covariance_of_the_filters_converges_to_the_metric(rng):
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


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_a_convolution_is_the_product_with_every_patch(padding, rng):
    images, filters = rng.normal(size=(3, 7, 6, 2)), rng.normal(size=(5, 18))
    layer = layer_of((7, 6), padding=padding)
    maps = convolve(torch.from_numpy(images), layer, torch.from_numpy(filters))
    expected = [patches_by_hand(x, padding=padding) @ filters.T for x in images]
    assert_close(maps.numpy(), np.array(expected), 1e-13)


@pytest.mark.parametrize("name", ["enabled", "benchmark", "deterministic"])
@pytest.mark.parametrize("value", [False, True])
def test_a_convolution_leaves_all_of_cudnn_but_its_rounding(
    name, value, rng, monkeypatch
):
    cudnn, seen = torch.backends.cudnn, []

    def conv2d(*arguments):
        seen.append((getattr(cudnn, name), cudnn.allow_tf32))
        return torch.nn.functional.conv2d(*arguments)

    monkeypatch.setattr("skconvrfm.core.features.conv2d", conv2d)
    monkeypatch.setattr(cudnn, name, value)
    images, filters = (
        torch.from_numpy(rng.normal(size=shape)) for shape in ((3, 7, 6, 2), (5, 18))
    )
    convolve(images, layer_of((7, 6)), filters)
    assert seen == [(value, False)]
    assert getattr(cudnn, name) == value


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_wide_patches_are_transformed_like_narrow_ones(padding, rng):
    images = torch.from_numpy(rng.normal(size=(3, 7, 6, 8)))
    layer, T = layer_of((7, 6), padding=padding), torch.from_numpy(rng.random((72, 72)))
    expected = T @ extract_patches(images, layer)
    assert_close(transformed_patches(images, layer, T).numpy(), expected.numpy(), 1e-13)


def test_a_band_of_patches_is_cut_out_of_all(rng):
    images, layer = torch.from_numpy(rng.normal(size=(3, 7, 6, 2))), layer_of((7, 6))
    band = extract_patches(images, layer, slice(1, 3))
    assert torch.equal(band, extract_patches(images, layer)[1:3])


@pytest.mark.parametrize(
    ("activation", "kind"), [("relu", "nngp"), ("identity", "linear")]
)
def test_many_filters_give_the_covariances_of_the_next_layer(activation, kind, rng):
    """The kernel of depth 1 on the maps tends to that of depth 2 on the images."""
    X = rng.normal(size=(4, 6, 6, 2))
    T = rng.normal(size=(18, 18))
    T = (T + T.T) / 8
    layer = layer_of((6, 6))
    filters = draw_filters(T, 40_000, np.random.RandomState(0))
    maps = FilterLayer(layer, filters, activation)(torch.from_numpy(X)).numpy()
    if kind == "nngp":
        options = {"kind": "nngp", "padding": "valid"}
        measured = convolutional_kernel(maps, depth=1, **options)
        expected = convolutional_kernel(X, depth=2, patch_transform=T, **options)
    else:
        p = np.stack([patches_by_hand(x) @ T for x in X])
        measured = np.einsum("iuvf,juvf->ijuv", maps, maps) / maps.shape[-1]
        expected = np.einsum("iuvd,juvd->ijuv", p, p) / 2
    assert_close(measured, expected, 0.03)


def test_pooling_averages_over_cells_that_part_the_map(rng):
    maps = rng.normal(size=(2, 5, 7, 3))
    pooled = average_pool(torch.from_numpy(maps), (2, 3)).numpy()
    rows, columns = (slice(0, 2), slice(2, 5)), (slice(0, 2), slice(2, 4), slice(4, 7))
    expected = [[maps[:, r, c].mean((1, 2)) for c in columns] for r in rows]
    assert_allclose(pooled, np.moveaxis(np.array(expected), 2, 0), rtol=1e-12)
    every = average_pool(torch.from_numpy(maps), (5, 7)).numpy()
    assert_allclose(every, maps, rtol=1e-12)


@pytest.mark.parametrize("padding", ["valid", "same"])
def test_patches_put_back_give_the_image(padding, rng):
    images, layer = torch.from_numpy(rng.normal(size=(2, 7, 6, 3))), layer_of((7, 6))
    layer = layer_of((7, 6), (3, 2), padding)
    patches = extract_patches(images, layer).permute(3, 0, 1, 2)
    assert_allclose(overlap_average(patches, layer, (7, 6, 3)), images, rtol=1e-12)


@pytest.fixture
def stack(rng):
    """Two layers of filters on images of 8×7 with two channels."""
    first, second = convolution_layers((8, 7), 3, "valid", 2)
    return [
        FilterLayer(first, rng.normal(size=(5, 18)), "relu"),
        FilterLayer(second, rng.normal(size=(4, 45)), "identity"),
    ]


def test_feature_maps_stand_for_an_array_of_images(stack, rng):
    X = rng.integers(0, 256, size=(9, 8, 7, 2)).astype(np.uint8)
    maps = pass_through(pass_through(X, stack[:1]), stack[1:])
    assert isinstance(maps, FeatureMaps)
    assert maps.shape == (9, 4, 3, 4) and len(maps) == 9
    assert maps.pixels is X
    whole = to_tensor(maps, torch.float64, torch.device("cpu"))
    by_hand = stack[1](stack[0](torch.from_numpy(X.astype(float))))
    assert_allclose(whole, by_hand, rtol=1e-12)
    part = to_tensor(maps[[2, 5]], torch.float64, torch.device("cpu"))
    assert_allclose(part, whole[[2, 5]], rtol=1e-10)
    assert pass_through(X, []) is X


def test_maps_are_held_only_where_they_fit(stack, rng):
    X = rng.normal(size=(50, 8, 7, 2))
    maps = pass_through(X, stack)
    resources = make_resources("cpu", "float64", None, X)
    held = hold_maps(maps, resources)
    assert isinstance(held, np.ndarray) and held.shape == maps.shape
    small = type(resources)("cpu", torch.float64, held.nbytes)
    assert hold_maps(maps, small) is maps
    assert hold_maps(X, resources) is X
    kernel = make_kernel("ntk", maps.shape[1:], 3, "valid", 1, 0.1)
    pair = [kernel_matrix(kernel, m, None, None, resources) for m in (maps, held)]
    assert_close(*pair, 1e-12)

"""Layers, patches and blocks are those of torch's convolutions."""

import numpy as np
import pytest
import torch
from torch.nn.functional import conv2d, unfold

from skconvrfm.compute.blocks import balanced_blocks, image_blocks
from skconvrfm.compute.images import convolution_layers, extract_patches, to_tensor

# ------------------------------------------------------------------- layers


@pytest.mark.parametrize(
    ("image", "patch_size", "padding", "patches", "locations"),
    [
        ((9, 7), 3, "valid", [(3, 3)] * 3, [(7, 5), (5, 3), (3, 1)]),
        ((9, 7), (3, 3), "valid", [(3, 3)] * 3, [(7, 5), (5, 3), (3, 1)]),
        # Patches are clipped to the map.
        ((5, 2), 4, "valid", [(4, 2), (2, 1), (1, 1)], [(2, 1), (1, 1), (1, 1)]),
        ((5, 2), 4, "same", [(4, 2)] * 3, [(5, 2)] * 3),
        ((6, 5), (2, 5), "same", [(2, 5)] * 3, [(6, 5)] * 3),
    ],
)
def test_valid_maps_shrink_and_same_maps_keep_their_size(
    image, patch_size, padding, patches, locations
):
    layers = convolution_layers(image, patch_size, padding, 3)
    assert [layer.patch for layer in layers] == patches
    assert [layer.locations for layer in layers] == locations
    for layer in layers:
        top, bottom, left, right = layer.padding
        (rows, columns), same = layer.patch, padding == "same"
        assert (top + bottom, left + right) == (same * (rows - 1), same * (columns - 1))
        # Even patches have one zero more after.
        assert bottom - top == same * (1 - rows % 2)
        assert right - left == same * (1 - columns % 2)


# ------------------------------------------------------------------ patches


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("patch_size", [1, 3, (2, 4)])
def test_patches_equal_those_of_torch_unfold(channels, patch_size):
    images = torch.randn(4, 6, 5, channels, dtype=torch.float64)
    (layer,) = convolution_layers((6, 5), patch_size, "valid", 1)
    patches = extract_patches(images, layer)
    expected = unfold(images.permute(0, 3, 1, 2), layer.patch)
    assert patches.shape == (*layer.locations, channels * np.prod(layer.patch), 4)
    assert torch.equal(patches.flatten(0, 1).permute(2, 1, 0), expected)
    rows = slice(1, layer.locations[0])
    assert torch.equal(extract_patches(images, layer, rows), patches[rows])


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("patch_size", [1, 2, 3, 4, 5, (2, 3)])
def test_patch_entries_are_in_the_order_of_convolution_weights(padding, patch_size):
    images = torch.randn(2, 6, 7, 3, dtype=torch.float64)
    (layer,) = convolution_layers((6, 7), patch_size, padding, 1)
    weight = torch.randn(4, 3, *layer.patch, dtype=torch.float64)
    maps = torch.einsum(
        "kd,uvdn->nkuv", weight.reshape(4, -1), extract_patches(images, layer)
    )
    expected = conv2d(images.permute(0, 3, 1, 2), weight, padding=padding)
    torch.testing.assert_close(maps, expected)


# ------------------------------------------------------------------- blocks


@pytest.mark.parametrize("n", [1, 2, 12, 13, 97])
@pytest.mark.parametrize("largest", [0, 1, 4, 12, 1000])
def test_blocks_cover_all_images_and_are_equal_but_for_one(n, largest):
    blocks = balanced_blocks(slice(5, 5 + n), largest)
    covered = [i for block in blocks for i in range(block.start, block.stop)]
    assert covered == list(range(5, 5 + n))
    sizes, largest = {b.stop - b.start for b in blocks}, max(largest, 1)
    assert max(sizes) <= largest and max(sizes) - min(sizes) <= 1
    assert len(blocks) == -(-n // largest)


@pytest.mark.parametrize("n", [0, 1, 15, 16, 17, 400, 401])
@pytest.mark.parametrize("largest", [3, 16, 40, 112, 1000])
def test_blocks_of_a_multiple(n, largest):
    blocks = balanced_blocks(slice(5, 5 + n), largest, 16)
    assert [block.stop for block in blocks[:-1]] == [b.start for b in blocks[1:]]
    assert (blocks[0].start, blocks[-1].stop) == (5, 5 + n)
    sizes = [block.stop - block.start for block in blocks]
    assert max(sizes) <= largest
    if largest >= 16:
        assert not any(size % 16 for size in sizes[:-1])
        assert len(blocks) == max(1, -(-n // (largest // 16 * 16)))
    assert image_blocks(np.empty((0, 3)), 5) == [slice(0, 0)]


# ------------------------------------------------------------------ tensors


@pytest.mark.parametrize(
    "change",
    [
        lambda images: images,
        lambda images: images[::-1],
        lambda images: images[:, ::2, ::-2],
        lambda images: np.asfortranarray(images),
        lambda images: images.astype(">f8"),
        lambda images: images.astype(">i2"),
        lambda images: images.astype(np.uint8),
        lambda images: images > 3,
        lambda images: np.broadcast_to(images[:1], images.shape),
    ],
)
def test_every_numpy_array_is_copied_to_an_aligned_tensor(change):
    images = change(np.arange(2.0 * 4 * 4 * 3).reshape(2, 4, 4, 3))
    images.flags.writeable = False
    for dtype in (torch.float32, torch.float64):
        tensor = to_tensor(images, dtype, torch.device("cpu"))
        assert tensor.dtype == dtype
        np.testing.assert_array_equal(tensor.numpy(), images)
        assert not np.shares_memory(tensor.numpy(), images)
        # Where vectors begin: products are rounded alike, wherever the images lie.
        assert tensor.data_ptr() % 64 == 0

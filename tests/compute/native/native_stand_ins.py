"""Kernels, blocks and filters as the compiled calls take them, and their formulas."""

import math
from types import SimpleNamespace

import torch
from torch.nn.functional import pad

from skconvrfm.compute.images import cells, convolution_layers, extract_patches

# Image, and options of the kernel.
SHAPES = {
    "plain": ((6, 6, 1), {}),
    "colour": ((7, 5, 3), {"depth": 2}),
    "same": ((5, 6, 1), {"padding": "same", "bias": 0.2}),
    "even": ((7, 7, 2), {"patch": (2, 4), "depth": 2}),
    "even, same": ((5, 5, 1), {"patch": 4, "padding": "same"}),
    "clipped": ((4, 9, 1), {"patch": 5, "depth": 4}),
    "one layer": ((6, 6, 2), {"depth": 1, "bias": 1.0}),
    "one pixel": ((1, 1, 3), {"depth": 2}),
    "one row": ((1, 12, 1), {}),
}


def make_kernel(shape, tangent=True, depth=3, patch=3, padding="valid", bias=0.0):
    layers = convolution_layers(shape, patch, padding, depth)
    return SimpleNamespace(
        layers=layers,
        channels=shape[2],
        patch_dim=shape[2] * math.prod(layers[0].patch),
        tangent=tangent,
        bias=bias,
        parallel_gap=lambda dtype: 32 * torch.finfo(dtype).eps,
    )


def make_block(kernel, images, pixels=False):
    patches = extract_patches(images, kernel.layers[0])
    variances = [patches.square().sum(2) / kernel.channels + kernel.bias**2]
    for layer in kernel.layers[1:]:
        variances.append(window_sum(variances[-1], layer) + kernel.bias**2)
    roots = [variance.sqrt() for variance in variances]
    inverses = [torch.where(root > 0, 1 / root, 0) for root in roots]
    patches = images.permute(1, 2, 3, 0) if pixels else patches
    return SimpleNamespace(patches=patches, roots=roots, inverse_roots=inverses)


def patches_of(kernel, block):
    """The patches of a block that may have pixels in their place."""
    if block.patches.shape[2] == kernel.patch_dim:
        return block.patches
    return extract_patches(block.patches.permute(3, 0, 1, 2), kernel.layers[0])


def make_blocks(
    name, dtype, rng, n_left=19, n_right=35, tangent=True, blank=True, pixels=False
):
    """A kernel and two blocks of images; some are blank, two are equal."""
    shape, options = SHAPES[name]
    kernel = make_kernel(shape, tangent, **options)
    left, right = (rng.normal(size=(n, *shape)) for n in (n_left, n_right))
    if blank:
        left[1], left[2, :2], right[3], right[5] = 0, 0, 0, left[4]
    return kernel, *(
        make_block(kernel, torch.tensor(images, dtype=dtype), pixels)
        for images in (left, right)
    )


def window_sum(maps, layer):
    """Sums over the windows of a layer along the first two dimensions."""
    top, bottom, left, right = layer.padding
    maps = pad(maps, (*[0] * (2 * maps.ndim - 4), left, right, top, bottom))
    windows = maps.unfold(0, layer.patch[0], 1).unfold(1, layer.patch[1], 1)
    return windows.sum((-1, -2))


def recursion(kernel, s, a, b, gap):
    """The kernel from S, a and b of the first layer, (rows, columns, m, n)."""
    theta = s
    for index, layer in enumerate(kernel.layers):
        if index:
            s, theta, a, b = (window_sum(m, layer) for m in (s, theta, a, b))
            s, a, b = (m + kernel.bias**2 for m in (s, a, b))
            theta = theta + s
        square = a * b
        r = torch.where(square > 0, square, 1).sqrt() * (square > 0)
        kappa = (s / torch.where(r > 0, r, 1)).clamp(-1, 1)
        kappa = kappa.masked_fill(kappa > 1 - gap, 1)
        k0 = 1 - torch.arccos(kappa) / math.pi
        s = r * ((1 - kappa**2).sqrt() / math.pi + k0 * kappa)
        theta = k0 * theta
    return (s + theta if kernel.tangent else s).mean((0, 1))


def first_layer(kernel, left, right):
    """S, a and b of the first layer in float64."""
    p, q = (patches_of(kernel, block).double() for block in (left, right))
    bias = kernel.bias**2
    s = torch.einsum("rcdm,rcdn->rcmn", p, q) / kernel.channels + bias
    a, b = (m.square().sum(2) / kernel.channels + bias for m in (p, q))
    return s, a[..., None], b[:, :, None]


def make_filters(layer, channels, filters, activation, biases, pool=None, order=1):
    """Filters as `FilterLayer` has them; ``pool`` None keeps all locations."""
    gain = math.sqrt(2) if activation == "relu" else 1.0
    slices = map(cells, layer.locations, pool or layer.locations)
    return SimpleNamespace(
        layer=layer,
        edges=tuple((0, *(cell.stop for cell in along)) for along in slices),
        n_maps=len(filters),
        activation=activation,
        order=order,
        affine=lambda c: (filters * (gain / math.sqrt(c)), biases * gain),
        patch_scales=no_scales,
    )


def no_scales(images):
    """Scales of patches that are taken as they are."""


def maps_by_formula(features, images):
    """Convolution, activation and pools of cells by plain array operations."""
    images = images.double()
    filters, biases = map(torch.from_numpy, features.affine(images.shape[3]))
    patches = extract_patches(images, features.layer)
    maps = torch.einsum("rcdn,kd->nrck", patches, filters) + biases
    if features.activation == "relu":
        maps = maps.clamp_min(0)
    pool = torch.amax if math.isinf(features.order) else torch.mean
    if 1 < features.order < math.inf:
        maps = maps.abs() ** features.order
    rows, columns = (map(slice, along, along[1:]) for along in features.edges)
    rows, columns = list(rows), list(columns)
    return torch.stack(
        [torch.stack([pool(maps[:, r, c], (1, 2)) for c in columns], 1) for r in rows],
        1,
    )

"""The kernel as its formulas read: one pair, one location at a time, no tricks.

Written against the formulas alone, for numpy arrays and (as ``xp=torch``) for
tensors, through which automatic differentiation then gives gradients.
"""

import math

import numpy as np
import torch

from skconvrfm.core.tiles import find_library, open_tiles
from skconvrfm.kernels import make_kernel, make_resources


def patches_by_hand(image, patch_size=3, padding="valid"):
    """The patches of an image (h, w, c) as (rows, columns, d), channel first in d."""
    rows, columns = np.broadcast_to(patch_size, 2)
    rows, columns = min(rows, image.shape[0]), min(columns, image.shape[1])
    if padding == "same":
        image = np.pad(image, (*map(margins, (rows, columns)), (0, 0)))
    return np.array(
        [
            [
                image[i : i + rows, j : j + columns].transpose(2, 0, 1).ravel()
                for j in range(image.shape[1] - columns + 1)
            ]
            for i in range(image.shape[0] - rows + 1)
        ]
    )


def margins(size):
    """Zeros before and after for maps that keep their size under a patch."""
    return (size - 1) // 2, size - 1 - (size - 1) // 2


def window_sum_by_hand(maps, patch_size, padding, xp=np):
    """Sums of a map over the windows of a layer, clipped to the map."""
    size = [
        min(p, m)
        for p, m in zip(np.broadcast_to(patch_size, 2), maps.shape, strict=True)
    ]
    before = [margins(s)[0] if padding == "same" else 0 for s in size]
    count = [
        m if padding == "same" else m - s + 1
        for m, s in zip(maps.shape, size, strict=True)
    ]

    def windows(axis):
        for start in range(-before[axis], count[axis] - before[axis]):
            yield slice(max(0, start), start + size[axis])

    return xp.stack(
        [xp.stack([maps[r, c].sum() for c in windows(1)]) for r in windows(0)]
    )


def kernel_of_patches(
    p,
    q,
    *,
    channels,
    kind="ntk",
    depth=3,
    patch_size=3,
    padding="valid",
    bias=0.0,
    patch_transform=None,
    xp=np,
):
    """k(x, z) from the patches of x and of z, each (rows, columns, d)."""
    if patch_transform is not None:
        p, q = p @ patch_transform, q @ patch_transform
    maps = [(p * q).sum(-1), (p * p).sum(-1), (q * q).sum(-1)]
    s, a, b = (m / channels + bias**2 for m in maps)
    theta = s
    for layer in range(depth):
        if layer:
            s, theta, a, b = (
                window_sum_by_hand(m, patch_size, padding, xp) for m in (s, theta, a, b)
            )
            s, a, b = s + bias**2, a + bias**2, b + bias**2
            theta = theta + s
        s, theta = relu_by_hand(s, theta, xp.sqrt(a * b), xp)
    return (s + theta if kind == "ntk" else s).mean()


def relu_by_hand(s, theta, r, xp=np):
    """S' and Θ' from S, Θ and r."""
    blank = r == 0
    kappa = xp.where(blank, 0 * r, s / xp.where(blank, 1 + 0 * r, r))
    kappa = xp.clip(kappa, -1, 1)
    k0 = 1 - xp.arccos(kappa) / math.pi
    return r * (xp.sqrt(1 - kappa**2) / math.pi + k0 * kappa), k0 * theta


def kernel_by_hand(
    X, Y, *, patch_size=3, padding="valid", of_patches=kernel_of_patches, **options
):
    """The kernel matrix of images (n, h, w, c), by `kernel_of_patches` or another."""
    options = {
        "channels": X.shape[-1],
        "patch_size": patch_size,
        "padding": padding,
        **options,
    }
    left, right = (
        [patches_by_hand(x, patch_size, padding) for x in images] for images in (X, Y)
    )
    return np.array([[of_patches(p, q, **options) for q in right] for p in left])


def gradients_by_autograd(
    X,
    dual_coef,
    Y,
    *,
    patch_size=3,
    padding="valid",
    patch_transform=None,
    of_patches=kernel_of_patches,
    **options,
):
    """∂f_o/∂v_u at the images Y, as (outputs, images, rows, columns, d)."""
    options = {
        "channels": X.shape[-1],
        "patch_size": patch_size,
        "padding": padding,
        "patch_transform": patch_transform,
        "xp": torch,
        **options,
    }
    if patch_transform is not None:
        options["patch_transform"] = torch.from_numpy(patch_transform)
    centres = [torch.from_numpy(patches_by_hand(x, patch_size, padding)) for x in X]
    coef = torch.from_numpy(dual_coef)

    def outputs(patches):
        values = [of_patches(centre, patches, **options) for centre in centres]
        return torch.stack(values) @ coef

    return np.stack(
        [
            torch.autograd.functional.jacobian(
                outputs, torch.from_numpy(patches_by_hand(z, patch_size, padding))
            ).numpy()
            for z in Y
        ],
        axis=1,
    )


def agop_of_gradients(gradients, weights=None):
    """The patch AGOP of gradients (outputs, images, rows, columns, d)."""
    return np.average(
        np.einsum("oiuvd,oiuve->ide", gradients, gradients), axis=0, weights=weights
    )


def gradients_by_pullback(
    X,
    dual_coef,
    Y,
    *,
    kind="ntk",
    depth=3,
    patch_size=3,
    padding="valid",
    bias=0.0,
    patch_transform=None,
    dtype="float64",
):
    """The package's own ∂f_o/∂v_u, put together from the pullback of one tile."""
    kernel = make_kernel(kind, X.shape[1:], patch_size, padding, depth, bias)
    resources = make_resources("cpu", dtype, None, X)
    transform = resources.tensor(patch_transform)
    left, right = (
        kernel.prepare_block(resources.tensor(images), transform) for images in (Y, X)
    )
    library = find_library(kernel, len(X) * len(Y), resources, pullback=True)
    tile = open_tiles(kernel, left, right, library, resources, pullback=True)
    coef = resources.tensor(dual_coef)
    weights, self_weights = tile.pullback(slice(0, len(Y)), slice(0, len(X)), coef)
    gradients = torch.einsum("uvij,jo,uvdj->oiuvd", weights, coef, right.patches)
    gradients += 2 * torch.einsum("uvio,uvdi->oiuvd", self_weights, left.patches)
    gradients /= kernel.channels
    return (gradients if transform is None else gradients @ transform).numpy()


def assert_close(actual, expected, tolerance):
    """Equal to within ``tolerance`` of the largest expected value."""
    assert actual.shape == expected.shape
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)

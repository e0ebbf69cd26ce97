"""Kernels as their formulas read: one pair, one location at a time, no tricks.

Written against the formulas alone, for numpy arrays and (as ``xp=torch``) for tensors,
through which automatic differentiation then gives gradients. The kernel objects of the
package serve as records of hyperparameters.
"""

import itertools
import math

import numpy as np
import torch

from skconvrfm._input import make_resources
from skconvrfm.compute.tiles import find_library, open_tiles
from skconvrfm.kernels import ConvNTK, PatchGaussian, PatchLaplace


def patches_by_hand(image, patch_size=3, padding="valid"):
    """Patches of an image (h, w, c) as (rows, columns, d), channel first in d."""
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


def kernel_of_patches(kernel, p, q, channels, transform=None, xp=np):
    """k(x, z) from the patches of x and of z, each (rows, columns, d)."""
    if transform is not None:
        p, q = p @ transform, q @ transform
    if kernel.pool_grid is not None:
        return _pooled_value(kernel, p, q, channels, xp)
    if isinstance(kernel, PatchGaussian | PatchLaplace):
        return _profile(kernel, ((p - q) ** 2).sum(-1), xp).mean()
    maps = [(p * q).sum(-1), (p * p).sum(-1), (q * q).sum(-1)]
    s, a, b = (m / channels + kernel.bias**2 for m in maps)
    theta = s
    for layer in range(kernel.depth):
        if layer:
            s, theta, a, b = (
                window_sum_by_hand(m, kernel.patch_size, kernel.padding, xp)
                for m in (s, theta, a, b)
            )
            s, a, b = (m + kernel.bias**2 for m in (s, a, b))
            theta = theta + s
        s, theta = relu_by_hand(s, theta, xp.sqrt(a * b), xp)
    return (s + theta if isinstance(kernel, ConvNTK) else s).mean()


def relu_by_hand(s, theta, r, xp=np):
    """S' and Θ' from S, Θ and r."""
    blank = r == 0
    kappa = xp.where(blank, 0 * r, s / xp.where(blank, 1 + 0 * r, r))
    kappa = xp.clip(kappa, -1, 1)
    k0 = 1 - xp.arccos(kappa) / math.pi
    return r * (xp.sqrt(1 - kappa**2) / math.pi + k0 * kappa), k0 * theta


def _profile(kernel, squares, xp):
    """κ of squared distances."""
    squares = squares / kernel.bandwidth**2
    laplace = isinstance(kernel, PatchLaplace)
    return xp.exp(-xp.sqrt(squares) if laplace else -squares / 2)


def _pooled_value(kernel, p, q, channels, xp):
    """K(x, z) of a pooled kernel, by all pairs of locations."""
    sizes = p.shape[:2]
    p, q = (v.reshape(-1, v.shape[-1]) for v in (p, q))
    if isinstance(kernel, PatchGaussian | PatchLaplace):
        values = _profile(kernel, ((p[:, None] - q[None]) ** 2).sum(-1), xp)
    else:
        pair, bias = np.broadcast_to(kernel.patch_size, 2), kernel.bias**2
        s, a, b = p @ q.T, (p * p).sum(-1), (q * q).sum(-1)
        s, a, b = (m / channels + bias for m in (s, a, b))
        theta = s
        for layer in range(kernel.depth):
            if layer:
                windows = map(_window_places, sizes, pair, [kernel.padding] * 2)
                rows, columns = windows
                sizes = len(rows[0]), len(columns[0])
                places = [
                    xp.asarray(np.kron(*both))
                    for both in itertools.product(rows, columns)
                ]
                s, theta = (sum(e @ m @ e.T for e in places) for m in (s, theta))
                a, b = (sum(e @ m for e in places) for m in (a, b))
                s, a, b = s + bias, a + bias, b + bias
                theta = theta + s
            s, theta = relu_by_hand(s, theta, xp.sqrt(a[:, None] * b[None]), xp)
        values = s + theta if isinstance(kernel, ConvNTK) else s
    grid = np.broadcast_to(kernel.pool_grid, 2)
    means = xp.asarray(np.kron(*map(_cell_means, sizes, grid)))
    return ((means @ values) * means).sum() / len(means)


def _window_places(size, patch_size, padding):
    """Windows of a dimension, one 0/1 matrix (out, in) for each entry of a patch."""
    patch = min(size, patch_size)
    before = margins(patch)[0] if padding == "same" else 0
    count = size if padding == "same" else size - patch + 1
    return [np.eye(count, size, entry - before) for entry in range(patch)]


def _cell_means(size, count):
    """The matrix (cells, size) of means over the cells of a dimension."""
    count = min(size, count)
    cell = [
        next(c for c in range(count) if u < (c + 1) * size // count)
        for u in range(size)
    ]
    members = np.equal.outer(range(count), cell)
    return members / members.sum(1, keepdims=True)


def image_patches(kernel, images):
    """The patches of images as a kernel sees them, a list of (rows, columns, d)."""
    return [patches_by_hand(x, kernel.patch_size, kernel.padding) for x in images]


def kernel_by_hand(kernel, X, Y, transform=None):
    """The kernel matrix of images (n, h, w, c)."""
    left, right = image_patches(kernel, X), image_patches(kernel, Y)
    return np.array(
        [
            [kernel_of_patches(kernel, p, q, X.shape[-1], transform) for q in right]
            for p in left
        ]
    )


def gradients_by_autograd(kernel, X, dual_coef, Y, transform=None):
    """∂f_o/∂v_u at the images Y, as (outputs, images, rows, columns, d)."""
    transform = None if transform is None else torch.from_numpy(transform)
    centres = [torch.from_numpy(p) for p in image_patches(kernel, X)]
    coef = torch.from_numpy(dual_coef)

    def outputs(patches):
        values = [
            kernel_of_patches(kernel, centre, patches, X.shape[-1], transform, torch)
            for centre in centres
        ]
        return torch.stack(values) @ coef

    jacobian = torch.autograd.functional.jacobian
    gradients = [
        jacobian(outputs, torch.from_numpy(patches)).numpy()
        for patches in image_patches(kernel, Y)
    ]
    return np.stack(gradients, axis=1)


def gradients_by_differences(kernel, X, dual_coef, z, step=1e-5):
    """∂f_o/∂v_u at one image z, as (outputs, 1, rows, columns, d)."""
    [patches], centres = image_patches(kernel, [z]), image_patches(kernel, X)

    def outputs(patches):
        return [
            kernel_of_patches(kernel, centre, patches, z.shape[-1])
            for centre in centres
        ] @ dual_coef

    gradients = np.empty((dual_coef.shape[1], 1, *patches.shape))
    for index in np.ndindex(patches.shape):
        change = np.zeros_like(patches)
        change[index] = step
        slopes = (outputs(patches + change) - outputs(patches - change)) / (2 * step)
        gradients[(slice(None), 0, *index)] = slopes
    return gradients


def agop_of_gradients(gradients, weights=None):
    """The patch AGOP of gradients (outputs, images, rows, columns, d)."""
    return np.average(
        np.einsum("oiuvd,oiuve->ide", gradients, gradients), axis=0, weights=weights
    )


def gradients_by_pullback(kernel, X, dual_coef, Y, transform=None, dtype="float64"):
    """The package's own ∂f_o/∂v_u, put together from the pullback of one tile."""
    kernel = kernel.bind(X.shape[1:])
    resources = make_resources("cpu", dtype, None, X)
    transform = resources.tensor(transform)
    left, right = (
        kernel.prepare_block(resources.tensor(images), transform) for images in (Y, X)
    )
    library = find_library(kernel, len(X) * len(Y), resources, pullback=True)
    tile = open_tiles(kernel, left, right, library, resources, pullback=True)
    coef = resources.tensor(dual_coef)
    weights, self_weights = tile.pullback(slice(0, len(Y)), slice(0, len(X)), coef)
    gradients = torch.einsum("uvij,jo,uvdj->oiuvd", weights, coef, right.patches)
    gradients += 2 * torch.einsum("uvio,uvdi->oiuvd", self_weights, left.patches)
    gradients *= kernel.patch_scale
    return (gradients if transform is None else gradients @ transform).numpy()


def some_transform(kernel, X):
    """A symmetric patch transform for a kernel of images (n, h, w, c)."""
    d = kernel.bind(X.shape[1:]).patch_dim
    root = np.random.default_rng(1).normal(size=(d, d))
    return (root + root.T) / (2 * math.sqrt(d))


def assert_close(actual, expected, tolerance):
    """Equal to within ``tolerance`` of the largest expected value."""
    assert actual.shape == expected.shape
    scale = np.abs(expected).max()
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance * scale)

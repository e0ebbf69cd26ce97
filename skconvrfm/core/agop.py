r"""The patch AGOP of a kernel machine, by two exact routes.

For :math:`f_o(z) = \sum_j \alpha_{jo} k(x_j, z)` and images z with weights ω,

.. math:: G = \frac1{\sum\omega} \sum_z \omega_z \sum_o \sum_u
          g_{o,u}(z)\, g_{o,u}(z)^\top, \qquad g_{o,u}(z) = T h_{o,u}(z) / c .

By outputs, h itself is formed, location by location:
``h = (w ∘ α)ᵀ (T v(x)) + 2 β T v(z)``. Without outputs, the sum over z and o is
taken first, ``Σ (w_z ∘ α_o)(w_z ∘ α_o)ᵀ = (Wᵀ ω W) ∘ (α αᵀ)``, at a cost that does
not depend on their number. The cheaper route is taken.

Source: Beaglehole et al., arXiv:2309.00570, Algorithm 1 (patch AGOP).
"""

import math

import numpy as np

from .convolutional import prepare_block
from .tiles import (
    block_side,
    find_library,
    halving_memory,
    image_blocks,
    image_bytes,
    load_blocks,
    open_tiles,
    tile_pairs,
)

# Passing one number through memory costs about as much as this many
# multiply-adds in a matrix product; it weighs the routes against each other.
_PASS_COST = 12


def patch_agop(kernel, centres, dual_coef, images, transform, weights, resources):
    """The patch AGOP of the kernel machine, averaged over ``images``.

    Parameters
    ----------
    kernel : ConvolutionalKernel
        The kernel.
    centres : ndarray of shape (n, h, w, c)
        The images x_j.
    dual_coef : ndarray of shape (n, n_outputs)
        The coefficients α.
    images : ndarray of shape (m, h, w, c)
        The images z at which gradients are taken.
    transform : ndarray of shape (d, d) or None
        The patch transform T; None is the identity.
    weights : ndarray of shape (m,)
        The weights ω, not all zero.
    resources : Resources
        Device, precision, memory, workers.

    Returns
    -------
    ndarray of shape (d, d), float64
    """
    dual_coef = compress_outputs(dual_coef)
    worker = resources.one_worker()
    route, largest = _choose_route(kernel, centres, dual_coef, images, worker)
    largest = min(largest, math.ceil(len(images) / resources.n_workers))
    pairs = len(centres) * len(images)
    tasks = (
        (kernel, centres, dual_coef, images[p], weights[p], transform, pairs, worker)
        for p in image_blocks(images, largest)
    )
    total = sum(resources.run(route, tasks))
    agop = total / (weights.sum() * kernel.channels**2)
    if transform is not None:
        agop = transform.T @ agop @ transform
    return (agop + agop.T) / 2


def compress_outputs(dual_coef):
    """Coefficients with the same α αᵀ in at most n columns.

    The AGOP depends on the outputs through α αᵀ only, so that more outputs than
    centres need not be carried along.
    """
    n, n_outputs = dual_coef.shape
    if n_outputs <= n:
        return dual_coef
    return np.linalg.qr(dual_coef.T, mode="r").T


def _choose_route(kernel, centres, dual_coef, images, resources):
    """The cheaper route by a count of operations, and the images it takes at once."""
    n, n_outputs = dual_coef.shape
    locations = math.prod(kernel.layers[0].locations)
    quarter = resources.memory // 4
    gradient = resources.itemsize * 3 * locations * n_outputs * kernel.patch_dim
    prepared = image_bytes(kernel, centres.shape[1:], resources.itemsize)
    by_outputs = max(1, quarter // (gradient + prepared))
    without = min(len(images), quarter // (resources.itemsize * locations * n))
    # Multiply-adds a pair and location.
    cost_by_outputs = n_outputs * (kernel.patch_dim + _PASS_COST)
    if without and n * (1 + (kernel.patch_dim + _PASS_COST) / without) < 2 * (
        cost_by_outputs
    ):
        return _sum_without_outputs, without
    return _sum_by_outputs, by_outputs


def _walk(kernel, centres, dual_coef, left, transform, pairs, resources):
    """Yield (slice, right block, w, β) over blocks of centres."""
    library = find_library(kernel, pairs, resources, pullback=True)
    block = block_side(kernel, centres.shape[1:], resources)
    result = 2 * resources.itemsize * math.prod(kernel.layers[0].locations)
    columns = min(block, max(1, resources.memory // 8 // (result * len(left))))
    if library is None:
        columns = min(columns, tile_pairs(kernel, resources, True) // len(left))
    parts = image_blocks(centres, columns)
    for part, right in load_blocks(kernel, centres, parts, transform, resources):
        tiles = open_tiles(kernel, left, right, library, resources, pullback=True)
        every = slice(0, len(left)), slice(0, len(right))
        yield part, right, *tiles.pullback(*every, dual_coef[part])


@halving_memory
def _sum_by_outputs(
    kernel, centres, dual_coef, images, weights, transform, pairs, resources
):
    """Σ_z ω_z Σ_o,u h hᵀ from the gradients h themselves."""
    transform, dual_coef = resources.tensor(transform), resources.tensor(dual_coef)
    left = prepare_block(kernel, resources.tensor(images), transform)
    rows, columns, d, m = left.patches.shape
    n_outputs = dual_coef.shape[1]
    gradients = left.patches.new_zeros((rows, columns, m, n_outputs, d))
    for part, right, pair_weights, self_weights in _walk(
        kernel, centres, dual_coef, left, transform, pairs, resources
    ):
        coef = dual_coef[part].T
        for row in range(rows):  # one row of the map at a time stays in the cache
            by_output = pair_weights[row, :, :, None, :] * coef
            by_output = by_output.reshape(columns, m * n_outputs, -1)
            product = by_output @ right.patches[row].transpose(1, 2)
            gradients[row] += product.view(gradients[row].shape)
        patches = left.patches.transpose(2, 3)[:, :, :, None, :]
        gradients.addcmul_(self_weights[..., None], patches, value=2)
    gradients *= resources.tensor(np.sqrt(weights))[:, None, None]
    flat = gradients.view(rows, -1, d)
    total = flat.transpose(1, 2) @ flat
    return total.double().sum(0).cpu().numpy()


@halving_memory
def _sum_without_outputs(
    kernel, centres, dual_coef, images, weights, transform, pairs, resources
):
    """Σ_z ω_z Σ_o,u h hᵀ from the sum over images and outputs, taken first."""
    transform, dual_coef = resources.tensor(transform), resources.tensor(dual_coef)
    weights = resources.tensor(weights)
    left = prepare_block(kernel, resources.tensor(images), transform)
    rows, columns, d, m = left.patches.shape
    pair_weights = left.patches.new_empty((rows, columns, m, len(centres)))
    self_weights = 0
    for part, _, tile_weights, tile_self_weights in _walk(
        kernel, centres, dual_coef, left, transform, pairs, resources
    ):
        pair_weights[..., part] = tile_weights
        self_weights = self_weights + tile_self_weights

    patches = left.patches.transpose(2, 3)
    self_total = 4 * weights * self_weights.square().sum(-1)
    total = _outer_sum(patches * self_total[..., None], patches)

    # Half of what is symmetric: 2 Σ_z ω_z c_z v_zᵀ with c_z = Σ_j (Σ_o α_jo β_zo) w_zj v_j,
    # and the pairs j, k of centres.
    parts = image_blocks(centres, _centres_at_once(kernel, centres.shape, resources))
    half = 0
    for j, right in load_blocks(kernel, centres, parts, transform, resources):
        before = parts[: parts.index(j) + 1]
        right_patches = right.patches.transpose(2, 3)
        for row in range(rows):
            cross = 2 * weights[:, None] * (self_weights[row] @ dual_coef[j].T)
            cross = (pair_weights[row, :, :, j] * cross) @ right_patches[row]
            half = half + _outer_sum(cross, patches[row])
        for k, other in load_blocks(kernel, centres, before, transform, resources):
            coef_product = dual_coef[j] @ dual_coef[k].T
            if j == k:
                coef_product = coef_product / 2
            for row in range(rows):
                weighted = pair_weights[row, :, :, j] * weights[:, None]
                product = weighted.transpose(1, 2) @ pair_weights[row, :, :, k]
                inner = (product * coef_product) @ other.patches[row].transpose(1, 2)
                half = half + _outer_sum(right_patches[row], inner)
    return (total + half + half.T).cpu().numpy()


def _outer_sum(left, right):
    """Σ l rᵀ over all but the last dimension, added up in float64."""
    return (left.flatten(0, -2).T @ right.flatten(0, -2)).double()


def _centres_at_once(kernel, centres_shape, resources):
    """Centres of a block such that pairs of them fit in memory, row by row."""
    columns = kernel.layers[0].locations[1]
    square = resources.memory // 8 // (2 * resources.itemsize * columns)
    return max(
        1,
        min(
            math.isqrt(square),
            block_side(kernel, centres_shape[1:], resources),
        ),
    )

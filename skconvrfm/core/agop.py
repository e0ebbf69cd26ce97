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

from .convolutional import kernel_pullback, prepare_block
from .tiles import (
    balanced_blocks,
    block_side,
    image_bytes,
    load_blocks,
    pair_bytes,
    tile_side,
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
    n, n_outputs = dual_coef.shape
    by_outputs = _images_at_once(kernel, centres.shape, n_outputs, resources)
    without = _images_at_once_without_outputs(kernel, centres.shape, resources)
    together = math.ceil(len(images) / resources.n_workers)
    cost_by_outputs = n_outputs * (kernel.patch_dim + _PASS_COST)
    side = min(without, together)
    cost_without = (
        n * (0.5 + (kernel.patch_dim + _PASS_COST) / side) if side else math.inf
    )
    if cost_by_outputs <= cost_without:
        route, largest = _sum_by_outputs, min(by_outputs, together)
    else:
        route, largest = _sum_without_outputs, side
    tasks = [
        (
            kernel,
            centres,
            dual_coef,
            images[part],
            weights[part],
            transform,
            resources.in_worker(),
        )
        for part in balanced_blocks(len(images), largest)
    ]
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


def _images_at_once(kernel, centres_shape, n_outputs, resources):
    """Images z whose gradients for all outputs fit in memory."""
    locations = math.prod(kernel.layers[0].locations)
    gradient = resources.itemsize * 3 * locations * n_outputs * kernel.patch_dim
    prepared = image_bytes(kernel, centres_shape[1:], resources.itemsize)
    return max(1, resources.memory_per_worker // 4 // (gradient + prepared))


def _images_at_once_without_outputs(kernel, centres_shape, resources):
    """Images z whose weights for all centres fit in memory; 0 where not one does."""
    locations = math.prod(kernel.layers[0].locations)
    weights = resources.itemsize * locations * centres_shape[0]
    return resources.memory_per_worker // 4 // weights


def _tiles(kernel, centres, dual_coef, left, transform, resources):
    """Yield (columns, right block, α of it, w, β) over the centres."""
    pairs = resources.memory_per_worker // 4
    pairs //= pair_bytes(kernel, resources.itemsize, pullback=True)
    largest = min(
        max(1, pairs // len(left)),
        block_side(kernel, centres.shape[1:], resources),
        max(8, tile_side(kernel, resources, pullback=True) ** 2 // len(left)),
    )
    for part, right in load_blocks(kernel, centres, transform, largest, resources):
        yield (
            part,
            right,
            *kernel_pullback(kernel, left, right, dual_coef[part]),
        )


def _sum_by_outputs(kernel, centres, dual_coef, images, weights, transform, resources):
    """Σ_z ω_z Σ_o,u h hᵀ from the gradients h themselves."""
    transform, dual_coef = resources.tensor(transform), resources.tensor(dual_coef)
    left = prepare_block(kernel, resources.tensor(images), transform)
    rows, columns, m, d = left.patches.shape
    n_outputs = dual_coef.shape[1]
    gradients = left.patches.new_zeros((rows, columns, m, n_outputs, d))
    for part, right, pair_weights, self_weights in _tiles(
        kernel, centres, dual_coef, left, transform, resources
    ):
        coef = dual_coef[part].T
        for row in range(rows):  # one row of the map at a time stays in the cache
            by_output = pair_weights[row, :, :, None, :] * coef
            by_output = by_output.reshape(columns, m * n_outputs, -1)
            gradients[row] += (by_output @ right.patches[row]).view(gradients[row].shape)
        gradients.addcmul_(
            self_weights[..., None], left.patches[:, :, :, None, :], value=2
        )
    gradients *= resources.tensor(np.sqrt(weights))[:, None, None]
    flat = gradients.view(rows, -1, d)
    total = flat.transpose(1, 2) @ flat
    return total.double().sum(0).cpu().numpy()


def _sum_without_outputs(
    kernel, centres, dual_coef, images, weights, transform, resources
):
    """Σ_z ω_z Σ_o,u h hᵀ from the sum over images and outputs, taken first."""
    transform, dual_coef = resources.tensor(transform), resources.tensor(dual_coef)
    weights = resources.tensor(weights)
    left = prepare_block(kernel, resources.tensor(images), transform)
    rows, columns, m, d = left.patches.shape
    pair_weights = left.patches.new_empty((rows, columns, m, len(centres)))
    self_weights = 0
    for part, _, tile_weights, tile_self_weights in _tiles(
        kernel, centres, dual_coef, left, transform, resources
    ):
        pair_weights[..., part] = tile_weights
        self_weights = self_weights + tile_self_weights

    self_total = 4 * weights * self_weights.square().sum(-1)
    total = _outer_sum(left.patches * self_total[..., None], left.patches)

    # 2 Σ_z ω_z sym(c_z v_zᵀ), c_z = 2 Σ_j (Σ_o α_jo β_zo) w_zj v_j, and the pairs j, k.
    largest = _centres_at_once(kernel, centres.shape, resources)
    half = 0
    for j, right in load_blocks(kernel, centres, transform, largest, resources):
        for row in range(rows):
            cross = 2 * weights[:, None] * (self_weights[row] @ dual_coef[j].T)
            cross = (pair_weights[row, :, :, j] * cross) @ right.patches[row]
            half = half + _outer_sum(cross, left.patches[row])
        for k, other in load_blocks(
            kernel, centres[: j.stop], transform, largest, resources
        ):
            coef_product = dual_coef[j] @ dual_coef[k].T
            if j == k:
                coef_product = coef_product / 2
            for row in range(rows):
                weighted = pair_weights[row, :, :, j] * weights[:, None]
                product = weighted.transpose(1, 2) @ pair_weights[row, :, :, k]
                inner = (product * coef_product) @ other.patches[row]
                half = half + _outer_sum(right.patches[row], inner)
    return (total + half + half.T).cpu().numpy()


def _outer_sum(left, right):
    """Σ l rᵀ over all but the last dimension, added up in float64."""
    return (left.flatten(0, -2).T @ right.flatten(0, -2)).double()


def _centres_at_once(kernel, centres_shape, resources):
    """Centres of a block such that pairs of them fit in memory, row by row."""
    columns = kernel.layers[0].locations[1]
    square = resources.memory_per_worker // 8 // (2 * resources.itemsize * columns)
    return max(
        1,
        min(
            math.isqrt(square),
            block_side(kernel, centres_shape[1:], resources),
        ),
    )

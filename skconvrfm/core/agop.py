r"""The patch AGOP of a kernel machine, by two exact routes.

For :math:`f_o(z) = \sum_j \alpha_{jo} k(x_j, z)` and images z with weights ω,

.. math:: G = \frac1{\sum\omega} \sum_z \omega_z \sum_o \sum_u
          g_{o,u}(z)\, g_{o,u}(z)^\top, \qquad g_{o,u}(z) = s\, T h_{o,u}(z),

where s is the kernel's `patch_scale`. By outputs, h itself is formed, location by
location: ``h = (w ∘ α)ᵀ (T v(x)) + 2 β T v(z)``. Without outputs, the sum over z and o
is taken first, ``Σ (w_z ∘ α_o)(w_z ∘ α_o)ᵀ = (Wᵀ ω W) ∘ (α αᵀ)``, at a cost that does
not depend on their number. The cheaper route is taken. Of a pooled kernel, the sum of
terms that each pair u with another location of x, h is the sum of what they give, and
is formed.

Source: Beaglehole et al., arXiv:2309.00570, Algorithm 1 (patch AGOP).
"""

import math

import numpy as np
import torch

from . import compiled
from .blocks import (
    SUM_TASKS,
    balanced_blocks,
    halving_memory,
    image_blocks,
    largest_value,
    spans,
    sum_tasks,
)
from .images import extract_patches
from .pooling import PooledKernel
from .sampling import binary_exponent
from .threads import own_threads, share_out
from .tiles import (
    block_side,
    find_library,
    image_bytes,
    load_blocks,
    open_tiles,
    tile_pairs,
)

# What an operation of the route by outputs costs in those of the other, measured: its
# matrix products are narrow.
_OUTPUT_COST = 3
# Temporaries of this size stay in the cache of a CPU core from one step to the next.
_CACHE_BYTES = 2**20
# Centres of a block; larger ones gain nothing.
_MOST_CENTRES = 256


def patch_agop(kernel, centres, dual_coef, images, transform, weights, resources):
    """The patch AGOP of the kernel machine, averaged over ``images``.

    Parameters
    ----------
    kernel : ConvolutionalKernel, PatchKernel or PooledKernel
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
    # To about 1, by a power of two: their squares neither overflow nor vanish.
    exponent = binary_exponent(dual_coef)
    scaled_coef = compress_outputs(np.ldexp(dual_coef, -exponent))
    weights = np.ldexp(weights, -binary_exponent(weights))
    worker = resources.one_worker()
    route, largest = _choose_route(kernel, centres, scaled_coef, images, worker)
    pairs = len(centres) * len(images)
    tasks = (
        (
            route,
            kernel,
            centres,
            scaled_coef,
            images[p],
            weights[p],
            transform,
            pairs,
            worker,
        )
        for p in spans(len(images), resources, SUM_TASKS, largest)
    )
    total = sum_tasks(_sum_of_products, tasks, resources)
    agop = total * (kernel.patch_scale**2 / weights.sum())
    if transform is not None:
        agop = transform.T @ agop @ transform
    with np.errstate(over="ignore"):  # refused in better words
        agop = np.ldexp((agop + agop.T) / 2, 2 * exponent)
    if not np.isfinite(agop).all():
        raise ValueError(
            f"the patch AGOP overflows {resources.numpy_dtype}: X has values up to "
            f"{largest_value(centres, images):.3g} and dual_coef up to "
            f"{largest_value(dual_coef):.3g}; scale the images, for instance to "
            "[0, 1], and the targets, or take dtype='float64'."
        )
    return agop


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
    d, locations = kernel.patch_dim, kernel.layers[0].n_locations
    numbers = resources.memory // 4 // (resources.itemsize * locations)
    prepared = image_bytes(kernel, centres.shape[1:], resources.itemsize)
    prepared = math.ceil(prepared / (resources.itemsize * locations))
    by_outputs = max(1, numbers // (3 * n_outputs * d + prepared))
    without = min(len(images), 4 * numbers // 3 // (n + prepared))
    if without > 0 and not isinstance(kernel, PooledKernel):
        # Operations a pair and location: products, and centres that are prepared anew
        # for every group of images.
        by_groups = _OUTPUT_COST * n_outputs * d + d * d / min(by_outputs, len(images))
        if n * (1 + d / without) + d * d / without < by_groups:
            return _sum_without_outputs, without
    return _sum_by_outputs, by_outputs


def _walk(kernel, centres, parts, dual_coef, left, transform, library, resources):
    """Yield (slice, right block, readout, w, β) over the centres and the terms."""
    for part, right in load_blocks(kernel, centres, parts, transform, resources):
        every = slice(0, len(left)), slice(0, len(right))
        for term in kernel.terms:
            tiles = open_tiles(term, left, right, library, resources, pullback=True)
            yield part, right, term.readout, *tiles.pullback(*every, dual_coef[part])


def _centre_blocks(kernel, centres, n_images, library, resources):
    """Slices of the centres whose tiles with some images fit in memory."""
    result = 2 * resources.itemsize * kernel.layers[0].n_locations
    largest = min(
        block_side(kernel, centres.shape[1:], resources),
        max(1, resources.memory // 8 // (result * n_images)),
        _MOST_CENTRES,
    )
    if library is None:
        largest = min(largest, tile_pairs(kernel, resources, pullback=True))
    return image_blocks(centres, largest)


@halving_memory
def _sum_of_products(
    route, kernel, centres, dual_coef, images, weights, transform, pairs, resources
):
    """Σ_z ω_z Σ_o,u h hᵀ by one of the routes, for some images z."""
    library = find_library(kernel, pairs, resources, pullback=True)
    with own_threads(library is not None):
        tensors = map(resources.tensor, (dual_coef, np.sqrt(weights), transform))
        return route(kernel, centres, images, *tensors, library, resources)


def _sum_by_outputs(
    kernel, centres, images, dual_coef, roots, transform, library, resources
):
    """From the gradients h themselves."""
    left = kernel.prepare_block(resources.tensor(images), transform)
    patches = left.patches.flatten(0, 1).transpose(1, 2)  # (locations, m, d)
    locations, m, d = patches.shape
    n_outputs = dual_coef.shape[1]
    width = d if library is None else compiled.padded_entries(d, patches.dtype)
    gradients = patches.new_zeros((locations, m, n_outputs, width))
    places = torch.arange(locations, device=patches.device)
    places = places.view(left.patches.shape[:2])
    self_weights = 0
    parts = _centre_blocks(kernel, centres, m, library, resources)
    for part, right, readout, pair_weights, tile_self_weights in _walk(
        kernel, centres, parts, dual_coef, left, transform, library, resources
    ):
        add_output_product(
            pair_weights.flatten(0, 1),
            dual_coef[part].T.contiguous(),
            right.patches[readout.right].flatten(0, 1),
            gradients,
            places[readout.left].flatten(),
            library,
            resources,
        )
        self_weights = self_weights + tile_self_weights
    gradients[..., :d].addcmul_(
        self_weights.flatten(0, 1)[..., None], patches[:, :, None], value=2
    )
    gradients *= roots[:, None, None]
    return _outer_sum(gradients, gradients)[:d, :d].cpu().numpy()


def add_output_product(weights, coef, patches, gradients, places, library, resources):
    """Add ``(W ∘ α_o) V`` to the gradients, for every location, image and output.

    Parameters
    ----------
    weights : Tensor of shape (locations, m, n)
        W.
    coef : Tensor of shape (n_outputs, n)
        α.
    patches : Tensor of shape (locations, d, n)
        Vᵀ.
    gradients : Tensor of shape (all locations, m, n_outputs, d or more)
        What is added to.
    places : Tensor of shape (locations,)
        Which of all locations these are; compiled functions take all, in order.
    library : ctypes.CDLL or None
        The compiled functions, if there are any.
    resources : Resources
        Memory of the blocks.
    """
    if library is not None:
        compiled.add_output_product(library, weights, coef, patches, gradients)
        return
    locations, m, n = weights.shape
    n_outputs, d = len(coef), patches.shape[1]
    # α goes to the smaller factor: the centres' patches serve every image.
    to_patches = 2 * m >= d
    numbers = n_outputs * n * (d if to_patches else m)
    for at in _location_blocks(locations, numbers, resources):
        w, v = weights[at], patches[at]
        if to_patches:
            v = (v[:, None] * coef[:, None]).flatten(1, 2)
        else:
            w = (w[:, :, None] * coef).flatten(1, 2)
        products = (w @ v.transpose(1, 2)).view(-1, m, n_outputs, d)
        gradients.index_add_(0, places[at], products)


def _sum_without_outputs(
    kernel, centres, images, dual_coef, roots, transform, library, resources
):
    """From the sum over images and outputs, taken first.

    The patches of all centres are met a second time, after their weights are known. To
    hold them is a matter of memory: they come back as they are in their images, a band
    of locations at a time, and the transform waits until the end.
    """
    images = resources.tensor(images)
    left = kernel.prepare_block(images, transform)
    rows, columns, _, m = left.patches.shape
    pair_weights = left.patches.new_empty((rows, columns, m, len(centres)))
    self_weights = 0
    parts = _centre_blocks(kernel, centres, m, library, resources)
    for part, _, _, tile_weights, tile_self_weights in _walk(
        kernel, centres, parts, dual_coef, left, transform, library, resources
    ):
        pair_weights[..., part] = tile_weights
        self_weights = self_weights + tile_self_weights
    del left

    # Under a wide bandwidth they are small: to about 1, so that squares do not vanish.
    ends = map(float, (*pair_weights.aminmax(), *self_weights.aminmax()))
    exponent = binary_exponent([*ends, torch.finfo(resources.dtype).tiny])
    roots = roots[:, None] * 2.0**-exponent
    # With h = h₁ + 2 β v(z): the products of h₁, of both, and of v(z).
    pair_weights *= roots
    self_weights *= 2 * roots
    coef_product = dual_coef @ dual_coef.T
    total = 0
    for band in _bands(kernel, len(centres), m, resources):
        total = total + _band_product(
            pair_weights[band].flatten(0, 1),
            self_weights[band].flatten(0, 1),
            _band_patches(kernel, centres, band, resources),
            extract_patches(images, kernel.layers[0], band).flatten(0, 1),
            dual_coef,
            coef_product,
            library,
            resources,
        )
    if transform is not None:
        transform = transform.double()
        total = transform @ total @ transform.T
    return np.ldexp(total.cpu().numpy(), 2 * exponent)


def _bands(kernel, n, m, resources):
    """Rows of locations whose patches, and what is made of them, fit in memory."""
    layer = kernel.layers[0]
    numbers = layer.locations[1] * (4 * (n + m) * kernel.patch_dim + m * n)
    largest = resources.memory // 3 // (resources.itemsize * numbers)
    return balanced_blocks(slice(0, layer.locations[0]), largest)


def _band_patches(kernel, centres, band, resources):
    """The patches of the centres in a band of locations, (locations, d, n)."""
    layer = kernel.layers[0]
    shape = ((band.stop - band.start) * layer.locations[1], kernel.patch_dim)
    patches = torch.empty(
        (*shape, len(centres)), dtype=resources.dtype, device=resources.device
    )
    for part in image_blocks(centres, block_side(kernel, centres.shape[1:], resources)):
        images = resources.tensor(centres[part])
        patches[..., part] = extract_patches(images, layer, band).flatten(0, 1)
    return patches


def _band_product(
    pair_weights,
    self_weights,
    centre_patches,
    image_patches,
    dual_coef,
    coef_product,
    library,
    resources,
):
    """Σ h hᵀ over some locations, in float64."""
    locations, m, n = pair_weights.shape

    def products(at):
        w, v = pair_weights[at], centre_patches[at]
        product = gram_product(w, coef_product, v, library, resources)
        cross = (w * (self_weights[at] @ dual_coef.T)) @ v.transpose(1, 2)
        z = image_patches[at].transpose(1, 2)
        own = self_weights[at].square().sum(-1, keepdim=True) * z
        total = _outer_sum(v.transpose(1, 2), product.transpose(1, 2))
        return total + _outer_sum(cross, z) + _outer_sum(z, cross + own)

    every = slice(0, locations)
    if library is not None:
        return sum(share_out(products, every, compiled.LOCATIONS_TOGETHER))
    numbers = n * max(m, centre_patches.shape[1])
    return sum(products(at) for at in _location_blocks(locations, numbers, resources))


def gram_product(weights, coef_product, patches, library, resources):
    """``[(Wᵀ W) ∘ A] V`` at every location, in blocks of rows that fit in memory.

    Parameters
    ----------
    weights : Tensor of shape (locations, m, n)
        W.
    coef_product : Tensor of shape (n, n)
        A = α αᵀ, symmetric.
    patches : Tensor of shape (locations, d, n)
        Vᵀ.
    library : ctypes.CDLL or None
        The compiled functions, if there are any.
    resources : Resources
        Memory of the blocks.

    Returns
    -------
    Tensor of shape (locations, d, n)
        The transpose of the product.
    """
    if library is not None:
        return compiled.gram_product(library, weights, coef_product, patches)
    product = torch.empty_like(patches)
    locations, _, n = weights.shape
    size = resources.memory // 8 // (resources.itemsize * locations * n)
    for j in balanced_blocks(slice(0, n), size):
        gram = weights.transpose(1, 2) @ weights[..., j]
        product[..., j] = patches @ gram.mul_(coef_product[:, j])
    return product


def _location_blocks(locations, numbers, resources):
    """Slices of locations, each of which takes so many numbers, for the cache."""
    size = _CACHE_BYTES if resources.device.type == "cpu" else resources.memory // 8
    largest = size // (resources.itemsize * numbers)
    return balanced_blocks(slice(0, locations), largest)


def _outer_sum(left, right):
    """Σ l rᵀ over all but the last dimension, in float64 where it is added up."""
    return (left.flatten(0, -2).T @ right.flatten(0, -2)).double()

r"""The patch AGOP of a kernel machine, by two exact routes.

For :math:`f_o(z) = \sum_j \alpha_{jo} k(x_j, z)` and images z with weights ω,

.. math:: G = \frac1{\sum\omega} \sum_z \omega_z \sum_o \sum_u
          g_{o,u}(z)\, g_{o,u}(z)^\top, \qquad g_{o,u}(z) = s\, T h_{o,u}(z),

where s is the kernel's `patch_scale`. By outputs, h itself is formed, location by
location: ``h = (w ∘ α)ᵀ (T v(x)) + 2 β T v(z)``. Without outputs, the sum over z and o
is taken first, ``Σ (w_z ∘ α_o)(w_z ∘ α_o)ᵀ = (Wᵀ ω W) ∘ (α αᵀ)``, at a cost that does
not depend on their number. The cheaper route is taken. A pooled kernel is a sum of
terms that pair u with different locations of x: h, the sum over terms, is formed.

A kernel averaged over the mirror P has twice as many centres, x and Px with α / 2. Its
predictor is ½ (f(z) + f(Pz)) with the gradient ½ (g_u(z) + M g_{u'}(Pz)), where M
mirrors a patch and u' the location; both terms are equal where k(Px, Pz) = k(x, z).
The gradient at Pz is M g_u, so that G is the mean of G and M G M.

Source: Beaglehole et al., arXiv:2309.00570, Algorithm 1 (patch AGOP).
"""

from __future__ import annotations

import math
from numbers import Real

import numpy as np
import torch
from numpy.typing import ArrayLike
from sklearn.utils import check_array
from torch.nn.functional import pad

from .._input import (
    as_numbers,
    check_device_parameters,
    check_weights,
    make_resources,
)
from .._sklearn_compat import validated
from .._typing import Device, Dtype, Floats
from ..compute import tiles
from ..compute.blocks import balanced_blocks, image_blocks, largest_value
from ..compute.images import WithMirrors, extract_patches
from ..compute.native import calls
from ..compute.parallel import SUM_TASKS, halving_memory, spans, sum_tasks
from ..compute.progress import track
from ..compute.sampling import binary_exponent
from ..compute.threads import own_threads, share_out
from ..compute.torch_state import plain_torch
from ..features.maps import load_rows, transformed_patches
from .base import PatchKernel, check_image_pair

# Cost of an operation of the route by outputs in those of the other, measured: its
# matrix products are narrow.
_OUTPUT_COST = 3
_CACHE_BYTES = 2**20  # of temporaries that stay in the cache of a CPU core
_MOST_CENTRES = 256  # of a block; larger ones gain nothing


@validated(
    {
        "kernel": [PatchKernel],
        "X": ["array-like"],
        "dual_coef": ["array-like"],
        "Y": ["array-like", None],
        "patch_transform": ["array-like", None],
        "sample_weight": ["array-like", Real, None],
        **check_device_parameters,
    }
)
@plain_torch()
def patch_agop(
    kernel: PatchKernel,
    X: ArrayLike,
    dual_coef: ArrayLike,
    Y: ArrayLike | None = None,
    *,
    patch_transform: ArrayLike | None = None,
    sample_weight: ArrayLike | float | None = None,
    device: Device = "auto",
    dtype: Dtype = "auto",
    n_jobs: int | None = None,
) -> Floats:
    """Patch average gradient outer product of a kernel machine on patches.

    For ``f_o(z) = Σ_j dual_coef[j, o] k(X[j], z)``, the sum over outputs o and
    locations u of the outer products of the gradient of f_o with respect to the
    patch of z at u, averaged over the images z in `Y` (Beaglehole et al.,
    arXiv:2309.00570, Algorithm 1).

    Parameters
    ----------
    kernel : ConvNTK, ConvNNGP, PatchGaussian or PatchLaplace
        The kernel k.
    X : array-like of shape (n_X, h, w), (n_X, h, w, c) or (n_X, h * h)
        The centres of the machine.
    dual_coef : array-like of shape (n_X,) or (n_X, n_outputs)
        Its coefficients, for the kernel as ``kernel(X)`` returns it.
    Y : array-like of such a shape, default=None
        The images at which gradients are taken; None means `X`.
    patch_transform : array-like of shape (d, d), default=None
        The symmetric patch transform T. Gradients are taken with respect to the
        patches before the transform.
    sample_weight : array-like of shape (n_Y,), default=None
        Weights of the average over `Y`.
    device, dtype, n_jobs
        As in a call of `kernel`; the tasks share the images of `Y`.

    Returns
    -------
    agop : ndarray of shape (d, d), float64
        Symmetric positive semi-definite, entries in the order (channel, row,
        column) of a patch.

    Examples
    --------
    >>> import numpy as np
    >>> from skconvrfm.kernels import ConvNTK, patch_agop
    >>> X = np.random.default_rng(0).normal(size=(5, 8, 8))
    >>> patch_agop(ConvNTK(depth=2), X, dual_coef=[1, -1, 2, 0, -2]).shape
    (9, 9)
    """
    images, others = check_image_pair(X, Y, kernel)
    others = images if others is None else others
    options = {"ensure_2d": False, "allow_nd": True}  # refused below, in better words
    coef = as_numbers(dual_coef, "dual_coef")
    coef = check_array(coef, dtype=np.float64, input_name="dual_coef", **options)
    if coef.ndim not in (1, 2) or len(coef) != len(images):
        raise ValueError(
            f"dual_coef has shape {coef.shape}; it needs one row for each of "
            f"the {len(images)} images in X: (n_X,) or (n_X, n_outputs)."
        )
    weights = check_weights(sample_weight, others)
    kernel = kernel.bind(images.shape[1:])
    transform = kernel._check_transform(patch_transform)
    resources = make_resources(device, dtype, n_jobs, images, others)
    kernel = kernel.measured_evenly(images, transform, resources)
    coef = coef.reshape(len(images), -1)
    return kernel_agop(kernel, images, coef, others, transform, weights, resources)


def kernel_agop(kernel, centres, dual_coef, images, transform, weights, resources):
    """Return the patch AGOP (d, d) of a machine, the weighted mean over images."""
    # To about 1, by a power of two: their squares neither overflow nor vanish.
    exponent = binary_exponent(dual_coef)
    scaled_coef = compress_outputs(np.ldexp(dual_coef, -exponent))
    if kernel.mirror:
        centres, scaled_coef = WithMirrors(centres), np.tile(scaled_coef / 2, (2, 1))
    weights = np.ldexp(weights, -binary_exponent(weights))
    worker = resources.one_worker()
    machine = kernel, centres, scaled_coef, transform
    route, largest = _choose_route(*machine, images, worker)
    pairs = len(centres) * len(images)
    tasks = (
        (route, machine, images[part], weights[part], pairs, worker)
        for part in track(spans(len(images), resources, SUM_TASKS, largest), "AGOP")
    )
    total = sum_tasks(_sum_of_products, tasks, resources)
    agop = total * (kernel.patch_scale**2 / weights.sum())
    if transform is not None and route is not _sum_over_mirror:
        agop = transform.T @ agop @ transform
    with np.errstate(over="ignore"):  # refused in better words
        agop = np.ldexp((agop + agop.T) / 2, 2 * exponent)
        agop = kernel.over_mirror(agop) if kernel.mirror else agop
    if not np.isfinite(agop).all():
        raise ValueError(
            f"the patch AGOP overflows {resources.numpy_dtype}: X has values up to "
            f"{largest_value(centres, images):.3g} and dual_coef up to "
            f"{largest_value(dual_coef):.3g}; scale the images, for instance to "
            "[0, 1], and the targets, or take dtype='float64'."
        )
    return agop


def compress_outputs(dual_coef):
    """Return coefficients with the same α αᵀ, all that counts, in at most n columns."""
    few = dual_coef.shape[1] <= len(dual_coef)
    return dual_coef if few else np.linalg.qr(dual_coef.T, mode="r").T


def _choose_route(kernel, centres, dual_coef, transform, images, resources):
    """Return the cheaper route by operations, and the images it takes at once."""
    n, n_outputs = dual_coef.shape
    d, locations = kernel.patch_dim, kernel.layers[0].n_locations
    numbers = resources.memory // 4 // (resources.itemsize * locations)
    prepared = tiles.image_bytes(kernel, centres.shape[1:], resources.itemsize)
    prepared = math.ceil(prepared / (resources.itemsize * locations))
    by_outputs = max(1, numbers // (3 * n_outputs * d + prepared))
    if kernel.mirror and not kernel.commutes_with_mirror(transform):
        return _sum_over_mirror, max(1, by_outputs // 3)
    without = min(len(images), 4 * numbers // 3 // (n + prepared))
    if without > 0 and not kernel.is_pooled:
        # Operations per pair and location: products, and centres that are prepared anew
        # for every group of images.
        by_groups = _OUTPUT_COST * n_outputs * d + d * d / min(by_outputs, len(images))
        if n * (1 + d / without) + d * d / without < by_groups:
            return _sum_without_outputs, without
    return _sum_by_outputs, by_outputs


def _walk(machine, left, library, resources):
    """Yield (slice, right block, readout, w, β) over the centres and the terms."""
    kernel, centres, dual_coef, transform = machine
    # Blocks of centres whose tiles with the images on the left fit in memory.
    result = 2 * resources.itemsize * kernel.layers[0].n_locations * len(left)
    pixels = tiles.has_pixels(transform, library)
    side = tiles.block_side(kernel, centres.shape[1:], resources, pixels)
    largest = min(side, max(1, resources.memory // 8 // result), _MOST_CENTRES)
    if library is None and not kernel.fused:
        largest = min(largest, tiles.tile_pairs(kernel, resources, pullback=True))
    parts = balanced_blocks(slice(0, len(centres)), largest, tiles.WHOLE_VECTOR)
    options = transform, library, resources
    for part, right in tiles.load_blocks(kernel, centres, parts, *options):
        every = slice(0, len(left)), slice(0, len(right))
        for term in kernel.terms:
            tile = tiles.open_tiles(
                term, left, right, library, resources, pullback=True
            )
            yield part, right, term.readout, *tile.pullback(*every, dual_coef[part])


@halving_memory
def _sum_of_products(route, machine, images, weights, pairs, resources):
    """Return Σ_z ω_z Σ_o,u h hᵀ by one of the routes, for some images z."""
    kernel, centres, *arrays = machine
    library = tiles.find_library(kernel, pairs, resources, pullback=True)
    kernel = tiles.fuse(kernel, pairs, resources, pullback=True)
    with own_threads(library is not None):
        machine = kernel, centres, *map(resources.tensor, arrays)
        roots = resources.tensor(np.sqrt(weights))
        return route(machine, images, roots, library, resources)


def _sum_by_outputs(machine, images, roots, library, resources):
    """Return the sum from the gradients h themselves."""
    images = resources.tensor(images)
    gradients, *own = patch_gradients(machine, images, library, resources)

    def products(at):
        added = gradients[at].addcmul_(*(factor[at] for factor in own), value=2)
        weighted = added * roots[:, None, None]
        return _outer_sum(weighted, weighted)

    sizes = len(gradients), gradients[0].numel()
    return _sum_locations(products, *sizes, library, resources).cpu().numpy()


def _sum_over_mirror(machine, images, roots, library, resources):
    """Return Σ T g gᵀ T of the mean over an image and its mirror, of any metric."""
    kernel, _, _, transform = machine
    layer, images = kernel.layers[0], resources.tensor(images)
    # Of columns of locations, the mirror of an even patch lies one further left.
    shift = layer.padding[3] - layer.padding[2]
    total = 0
    for side, margins in ((images, (shift, 0)), (images.flip(2), (0, shift))):
        gradients, *own = patch_gradients(machine, side, library, resources)
        gradients.addcmul_(*own, value=2)
        if transform is not None:
            gradients = gradients @ transform
        gradients = gradients.unflatten(0, layer.locations)
        if side is not images:
            gradients = gradients.flip(1)[..., kernel.mirror_entries]
        total = total + pad(gradients, (0,) * 6 + margins)
    total *= roots[:, None, None] / 2
    return _outer_sum(total, total).cpu().numpy()


def patch_gradients(machine, images, library, resources):
    """Return h, (locations, images, n_outputs, d), without 2 β T v, and β and T v.

    A machine is a kernel, its centres, coefficients and transform, both as tensors.
    """
    kernel, _, dual_coef, transform = machine
    pixels = tiles.has_pixels(transform, library)
    left = kernel.prepare_block(images, transform, pixels)
    layer, m, n_outputs = kernel.layers[0], len(images), dual_coef.shape[1]
    shape = layer.n_locations, m, n_outputs, kernel.patch_dim
    gradients = left.patches.new_zeros(shape)
    places = torch.arange(layer.n_locations, device=gradients.device)
    places, self_weights = places.view(layer.locations), 0
    walk = _walk(machine, left, library, resources)
    for part, right, readout, pair_weights, tile_self_weights in walk:
        w, coef = pair_weights.flatten(0, 1), dual_coef[part].T.contiguous()
        if library is not None:
            added = w, coef, right.patches, layer, gradients
            calls.add_output_product(library, *added)
        else:
            v, met = right.patches[readout.right].flatten(0, 1), places[readout.left]
            add_output_product(w, coef, v, gradients, met.flatten(), resources)
        self_weights = self_weights + tile_self_weights
    self_weights = self_weights.flatten(0, 1)[..., None]
    patches = transformed_patches(images, layer, transform).flatten(0, 1)
    return gradients, self_weights, patches.transpose(1, 2)[:, :, None]


def add_output_product(weights, coef, patches, gradients, places, resources):
    """Add ``(W ∘ α_o) V`` to the gradients, for every location, image and output.

    W is (locations, m, n), α (n_outputs, n), Vᵀ (locations, d, n); gradients are (all
    locations, m, n_outputs, d), of which ``places`` are those of W.
    """
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


def _sum_without_outputs(machine, images, roots, library, resources):
    """Return the sum from the sum over images and outputs, taken first."""
    kernel, centres, dual_coef, transform = machine
    images = resources.tensor(images)
    pixels = tiles.has_pixels(transform, library)
    left = kernel.prepare_block(images, transform, pixels)
    (rows, columns), m = kernel.layers[0].locations, len(images)
    pair_weights = left.patches.new_empty((rows, columns, m, len(centres)))
    self_weights = 0
    walk = _walk(machine, left, library, resources)
    for part, _, _, tile_weights, tile_self_weights in walk:
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
    coefs = dual_coef, dual_coef @ dual_coef.T
    # The patches of all centres are needed again: to save memory they are taken from
    # the images, by bands of locations that fit, and the transform waits to the end.
    n = len(centres)
    numbers = columns * (4 * (n + m) * kernel.patch_dim + m * n)
    largest = resources.memory // 3 // (resources.itemsize * numbers)
    total = 0
    for band in balanced_blocks(slice(0, rows), largest):
        weights = (pair_weights[band].flatten(0, 1), self_weights[band].flatten(0, 1))
        theirs = _band_patches(kernel, centres, band, resources)
        own = extract_patches(images, kernel.layers[0], band).flatten(0, 1)
        total += _band_product(weights, theirs, own, coefs, library, resources)
    if transform is not None:
        transform = transform.double()
        total = transform @ total @ transform.T
    return np.ldexp(total.cpu().numpy(), 2 * exponent)


def _band_patches(kernel, centres, band, resources):
    """Return the patches of the centres in a band of locations, (locations, d, n)."""
    layer = kernel.layers[0]
    seen, (pixels, _) = layer.part(band)
    n_locations = (band.stop - band.start) * layer.locations[1]
    shape = n_locations, kernel.patch_dim, len(centres)
    patches = torch.empty(shape, dtype=resources.dtype, device=resources.device)
    side = tiles.block_side(kernel, centres.shape[1:], resources)
    for part in image_blocks(centres, side):
        images = load_rows(centres[part], pixels, resources)
        patches[..., part] = extract_patches(images, seen).flatten(0, 1)
    return patches


def _band_product(weights, centre_patches, image_patches, coefs, library, resources):
    """Return Σ h hᵀ over some locations, in float64."""
    (pair_weights, self_weights), (dual_coef, coef_product) = weights, coefs
    locations, m, n = pair_weights.shape

    def products(at):
        w, v = pair_weights[at], centre_patches[at]
        product = _gram_product(w, coef_product, v, library, resources)
        cross = (w * (self_weights[at] @ dual_coef.T)) @ v.transpose(1, 2)
        z = image_patches[at].transpose(1, 2)
        own = self_weights[at].square().sum(-1, keepdim=True) * z
        total = _outer_sum(v.transpose(1, 2), product.transpose(1, 2))
        return total + _outer_sum(cross, z) + _outer_sum(z, cross + own)

    numbers = n * max(m, centre_patches.shape[1])
    return _sum_locations(products, locations, numbers, library, resources)


def _sum_locations(products, locations, numbers, library, resources):
    """Return the sum of products(slice), of so many numbers a location."""
    if library is not None:
        every = slice(0, locations)
        return sum(share_out(products, every, calls.LOCATIONS_TOGETHER))
    return sum(products(at) for at in _location_blocks(locations, numbers, resources))


def _gram_product(weights, coef_product, patches, library, resources):
    """Return ``[(Wᵀ W) ∘ A] V``, transposed as V is to (locations, d, n)."""
    if library is not None:
        return calls.gram_product(library, weights, coef_product, patches)
    product = torch.empty_like(patches)
    locations, _, n = weights.shape
    size = resources.memory // 8 // (resources.itemsize * locations * n)
    for j in balanced_blocks(slice(0, n), size):
        gram = weights.transpose(1, 2) @ weights[..., j]
        product[..., j] = patches @ gram.mul_(coef_product[:, j])
    return product


def _location_blocks(locations, numbers, resources):
    """Return slices of locations, of so many numbers each, for the cache."""
    size = _CACHE_BYTES if resources.device.type == "cpu" else resources.memory // 8
    largest = size // (resources.itemsize * numbers)
    return balanced_blocks(slice(0, locations), largest)


def _outer_sum(left, right):
    """Return Σ l rᵀ over all but the last dimension, in float64."""
    return (left.flatten(0, -2).T @ right.flatten(0, -2)).double()

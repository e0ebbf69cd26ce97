r"""Patch AGOPs of feature layers, from gradients at the features, in closed form.

With filters W and responses :math:`r = W v_u`, the gradient of output o with respect to
patch :math:`v_u` is :math:`W^\top \delta_{ou}`, so that a layer's patch AGOP is
:math:`W^\top S W` with the second moment S of the gradients δ at its responses. For
features :math:`\varphi_C = (m + o^p)^q` of means m of powers of r over a cell C,

.. math:: \delta_{ouk} = s_k(u) \sum_{C \ni u} g_{oCk}, \qquad
          s_k(u) = p\, \text{sign}(r_k)\, |r_k|^{p-1} a_k(u), \qquad
          g_{oCk} = \frac{q\, (m_k + o_k^p)^{q-1}}{|C|} (\nabla_{\varphi_C} f_o)_k,

with the derivative a of the activation (1 where a response is positive); with p = 1, s
is a. For a maximum s is a where the response is the maximum, else 0, and |C| is the
number of these locations. The sum over cells is the same at all locations of a part
between the edges of cells, so that

.. math:: S = \frac{1}{\sum\omega} \sum_z \omega_z \sum_{\text{parts } P}
          \Bigl[\sum_o g_{oP}\, g_{oP}^\top\Bigr] \circ
          \Bigl[\sum_{u \in P} s(u)\, s(u)^\top\Bigr].

For a linear readout of means the gradient is the same for all images. The gradient with
respect to the maps below is δ passed through the filters: a transposed convolution. No
automatic differentiation; all outputs travel together.

Where features are averaged over an image x and its mirror Px, both pass all layers, S
is the sum of both, and gradients at the features are halved. The first layer sees the
patch at u as its mirror at u' as well, so that with the mirror M of a patch

.. math:: g_{ou}(x) = W^\top \delta_{ou}(x) + M W^\top \delta_{ou'}(Px), \qquad
          S_\times = \sum_{o,u} \delta_{ou}(x)\, \delta_{ou'}(Px)^\top,

and the mean of :math:`g g^\top` over images and their mirrors is

.. math:: W_+^\top (S + S_\times + S_\times^\top) W_+ +
          W_-^\top (S - S_\times - S_\times^\top) W_-, \qquad
          W_\pm = \tfrac12 (W \pm W M).

Source: the ansatz, Beaglehole et al., arXiv:2309.00570; the closed form is ours.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch.nn.functional import conv_transpose2d

from ..compute.blocks import balanced_blocks, image_blocks, largest_value
from ..compute.images import to_tensor
from ..compute.parallel import SUM_TASKS, halving_memory, spans, sum_tasks
from ..compute.progress import track
from .gradient_moments import band_moment, band_squares, mirror_moment, places, spread
from .maps import (
    Band,
    FeatureMaps,
    feature_rows,
    load_rows,
    patch_contrasts,
    read_with_mirrors,
)
from .pools import average_pool, cell_areas, cell_parts
from .skips import SideBySide

_MAP_COPIES = 4  # alive while the gradients of an image are computed
_ROUNDINGS = 256  # by which responses may differ from the maximum that they equal


@dataclass(frozen=True)
class LayerAgop:
    """Patch AGOP of a layer, and its diagonal in filter coordinates."""

    agop: np.ndarray  # (d, d), WᵀSW
    importance: np.ndarray | None = None  # (K,), S_kk; None where there are no filters


def linear_agop(features, coef, images, weights, resources):
    """Return the `LayerAgop` of a linear machine, coef (D, n_outputs), on a layer.

    For cells that do not overlap, and no mirror; `layer_agops` is for all.
    """
    moment = _mean(_linear_moment, features, coef, images, weights, resources)
    return _agop(features, moment[None], images, coef)


def layer_agops(layers, readout, images, weights, resources, scales=()):
    """Return the `LayerAgop` of all layers of a machine by one backward sweep.

    ``readout.gradients(features)`` are the gradients (m, n_outputs, D) of the outputs
    with respect to features (m, D), float64 tensors; ``readout.numbers`` is how many
    numbers that takes per image. The readout has ``coef`` and is picklable. ``scales``
    are those of `SideBySide`, none if the readout sees the last layer alone.
    """
    top = SideBySide(layers, scales or _last_alone(layers))
    moments = _mean(_second_moments, top, readout, images, weights, resources)
    pairs = zip(layers, moments, strict=True)
    return [_agop(layer, moment, images, readout.coef) for layer, moment in pairs]


def importances(features, readout, images, weights, resources):
    """Return the mean squared gradient of f at the responses of every filter, (K,).

    It is summed over locations and outputs, as the diagonal of S of `layer_agops`.
    """
    top = SideBySide((features,), (1.0,))
    [found] = _mean(_squares, top, readout, images, weights, resources)
    return found


def input_gradients(layers, readout, images, resources, scales=()):
    """Return the gradients of all outputs at the pixels, (n, n_outputs, h, w, c).

    Float64; layers, readout and scales are as for `layer_agops`, with no layers the
    readout sees the pixels.
    """
    if not layers:
        rows = resources.tensor(images).flatten(1).double()
        gradients = readout.gradients(rows).unflatten(2, images.shape[1:])
        return gradients.cpu().numpy()
    top = SideBySide(layers, scales or _last_alone(layers))
    blocks, ones = [], np.ones(len(images))
    for passes, found in _passes(top, readout, images, ones, resources, "inputs"):
        *_, (index, gradients) = _backward(passes, found)
        gradients = passes[index].at_inputs(gradients)
        if top.mirror:
            own, mirrored = gradients.chunk(2)
            gradients = own + mirrored.flip(3)
        blocks.append(gradients.cpu().numpy())
    return np.concatenate(blocks)


def _last_alone(layers):
    return (*[None] * (len(layers) - 1), 1.0)


def _mean(moments, features, readout, images, weights, resources):
    """Return the weighted mean over images of moments, a function that sums them."""
    worker = resources.one_worker()
    tasks = (
        (features, readout, images[part], weights[part], worker)
        for part in track(spans(len(images), resources, SUM_TASKS), "AGOP")
    )
    return sum_tasks(moments, tasks, resources) / weights.sum()


def _agop(features, moments, images, coef):
    """Return the `LayerAgop` of S, and S× if it is there, or refuse an overflow."""
    filters, _ = features.affine(features.channels)
    moment, *crossed = moments
    with np.errstate(over="ignore", invalid="ignore"):  # refused in better words
        if crossed:
            both = crossed[0] + crossed[0].T
            mirrored = filters[:, features.layer.mirror_entries(features.channels)]
            even, odd = (filters + mirrored) / 2, (filters - mirrored) / 2
            agop = even.T @ (moment + both) @ even + odd.T @ (moment - both) @ odd
        else:
            agop = filters.T @ moment @ filters
    if not np.isfinite(agop).all():
        raise ValueError(
            f"the patch AGOP overflows float64: X has values up to "
            f"{largest_value(images):.3g} and the coefficients up to "
            f"{largest_value(coef):.3g}; scale the images, for instance to [0, 1], "
            "and the targets."
        )
    return LayerAgop((agop + agop.T) / 2, np.diagonal(moment).copy())


@halving_memory
def _linear_moment(features, coef, images, weights, resources):
    """Return S of some images under a linear readout, but for the sum of weights."""
    coef = torch.as_tensor(coef, device=resources.device)
    coef = coef.reshape(*features.grid, features.n_maps, -1)
    total = coef.new_zeros((features.n_maps,) * 2)
    largest = _block(features, 0, resources, 4 * features.n_maps**2)
    for part in track(image_blocks(images, largest), "AGOP"):
        roots = resources.tensor(np.sqrt(weights[part]))[:, None]
        pooled, bands = _pool_by_bands(features, images[part], resources)
        all_slopes, areas = pooled.slopes, pooled.areas
        for band, active in bands:
            # Near a mean of 0 a power is so steep that float32 would lose the squares.
            slopes = all_slopes[:, band.rows]
            steepest = float(slopes.max()) or 1.0
            slopes = (slopes / steepest).to(active) * roots[:, None, None]
            for row, column, height, width in _parts(band):
                at_row = row - band.rows.start
                cell = active[:, height, width] * slopes[:, at_row, column, None, None]
                beta = coef[row, column] * (steepest / areas[row, column])
                _add_products(cell.flatten(0, 2), beta, total, resources)
    return total.cpu().numpy()


def _add_products(cell, beta, total, resources):
    """Add [Σ_u s sᵀ] ∘ [β βᵀ] of a cell to the total, by strips that fit in memory."""
    largest = resources.memory // (16 * len(total) * total.element_size())
    for part in balanced_blocks(slice(0, len(total)), largest):
        total[:, part] += (cell.T @ cell[:, part]) * (beta @ beta[part].T)


@halving_memory
def _second_moments(top, readout, images, weights, resources):
    """Return S of all layers, an array of arrays, but for the sum of weights.

    Each of shape (1, K, K), or (2, K, K) with S× of a layer that sees mirror images.
    """
    layers = top.layers
    # Feature maps of images do not mirror as these do.
    crossed = top.mirror and not isinstance(images, FeatureMaps)
    totals = np.empty(len(layers), dtype=object)
    totals[:] = [
        np.zeros((1 + (crossed and not index), layer.n_maps, layer.n_maps))
        for index, layer in enumerate(layers)
    ]
    for passes, found in _passes(top, readout, images, weights, resources):
        for index, gradients in _backward(passes, found):
            moments = passes[index].second_moments(gradients, len(totals[index]) == 2)
            totals[index] += moments.cpu().numpy()
    return totals


def _backward(passes, found):
    """Yield the index of each layer, the last first, and the gradients at its means.

    ``found`` has those at the features that the readout sees, None elsewhere.
    """
    gradients = 0.0
    for index in reversed(range(len(passes))):
        if found[index] is not None:
            gradients = gradients + found[index]
        gradients = passes[index].at_means(gradients)
        yield index, gradients
        if index:
            gradients = passes[index].at_inputs(gradients)


@halving_memory
def _squares(top, readout, images, weights, resources):
    """Return the diagonal of S of one layer, (1, K), but for the sum of weights."""
    total = np.zeros((1, top.layers[0].n_maps))
    parts = _passes(top, readout, images, weights, resources, "squares")
    for [one], [gradients] in parts:
        total += one.squares(one.at_means(gradients)).cpu().numpy()
    return total


def _passes(top, readout, images, weights, resources, purpose="products"):
    """Yield, by blocks of images, `_LayerPass`es and gradients at their features.

    These are None where the readout does not see a layer, multiplied by the roots of
    the weights, and halved where mirrors follow the images. ``purpose`` says what is
    made of them: "products" of all pairs of filters, their "squares", or gradients at
    "inputs" of the first layer, for which all its locations are kept at once.
    """
    layers, sides = top.layers, 2 if top.mirror else 1
    widest = max(layers, key=lambda layer: layer.n_maps * layer.layer.n_locations)
    by_bands = len(layers) == 1 and purpose != "inputs"
    outputs = 0 if by_bands else readout.coef.shape[1]
    numbers = readout.numbers
    if purpose == "products":
        numbers += 4 * widest.n_maps**2
    largest = _block(widest, outputs, resources, numbers)
    for part in track(image_blocks(images, largest // sides), "AGOP"):
        some = images[part] if sides == 1 else read_with_mirrors(images[part])
        passes = _pass_layers(layers, some, resources, by_bands)
        features = top.join([one.features for one in passes])
        features = features.unflatten(0, (sides, -1)).mean(0)
        gradients = readout.gradients(features.double())
        roots = torch.as_tensor(np.sqrt(weights[part]), device=resources.device)
        gradients = gradients * (roots[:, None, None] / sides)
        yield passes, top.split(gradients.repeat(sides, 1, 1))


def _pass_layers(layers, images, resources, by_bands):
    """Return the `_LayerPass` of each layer over some images; by bands of one alone."""
    if by_bands:
        return [_LayerPass(*layers, *_pool_by_bands(*layers, images, resources))]
    # The way back is through all locations at once.
    maps, passes = resources.tensor(images), []
    for layer in layers:
        passes.append(_LayerPass(layer, *_pool(layer, maps), maps))
        maps = passes[-1].features
    return passes


@dataclass(frozen=True)
class _Pooled:
    """Pools of some images, and their slopes by the powers of responses."""

    layer: object  # the `FilterLayer`
    parts: torch.Tensor  # (m, rows, columns, K), pools of the parts between edges
    counts: torch.Tensor | None = None  # locations of parts that have their maximum

    @cached_property
    def means(self):
        """Means, or maxima, of the cells."""
        return self.layer.combine(self.parts)

    @property
    def areas(self):
        """Locations of each cell that a mean is divided by, (rows, columns, 1)."""
        areas = cell_areas(self.layer.cells).to(self.parts.device)
        return areas if self.counts is None else torch.ones_like(areas)

    @property
    def slopes(self):
        """Slopes by the means; shares of equal maxima of cells that do not overlap."""
        if self.counts is not None:
            return 1 / self.counts.double()
        return self.layer.slopes(self.means.double())

    def to_parts(self, gradients):
        """Return gradients at the responses' powers, which all of a part share.

        (m, n_outputs, rows, columns, K), from those at the pools of cells.
        """
        if self.counts is None and not self.layer.overlap:
            return gradients / self.areas.to(gradients)
        shape = *gradients.shape[:2], *self.parts.shape[1:]
        total, areas = gradients.new_zeros(shape), self.areas.to(gradients)
        for row, column, down, across in cell_parts(self.layer.cells, self.layer.edges):
            share = 1 / areas[row, column]
            if self.counts is not None:
                top = self.means[:, row, column, None, None]
                has = _reach(self.layer, self.parts[:, down, across], top).to(gradients)
                count = (has * self.counts[:, down, across]).sum((1, 2), keepdim=True)
                share = (has / count)[:, None]
            at_cell = gradients[:, :, row, column, None, None]
            total[:, :, down, across] += at_cell * share
        return total


class _LayerPass:
    """One layer on one block of images (m, h, w, c): its features, and the way back."""

    def __init__(self, layer, pooled, bands, images=None):
        self._layer, self._pooled, self._bands = layer, pooled, bands
        self._images = images  # for the way to the layers below
        self.features = layer.raise_means(pooled.means)

    def at_means(self, gradients):
        """Return the gradients (m, n_outputs, rows, columns, K) at the means."""
        slopes = self._layer.slopes(self._pooled.means.double())
        return gradients * slopes[:, None]

    def second_moments(self, gradients, crossed=False):
        """Return [Σ δδᵀ] over the block, float64, from the gradients at the means.

        ``crossed`` adds S×, of images that their mirrors follow.
        """
        gradients, peak = _in_units(gradients, self._pooled.parts)
        gradients = self._pooled.to_parts(gradients)
        routes = (band_moment, mirror_moment) if crossed else (band_moment,)
        shape = len(routes), self._layer.n_maps, self._layer.n_maps
        totals = torch.zeros(shape, dtype=torch.float64, device=gradients.device)
        for band, active in self._bands:
            for total, route in zip(totals, routes, strict=True):
                total += route(gradients, band, active)
        return totals * peak * peak  # which may be infinite, and is refused

    def squares(self, gradients):
        """Return Σ δ² over the block, (K,) float64, from the gradients at the means."""
        gradients, peak = _in_units(gradients, self._pooled.parts)
        squares = self._pooled.to_parts(gradients).square().sum(1)
        total = torch.zeros(
            self._layer.n_maps, dtype=torch.float64, device=squares.device
        )
        for band, active in self._bands:
            total += band_squares(squares[:, band.rows], band, active)
        return total * peak * peak

    def at_inputs(self, gradients):
        """Return the gradients (m, n_outputs, h, w, c) at the images of the layer."""
        m, n_outputs = gradients.shape[:2]
        [(whole, active)] = self._bands
        gradients, peak = _in_units(gradients, active)
        delta = spread(self._pooled.to_parts(gradients), *places(whole))
        delta = delta.mul_(active[:, None]).flatten(0, 1)
        layer, channels = self._layer.layer, self._layer.channels
        filters, biases = (
            to_tensor(array, active.dtype, gradients.device)
            for array in self._layer.affine(channels)
        )
        extra = 0.0
        if self._layer.floor is not None:
            delta, extra = self._through_contrasts(delta, biases)
        weight = filters.reshape(len(filters), channels, *layer.patch)
        inputs = _add_patches(delta, weight, layer) + extra
        return inputs.unflatten(0, (m, n_outputs)).double() * peak

    def _through_contrasts(self, delta, biases):
        """Return gradients at products with patches, and those by their contrasts."""
        layer, images = self._layer.layer, self._images
        n_outputs = len(delta) // len(images)
        means, variances = patch_contrasts(images, layer)
        scales = (variances + self._layer.floor).rsqrt()
        # Where they are negative the gradients at them are 0.
        products = (self._layer.responses(images) - biases).repeat_interleave(
            n_outputs, 0
        )
        means, scales, repeated = (
            array.repeat_interleave(n_outputs, 0).to(delta)
            for array in (means, scales, images)
        )
        d = images.shape[3] * math.prod(layer.patch)
        at_contrasts = (delta * products).sum(3) * scales.square() / d
        box = delta.new_ones((1, 1, *layer.patch))
        one, shift = (
            _add_patches(array[..., None], box, layer)
            for array in (at_contrasts, at_contrasts * means)
        )
        return delta * scales[..., None], shift - one * repeated


def _add_patches(delta, weight, layer):
    """Return the images (n, h, w, c) to which gradients add filters at locations."""
    top, bottom, left, right = layer.padding
    inputs = conv_transpose2d(delta.permute(0, 3, 1, 2), weight)
    height, width = inputs.shape[2:]
    inputs = inputs[:, :, top : height - bottom, left : width - right]
    return inputs.permute(0, 2, 3, 1)


def _in_units(gradients, like):
    """Return float64 gradients in the dtype of another tensor, and their unit."""
    peak = float(gradients.abs().max()) or 1.0
    return (gradients / peak).to(like), peak


def _block(layer, outputs, resources, numbers=0):
    """Return how many images' maps, and outputs times those, fit in memory."""
    maps = (_MAP_COPIES + 2 * outputs) * layer.layer.n_locations * layer.n_maps
    return max(1, resources.memory // 4 // (resources.itemsize * (maps + numbers)))


def _pool_by_bands(features, images, resources):
    """Return `_Pooled`, and pairs (`Band` of parts, slopes s of its locations).

    Maps larger than the memory are made several times, for the pools, for the counts of
    maxima, and band by band.
    """
    numbers = _MAP_COPIES * features.n_maps * features.layer.locations[1]
    largest = resources.memory // 2 // (resources.itemsize * numbers * len(images))
    if largest >= features.layer.locations[0]:
        return _pool(features, resources.tensor(images))
    layer = features.parts

    def responses():
        for band in layer.bands(largest):
            pixels = load_rows(images, band.pixels, resources)
            yield band, band.features.responses(pixels)

    if features.takes_maxima:  # of the very numbers that are compared with them
        shape = len(images), *layer.shape
        options = {"dtype": resources.dtype, "device": resources.device}
        parts, counts = (torch.full(shape, n, **options) for n in (-math.inf, 0.0))
        for band, maps in responses():
            parts[:, band.rows].clamp_(min=band.features.pool_parts(maps))
        for band, maps in responses():
            counts[:, band.rows] += _count(band, maps, parts)
    else:
        parts = feature_rows(layer, images, len(images), None, resources)
        parts, counts = torch.as_tensor(parts, device=resources.device), None
    bands = ((band, _slopes(band, maps, parts)) for band, maps in responses())
    return _Pooled(features, parts, counts), bands


def _pool(features, images):
    """Return `_Pooled`, and one pair of a `Band` and slopes, see `_pool_by_bands`."""
    maps, layer = features.responses(images), features.parts
    whole = Band(layer, slice(None), slice(0, layer.grid[0]))
    parts = features.pool_parts(maps)
    counts = _count(whole, maps, parts) if features.takes_maxima else None
    return _Pooled(features, parts, counts), [(whole, _slopes(whole, maps, parts))]


def _slopes(band, responses, parts):
    """Return the slopes s of powers, or of the maxima of parts, at a band."""
    features = band.features
    if features.activation == "identity":
        active = torch.ones_like(responses)
    else:
        active = (responses > 0).to(responses)
    if features.takes_maxima:
        return active.mul_(_have_maximum(band, responses, parts))
    if features.order == 1:
        return active
    powers = responses.abs().pow_(features.order - 1).copysign_(responses)
    return active.mul_(powers).mul_(features.order)


def _have_maximum(band, responses, parts):
    """Return where the responses of a band are the maximum of their part."""
    tops = parts[:, band.rows]
    for dim, slices in enumerate(band.features.cells, 1):
        sizes = torch.tensor([s.stop - s.start for s in slices], device=tops.device)
        tops = tops.repeat_interleave(sizes, dim)
    return _reach(band.features, responses, tops)


def _reach(features, responses, tops):
    """Return where responses reach the tops, up to their rounding.

    Locations that see equal patches, such as those of flat images, share a slope.
    """
    _, biases = features.affine(features.channels)
    sizes = to_tensor(np.abs(biases), tops.dtype, tops.device) + tops.abs()
    return responses >= tops - _ROUNDINGS * torch.finfo(tops.dtype).eps * sizes


def _count(band, responses, parts):
    """Return the numbers of locations of a band that have the maximum of their part."""
    have, slices = _have_maximum(band, responses, parts).to(parts), band.features.cells
    return (average_pool(have, slices) * cell_areas(slices).to(parts)).round()


def _parts(band):
    """Yield (row, column, slices of the band) of each part; rows of the whole grid."""
    rows, columns = band.features.cells
    for row, height in enumerate(rows, band.rows.start):
        for column, width in enumerate(columns):
            yield row, column, height, width

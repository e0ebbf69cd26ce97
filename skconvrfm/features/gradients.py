r"""Patch AGOPs of feature layers, from gradients at the features, in closed form.

With filters W and responses :math:`r = W v_u`, the gradient of output o with respect to
patch :math:`v_u` is :math:`W^\top \delta_{ou}`, so that a layer's patch AGOP is
:math:`W^\top S W` with the second moment S of the gradients δ at its responses. For a
cell C with means m of activities, features :math:`\varphi_C = m^p` and slopes
:math:`s_k(u) = p\, m_k^{p-1} a_k(u) / |C|`, where a is 1 where a response is positive,

.. math:: \delta_{ouk} = (\nabla_{\varphi_C} f_o)_k\, s_k(u), \qquad
          S = \frac{1}{\sum\omega} \sum_z \omega_z \sum_C
          \Bigl[\sum_o g_{oC}\, g_{oC}^\top\Bigr] \circ
          \Bigl[\sum_{u \in C} s(u)\, s(u)^\top\Bigr].

For a linear readout the first factor is the same for all images. The gradient with
respect to the maps below is δ passed through the filters: a transposed convolution. No
automatic differentiation; all outputs travel together.

Source: the ansatz, Beaglehole et al., arXiv:2309.00570; the closed form is ours.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn.functional import conv_transpose2d

from ..compute.blocks import balanced_blocks, image_blocks, largest_value
from ..compute.images import cells, to_tensor
from ..compute.parallel import SUM_TASKS, halving_memory, spans, sum_tasks
from ..compute.threads import own_threads, share_out
from .maps import Band, feature_rows, load_rows
from .pools import average_pool

# Cost of an entrywise product of K × K matrices in products of two rows of K.
_PRODUCT_COST = 64
_MAP_COPIES = 4  # alive while the gradients of an image are computed


@dataclass(frozen=True)
class LayerAgop:
    """Patch AGOP of a layer, and its diagonal in filter coordinates."""

    agop: np.ndarray  # (d, d), WᵀSW
    importance: np.ndarray | None = None  # (K,), S_kk; None where there are no filters


def linear_agop(features, coef, images, weights, resources):
    """Return the `LayerAgop` of a linear machine, coef (D, n_outputs), on a layer."""
    moment = _mean(_linear_moment, features, coef, images, weights, resources)
    return _agop(features, moment, images, coef)


def layer_agops(layers, readout, images, weights, resources):
    """Return the `LayerAgop` of all layers of a machine by one backward sweep.

    ``readout.gradients(features)`` are the gradients (m, n_outputs, D) of the outputs
    with respect to features (m, D), float64 tensors; ``readout.numbers`` is how many
    numbers that takes per image. The readout has ``coef`` and is picklable.
    """
    moments = _mean(_second_moments, layers, readout, images, weights, resources)
    pairs = zip(layers, moments, strict=True)
    return [_agop(layer, moment, images, readout.coef) for layer, moment in pairs]


def _mean(moments, layers, readout, images, weights, resources):
    """Return the weighted mean over images of moments, a function that sums them."""
    worker = resources.one_worker()
    tasks = (
        (layers, readout, images[part], weights[part], worker)
        for part in spans(len(images), resources, SUM_TASKS)
    )
    return sum_tasks(moments, tasks, resources) / weights.sum()


def _agop(features, moment, images, coef):
    """Return the `LayerAgop` of S, or refuse it where it overflows."""
    filters, _ = features.affine(features.channels)
    with np.errstate(over="ignore", invalid="ignore"):  # refused in better words
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
    for part in image_blocks(images, _block(features, 0, resources)):
        roots = resources.tensor(np.sqrt(weights[part]))[:, None]
        means, bands = _activity_by_bands(features, images[part], resources)
        for band, active in bands:
            # Near a mean of 0 a power is so steep that float32 would lose the squares.
            slopes = features.slopes(means[:, band.rows].double())
            steepest = float(slopes.max()) or 1.0
            slopes = (slopes / steepest).to(means) * roots[:, None, None]
            for row, column, height, width, area in _cells(band):
                at_row = row - band.rows.start
                cell = active[:, height, width] * slopes[:, at_row, column, None, None]
                beta = coef[row, column] * (steepest / area)
                _add_products(cell.flatten(0, 2), beta, total, resources)
    return total.cpu().numpy()


def _add_products(cell, beta, total, resources):
    """Add [Σ_u s sᵀ] ∘ [β βᵀ] of a cell to the total, by strips that fit in memory."""
    largest = resources.memory // (16 * len(total) * total.element_size())
    for part in balanced_blocks(slice(0, len(total)), largest):
        total[:, part] += (cell.T @ cell[:, part]) * (beta @ beta[part].T)


@halving_memory
def _second_moments(layers, readout, images, weights, resources):
    """Return S of all layers, an array of arrays, but for the sum of weights."""
    totals = np.empty(len(layers), dtype=object)
    totals[:] = [np.zeros((layer.n_maps,) * 2) for layer in layers]
    widest = max(layers, key=lambda layer: layer.n_maps * layer.layer.n_locations)
    outputs = readout.coef.shape[1] if len(layers) > 1 else 0
    largest = _block(widest, outputs, resources, readout.numbers)
    for part in image_blocks(images, largest):
        passes = _pass_layers(layers, images[part], resources)
        gradients = readout.gradients(passes[-1].features.flatten(1).double())
        roots = torch.as_tensor(np.sqrt(weights[part]), device=resources.device)
        gradients = gradients * roots[:, None, None]
        for index in reversed(range(len(layers))):
            gradients = passes[index].at_means(gradients)
            totals[index] += passes[index].second_moment(gradients).cpu().numpy()
            if index:
                gradients = passes[index].at_inputs(gradients)
    return totals


def _pass_layers(layers, images, resources):
    """Return the `_LayerPass` of each layer over some images."""
    if len(layers) == 1:
        return [_LayerPass(*layers, *_activity_by_bands(*layers, images, resources))]
    # The way back is through all locations at once.
    maps, passes = resources.tensor(images), []
    for layer in layers:
        means, active = _activity(layer, maps)
        passes.append(_LayerPass(layer, means, [(_whole(layer), active)]))
        maps = passes[-1].features
    return passes


class _LayerPass:
    """One layer on one block of images (m, h, w, c): its features, and the way back."""

    def __init__(self, layer, means, bands):
        self._layer, self._means, self._bands = layer, means, bands
        self.features = layer.raise_means(means)

    def at_means(self, gradients):
        """Return the gradients (m, n_outputs, rows, columns, K) at the means."""
        slopes = self._layer.slopes(self._means.double())
        shape = (*gradients.shape[:2], *slopes.shape[1:])
        return gradients.reshape(shape) * slopes[:, None]

    def second_moment(self, gradients):
        """Return Σ δδᵀ over the block, float64, from the gradients at the means."""
        peak = float(gradients.abs().max()) or 1.0
        gradients = (gradients / peak).to(self._means)
        shape = (self._layer.n_maps,) * 2
        total = torch.zeros(shape, dtype=torch.float64, device=gradients.device)
        for band, active in self._bands:
            for row, column, height, width, area in _cells(band):
                cell = active[:, height, width].flatten(1, 2)
                at_cell = gradients[:, :, row, column] / area
                total += _cell_moment(at_cell, cell).double()
        return total * peak * peak  # which may be infinite, and is refused

    def at_inputs(self, gradients):
        """Return the gradients (m, n_outputs, h, w, c) at the images of the layer."""
        m, n_outputs = gradients.shape[:2]
        [(whole, active)] = self._bands
        delta = gradients.new_empty((m, n_outputs, *active.shape[1:]))
        for row, column, height, width, area in _cells(whole):
            at_cell = gradients[:, :, row, column] / area
            at_places = active[:, None, height, width]
            delta[:, :, height, width] = at_cell[:, :, None, None] * at_places
        layer, channels = self._layer.layer, self._layer.channels
        top, bottom, left, right = layer.padding
        filters, _ = self._layer.affine(channels)
        weight = to_tensor(filters, active.dtype, gradients.device).double()
        weight = weight.reshape(len(filters), channels, *layer.patch)
        inputs = conv_transpose2d(delta.flatten(0, 1).permute(0, 3, 1, 2), weight)
        height, width = inputs.shape[2:]
        inputs = inputs[:, :, top : height - bottom, left : width - right]
        return inputs.permute(0, 2, 3, 1).unflatten(0, (m, n_outputs))


def _cell_moment(gradients, active):
    """Return Σ_z [Σ_o g gᵀ] ∘ [Σ_u a aᵀ] of a cell, by the cheaper of two routes."""
    # Gradients g are (m, n_outputs, K), active a are (m, locations, K).
    n_outputs, n_locations = gradients.shape[1], active.shape[1]
    if n_outputs * n_locations <= n_outputs + n_locations + _PRODUCT_COST:
        delta = (gradients[:, :, None] * active[:, None]).flatten(0, 2)
        return delta.T @ delta

    def part_moment(part):
        # One image at a time: its matrices of K × K stay in the cache.
        total = 0
        for at_image, at_places in zip(gradients[part], active[part], strict=True):
            total = total + (at_image.T @ at_image).mul_(at_places.T @ at_places)
        return total

    with own_threads(active.device.type == "cpu"):
        return sum(share_out(part_moment, slice(0, len(active)), len(active)))


def _block(layer, outputs, resources, numbers=0):
    """Return how many images' maps, and outputs times those, fit in memory."""
    maps = (_MAP_COPIES + 2 * outputs) * layer.layer.n_locations * layer.n_maps
    numbers = maps + 4 * layer.n_maps**2 + numbers
    return max(1, resources.memory // 4 // (resources.itemsize * numbers))


def _activity_by_bands(features, images, resources):
    """Return cells' means, and pairs (`Band`, active), see `_activity`.

    Maps larger than the memory are made twice: for the means, and band by band.
    """
    numbers = _MAP_COPIES * features.n_maps * features.layer.locations[1]
    largest = resources.memory // 2 // (resources.itemsize * numbers * len(images))
    if largest >= features.layer.locations[0]:
        means, active = _activity(features, resources.tensor(images))
        return means, [(_whole(features), active)]
    mean_features = replace(features, power=1.0)
    means = feature_rows(mean_features, images, len(images), None, resources)
    bands = (
        (band, _active(features, band.features.responses(pixels)))
        for band in features.bands(largest)
        for pixels in [load_rows(images, band.pixels, resources)]
    )
    return torch.as_tensor(means, device=resources.device), bands


def _activity(features, images):
    """Return cells' means, and the derivative of the activation at every response."""
    maps = features.responses(images)
    active = _active(features, maps)
    maps = maps if features.activation == "identity" else maps.relu()
    return average_pool(maps, features.grid), active


def _active(features, responses):
    """Return the derivative of the activation at responses."""
    if features.activation == "identity":
        return torch.ones_like(responses)
    return (responses > 0).to(responses)


def _whole(features):
    """Return the `Band` of all locations."""
    return Band(features, slice(None), slice(0, features.grid[0]))


def _cells(band):
    """Yield the cells of a band: (row, column, slices of the band, area of the cell).

    Rows and columns are those of the whole grid.
    """
    features = band.features
    rows, columns = map(cells, features.layer.locations, features.grid)
    for row, height in enumerate(rows, band.rows.start):
        for column, width in enumerate(columns):
            area = (height.stop - height.start) * (width.stop - width.start)
            yield row, column, height, width, area / band.share

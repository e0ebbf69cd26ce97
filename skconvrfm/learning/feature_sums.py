"""Ridge regression on features: rows of features, sums over them, their products.

Features are held where they fit in memory, and else computed anew, block by block, at
every pass. Workers compute the features of their own rows, and do not send them.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..compute.blocks import balanced_blocks, image_blocks
from ..compute.parallel import SUM_TASKS, halving_memory, spans, sum_tasks
from ..features.maps import FilterLayer, Pixels, feature_rows
from ..kernels.whole import RadialKernel
from .ridge import Moments

# Rows of a product of all rows with all; half of them are left out.
_PRODUCT_ROWS = 1024


class Design:
    """Features of training images, held where half of the memory is enough."""

    def __init__(self, features, data, resources, values=None):
        self.features, self.data, self.resources = features, data, resources
        self._worker = resources.one_worker()
        self.n, self.width = len(data.images), math.prod(features.shape)
        self.rows = FeatureRows(features, data.images, self.n, values)
        fits = self.n * self.width * resources.itemsize <= resources.memory // 2
        if values is None and resources.n_workers == 1 and fits:
            values = self.rows.compute(resources)
            self.rows = replace(self.rows, values=values)

    @property
    def wide(self):
        """True if the rows are the smaller side."""
        # Features that can interpolate leave no degrees of freedom, of which the primal
        # side would see nothing but rounding.
        return self.width >= self.n - 1

    def kernel_matrix(self):
        """Return ΦΦᵀ, an ndarray of shape (n, n), float64."""
        tasks = ((rows, self._worker) for _, rows in self._filter_groups())
        matrix = sum_tasks(_outer_product, tasks, self.resources)
        return np.triu(matrix) + np.triu(matrix, 1).T

    def combine(self, dual_coef):
        """Return Φᵀα, the features' coefficients of a kernel machine."""
        coef = np.empty((self.width, dual_coef.shape[1]))
        columns, groups = zip(*self._filter_groups(), strict=True)
        tasks = ((rows, dual_coef, self._worker) for rows in groups)
        parts = list(self.resources.run(_combination, tasks))
        coef[np.concatenate(columns)] = np.concatenate(parts)
        return coef

    def moments(self):
        """Return the sums over all rows, `Moments`, in float64."""
        columns = self.rows, self.data.targets, self.data.weights
        parts = spans(self.n, self.resources, SUM_TASKS)
        tasks = ((*(c[part] for c in columns), self._worker) for part in parts)
        return sum_tasks(_moments, tasks, self.resources)

    def map_rows(self, function):
        """Yield (slice of rows, ``function(n, blocks, device)`` of their features)."""
        parts = spans(self.n, self.resources, SUM_TASKS)
        tasks = ((self.rows[part], function, self._worker) for part in parts)
        yield from zip(parts, self.resources.run(_map_blocks, tasks), strict=True)

    def _filter_groups(self):
        """Return pairs (indices of columns, all rows' features of some filters)."""
        if self.rows.values is not None:
            return [(np.arange(self.width), self.rows)]
        n_filters, cells = self.features.n_maps, math.prod(self.features.grid)
        size = self.n * cells * self.resources.itemsize
        largest = max(1, self._worker.memory // 4 // size)
        columns = np.arange(self.width).reshape(cells, n_filters)
        return [
            (columns[:, group].ravel(), self.rows.only(group))
            for group in spans(n_filters, self.resources, SUM_TASKS, largest)
        ]


@dataclass(frozen=True)
class FeatureRows:
    """Rows of features: values, or images and the layer that makes features of them."""

    features: FilterLayer | Pixels  # the top layer
    images: object  # (n, h, w, c)
    n_whole: int  # images of which these are a part, computed alike
    values: np.ndarray | None = None  # (n, D), where they are held

    def __len__(self):
        return len(self.images)

    def __getitem__(self, part):
        """Return the rows of a slice."""
        values = None if self.values is None else self.values[part]
        return replace(self, images=self.images[part], values=values)

    def only(self, group):
        """Return the columns of a slice of the filters."""
        return replace(self, features=self.features.only(group))

    def compute(self, resources):
        """Return the values, an ndarray of shape (n, D)."""
        if self.values is not None:
            return self.values
        values = feature_rows(self.features, self.images, self.n_whole, resources)
        return values.reshape(len(values), -1)

    def blocks(self, resources):
        """Yield (slice of rows, their values as a tensor), as much as fits."""
        size = math.prod(self.features.shape) * resources.itemsize
        largest = max(1, resources.memory // 4 // size)
        for part in image_blocks(self.images, min(largest, _PRODUCT_ROWS)):
            values = self[part].compute(resources)
            yield part, torch.as_tensor(values, device=resources.device)


@halving_memory
def _moments(rows, targets, weights, resources):
    """Return the `Moments` of some rows."""
    width = math.prod(rows.features.shape)
    total = weights.sum()
    target_mean = weights @ targets / total
    centred_targets = targets - target_mean
    options = {"dtype": torch.float64, "device": resources.device}
    gram = torch.zeros((width, width), **options)
    cross = torch.zeros((width, targets.shape[1]), **options)
    sums = torch.zeros(width, **options)
    centre, largest = None, 0.0
    for part, block in rows.blocks(resources):
        # Of many rows, rounded products would bury the directions of small variance,
        # which small ridges live on.
        block = block.to(torch.float64, copy=True)
        largest = max(largest, float(block.square().sum(1).max()))
        # Near the mean, little is lost where squares of the mean are taken off.
        centre = block.mean(0) if centre is None else centre
        block -= centre
        weighted = block * torch.as_tensor(weights[part], **options)[:, None]
        for columns in balanced_blocks(slice(0, width), _PRODUCT_ROWS):
            product = block[:, : columns.stop].T @ weighted[:, columns]
            gram[: columns.stop, columns] += product
        cross += weighted.T @ torch.as_tensor(centred_targets[part], **options)
        sums += weighted.sum(0)
    # One triangle was added up; the other is its mirror, strip by strip in its place.
    for columns in balanced_blocks(slice(0, width), _PRODUCT_ROWS):
        square = gram[columns, columns]
        square.copy_(square.triu() + square.triu(1).T)
        gram[columns.stop :, columns] = gram[columns, columns.stop :].T
        gram[columns] -= torch.outer(sums[columns], sums) / total
    mean, gram, cross = (x.cpu().numpy() for x in (centre + sums / total, gram, cross))
    spread = weights @ centred_targets**2
    return Moments(float(total), mean, target_mean, gram, cross, spread, largest)


@halving_memory
def _map_blocks(rows, function, resources):
    """Return ``function`` of n rows and blocks (slice of these, float64 tensor)."""
    blocks = ((part, block.double()) for part, block in rows.blocks(resources))
    return function(len(rows), blocks, resources.device)


@halving_memory
def _outer_product(rows, resources):
    """Return ΦΦᵀ of some columns, its upper triangle, an ndarray (n, n)."""
    values = torch.as_tensor(rows.compute(resources), device=resources.device)
    matrix = np.zeros((len(rows), len(rows)))
    for columns in balanced_blocks(slice(0, values.shape[1]), _PRODUCT_ROWS):
        block = values[:, columns].double()
        for part in image_blocks(rows, _PRODUCT_ROWS):
            product = block[: part.stop] @ block[part].T
            matrix[: part.stop, part] += product.cpu().numpy()
    return matrix


@halving_memory
def _combination(rows, dual_coef, resources):
    """Return Φᵀα of some columns."""
    values = torch.as_tensor(rows.compute(resources), device=resources.device)
    dual = torch.as_tensor(dual_coef, device=resources.device)
    parts = balanced_blocks(slice(0, values.shape[1]), _PRODUCT_ROWS)
    products = [values[:, part].double().T @ dual for part in parts]
    return torch.cat(products).cpu().numpy()


@dataclass(frozen=True)
class LinearReadout:
    """Linear outputs of features, without the intercept."""

    coef: np.ndarray  # β, (D, n_outputs)

    @property
    def numbers(self):
        """Numbers that the gradients of one row take."""
        return 2 * self.coef.size

    def __call__(self, rows):
        """Return the outputs of float64 rows, a Tensor (m, n_outputs)."""
        return rows @ torch.as_tensor(self.coef, device=rows.device)

    def gradients(self, rows):
        """Return the gradients of the outputs, a Tensor (m, n_outputs, D)."""
        coef = torch.as_tensor(self.coef, device=rows.device)
        return coef.T.expand(len(rows), -1, -1)


@dataclass(frozen=True)
class RadialReadout:
    """Outputs of a kernel machine on features, without the intercept."""

    kernel: RadialKernel  # with its bandwidth
    centres: np.ndarray  # (n, D), features of training
    coef: np.ndarray  # α, (n, n_outputs)

    @property
    def numbers(self):
        """Numbers that the gradients of one row take."""
        return self.coef.shape[1] * (3 * self.centres.shape[1] + 2 * _PRODUCT_ROWS)

    def __call__(self, rows):
        """Return the outputs of float64 rows, a Tensor (m, n_outputs)."""
        parts = self._parts(rows.device)
        return sum(self.kernel.value(rows, centres) @ coef for centres, coef in parts)

    def gradients(self, rows):
        """Return the gradients of the outputs, a Tensor (m, n_outputs, D)."""
        parts = self._parts(rows.device)
        return sum(self.kernel.pullback(rows, *part) for part in parts)

    def _parts(self, device):
        for part in image_blocks(self.centres, _PRODUCT_ROWS):
            centres = torch.as_tensor(self.centres[part], device=device).double()
            yield centres, torch.as_tensor(self.coef[part], device=device)


def readout_outputs(features, images, readout, resources):
    """Return the outputs of a readout for images, float64 (n, n_outputs), by blocks."""
    worker = resources.one_worker()
    rows = FeatureRows(features, images, len(images))
    tasks = ((rows[part], readout, worker) for part in spans(len(images), resources))
    return np.concatenate(list(resources.run(_outputs, tasks)))


@halving_memory
def _outputs(rows, readout, resources):
    """Return the outputs for some rows."""
    outputs = np.empty((len(rows), readout.coef.shape[1]))
    for part, block in rows.blocks(resources):
        outputs[part] = readout(block.double()).cpu().numpy()
    return outputs

r"""The machine that is linear in the number of images: ridge regression on features.

.. math:: f_o(x) = b_o + \sum_{\text{cells } C} \sum_k \beta_{oCk}
          \operatorname{mean}_{u \in C} \sqrt 2 \max(w_k^\top v_u(x) / \sqrt c + t_k, 0)

With filters from N(0, M), its kernel tends to the pooled kernel of one layer
(`kind="nngp"`) as their number grows. The gradient with respect to the response of
filter k at u ∈ C is :math:`\delta_{ouk} = \sqrt 2\, \beta_{oCk} a_{uk} / |C|`, where a
is 1 where the response is positive, so that the patch AGOP is :math:`W^\top S W` with

.. math:: S = \sum_C \frac{1}{|C|^2} \Bigl[\sum_o \beta_{oC} \beta_{oC}^\top\Bigr] \circ
          \frac{1}{\sum\omega} \sum_z \omega_z \sum_{u \in C} a_u(z)\, a_u(z)^\top,

whatever the number of outputs. Where means m are raised to a power p, the activity of a
filter at an image is multiplied by :math:`p\, m^{p - 1}`.

Source: the ansatz, Beaglehole et al., arXiv:2309.00570; the closed form is ours.
"""

import math
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
import torch

from .blocks import (
    SUM_TASKS,
    balanced_blocks,
    halving_memory,
    image_blocks,
    largest_value,
    spans,
    sum_tasks,
)
from .cnfa import agop_from_outputs
from .features import FilterLayer, average_pool, convolve
from .filters import FilterBank
from .images import Layer
from .machine import Machine
from .ridge import Moments, PrimalRidgePath, RidgePath
from .tiles import feature_rows

# Rows of a product of all rows with all; half of them are left out.
_PRODUCT_ROWS = 1024


@dataclass(frozen=True, kw_only=True)
class FeatureMachine(Machine):
    """Ridge regression on pooled maps of filters.

    Attributes
    ----------
    layer : Layer
        The patches.
    bank : FilterBank
        The filters before they take a metric.
    activation : {"relu", "identity"}
        What follows the convolution.
    pool : tuple of int or None
        Rows and columns of the grid of means; None keeps all locations.
    """

    layer: Layer
    bank: FilterBank
    activation: str
    pool: tuple[int, int] | None

    # Measured where learning does not help: see "An honest choice" in the guide.
    optimism = 0.02

    @property
    def initial_transform(self):
        """The patch transform T₀ before anything was learned; None is the identity."""
        return self.bank.initial

    @property
    def patch_dim(self):
        """Entries d of a patch."""
        return self.bank.directions.shape[1]

    @property
    def patch_shape(self):
        """Rows and columns of a patch."""
        return self.layer.patch

    @cached_property
    def features(self):
        """The filters under the present transform, a `FilterLayer`."""
        channels = self.data.images.shape[3]
        return self.bank.under(
            self.transform, self.layer, channels, self.activation, self.pool
        )

    def under(self, transform):
        """The same machine under another patch transform; None is that of round 0."""
        if transform is None:
            transform = self.initial_transform if self.start is None else self.start
        return replace(self, transform=transform)

    def design(self):
        """The features of the training images, a `Design`."""
        return Design(self.features, self.data, self.resources)

    def ridge_path(self, design):
        """The ridge regressions on the features, on the smaller side."""
        path = FeatureKernelPath if design.wide else feature_moments_path
        return path(design, self.alphas)

    def patch_agop(self, coef):
        """The patch AGOP of the machine with these coefficients."""
        return feature_agop(
            self.features,
            coef,
            self.data.images[self.agop_sample.rows],
            self.agop_sample.weights,
            self.resources,
        )

    def product(self, images, coef):
        """The features of images times coefficients, without the intercept."""
        return feature_product(self.features, images, coef, self.resources)


@dataclass(frozen=True, kw_only=True)
class StreamMachine(FeatureMachine):
    """A feature machine whose ridge is fitted to sums over rows that are gone.

    Attributes
    ----------
    data : TrainingSet
        Some of the rows, which stand for all where single rows are needed.
    moments : Moments
        The sums over all rows.
    """

    moments: Moments

    def ridge_path(self, design):
        """The ridge regressions from the sums."""
        return feature_moments_path(design, self.alphas, self.moments)


class Design:
    """Features of training images: held where they fit, computed by block where not.

    Workers compute the features of their own rows, and do not send them.

    Parameters
    ----------
    features : FilterLayer
        What makes them.
    data : TrainingSet
        The images, their targets and weights.
    resources : Resources
        Memory: half of it may hold features.
    """

    def __init__(self, features, data, resources):
        self.features, self.data, self.resources = features, data, resources
        self.n, self.width = len(data.images), math.prod(features.shape)
        self.rows = FeatureRows(features, data.images, self.n)
        size = self.n * self.width * resources.itemsize
        if resources.n_workers == 1 and size <= resources.memory // 2:
            self.rows = self.rows.held(resources)

    @property
    def wide(self):
        """Whether the rows are the smaller side.

        Features that can interpolate leave no degrees of freedom, of which the primal
        side would see nothing but rounding.
        """
        return self.width >= self.n - 1

    def kernel_matrix(self):
        """ΦΦᵀ, an ndarray of shape (n, n), in float64."""
        worker = self.resources.one_worker()
        tasks = ((rows, worker) for _, rows in self._filter_groups())
        matrix = sum_tasks(_outer_product, tasks, self.resources)
        upper = np.triu(matrix)
        return upper + np.triu(matrix, 1).T

    def combine(self, dual_coef):
        """Φᵀα, the features' coefficients of a kernel machine."""
        coef = np.empty((self.width, dual_coef.shape[1]))
        worker = self.resources.one_worker()
        columns, groups = zip(*self._filter_groups(), strict=True)
        tasks = ((rows, dual_coef, worker) for rows in groups)
        for column, part in zip(
            columns, self.resources.run(_combination, tasks), strict=True
        ):
            coef[column] = part
        return coef

    def moments(self):
        """The sums over all rows, `Moments`, in float64."""
        data, worker = self.data, self.resources.one_worker()
        tasks = (
            (self.rows[part], data.targets[part], data.weights[part], worker)
            for part in spans(self.n, self.resources, SUM_TASKS)
        )
        return sum_tasks(_moments, tasks, self.resources)

    def map_rows(self, function):
        """Yield (slice of rows, what a function makes of their features).

        Parameters
        ----------
        function : callable
            ``function(n, blocks, device)`` of the number of rows and an iterable of
            (slice of them, float64 tensor); picklable.
        """
        worker = self.resources.one_worker()
        parts = spans(self.n, self.resources, SUM_TASKS)
        tasks = ((self.rows[part], function, worker) for part in parts)
        yield from zip(parts, self.resources.run(_map_blocks, tasks), strict=True)

    def _filter_groups(self):
        """Pairs (indices of columns, all rows' features of some filters)."""
        if self.rows.values is not None:
            return [(np.arange(self.width), self.rows)]
        n_filters, cells = self.features.n_maps, math.prod(self.features.grid)
        worker = self.resources.one_worker()
        size = self.n * cells * self.resources.itemsize
        largest = max(1, worker.memory // 4 // size)
        columns = np.arange(self.width).reshape(cells, n_filters)
        return [
            (columns[:, group].ravel(), self.rows.only(group))
            for group in spans(n_filters, self.resources, SUM_TASKS, largest)
        ]


@dataclass(frozen=True)
class FeatureRows:
    """Rows of features: values, or images and what makes features of them.

    Attributes
    ----------
    features : FilterLayer
        What makes them.
    images : ndarray, StoredImages or FeatureMaps of shape (n, h, w, c)
        The images.
    n_whole : int
        Of how many images these are a part, whose features are made alike.
    values : ndarray of shape (n, D) or None
        The features where they are held.
    """

    features: FilterLayer
    images: object
    n_whole: int
    values: np.ndarray | None = None

    def __len__(self):
        return len(self.images)

    def __getitem__(self, part):
        """The rows of a slice."""
        values = None if self.values is None else self.values[part]
        return replace(self, images=self.images[part], values=values)

    def only(self, group):
        """The columns of a slice of the filters."""
        return replace(self, features=self.features.only(group))

    def held(self, resources):
        """The same rows with their values."""
        return replace(self, values=self.compute(resources))

    def compute(self, resources):
        """The values, an ndarray of shape (n, D)."""
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
    """The `Moments` of some rows."""
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
    return Moments(
        weight=float(total),
        mean=(centre + sums / total).cpu().numpy(),
        target_mean=target_mean,
        gram=gram.cpu().numpy(),
        cross=cross.cpu().numpy(),
        spread=weights @ centred_targets**2,
        largest=largest,
    )


@halving_memory
def _map_blocks(rows, function, resources):
    """What a function makes of the blocks of some rows."""
    blocks = ((part, block.double()) for part, block in rows.blocks(resources))
    return function(len(rows), blocks, resources.device)


@halving_memory
def _outer_product(rows, resources):
    """ΦΦᵀ of some columns, its upper triangle, an ndarray of shape (n, n)."""
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
    """Φᵀα of some columns."""
    values = torch.as_tensor(rows.compute(resources), device=resources.device)
    dual = torch.as_tensor(dual_coef, device=resources.device)
    parts = balanced_blocks(slice(0, values.shape[1]), _PRODUCT_ROWS)
    products = [values[:, part].double().T @ dual for part in parts]
    return torch.cat(products).cpu().numpy()


class FeatureKernelPath(RidgePath):
    """The ridge regressions from the kernel matrix of the features.

    Parameters
    ----------
    design : Design
        The features.
    alphas : ndarray of shape (n_alphas,)
        The ridges.
    """

    def __init__(self, design, alphas):
        self._design = design
        data = design.data
        super().__init__(
            design.kernel_matrix(),
            data.targets,
            data.weights,
            alphas,
            design.resources.device,
            counts=data.counts,
        )

    def _given(self, coef):
        """Coefficients for the features."""
        return self._design.combine(super()._given(coef))


def feature_moments_path(design, alphas, moments=None):
    """The ridge regressions from moments of features; None are those of the design."""
    data = design.data
    return PrimalRidgePath(
        design.moments() if moments is None else moments,
        design.map_rows,
        data.targets,
        data.weights,
        alphas,
        design.resources.device,
        counts=data.counts,
    )


def feature_product(features, images, coef, resources):
    """Features of images times coefficients, block by block.

    Parameters
    ----------
    features : FilterLayer
        What makes the features.
    images : ndarray, StoredImages or FeatureMaps of shape (n, h, w, c)
        The images.
    coef : ndarray of shape (D, n_outputs)
        The coefficients.
    resources : Resources
        Device, precision, memory, workers.

    Returns
    -------
    ndarray of shape (n, n_outputs), float64
    """
    worker = resources.one_worker()
    rows = FeatureRows(features, images, len(images))
    tasks = ((rows[part], coef, worker) for part in spans(len(images), resources))
    return np.concatenate(list(resources.run(_product, tasks)))


@halving_memory
def _product(rows, coef, resources):
    """Φβ of some rows."""
    coef = torch.as_tensor(coef, device=resources.device)
    products = np.empty((len(rows), coef.shape[1]))
    for part, block in rows.blocks(resources):
        products[part] = (block.double() @ coef).cpu().numpy()
    return products


def feature_agop(features, coef, images, weights, resources):
    """The patch AGOP of a linear machine on pooled features.

    Parameters
    ----------
    features : FilterLayer
        What makes the features.
    coef : ndarray of shape (D, n_outputs)
        The coefficients β.
    images : ndarray, StoredImages or FeatureMaps of shape (m, h, w, c)
        The images z at which gradients are taken.
    weights : ndarray of shape (m,)
        The weights ω.
    resources : Resources
        Device, precision, memory.

    Returns
    -------
    ndarray of shape (d, d), float64

    Raises
    ------
    ValueError
        If it overflows.
    """
    worker = resources.one_worker()
    tasks = (
        (features, coef, images[part], weights[part], worker)
        for part in spans(len(images), resources, SUM_TASKS)
    )
    total = sum_tasks(_activity, tasks, resources)
    filters, _ = features.affine(images.shape[3])
    second_moment = torch.from_numpy(total)[None] / weights.sum()
    agop = agop_from_outputs(torch.from_numpy(filters), second_moment)[0].numpy()
    if not np.isfinite(agop).all():
        raise ValueError(
            f"the patch AGOP overflows float64: X has values up to "
            f"{largest_value(images):.3g} and the coefficients up to "
            f"{largest_value(coef):.3g}; scale the images, for instance to [0, 1], "
            "and the targets."
        )
    return (agop + agop.T) / 2


@halving_memory
def _activity(features, coef, images, weights, resources):
    """S of some images, but for the sum of their weights."""
    rows, columns = features.cells
    filters, biases = map(resources.tensor, features.affine(images.shape[3]))
    coef = torch.as_tensor(coef, device=resources.device)
    coef = coef.reshape(len(rows), len(columns), features.n_maps, -1)
    total = coef.new_zeros((features.n_maps,) * 2)
    numbers = 4 * features.layer.n_locations * features.n_maps
    largest = max(1, resources.memory // 4 // (resources.itemsize * numbers))
    for part in image_blocks(images, largest):
        maps = convolve(resources.tensor(images[part]), features.layer, filters, biases)
        active = _active(maps, features.activation)
        roots = resources.tensor(np.sqrt(weights[part]))[:, None]
        # Near a mean of 0 a power is so steep that float32 would lose the squares.
        slopes = features.slopes(_means(maps, features).double())
        steepest = float(slopes.max()) or 1.0
        slopes = (slopes / steepest).to(maps) * roots[:, None, None]
        for row, height in enumerate(rows):
            for column, width in enumerate(columns):
                cell = active[:, height, width] * slopes[:, row, column, None, None]
                cell = cell.flatten(0, 2)
                beta = coef[row, column] * (steepest / _area(height, width))
                total += (cell.T @ cell) * (beta @ beta.T)
    return total.cpu().numpy()


def _means(maps, features):
    """The means that responses give, before their power."""
    maps = maps.relu() if features.activation == "relu" else maps
    return average_pool(maps, features.grid)


def _active(maps, activation):
    """The derivative of the activation at every response."""
    return torch.ones_like(maps) if activation == "identity" else (maps > 0).to(maps)


def _area(height, width):
    """Locations of a cell."""
    return (height.stop - height.start) * (width.stop - width.start)

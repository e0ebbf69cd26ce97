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

from .cnfa import agop_from_outputs
from .features import average_pool, convolve
from .filters import FilterBank
from .images import Layer, balanced_blocks
from .machine import Machine
from .ridge import Moments, PrimalRidgePath, RidgePath
from .tiles import compute_features, image_blocks

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
    initial_transform : ndarray of shape (d, d) or None
        The patch transform of round 0; None is the identity.
    """

    layer: Layer
    bank: FilterBank
    activation: str
    pool: tuple[int, int] | None
    initial_transform: np.ndarray | None = None

    # Measured where learning does not help: see "An honest choice" in the guide.
    optimism = 0.02

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
        return replace(
            self,
            transform=self.initial_transform if transform is None else transform,
        )

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


class Design:
    """Features of training images: held where they fit, computed by block where not.

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
        size = self.n * self.width * resources.itemsize
        self._held = self._compute(features, data.images) if self._fits(size) else None

    @property
    def wide(self):
        """Whether the rows are the smaller side.

        Features that can interpolate leave no degrees of freedom, of which the primal
        side would see nothing but rounding.
        """
        return self.width >= self.n - 1

    def _fits(self, size):
        return size <= self.resources.memory // 2

    def _compute(self, features, images):
        return compute_features(features, images, self.resources).reshape(
            len(images), -1
        )

    def row_blocks(self):
        """Yield (slice of rows, their features)."""
        size = self.width * self.resources.itemsize
        largest = max(1, self.resources.memory // 4 // size)
        for rows in image_blocks(self.data.images, min(largest, _PRODUCT_ROWS)):
            if self._held is not None:
                yield rows, self._held[rows]
            else:
                yield rows, self._compute(self.features, self.data.images[rows])

    def filter_groups(self):
        """Yield (indices of columns, all rows' features of some filters)."""
        n_filters, cells = self.features.n_maps, math.prod(self.features.grid)
        if self._held is not None:
            yield np.arange(self.width), self._held
            return
        size = self.n * cells * self.resources.itemsize
        largest = max(1, self.resources.memory // 4 // size)
        columns = np.arange(self.width).reshape(cells, n_filters)
        for group in balanced_blocks(slice(0, n_filters), largest):
            part = self.features.only(group)
            yield columns[:, group].ravel(), self._compute(part, self.data.images)

    def kernel_matrix(self):
        """ΦΦᵀ, an ndarray of shape (n, n), in float64 where groups are added up."""
        matrix = np.zeros((self.n, self.n))
        for _, group in self.filter_groups():
            tensor = self._tensor(group)
            for rows in balanced_blocks(slice(0, self.n), _PRODUCT_ROWS):
                product = tensor[: rows.stop] @ tensor[rows].T
                matrix[: rows.stop, rows] += product.double().cpu().numpy()
        upper = np.triu(matrix)
        return upper + np.triu(matrix, 1).T

    def combine(self, dual_coef):
        """Φᵀα, the features' coefficients of a kernel machine."""
        coef = np.empty((self.width, dual_coef.shape[1]))
        dual = torch.as_tensor(dual_coef, device=self.resources.device)
        for columns, group in self.filter_groups():
            for rows in balanced_blocks(slice(0, len(columns)), _PRODUCT_ROWS):
                part = self._tensor(group[:, rows]).double()
                coef[columns[rows]] = (part.T @ dual).cpu().numpy()
        return coef

    def moments(self):
        """The sums over all rows, `Moments`, in float64 where blocks are added up."""
        data, width = self.data, self.width
        device = self.resources.device
        gram = torch.zeros((width, width), dtype=torch.float64, device=device)
        cross = torch.zeros((width, data.targets.shape[1]), **_double(gram))
        sums = torch.zeros(width, **_double(gram))
        centre, largest = None, 0.0
        total = data.weights.sum()
        target_mean = data.weights @ data.targets / total
        for rows, block in self.row_blocks():
            block = self._tensor(block)
            largest = max(largest, float(block.double().square().sum(1).max()))
            # Near the mean, little is lost where squares of the mean are taken off.
            centre = block.mean(0) if centre is None else centre
            weights = torch.as_tensor(data.weights[rows]).to(block)[:, None]
            block = (block - centre) * weights.sqrt()
            for columns in balanced_blocks(slice(0, width), _PRODUCT_ROWS):
                product = block[:, : columns.stop].T @ block[:, columns]
                gram[: columns.stop, columns] += product
            block = block.double() * weights.double().sqrt()
            targets = torch.as_tensor(data.targets[rows] - target_mean, **_double(gram))
            cross += block.T @ targets
            sums += block.sum(0)
        gram = gram.triu() + gram.triu(1).T
        gram -= torch.outer(sums, sums) / total
        return Moments(
            gram.cpu().numpy(),
            cross.cpu().numpy(),
            (centre.double() + sums / total).cpu().numpy(),
            largest,
        )

    def _tensor(self, array):
        return torch.as_tensor(array, device=self.resources.device)


def _double(like):
    """Keywords of a float64 tensor where another one is."""
    return {"dtype": torch.float64, "device": like.device}


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


def feature_moments_path(design, alphas):
    """The ridge regressions from the moments of the features."""
    data = design.data
    return PrimalRidgePath(
        design.moments(),
        design.row_blocks,
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
    images : ndarray or FeatureMaps of shape (n, h, w, c)
        The images.
    coef : ndarray of shape (D, n_outputs)
        The coefficients.
    resources : Resources
        Device, precision, memory, workers.

    Returns
    -------
    ndarray of shape (n, n_outputs), float64
    """
    size = len(coef) * (resources.itemsize + 8)
    largest = max(1, resources.memory // 4 // size)
    return np.concatenate(
        [
            compute_features(features, images[rows], resources)
            .reshape(rows.stop - rows.start, -1)
            .astype(np.float64, copy=False)
            @ coef
            for rows in image_blocks(images, largest)
        ]
    )


def feature_agop(features, coef, images, weights, resources):
    """The patch AGOP of a linear machine on pooled features.

    Parameters
    ----------
    features : FilterLayer
        What makes the features.
    coef : ndarray of shape (D, n_outputs)
        The coefficients β.
    images : ndarray or FeatureMaps of shape (m, h, w, c)
        The images z at which gradients are taken.
    weights : ndarray of shape (m,)
        The weights ω.
    resources : Resources
        Device, precision, memory.

    Returns
    -------
    ndarray of shape (d, d), float64
    """
    rows, columns = features.cells
    filters, biases = features.affine(images.shape[3])
    coef = torch.as_tensor(coef, device=resources.device)
    coef = coef.reshape(len(rows), len(columns), features.n_maps, -1)
    total = torch.zeros((features.n_maps,) * 2, **_double(coef))
    numbers = 4 * features.layer.n_locations * features.n_maps
    largest = max(1, resources.memory // 4 // (resources.itemsize * numbers))
    for part in image_blocks(images, largest):
        block = resources.tensor(images[part])
        maps = convolve(
            block, features.layer, *map(resources.tensor, (filters, biases))
        )
        active = _active(maps, features.activation)
        roots = resources.tensor(np.sqrt(weights[part]))[:, None]
        slopes = features.slopes(_means(maps, features)) * roots[:, None, None]
        for row, height in enumerate(rows):
            for column, width in enumerate(columns):
                cell = active[:, height, width] * slopes[:, row, column, None, None]
                cell = cell.flatten(0, 2)
                beta = coef[row, column] / _area(height, width)
                total += (cell.T @ cell) * (beta @ beta.T)
    second_moment = total[None] / weights.sum()
    agop = agop_from_outputs(torch.from_numpy(filters), second_moment)[0].numpy()
    return (agop + agop.T) / 2


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

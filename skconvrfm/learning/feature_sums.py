"""Ridge regression on features: rows of features, sums over them, their products.

Features are held where they fit in memory, and else computed anew, block by block, at
every pass. Workers compute the features of their own rows, and do not send them.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from ..compute.blocks import balanced_blocks, byte_blocks, image_blocks, mirror_upper
from ..compute.images import take
from ..compute.parallel import SUM_TASKS, halving_memory, spans, sum_tasks
from ..compute.progress import track
from ..features.maps import FilterLayer, Pixels, feature_rows
from ..kernels.whole import RadialKernel
from .primal import Moments

# Most rows, or columns, of a product; of all rows with all half are left out.
PRODUCT_ROWS = 1024
_STRIP_BYTES = 2**22  # of a matrix that are corrected at once
_CENTRE_NUMBERS = 2**20  # of the training rows that a readout works on at once


class Passes:
    """Passes over the rows of features of training images.

    ``rows`` have a length and a ``width``, slices, and ``blocks(resources, numbers)``.
    """

    def __init__(self, rows, data, resources):
        self.rows, self.data, self.resources = rows, data, resources
        self.n, self.width, self._worker = len(rows), rows.width, resources.one_worker()

    def moments(self, some=None):
        """Return the sums over all or some rows, `Moments`, in float64."""
        columns = self.rows, self.data.targets, self.data.weights
        parts = self._parts(some)
        tasks = (
            (*(c[part] for c in columns), self._worker)
            for part in track(parts, "sums over rows")
        )
        moments = sum_tasks(_moments, tasks, self.resources)
        return moments.with_scatter(
            self.data.scatter[slice(None) if some is None else some]
        )

    basis = None  # V of features K V of a kernel, of which they are a part

    def coefficients(self, coef):
        """Return the model's coefficients from those of the features, the same here."""
        return coef

    def unexplained(self):
        """Return k(x, x) less the squared length of the features of every row."""
        return 0.0

    def map_rows(self, function, some=None):
        """Yield (rows, ``function(n, blocks, device)`` of their features)."""
        return self.map_parts((part, function) for part in self._parts(some))

    def map_parts(self, pairs):
        """Yield the same of pairs (rows, function of them)."""
        pairs = list(pairs)
        tasks = (
            (self.rows[part], function, self._worker)
            for part, function in track(pairs, "rows left out")
        )
        results = self.resources.run(_map_blocks, tasks)
        yield from zip((part for part, _ in pairs), results, strict=True)

    def _parts(self, some):
        """Return the parts of all rows (None) or of some, one per task."""
        parts = spans(self.n if some is None else len(some), self.resources, SUM_TASKS)
        return parts if some is None else [some[part] for part in parts]


class Design(Passes):
    """Features of training images, held where half of the memory is enough."""

    def __init__(self, features, data, resources, values=None):
        rows = FeatureRows(features, data.images, len(data.images), values)
        fits = len(rows) * rows.width * resources.itemsize <= resources.memory // 2
        if values is None and resources.n_workers == 1 and fits:
            rows = replace(rows, values=rows.compute(resources))
        super().__init__(rows, data, resources)

    @property
    def wide(self):
        """True if the rows are the smaller side."""
        # Features that can interpolate leave no degrees of freedom, of which the primal
        # side would see nothing but rounding.
        return self.width >= self.n - 1

    def kernel_matrix(self):
        """Return ΦΦᵀ, an ndarray of shape (n, n), float64."""
        tasks = ((columns, self._worker) for columns in self._column_groups())
        matrix = sum_tasks(_outer_product, tasks, self.resources)
        mirror_upper(matrix)
        return matrix

    def combine(self, dual_coef):
        """Return Φᵀα, the features' coefficients of a kernel machine."""
        parts = spans(self.n, self.resources, SUM_TASKS)
        tasks = ((self.rows[part], dual_coef[part], self._worker) for part in parts)
        return sum_tasks(_combination, tasks, self.resources)

    def _column_groups(self):
        """Return the rows with some of their columns each, as many as fit."""
        if self.rows.values is not None:
            return [self.rows]
        features = self.rows.features
        n_filters, (n_rows, n_columns) = features.n_maps, features.grid
        row = self.n * n_columns * self.resources.itemsize  # of the grid, of a filter
        fitting = self._worker.memory // 4 // row  # rows of filters
        if fitting >= n_rows:
            groups = spans(n_filters, self.resources, SUM_TASKS, fitting // n_rows)
            return [self.rows.only(group) for group in groups]
        filters = balanced_blocks(slice(0, n_filters), fitting)
        bands = balanced_blocks(slice(0, n_rows), fitting * len(filters) // n_filters)
        return [self.rows.only(group, band) for group in filters for band in bands]


class ImageRows:
    """Base of rows of features: their ``images``, and ``values`` where they are held.

    Subclasses are dataclasses.
    """

    def __len__(self):
        return len(self.images)

    def __getitem__(self, part):
        """Return the rows of a slice, or of an array of integers."""
        values = None if self.values is None else self.values[part]
        images = (
            self.images[part] if isinstance(part, slice) else take(self.images, part)
        )
        return replace(self, images=images, values=values)


@dataclass(frozen=True)
class FeatureRows(ImageRows):
    """Rows of features: values, or images and the layer that makes features of them."""

    features: FilterLayer | Pixels  # the top layer
    images: object  # (n, h, w, c)
    n_whole: int  # images of which these are a part, computed alike
    values: np.ndarray | None = None  # (n, D), where they are held
    band: slice | None = None  # rows of the features that are taken; None is all

    @property
    def width(self):
        """Number of features."""
        return math.prod(self.features.shape)

    def only(self, group, band=None):
        """Return the columns of a slice of the filters, at a slice of their rows."""
        return replace(self, features=self.features.only(group), band=band)

    def compute(self, resources):
        """Return the values, an ndarray of shape (n, D)."""
        if self.values is not None:
            return self.values
        where = self.features, self.images, self.n_whole, self.band
        values = feature_rows(*where, resources)
        return values.reshape(len(values), -1)

    def blocks(self, resources, numbers=0):
        """Yield (slice of rows, their values as a tensor), as much as fits.

        ``numbers`` in float64 are needed for each row, beside three copies of it.
        """
        numbers = 8 * (3 * self.width + numbers)
        largest = min(resources.memory // 4 // numbers, PRODUCT_ROWS)
        for part in track(image_blocks(self.images, largest), "rows"):
            values = self[part].compute(resources)
            yield part, torch.as_tensor(values, device=resources.device)


@halving_memory
def _moments(rows, targets, weights, resources):
    """Return the `Moments` of some rows."""
    width, total = rows.width, weights.sum()
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
        for columns in balanced_blocks(slice(0, width), PRODUCT_ROWS):
            left, right = block[:, : columns.stop], weighted[:, columns]
            gram[: columns.stop, columns].addmm_(left.T, right)
        cross += weighted.T @ torch.as_tensor(centred_targets[part], **options)
        sums += weighted.sum(0)
    arrays = centre + sums / total, gram, cross, sums
    mean, gram, cross, sums = (array.cpu().numpy() for array in arrays)
    mirror_upper(gram)  # one triangle was added up
    for part in byte_blocks(gram, _STRIP_BYTES):
        gram[part] -= np.outer(sums[part] / total, sums)
    spread = weights @ centred_targets**2
    means = mean, target_mean
    return Moments(len(rows), float(total), *means, gram, cross, spread, largest)


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
    largest = min(resources.memory // 16 // (8 * len(rows)), PRODUCT_ROWS)
    for columns in balanced_blocks(slice(0, values.shape[1]), largest):
        block = values[:, columns].double()
        for part in image_blocks(rows, largest):
            product = block[: part.stop] @ block[part].T
            matrix[: part.stop, part] += product.cpu().numpy()
    return matrix


@halving_memory
def _combination(rows, dual_coef, resources):
    """Return Φᵀα of some rows."""
    dual = torch.as_tensor(dual_coef, device=resources.device)
    total = dual.new_zeros((rows.width, dual.shape[1]))
    for part, block in rows.blocks(resources):
        total.addmm_(block.double().T, dual[part])
    return total.cpu().numpy()


@dataclass(frozen=True)
class LinearReadout:
    """Linear outputs of features, without the intercept."""

    coef: np.ndarray  # β, (D, n_outputs)
    output_numbers = 0  # that the outputs of one row take

    @property
    def n_outputs(self):
        """Number of outputs."""
        return self.coef.shape[1]

    @property
    def numbers(self):
        """Numbers that the gradients of one row take."""
        return 4 * self.coef.size

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

    output_numbers = 6 * PRODUCT_ROWS  # that the outputs of one row take

    @property
    def n_outputs(self):
        """Number of outputs."""
        return self.coef.shape[1]

    @property
    def numbers(self):
        """Numbers that the gradients of one row take."""
        n_centres, width = self.centres.shape
        return n_centres + self.coef.shape[1] * (4 * width + 2 * n_centres)

    def __call__(self, rows):
        """Return the outputs of float64 rows, a Tensor (m, n_outputs)."""
        parts = self._parts(rows.device)
        return sum(self.kernel.value(rows, centres) @ coef for centres, coef in parts)

    def gradients(self, rows):
        """Return the gradients of the outputs, a Tensor (m, n_outputs, D)."""
        parts = self._parts(rows.device)
        each = [self.kernel.pullback_weights(rows, centres) for centres, _ in parts]
        coef = torch.as_tensor(self.coef, device=rows.device)
        weights = torch.hstack(each)[:, None] * coef.T  # (m, n_outputs, n)
        gradients = weights.sum(2, keepdim=True) * -rows[:, None]
        # All centres at once, so that gradients, which are long, are added to once.
        largest = max(1, _CENTRE_NUMBERS // len(self.centres))
        for part in balanced_blocks(slice(0, rows.shape[1]), largest):
            centres = torch.as_tensor(self.centres[:, part], device=rows.device)
            product = weights.flatten(0, 1) @ centres.double()
            gradients[..., part] += product.reshape(*weights.shape[:2], -1)
        return gradients

    def _parts(self, device):
        largest = min(_CENTRE_NUMBERS // self.centres.shape[1], PRODUCT_ROWS)
        for part in image_blocks(self.centres, largest):
            centres = torch.as_tensor(self.centres[part], device=device).double()
            yield centres, torch.as_tensor(self.coef[part], device=device)


def readout_outputs(features, images, readout, resources):
    """Return the outputs of a readout for images, float64 (n, n_outputs), by blocks."""
    worker = resources.one_worker()
    rows = FeatureRows(features, images, len(images))
    parts = track(spans(len(images), resources), "outputs")
    tasks = ((rows[part], readout, worker) for part in parts)
    return np.concatenate(list(resources.run(_outputs, tasks)))


@halving_memory
def _outputs(rows, readout, resources):
    """Return the outputs for some rows."""
    outputs = np.empty((len(rows), readout.n_outputs))
    for part, block in rows.blocks(resources, readout.output_numbers):
        outputs[part] = readout(block.double()).cpu().numpy()
    return outputs

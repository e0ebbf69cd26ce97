r"""Filters that carry a patch metric: drawn from it, or made of patches.

A bank of K filters is drawn once, and takes the metric :math:`M = T T^\top` of every
round in turn,

.. math:: w_k = T \xi_k, \qquad \xi_k \sim N(0, I) \quad\text{or}\quad \xi_k =
          \sqrt d \, \frac{T_0 (v_k - \bar v)}{\| T_0 (v_k - \bar v) \|}

for training patches :math:`v_k` with the mean :math:`\bar v`, so that rounds differ by
what was learned, and not by chance. :math:`T_0` is the transform of round 0: whitening,
:math:`(\Sigma + 0.1\, \bar\sigma^2 I)^{-1/2}` with the covariance Σ of patches and its
mean variance, or the identity. Whitened patches have the covariance of ξ, so that
filters of either kind have that of the metric. Responses to whitened patches are those
to :math:`v - \bar v`.

Source: N(0, M) is Deep ConvRFM of Beaglehole et al., arXiv:2309.00570; whitened patches
as filters are those of Coates, Lee and Ng (2011).
"""

import math
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
import torch

from ..compute.blocks import balanced_blocks, image_blocks, largest_value
from ..compute.images import extract_patches, take
from .maps import load_rows, read

SHRINKAGE = 0.1  # of the mean variance, added to each direction that is whitened
# Added to means that are raised to a power, in deviations of responses: enough that
# rounding is not magnified, little enough not to matter otherwise.
_OFFSET = 1e-2
# Images that settle the moments of patches, and operations that may go into them.
_MOMENT_IMAGES = 2000
_LEAST_MOMENT_IMAGES = 100
_MOMENT_OPERATIONS = 4e11
_BLOCK_NUMBERS = 2**18  # of the patches that are worked on at once, in float64
_MOST_DRAWN_FROM = 2**26  # numbers of the patches of an image of which one is drawn


def draw_filters(transform, n_filters, rng):
    """Return filters w = T ξ, an ndarray (n_filters, d), for a symmetric transform."""
    return rng.standard_normal((n_filters, len(transform))) @ transform


@dataclass(frozen=True)
class PatchMoments:
    """Mean and covariance of patches."""

    mean: np.ndarray  # (d,), v̄
    covariance: np.ndarray  # (d, d), Σ
    floor: float | None = None  # ε of normalised patches; None takes them as they are

    def with_mirrors(self, entries):
        """Return the moments of patches and their mirrors, which have these entries."""
        mean, shift = self.mean[entries], (self.mean - self.mean[entries]) / 2
        covariance = (self.covariance + self.covariance[np.ix_(entries, entries)]) / 2
        return replace(
            self, mean=mean + shift, covariance=covariance + np.outer(shift, shift)
        )

    def whitening(self, shrinkage=SHRINKAGE):
        """Return the symmetric transform T₀, the identity for equal patches."""
        variances, vectors = np.linalg.eigh(self.covariance)
        mean_variance = variances.mean()
        if not mean_variance > 0:
            return np.eye(len(variances))
        shrunk = variances.clip(min=0) + shrinkage * mean_variance
        return (vectors / np.sqrt(shrunk)) @ vectors.T


def drawn_moments(images, layer, lineup, resources, normalize=None):
    """Return the `PatchMoments` of as many drawn images as are affordable.

    Patches are normalised with ε in units of their mean variance, but for None.
    """
    patch_dim = images.shape[3] * math.prod(layer.patch)
    affordable = _MOMENT_OPERATIONS / (2 * layer.n_locations * patch_dim**2)
    n_draws = int(np.clip(affordable, _LEAST_MOMENT_IMAGES, _MOMENT_IMAGES))
    sample = lineup.draw(n_draws)
    step = math.ceil(len(sample.rows) / affordable)
    floor = None
    if normalize is not None:
        floor = normalize * mean_variance(images, layer, sample, resources, step)
    return patch_moments(images, layer, sample, resources, step, floor)


def mean_variance(images, layer, sample, resources, step=1):
    """Return the mean variance of the entries of a patch, 1 where all are constant."""
    total = sums = 0.0
    for group, source in _patch_sources(images, sample.rows, layer, resources):
        for part, _, patches in source.blocks(step):
            weights = patches.new_tensor(sample.weights[group][part])
            variances = patches.var(2, correction=0)
            sums += float((variances * weights).sum())
            total += float(weights.sum()) * variances[..., 0].numel()
    return sums / total or 1.0


def patch_moments(images, layer, sample, resources, step=1, floor=None):
    """Return the `PatchMoments` of the images of a `Sample`, with its weights.

    Every ``step``-th row of locations counts. ``floor`` is that of normalised patches.
    """
    total = sums = 0.0
    d = images.shape[3] * math.prod(layer.patch)
    options = {"dtype": torch.float64, "device": resources.device}
    products, centre = torch.zeros((d, d), **options), None
    weights = torch.as_tensor(sample.weights, **options)
    where = images, sample.rows, layer, resources, floor
    for group, source in _patch_sources(*where):
        for part, _, patches in source.blocks(step):
            # In float32 a product over all patches would lose the small variances,
            # which whitening magnifies.
            columns = patches.permute(2, 0, 1, 3).reshape(d, -1)
            # Near the mean, little is lost where squares of the mean are taken off.
            centre = columns.mean(1) if centre is None else centre
            roots = weights[group][part].sqrt()
            roots = roots.repeat(columns.shape[1] // len(roots))
            # Not in its place: patches may be views of the images.
            columns = (columns - centre[:, None]).mul_(roots)
            sums = sums + columns @ roots
            products.addmm_(columns, columns.T)
            total += float(roots @ roots)
    offset = sums / total
    covariance = products / total - torch.outer(offset, offset)
    if not torch.isfinite(covariance).all():
        raise ValueError(
            "the covariance of patches overflows float64: X has values up to "
            f"{largest_value(images):.3g}; scale the images, for instance to [0, 1]."
        )
    mean = centre + offset
    return PatchMoments(mean.cpu().numpy(), covariance.cpu().numpy(), floor)


def draw_patches(images, layer, rows, moments, rng, resources):
    """Return a patch of each of ``rows`` less the mean, an ndarray (len(rows), d)."""
    centre = moments.mean
    # In proportion to its squared distance from the centre: much may be blank.
    heights = rng.uniform(size=len(rows))
    distinct, image = np.unique(rows, return_inverse=True)
    step = math.ceil(layer.n_locations * len(centre) / _MOST_DRAWN_FROM)
    every = slice(0, layer.locations[1])
    columns = balanced_blocks(every, _BLOCK_NUMBERS // len(centre))
    drawn = np.empty((len(rows), len(centre)))
    where = images, distinct, layer, resources, moments.floor
    for group, source in _patch_sources(*where):
        sums = np.zeros((group.stop - group.start, layer.locations[0]))
        for part, at, patches in source.blocks(step):
            sums[part, at] += _squared_lengths(patches, centre).sum(1).T
        for index in np.flatnonzero((group.start <= image) & (image < group.stop)):
            at = image[index] - group.start
            row, height = _find(sums[at], heights[index] * sums[at].sum())
            one = slice(at, at + 1)
            lengths = [
                _squared_lengths(source.patches(one, row, part), centre)
                for part in columns
            ]
            column, _ = _find(np.concatenate(lengths, 1).ravel(), height)
            patch = source.patches(one, row, slice(column, column + 1))
            drawn[index] = patch.flatten().cpu().numpy() - centre
    return drawn


def _squared_lengths(patches, centre):
    """Return squared distances of patches (..., d, n) from a centre, an ndarray."""
    return ((patches.cpu().numpy() - centre[:, None]) ** 2).sum(-2)


def _find(lengths, height):
    """Return the index at which sums of lengths pass a height, and the rest of it."""
    sums = lengths.cumsum()
    # Rounding must not lead into the zeros at the end.
    index = min(int((sums <= height).sum()), int(np.searchsorted(sums, sums[-1])))
    return index, height - (sums[index - 1] if index else 0)


def _patch_sources(images, rows, layer, resources, floor=None):
    """Yield (slice, the `_PatchSource` of these rows) for some rows of the images."""
    size = 2 * resources.itemsize * math.prod(images.shape[1:])
    largest = resources.memory // 8 // size
    for part in image_blocks(rows, largest):
        chosen, fits = take(images, rows[part]), largest > 0
        yield part, _PatchSource(chosen, layer, resources, fits, floor)


class _PatchSource:
    """Patches of some images, held or read by bands of rows where memory is short."""

    def __init__(self, images, layer, resources, fits, floor):
        if not fits:
            images = read(images)
        self._images, self._layer, self._resources = images, layer, resources
        self._floor = floor
        self._held = load_rows(images, None, resources) if fits else None

    def patches(self, part, row, columns):
        """Return float64 patches (1, columns, d, n) of a slice of the images."""
        layer, (rows, across) = self._layer.part(slice(row, row + 1), columns)
        if self._held is not None:
            pixels = self._held[part, rows]
        else:
            pixels = load_rows(self._images[part], rows, self._resources)
        return self._normalized(extract_patches(pixels[:, :, across].double(), layer))

    def _normalized(self, patches):
        """Return patches (..., d, n), normalised where there is a floor."""
        if self._floor is None:
            return patches
        patches = patches - patches.mean(-2, keepdim=True)
        variances = patches.square().mean(-2, keepdim=True)
        return patches / (variances + self._floor).sqrt()

    def blocks(self, step):
        """Yield (slice of images, slice of rows, float64 patches) of all locations.

        Every ``step``-th row of locations is taken; patches are (rows, columns, d, n).
        """
        columns = self._layer.locations[1]
        d = self._images.shape[3] * math.prod(self._layer.patch)
        largest = _BLOCK_NUMBERS // d  # locations
        for band, pixels in self._bands():
            layer, _ = self._layer.part(band)
            rows = balanced_blocks(slice(0, layer.locations[0]), largest // columns)
            if step > 1:
                first = (step // 2 - band.start) % step
                rows = [slice(r, r + 1) for r in range(first, layer.locations[0], step)]
            for part, at, across in product(
                balanced_blocks(slice(0, len(pixels)), largest // layer.n_locations),
                rows,
                balanced_blocks(slice(0, columns), largest),
            ):
                some, (y, x) = layer.part(at, across)
                block = pixels[part, y, x].double()
                at = slice(band.start + at.start, band.start + at.stop)
                yield part, at, self._normalized(extract_patches(block, some))

    def _bands(self):
        """Yield (slice of rows of locations, the pixels that they see)."""
        every = slice(0, self._layer.locations[0])
        if self._held is not None:
            yield every, self._held
            return
        numbers = 3 * math.prod(self._images.shape[2:])
        memory = self._resources.memory // 8
        largest = memory // (self._resources.itemsize * numbers * len(self._images))
        for band in balanced_blocks(every, largest):
            _, (rows, _) = self._layer.part(band)
            yield band, load_rows(self._images, rows, self._resources)


def to_one_length(vectors):
    """Return vectors of the length sqrt(d) of a normal one, but for those of zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors * (math.sqrt(vectors.shape[1]) / np.where(lengths > 0, lengths, 1))


@dataclass(frozen=True)
class FilterBank:
    """Filters of a layer before they take a metric."""

    directions: np.ndarray  # (K, d), the directions ξ
    unit_biases: np.ndarray  # (K,), standard normal
    moments: PatchMoments  # for threshold, centre and offsets
    initial: np.ndarray | None  # T₀ of v - v̄; None is the identity of v

    def under(self, transform, features):
        """Return the filters of bound features under a transform, a `FilterLayer`."""
        filters, channels = self.directions, features.image_shape_[2]
        if transform is not None:
            filters = filters @ transform
        if self.moments.floor is not None:  # of patches less their mean
            filters = filters - filters.mean(1, keepdims=True)
        biases = float(features.bias) * self.unit_biases
        if self.initial is not None:
            biases = biases - filters @ self.moments.mean / math.sqrt(channels)
        variances = ((filters @ self.moments.covariance) * filters).sum(1)
        deviations = np.sqrt(variances.clip(min=0) / channels)
        biases = biases - float(features.threshold) * deviations
        floor = self.moments.floor
        return features.with_filters(filters, biases, _OFFSET * deviations, floor)

    def take(self, filters):
        """Return the bank of some of the filters."""
        draws = self.directions[filters], self.unit_biases[filters]
        return FilterBank(*draws, self.moments, self.initial)

    def measured_on(self, images, features, lineup, resources):
        """Return the bank of bound features with the moments of other images."""
        where = images, features.layer_, lineup, resources
        return replace(self, moments=drawn_moments(*where, features.normalize_))


def draw_bank(features, images, lineup, rng, resources, mirrored=False):
    """Draw the candidates of bound features from images or maps, a `FilterBank`.

    ``mirrored`` is True if they see mirror images as well.
    """
    layer, n_filters = features.layer_, features.candidates * features.n_filters
    moments = drawn_moments(images, layer, lineup, resources, features.normalize_)
    if mirrored:
        moments = moments.with_mirrors(layer.mirror_entries(images.shape[3]))
    initial = None
    if features.metric == "whiten":
        initial = moments.whitening(float(features.shrinkage))
    if features.filters == "patches":
        rows = lineup.sequence(n_filters)
        patches = draw_patches(images, layer, rows, moments, rng, resources)
        directions = to_one_length(patches if initial is None else patches @ initial)
    else:
        directions = rng.standard_normal((n_filters, len(moments.mean)))
    return FilterBank(directions, rng.standard_normal(n_filters), moments, initial)

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

import numpy as np
import torch

from ..compute.blocks import image_blocks, largest_value
from ..compute.images import extract_patches

_SHRINKAGE = 0.1  # of the mean variance, added to each direction that is whitened
# Added to means that are raised to a power, in deviations of responses: enough that
# rounding is not magnified, little enough not to matter otherwise.
_OFFSET = 1e-2
# Images that settle the moments of patches, and operations that may go into them.
_MOMENT_IMAGES = 2000
_LEAST_MOMENT_IMAGES = 100
_MOMENT_OPERATIONS = 4e11
_PATCH_BATCH = 16  # images whose patches are taken at once


def draw_filters(transform, n_filters, rng):
    """Return filters w = T ξ, an ndarray (n_filters, d), for a symmetric transform."""
    return rng.standard_normal((n_filters, len(transform))) @ transform


@dataclass(frozen=True)
class PatchMoments:
    """Mean and covariance of patches."""

    mean: np.ndarray  # (d,), v̄
    covariance: np.ndarray  # (d, d), Σ

    def whitening(self):
        """Return the symmetric transform T₀, the identity for equal patches."""
        variances, vectors = np.linalg.eigh(self.covariance)
        mean_variance = variances.mean()
        if not mean_variance > 0:
            return np.eye(len(variances))
        shrunk = variances.clip(min=0) + _SHRINKAGE * mean_variance
        return (vectors / np.sqrt(shrunk)) @ vectors.T


def drawn_moments(images, layer, lineup, resources):
    """Return the `PatchMoments` of as many drawn images as are affordable."""
    patch_dim = images.shape[3] * math.prod(layer.patch)
    affordable = _MOMENT_OPERATIONS / (2 * layer.n_locations * patch_dim**2)
    n_draws = int(np.clip(affordable, _LEAST_MOMENT_IMAGES, _MOMENT_IMAGES))
    return patch_moments(images, layer, lineup.draw(n_draws), resources)


def patch_moments(images, layer, sample, resources):
    """Return the `PatchMoments` of the images of a `Sample`, with its weights."""
    total = sums = products = 0.0
    centre = None
    for part in image_blocks(sample.rows, _PATCH_BATCH):
        # A product over all patches in float32 loses the small variances, which
        # whitening magnifies.
        patches = _patches(images[sample.rows[part]], layer, resources).double()
        # Near the mean, little is lost where squares of the mean are taken off.
        centre = patches.mean((0, 1)) if centre is None else centre
        weights = torch.as_tensor(sample.weights[part]).to(patches)[:, None, None]
        patches = (patches - centre) * weights.sqrt()
        sums = sums + (patches * weights.sqrt()).sum((0, 1))
        rows = patches.flatten(0, 1)
        products = products + rows.T @ rows
        total += float(weights.sum()) * patches.shape[1]
    offset = sums / total
    covariance = products / total - torch.outer(offset, offset)
    if not torch.isfinite(covariance).all():
        raise ValueError(
            "the covariance of patches overflows float64: X has values up to "
            f"{largest_value(images):.3g}; scale the images, for instance to [0, 1]."
        )
    return PatchMoments((centre + offset).cpu().numpy(), covariance.cpu().numpy())


def draw_patches(images, layer, rows, centre, rng, resources):
    """Return a patch of each of ``rows`` less the centre, an ndarray (len(rows), d)."""
    # In proportion to its squared distance from the centre: much may be blank.
    drawn = []
    for part in image_blocks(rows, _PATCH_BATCH):
        patches = _patches(images[rows[part]], layer, resources).double().cpu().numpy()
        lengths = ((patches - centre) ** 2).sum(2).cumsum(1)
        heights = rng.uniform(size=len(patches)) * lengths[:, -1]
        at = (lengths <= heights[:, None]).sum(1).clip(max=patches.shape[1] - 1)
        drawn.append(patches[np.arange(len(patches)), at] - centre)
    return np.concatenate(drawn)


def _patches(images, layer, resources):
    """Return the patches of some images, a tensor of shape (n, locations, d)."""
    patches = extract_patches(resources.tensor(images), layer)
    return patches.flatten(0, 1).permute(2, 0, 1)


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
        biases = float(features.bias) * self.unit_biases
        if self.initial is not None:
            biases = biases - filters @ self.moments.mean / math.sqrt(channels)
        variances = ((filters @ self.moments.covariance) * filters).sum(1)
        deviations = np.sqrt(variances.clip(min=0) / channels)
        biases = biases - float(features.threshold) * deviations
        return features.with_filters(filters, biases, _OFFSET * deviations)

    def measured_on(self, images, layer, lineup, resources):
        """Return the bank with the moments of the patches of other images."""
        return replace(self, moments=drawn_moments(images, layer, lineup, resources))


def draw_bank(features, images, lineup, rng, resources):
    """Draw the filters of bound features from images or maps, a `FilterBank`."""
    layer, n_filters = features.layer_, features.n_filters
    moments = drawn_moments(images, layer, lineup, resources)
    initial = moments.whitening() if features.metric == "whiten" else None
    if features.filters == "patches":
        rows = lineup.sequence(n_filters)
        patches = draw_patches(images, layer, rows, moments.mean, rng, resources)
        directions = to_one_length(patches if initial is None else patches @ initial)
    else:
        directions = rng.standard_normal((n_filters, len(moments.mean)))
    return FilterBank(directions, rng.standard_normal(n_filters), moments, initial)

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
from dataclasses import dataclass

import numpy as np
import torch

from .blocks import image_blocks, largest_value
from .features import FilterLayer
from .images import extract_patches

KINDS = ("gaussian", "patches")
# Part of the mean variance that is added to every direction before it is whitened.
_SHRINKAGE = 0.1
# Where means are raised to a power, what is added to them, in deviations of responses:
# enough that rounding is not magnified, little enough not to matter otherwise.
_OFFSET = 1e-2
# Images that settle the moments of patches, and operations that may go into them.
_MOMENT_IMAGES = 2000
_LEAST_MOMENT_IMAGES = 100
_MOMENT_OPERATIONS = 4e11
# Images whose patches are taken at once.
_PATCH_BATCH = 16


def draw_filters(transform, n_filters, rng):
    """Filters w = T ξ, an ndarray of shape (n_filters, d), float64.

    Parameters
    ----------
    transform : ndarray of shape (d, d)
        The patch transform T, symmetric.
    n_filters : int
        How many.
    rng : numpy.random.RandomState
        Where ξ comes from.
    """
    return rng.standard_normal((n_filters, len(transform))) @ transform


@dataclass(frozen=True)
class PatchMoments:
    """Mean and covariance of patches.

    Attributes
    ----------
    mean : ndarray of shape (d,)
        The mean v̄.
    covariance : ndarray of shape (d, d)
        The covariance Σ.
    """

    mean: np.ndarray
    covariance: np.ndarray

    def whitening(self):
        """The transform T₀, symmetric; the identity where all patches are equal."""
        variances, vectors = np.linalg.eigh(self.covariance)
        mean_variance = variances.mean()
        if not mean_variance > 0:
            return np.eye(len(variances))
        shrunk = variances.clip(min=0) + _SHRINKAGE * mean_variance
        return (vectors / np.sqrt(shrunk)) @ vectors.T


def moment_draws(n_locations, patch_dim):
    """Images on which the moments of patches are measured."""
    affordable = _MOMENT_OPERATIONS / (2 * n_locations * patch_dim**2)
    return int(np.clip(affordable, _LEAST_MOMENT_IMAGES, _MOMENT_IMAGES))


def patch_moments(images, layer, sample, resources):
    """The weighted mean and covariance of the patches of some images.

    Parameters
    ----------
    images : ndarray, StoredImages or FeatureMaps of shape (n, h, w, c)
        The images.
    layer : Layer
        The patches.
    sample : Sample
        Which images, with weights.
    resources : Resources
        Device and precision.

    Returns
    -------
    PatchMoments
    """
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
    mean = centre + offset
    return PatchMoments(mean.cpu().numpy(), covariance.cpu().numpy())


def draw_patches(images, layer, rows, centre, rng, resources):
    """A patch of each image less the centre, an ndarray of shape (n, d).

    Of an image's patches, one is drawn in proportion to its squared distance from the
    centre: much of an image may be blank.

    Parameters
    ----------
    images : ndarray, StoredImages or FeatureMaps of shape (n, h, w, c)
        The images.
    layer : Layer
        The patches.
    rows : ndarray of int
        Which images, some perhaps several times.
    centre : ndarray of shape (d,)
        The mean patch.
    rng : numpy.random.RandomState
        Where locations come from.
    resources : Resources
        Device and precision.
    """
    drawn = []
    for part in image_blocks(rows, _PATCH_BATCH):
        patches = _patches(images[rows[part]], layer, resources).double().cpu().numpy()
        lengths = ((patches - centre) ** 2).sum(2).cumsum(1)
        heights = rng.uniform(size=len(patches)) * lengths[:, -1]
        at = (lengths <= heights[:, None]).sum(1).clip(max=patches.shape[1] - 1)
        drawn.append(patches[np.arange(len(patches)), at] - centre)
    return np.concatenate(drawn)


def _patches(images, layer, resources):
    """The patches of some images, a tensor of shape (n, locations, d)."""
    patches = extract_patches(resources.tensor(images), layer)
    return patches.flatten(0, 1).permute(2, 0, 1)


def to_one_length(vectors):
    """Vectors scaled to the length sqrt(d) of a normal one, but for those of zero."""
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors * (math.sqrt(vectors.shape[1]) / np.where(lengths > 0, lengths, 1))


@dataclass(frozen=True)
class FilterBank:
    """Filters of a layer as they are before they take a metric.

    Attributes
    ----------
    directions : ndarray of shape (K, d)
        The directions ξ.
    unit_biases : ndarray of shape (K,)
        Standard normal numbers.
    bias : float
        Standard deviation of the biases, beside responses wᵀ v / sqrt(c).
    threshold : float
        What is taken off the responses, in their standard deviations.
    power : float
        The power that means over cells are raised to.
    moments : PatchMoments or None
        The moments of patches; None for filters without threshold, centre and power.
    initial : ndarray of shape (d, d) or None
        The transform T₀, of patches v - v̄; None is the identity, of patches as they
        are.
    """

    directions: np.ndarray
    unit_biases: np.ndarray
    bias: float
    threshold: float
    power: float
    moments: PatchMoments | None
    initial: np.ndarray | None

    def under(self, transform, layer, channels, activation, pool):
        """The layer of filters under a patch transform.

        Parameters
        ----------
        transform : ndarray of shape (d, d) or None
            The patch transform T; None is the identity.
        layer : Layer
            The patches.
        channels : int
            Channels c of the images.
        activation : {"relu", "identity"}
            What follows the convolution.
        pool : tuple of int or None
            The grid of means.

        Returns
        -------
        FilterLayer
        """
        filters = self.directions
        if transform is not None:
            filters = filters @ transform
        biases, offsets = self.bias * self.unit_biases, None
        if self.initial is not None:
            biases = biases - filters @ self.moments.mean / math.sqrt(channels)
        if self.moments is not None:
            variances = ((filters @ self.moments.covariance) * filters).sum(1)
            deviations = np.sqrt(variances.clip(min=0) / channels)
            biases = biases - self.threshold * deviations
            offsets = _OFFSET * deviations
        return FilterLayer(
            layer, filters, activation, biases, pool, self.power, offsets
        )


def antithetic(numbers, n_filters):
    """The rows of an array and then their negatives, so many in all."""
    return np.concatenate([numbers, -numbers])[:n_filters]

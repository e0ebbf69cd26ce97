"""Predictions of a fitted machine with their variances, block by block of images."""

from dataclasses import dataclass

import numpy as np

from ..compute.blocks import image_blocks
from ..compute.tiles import kernel_diagonal
from ..features.maps import pass_through
from ..features.skips import fitted_scales, kernel_features
from ..kernels.base import PatchKernel
from .feature_sums import readout_outputs
from .models import fitted_outputs, fitted_transform


def outputs_and_variances(
    covariance, kernel, features, images, coef, centres, resources
):
    """Return f(x), see `fitted_outputs`, and h(x), (n,), of a `Covariance`."""
    n_outputs, roots = coef.shape[1], np.hstack([coef, covariance.roots])
    machine = kernel, features
    outputs, variances = np.empty((len(images), n_outputs)), np.empty(len(images))
    # Beside as many products on the way to them.
    largest = resources.memory // 4 // (8 * roots.shape[1])
    for rows in image_blocks(images, largest):
        block = images[rows]
        found = fitted_outputs(*machine, block, roots, centres, resources)
        outputs[rows] = found[:, :n_outputs]
        diagonal = 0.0  # of features whose sums alone count
        if covariance.prior:
            diagonal = fitted_diagonal(*machine, block, resources)
        variances[rows] = covariance.variances(found[:, n_outputs:], diagonal)
    return outputs, variances


def fitted_diagonal(kernel, features, images, resources):
    """Return k(x, x) of a fitted kernel above fitted layers, (n,) float64."""
    maps = [layer.maps_ for layer in features]
    if isinstance(kernel, PatchKernel):
        images, transform = pass_through(images, maps), fitted_transform(kernel)
        return kernel_diagonal(kernel, images, transform, resources)
    if not kernel.is_linear:
        return np.ones(len(images))
    top, below = kernel_features(maps, fitted_scales(features), images.shape[1:])
    images = pass_through(images, below)
    return readout_outputs(top, images, SquaredLengths(), resources)[:, 0]


@dataclass(frozen=True)
class SquaredLengths:
    """Readout of the squared lengths of features."""

    n_outputs = 1
    output_numbers = 0  # that the outputs of one row take

    def __call__(self, rows):
        """Return the outputs of float64 rows, a Tensor (m, 1)."""
        return rows.square().sum(1, keepdim=True)

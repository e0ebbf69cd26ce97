"""The kernel machine that the rounds learn with: exact, on all training images."""

from dataclasses import dataclass

import numpy as np

from .agop import patch_agop
from .convolutional import ConvolutionalKernel
from .ridge import RidgePath
from .tiles import Resources, kernel_matrix


@dataclass(frozen=True)
class KernelMachine:
    """Kernel ridge regression on images.

    Attributes
    ----------
    kernel : ConvolutionalKernel
        The kernel.
    images : ndarray of shape (n, h, w, c)
        The training images.
    targets : ndarray of shape (n, n_outputs)
        The targets.
    weights : ndarray of shape (n,)
        The weights of the rows, all positive.
    counts : ndarray of shape (n,)
        How many observations each row stands for.
    alphas : ndarray of shape (n_alphas,)
        The ridges of the path.
    agop_rows, agop_weights : ndarray of shape (m,)
        The images that carry the AGOP, and their weights.
    resources : Resources
        Device, precision, memory, workers.
    """

    kernel: ConvolutionalKernel
    images: np.ndarray
    targets: np.ndarray
    weights: np.ndarray
    counts: np.ndarray
    alphas: np.ndarray
    agop_rows: np.ndarray
    agop_weights: np.ndarray
    resources: Resources

    def design(self, transform):
        """The kernel matrix of the training images under a patch transform."""
        return kernel_matrix(self.kernel, self.images, None, transform, self.resources)

    def ridge_path(self, design):
        """The ridge regressions on a kernel matrix."""
        return RidgePath(
            design,
            self.targets,
            self.weights,
            self.alphas,
            self.resources.device,
            counts=self.counts,
        )

    def patch_agop(self, dual_coef, transform):
        """The patch AGOP of the machine with these coefficients."""
        return patch_agop(
            self.kernel,
            self.images,
            dual_coef,
            self.images[self.agop_rows],
            transform,
            self.agop_weights,
            self.resources,
        )

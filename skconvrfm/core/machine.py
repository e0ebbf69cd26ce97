"""The kernel machine that the rounds learn with: exact, on all training images."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from .agop import patch_agop
from .convolutional import ConvolutionalKernel
from .features import FeatureMaps
from .pooling import PooledKernel
from .radial import PatchKernel
from .ridge import RidgePath
from .sampling import Sample
from .tiles import Resources, kernel_matrix


@dataclass(frozen=True)
class KernelMachine:
    """Kernel ridge regression on images under a patch transform.

    Attributes
    ----------
    kernel : ConvolutionalKernel, PatchKernel or PooledKernel
        The kernel. A bandwidth of None is measured anew for every transform.
    images : ndarray or FeatureMaps of shape (n, h, w, c)
        The training images, or what earlier layers make of them.
    targets : ndarray of shape (n, n_outputs)
        The targets.
    weights : ndarray of shape (n,)
        The weights of the rows, all positive.
    counts : ndarray of shape (n,)
        How many observations each row stands for.
    alphas : ndarray of shape (n_alphas,)
        The ridges of the path.
    agop_sample, bandwidth_sample : Sample
        The images that carry the AGOP, and those that the bandwidth is measured on.
    resources : Resources
        Device, precision, memory, workers.
    transform : ndarray of shape (d, d) or None
        The patch transform T; None is the identity.
    """

    kernel: ConvolutionalKernel | PatchKernel | PooledKernel
    images: np.ndarray | FeatureMaps
    targets: np.ndarray
    weights: np.ndarray
    counts: np.ndarray
    alphas: np.ndarray
    agop_sample: Sample
    bandwidth_sample: Sample
    resources: Resources
    transform: np.ndarray | None = None

    @property
    def patch_dim(self):
        """Entries d of a patch."""
        return self.kernel.patch_dim

    def under(self, transform):
        """The same machine under another patch transform."""
        kernel = self.kernel
        if kernel.unmeasured:
            kernel = measured_kernel(
                kernel, self.images, self.bandwidth_sample, transform, self.resources
            )
        return replace(self, kernel=kernel, transform=transform)

    def design(self):
        """The kernel matrix of the training images."""
        return kernel_matrix(
            self.kernel, self.images, None, self.transform, self.resources
        )

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

    def patch_agop(self, dual_coef):
        """The patch AGOP of the machine with these coefficients."""
        return patch_agop(
            self.kernel,
            self.images,
            dual_coef,
            self.images[self.agop_sample.rows],
            self.transform,
            self.agop_sample.weights,
            self.resources,
        )


def measured_kernel(kernel, images, sample, transform, resources):
    """A patch kernel whose bandwidth is measured on some of the images."""
    return kernel.measured(
        resources.tensor(images[sample.rows]),
        torch.tensor(sample.weights, dtype=torch.float64, device=resources.device),
        resources.tensor(transform),
    )

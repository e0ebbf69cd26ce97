"""The exact machine that the rounds learn with, and the data that machines share."""

from dataclasses import dataclass, replace

import numpy as np
import torch

from .agop import patch_agop
from .blocks import Resources
from .convolutional import ConvolutionalKernel
from .features import FeatureMaps
from .pooling import PooledKernel
from .radial import PatchKernel
from .ridge import RidgePath
from .sampling import Lineup, Sample
from .stored import StoredImages
from .tiles import kernel_matrix, kernel_product


@dataclass(frozen=True)
class TrainingSet:
    """Images with what is known of them.

    Attributes
    ----------
    images : ndarray, StoredImages or FeatureMaps of shape (n, h, w, c)
        The images, or what earlier layers make of them.
    targets : ndarray of shape (n, n_outputs)
        The targets.
    weights : ndarray of shape (n,)
        The weights of the rows, all positive.
    counts : ndarray of shape (n,)
        How many observations each row stands for.
    lineup : Lineup
        The rows in an order for draws.
    """

    images: np.ndarray | StoredImages | FeatureMaps
    targets: np.ndarray
    weights: np.ndarray
    counts: np.ndarray
    lineup: Lineup

    def take(self, rows):
        """Some of the rows."""
        return TrainingSet(
            self.images[rows],
            self.targets[rows],
            self.weights[rows],
            self.counts[rows],
            self.lineup.take(rows),
        )


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the rounds learn with: a ridge regression under a patch transform.

    Attributes
    ----------
    data : TrainingSet
        The training images, or what earlier layers make of them, and their targets.
    alphas : ndarray of shape (n_alphas,)
        The ridges of the path.
    agop_sample : Sample
        The images that carry the AGOP.
    resources : Resources
        Device, precision, memory, workers.
    held_out : TrainingSet or None
        Other rows, on which ridges can be judged.
    start : ndarray of shape (d, d) or None
        The patch transform of round 0 where a former fit has learned one.
    transform : ndarray of shape (d, d) or None
        The patch transform T; None is the identity.
    """

    data: TrainingSet
    alphas: np.ndarray
    agop_sample: Sample
    resources: Resources
    held_out: TrainingSet | None = None
    start: np.ndarray | None = None
    transform: np.ndarray | None = None

    def held_out_loss(self, path):
        """The weighted mean squared error of all ridges on the held-out rows.

        Parameters
        ----------
        path : RidgePath or PrimalRidgePath
            The ridge regressions.

        Returns
        -------
        ndarray of shape (n_alphas,)
        """
        data = self.held_out
        coef, intercepts = path.coefficients()
        predictions = self.product(data.images, coef) + intercepts
        predictions = predictions.reshape(len(data.targets), len(path.alphas), -1)
        losses = ((predictions - data.targets[:, None]) ** 2).sum(2)
        return data.weights @ losses / data.weights.sum()


@dataclass(frozen=True, kw_only=True)
class KernelMachine(Machine):
    """Kernel ridge regression on images.

    Attributes
    ----------
    kernel : ConvolutionalKernel, PatchKernel or PooledKernel
        The kernel. A bandwidth of None is measured anew for every transform.
    bandwidth_sample : Sample
        The images that the bandwidth is measured on.
    """

    kernel: ConvolutionalKernel | PatchKernel | PooledKernel
    bandwidth_sample: Sample

    # Round 0 has the kernel as it is.
    initial_transform = None
    # The criteria follow the error on other images from round to round.
    optimism = 0.0

    @property
    def patch_dim(self):
        """Entries d of a patch."""
        return self.kernel.patch_dim

    @property
    def patch_shape(self):
        """Rows and columns of a patch."""
        return self.kernel.layers[0].patch

    def under(self, transform):
        """The same machine under another patch transform; None is that of round 0."""
        transform = self.start if transform is None else transform
        kernel = self.kernel
        if kernel.unmeasured:
            kernel = measured_kernel(
                kernel,
                self.data.images,
                self.bandwidth_sample,
                transform,
                self.resources,
            )
        return replace(self, kernel=kernel, transform=transform)

    def design(self):
        """The kernel matrix of the training images."""
        return kernel_matrix(
            self.kernel, self.data.images, None, self.transform, self.resources
        )

    def ridge_path(self, design):
        """The ridge regressions on a kernel matrix."""
        return RidgePath(
            design,
            self.data.targets,
            self.data.weights,
            self.alphas,
            self.resources.device,
            counts=self.data.counts,
        )

    def patch_agop(self, coef):
        """The patch AGOP of the machine with these coefficients."""
        return patch_agop(
            self.kernel,
            self.data.images,
            coef,
            self.data.images[self.agop_sample.rows],
            self.transform,
            self.agop_sample.weights,
            self.resources,
        )

    def product(self, images, coef):
        """The kernel of images with the training images times coefficients."""
        return kernel_product(
            self.kernel, images, self.data.images, self.transform, coef, self.resources
        )


def measured_kernel(kernel, images, sample, transform, resources):
    """A patch kernel whose bandwidth is measured on some of the images."""
    return kernel.measured(
        resources.tensor(images[sample.rows]),
        torch.tensor(sample.weights, dtype=torch.float64, device=resources.device),
        resources.tensor(transform),
    )

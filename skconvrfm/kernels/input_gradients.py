r"""Gradients of a kernel machine on patches with respect to the images it sees.

A pixel lies in several patches, so that its gradient is the sum of the entries of their
gradients :math:`s\, T h_{o,u}` that fall on it; see `skconvrfm.kernels.agop` for h. A
machine averaged over the mirror P has twice as many centres, and the gradient
:math:`\frac12 (\nabla f(z) + P \nabla f(Pz))`.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import fold

from ..compute import tiles
from ..compute.blocks import balanced_blocks
from ..compute.images import WithMirrors
from ..compute.parallel import Resources
from ..compute.sampling import binary_exponent
from ..compute.threads import own_threads
from .agop import patch_gradients
from .base import PatchKernel


@dataclass(frozen=True)
class PatchReadout:
    """Outputs of a kernel machine on the patches of images, given as flat rows."""

    kernel: PatchKernel  # bound to the shape of the images
    centres: np.ndarray  # images (n, h, w, c)
    coef: np.ndarray  # α, (n, n_outputs)
    transform: np.ndarray | None  # of patches; None is the identity
    resources: Resources

    @property
    def numbers(self):
        """Numbers that the gradients of one row take."""
        kernel = self.kernel
        by_output = kernel.layers[0].n_locations * kernel.patch_dim
        return 3 * self.coef.shape[1] * by_output

    def gradients(self, rows):
        """Return the gradients of the outputs, a float64 Tensor (m, n_outputs, D)."""
        resources = self.resources
        images = rows.unflatten(1, self.kernel.image_shape_).to(resources.dtype)
        largest = resources.memory // 4 // (resources.itemsize * self.numbers)
        parts = balanced_blocks(slice(0, len(images)), max(1, largest))
        return torch.cat([self._gradients(images[part]) for part in parts]).flatten(2)

    def _gradients(self, images):
        """Return the gradients (m, n_outputs, h, w, c) of a block of images."""
        if not self.kernel.mirror:
            return self._add_up(images, self.centres, self.coef)
        both = WithMirrors(self.centres), np.tile(self.coef / 2, (2, 1))
        own, mirrored = (self._add_up(x, *both) for x in (images, images.flip(2)))
        return (own + mirrored.flip(3)) / 2

    def _add_up(self, images, centres, coef):
        """Return the sums of the gradients of all patches over each pixel."""
        kernel, resources = self.kernel, self.resources
        exponent = binary_exponent(coef)  # to about 1: float32 may not hold them
        scaled = resources.tensor(np.ldexp(coef, -exponent))
        transform = self.transform
        transform = None if transform is None else resources.tensor(transform)
        pairs = len(images) * len(centres)
        library = tiles.find_library(kernel, pairs, resources, pullback=True)
        kernel = tiles.fuse(kernel, pairs, resources, pullback=True)
        with own_threads(library is not None):
            machine = kernel, centres, scaled, transform
            h, *own = patch_gradients(machine, images, library, resources)
        h.addcmul_(*own, value=2)
        h = h if transform is None else h @ transform.T
        layer, (height, width, _) = kernel.layers[0], kernel.image_shape_
        top, bottom, left, right = layer.padding
        size = height + top + bottom, width + left + right
        sums = fold(h.permute(1, 2, 3, 0).flatten(0, 1), size, layer.patch)
        sums = sums[:, :, top : top + height, left : left + width]
        sums = sums.permute(0, 2, 3, 1).unflatten(0, (len(images), -1))
        return sums.double() * (kernel.patch_scale * 2.0**exponent)

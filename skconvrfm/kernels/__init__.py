"""Kernels that compare two images, and the patch AGOP of the machines made of them.

One kernel, one file, one class with its value and its pullback. Knows no ridge and no
rounds.
"""

from .agop import patch_agop
from .convolutional import ConvNNGP, ConvNTK
from .patch import PatchGaussian, PatchLaplace
from .whole import Gaussian, Laplace, Linear

__all__ = [
    "ConvNNGP",
    "ConvNTK",
    "Gaussian",
    "Laplace",
    "Linear",
    "PatchGaussian",
    "PatchLaplace",
    "patch_agop",
]

"""Convolutional feature layers: filters, maps, pools, and the gradients through them.

Knows images and where to compute; knows no kernel and no ridge.
"""

from .layer import ConvFeatures

__all__ = ["ConvFeatures"]

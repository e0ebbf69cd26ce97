"""Convolutional kernel machines that learn features, for scikit-learn."""

from .estimators import ConvRFMClassifier, ConvRFMRegressor
from .transformer import PatchAGOPTransformer

__version__ = "0.1.0"

__all__ = [
    "ConvRFMClassifier",
    "ConvRFMRegressor",
    "PatchAGOPTransformer",
    "__version__",
]

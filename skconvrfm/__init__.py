"""Convolutional kernel machines that learn features, for scikit-learn."""

from .ansatz import AnsatzScorer
from .estimators import ConvRFMClassifier, ConvRFMRegressor
from .transformer import PatchAGOPTransformer

__version__ = "0.3.0"

__all__ = [
    "AnsatzScorer",
    "ConvRFMClassifier",
    "ConvRFMRegressor",
    "PatchAGOPTransformer",
    "__version__",
]

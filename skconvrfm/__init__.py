"""Convolutional kernel machines that learn features, for scikit-learn."""

from .estimators import ConvRFMClassifier, ConvRFMRegressor

__version__ = "0.1.0"

__all__ = ["ConvRFMClassifier", "ConvRFMRegressor", "__version__"]

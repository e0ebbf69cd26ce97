"""Convolutional kernel machines that learn features, for scikit-learn."""

from .estimators import ConvRFMClassifier, ConvRFMRegressor
from .transformer import PatchAGOPTransformer

__version__ = "0.2.0"

__all__ = [
    "AnsatzScorer",
    "ConvRFMClassifier",
    "ConvRFMRegressor",
    "PatchAGOPTransformer",
    "__version__",
]


def __getattr__(name):
    # On first use: ``python -m skconvrfm.ansatz`` runs a module that must not be
    # imported before.
    if name == "AnsatzScorer":
        from .ansatz import AnsatzScorer

        return AnsatzScorer
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")

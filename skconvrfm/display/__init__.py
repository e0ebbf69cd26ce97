"""Pictures of learned features, in the manner of scikit-learn's displays.

This folder has one display per file. It may use `explain`, `features`, `learning`
and `compute`.
Matplotlib is optional: it is imported when something is drawn, not before.
"""

from .ansatz import AnsatzDisplay
from .ansatz_layer import AnsatzLayerDisplay
from .ansatz_training import AnsatzTrainingDisplay
from .explanation import ExplanationDisplay
from .filters import PatchFiltersDisplay
from .rounds import RoundsDisplay
from .saliency import SaliencyDisplay

__all__ = [
    "AnsatzDisplay",
    "AnsatzLayerDisplay",
    "AnsatzTrainingDisplay",
    "ExplanationDisplay",
    "PatchFiltersDisplay",
    "RoundsDisplay",
    "SaliencyDisplay",
]

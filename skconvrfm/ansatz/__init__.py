"""The neural feature ansatz, verified on any torch network.

This folder measures networks and fitted ConvRFM estimators: scorer, report, command
line. It may use `display` and `compute`; no other folder imports it.
"""

from .report import AnsatzReport, LayerReport
from .scorer import AnsatzScorer

__all__ = ["AnsatzReport", "AnsatzScorer", "LayerReport"]

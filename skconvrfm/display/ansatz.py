"""Display of the correlations of an ansatz report."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ._axes import make_axes


@dataclass(kw_only=True, eq=False, repr=False)
class AnsatzDisplay:
    """Correlation of filter covariance and patch AGOP by layer, beside a baseline.

    Use :meth:`from_report`, or ``report.plot()`` of a report that
    :class:`skconvrfm.AnsatzScorer` makes.

    Parameters
    ----------
    names, correlation : sequence of str, array-like of shape (n_layers,)
        Layers in forward order, and their correlations; NaN leaves a gap.
    standard_error, baseline : array-like of shape (n_layers,), default=None
        Drawn as bars if finite; correlations of the baseline, mostly the untrained
        network.
    correlation_name : str, default="Correlation"
        Label of the axis.

    Attributes
    ----------
    figure_, ax_, lines_ : Figure, Axes, list of Line2D (matplotlib)
        The figure, and the curves of the network and the baseline if there is one.

    Examples
    --------
    >>> from skconvrfm.display import AnsatzDisplay
    >>> display = AnsatzDisplay(names=["conv1", "conv2"], correlation=[0.97, 0.85])
    >>> display.plot().ax_.get_xlabel()
    'Layer'
    """

    names: Sequence[str]
    correlation: ArrayLike
    standard_error: ArrayLike | None = None
    baseline: ArrayLike | None = None
    correlation_name: str = "Correlation"

    @classmethod
    def from_report(cls, report: Any, *, ax: Any = None) -> AnsatzDisplay:
        """Draw a report of :meth:`skconvrfm.AnsatzScorer.report`, return the display.

        Of several powers it is the first one; `ax` is as in :meth:`plot`.
        """
        rows = report.records()[:: np.size(report.agop_power)]
        baseline = np.array([row["baseline"] for row in rows])
        return cls(
            names=[row["name"] for row in rows],
            correlation=[row["correlation"] for row in rows],
            standard_error=[row["standard_error"] for row in rows],
            baseline=baseline if np.isfinite(baseline).any() else None,
            correlation_name=correlation_name(report),
        ).plot(ax)

    def plot(self, ax: Any = None) -> AnsatzDisplay:
        """Draw correlations in `ax`, by default of a new figure; return the display."""
        if ax is None:
            size = (max(4.0, 1.5 + 0.3 * len(self.names)), 3.4)
            [ax] = make_axes(None, 1, 1, size, "one for all layers")
        places = np.arange(len(self.names))
        self.ax_, self.figure_ = ax, ax.figure
        self.lines_ = ax.plot(places, self.correlation, marker="o", label="network")
        if self.standard_error is not None:
            bars = {"fmt": "none", "ecolor": "C0"}
            ax.errorbar(places, self.correlation, self.standard_error, **bars)
        if self.baseline is not None:
            style = {"mfc": "none", "color": "C7", "label": "baseline"}
            self.lines_ += ax.plot(places, self.baseline, "o--", **style)
            ax.legend()
        ax.set(xlabel="Layer", ylabel=self.correlation_name)
        ax.set_xticks(places, self.names, rotation=90, fontsize="small")
        ax.grid(alpha=0.3)
        return self


def correlation_name(report):
    """Return the label of a report's correlations, of several powers of the first."""
    power = np.ravel(report.agop_power)[0]
    power = "" if power == 1 else f", AGOP$^{{{power:g}}}$"
    return f"{report.correlation.capitalize()} correlation{power}"

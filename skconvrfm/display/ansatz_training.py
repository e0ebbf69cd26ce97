"""Display of the ansatz over the training of a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ._axes import make_axes
from .ansatz import correlation_name


@dataclass(kw_only=True, eq=False, repr=False)
class AnsatzTrainingDisplay:
    """Correlation of filter covariance and patch AGOP over training, a curve a layer.

    Curves run from dark, the first layer, to light. Use :meth:`from_reports`.

    Parameters
    ----------
    steps : array-like of shape (n_steps,)
        Epochs, or batches, at which the network was measured, in order from 0 on. The
        axis is logarithmic above the first that is positive.
    names : sequence of str
        Layers in forward order.
    correlation : array-like of shape (n_steps, n_layers)
        Correlations; NaN leaves a gap.
    step_name, correlation_name : str, default="Step" and "Correlation"
        Labels of the axes.

    Attributes
    ----------
    figure_, ax_, lines_ : Figure, Axes, list of Line2D (matplotlib)
        The figure, and the curve of each layer.

    Examples
    --------
    >>> from skconvrfm.display import AnsatzTrainingDisplay
    >>> correlation = [[0.9, 0.5], [0.85, 0.7], [0.9, 0.8]]
    >>> names = ["conv1", "conv2"]
    >>> display = AnsatzTrainingDisplay(
    ...     steps=[0, 1, 10], names=names, correlation=correlation
    ... )
    >>> len(display.plot().lines_)
    2
    """

    steps: ArrayLike
    names: Sequence[str]
    correlation: ArrayLike
    step_name: str = "Step"
    correlation_name: str = "Correlation"

    @classmethod
    def from_reports(
        cls,
        reports: Mapping[float, Any],
        *,
        layers: Sequence[str] | None = None,
        step_name: str = "Step",
        ax: Any = None,
    ) -> AnsatzTrainingDisplay:
        """Draw reports of one network at several steps, and return the display.

        Parameters
        ----------
        reports : mapping of float to AnsatzReport
            Reports of :meth:`skconvrfm.AnsatzScorer.report`, by the step at which the
            network was measured. Of several powers of the AGOP the first is drawn.
        layers : sequence of str, default=None
            Names of the layers to draw; None draws all of the first report.
        step_name, ax : str, matplotlib Axes, default="Step" and None
            Label of the steps; axes as in :meth:`plot`.
        """
        if not reports:
            raise ValueError(
                "reports is empty: pass a dict of reports by the step at which the "
                "network was measured, such as {0: ..., 10: ...}."
            )
        steps, first = sorted(reports), reports[min(reports)]
        known = [row.name for row in first]
        names = known if layers is None else list(layers)
        for name in names:
            if name not in known:
                raise ValueError(
                    f"layers has {name!r}, which is no layer of the report: take some "
                    f"of {', '.join(known)}."
                )
        found = [
            {row.name: np.ravel(row.correlation)[0] for row in reports[step]}
            for step in steps
        ]
        return cls(
            steps=steps,
            names=names,
            correlation=[[one.get(name, np.nan) for name in names] for one in found],
            step_name=step_name,
            correlation_name=correlation_name(first),
        ).plot(ax)

    def plot(self, ax: Any = None) -> AnsatzTrainingDisplay:
        """Draw the curves in `ax`, by default of a new figure; return the display."""
        if ax is None:
            [ax] = make_axes(None, 1, 1, (5.0, 3.6), "one for all layers")
        from matplotlib import colormaps

        steps = np.asarray(self.steps, float)
        curves = np.asarray(self.correlation, float).T
        shades = colormaps["viridis"](np.linspace(0, 0.9, len(self.names)))
        self.ax_, self.figure_, self.lines_ = ax, ax.figure, []
        for name, curve, shade in zip(self.names, curves, shades, strict=True):
            style = {"color": shade, "marker": ".", "label": name}
            self.lines_ += ax.plot(steps, curve, **style)
        positive = steps[steps > 0]
        if len(positive):
            ax.set_xscale("symlog", linthresh=positive.min())
            ax.set_xlim(left=min(0.0, steps.min()))
        ax.set(xlabel=self.step_name, ylabel=self.correlation_name)
        ax.grid(alpha=0.3)
        if len(self.names) <= 10:
            ax.legend(fontsize="x-small")
        return self

"""Display of the rounds of a fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, is_regressor

from ..learning.choice import short_reason
from ._axes import make_axes
from ._learned import learned_layer

_CRITERIA = {
    "gcv": "Generalised cross-validation",
    "loo_loss": "Leave-one-out loss",
    "holdout_loss": "Held-out loss",
}
_CRITERION_OF = {"loo": "loo_loss", "holdout": "holdout_loss"}
_SMALLEST_SHARE = 1e-6  # eigenvalues below this share of all are rounding
_MANY_EIGENVALUES = 32  # longer spectra are lines without markers on a log axis
_LEGEND_ROUNDS = 6  # of more rounds, the first, the kept and the last


@dataclass(kw_only=True, eq=False, repr=False)
class RoundsDisplay:
    """Score, criterion and spectrum by round, with the round that was kept.

    A black circle marks the kept round, and the legend of the criterion says why it
    was kept. Use :meth:`from_estimator` to make one. All come from the training data
    alone: the score is the leave-one-out score that the fit itself computes. The
    spectrum is that of the metric with which the round measures patches, one curve per
    round: flat in round 0, where all directions of a patch count alike, and the steeper
    the fewer directions count. :class:`PatchFiltersDisplay` shows these directions.

    Parameters
    ----------
    rounds, score, criterion : array-like of shape (n_rounds + 1,)
        Numbers of the rounds, of which 0 is the fixed kernel; leave-one-out score
        (higher is better) and criterion (lower is better) after each of them.
    spectrum : array-like of shape (n_rounds + 1, d)
        Eigenvalues of each round's metric as shares of their sum, the largest first.
    best_round, score_name, criterion_name : int, str, str
        The round that was kept; labels of the score and of the criterion.
    reason : str, default=""
        Why the round was kept, for the legend of the criterion, as "lowest GCV".

    Attributes
    ----------
    figure_, axes_ : Figure, ndarray of 3 Axes (matplotlib)
        The figure, or subfigure; axes of score, criterion and spectrum.
    lines_, spectrum_lines_ : list of matplotlib Line2D
        The curves of score and criterion; the spectra, one per round.

    Examples
    --------
    >>> from skconvrfm.display import RoundsDisplay
    >>> history = {"rounds": [0, 1], "score": [0.82, 0.96], "criterion": [0.45, 0.12]}
    >>> spectrum = [[0.25, 0.25, 0.25, 0.25], [0.7, 0.2, 0.1, 0]]
    >>> display = RoundsDisplay(**history, spectrum=spectrum, best_round=1)
    >>> display.plot().axes_[0].get_xlabel()
    'Round'
    """

    rounds: ArrayLike
    score: ArrayLike
    criterion: ArrayLike
    spectrum: ArrayLike
    best_round: int
    score_name: str = "Leave-one-out score"
    criterion_name: str = "Criterion"
    reason: str = ""

    @classmethod
    def from_estimator(
        cls,
        estimator: BaseEstimator,
        *,
        criterion: Literal["gcv", "loo_loss", "holdout_loss"] | None = None,
        layer: int | None = None,
        ax: Any = None,
    ) -> RoundsDisplay:
        """Draw the rounds of a fitted estimator, and return the display.

        Parameters
        ----------
        estimator : ConvRFMClassifier, ConvRFMRegressor or PatchAGOPTransformer
            Fitted estimator that learned a patch metric.
        criterion : {"gcv", "loo_loss", "holdout_loss"}, default=None
            The criterion to draw. By default the one by which the estimator chose
            (GCV if `selection="last"`). Only `selection="holdout"` has the third.
        layer, ax : int, matplotlib Axes or sequence of 3 of them, default=None
            Layer to draw, 0 for the one that sees the images, by default the one whose
            machine predicts, `best_layer_`; axes as in :meth:`plot`.
        """
        learned, machine = learned_layer(estimator, layer)
        name = criterion or _CRITERION_OF.get(machine.selection, "gcv")
        history = learned.history_
        known = [one for one in _CRITERIA if one in history]
        if name not in known:
            raise ValueError(f"criterion={name!r} is unknown, choose one of {known}.")
        measure = "R²" if is_regressor(machine) else "accuracy"
        return cls(
            rounds=history["round"],
            score=history["loo_score"],
            criterion=history[name],
            spectrum=history["spectrum"],
            best_round=learned.best_round_,
            score_name=f"Leave-one-out {measure}",
            criterion_name=_CRITERIA[name],
            reason=short_reason(history, learned.best_round_, machine.selection),
        ).plot(ax)

    def plot(self, ax: Any = None) -> RoundsDisplay:
        """Draw score, criterion and spectrum side by side, and return the display.

        Parameters
        ----------
        ax : matplotlib Axes or sequence of 3 of them, default=None
            Axes for each, or one for all; by default in a new figure.
        """
        axes = make_axes(ax, 3, 3, (11.0, 3.2), "score, criterion and spectrum")
        self.axes_, self.figure_ = axes, axes[0].figure
        label = f"round {self.best_round} is kept"
        score = self._plot_curve(axes[0], self.score, self.score_name, "C0", label)
        if self.reason:
            label = f"kept: {self.reason}"
        criterion = self.criterion, self.criterion_name, "C1", label
        criterion = self._plot_curve(axes[1], *criterion)
        self.lines_ = [score, criterion]
        self.spectrum_lines_ = self._plot_spectrum(axes[2])
        return self

    def _plot_curve(self, ax, values, name, color, label):
        """Draw one number per round, with a ring around that of the kept round."""
        from matplotlib.ticker import MaxNLocator

        rounds, values = np.asarray(self.rounds), np.asarray(values)
        kept = rounds == self.best_round
        [line] = ax.plot(rounds, values, marker="o", color=color)
        ring = {"markersize": 13, "mfc": "none", "mec": "black", "label": label}
        ax.plot(rounds[kept], values[kept], "o", **ring)
        ax.set(xlabel="Round", ylabel=name)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=0.3)
        ax.margins(0.08, 0.15)
        ax.legend()
        return line

    def _plot_spectrum(self, ax):
        """Draw a curve per round, from light to dark; the kept one is thick and red."""
        import matplotlib as mpl

        rounds, spectrum = list(self.rounds), np.asarray(self.spectrum)
        many = len(rounds) > _LEGEND_ROUNDS
        named = {rounds[0], self.best_round, rounds[-1]} if many else rounds
        places = np.arange(1, spectrum.shape[1] + 1)
        few = len(places) <= _MANY_EIGENVALUES
        shades = mpl.colormaps["Blues"](np.linspace(0.35, 0.95, len(rounds)))
        lines = []
        for number, shares, shade in zip(rounds, spectrum, shades, strict=True):
            label = f"round {number}" if number in named else None
            style = {"color": shade, "linewidth": 1.2, "markersize": 3, "zorder": 2}
            if number == self.best_round:  # on top, where curves meet
                label = f"round {number}, kept"
                style = {"color": "C3", "linewidth": 2.5, "markersize": 5, "zorder": 3}
            marker = "o" if few else None
            lines += ax.plot(places, shares, marker=marker, label=label, **style)
        if not few:
            ax.set_xscale("log")
            ax.xaxis.set_major_formatter("{x:g}")
        ax.set_yscale("log")
        drawn = spectrum[spectrum > _SMALLEST_SHARE]
        # All are NaN for a predictor that does not depend on the image.
        if drawn.size:
            ax.set_ylim(drawn.min() / 1.5, drawn.max() * 1.5)
        ax.set(xlabel="Eigenvalue of the metric", ylabel="Share of all")
        ax.grid(alpha=0.3)
        ax.legend(fontsize="small")
        return lines

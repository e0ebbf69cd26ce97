"""Pictures of a fitted ConvRFM, in the manner of scikit-learn's displays.

Matplotlib is optional and imported when something is drawn, not before.
"""

import numpy as np
from sklearn.base import is_classifier
from sklearn.utils.validation import check_is_fitted

__all__ = ["AnsatzDisplay", "PatchAGOPDisplay", "RoundsDisplay"]

_CRITERIA = {"gcv": "Generalised cross-validation", "loo_loss": "Leave-one-out loss"}


class RoundsDisplay:
    """Accuracy and criterion by round, with the round that was kept.

    Use :meth:`from_estimator` to make one. Both curves come from the training data
    alone: the score is the leave-one-out score that the fit itself computes.

    Parameters
    ----------
    rounds : array-like of shape (n_rounds + 1,)
        Numbers of the rounds; 0 is the fixed kernel.
    score : array-like of shape (n_rounds + 1,)
        Leave-one-out score after each round, higher is better.
    criterion : array-like of shape (n_rounds + 1,)
        Criterion after each round, lower is better.
    best_round : int
        The round that was kept.
    score_name : str, default="Leave-one-out score"
        What to write beside the score.
    criterion_name : str, default="Criterion"
        What to write beside the criterion.

    Attributes
    ----------
    figure_ : matplotlib Figure
        Figure with the two curves.
    axes_ : ndarray of shape (2,) of matplotlib Axes
        Axes of the score and of the criterion.
    lines_ : list of matplotlib Line2D
        The two curves.

    See Also
    --------
    PatchAGOPDisplay : What the kept round looks at.

    Examples
    --------
    >>> from skconvrfm.display import RoundsDisplay
    >>> display = RoundsDisplay(
    ...     rounds=[0, 1, 2],
    ...     score=[0.82, 0.96, 0.93],
    ...     criterion=[0.45, 0.12, 0.34],
    ...     best_round=1,
    ... )
    >>> display.plot().axes_[0].get_xlabel()
    'Round'
    """

    def __init__(
        self,
        *,
        rounds,
        score,
        criterion,
        best_round,
        score_name="Leave-one-out score",
        criterion_name="Criterion",
    ):
        self.rounds = rounds
        self.score = score
        self.criterion = criterion
        self.best_round = best_round
        self.score_name = score_name
        self.criterion_name = criterion_name

    @classmethod
    def from_estimator(cls, estimator, *, criterion=None, ax=None):
        """Draw the rounds of a fitted estimator.

        Parameters
        ----------
        estimator : ConvRFMClassifier or ConvRFMRegressor
            Fitted estimator.
        criterion : {"gcv", "loo_loss"}, default=None
            Which criterion to draw. By default the one by which the estimator chose
            (GCV if `selection="last"`).
        ax : sequence of 2 matplotlib Axes, default=None
            Where to draw, see :meth:`plot`.

        Returns
        -------
        display : RoundsDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If `criterion` is unknown.
        NotFittedError
            If the estimator is not fitted.
        ImportError
            If matplotlib is not installed.
        """
        _check_matplotlib(f"{cls.__name__}.from_estimator")
        check_is_fitted(estimator, "history_")
        if criterion is None:
            criterion = "loo_loss" if estimator.selection == "loo" else "gcv"
        if criterion not in _CRITERIA:
            raise ValueError(
                f"criterion={criterion!r} is unknown, choose one of {list(_CRITERIA)}."
            )
        history = estimator.history_
        measure = "accuracy" if is_classifier(estimator) else "R²"
        display = cls(
            rounds=history["round"],
            score=history["loo_score"],
            criterion=history[criterion],
            best_round=estimator.best_round_,
            score_name=f"Leave-one-out {measure}",
            criterion_name=_CRITERIA[criterion],
        )
        return display.plot(ax)

    def plot(self, ax=None):
        """Draw score and criterion side by side.

        Parameters
        ----------
        ax : sequence of 2 matplotlib Axes, default=None
            Axes for score and criterion. By default a new figure.

        Returns
        -------
        display : RoundsDisplay
            This object.
        """
        _check_matplotlib(f"{type(self).__name__}.plot")
        from matplotlib.ticker import MaxNLocator

        if ax is None:
            import matplotlib.pyplot as plt

            _, ax = plt.subplots(
                1, 2, figsize=(8, 3.2), sharex=True, layout="constrained"
            )
        axes = np.ravel(ax)
        if axes.size != 2:
            raise ValueError(
                f"ax must hold 2 axes, for score and criterion, got {axes.size}."
            )
        rounds = np.asarray(self.rounds)
        kept = rounds == self.best_round
        self.axes_ = axes
        self.figure_ = axes[0].figure
        self.lines_ = []
        curves = ((self.score, self.score_name), (self.criterion, self.criterion_name))
        for one, (values, name), color in zip(axes, curves, ("C0", "C1"), strict=True):
            values = np.asarray(values)
            self.lines_ += one.plot(rounds, values, marker="o", color=color)
            one.plot(
                rounds[kept],
                values[kept],
                linestyle="none",
                marker="o",
                markersize=13,
                markerfacecolor="none",
                markeredgecolor="black",
                label=f"round {self.best_round} is kept",
            )
            one.set(xlabel="Round", ylabel=name)
            one.xaxis.set_major_locator(MaxNLocator(integer=True))
            one.grid(alpha=0.3)
            one.margins(0.08, 0.15)
            one.legend()
        return self


class PatchAGOPDisplay:
    """Leading eigenvectors of a patch AGOP as little images.

    They are the patterns to which the predictor responds most: the eigenvalue is
    the squared slope of the predictor along the pattern, summed over outputs and
    places and averaged over images. Use :meth:`from_estimator` to make one.

    An eigenvector has a sign for each pixel but no sign of its own; it is turned so
    that its largest entry is positive. One channel is drawn from blue (negative) over
    white (0) to red, three channels as RGB with 0 in the middle grey. Any other number
    of channels cannot be shown with its signs in one picture: there the brightness of
    a pixel is the Euclidean norm over its channels.

    Parameters
    ----------
    eigenvectors : array-like of shape (n_components, rows, columns, channels)
        The leading eigenvectors as patches.
    eigenvalue_shares : array-like of shape (n_components,)
        Their eigenvalues as shares of the trace, 0 to 1.

    Attributes
    ----------
    figure_ : matplotlib Figure or SubFigure
        Figure with the images.
    axes_ : ndarray of shape (n_components,) of matplotlib Axes
        Axes of the images.
    images_ : list of matplotlib AxesImage
        The images.

    See Also
    --------
    RoundsDisplay : Accuracy and criterion by round.

    Examples
    --------
    >>> import numpy as np
    >>> from skconvrfm.display import PatchAGOPDisplay
    >>> edge = np.array([[1.0, 0.0, -1.0]] * 3).reshape(1, 3, 3, 1)
    >>> display = PatchAGOPDisplay(eigenvectors=edge, eigenvalue_shares=[1.0])
    >>> display.plot().axes_[0].get_title()
    '100 %'
    """

    def __init__(self, *, eigenvectors, eigenvalue_shares):
        self.eigenvectors = eigenvectors
        self.eigenvalue_shares = eigenvalue_shares

    @classmethod
    def from_estimator(cls, estimator, *, n_components=8, fig=None):
        """Draw the patch AGOP of a fitted estimator.

        Parameters
        ----------
        estimator : ConvRFMClassifier or ConvRFMRegressor
            Fitted estimator.
        n_components : int, default=8
            Number of eigenvectors, in order of their eigenvalues; all of them if
            there are fewer. 8 fit in one row and are more than usually matter, since
            eigenvalues fall fast.
        fig : matplotlib Figure or SubFigure, default=None
            Where to draw, see :meth:`plot`.

        Returns
        -------
        display : PatchAGOPDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If `n_components` is below 1.
        NotFittedError
            If the estimator is not fitted.
        ImportError
            If matplotlib is not installed.
        """
        _check_matplotlib(f"{cls.__name__}.from_estimator")
        check_is_fitted(estimator, "patch_agop_")
        if n_components < 1:
            raise ValueError(f"n_components={n_components!r} must be at least 1.")
        eigenvalues, vectors = np.linalg.eigh(estimator.patch_agop_)
        leading = slice(None, -1 - n_components, -1)
        eigenvalues, vectors = eigenvalues[leading], vectors.T[leading]
        peaks = np.abs(vectors).argmax(axis=1)[:, None]
        vectors = vectors * np.sign(np.take_along_axis(vectors, peaks, axis=1))

        # Entries of a patch run (channel, row, column); pictures want channels last.
        channels = estimator.image_shape_[2]
        patches = vectors.reshape(-1, channels, *estimator.patch_shape_)
        # The trace is 0 for a predictor that does not depend on the image.
        trace = np.trace(estimator.patch_agop_) or 1.0
        display = cls(
            eigenvectors=np.moveaxis(patches, 1, -1),
            eigenvalue_shares=np.clip(eigenvalues / trace, 0, 1),
        )
        return display.plot(fig=fig)

    def plot(self, *, n_columns=8, fig=None):
        """Draw the eigenvectors, each under its share of the eigenvalues.

        Parameters
        ----------
        n_columns : int, default=8
            Images in a row.
        fig : matplotlib Figure or SubFigure, default=None
            Empty figure to draw in. By default a new one.

        Returns
        -------
        display : PatchAGOPDisplay
            This object.
        """
        _check_matplotlib(f"{type(self).__name__}.plot")
        eigenvectors = np.asarray(self.eigenvectors)
        n_columns = min(n_columns, len(eigenvectors))
        n_rows = -(-len(eigenvectors) // n_columns)
        if fig is None:
            import matplotlib.pyplot as plt

            size = (1.1 * n_columns + 0.4, 1.4 * n_rows + 0.2)
            fig = plt.figure(figsize=size, layout="constrained")
        axes = fig.subplots(n_rows, n_columns, squeeze=False).ravel()
        for unused in axes[len(eigenvectors) :]:
            unused.remove()
        self.figure_ = fig
        self.axes_ = axes[: len(eigenvectors)]
        self.images_ = []
        for ax, vector, share in zip(
            self.axes_, eigenvectors, self.eigenvalue_shares, strict=True
        ):
            pixels, options = _as_picture(vector)
            self.images_.append(ax.imshow(pixels, interpolation="nearest", **options))
            ax.set(xticks=[], yticks=[])
            ax.set_title(_percent(share), fontsize="small")
        return self


def _as_picture(vector):
    """Pixels of a patch of shape (rows, columns, channels), and options for imshow."""
    peak = np.abs(vector).max() or 1.0
    channels = vector.shape[2]
    if channels == 1:
        return vector[..., 0], {"cmap": "RdBu_r", "vmin": -peak, "vmax": peak}
    if channels == 3:
        return 0.5 + vector / (2 * peak), {}
    return np.linalg.norm(vector, axis=2), {"cmap": "gray", "vmin": 0.0}


def _percent(share):
    """A share as text with two digits that count: 93 %, 4.1 %, <0.1 %."""
    percent = 100 * share
    if percent >= 9.95:
        return f"{percent:.0f} %"
    return f"{percent:.1f} %" if percent >= 0.1 else "<0.1 %"


def _check_matplotlib(caller):
    """Say how to get matplotlib if it is missing."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"{caller} needs matplotlib. Install it with "
            '`pip install "skconvrfm[plot]"`.'
        ) from error


class AnsatzDisplay:
    """Correlation of filter covariance and patch AGOP by layer, beside a baseline.

    Use :meth:`from_report`, or ``report.plot()``, to make one.

    Parameters
    ----------
    names : sequence of str
        Names of the layers, in forward order.
    correlation : array-like of shape (n_layers,)
        Correlation of each layer; NaN leaves a gap.
    standard_error : array-like of shape (n_layers,), default=None
        Drawn as bars, where it is finite.
    baseline_correlation : array-like of shape (n_layers,), default=None
        The same for the baseline, mostly the untrained network.
    correlation_name : str, default="Correlation"
        What to write beside the axis.

    Attributes
    ----------
    figure_ : matplotlib Figure
        Figure with the curves.
    ax_ : matplotlib Axes
        Axes with the curves.
    lines_ : list of matplotlib Line2D
        The curve of the network, and that of the baseline if there is one.

    See Also
    --------
    skconvrfm.AnsatzScorer : Measures what is drawn.

    Examples
    --------
    >>> from skconvrfm.display import AnsatzDisplay
    >>> display = AnsatzDisplay(
    ...     names=["conv1", "conv2"],
    ...     correlation=[0.97, 0.85],
    ...     baseline_correlation=[0.6, 0.7],
    ... )
    >>> display.plot().ax_.get_xlabel()
    'Layer'
    """

    def __init__(
        self,
        *,
        names,
        correlation,
        standard_error=None,
        baseline_correlation=None,
        correlation_name="Correlation",
    ):
        self.names = names
        self.correlation = correlation
        self.standard_error = standard_error
        self.baseline_correlation = baseline_correlation
        self.correlation_name = correlation_name

    @classmethod
    def from_report(cls, report, *, ax=None):
        """Draw a report.

        Parameters
        ----------
        report : AnsatzReport
            What :meth:`skconvrfm.AnsatzScorer.report` returned.
        ax : matplotlib Axes, default=None
            Where to draw, see :meth:`plot`.

        Returns
        -------
        display : AnsatzDisplay
            The display, drawn.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        """
        _check_matplotlib(f"{cls.__name__}.from_report")
        baseline = np.array([row.baseline_correlation for row in report])
        power = "" if report.agop_power == 1 else f", AGOP$^{{{report.agop_power:g}}}$"
        display = cls(
            names=[row.name for row in report],
            correlation=[row.correlation for row in report],
            standard_error=[row.standard_error for row in report],
            baseline_correlation=baseline if np.isfinite(baseline).any() else None,
            correlation_name=f"{report.correlation.capitalize()} correlation{power}",
        )
        return display.plot(ax)

    def plot(self, ax=None):
        """Draw the correlation of each layer.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw. By default in a new figure.

        Returns
        -------
        display : AnsatzDisplay
            This object.
        """
        _check_matplotlib(f"{type(self).__name__}.plot")
        if ax is None:
            import matplotlib.pyplot as plt

            size = (max(4.0, 1.5 + 0.3 * len(self.names)), 3.4)
            _, ax = plt.subplots(figsize=size, layout="constrained")
        places = np.arange(len(self.names))
        self.ax_ = ax
        self.figure_ = ax.figure
        self.lines_ = ax.plot(places, self.correlation, marker="o", label="network")
        if self.standard_error is not None:
            ax.errorbar(
                places, self.correlation, self.standard_error, fmt="none", ecolor="C0"
            )
        if self.baseline_correlation is not None:
            self.lines_ += ax.plot(
                places,
                self.baseline_correlation,
                marker="o",
                markerfacecolor="none",
                linestyle="--",
                color="C7",
                label="baseline",
            )
            ax.legend()
        ax.set(xlabel="Layer", ylabel=self.correlation_name)
        ax.set_xticks(places, self.names, rotation=90, fontsize="small")
        ax.grid(alpha=0.3)
        return self

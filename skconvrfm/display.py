"""Pictures of what was learned, in the manner of scikit-learn's displays.

Matplotlib is optional and imported when something is drawn, not before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, is_classifier, is_regressor
from sklearn.utils.validation import check_is_fitted

from ._typing import Array
from .core.features import EigenProjections, Saliency
from .core.images import convolution_layers
from .core.rounds import leading_eigenvectors
from .core.tiles import compute_features
from .kernels import make_resources

if TYPE_CHECKING:
    from typing_extensions import Self

    from .ansatz import AnsatzReport

__all__ = ["AnsatzDisplay", "PatchFiltersDisplay", "RoundsDisplay", "SaliencyDisplay"]

_CRITERIA = {
    "gcv": "Generalised cross-validation",
    "loo_loss": "Leave-one-out loss",
    "holdout_loss": "Held-out loss",
}
_CRITERION_OF = {"loo": "loo_loss", "holdout": "holdout_loss"}
# Eigenvalues below this share of all are not drawn: they are rounding.
_SMALLEST_SHARE = 1e-6
# Spectra of more eigenvalues than this are lines without markers on a log axis.
_MANY_EIGENVALUES = 32
# Rounds in the legend of the spectra; of more, the first, the kept and the last.
_LEGEND_ROUNDS = 6
# Images longer than this many times their width are drawn without square pixels.
_LONGEST_ASPECT = 8


class RoundsDisplay:
    """Score, criterion and spectrum by round, with the round that was kept.

    Use :meth:`from_estimator` to make one. All come from the training data alone: the
    score is the leave-one-out score that the fit itself computes. The spectrum is that
    of the metric with which the round measures patches, one curve a round: flat in
    round 0, where all directions of a patch count alike, and the steeper the fewer
    directions count.

    Parameters
    ----------
    rounds : array-like of shape (n_rounds + 1,)
        Numbers of the rounds; 0 is the fixed kernel.
    score : array-like of shape (n_rounds + 1,)
        Leave-one-out score after each round, higher is better.
    criterion : array-like of shape (n_rounds + 1,)
        Criterion after each round, lower is better.
    spectrum : array-like of shape (n_rounds + 1, d)
        Eigenvalues of each round's metric as shares of their sum, the largest first.
    best_round : int
        The round that was kept.
    score_name : str, default="Leave-one-out score"
        What to write beside the score.
    criterion_name : str, default="Criterion"
        What to write beside the criterion.

    Attributes
    ----------
    figure_ : matplotlib Figure or SubFigure
        Figure with the three panels.
    axes_ : ndarray of shape (3,) of matplotlib Axes
        Axes of score, criterion and spectrum.
    lines_ : list of matplotlib Line2D
        The curves of score and criterion.
    spectrum_lines_ : list of matplotlib Line2D
        The spectra, one a round.

    See Also
    --------
    PatchFiltersDisplay : What the kept round looks at.
    SaliencyDisplay : Where in an image it finds that.

    Examples
    --------
    >>> from skconvrfm.display import RoundsDisplay
    >>> display = RoundsDisplay(
    ...     rounds=[0, 1, 2],
    ...     score=[0.82, 0.96, 0.93],
    ...     criterion=[0.45, 0.12, 0.34],
    ...     spectrum=[[0.25, 0.25, 0.25, 0.25], [0.7, 0.2, 0.1, 0], [0.9, 0.1, 0, 0]],
    ...     best_round=1,
    ... )
    >>> display.plot().axes_[0].get_xlabel()
    'Round'
    """

    def __init__(
        self,
        *,
        rounds: ArrayLike,
        score: ArrayLike,
        criterion: ArrayLike,
        spectrum: ArrayLike,
        best_round: int,
        score_name: str = "Leave-one-out score",
        criterion_name: str = "Criterion",
    ) -> None:
        self.rounds = rounds
        self.score = score
        self.criterion = criterion
        self.spectrum = spectrum
        self.best_round = best_round
        self.score_name = score_name
        self.criterion_name = criterion_name

    @classmethod
    def from_estimator(
        cls,
        estimator: BaseEstimator,
        *,
        criterion: Literal["gcv", "loo_loss", "holdout_loss"] | None = None,
        layer: int | None = None,
        ax: Any = None,
    ) -> RoundsDisplay:
        """Draw the rounds of a fitted estimator.

        Parameters
        ----------
        estimator : ConvRFMClassifier, ConvRFMRegressor or PatchAGOPTransformer
            Fitted estimator.
        criterion : {"gcv", "loo_loss", "holdout_loss"}, default=None
            Which criterion to draw. By default the one by which the estimator chose
            (GCV if `selection="last"`). Only `selection="holdout"` has the third.
        layer : int, default=None
            The layer whose rounds to draw, 0 for the one that sees the images. By
            default the one that the estimator chose, `best_layer_`.
        ax : matplotlib Axes or sequence of 3 of them, default=None
            Where to draw, see :meth:`plot`.

        Returns
        -------
        display : RoundsDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If `criterion` is unknown, there is no such layer, or `ax` does not fit.
        TypeError
            If the estimator learns no patch metric.
        NotFittedError
            If the estimator is not fitted.
        ImportError
            If matplotlib is not installed.
        """
        _check_matplotlib(f"{cls.__name__}.from_estimator")
        learned = _learned_layer(estimator, layer)
        name = criterion or _CRITERION_OF.get(estimator.selection, "gcv")
        history = learned.history_
        known = [one for one in _CRITERIA if one in history]
        if name not in known:
            raise ValueError(f"criterion={name!r} is unknown, choose one of {known}.")
        # A transformer is neither: it does not tell how it read its targets.
        measure = "score"
        if is_classifier(estimator):
            measure = "accuracy"
        elif is_regressor(estimator):
            measure = "R²"
        display = cls(
            rounds=history["round"],
            score=history["loo_score"],
            criterion=history[name],
            spectrum=history["spectrum"],
            best_round=learned.best_round_,
            score_name=f"Leave-one-out {measure}",
            criterion_name=_CRITERIA[name],
        )
        return display.plot(ax)

    def plot(self, ax: Any = None) -> Self:
        """Draw score, criterion and spectrum side by side.

        Parameters
        ----------
        ax : matplotlib Axes or sequence of 3 of them, default=None
            Axes for score, criterion and spectrum; or one, in whose place they are
            drawn. By default a new figure.

        Returns
        -------
        display : RoundsDisplay
            This object.
        """
        _check_matplotlib(f"{type(self).__name__}.plot")
        what = "score, criterion and spectrum"
        self.axes_ = _make_axes(ax, 3, 3, (11.0, 3.2), what)
        self.figure_ = self.axes_[0].figure
        self.lines_ = [
            self._plot_curve(self.axes_[0], self.score, self.score_name, "C0"),
            self._plot_curve(self.axes_[1], self.criterion, self.criterion_name, "C1"),
        ]
        self.spectrum_lines_ = self._plot_spectrum(self.axes_[2])
        return self

    def _plot_curve(self, ax, values, name, color):
        """Draw one number a round, with a ring around that of the kept round."""
        from matplotlib.ticker import MaxNLocator

        rounds, values = np.asarray(self.rounds), np.asarray(values)
        kept = rounds == self.best_round
        [line] = ax.plot(rounds, values, marker="o", color=color)
        ax.plot(
            rounds[kept],
            values[kept],
            linestyle="none",
            marker="o",
            markersize=13,
            markerfacecolor="none",
            markeredgecolor="black",
            label=f"round {self.best_round} is kept",
        )
        ax.set(xlabel="Round", ylabel=name)
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        ax.grid(alpha=0.3)
        ax.margins(0.08, 0.15)
        ax.legend()
        return line

    def _plot_spectrum(self, ax):
        """Draw a curve a round, from light to dark, and the kept one thick and red."""
        import matplotlib as mpl

        rounds, spectrum = list(self.rounds), np.asarray(self.spectrum)
        few = spectrum.shape[1] <= _MANY_EIGENVALUES
        named = {rounds[0], self.best_round, rounds[-1]}
        places = np.arange(1, spectrum.shape[1] + 1)
        shades = mpl.colormaps["Blues"](np.linspace(0.35, 0.95, len(rounds)))
        lines = []
        for number, shares, shade in zip(rounds, spectrum, shades, strict=True):
            kept = number == self.best_round
            label = None
            if len(rounds) <= _LEGEND_ROUNDS or number in named:
                label = f"round {number}{', kept' if kept else ''}"
            lines += ax.plot(
                places,
                shares,
                color="C3" if kept else shade,
                linewidth=2.5 if kept else 1.2,
                marker="o" if few else None,
                markersize=5 if kept else 3,
                # The kept one lies on top, where curves meet.
                zorder=3 if kept else 2,
                label=label,
            )
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


class PatchFiltersDisplay:
    """Leading eigenvectors of a patch AGOP as little images.

    They are the patterns to which the predictor responds most: the eigenvalue is
    the squared slope of the predictor along the pattern, summed over outputs and
    places and averaged over images. Use :meth:`from_estimator` to make one.

    An eigenvector has a sign for each pixel but no sign of its own; it is turned so
    that its largest entry is positive. One channel is drawn from blue (negative) over
    white (0) to red, three channels as RGB with 0 in the middle grey. Any other number
    of channels cannot be shown with its signs in one picture: there the brightness of
    a pixel is the Euclidean norm over its channels. So it is in deeper layers, whose
    channels are the filters of the layer below.

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
    RoundsDisplay : Score, criterion and spectrum by round.
    SaliencyDisplay : Where in an image the patterns are.

    Examples
    --------
    >>> import numpy as np
    >>> from skconvrfm.display import PatchFiltersDisplay
    >>> edge = np.array([[1.0, 0.0, -1.0]] * 3).reshape(1, 3, 3, 1)
    >>> display = PatchFiltersDisplay(eigenvectors=edge, eigenvalue_shares=[1.0])
    >>> display.plot().axes_[0].get_title()
    '100 %'
    """

    def __init__(
        self,
        *,
        eigenvectors: ArrayLike,
        eigenvalue_shares: ArrayLike,
    ) -> None:
        self.eigenvectors = eigenvectors
        self.eigenvalue_shares = eigenvalue_shares

    @classmethod
    def from_estimator(
        cls,
        estimator: BaseEstimator,
        *,
        n_components: int = 8,
        layer: int | None = None,
        ax: Any = None,
    ) -> PatchFiltersDisplay:
        """Draw the patch AGOP of a fitted estimator.

        Parameters
        ----------
        estimator : ConvRFMClassifier, ConvRFMRegressor or PatchAGOPTransformer
            Fitted estimator.
        n_components : int, default=8
            Number of eigenvectors, in order of their eigenvalues; all of them if
            there are fewer. 8 fit in one row and are more than usually matter, since
            eigenvalues fall fast.
        layer : int, default=None
            The layer whose patch AGOP to draw, 0 for the one that sees the images. By
            default the one that the estimator chose, `best_layer_`.
        ax : matplotlib Axes or sequence of n_components of them, default=None
            Where to draw, see :meth:`plot`.

        Returns
        -------
        display : PatchFiltersDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If `n_components` is below 1, there is no such layer, or `ax` does not fit.
        TypeError
            If the estimator learns no patch metric.
        NotFittedError
            If the estimator is not fitted.
        ImportError
            If matplotlib is not installed.
        """
        _check_matplotlib(f"{cls.__name__}.from_estimator")
        learned = _learned_layer(estimator, layer)
        if n_components < 1:
            raise ValueError(f"n_components={n_components!r} must be at least 1.")
        agop = learned.patch_agop_
        vectors = leading_eigenvectors(agop, n_components)
        eigenvalues = np.einsum("kd,kd->k", vectors @ agop, vectors)

        # Entries of a patch run (channel, row, column); pictures want channels last.
        patches = vectors.reshape(len(vectors), -1, *learned.patch_shape_)
        # The trace is 0 for a predictor that does not depend on the image.
        display = cls(
            eigenvectors=np.moveaxis(patches, 1, -1),
            eigenvalue_shares=np.clip(eigenvalues / (np.trace(agop) or 1.0), 0, 1),
        )
        return display.plot(ax)

    def plot(self, ax: Any = None, *, n_columns: int = 8) -> Self:
        """Draw the eigenvectors, each under its share of the eigenvalues.

        Parameters
        ----------
        ax : matplotlib Axes or sequence of n_components of them, default=None
            Axes of the images; or one, in whose place they are drawn. By default a new
            figure.
        n_columns : int, default=8
            Images in a row, unless `ax` is a sequence.

        Returns
        -------
        display : PatchFiltersDisplay
            This object.
        """
        _check_matplotlib(f"{type(self).__name__}.plot")
        eigenvectors = np.asarray(self.eigenvectors)
        shares = np.asarray(self.eigenvalue_shares)
        n_columns = min(n_columns, len(eigenvectors))
        n_rows = -(-len(eigenvectors) // n_columns)
        size = (1.1 * n_columns + 0.4, 1.4 * n_rows + 0.2)
        self.axes_ = _make_axes(
            ax, len(eigenvectors), n_columns, size, "one for each eigenvector"
        )
        self.figure_ = self.axes_[0].figure
        self.images_ = []
        for one, vector, share in zip(self.axes_, eigenvectors, shares, strict=True):
            pixels, options = _as_picture(vector)
            self.images_.append(one.imshow(pixels, interpolation="nearest", **options))
            one.set(xticks=[], yticks=[])
            one.set_title(_percent(share), fontsize="small")
        return self


class SaliencyDisplay:
    """Images, where in them the signal is, and one pattern followed through them.

    A row for each image: the image; its *saliency*, the length ‖T v‖ of the transformed
    patch v at each location; and the image filtered by one eigenvector of the learned
    metric M = T Tᵀ. Use :meth:`from_estimator` to make one.

    An image is stretched from its smallest to its largest pixel; of other than one or
    three channels the norm is shown. Saliency runs from black (0) to yellow, and the
    filtered image from blue (negative) over white (0) to red, both on one scale for all
    images. A value is drawn on the centre of its patch, so that the three pictures of
    a row can be laid on each other; where there is no margin of zeros, no patch is
    centred on the outermost pixels, and the border stays grey. Pixels are squares, but
    rows that are not images, or very long ones, fill the axes.

    Parameters
    ----------
    images : array-like of shape (n_images, h, w, c)
        The images.
    saliency : array-like of shape (n_images, rows, columns)
        The length of the transformed patch at each location.
    projections : array-like of shape (n_images, rows, columns)
        The inner product of the patch with the eigenvector at each location.
    offset : tuple of float, default=(0.0, 0.0)
        Row and column of the image that are the centre of the first patch.
    projection_name : str, default="Eigenvector"
        What to write over the filtered images.

    Attributes
    ----------
    figure_ : matplotlib Figure or SubFigure
        Figure with the pictures.
    axes_ : ndarray of shape (n_images, 3) of matplotlib Axes
        Axes of image, saliency and filtered image.
    images_ : list of matplotlib AxesImage
        The pictures, row by row.

    See Also
    --------
    PatchFiltersDisplay : The patterns themselves.
    skconvrfm.PatchAGOPTransformer : Gives saliency and projections as arrays.

    Examples
    --------
    >>> from skconvrfm import ConvRFMClassifier
    >>> from skconvrfm.datasets import make_framed_digits
    >>> from skconvrfm.display import SaliencyDisplay
    >>> X, y = make_framed_digits(random_state=0)
    >>> clf = ConvRFMClassifier(depth=1, n_rounds=1).fit(X[:100], y[:100])
    >>> display = SaliencyDisplay.from_estimator(clf, X[100:], n_images=2)
    >>> display.axes_.shape, display.saliency.shape
    ((2, 3), (2, 10, 10))
    """

    def __init__(
        self,
        *,
        images: ArrayLike,
        saliency: ArrayLike,
        projections: ArrayLike,
        offset: tuple[float, float] = (0.0, 0.0),
        projection_name: str = "Eigenvector",
    ) -> None:
        self.images = images
        self.saliency = saliency
        self.projections = projections
        self.offset = offset
        self.projection_name = projection_name

    @classmethod
    def from_estimator(
        cls,
        estimator: BaseEstimator,
        X: ArrayLike,
        *,
        n_images: int = 4,
        component: int = 0,
        ax: Any = None,
    ) -> SaliencyDisplay:
        """Draw images as the metric that a fitted estimator has learned sees them.

        Parameters
        ----------
        estimator : ConvRFMClassifier, ConvRFMRegressor or PatchAGOPTransformer
            Fitted estimator. Of several layers the first counts, which sees the images.
        X : array-like of shape (n_samples, n_features), (n_samples, h, w) or \
                (n_samples, h, w, c)
            Images, laid out as in `fit`.
        n_images : int, default=4
            How many to draw, from the first on; all of them if there are fewer.
        component : int, default=0
            The eigenvector to filter with, 0 for that of the largest eigenvalue. Its
            largest entry is positive.
        ax : matplotlib Axes or sequence of 3 * n_images of them, default=None
            Where to draw, see :meth:`plot`.

        Returns
        -------
        display : SaliencyDisplay
            The display, drawn.

        Raises
        ------
        ValueError
            If X does not suit the estimator, `n_images` is below 1, there is no such
            eigenvector, or `ax` does not fit.
        TypeError
            If the estimator learns no patch metric.
        NotFittedError
            If the estimator is not fitted.
        ImportError
            If matplotlib is not installed.
        """
        _check_matplotlib(f"{cls.__name__}.from_estimator")
        learned = _learned_layer(estimator, 0)
        # An estimator's layer keeps the learned T also where round 0 was chosen.
        transform = getattr(learned, "filter_transform_", learned.patch_transform_)
        if n_images < 1:
            raise ValueError(f"n_images={n_images!r} must be at least 1.")
        if component not in range(len(transform)):
            raise ValueError(
                f"component={component!r} is not one of the {len(transform)} "
                f"eigenvectors, 0 to {len(transform) - 1}."
            )
        images = estimator._check_images(X)[:n_images]
        resources = make_resources(
            estimator.device, estimator.dtype, estimator.n_jobs, images
        )
        [layer] = convolution_layers(
            estimator.image_shape_, estimator.patch_size, estimator.padding, depth=1
        )
        saliency = compute_features(Saliency(layer, transform), images, resources)
        vector = leading_eigenvectors(transform, component + 1)[component:]
        projections = compute_features(
            EigenProjections(layer, vector, rectification=None, pool=None),
            images,
            resources,
        )
        top, _, left, _ = layer.padding
        display = cls(
            images=images,
            saliency=saliency[..., 0],
            projections=projections[..., 0],
            offset=((layer.patch[0] - 1) / 2 - top, (layer.patch[1] - 1) / 2 - left),
            projection_name=f"Eigenvector {component}",
        )
        return display.plot(ax)

    def plot(self, ax: Any = None) -> Self:
        """Draw a row of three pictures for each image.

        Parameters
        ----------
        ax : matplotlib Axes or sequence of 3 * n_images of them, default=None
            Axes, row by row; or one, in whose place they are drawn. By default a new
            figure.

        Returns
        -------
        display : SaliencyDisplay
            This object.
        """
        _check_matplotlib(f"{type(self).__name__}.plot")
        images = np.asarray(self.images)
        saliency, projections = np.asarray(self.saliency), np.asarray(self.projections)
        n_images, height, width, _ = images.shape
        # Pixels are squares, unless an image then were a thread.
        thread = max(height, width) > _LONGEST_ASPECT * min(height, width)
        high_row = 1.0 if thread else min(2.0 * height / width, 4.0)
        self.axes_ = _make_axes(
            ax,
            3 * n_images,
            3,
            (6.0, 0.4 + high_row * n_images),
            "image, saliency and filtered image for each image",
        ).reshape(n_images, 3)
        self.figure_ = self.axes_[0, 0].figure
        top, left = np.subtract(self.offset, 0.5)
        rows, columns = saliency.shape[1:]
        on_image = {"extent": (left, left + columns, top + rows, top)}
        high = saliency.max() or 1.0
        peak = np.abs(projections).max() or 1.0
        self.images_ = []
        for axes, image, lengths, projection in zip(
            self.axes_, images, saliency, projections, strict=True
        ):
            pictures: tuple[tuple[Array, dict[str, Any]], ...] = (
                (_stretched(image), {"cmap": "gray"}),
                (lengths, {"cmap": "inferno", "vmin": 0, "vmax": high, **on_image}),
                (projection, {**_signed(peak), **on_image}),
            )
            for one, (pixels, options) in zip(axes, pictures, strict=True):
                self.images_.append(
                    one.imshow(pixels, interpolation="nearest", **options)
                )
                one.set(
                    aspect="auto" if thread else "equal",
                    xticks=[],
                    yticks=[],
                    xlim=(-0.5, width - 0.5),
                    ylim=(height - 0.5, -0.5),
                    facecolor="0.85",
                )
        names = ("Image", "Saliency", self.projection_name)
        for one, name in zip(self.axes_[0], names, strict=True):
            one.set_title(name, fontsize="medium")
        return self


def _learned_layer(estimator, layer):
    """What a layer of a fitted estimator has learned; None for the one it chose."""
    check_is_fitted(estimator)
    if not hasattr(estimator, "patch_agop_"):
        raise TypeError(
            f"{type(estimator).__name__} learns no patch metric; pass a fitted "
            "ConvRFMClassifier, ConvRFMRegressor or PatchAGOPTransformer (of a "
            "pipeline, its step)."
        )
    # A transformer has one layer, whose attributes are its own.
    layers = getattr(estimator, "layers_", [estimator])
    if layer is None:
        layer = getattr(estimator, "best_layer_", 0)
    if layer not in range(len(layers)):
        raise ValueError(
            f"layer={layer!r} is not one of the {len(layers)} of the estimator, "
            f"0 to {len(layers) - 1}."
        )
    return layers[layer]


def _make_axes(ax, n_axes, n_columns, size, what):
    """Axes of a new figure, or in the place of one, or those that are given."""
    from matplotlib.axes import Axes

    n_rows = -(-n_axes // n_columns)
    if ax is None:
        import matplotlib.pyplot as plt

        figure = plt.figure(figsize=size, layout="constrained")
        grid = figure.add_gridspec(n_rows, n_columns)
    elif isinstance(ax, Axes):
        place = ax.get_subplotspec()
        if place is None:
            raise ValueError(
                "ax has no place in a grid that could be divided: make it with "
                "plt.subplots or figure.add_subplot."
            )
        figure = ax.figure
        grid = place.subgridspec(n_rows, n_columns)
        ax.set_axis_off()
    else:
        axes = np.ravel(ax)
        strangers = {type(one).__name__ for one in axes if not isinstance(one, Axes)}
        if axes.size != n_axes or strangers:
            got = f"objects of type {min(strangers)}" if strangers else axes.size
            raise ValueError(
                f"ax must be one matplotlib Axes or a sequence of {n_axes} of them "
                f"({what}), got {got}."
            )
        return axes
    return np.array([figure.add_subplot(grid[place]) for place in range(n_axes)])


def _as_picture(vector):
    """Pixels of a patch of shape (rows, columns, channels), and options for imshow."""
    peak = np.abs(vector).max() or 1.0
    channels = vector.shape[2]
    if channels == 1:
        return vector[..., 0], _signed(peak)
    if channels == 3:
        return 0.5 + vector / (2 * peak), {}
    return np.linalg.norm(vector, axis=2), {"cmap": "gray", "vmin": 0.0}


def _signed(peak):
    """Options for imshow: blue is negative, white 0, red positive."""
    return {"cmap": "RdBu_r", "vmin": -peak, "vmax": peak}


def _stretched(image):
    """Pixels of an image of shape (rows, columns, channels), for imshow, 0 to 1."""
    image = np.asarray(image, dtype=np.float64)
    if image.shape[2] == 1:
        image = image[..., 0]
    elif image.shape[2] != 3:
        image = np.linalg.norm(image, axis=2)
    return (image - image.min()) / (np.ptp(image) or 1.0)


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
        names: Sequence[str],
        correlation: ArrayLike,
        standard_error: ArrayLike | None = None,
        baseline_correlation: ArrayLike | None = None,
        correlation_name: str = "Correlation",
    ) -> None:
        self.names = names
        self.correlation = correlation
        self.standard_error = standard_error
        self.baseline_correlation = baseline_correlation
        self.correlation_name = correlation_name

    @classmethod
    def from_report(cls, report: AnsatzReport, *, ax: Any = None) -> AnsatzDisplay:
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

    def plot(self, ax: Any = None) -> Self:
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
            size = (max(4.0, 1.5 + 0.3 * len(self.names)), 3.4)
            [ax] = _make_axes(None, 1, 1, size, "one for all layers")
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

"""Display of the leading eigenvectors of a patch AGOP."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator

from ..learning.rounds import leading_eigenvectors
from ._axes import make_axes, signed
from ._learned import learned_layer


@dataclass(kw_only=True, eq=False, repr=False)
class PatchFiltersDisplay:
    """Leading eigenvectors of a patch AGOP as little images.

    They are the patterns to which the predictor responds most: the eigenvalue is
    the squared slope of the predictor along the pattern, summed over outputs and
    locations and averaged over images. Use :meth:`from_estimator` to make one;
    :class:`SaliencyDisplay` shows where in an image the patterns are.

    An eigenvector has a sign for each pixel but no sign of its own; it is turned so
    that its largest entry is positive. One channel is drawn from blue (negative) over
    white (0) to red, three channels as RGB with 0 in the middle grey. Any other number
    of channels, as in deeper layers, whose channels are the filters of the layer below,
    cannot be shown with signs in one picture: there the brightness of a pixel is the
    Euclidean norm over its channels.

    Parameters
    ----------
    eigenvectors, eigenvalue_shares : array-like
        Patches (n_components, rows, columns, channels); their eigenvalues as shares of
        the trace, 0 to 1.

    Attributes
    ----------
    figure_, axes_, images_ : Figure, ndarray of Axes, list of AxesImage (matplotlib)
        The figure, or subfigure; axes and image of each eigenvector.

    Examples
    --------
    >>> from skconvrfm.display import PatchFiltersDisplay
    >>> edge = [[[[1.0], [0.0], [-1.0]]] * 3]
    >>> display = PatchFiltersDisplay(eigenvectors=edge, eigenvalue_shares=[1.0])
    >>> display.plot().axes_[0].get_title()
    '100 %'
    """

    eigenvectors: ArrayLike
    eigenvalue_shares: ArrayLike

    @classmethod
    def from_estimator(
        cls,
        estimator: BaseEstimator,
        *,
        n_components: int = 8,
        layer: int | None = None,
        ax: Any = None,
    ) -> PatchFiltersDisplay:
        """Draw the patch AGOP of a fitted estimator, and return the display.

        Parameters
        ----------
        estimator : ConvRFMClassifier, ConvRFMRegressor or PatchAGOPTransformer
            Fitted estimator that learned a patch metric.
        n_components : int, default=8
            Number of eigenvectors, or all if there are fewer. 8 fit in one row and are
            more than usually matter, since eigenvalues fall fast.
        layer, ax : int, matplotlib Axes or sequence of n_components, default=None
            Layer to draw, 0 for the one that sees the images, by default the one whose
            machine predicts, `best_layer_`; axes as in :meth:`plot`.
        """
        learned, _ = learned_layer(estimator, layer)
        if n_components < 1:
            raise ValueError(f"n_components={n_components!r} must be at least 1.")
        agop = learned.patch_agop_
        vectors = leading_eigenvectors(agop, n_components)
        eigenvalues = np.einsum("kd,kd->k", vectors @ agop, vectors)
        # The trace is 0 for a predictor that does not depend on the image.
        shares = np.clip(eigenvalues / (np.trace(agop) or 1.0), 0, 1)
        # Entries of a patch run (channel, row, column); pictures want channels last.
        patches = vectors.reshape(len(vectors), -1, *learned.patch_shape_)
        patches = np.moveaxis(patches, 1, -1)
        return cls(eigenvectors=patches, eigenvalue_shares=shares).plot(ax)

    def plot(self, ax: Any = None, *, n_columns: int = 8) -> PatchFiltersDisplay:
        """Draw the eigenvectors under their shares, and return the display.

        Parameters
        ----------
        ax : matplotlib Axes or sequence of n_components of them, default=None
            Axes for each, or one for all; by default in a new figure.
        n_columns : int, default=8
            Images in a row, unless `ax` is a sequence.
        """
        patches, shares = map(np.asarray, (self.eigenvectors, self.eigenvalue_shares))
        n_columns = min(n_columns, len(patches))
        size = (1.1 * n_columns + 0.4, 1.4 * -(-len(patches) // n_columns) + 0.2)
        self.axes_ = make_axes(ax, len(patches), n_columns, size, "one per eigenvector")
        self.figure_, self.images_ = self.axes_[0].figure, []
        for one, vector, share in zip(self.axes_, patches, shares, strict=True):
            pixels, options = as_picture(vector)
            self.images_.append(one.imshow(pixels, interpolation="nearest", **options))
            one.set(xticks=[], yticks=[])
            one.set_title(_percent(share), fontsize="small")
        return self


def as_picture(vector):
    """Return pixels of a patch (rows, columns, channels), and options for imshow."""
    peak = np.abs(vector).max() or 1.0
    if vector.shape[2] == 1:
        return vector[..., 0], signed(peak)
    if vector.shape[2] == 3:
        return 0.5 + vector / (2 * peak), {}
    return np.linalg.norm(vector, axis=2), {"cmap": "gray", "vmin": 0.0}


def _percent(share):
    """A share as text with two digits that count: 93 %, 4.1 %, <0.1 %."""
    percent = 100 * share
    if percent >= 9.95:
        return f"{percent:.0f} %"
    return f"{percent:.1f} %" if percent >= 0.1 else "<0.1 %"

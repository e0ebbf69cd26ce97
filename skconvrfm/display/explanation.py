"""Display of what in an image speaks for and against a class."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator, is_classifier

from .._typing import Pair
from ..explain import (
    explained_targets,
    images_of,
    patch_occlusion,
    pixel_gradients,
)
from ._axes import check_matplotlib, make_axes, signed, stretched

_WHAT = "image, evidence by pixel and by patch"
_LONGEST_SIDE = 4.0  # of a picture, in inches


@dataclass(kw_only=True, eq=False, repr=False)
class ExplanationDisplay:
    """An image beside maps of what in it speaks for and against a class.

    Three pictures: the image, and two maps of its size. Both answer by how much the
    score of the class would fall if a part of the image were replaced by the mean
    colour of the image. *By pixel* it is the exact gradient times the difference of
    the pixel from this mean, summed over channels: right for small changes. *By patch*
    the patch is replaced, and the image predicted anew. Red speaks for the class, blue
    against it, white is neutral; each map has a scale of its own, symmetric about 0.

    A map explains this machine's score, not the class: a background that went with the
    class in training counts as evidence, too. Use :meth:`from_estimator` to make one;
    :func:`skconvrfm.explain.pixel_gradients` and
    :func:`skconvrfm.explain.patch_occlusion` give the numbers.

    Parameters
    ----------
    image : array-like of shape (h, w, c)
        The image; stretched from its smallest to its largest pixel, and of other than
        one or three channels the norm is shown.
    by_pixel, by_patch : array-like of shape (h, w)
        The maps, in units of the score.
    title : str, default=""
        Title of the image: class and score.

    Attributes
    ----------
    figure_, axes_, images_ : Figure, ndarray of Axes, list of AxesImage (matplotlib)
        The figure, or subfigure; the axes of the three pictures; the pictures.
    colorbars_ : list of Colorbar
        Those of the two maps.

    Examples
    --------
    >>> from skconvrfm import ConvRFMClassifier
    >>> from skconvrfm.datasets import load_digit_images
    >>> from skconvrfm.display import ExplanationDisplay
    >>> X, y = load_digit_images(return_X_y=True)
    >>> clf = ConvRFMClassifier("gaussian", features="auto").fit(X[:60], y[:60])
    >>> display = ExplanationDisplay.from_estimator(clf, X[200], target=1)
    >>> display.by_pixel.shape, display.by_patch.shape
    ((8, 8), (8, 8))
    """

    image: ArrayLike
    by_pixel: ArrayLike
    by_patch: ArrayLike
    title: str = ""

    @classmethod
    def from_estimator(
        cls,
        estimator: BaseEstimator,
        image: ArrayLike,
        *,
        target: Any = None,
        patch_size: Pair | None = None,
        ax: Any = None,
    ) -> ExplanationDisplay:
        """Explain the prediction of a fitted estimator for one image.

        Parameters
        ----------
        estimator : ConvRFMClassifier or ConvRFMRegressor
            Fitted estimator, of any kernel and layers.
        image : array-like of shape (h, w), (h, w, c) or (n_features,)
            One image, laid out as those of `fit`.
        target : class, int or None, default=None
            The class that is explained, or the number of a regressor's output. None is
            the class that is predicted.
        patch_size : int or (int, int), default=None
            Rows and columns of the patches that are hidden; None is an eighth of the
            longer side, at least 2 pixels.
        ax : matplotlib Axes or sequence of 3 of them, default=None
            Axes as in :meth:`plot`.
        """
        check_matplotlib()
        X = np.asarray(image)[None]
        explained = explained_targets(estimator, X, target)
        gradient = pixel_gradients(estimator, X, target=target)[0]
        occlusion = patch_occlusion(estimator, X, target=target, patch_size=patch_size)
        pixels = images_of(estimator, X)[0]
        difference = pixels - pixels.mean((0, 1))
        return cls(
            image=pixels,
            by_pixel=(gradient * difference).sum(2),
            by_patch=occlusion[0],
            title=_title(estimator, X, explained),
        ).plot(ax)

    def plot(self, ax: Any = None) -> ExplanationDisplay:
        """Draw the image and the maps side by side, and return the display.

        Parameters
        ----------
        ax : matplotlib Axes or sequence of 3 of them, default=None
            Axes for each, or one for all; by default in a new figure.
        """
        image = np.asarray(self.image)
        height, width = image.shape[:2]
        side = min(_LONGEST_SIDE, 2.6 * max(1.0, height / width))
        axes = make_axes(ax, 3, 3, (10.0, side + 0.8), _WHAT)
        self.axes_, self.figure_ = axes, axes[0].figure
        self.images_ = [axes[0].imshow(stretched(image), cmap="gray")]
        self.colorbars_ = []
        for one, values in zip(axes[1:], (self.by_pixel, self.by_patch), strict=True):
            peak = np.abs(values).max() or 1.0
            drawn = one.imshow(values, interpolation="nearest", **signed(peak))
            self.images_.append(drawn)
            bar = self.figure_.colorbar(drawn, ax=one, shrink=0.8)
            self.colorbars_.append(bar)
        self.colorbars_[-1].set_label("against            for")
        names = self.title, "by pixel: gradient × difference", "by patch: occlusion"
        for one, name in zip(axes, names, strict=True):
            one.set_title(name, fontsize="medium")
            one.set(xticks=[], yticks=[])
        return self


def _title(estimator, X, explained):
    """Return target, score and probability of one image, as text."""
    [target], [score] = explained.targets, explained.scores
    if not is_classifier(estimator):
        return f"output {target}: {score:.3g}"
    probabilities = estimator.predict_proba(X)[0]
    share = probabilities[np.flatnonzero(estimator.classes_ == target)[0]]
    return f"class {target}: score {score:.2f}\nprobability {share:.1%}"

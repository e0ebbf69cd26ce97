"""Display of images under a learned patch metric."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import BaseEstimator

from .._input import make_resources
from ..compute.torch_state import plain_torch
from ..features.maps import compute_features
from ..features.projections import EigenProjections, Saliency
from ..learning.rounds import leading_eigenvectors
from ._axes import make_axes, signed, stretched
from ._learned import learned_layer

_WHAT = "image, saliency and filtered image for each image"
_LONGEST_ASPECT = 8  # longer images are drawn without square pixels


@dataclass(kw_only=True, eq=False, repr=False)
class SaliencyDisplay:
    """Images, the places of their signal, and one pattern followed through them.

    A row for each image: the image; its *saliency*, the length ‖T v‖ of the transformed
    patch v at each location; and the image filtered by one eigenvector of the learned
    metric M = T Tᵀ. Use :meth:`from_estimator` to make one;
    :class:`PatchFiltersDisplay` shows the patterns themselves, and
    :class:`skconvrfm.PatchAGOPTransformer` gives saliency and projections as arrays.

    Saliency is the same whatever class is predicted: it shows where an image has the
    patterns that the machine looks at, not what speaks for or against a class. For the
    evidence of one prediction see :class:`ExplanationDisplay`.

    An image is stretched from its smallest to its largest pixel; of other than one or
    three channels the norm is shown. Saliency runs from black (0) to yellow, and the
    filtered image from blue (negative) over white (0) to red, both on one scale for all
    images. A value is drawn on the centre of its patch, so that the three pictures of
    a row can be laid on each other; without a margin of zeros, no patch is centred on
    the outermost pixels, and the border stays grey. Pixels are squares, but rows that
    are not images, or very long ones, fill the axes.

    Parameters
    ----------
    images, saliency, projections : array-like
        Images (n_images, h, w, c); at each location, (n_images, rows, columns), the
        length of the transformed patch, and the patch's product with the eigenvector.
    offset, projection_name : tuple of float, str
        Row and column of the image that are the centre of the first patch; title of
        the filtered images.

    Attributes
    ----------
    figure_, axes_, images_ : Figure, ndarray of Axes, list of AxesImage (matplotlib)
        The figure, or subfigure; axes of image, saliency and filtered image, of shape
        (n_images, 3); the pictures, row by row.

    Examples
    --------
    >>> from skconvrfm import ConvRFMClassifier
    >>> from skconvrfm.datasets import make_framed_digits
    >>> from skconvrfm.display import SaliencyDisplay
    >>> X, y = make_framed_digits(random_state=0)
    >>> clf = ConvRFMClassifier(n_rounds=1).fit(X[:100], y[:100])
    >>> display = SaliencyDisplay.from_estimator(clf, X[100:], n_images=2)
    >>> display.axes_.shape, display.saliency.shape
    ((2, 3), (2, 10, 10))
    """

    images: ArrayLike
    saliency: ArrayLike
    projections: ArrayLike
    offset: tuple[float, float] = (0.0, 0.0)
    projection_name: str = "Eigenvector"

    @classmethod
    @plain_torch()
    def from_estimator(
        cls,
        estimator: BaseEstimator,
        X: ArrayLike,
        *,
        n_images: int = 4,
        component: int = 0,
        ax: Any = None,
    ) -> SaliencyDisplay:
        """Draw images under the metric that a fitted estimator learned.

        Parameters
        ----------
        estimator : ConvRFMClassifier, ConvRFMRegressor or PatchAGOPTransformer
            Fitted estimator whose first layer, which sees the images, is drawn.
        X : array-like of shape (n_samples, ...)
            Images, laid out as in `fit`.
        n_images, component : int, default=4 and 0
            Number of images, from the first on, or all of them if there are fewer; the
            eigenvector to filter with, 0 for that of the largest eigenvalue.
        ax : matplotlib Axes or sequence of 3 * n_images of them, default=None
            Axes as in :meth:`plot`.
        """
        learned, machine = learned_layer(estimator, 0)
        # The learned T also where round 0 was kept.
        layer, transform = learned.layer_, learned.filter_transform_
        if n_images < 1:
            raise ValueError(f"n_images={n_images!r} must be at least 1.")
        if component not in range(len(transform)):
            raise ValueError(
                f"component={component!r} is not one of the {len(transform)} "
                f"eigenvectors, 0 to {len(transform) - 1}."
            )
        images = machine._check_images(X)[:n_images]
        place = machine.device, machine.dtype, machine.n_jobs
        resources = make_resources(*place, images)
        vector = leading_eigenvectors(transform, component + 1)[component:]
        filtered = EigenProjections(layer, vector, rectification=None, pool=None)
        lengths = compute_features(Saliency(layer, transform), images, resources)
        (rows, columns), (top, _, left, _) = layer.patch, layer.padding
        return cls(
            images=images,
            saliency=lengths[..., 0],
            projections=compute_features(filtered, images, resources)[..., 0],
            offset=((rows - 1) / 2 - top, (columns - 1) / 2 - left),
            projection_name=f"Eigenvector {component}",
        ).plot(ax)

    def plot(self, ax: Any = None) -> SaliencyDisplay:
        """Draw a row of three pictures for each image, and return the display.

        Parameters
        ----------
        ax : matplotlib Axes or sequence of 3 * n_images of them, default=None
            Axes for each, or one for all; by default in a new figure.
        """
        images = np.asarray(self.images)
        saliency, projections = np.asarray(self.saliency), np.asarray(self.projections)
        n_images, height, width, _ = images.shape
        thin = max(height, width) > _LONGEST_ASPECT * min(height, width)
        high_row = 1.0 if thin else min(2.0 * height / width, 4.0)
        size = (6.0, 0.4 + high_row * n_images)
        axes = make_axes(ax, 3 * n_images, 3, size, _WHAT)
        self.axes_, self.figure_ = axes.reshape(n_images, 3), axes[0].figure
        top, left = np.subtract(self.offset, 0.5)
        rows, columns = saliency.shape[1:]
        on_image = {"extent": (left, left + columns, top + rows, top)}
        heat = {"cmap": "inferno", "vmin": 0, "vmax": saliency.max() or 1.0}
        two_sided = signed(np.abs(projections).max() or 1.0)
        options = {"cmap": "gray"}, {**heat, **on_image}, {**two_sided, **on_image}
        frame: dict[str, Any] = {"xticks": [], "yticks": [], "facecolor": "0.85"}
        frame |= {"xlim": (-0.5, width - 0.5), "ylim": (height - 0.5, -0.5)}
        self.images_ = []
        for place, one in enumerate(axes):
            row, column = divmod(place, 3)
            pixels = (stretched(images[row]), saliency[row], projections[row])[column]
            drawn = one.imshow(pixels, interpolation="nearest", **options[column])
            self.images_.append(drawn)
            one.set(aspect="auto" if thin else "equal", **frame)
        names = ("Image", "Saliency", self.projection_name)
        for one, name in zip(self.axes_[0], names, strict=True):
            one.set_title(name, fontsize="medium")
        return self

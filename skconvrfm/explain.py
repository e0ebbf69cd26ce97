"""Explanations of single predictions: gradients by pixel, and occlusion by patch.

The score that is explained is that of one output: a class, a label or a target. Both
answer what the score owes to a part of the image, at the pixel or at a patch.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import is_classifier

from ._input import check_pair, make_resources
from ._typing import Floats, Pair
from .compute.blocks import balanced_blocks
from .compute.images import as_images
from .compute.torch_state import plain_torch
from .features.gradients import input_gradients
from .features.maps import hold_maps, pass_through
from .features.skips import fitted_scales
from .kernels.base import PatchKernel
from .kernels.input_gradients import PatchReadout
from .learning.feature_sums import LinearReadout, RadialReadout

__all__ = ["patch_occlusion", "pixel_gradients"]

_OCCLUDED = 2**25  # numbers of the images that are predicted at once
_PATCHES_A_SIDE = 8  # of the default patch, by which the longer side is divided


def pixel_gradients(estimator: Any, X: ArrayLike, *, target: Any = None) -> Floats:
    """Compute the exact gradient of a class's score with respect to every pixel.

    It says how the score of each image changes where a pixel becomes brighter. The
    gradient is computed in closed form through the kernel and all feature layers, in
    the precision of the predictions. Where a maximum or a rectifier has a kink, it is
    that of one side.

    Parameters
    ----------
    estimator : ConvRFMClassifier or ConvRFMRegressor
        Fitted estimator, of any kernel and layers.
    X : array-like of shape (n_samples, ...)
        Images, laid out as in `fit`.
    target : class, int or None, default=None
        The class whose score is explained, as in ``classes_``; the number of the output
        of a regressor. None is the class predicted for each image; of label sets, the
        label of the highest score; of a regressor, its only output.

    Returns
    -------
    gradients : ndarray of shape (n_samples, h, w, c), float64
        Gradients of the score of the target: of its value in `decision_function`, with
        the other sign for the first of two classes, and of `predict` of a regressor.
        Channels are last, whatever `channels` of the estimator is.

    Raises
    ------
    ValueError
        For a target that the estimator does not know, or none for several outputs.

    Examples
    --------
    >>> from skconvrfm import ConvRFMClassifier
    >>> from skconvrfm.datasets import load_digit_images
    >>> from skconvrfm.explain import pixel_gradients
    >>> X, y = load_digit_images(return_X_y=True)
    >>> clf = ConvRFMClassifier("gaussian", features="auto").fit(X[:60], y[:60])
    >>> pixel_gradients(clf, X[200:203], target=3).shape
    (3, 8, 8, 1)
    """
    explained = explained_targets(estimator, X, target)
    used, place = np.unique(explained.outputs, return_inverse=True)
    gradients = _output_gradients(estimator, X, used)
    chosen = gradients[np.arange(len(gradients)), place.ravel()]
    return chosen * explained.signs[:, None, None, None]


def patch_occlusion(
    estimator: Any,
    X: ArrayLike,
    *,
    target: Any = None,
    patch_size: Pair | None = None,
) -> Floats:
    """Compute by how much a class's score falls where a patch is hidden.

    Each patch in turn is replaced by the mean colour of its image. Patches overlap by
    half, and the value of a pixel is the mean over the patches on it.

    Parameters
    ----------
    estimator, X, target
        As in :func:`pixel_gradients`.
    patch_size : int or (int, int), default=None
        Rows and columns of a patch, at most those of an image. None is an eighth of the
        longer side, at least 2 pixels, which shows parts of an object by some 250
        predictions an image.

    Returns
    -------
    falls : ndarray of shape (n_samples, h, w), float64
        The score of the image minus that of the image without the patch: positive where
        the patch speaks for the target, negative where it speaks against it.

    Raises
    ------
    ValueError
        For a patch larger than the images, or a target as in :func:`pixel_gradients`.

    Examples
    --------
    >>> from skconvrfm import ConvRFMClassifier
    >>> from skconvrfm.datasets import load_digit_images
    >>> from skconvrfm.explain import patch_occlusion
    >>> X, y = load_digit_images(return_X_y=True)
    >>> clf = ConvRFMClassifier("gaussian", features="auto").fit(X[:60], y[:60])
    >>> patch_occlusion(clf, X[200:203], patch_size=3).shape
    (3, 8, 8)
    """
    explained = explained_targets(estimator, X, target)
    images = images_of(estimator, X)
    height, width = images.shape[1:3]
    rows, columns = _occlusion_size(patch_size, height, width)
    places = [
        (slice(top, top + rows), slice(left, left + columns))
        for top in _starts(height, rows)
        for left in _starts(width, columns)
    ]
    falls, counts = np.zeros(images.shape[:3]), np.zeros((height, width))
    for place in places:
        counts[place] += 1
    parts = zip(images, explained.outputs, explained.signs, strict=True)
    for index, (image, output, sign) in enumerate(parts):
        without = sign * _outputs_without(estimator, image, places)[:, output]
        changes = explained.scores[index] - without
        for place, change in zip(places, changes, strict=True):
            falls[(index, *place)] += change
    return falls / counts


def images_of(estimator, X):
    """Return images (n, h, w, c) of a fitted estimator, with the pixels of `X`."""
    return np.asarray(estimator._check_images(X)[:]) * estimator.scale_


@dataclass(frozen=True)
class Explained:
    """The targets that are explained, an entry for each image."""

    targets: np.ndarray  # classes, labels, or numbers of outputs
    scores: np.ndarray
    outputs: np.ndarray  # columns of the raw predictions
    signs: np.ndarray  # by which these are multiplied, 1 or -1


def explained_targets(estimator, X, target=None):
    """Return the `Explained` of images, see `pixel_gradients` for a target of None."""
    if not hasattr(estimator, "_predict_raw"):
        raise TypeError(
            f"{type(estimator).__name__} cannot be explained; pass a fitted "
            "ConvRFMClassifier or ConvRFMRegressor (of a pipeline, its step)."
        )
    scores = estimator._predict_raw(X)
    columns = np.arange(scores.shape[1])
    names, signs = getattr(estimator, "classes_", columns), np.ones(len(columns))
    if len(names) > len(columns):  # two classes share an output
        scores, columns = np.hstack([-scores, scores]), np.array([0, 0])
        signs = np.array([-1.0, 1.0])
    codes = _codes(target, names, scores, is_classifier(estimator))
    chosen = np.take_along_axis(scores, codes[:, None], axis=1)[:, 0]
    return Explained(names[codes], chosen, columns[codes], signs[codes])


def _codes(target, names, scores, has_classes):
    """Return the number of the target of each image."""
    if target is None:
        if not has_classes and len(names) > 1:
            raise ValueError(
                f"target=None, but the estimator has {len(names)} outputs; pass the "
                f"number of one, 0 to {len(names) - 1}."
            )
        return scores.argmax(axis=1)
    [found] = np.nonzero(names == target)
    if len(found) != 1:
        some = ", ".join(repr(name) for name in names[:10].tolist())
        more = ", ..." if len(names) > 10 else ""
        what = "classes" if has_classes else "outputs"
        raise ValueError(f"target={target!r} is not among the {what} {some}{more}.")
    return np.full(len(scores), found[0])


@plain_torch()
def _output_gradients(estimator, X, outputs):
    """Return the gradients of some outputs, float64 (n, n_outputs, h, w, c)."""
    kernel, features = estimator.kernel_, estimator.features_
    images = estimator._check_images(X)
    coef, centres, _ = estimator._check_fitted()
    coef = coef[:, outputs]
    learned = [a for f in features for a in (f.filters_, f.biases_)]
    place = estimator.device, estimator.dtype, estimator.n_jobs
    resources = make_resources(*place, images, centres, learned=learned)
    maps, scales = [layer.maps_ for layer in features], ()
    scale = estimator.scale_  # by which the machine divides pixels
    if isinstance(kernel, PatchKernel):
        centres = as_images(centres, estimator.image_shape_, estimator.channels_, scale)
        centres = hold_maps(pass_through(centres, maps), resources)
        transform = kernel.patch_transform_
        readout = PatchReadout(kernel, centres, coef, transform, resources)
    else:
        scales = fitted_scales(features)
        linear = LinearReadout(coef)
        readout = linear if centres is None else RadialReadout(kernel, centres, coef)
    return input_gradients(maps, readout, images, resources, scales) / scale


def _occlusion_size(patch_size, height, width):
    """Return the rows and columns of the patches that are hidden."""
    if patch_size is None:
        side = max(2, math.ceil(max(height, width) / _PATCHES_A_SIDE))
        return min(side, height), min(side, width)
    rows, columns = check_pair(patch_size, "patch_size")
    if rows > height or columns > width:
        raise ValueError(
            f"patch_size={patch_size!r} is larger than the images of {height} x "
            f"{width} pixels; hide a part of them."
        )
    return rows, columns


def _starts(size, patch):
    """Return where patches begin that overlap by half and reach both ends."""
    n_patches = 1 + math.ceil((size - patch) / max(1, patch // 2))
    return np.linspace(0, size - patch, n_patches).round().astype(int)


def _outputs_without(estimator, image, places):
    """Return the outputs of an image with each place in turn at the image's mean."""
    mean, outputs = image.mean((0, 1)), []
    floats = image.dtype if image.dtype.kind == "f" else np.float32
    for part in balanced_blocks(slice(0, len(places)), _OCCLUDED // image.size):
        hidden = np.repeat(image[None].astype(floats), part.stop - part.start, axis=0)
        for one, place in zip(hidden, places[part], strict=True):
            one[place] = mean
        if estimator.channels_ == "first":
            hidden = np.moveaxis(hidden, 3, 1)
        outputs.append(estimator._predict_raw(hidden))
    return np.concatenate(outputs)

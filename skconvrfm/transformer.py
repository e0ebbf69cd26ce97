"""Features for other estimators, made with a patch metric that ConvRFM learns."""

from __future__ import annotations

import math
from numbers import Integral
from typing import TYPE_CHECKING, Literal, TypeAlias, get_args

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import TransformerMixin, clone
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import check_is_fitted

from ._docs import FIT, GROUPS, IMAGES, RETURNS, WEIGHTS, fill_in
from ._input import ImageInput, all_or_nothing, check_pair, make_resources
from ._sequences import as_numpy, read_images, read_pairs
from ._sklearn_compat import (
    Interval,
    StrOptions,
    check_feature_names_in,
    fit_method,
    output_container,
)
from ._typing import Activation, Array, Pair, Weights
from .compute.progress import show_progress
from .compute.torch_state import plain_torch
from .estimators import ConvRFMClassifier, ConvRFMRegressor
from .features.filters import draw_filters
from .features.maps import ACTIVATIONS, FilterLayer, compute_features, pass_through
from .features.projections import EigenProjections, Saliency, SeenImage
from .features.skips import SideBySide, fitted_scales, kernel_features
from .learning.fitted import check_numbers, check_positive
from .learning.rounds import leading_eigenvectors, rank

if TYPE_CHECKING:
    from typing_extensions import Self

Output: TypeAlias = Literal["filters", "eigen", "saliency", "image", "features"]
Rectification: TypeAlias = Literal["absolute", "halves"]


@fill_in(fit=FIT, weights=WEIGHTS, groups=GROUPS, returns=RETURNS, images=IMAGES)
class PatchAGOPTransformer(TransformerMixin, ImageInput):
    """Image features under a patch metric that is learned from the targets.

    Fits :class:`ConvRFMClassifier` or :class:`ConvRFMRegressor` to learn which
    directions of a patch matter to the targets, the patch metric M = T Tᵀ, and gives
    features that any estimator takes.

    Parameters
    ----------
    estimator : ConvRFMClassifier or ConvRFMRegressor, default=None
        Learns the metric, as a clone. None is one with default parameters, a classifier
        or a regressor by :func:`sklearn.utils.multiclass.type_of_target`: whole numbers
        are classes, so that counts and ratings need a ``ConvRFMRegressor()``.
    output : {"filters", "eigen", "saliency", "image", "features"}, default="filters"
        Result of :meth:`transform`:

        - ``"filters"``: convolution with `n_filters` filters drawn from N(0, M),
          `activation` and `pool`; the features of a wide network's first layer, as in
          Deep ConvRFM (:arxiv:`2309.00570`).
        - ``"eigen"``: projections on the `n_components` leading eigenvectors of M,
          `rectification` and `pool`; fewer features, each with a meaning.
        - ``"saliency"``: the length of the transformed patch ``‖T v‖`` at each
          location, a picture of where the signal is, which
          :class:`~skconvrfm.display.SaliencyDisplay` draws.
        - ``"image"``: the image as the metric sees it, of the shape of the input: each
          pixel is the mean of the entries of the transformed patches that lie on it.
        - ``"features"``: the pooled maps that the estimator's kernel sees behind its
          feature layers, which it then needs.
    n_filters : int, default=64
        Filters of ``"filters"``.
    activation : {"relu", "identity"}, default="relu"
        Function that follows the filters. Pooled linear features are those of the mean
        patch, so that ``"identity"`` is of use mostly without `pool`.
    n_components : int, default=8
        Eigenvectors of ``"eigen"``, at most as many as M has eigenvalues that are not
        rounding: with few filters its rank is less than the entries of a patch.
    rectification : {"absolute", "halves"}, default="absolute"
        Function that follows the projections, since an eigenvector's sign has no
        meaning: the absolute value, or positive and negative part as two features.
    pool : int, (int, int) or None, default=(2, 2)
        Rows and columns of the grid of cells whose means ``"filters"`` and ``"eigen"``
        are, clipped to the map; None keeps every location.

    Attributes
    ----------
    estimator_ : ConvRFMClassifier or ConvRFMRegressor
        The fitted estimator.
    patch_transform_, patch_agop_ : ndarray of shape (d, d)
        Patch transform T of the features, for patches of d = c·rows·columns entries in
        the order (channel, row, column): that of the round that was kept or, where this
        is round 0, which has learned none, of the AGOP of its predictor; patch AGOP of
        the predictor of the round that was kept.
    filters_, components_ : ndarray of shape (n_filters, d), (n_components, d)
        The filters, drawn from N(0, M); the leading eigenvectors of M, the largest
        entry of each positive.
    image_shape_, patch_shape_, output_shape_ : tuple of int
        Rows, columns and channels of an image; rows and columns of a patch; rows,
        columns and maps of the features, in this order in a row of the result.
    scale_, learned_layers_, best_round_, alpha_, history_
        Of the fitted estimator, see :class:`ConvRFMClassifier`.
    n_features_in_, feature_names_in_ : int, ndarray of shape (`n_features_in_`,)
        Number of features of a row; their names, where `X` had string names.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from skconvrfm import ConvRFMClassifier, PatchAGOPTransformer
    >>> from skconvrfm.datasets import load_digit_images
    >>> X, y = load_digit_images(return_X_y=True)
    >>> learner = ConvRFMClassifier(n_rounds=1)
    >>> features = PatchAGOPTransformer(learner, pool=(3, 3))
    >>> model = make_pipeline(features, LogisticRegression(max_iter=1000))
    >>> bool(model.fit(X[:200], y[:200]).score(X[200:400], y[200:400]) > 0.9)
    True
    """

    _parameter_constraints: dict = {
        "estimator": [ConvRFMClassifier, ConvRFMRegressor, None],
        "output": [StrOptions(set(get_args(Output)))],
        "n_filters": [Interval(Integral, 1, None, closed="left")],
        "activation": [StrOptions(set(ACTIVATIONS))],
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "rectification": [StrOptions(set(get_args(Rectification)))],
        "pool": [Interval(Integral, 1, None, closed="left"), tuple, list, None],
    }

    def __init__(
        self,
        estimator: ConvRFMClassifier | ConvRFMRegressor | None = None,
        *,
        output: Output = "filters",
        n_filters: int = 64,
        activation: Activation = "relu",
        n_components: int = 8,
        rectification: Rectification = "absolute",
        pool: Pair | None = (2, 2),
    ) -> None:
        self.estimator = estimator
        self.output = output
        self.n_filters = n_filters
        self.activation = activation
        self.n_components = n_components
        self.rectification = rectification
        self.pool = pool

    @all_or_nothing
    @fit_method
    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike | None = None,
        sample_weight: Weights = None,
        groups: ArrayLike | None = None,
    ) -> Self:
        """Learn the patch metric.

        Parameters
        ----------
        %(fit)s
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Classes or real targets, see `estimator`.
        %(weights)s
        %(groups)s
        %(returns)s
        """
        return self._fit(X, y, sample_weight, groups)

    def _fit(self, X, y, sample_weight, groups):
        """Fit the estimator, and make the features of what it learned."""
        single = "None, nor a positive int,"
        pool = None if self.pool is None else check_pair(self.pool, "pool", single)
        X, y = read_pairs(X, y)
        self._learner = _make_learner(self.estimator, as_numpy(y, "y"))
        try:
            X, y, image_shape = self._validate_fit(X, y)
            estimator = self._learner.set_params(image_shape=image_shape)
        finally:
            del self._learner
        estimator.fit(X, y, sample_weight, groups)
        if not estimator.learned_layers_:
            raise ValueError(
                f"kernel={estimator.kernel_!r} compares whole images and learns no "
                "patch metric: take a kernel of patches such as ConvNTK(), or feature "
                "layers below it."
            )
        learned = estimator.learned_layers_[0]
        self.estimator_, self.image_shape_ = estimator, image_shape
        for name in ("channels_", "scale_", "alpha_", "best_round_", "history_"):
            setattr(self, name, getattr(estimator, name))
        self.patch_shape_, self.patch_agop_ = learned.patch_shape_, learned.patch_agop_
        self.patch_transform_ = transform = learned.filter_transform_
        rng = estimator._rng_of_filters(y)
        self.filters_ = draw_filters(transform, self.n_filters, rng)
        options = estimator.device, estimator.dtype, estimator.n_jobs
        dtype = make_resources(*options, X).numpy_dtype
        n_directions = rank(transform, estimator.agop_power, dtype)
        n_components = min(self.n_components, n_directions)
        self.components_ = leading_eigenvectors(transform, n_components)
        self.maps_ = self._make_maps(learned.layer_, pool)
        self.output_shape_ = self.maps_[-1].shape
        return self

    @plain_torch()
    def transform(self, X: ArrayLike) -> Array:
        """Make features of images.

        %(images)s

        Returns
        -------
        X_new : ndarray of shape (n_samples, n_features_out)
            Features in float32, or float64 for data that need it. Those of
            ``output="image"`` have the shape of `X`, except in a data frame.
        """
        X = read_images(X)
        images = self._check_images(X)
        learned, fitted = (self.patch_transform_, self.filters_), self.estimator_
        options = fitted.device, fitted.dtype, fitted.n_jobs
        resources = make_resources(*options, images, learned=learned)
        *below, top = self.maps_
        with show_progress(type(self).__name__, fitted.verbose):
            features = compute_features(top, pass_through(images, below), resources)
        if isinstance(top, SeenImage):
            return self._like_input(features, X)
        return features.reshape(len(features), -1)

    @property
    def learned_layers_(self):
        """Layers of the fitted estimator that learned, see `ConvRFMClassifier`."""
        return self.estimator_.learned_layers_

    def get_feature_names_out(self, input_features: ArrayLike | None = None) -> Array:
        """Return the names of the features.

        Parameters
        ----------
        input_features : array-like of str, default=None
            Names of the columns of `X`, and of ``output="image"``; else only checked.

        Returns
        -------
        names : ndarray of str objects
            ``"filter3_0_1"`` is filter 3 in row 0 and column 1 of the grid (or map),
            ``"eigen3_0_1"`` eigenvector 3 there, with ``"eigen3+"`` and ``"eigen3-"``
            for its halves, and ``"saliency_0_1"`` the location in row 0 and column 1.
        """
        check_is_fitted(self)
        names_in = check_feature_names_in(self, input_features)
        if isinstance(self.maps_[-1], SeenImage):
            return names_in
        places, names = np.ndindex(self.output_shape_[:2]), _map_names(self.maps_[-1])
        all_names = [f"{name}_{row}_{col}" for row, col in places for name in names]
        return np.array(all_names, dtype=object)

    def _check_fitted(self):
        """Refuse a fit that was changed."""
        check_positive("scale_", self.scale_)
        d = self.image_shape_[2] * math.prod(self.patch_shape_)
        check_numbers("patch_transform_", self.patch_transform_, (d, d))
        for name in ("filters_", "components_"):
            check_numbers(name, getattr(self, name), (None, d))
        if self.maps_[-1].shape != self.output_shape_:
            raise ValueError(
                f"output_shape_ is {self.output_shape_}, but filters_ and components_ "
                f"give {self.maps_[-1].shape}; fit the estimator again."
            )

    def _image_parameters(self):
        return self._learner._image_parameters()

    def _make_maps(self, layer, pool):
        """Return the callables that make the features, each of the maps before it."""
        if self.output == "filters":
            return [FilterLayer(layer, self.filters_, self.activation, pool=pool)]
        if self.output == "eigen":
            return [EigenProjections(layer, self.components_, self.rectification, pool)]
        if self.output == "saliency":
            return [Saliency(layer, self.patch_transform_)]
        if self.output == "image":
            return [SeenImage(layer, self.patch_transform_, self.image_shape_)]
        if not self.estimator_.features_:
            raise ValueError(
                "output='features' gives the maps of feature layers, but the machine "
                f"that was kept of features={self.estimator_.features!r} has none: "
                "pass an estimator with features=ConvFeatures() under a kernel of "
                "whole maps, or take output='filters'."
            )
        features = self.estimator_.features_
        maps, scales = [layer.maps_ for layer in features], fitted_scales(features)
        top, below = kernel_features(maps, scales, self.image_shape_)
        return [*below, top]

    def _like_input(self, images, X):
        """Return images (n, h, w, c) laid out as the input; flat for a data frame."""
        if self.channels_ == "first":
            images = images.transpose(0, 3, 1, 2)
        rows = self._flatten(X, self.channels_)[1] is None
        if rows or output_container(self) != "default":
            return images.reshape(len(images), -1)
        return images.reshape(np.shape(X))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags


def _make_learner(estimator, y):
    """Return an unfitted clone of the estimator; None is one that suits y."""
    if estimator is not None:
        return clone(estimator)
    classes = "binary", "multiclass", "multilabel-indicator"
    if y is None or type_of_target(y, input_name="y", raise_unknown=True) in classes:
        return ConvRFMClassifier()  # which refuses None in better words
    return ConvRFMRegressor()


def _map_names(maps):
    """Return the names of the maps at one location."""
    if isinstance(maps, FilterLayer):
        return [f"filter{index}" for index in range(maps.n_maps)]
    if isinstance(maps, SideBySide):
        return [f"feature{index}" for index in range(maps.n_maps)]
    if isinstance(maps, Saliency):
        return ["saliency"]
    names = [f"eigen{index}" for index in range(len(maps.components))]
    if maps.rectification == "absolute":
        return names
    return [f"{name}{sign}" for sign in "+-" for name in names]

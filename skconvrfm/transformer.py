"""Features for other estimators, made with a patch metric that ConvRFM learns."""

from __future__ import annotations

from numbers import Integral
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import TransformerMixin
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils._set_output import _get_output_config
from sklearn.utils.multiclass import type_of_target
from sklearn.utils.validation import (
    _check_feature_names_in,
    check_is_fitted,
)

from ._typing import (
    Activation,
    Array,
    Channels,
    Device,
    Dtype,
    File,
    Filters,
    ImageShape,
    Kernel,
    Method,
    Padding,
    Pair,
    RandomState,
    Selection,
    fit_method,
)
from .base import DEFAULT_ALPHAS, BaseConvRFM, all_or_nothing
from .core.features import (
    EigenProjections,
    FilterLayer,
    Saliency,
    SeenImage,
)
from .core.images import convolution_layers
from .core.rounds import leading_eigenvectors
from .core.tiles import compute_features
from .estimators import ConvRFMClassifier, ConvRFMRegressor
from .kernels import check_pair, check_weights, make_resources
from .methods import resolve_method

if TYPE_CHECKING:
    from typing_extensions import Self

OUTPUTS = ("filters", "eigen", "saliency", "image")
RECTIFICATIONS = ("absolute", "halves")
TASKS = {"classification": ConvRFMClassifier, "regression": ConvRFMRegressor}


class PatchAGOPTransformer(TransformerMixin, BaseConvRFM):
    """Image features under a patch metric that is learned from the targets.

    Fits ConvRFM to learn which directions of a patch matter to the targets, the patch
    metric M = T Tᵀ, and gives features that any estimator takes: convolutions with
    filters drawn from the metric or with its eigenvectors, pooled; a picture of where
    the signal is; or the image as the metric sees it.

    Parameters
    ----------
    output : {"filters", "eigen", "saliency", "image"}, default="filters"
        What :meth:`transform` gives:

        - ``"filters"``: convolution with `n_filters` filters drawn from N(0, M),
          `activation`, and the mean over each cell of the grid `pool`. The features of
          a wide network's first layer.
        - ``"eigen"``: projections on the `n_components` leading eigenvectors of M,
          `rectification`, and the mean over each cell of the grid `pool`. Fewer
          features, each with a meaning.
        - ``"saliency"``: the length of the transformed patch ``‖T v‖`` at each
          location: a picture of where the signal is.
        - ``"image"``: the image as the metric sees it, of the shape of the input: each
          pixel is the mean of the entries of the transformed patches that lie on it.
    method : {"auto", "exact", "features"}, default="auto"
        What learns the metric: ConvRFM with its exact kernel, or the linear machine on
        the very features that this transformer gives with ``output="filters"``, which
        then has filters of its own round. ``"auto"`` goes by the size of the data. See
        :class:`ConvRFMClassifier`.
    n_filters : int or "auto", default="auto"
        Filters of ``output="filters"``; ``"auto"`` is 64 where the kernel is exact and
        512 with ``method="features"``.
    filters, initial_metric, threshold, antithetic, pool_power
        How filters are made with ``method="features"``, see
        :class:`ConvRFMClassifier`.
    activation : {"relu", "identity"}, default="relu"
        What follows the filters. The mean of linear features is a linear feature of the
        mean patch, so that ``"identity"`` is of use mostly without `pool`.
    n_components : int, default=8
        Eigenvectors of ``output="eigen"``; no more than a patch has entries are taken.
    rectification : {"absolute", "halves"}, default="absolute"
        What follows the projections on eigenvectors, whose sign has no meaning of its
        own: the absolute value, or the positive and the negative part as two features.
    pool : int, (int, int) or None, default=(2, 2)
        Rows and columns of a grid of cells, over each of which ``"filters"`` and
        ``"eigen"`` are averaged. It is clipped to the map; None keeps every location.
    task : {"auto", "classification", "regression"}, default="auto"
        How `y` is read. ``"auto"`` goes by its type
        (:func:`sklearn.utils.multiclass.type_of_target`): numbers that are all whole
        are classes, so that counts and ratings need ``"regression"``.
    image_shape : tuple of int, default=None
        Rows and columns of an image, ``(h, w)``, or with channels ``(h, w, c)``. None
        takes it from `X` where that has three or four dimensions; a flat row is a
        square image where its width is a perfect square from 16 on, else one row of
        pixels. Colour images in flat rows need it.
    channels : {"last", "first"}, default="last"
        How the pixels of a flat row are laid out, (h, w, c) or (c, h, w); the same
        for four-dimensional `X`.
    kernel : {"ntk", "nngp", "laplace", "gaussian"}, default="ntk"
        The kernel that the metric is learned with, see :class:`ConvRFMClassifier`.
    depth : int, default=3
        Number of convolutions of the kernel; not for ``"laplace"`` and ``"gaussian"``.
    patch_size : int or (int, int), default=3
        Rows and columns of a patch, clipped to the image.
    padding : {"valid", "same"}, default="valid"
        Whether maps shrink by the patch less one, or are padded with zeros.
    bias : float, default=0.3
        Standard deviation of the bias of every convolution of the kernel.
    bandwidth : float or "auto", default="auto"
        Bandwidth of the patch kernels; ``"auto"`` is a weighted median of distances.
    n_rounds : int, default=4
        Updates of the patch transform after the first fit.
    agop_power : float, default=0.5
        The power of the patch AGOP that becomes the patch transform.
    agop_samples : "auto", int, float or None, default="auto"
        Images that carry the AGOP: a number, a fraction, None for all, or as many as
        make 20,000 patches, or 200,000 with ``method="features"``.
    alpha : float or array-like of float, default=half decades from 1e-6 to 1e2
        The ridge, in units of the largest diagonal entry of the kernel; of several,
        `selection` chooses.
    selection : {"gcv", "loo", "holdout", "last"}, default="gcv"
        What chooses ridge and round: generalised cross-validation, the leave-one-out
        error, that of a held-out fifth of the rows, or the last round.
    device : str, default="auto"
        ``"auto"`` is CUDA where torch finds it, else the CPU.
    dtype : {"auto", "float32", "float64"}, default="auto"
        Precision of the kernel and of the features. ``"auto"`` is the smaller that
        holds the images exactly: float64 stays float64, uint8 gives float32.
    n_jobs : int, default=None
        Tasks that share kernel tiles and blocks of images, through joblib.
    random_state : int, RandomState instance or None, default=None
        Seed of the draw of `agop_samples` and of the filters. None is a seed as well:
        fits are repeatable by default.
    verbose : int, default=0
        With 1, one line a round.
    checkpoint : str, path-like or None, default=None
        A folder in which the learning of the metric is kept after every round, for the
        same call to go on from, see :class:`ConvRFMClassifier`.
    checkpoint_on_error : {"raise", "restart"}, default="raise"
        What follows where the folder has the checkpoint of another fit, or a damaged
        one: an error, or a fit from the beginning in its place.

    Attributes
    ----------
    method_ : {"exact", "features"}
        What learned the metric.
    patch_transform_ : ndarray of shape (d, d)
        The patch transform T that the features are made with, for patches of
        d = c·rows·columns entries in the order (channel, row, column): that of the
        round that was kept; or, where this is round 0, which has learned none, the one
        that the AGOP of its predictor gives.
    filters_ : ndarray of shape (n_filters, d)
        The filters, drawn from N(0, M); with ``method="features"``, those of the round
        that was kept.
    biases_ : ndarray of shape (n_filters,)
        What is added to the responses of the filters; zero with the exact kernel.
    components_ : ndarray of shape (n_components, d)
        The leading eigenvectors of M, the largest entry of each positive.
    patch_agop_ : ndarray of shape (d, d)
        The patch AGOP of the predictor of the round that was kept.
    alpha_ : float
        Its ridge.
    best_round_ : int
        The round.
    history_ : dict of ndarray
        One entry a round, see :class:`ConvRFMClassifier`.
    image_shape_ : tuple of int
        Rows, columns and channels of an image.
    patch_shape_ : tuple of int
        Rows and columns of a patch.
    output_shape_ : tuple of int
        Rows, columns and maps of the features of an image, which lie in a row of the
        result in this order.
    n_features_in_ : int
        Number of features of a row.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, where `X` had string names.

    See Also
    --------
    ConvRFMClassifier, ConvRFMRegressor : The machines that learn the metric.
    skconvrfm.display.SaliencyDisplay : Pictures of saliency.

    Notes
    -----
    With the exact kernel a fit costs the square of the number of images, with
    ``method="features"`` it is linear in them, as the transform always is.

    References
    ----------
    Beaglehole, Radhakrishnan, Pandit, Belkin, "Mechanism of feature learning in
    convolutional neural networks", arXiv:2309.00570, Deep ConvRFM for the filters.

    Examples
    --------
    >>> from sklearn.linear_model import LogisticRegression
    >>> from sklearn.pipeline import make_pipeline
    >>> from skconvrfm import PatchAGOPTransformer
    >>> from skconvrfm.datasets import load_digit_images
    >>> X, y = load_digit_images(return_X_y=True)
    >>> features = PatchAGOPTransformer(pool=(3, 3), depth=2, n_rounds=1)
    >>> model = make_pipeline(features, LogisticRegression(max_iter=1000))
    >>> bool(model.fit(X[:200], y[:200]).score(X[200:400], y[200:400]) > 0.9)
    True
    >>> features.transform(X[:5]).shape
    (5, 576)
    """

    _parameter_constraints: dict = {
        **BaseConvRFM._parameter_constraints,
        "output": [StrOptions(set(OUTPUTS))],
        "n_components": [Interval(Integral, 1, None, closed="left")],
        "rectification": [StrOptions(set(RECTIFICATIONS))],
        "pool": [Interval(Integral, 1, None, closed="left"), tuple, list, None],
        "task": [StrOptions({"auto", *TASKS})],
    }

    def __init__(
        self,
        *,
        output: Literal["filters", "eigen", "saliency", "image"] = "filters",
        method: Method = "auto",
        n_filters: int | Literal["auto"] = "auto",
        filters: Filters = "patches",
        initial_metric: Literal["identity", "whiten"] = "whiten",
        activation: Activation = "relu",
        threshold: float = 0.5,
        antithetic: bool = False,
        pool_power: float = 0.5,
        n_components: int = 8,
        rectification: Literal["absolute", "halves"] = "absolute",
        pool: Pair | None = (2, 2),
        task: Literal["auto", "classification", "regression"] = "auto",
        image_shape: ImageShape = None,
        channels: Channels = "last",
        kernel: Kernel = "ntk",
        depth: int = 3,
        patch_size: Pair = 3,
        padding: Padding = "valid",
        bias: float = 0.3,
        bandwidth: float | Literal["auto"] = "auto",
        n_rounds: int = 4,
        agop_power: float = 0.5,
        agop_samples: float | Literal["auto"] | None = "auto",
        alpha: ArrayLike = DEFAULT_ALPHAS,
        selection: Selection = "gcv",
        device: Device = "auto",
        dtype: Dtype = "auto",
        n_jobs: int | None = None,
        random_state: RandomState = None,
        verbose: int = 0,
        checkpoint: File | None = None,
        checkpoint_on_error: Literal["raise", "restart"] = "raise",
    ) -> None:
        super().__init__(
            image_shape=image_shape,
            channels=channels,
            kernel=kernel,
            depth=depth,
            patch_size=patch_size,
            padding=padding,
            bias=bias,
            bandwidth=bandwidth,
            method=method,
            n_filters=n_filters,
            filters=filters,
            initial_metric=initial_metric,
            activation=activation,
            threshold=threshold,
            antithetic=antithetic,
            pool_power=pool_power,
            n_rounds=n_rounds,
            agop_power=agop_power,
            agop_samples=agop_samples,
            alpha=alpha,
            selection=selection,
            device=device,
            dtype=dtype,
            n_jobs=n_jobs,
            random_state=random_state,
            verbose=verbose,
            checkpoint=checkpoint,
            checkpoint_on_error=checkpoint_on_error,
        )
        self.output = output
        self.n_components = n_components
        self.rectification = rectification
        self.pool = pool
        self.task = task

    @all_or_nothing
    @fit_method
    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Learn the patch metric.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), (n_samples, h, w) or \
                (n_samples, h, w, c)
            Images, or rows of pixels, of any real dtype; may be stored, see
            :meth:`ConvRFMClassifier.fit`.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Classes or real targets, see `task`.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights; a row of weight 2 counts as two rows, one of weight 0 not at all.

        Returns
        -------
        self : object
            The fitted transformer. If the fit fails or is interrupted, it is as it was.

        Raises
        ------
        ValueError
            If X, y or a parameter is not usable; the message says what to do.
        OSError
            If the checkpoint cannot be written or read.
        """
        return self._fit(X, y, sample_weight)

    def _fit(self, X, y, sample_weight):
        X, y, image_shape = self._validate_fit(X, y)
        self._check_pool()
        n_rows = np.count_nonzero(check_weights(sample_weight, X))
        learner = self._make_learner(y, image_shape, n_rows)
        learned = learner.fit(X, y, sample_weight).layers_[0]

        self.method_ = learner.method_
        self.image_shape_ = image_shape
        self.patch_shape_ = learned.patch_shape_
        self.patch_transform_ = learned.filter_transform_
        self.filters_, self.biases_ = learned.filters, learned.biases
        self.offsets_ = learned.offsets
        self.components_ = leading_eigenvectors(
            learned.filter_transform_, self.n_components
        )
        self.patch_agop_ = learned.patch_agop_
        self.alpha_ = learned.alpha_
        self.best_round_ = learned.best_round_
        self.history_ = learned.history_
        self.output_shape_ = self._features().shape
        return self

    def transform(self, X: ArrayLike) -> Array:
        """Make features of images.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), (n_samples, h, w) or \
                (n_samples, h, w, c)
            Images, laid out as in `fit`.

        Returns
        -------
        X_new : ndarray of shape (n_samples, n_features_out)
            Features in float32, or in float64 for data that need it. With
            ``output="image"`` the result has the shape of `X`, but is flat where
            `set_output` asks for a data frame.
        """
        images = self._check_images(X)
        resources = make_resources(
            self.device,
            self.dtype,
            self.n_jobs,
            images,
            learned=(self.patch_transform_, self.filters_, self.biases_),
        )
        features = compute_features(self._features(), images, resources)
        if self.output == "image":
            return self._like_input(features, X)
        return features.reshape(len(features), -1)

    def get_feature_names_out(self, input_features: ArrayLike | None = None) -> Array:
        """Names of the features.

        Parameters
        ----------
        input_features : array-like of str, default=None
            Names of the columns of `X`; used by ``output="image"``, whose columns they
            are, and checked otherwise.

        Returns
        -------
        names : ndarray of str objects
            ``"filter3_0_1"`` is filter 3 in row 0 and column 1 of the grid (or map),
            ``"eigen3_0_1"`` eigenvector 3 there, with ``"eigen3+"`` and ``"eigen3-"``
            for its halves, and ``"saliency_0_1"`` the location in row 0 and column 1.
        """
        check_is_fitted(self)
        names_in = _check_feature_names_in(self, input_features)
        if self.output == "image":
            return names_in
        rows, columns, _ = self.output_shape_
        return np.array(
            [
                f"{name}_{row}_{column}"
                for row in range(rows)
                for column in range(columns)
                for name in self._map_names()
            ],
            dtype=object,
        )

    def _make_learner(self, y, image_shape, n_rows):
        """The estimator that learns the metric."""
        task = self.task
        if task == "auto":
            kind = type_of_target(y, input_name="y", raise_unknown=True)
            classes = kind in ("binary", "multiclass")
            task = "classification" if classes else "regression"
        shared = {name: getattr(self, name) for name in BaseConvRFM._get_param_names()}
        shared["image_shape"] = image_shape
        shared["method"], _ = resolve_method(self, image_shape, n_rows)
        if shared["method"] == "features":  # which are then those of the result
            shared["pool_grid"] = self._check_pool()
        return TASKS[task](**shared)

    def _check_pool(self):
        """The grid as a pair of ints, or None."""
        if self.pool is None:
            return None
        return check_pair(self.pool, "pool", single="None, nor a positive int,")

    def _features(self):
        """What makes the features of a block of images."""
        [layer] = convolution_layers(
            self.image_shape_, self.patch_size, self.padding, depth=1
        )
        if self.output == "filters":
            return FilterLayer(
                layer,
                self.filters_,
                self.activation,
                self.biases_,
                self._check_pool(),
                float(self.pool_power) if self.method_ == "features" else 1.0,
                self.offsets_,
            )
        if self.output == "eigen":
            return EigenProjections(
                layer, self.components_, self.rectification, self._check_pool()
            )
        if self.output == "saliency":
            return Saliency(layer, self.patch_transform_)
        return SeenImage(layer, self.patch_transform_, self.image_shape_)

    def _map_names(self):
        """The names of the maps at one location."""
        if self.output == "filters":
            return [f"filter{index}" for index in range(len(self.filters_))]
        if self.output == "saliency":
            return ["saliency"]
        names = [f"eigen{index}" for index in range(len(self.components_))]
        if self.rectification == "absolute":
            return names
        return [f"{name}{sign}" for sign in "+-" for name in names]

    def _like_input(self, images, X):
        """Images (n, h, w, c) laid out as the input was; flat for a data frame."""
        if self.channels == "first":
            images = images.transpose(0, 3, 1, 2)
        rows = self._flatten(X)[1] is None
        if rows or _get_output_config("transform", self)["dense"] != "default":
            return images.reshape(len(images), -1)
        return images.reshape(np.shape(X))

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.target_tags.required = True
        tags.transformer_tags.preserves_dtype = ["float64", "float32"]
        return tags

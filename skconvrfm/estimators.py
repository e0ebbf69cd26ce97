"""ConvRFM as scikit-learn estimators: validation, encoding, and the fit."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from numbers import Integral, Real
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import ClassifierMixin, MultiOutputMixin, RegressorMixin, clone
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils import check_random_state, compute_sample_weight
from sklearn.utils.extmath import softmax
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d

from . import kernels
from ._docs import documented
from ._fitting import Fitting
from ._input import (
    ImageInput,
    all_or_nothing,
    check_device_parameters,
    check_weights,
    fitted_attributes,
    make_resources,
)
from ._sklearn_compat import (
    CallbackSupportMixin,
    Interval,
    RealNotInt,
    RoundCallbacks,
    StrOptions,
    fit_method,
)
from ._typing import (
    Array,
    Channels,
    Device,
    Dtype,
    File,
    Floats,
    ImageShape,
    RandomState,
    Selection,
    Weights,
)
from .compute.images import as_images
from .compute.sampling import Lineup, content_positions
from .features.layer import ConvFeatures
from .kernels.base import BaseKernel, PatchKernel
from .learning.calibration import class_scores, fit_temperature
from .learning.checkpoint import Checkpoint, describe, digest
from .learning.composition import auto_features, check_composition
from .learning.fitted import check_numbers, check_positive
from .learning.forecast import check_fit
from .learning.models import Recipe, Start, TrainingSet, fitted_outputs
from .learning.rounds import SELECTIONS, transforms_from

if TYPE_CHECKING:
    from typing_extensions import Self

Features: TypeAlias = "ConvFeatures | list[ConvFeatures] | Literal['auto'] | None"

# Kernels by name, with their defaults.
KERNELS = {
    "ntk": kernels.ConvNTK,
    "nngp": kernels.ConvNNGP,
    "patch_gaussian": kernels.PatchGaussian,
    "patch_laplace": kernels.PatchLaplace,
    "gaussian": kernels.Gaussian,
    "laplace": kernels.Laplace,
    "linear": kernels.Linear,
}

# Ridges in units of the largest diagonal entry of the kernel: half decades from
# nearly interpolating to the mean of a thousand rows.
DEFAULT_ALPHAS = tuple(
    float(f"{digit}e{exponent}") for exponent in range(-6, 2) for digit in (1, 3)
) + (100.0,)

# Layout of saved estimators.
_FORMAT = 2
# Parameters that a checkpoint does not depend on.
_NOT_OF_THE_RESULT = {"device", "n_jobs", "verbose", "checkpoint"}
# Weights are at least this part of the largest: a smaller one is rounding beside it.
_LEAST_WEIGHT = 1e-24
# Sums of the weights of a partial_fit, within which sums over rows keep them.
_SUM_RANGE = (1e-100, 1e100)


def _is_linear(estimator):
    """Return True where sums over rows determine the machine, else explain."""
    kernel = estimator.kernel
    if kernel == "linear" or isinstance(kernel, kernels.Linear):
        return True
    raise AttributeError(
        f"partial_fit needs sums over rows, which kernel={kernel!r} has not; take "
        "kernel='linear' with features=ConvFeatures(), or fit all rows at once."
    )


class _ConvRFM(CallbackSupportMixin, ImageInput):
    """Base of both estimators: parameters, the fit, the raw prediction."""

    features_: list[ConvFeatures]

    _parameter_constraints: dict = {
        **ImageInput._parameter_constraints,
        "kernel": [StrOptions(set(KERNELS)), BaseKernel],
        "features": [StrOptions({"auto"}), ConvFeatures, list, tuple, None],
        "alpha": [Interval(Real, 0, None, closed="neither"), "array-like"],
        "n_rounds": [Interval(Integral, 0, None, closed="left")],
        "agop_power": [Interval(Real, 0, None, closed="neither")],
        "agop_samples": [
            StrOptions({"auto"}),
            Interval(Integral, 1, None, closed="left"),
            Interval(RealNotInt, 0, 1, closed="right"),
            None,
        ],
        "selection": [StrOptions(set(SELECTIONS))],
        "warm_start": ["boolean"],
        "checkpoint": [str, PathLike, None],
        **check_device_parameters,
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        kernel: str | BaseKernel = "ntk",
        features: Features = None,
        *,
        alpha: ArrayLike = DEFAULT_ALPHAS,
        n_rounds: int = 4,
        agop_power: float = 0.5,
        agop_samples: float | Literal["auto"] | None = "auto",
        selection: Selection = "gcv",
        image_shape: ImageShape = None,
        channels: Channels = "last",
        warm_start: bool = False,
        checkpoint: File | None = None,
        device: Device = "auto",
        dtype: Dtype = "auto",
        n_jobs: int | None = None,
        random_state: RandomState = None,
        verbose: int = 0,
    ) -> None:
        self.kernel = kernel
        self.features = features
        self.alpha = alpha
        self.n_rounds = n_rounds
        self.agop_power = agop_power
        self.agop_samples = agop_samples
        self.selection = selection
        self.image_shape = image_shape
        self.channels = channels
        self.warm_start = warm_start
        self.checkpoint = checkpoint
        self.device = device
        self.dtype = dtype
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    def set_params(self, **params):
        """Set parameters, also of the kernel and the feature layer, as scikit-learn."""
        for name, example in (("kernel", "ConvNTK()"), ("features", "ConvFeatures()")):
            nested = [key for key in params if key.startswith(f"{name}__")]
            present = params.get(name, getattr(self, name))
            if nested and not hasattr(present, "set_params"):
                raise ValueError(
                    f"{nested[0]!r} cannot be set, because {name}={present!r} has no "
                    f"parameters: pass an object, such as {name}={example}."
                )
        return super().set_params(**params)

    def _fit(self, X, y, sample_weight):
        """Fit stages and rounds; set attributes only when all is done."""
        X, y, image_shape = self._validate_fit(X, y)
        rows, row_targets, weights = _weighted_rows(X, y, sample_weight)
        if len(rows) < 2:
            raise ValueError(
                "X has 1 sample with a positive weight; a fit needs at least 2."
            )
        # Weights count rows; where they do not even add up to the rows, only their
        # ratios can be meant, and they are read as having mean one. Beside what is as
        # large as the other end a ridge is rounding anyway, and squares overflow.
        mean = weights.mean()
        counts = weights / (mean / np.clip(mean, 1.0, _SUM_RANGE[1]))
        encoding, targets, weights = self._encode(row_targets, counts)
        weights = _none_vanishing(weights) * (counts.sum() / weights.sum())

        rng = self._rng()
        recipe = self._recipe(X, image_shape, rng)
        if self.warm_start and hasattr(self, "kernel_"):
            recipe = self._warm(recipe, image_shape)
        data = self._training_set(rows, targets, weights, counts, image_shape, rng)
        check_fit(recipe, data, self.n_rounds)
        if isinstance(recipe.kernel, PatchKernel):  # which keeps the images in any case
            data = replace(data, images=np.asarray(data.images))
        common = {"image_shape_": image_shape, "channels_": self.channels, **encoding}
        fitting = Fitting(self, recipe, common, y.shape[1:])
        checkpoint = self._open_checkpoint(recipe, image_shape, X, y, sample_weight)
        fitting.checkpoint = checkpoint
        n_fits = 2 if self.selection == "holdout" else 1
        n_tasks = n_fits * recipe.n_stages * (self.n_rounds + 1)
        fitting.callbacks = RoundCallbacks(self, n_tasks, X, y, sample_weight)
        self._keep(fitting.run(data))
        fitting.callbacks.end_fit()
        return self

    def _partial_fit(self, X, y, sample_weight, classes=None):
        """Add rows to the sums, and solve for the machine; attributes last."""
        # A machine that is not linear has nothing that could be added to.
        begins = not self._is_fitted_linear
        X, y, image_shape = self._validate_fit(X, y, reset=begins)
        if not begins and image_shape != self.image_shape_:
            raise ValueError(
                f"X has images of shape {image_shape}, but {type(self).__name__} was "
                f"fitted on images of shape {self.image_shape_}."
            )
        rows, y, counts = _weighted_rows(X, y, sample_weight)
        least, most = _SUM_RANGE
        if not least <= counts.sum() <= most:
            raise ValueError(
                f"sample_weight adds up to {counts.sum():.3g}, which sums of squares "
                f"would lose; scale the weights, to a sum from {least} to {most}."
            )
        encoding, targets, weights = self._encode(y, counts, classes)
        n_seen = len(self.stream_.moments.spread) if hasattr(self, "stream_") else None
        if n_seen not in (None, targets.shape[1]):
            raise ValueError(
                f"y has {targets.shape[1]} outputs, but those before had {n_seen}, to "
                "whose sums it cannot be added; clone the estimator for other targets."
            )
        rng = self._rng()
        recipe = self._recipe(X, image_shape, rng)
        if not begins:  # with the layers that there are
            features = tuple(self.features_)
            recipe = replace(recipe, features=features, start=self._start())
        data = self._training_set(rows, targets, weights, counts, image_shape, rng)
        common = {"image_shape_": image_shape, "channels_": self.channels, **encoding}
        self._keep(Fitting(self, recipe, common, y.shape[1:]).add(data, rows))
        return self

    @all_or_nothing
    def refine(self) -> Self:
        """Learn the patch metrics of the next round from the images that were seen.

        The metrics are those of the patch AGOPs of the present machine. The sums of
        `partial_fit` belong to the metrics before, and start anew: let it see the
        images again, or call `fit` with ``warm_start=True``. Until then predictions are
        those of the present machine.

        Returns
        -------
        self : object
            The estimator with another ``patch_transform_``.

        Raises
        ------
        ValueError
            If the kernel is not linear: its rounds are those of `fit`.
        """
        check_is_fitted(self)
        if not self._is_fitted_linear:
            raise ValueError(
                f"refine goes on with sums over rows, but this estimator was fitted "
                f"with {type(self.kernel_).__name__}; let n_rounds say how often its "
                "metric is learned."
            )
        agops = [layer.patch_agop_ for layer in self.features_]
        initials = [layer.initial_transform_ for layer in self.features_]
        transforms = transforms_from(agops, self.agop_power, initials)
        if transforms is not None:  # else the machine is constant, and knows no better
            self.features_ = [copy.copy(layer) for layer in self.features_]
            for layer, transform in zip(self.features_, transforms, strict=True):
                layer.patch_transform_ = transform
            self.patch_transform_ = self.features_[0].patch_transform_
            self.refined_ = True  # until images are seen again
        if hasattr(self, "stream_"):
            del self.stream_
        return self

    @property
    def learned_layers_(self):
        """Fitted layers, and the kernel, that learned a metric, from the image up."""
        check_is_fitted(self)
        layers = [*self.features_, self.kernel_]
        return [layer for layer in layers if hasattr(layer, "patch_transform_")]

    @property
    def _is_fitted_linear(self):
        """State of being fitted with a linear kernel."""
        return getattr(getattr(self, "kernel_", None), "is_linear", False)

    def _keep(self, fitted):
        """Set the fitted attributes, and drop those of a former fit."""
        for name in fitted_attributes(self):
            if name not in ("n_features_in_", "feature_names_in_"):
                delattr(self, name)
        vars(self).update(fitted)

    def _recipe(self, X, image_shape, rng):
        """Return kernel, layers and resources of a fit, checked against each other."""
        kernel, features = self.kernel, self.features
        kernel = KERNELS[kernel]() if isinstance(kernel, str) else clone(kernel)
        if isinstance(features, str):
            features = auto_features(image_shape)
        if features is None or isinstance(features, ConvFeatures):
            features = [] if features is None else [features]
        check_composition(kernel, features)
        return Recipe(
            kernel=kernel,
            features=tuple(clone(layer) for layer in features),
            alphas=self._alphas(),
            agop_samples=self.agop_samples,
            resources=make_resources(self.device, self.dtype, self.n_jobs, X),
            rng=rng,
        )

    def _warm(self, recipe, image_shape):
        """Return the recipe with the metrics and filters of the former fit."""
        if recipe.n_stages > 1:
            raise ValueError(
                "warm_start=True goes on with the metrics of one fit, but Deep ConvRFM "
                f"with {len(recipe.features)} feature layers has several; take "
                "warm_start=False."
            )
        before, here = (
            (type(kernel).__name__, [repr(clone(f)) for f in features], shape)
            for kernel, features, shape in (
                (self.kernel_, self.features_, self.image_shape_),
                (recipe.kernel, recipe.features, image_shape),
            )
        )
        if before != here:
            raise ValueError(
                f"warm_start=True, but the former fit had {before[0]} on features="
                f"{before[1]} and images of shape {before[2]}, this one has {here[0]} "
                f"on {here[1]} and {here[2]}; take warm_start=False."
            )
        for layer in self.learned_layers_ if not self.features_ else ():
            recipe.kernel.bind(image_shape)._check_transform(layer.patch_transform_)
        return replace(recipe, start=self._start())

    def _start(self):
        """Return the metrics and filters of the present fit."""
        metrics = tuple(layer.patch_transform_ for layer in self.learned_layers_)
        banks = tuple(layer.bank_ for layer in self.features_)
        return Start(metrics, banks, hasattr(self, "refined_"))

    def _rng(self):
        """Return the source of all draws of a fit, of which None is a seed too."""
        return check_random_state(0 if self.random_state is None else self.random_state)

    def _rng_of_filters(self, y):
        """Return the source of filters, as a fit finds it once its rows are in line."""
        rng = self._rng()
        content_positions(np.zeros((1, math.prod(self.image_shape_))), rng)
        rng.uniform()
        self._strata(np.zeros((1, math.prod(np.shape(y)[1:]))), rng)
        return rng

    def _training_set(self, rows, targets, weights, counts, image_shape, rng):
        """Return images in an order for draws that treats weights as copies."""
        images = as_images(rows, image_shape, self.channels)
        positions = content_positions(images, rng)
        offset = rng.uniform()
        lineup = Lineup(self._strata(targets, rng), positions, weights, offset)
        return TrainingSet(images, targets, weights, counts, lineup)

    def _open_checkpoint(self, recipe, image_shape, X, y, sample_weight):
        """Return the `Checkpoint` of this fit, or None."""
        if self.checkpoint is None:
            return None
        from . import __version__  # not there yet while this module is imported

        parameters = {"estimator": type(self).__name__, "version": __version__}
        resolved = {
            "kernel": recipe.kernel,
            "features": recipe.features,
            "alpha": recipe.alphas,
            "image_shape": image_shape,
        }
        for name, value in (self.get_params(deep=False) | resolved).items():
            if name not in _NOT_OF_THE_RESULT:
                parameters[name] = describe(value)
        data = {"X": X, "y": y, "sample_weight": check_weights(sample_weight, X)}
        if recipe.start is not None:
            for index, transform in enumerate(recipe.start.transforms):
                if transform is not None:
                    data[f"metric {index} of the former fit"] = transform
        digests = {name: digest(array) for name, array in data.items()}
        checkpoint = Checkpoint(self.checkpoint, parameters, digests)
        if self.verbose and checkpoint.n_rounds:
            print(
                f"[{type(self).__name__}] goes on after {checkpoint.n_rounds} rounds "
                f"in checkpoint={str(self.checkpoint)!r}"
            )
        return checkpoint

    def _alphas(self):
        """Return the ridges as a checked array."""
        try:
            alphas = np.atleast_1d(np.asarray(self.alpha, dtype=np.float64))
        except (TypeError, ValueError) as error:
            raise ValueError(f"alpha={self.alpha!r} is not made of numbers.") from error
        if alphas.ndim != 1 or not len(alphas) or not (0 < alphas).all():
            raise ValueError(
                f"alpha={self.alpha!r} is neither a positive float nor a non-empty "
                "sequence of positive floats."
            )
        if not np.isfinite(alphas).all():
            raise ValueError(f"alpha={self.alpha!r} is not finite.")
        return alphas

    def __getstate__(self):
        return super().__getstate__() | {"_format": _FORMAT}

    def __setstate__(self, state):
        found = state.get("_format", 1)
        if found != _FORMAT:
            raise ValueError(
                f"this {type(self).__name__} was saved in format {found} by another "
                f"version of skconvrfm, and this one knows {_FORMAT}: use that one, or "
                "fit and save the estimator with this one."
            )
        super().__setstate__({k: v for k, v in state.items() if k != "_format"})

    def _predict_raw(self, X):
        """Return f(x) of every output, ndarray of shape (n, n_outputs)."""
        images = self._check_images(X)
        linear = self._is_fitted_linear
        coef, centres = (self.coef_, None) if linear else (self.dual_coef_, self.X_fit_)
        learned = [a for f in self.features_ for a in (f.filters_, f.biases_)]
        resources = make_resources(
            self.device, self.dtype, self.n_jobs, images, centres, learned=learned
        )
        if isinstance(self.kernel_, PatchKernel):
            centres = check_numbers("X_fit_", centres, (len(coef), self.n_features_in_))
            centres = as_images(centres, self.image_shape_, self.channels_)
        intercept = np.reshape(self.intercept_, -1)
        model = (self.kernel_, self.features_, images, coef, centres)
        outputs = fitted_outputs(*model, len(intercept), resources)
        outputs = outputs + check_numbers("intercept_", intercept, outputs.shape[1:])
        if not np.isfinite(outputs).all():
            raise ValueError(
                f"the predictions of {type(self).__name__} are not finite: its fitted "
                "attributes were changed, or X is far larger than the images of the "
                "fit."
            )
        return outputs


def _weighted_rows(X, y, sample_weight):
    """Return the rows of positive weight with their targets and weights."""
    weights = check_weights(sample_weight, X)
    kept = np.flatnonzero(weights)
    weights = _none_vanishing(weights[kept])
    if len(kept) == len(X):  # where nothing is left out, nothing is copied
        return X, y, weights
    return X[kept], y[kept], weights


def _none_vanishing(weights):
    """Return positive weights, none so small beside others that its root is lost."""
    return np.maximum(weights, _LEAST_WEIGHT * weights.max())


@documented(
    on_classes=" on the classes",
    class_weight="""class_weight : dict, "balanced" or None, default=None
        Importance of the classes, of which only the ratios count.
    """,
    class_attributes="""classes_ : ndarray of shape (n_classes,)
        The classes.
    temperature_ : float
        Temperature of the probabilities.
    """,
    targets="Classes",
    intercept="ndarray of shape (n_outputs,)",
    score="accuracy",
    other="ConvRFMRegressor : The same for real targets.",
    **dict.fromkeys(("or_1d", "or_1d_dual", "or_2d", "more_notes"), ""),
)
class ConvRFMClassifier(ClassifierMixin, _ConvRFM):
    """Convolutional kernel classifier that learns its features.

    %(reference)s

    Examples
    --------
    >>> from skconvrfm import ConvRFMClassifier
    >>> from skconvrfm.datasets import load_digit_images
    >>> from skconvrfm.kernels import ConvNTK
    >>> X, y = load_digit_images(return_X_y=True)
    >>> clf = ConvRFMClassifier(ConvNTK(depth=2), n_rounds=1).fit(X[:200], y[:200])
    >>> bool(clf.score(X[200:400], y[200:400]) > 0.9)
    True
    >>> clf.patch_agop_.shape
    (9, 9)
    """

    _parameter_constraints: dict = {
        **_ConvRFM._parameter_constraints,
        "class_weight": [dict, StrOptions({"balanced"}), None],
    }

    def __init__(
        self,
        kernel: str | BaseKernel = "ntk",
        features: Features = None,
        *,
        alpha: ArrayLike = DEFAULT_ALPHAS,
        n_rounds: int = 4,
        agop_power: float = 0.5,
        agop_samples: float | Literal["auto"] | None = "auto",
        selection: Selection = "gcv",
        class_weight: Mapping[Any, float] | Literal["balanced"] | None = None,
        image_shape: ImageShape = None,
        channels: Channels = "last",
        warm_start: bool = False,
        checkpoint: File | None = None,
        device: Device = "auto",
        dtype: Dtype = "auto",
        n_jobs: int | None = None,
        random_state: RandomState = None,
        verbose: int = 0,
    ) -> None:
        super().__init__(
            kernel,
            features,
            alpha=alpha,
            n_rounds=n_rounds,
            agop_power=agop_power,
            agop_samples=agop_samples,
            selection=selection,
            image_shape=image_shape,
            channels=channels,
            warm_start=warm_start,
            checkpoint=checkpoint,
            device=device,
            dtype=dtype,
            n_jobs=n_jobs,
            random_state=random_state,
            verbose=verbose,
        )
        self.class_weight = class_weight

    @all_or_nothing
    @fit_method
    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: Weights = None) -> Self:
        """Fit the machine, round by round, and keep the best round.

        %(rows)s
        %(weights)s
        """
        return self._fit(X, y, sample_weight)

    @available_if(_is_linear)
    @all_or_nothing
    @fit_method
    def partial_fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        classes: ArrayLike | None = None,
        sample_weight: Weights = None,
    ) -> Self:
        """Add images to those that were seen, with the present filters and metric.

        %(stream)s
        classes : array-like of shape (n_classes,), default=None
            All classes, at the first call; None takes those of `y`.
        %(weights)s
        """
        if self.class_weight == "balanced":
            raise ValueError(
                "class_weight='balanced' needs all of y, which partial_fit does not "
                "see; pass the weights as a dict."
            )
        known = self.classes_ if self._is_fitted_linear else None
        if classes is not None:
            classes = np.unique(classes)
            if known is not None and not np.array_equal(classes, known):
                raise ValueError(
                    f"classes={classes.tolist()} differ from those of the first call, "
                    f"{known.tolist()}; leave them out, or clone the estimator."
                )
        known = classes if known is None else known
        return self._partial_fit(X, y, sample_weight, known)

    def decision_function(self, X: ArrayLike) -> Floats:
        """Score the classes: the machine's targets were -1 and 1.

        %(images)s
        scores : ndarray of shape (n_samples,) or (n_samples, n_classes)
            One score per class; for two classes, that of ``classes_[1]``.
        """
        raw, n_classes = self._predict_raw(X), len(self.classes_)
        n_outputs = 1 if n_classes == 2 else n_classes
        if self.classes_.ndim != 1 or raw.shape[1] != n_outputs:
            raise ValueError(
                f"classes_ has {n_classes} classes, but the fitted coefficients are "
                f"of {raw.shape[1]} outputs; fit the estimator again."
            )
        return raw[:, 0] if n_classes == 2 else raw

    def predict(self, X: ArrayLike) -> Array:
        """Predict the class of the largest score.

        %(images)s
        y : ndarray of shape (n_samples,)
            Classes.
        """
        scores = self.decision_function(X)
        codes = (scores > 0).astype(int) if scores.ndim == 1 else scores.argmax(axis=1)
        return self.classes_[codes]

    def predict_proba(self, X: ArrayLike) -> Floats:
        """Predict probabilities: a softmax of the scores at one temperature.

        The temperature was fitted to the scores of left-out training rows, so that
        probabilities are calibrated; the order of the scores is kept.

        %(images)s
        probabilities : ndarray of shape (n_samples, n_classes)
            Probabilities, in the order of ``classes_``.
        """
        scores = class_scores(self.decision_function(X))
        check_positive("temperature_", self.temperature_)
        return softmax(scores / self.temperature_)

    def _check_y(self, y):
        y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        return y

    def _encode(self, y, weights, classes=None):
        classes = np.unique(y) if classes is None else classes
        unknown = np.setdiff1d(y, classes)
        if len(unknown):
            raise ValueError(
                f"y has the classes {unknown.tolist()}, which are not among classes="
                f"{classes.tolist()}; name all classes in the first call."
            )
        codes, n_classes = np.searchsorted(classes, y), len(classes)
        if n_classes < 2:
            raise ValueError(
                f"y has only one class, {classes.tolist()[0]!r}, among the rows with a "
                "positive weight; a classifier needs at least two classes."
            )
        if self.class_weight == "balanced":  # by weights, so that they count as rows
            weights = weights / np.bincount(codes, weights, n_classes)[codes]
        elif self.class_weight is not None:
            weights = weights * compute_sample_weight(self.class_weight, y)
        if not (weights > 0).all():
            raise ValueError(
                f"class_weight={self.class_weight!r} must be positive for every class; "
                "drop the rows of a class that is to be left out."
            )
        columns = codes[:, None] == (np.arange(n_classes) if n_classes > 2 else 1)
        return {"classes_": classes}, 2.0 * columns - 1, weights

    def _strata(self, targets, rng):
        return targets.argmax(axis=1) if targets.shape[1] > 1 else targets[:, 0]

    def _score_targets(self, targets, prediction, weights):
        pair = (targets, prediction)
        codes = [f.argmax(axis=1) if f.shape[1] > 1 else f > 0 for f in pair]
        return accuracy_score(*codes, sample_weight=weights)

    def _shape_coef(self, coef, output_shape):
        return coef

    def _calibrate(self, prediction, targets, weights):
        return {"temperature_": fit_temperature(prediction, targets, weights)}


@documented(
    **dict.fromkeys(("on_classes", "class_weight", "class_attributes"), ""),
    targets="Targets",
    or_1d=" or (n_features_out,)",
    or_1d_dual=" or (n_samples,)",
    or_2d=" or (n_samples, n_outputs)",
    intercept="float or ndarray of shape (n_outputs,)",
    score="R²",
    other="ConvRFMClassifier : The same for classes.",
    more_notes="""

    With several outputs, the AGOP and the criteria add them up as they are: bring
    targets of different units to one scale first.""",
)
class ConvRFMRegressor(MultiOutputMixin, RegressorMixin, _ConvRFM):
    """Convolutional kernel regressor that learns its features.

    %(reference)s

    Examples
    --------
    >>> import numpy as np
    >>> from skconvrfm import ConvRFMRegressor
    >>> from skconvrfm.kernels import ConvNTK
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(80, 6, 6))
    >>> y = X[:, 2, 2] * X[:, 3, 3]
    >>> reg = ConvRFMRegressor(ConvNTK(depth=2), n_rounds=1).fit(X, y)
    >>> reg.predict(X).shape
    (80,)
    """

    @all_or_nothing
    @fit_method
    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: Weights = None) -> Self:
        """Fit the machine, round by round, and keep the best round.

        %(rows)s
        %(weights)s
        """
        return self._fit(X, y, sample_weight)

    @available_if(_is_linear)
    @all_or_nothing
    @fit_method
    def partial_fit(
        self, X: ArrayLike, y: ArrayLike, sample_weight: Weights = None
    ) -> Self:
        """Add images to those that were seen, with the present filters and metric.

        %(stream)s
        %(weights)s
        """
        return self._partial_fit(X, y, sample_weight)

    def predict(self, X: ArrayLike) -> Floats:
        """Predict targets.

        %(images)s
        y : ndarray of shape (n_samples,) or (n_samples, n_outputs)
            Predictions, float64.
        """
        raw = self._predict_raw(X)
        return raw[:, 0] if np.ndim(self.intercept_) == 0 else raw

    def _check_y(self, y):
        try:
            return y.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"Unknown label type: y has dtype {y.dtype}, but the targets of a "
                "regression must be real numbers."
            ) from error

    def _encode(self, y, weights, classes=None):
        return {}, y.reshape(len(y), -1), weights

    def _strata(self, targets, rng):
        return targets @ rng.standard_normal(targets.shape[1])

    def _score_targets(self, targets, prediction, weights):
        if len(targets) == 1:  # of which R² is as of two copies; it is not defined
            return float(np.array_equal(targets, prediction))
        return r2_score(targets, prediction, sample_weight=weights)

    def _shape_coef(self, coef, output_shape):
        return coef.reshape(coef.shape[:-1] + output_shape)[()]

    def _calibrate(self, prediction, targets, weights):
        return {}

"""Base of the estimators: parameters, the fit, and the raw prediction."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from numbers import Integral, Real
from os import PathLike
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from numpy.typing import ArrayLike
from sklearn.base import clone
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from . import kernels
from ._fitting import Fitting
from ._input import (
    ImageInput,
    all_or_nothing,
    check_device_parameters,
    check_groups,
    check_relatives,
    check_ridges,
    check_weights,
    fitted_attributes,
    make_resources,
)
from ._scale import resolve_scale
from ._sklearn_compat import (
    CallbackSupportMixin,
    Interval,
    RealNotInt,
    RoundCallbacks,
    StrOptions,
)
from ._typing import (
    Channels,
    Device,
    Dtype,
    File,
    ImageShape,
    RandomState,
    Selection,
)
from .compute.images import as_images, held
from .compute.progress import with_progress
from .compute.sampling import (
    Lineup,
    content_positions,
    find_copies,
    groups_of_images,
    none_vanishing,
    scaled_weights,
)
from .compute.torch_state import plain_torch
from .features.layer import ConvFeatures
from .features.skips import fitted_scales
from .kernels.base import BaseKernel, PatchKernel
from .learning.composition import auto_features, check_composition, check_patience
from .learning.fitted import as_matrix, check_layers, check_numbers, check_positive
from .learning.forecast import check_fit
from .learning.models import fitted_outputs, layer_powers
from .learning.recipe import Recipe, Start
from .learning.rounds import SELECTIONS, transforms_from
from .learning.training_set import Observations, TrainingSet

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

# Sums of the weights of a partial_fit, within which sums over rows keep them.
_SUM_RANGE = (1e-100, 1e100)


def has_sums(estimator):
    """Return True where sums over rows determine the machine, else explain."""
    kernel = estimator.kernel
    if kernel == "linear" or isinstance(kernel, kernels.Linear):
        return True
    if estimator.landmarks is None:
        raise AttributeError(
            f"partial_fit needs sums over rows, which kernel={kernel!r} has not "
            "without landmarks: take landmarks=1000, or kernel='linear' with "
            "features=ConvFeatures(), or fit all rows at once."
        )
    if estimator.features and issubclass(_class_of(kernel), PatchKernel):
        raise AttributeError(
            f"partial_fit has sums of one machine, and Deep ConvRFM, {kernel!r}, has "
            "several: take a kernel of whole maps, such as Gaussian(), or fit at once."
        )
    return True


def _class_of(kernel):
    """Return the class of a kernel, or of its name; of an unknown name str."""
    return KERNELS.get(kernel, str) if isinstance(kernel, str) else type(kernel)


class ConvRFM(CallbackSupportMixin, ImageInput):
    """Base of both estimators: parameters, the fit, the raw prediction."""

    features_: list[ConvFeatures]

    _parameter_constraints: dict = {
        **ImageInput._parameter_constraints,
        "kernel": [StrOptions(set(KERNELS)), BaseKernel],
        "features": [StrOptions({"auto"}), ConvFeatures, list, tuple, None],
        "alpha": [Interval(Real, 0, None, closed="neither"), "array-like"],
        "n_rounds": [Interval(Integral, 0, None, closed="left")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left"), None],
        "agop_power": [Interval(Real, 0, None, closed="neither")],
        "agop_samples": [
            StrOptions({"auto"}),
            Interval(Integral, 1, None, closed="left"),
            Interval(RealNotInt, 0, 1, closed="right"),
            None,
        ],
        "landmarks": [Interval(Integral, 2, None, closed="left"), None],
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
        n_iter_no_change: int | None = 1,
        agop_power: float = 0.5,
        agop_samples: float | Literal["auto"] | None = "auto",
        landmarks: int | None = None,
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
        self.n_iter_no_change = n_iter_no_change
        self.agop_power = agop_power
        self.agop_samples = agop_samples
        self.landmarks = landmarks
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

    @with_progress
    def _fit(self, X, y, sample_weight, groups):
        """Fit stages and rounds; set attributes only when all is done."""
        X, y, image_shape = self._validate_fit(X, y)
        row_weights, groups = check_weights(sample_weight, X), check_groups(groups, X)
        kept = np.flatnonzero(row_weights)
        if len(kept) < 2:
            raise ValueError(
                "X has 1 sample with a positive weight; a fit needs at least 2."
            )
        encoding, targets, weights = self._encode(
            y[kept], scaled_weights(row_weights[kept])
        )
        rng = self._rng()
        recipe = self._recipe(X, image_shape, rng)
        if self.warm_start and hasattr(self, "kernel_"):
            recipe = self._warm(recipe, image_shape)
        rows = X if len(kept) == len(X) else X[kept]
        columns = targets, weights, None if groups is None else groups[kept]
        common = {"image_shape_": image_shape, "channels_": self.channels}
        common |= {"scale_": recipe.scale, **encoding}
        _, data = self._training_set(rows, *columns, image_shape, recipe.scale, rng)
        check_relatives(data.images, data.groups)
        # Weights count rows; where they do not even add up to the images, only their
        # ratios can be meant, and they are read as having mean one. Beside what is as
        # large as the other end a ridge is rounding anyway, and squares overflow.
        n_images = len(data.images)
        mean = np.clip(row_weights.sum() / n_images, 1.0, _SUM_RANGE[1])
        data = data.scaled(mean * n_images / data.weights.sum())
        check_fit(recipe, data, self.n_rounds)
        if isinstance(recipe.kernel, PatchKernel) and not recipe.has_landmarks(data):
            data = replace(data, images=held(data.images))  # kept in any case
        fitting = Fitting(self, recipe, common, y.shape[1:])
        metadata = {"sample_weight": sample_weight, "groups": groups}
        with fitting.open_checkpoint(X, y, **metadata) as fitting.checkpoint:
            n_fits = 2 if self.selection == "holdout" else 1
            n_tasks = n_fits * recipe.n_stages * (self.n_rounds + 1)
            fitting.callbacks = RoundCallbacks(self, n_tasks, X, y, **metadata)
            self._keep(fitting.run(data))
        if len(kept) < len(X):  # rows of weight 0 are left out already
            rest = np.flatnonzero(row_weights == 0)
            predictions = self._shape_prediction(self._predict_raw(X[rest]))
            both = np.concatenate([self.loo_prediction_, predictions])
            self.loo_prediction_ = both[np.argsort(np.concatenate([kept, rest]))]
        fitting.callbacks.end_fit()
        return self

    @with_progress
    def _partial_fit(self, X, y, sample_weight, classes=None):
        """Add rows to the sums, and solve for the machine; attributes last."""
        begins = not self._goes_on
        former = None if begins else getattr(self, "stream_", None)
        X, y, image_shape = self._validate_fit(X, y, reset=begins)
        if not begins and image_shape != self.image_shape_:
            raise ValueError(
                f"X has images of shape {image_shape}, but {type(self).__name__} was "
                f"fitted on images of shape {self.image_shape_}."
            )
        weights = check_weights(sample_weight, X)
        kept, total, (least, most) = np.flatnonzero(weights), weights.sum(), _SUM_RANGE
        if not least <= total <= most:
            raise ValueError(
                f"sample_weight adds up to {total:.3g}, which sums of squares "
                f"would lose; scale the weights, to a sum from {least} to {most}."
            )
        encoding, targets, weights = self._encode(y[kept], weights[kept], classes)
        is_other = encoding.get("multilabel_") != getattr(self, "multilabel_", None)
        if former is not None and is_other:
            raise ValueError(
                "y has label sets and those before had single classes, or the other "
                "way round; clone the estimator for other targets."
            )
        n_seen = targets.shape[1] if former is None else len(former.moments.spread)
        if n_seen != targets.shape[1]:
            raise ValueError(
                f"y has {targets.shape[1]} outputs, but those before had {n_seen}, to "
                "whose sums it cannot be added; clone the estimator for other targets."
            )
        rng = self._rng()
        recipe = self._recipe(X, image_shape, rng)
        if not begins:  # with the kernel and the layers that there are
            there = {"kernel": clone(self.kernel_), "features": tuple(self.features_)}
            there |= {"start": self._start(), "choices": self._choices()}
            there["scale"] = self.scale_
            recipe = replace(recipe, **there)
        rows = X if len(kept) == len(X) else X[kept]
        columns = targets, weights, None
        common = {"image_shape_": image_shape, "channels_": self.channels}
        common |= {"scale_": recipe.scale, **encoding}
        rows, data = self._training_set(rows, *columns, image_shape, recipe.scale, rng)
        fitting = Fitting(self, recipe, common, y.shape[1:])
        self._keep(fitting.add(former, data, rows, total))
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
        if not self.kernel_.is_linear:
            raise ValueError(
                f"refine goes on with sums over rows, but this estimator was fitted "
                f"with {type(self.kernel_).__name__}; let n_rounds say how often its "
                "metric is learned."
            )
        agops = [layer.patch_agop_ for layer in self.features_]
        initials = [layer.initial_transform_ for layer in self.features_]
        powers = layer_powers(self.features_, self.agop_power)
        transforms = transforms_from(agops, powers, initials)
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
    def _goes_on(self):
        """State of having a machine to whose rows `partial_fit` adds some."""
        return type(getattr(self, "kernel_", None)) is _class_of(self.kernel)

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
        scale = resolve_scale([*features, kernel][0].scale, image_shape, X)
        check_patience(self.n_iter_no_change, self.selection)
        resources = make_resources(self.device, self.dtype, self.n_jobs, X)
        return Recipe(
            kernel=kernel,
            features=tuple(clone(layer) for layer in features),
            alphas=check_ridges(self.alpha),
            agop_samples=self.agop_samples,
            landmarks=self.landmarks,
            resources=resources,
            rng=rng,
            scale=scale,
            covariance_bytes=self._covariance_bytes(resources),
        )

    def _covariance_bytes(self, resources):
        """Return the bytes that a covariance may take; predictions have none."""
        return 0

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
        former = {"start": self._start(), "choices": self._choices()}
        return replace(recipe, scale=self.scale_, **former)

    def _choices(self):
        """Return what the present fit has chosen, see `Recipe`."""
        layers = tuple(layer.choice for layer in self.features_)
        return (getattr(self.kernel_, "metric_", layers),)

    def _start(self):
        """Return the metrics and filters of the present fit."""
        metrics = tuple(layer.patch_transform_ for layer in self.learned_layers_)
        banks = tuple(layer.bank_ for layer in self.features_)
        refined, scales = hasattr(self, "refined_"), fitted_scales(self.features_)
        return Start(metrics, banks, refined, scales)

    def _rng(self):
        """Return the source of all draws of a fit, of which None is a seed too."""
        return check_random_state(0 if self.random_state is None else self.random_state)

    def _rng_of_filters(self, y):
        """Return the source of filters, as a fit finds it once its rows are in line."""
        rng = self._rng()
        content_positions(np.zeros((1, math.prod(self.image_shape_))), rng)
        rng.uniform()
        self._strata(np.zeros((1, math.prod(np.shape(y)[1:]))), np.zeros(1), rng)
        return rng

    def _training_set(self, rows, targets, weights, groups, image_shape, scale, rng):
        """Return the flat rows of distinct images, and these as a `TrainingSet`.

        Copies of an image are one with their summed weight, and images are in an order
        for draws that depends on their content alone.
        """
        layout = image_shape, self.channels, scale
        images = as_images(rows, *layout)
        positions = content_positions(images, rng)
        first, image = find_copies(positions)
        if len(first) < len(positions):  # where there are no copies, nothing is copied
            rows, positions = rows[first], positions[first]
            images = as_images(rows, *layout)
        observations = Observations(image, targets, weights)
        targets, weights, scatter = observations.of_images()
        weights, offset = none_vanishing(weights), rng.uniform()
        strata = self._strata(targets, positions, rng)
        lineup = Lineup(strata, positions, weights, offset)
        columns = images, targets, weights, scatter
        groups = None if groups is None else groups_of_images(groups, image)
        return rows, TrainingSet(*columns, lineup, observations, groups)

    def _check_fitted(self):
        """Refuse a fit that was changed; return coefficients, centres and intercept."""
        kernel, image_shape = self.kernel_, self.image_shape_
        check_positive("scale_", self.scale_)
        width = math.prod(check_layers(kernel, self.features_, image_shape))
        intercept, outputs = np.reshape(self.intercept_, -1), np.shape(self.intercept_)
        check_numbers("intercept_", intercept, (None,))
        if kernel.is_linear:
            coef = as_matrix("coef_", self.coef_, width, outputs)
            return coef, None, intercept
        if isinstance(kernel, PatchKernel):
            transform = kernel.patch_transform_
            check_numbers("kernel_.patch_transform_", transform, (None, None))
            kernel._check_transform(transform)
            width = math.prod(image_shape)
        centres = check_numbers("X_fit_", self.X_fit_, (None, width))
        coef = as_matrix("dual_coef_", self.dual_coef_, len(centres), outputs)
        return coef, centres, intercept

    @with_progress
    @plain_torch()
    def _predict_raw(self, X):
        """Return f(x) of every output, ndarray of shape (n, n_outputs)."""
        *machine, intercept = self._machine(X)
        return self._finite(fitted_outputs(*machine) + intercept)

    def _machine(self, X):
        """Return the arguments of `fitted_outputs` for images, and the intercept."""
        images = self._check_images(X)
        coef, centres, intercept = self._check_fitted()
        learned = [a for f in self.features_ for a in (f.filters_, f.biases_)]
        resources = make_resources(
            self.device, self.dtype, self.n_jobs, images, centres, learned=learned
        )
        if isinstance(self.kernel_, PatchKernel):
            layout = self.image_shape_, self.channels_, self.scale_
            centres = as_images(centres, *layout)
        machine = self.kernel_, self.features_, images, coef, centres
        return *machine, resources, intercept

    def _finite(self, outputs):
        """Return outputs, or refuse those that are not finite."""
        if not np.isfinite(outputs).all():
            raise ValueError(
                f"the predictions of {type(self).__name__} are not finite: its fitted "
                "attributes were changed, or X is far larger than the images of the "
                "fit."
            )
        return outputs

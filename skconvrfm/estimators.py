"""ConvRFM as scikit-learn estimators: validation and encoding, no numerics."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping
from dataclasses import replace
from numbers import Integral
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import brentq
from sklearn.base import (
    ClassifierMixin,
    MultiOutputMixin,
    RegressorMixin,
)
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils import Bunch, check_random_state, compute_sample_weight
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.extmath import softmax
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, column_or_1d

from ._typing import (
    Activation,
    Array,
    Channels,
    Device,
    Dtype,
    File,
    Filters,
    Floats,
    ImageShape,
    Kernel,
    Method,
    Padding,
    Pair,
    RandomState,
    Selection,
    fit_method,
)
from .base import (
    DEFAULT_ALPHAS,
    DEFAULT_DEPTH,
    BaseConvRFM,
    all_or_nothing,
    fitted_attributes,
)
from .callbacks import CallbackSupportMixin, RoundCallbacks
from .core.checkpoint import Checkpoint, describe, digest
from .core.images import as_images
from .core.machine import TrainingSet
from .core.radial import RADIAL_KINDS
from .core.rounds import best_layer, fit_layers, transform_from_agop
from .core.sampling import Lineup, content_positions
from .core.stream import RowSample, Stream
from .kernels import check_weights, make_resources
from .methods import METHOD_CLASSES, FeatureMethod, resolve_method

if TYPE_CHECKING:
    from typing_extensions import Self

# Parameters that a checkpoint does not depend on.
NOT_OF_THE_RESULT = {
    *("device", "n_jobs", "verbose"),
    *("checkpoint", "checkpoint_on_error"),
}

# selection="holdout": part of the rows that chooses.
HOLDOUT_FRACTION = 0.2

# Weights are at least this part of the largest: what is less is rounding beside it.
LEAST_WEIGHT = 1e-24

# What the weights of a partial_fit add up to, so that sums over rows keep them.
SUM_RANGE = (1e-100, 1e100)

# Temperatures of the probabilities; scores of well separated classes are ±1.
TEMPERATURE_RANGE = (1e-2, 1e3)


def _has_features(estimator):
    """Whether the estimator may learn with features, which sums determine."""
    if estimator.method == "exact" or estimator.kernel in RADIAL_KINDS:
        raise AttributeError(
            f"partial_fit needs features, which method={estimator.method!r} and kernel="
            f"{estimator.kernel!r} have not; take method='features', kernel='ntk'."
        )
    return True


class _ConvRFM(CallbackSupportMixin, BaseConvRFM):
    """What both estimators share: the layers, the fit, the raw prediction."""

    _parameter_constraints: dict = {
        **BaseConvRFM._parameter_constraints,
        "warm_start": ["boolean"],
        "feature_layers": [Interval(Integral, 1, None, closed="left")],
        "pool_grid": [
            StrOptions({"auto"}),
            Interval(Integral, 1, None, closed="left"),
            tuple,
            list,
            None,
        ],
        "pool_between": [Interval(Integral, 1, None, closed="left")],
    }

    def __init__(
        self,
        *,
        image_shape: ImageShape = None,
        channels: Channels = "last",
        kernel: Kernel = "ntk",
        depth: int = 3,
        patch_size: Pair = 3,
        padding: Padding = "valid",
        bias: float = 0.3,
        bandwidth: float | Literal["auto"] = "auto",
        method: Method = "auto",
        pool_grid: Pair | Literal["auto"] | None = "auto",
        feature_layers: int = 1,
        pool_between: int = 2,
        n_filters: int | Literal["auto"] = "auto",
        filters: Filters = "patches",
        initial_metric: Literal["identity", "whiten"] = "whiten",
        activation: Activation = "relu",
        threshold: float = 0.5,
        antithetic: bool = False,
        pool_power: float = 0.5,
        n_rounds: int = 4,
        agop_power: float = 0.5,
        agop_samples: float | Literal["auto"] | None = "auto",
        alpha: ArrayLike = DEFAULT_ALPHAS,
        selection: Selection = "gcv",
        warm_start: bool = False,
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
        self.warm_start = warm_start
        self.feature_layers = feature_layers
        self.pool_grid = pool_grid
        self.pool_between = pool_between

    def _fit(self, X, y, sample_weight):
        """Fit layers and rounds; set attributes only when all is done."""
        X, y, image_shape = self._validate_fit(X, y)
        X_fit, y_fit, weights = _weighted_rows(X, y, sample_weight)
        if len(X_fit) < 2:
            raise ValueError(
                "X has 1 sample with a positive weight; a fit needs at least 2."
            )
        # Weights count rows; where they do not even add up to the rows, only their
        # ratios can be meant, and they are read as having mean one. Beside what is as
        # large as the other end a ridge is rounding anyway, and squares overflow.
        mean = weights.mean()
        counts = weights / (mean / np.clip(mean, 1.0, SUM_RANGE[1]))
        encoding, targets, weights = self._encode(y_fit, counts)
        weights = _none_vanishing(weights) * (counts.sum() / weights.sum())
        method, reason = resolve_method(self, image_shape, len(X_fit))
        if self.verbose and reason:
            print(f"[{type(self).__name__}] {reason}")
        self._check_layers(method)
        self._check_warm_start(method, image_shape)
        if method == "exact":  # which keeps its images in any case
            X_fit = np.asarray(X_fit)
        alphas = self._alphas()
        resolved = {"image_shape": image_shape, "method": method, "alpha": alphas}
        checkpoint = self._open_checkpoint(resolved, X, y, sample_weight)

        rng = self._rng()
        data = self._training_set(X_fit, targets, weights, counts, image_shape, rng)
        resources = make_resources(self.device, self.dtype, self.n_jobs, X)
        common = {"image_shape_": image_shape, "method_": method, **encoding}
        fitting = _Fitting(
            self,
            METHOD_CLASSES[method],
            (image_shape, alphas, resources),
            rng,
            common,
            y.shape[1:],
            checkpoint,
        )
        n_tasks = self.feature_layers * (self.n_rounds + 1)
        if self.selection == "holdout":
            n_tasks *= 2
        callbacks = RoundCallbacks(self, n_tasks, X, y, sample_weight)
        self._keep(fitting.run(data, callbacks))
        callbacks.end_fit()
        return self

    def _keep(self, fitted):
        """Set the fitted attributes, and drop those of a former fit."""
        for name in fitted_attributes(self):
            if name not in ("n_features_in_", "feature_names_in_"):
                delattr(self, name)
        vars(self).update(fitted)

    @property
    def _is_linear(self):
        """Whether it is fitted, with features."""
        return getattr(self, "method_", None) == "features"

    def _partial_fit(self, X, y, sample_weight, classes=None):
        """Add rows to the sums, and solve for the machine; attributes last."""
        # A fit with the exact kernel has nothing that could be added to.
        begins = not self._is_linear
        X, y, image_shape = self._validate_fit(X, y, reset=begins)
        if not begins and image_shape != self.image_shape_:
            raise ValueError(
                f"X has images of shape {image_shape}, but {type(self).__name__} was "
                f"fitted on images of shape {self.image_shape_}."
            )
        rows, y, counts = _weighted_rows(X, y, sample_weight)
        least, most = SUM_RANGE
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
        self._check_warm_start("features", image_shape)
        rng = self._rng()
        data = self._training_set(rows, targets, weights, counts, image_shape, rng)
        resources = make_resources(self.device, self.dtype, self.n_jobs, X)
        setting = (image_shape, self._alphas(), resources)
        common = {"image_shape_": image_shape, "method_": "features", **encoding}
        fitting = _Fitting(self, FeatureMethod, setting, rng, common, y.shape[1:])
        self._keep(fitting.add(data, rows))
        return self

    @all_or_nothing
    def refine(self) -> Self:
        """Learn the patch metric of the next round from what was seen.

        The metric is that of the patch AGOP of the present machine. The sums of
        `partial_fit` belong to the metric before, and start anew: let it see the images
        again, or call `fit` with ``warm_start=True``. Until then predictions are those
        of the present machine.

        Returns
        -------
        self : object
            The estimator with another ``patch_transform_``.

        Raises
        ------
        ValueError
            If the estimator was fitted with ``method="exact"``, whose rounds are those
            of `fit`.
        """
        check_is_fitted(self)
        if self.method_ != "features":
            raise ValueError(
                "refine goes on with features, but this estimator was fitted with "
                "method='exact'; let n_rounds say how often its metric is learned."
            )
        initial = self.filter_bank_.initial
        transform = transform_from_agop(self.patch_agop_, self.agop_power, initial)
        if transform is not None:  # else the machine is constant, and knows no better
            self.patch_transform_ = transform
        if hasattr(self, "stream_"):
            del self.stream_
        return self

    def _rng(self):
        """Where all draws of a fit come from."""
        # None is a seed too: two fits of one estimator are equal, bit by bit.
        return check_random_state(0 if self.random_state is None else self.random_state)

    def _training_set(self, rows, targets, weights, counts, image_shape, rng):
        """Flat rows as images, in an order for draws that treats weights as copies."""
        positions = content_positions(rows, rng)
        offset = rng.uniform()
        lineup = Lineup(self._strata(targets, rng), positions, weights, offset)
        images = as_images(rows, image_shape, self.channels)
        return TrainingSet(images, targets, weights, counts, lineup)

    def _check_warm_start(self, method, image_shape):
        """Refuse to go on with what does not fit."""
        if not self.warm_start or not hasattr(self, "method_"):
            return
        if self.feature_layers > 1:
            raise ValueError(
                f"warm_start=True goes on with the metric of one layer, but "
                f"feature_layers={self.feature_layers}; take warm_start=False."
            )
        if method != self.method_ or image_shape != self.image_shape_:
            raise ValueError(
                f"warm_start=True, but the former fit had method={self.method_!r} and "
                f"images of shape {self.image_shape_}, this one has {method!r} and "
                f"{image_shape}; take warm_start=False."
            )

    def _check_layers(self, method):
        """Refuse more layers than the network has; warn where depth does not count."""
        if method == "features":
            return
        if self.kernel not in RADIAL_KINDS:
            if self.feature_layers > self.depth:
                raise ValueError(
                    f"feature_layers={self.feature_layers} exceeds "
                    f"depth={self.depth}: each layer of features takes one from the "
                    "depth of the kernel. Take a larger depth or fewer layers."
                )
        elif self.depth != DEFAULT_DEPTH:
            warnings.warn(
                f"depth={self.depth} does not apply to kernel={self.kernel!r}, which "
                f"has one layer; leave it at {DEFAULT_DEPTH}.",
                UserWarning,
                stacklevel=4,
            )

    def _open_checkpoint(self, resolved, X, y, sample_weight):
        """The `Checkpoint` of this fit, or None; ``resolved`` are parameters."""
        if self.checkpoint is None:
            return None
        from . import __version__  # not there yet while this module is imported

        parameters = {"estimator": type(self).__name__, "version": __version__}
        for name, value in (self.get_params(deep=False) | resolved).items():
            if name not in NOT_OF_THE_RESULT:
                parameters[name] = describe(value)
        data = {"X": X, "y": y, "sample_weight": check_weights(sample_weight, X)}
        if self.warm_start and hasattr(self, "patch_transform_"):
            data["metric of the former fit"] = self.patch_transform_
        checkpoint = Checkpoint(
            self.checkpoint,
            parameters,
            {name: digest(array) for name, array in data.items()},
            self.checkpoint_on_error,
        )
        if self.verbose and checkpoint.n_rounds:
            print(
                f"[{type(self).__name__}] goes on after {checkpoint.n_rounds} rounds "
                f"in checkpoint={str(self.checkpoint)!r}"
            )
        return checkpoint

    def _alphas(self):
        """The ridges as a checked array."""
        try:
            alphas = np.atleast_1d(np.asarray(self.alpha, dtype=np.float64))
        except (TypeError, ValueError) as error:
            raise ValueError(f"alpha={self.alpha!r} is not made of numbers.") from error
        if alphas.ndim != 1 or not len(alphas) or not (alphas > 0).all():
            raise ValueError(
                f"alpha={self.alpha!r} is neither a positive float nor a non-empty "
                "sequence of positive floats."
            )
        if not np.isfinite(alphas).all():
            raise ValueError(f"alpha={self.alpha!r} is not finite.")
        return alphas

    def _describe_round(self, index, history):
        """One line about the last round of a layer."""
        last = {key: values[-1] for key, values in history.items()}
        seconds = sum(last[key] for key in last if key.startswith("seconds"))
        layer = ""
        if self.feature_layers > 1:
            layer = f"layer {index + 1}/{self.feature_layers}  "
        return (
            f"[{type(self).__name__}] {layer}round {last['round']}/{self.n_rounds}  "
            f"alpha={last['alpha']:.0e}  gcv={last['gcv']:.4g}  "
            f"loo_loss={last['loo_loss']:.4g}  loo_score={last['loo_score']:.4f}  "
            f"{seconds:.1f}s"
        )

    def _predict_raw(self, X):
        """f(x) of every output, ndarray of shape (n, n_outputs)."""
        images = self._check_images(X)
        prediction = METHOD_CLASSES[self.method_].predict(self, images)
        return prediction + np.reshape(self.intercept_, -1)


def _weighted_rows(X, y, sample_weight):
    """The rows of positive weight with their targets and weights."""
    weights = check_weights(sample_weight, X)
    kept = np.flatnonzero(weights)
    weights = _none_vanishing(weights[kept])
    if len(kept) == len(X):  # where nothing is left out, nothing is copied
        return X, y, weights
    return X[kept], y[kept], weights


def _none_vanishing(weights):
    """Positive weights, none of them so small beside others that its root is lost."""
    return np.maximum(weights, LEAST_WEIGHT * weights.max())


class _Fitting:
    """One fit of an estimator by a method: the choice, and perhaps a refit.

    Parameters
    ----------
    estimator : _ConvRFM
        Its parameters.
    method : type
        `ExactMethod` or `FeatureMethod`.
    setting : tuple
        Image shape, ridges and resources.
    rng : numpy.random.RandomState
        Where filters come from.
    common : dict
        Fitted attributes that are known before.
    output_shape : tuple of int
        The shape of a target.
    checkpoint : Checkpoint or None
        Where the fit is kept.
    """

    def __init__(
        self, estimator, method, setting, rng, common, output_shape, checkpoint=None
    ):
        self._estimator, self._method = estimator, method
        self._setting, self._rng = setting, rng
        self._common, self._output_shape = common, output_shape
        self._checkpoint = checkpoint

    def run(self, data, callbacks):
        """The fitted attributes."""
        estimator = self._estimator
        if estimator.selection != "holdout":
            layers = self._fit_layers("fit", data, None, callbacks)
            return self._attributes(data, layers)
        kept, held_out = data.lineup.split(HOLDOUT_FRACTION)
        if min(len(kept), len(held_out)) < 2:
            raise ValueError(
                f"selection='holdout' leaves {len(kept)} rows to fit on and "
                f"{len(held_out)} to choose by, of {len(data.targets)}; take "
                "selection='gcv' for so few."
            )
        layers = self._fit_layers(
            "choice", data.take(kept), data.take(held_out), callbacks
        )
        index = best_layer([layer.rounds.best for layer in layers], "holdout")
        chosen = [layer.rounds for layer in layers[: index + 1]]
        plan = [rounds.history["alpha"][: rounds.best.index + 1] for rounds in chosen]
        refitted = self._fit_layers("refit", data, None, callbacks, plan)
        # What was chosen, and by what, is in the history of the choice.
        refitted = [
            replace(layer, rounds=replace(layer.rounds, history=rounds.history))
            for layer, rounds in zip(refitted, chosen, strict=False)
        ]
        return self._attributes(data, refitted, "last")

    def add(self, data, rows):
        """The fitted attributes after rows were added to the sums of the estimator.

        Parameters
        ----------
        data : TrainingSet
            The rows that are added.
        rows : ndarray or StoredRows
            Their flat images.
        """
        estimator = self._estimator
        method = self._method(estimator, *self._setting, copy.deepcopy(self._rng))
        machine = method.present_machine(data)
        stream = Stream(
            machine.design().moments(),
            len(rows),
            data.counts.sum(),
            RowSample.of(rows, data.targets, data.weights, data.counts),
        )
        if hasattr(estimator, "stream_"):
            stream = estimator.stream_ + stream
        units = stream.in_units()
        sample = estimator._training_set(
            units.sample.rows,
            units.sample.targets,
            units.sample.weights,
            units.sample.counts,
            self._common["image_shape_"],
            copy.deepcopy(self._rng),
        )
        layers = fit_layers(
            method.summed_machine(machine, sample, units.moments),
            n_layers=1,
            pass_on=method.pass_on,
            maps=method.maps,
            n_rounds=0,
            agop_power=estimator.agop_power,
            # There are no rounds, and of held-out rows there are no sums.
            selection="loo" if estimator.selection == "loo" else "gcv",
            score=self._scorer(sample),
            report=lambda *_: False,
        )
        fitted = self._attributes(sample, layers, "last") | {"stream_": stream}
        if estimator._is_linear and estimator.best_layer_:  # the layers below stay
            for name in ("layers_", "best_layer_", "patch_shape_"):
                fitted[name] = getattr(estimator, name)
        return fitted

    def _fit_layers(self, phase, data, held_out, callbacks, plan=None):
        """Fit all layers on some rows; a "choice" is followed by a "refit"."""
        estimator = self._estimator
        # With held-out rows there are two fits, with the same filters.
        method = self._method(estimator, *self._setting, copy.deepcopy(self._rng))
        n_layers = estimator.feature_layers if plan is None else len(plan)
        selection = estimator.selection if plan is None else "last"
        checkpoint = self._checkpoint
        journal = None if checkpoint is None else checkpoint.journal(phase)

        def report(layers, best, history):
            if estimator.verbose:
                print(estimator._describe_round(len(layers), history))
            n_rounds = estimator.n_rounds
            if plan is not None:
                n_rounds = len(plan[len(layers)]) - 1
            last = len(layers) + 1 == n_layers and history["round"][-1] == n_rounds
            return callbacks.end_round(
                lambda: self._attributes(data, layers, selection, (best, history)),
                last and phase != "choice",
            )

        return fit_layers(
            method.machine(data, held_out),
            n_layers=n_layers,
            pass_on=method.pass_on,
            maps=method.maps,
            n_rounds=estimator.n_rounds,
            agop_power=estimator.agop_power,
            selection=selection,
            score=self._scorer(data),
            report=report,
            plan=plan,
            journal=journal,
        )

    def _scorer(self, data):
        """A function of predictions for some rows, their score."""
        return lambda prediction: self._estimator._score_targets(
            data.targets, prediction, data.weights
        )

    def _attributes(self, data, layers, selection=None, unfinished=None):
        """Fitted attributes from finished layers, and perhaps one that is not."""
        estimator = self._estimator
        rounds = [(layer.rounds.best, layer.rounds.history) for layer in layers]
        if unfinished is not None:
            rounds.append(unfinished)
        selection = estimator.selection if selection is None else selection
        index = best_layer([best for best, _ in rounds], selection)
        best, history = rounds[index]
        solution = best.solution
        fitted = {
            **self._common,
            "patch_shape_": rounds[0][0].machine.patch_shape,
            "layers_": [_learned(layer) for layer in layers],
            "best_layer_": index,
            "intercept_": self._shape(solution.intercept),
            "alpha_": solution.alpha,
            "best_round_": best.index,
            "patch_transform_": best.transform,
            "history_": _as_arrays(history),
            **estimator._calibrate(
                solution.held_out_prediction, data.targets, data.weights
            ),
        }
        if index < len(layers):
            fitted["patch_agop_"] = layers[index].rounds.agop
        for name, value in self._method.attributes(best).items():
            fitted[name] = self._shape(value) if name.endswith("coef_") else value
        if "dual_coef_" in fitted:
            images = data.images
            if estimator.channels == "first":
                images = images.transpose(0, 3, 1, 2)
            fitted["X_fit_"] = np.array(images.reshape(len(images), -1))
        return fitted

    def _shape(self, coef):
        """One column an output for y of shape (n, k), none for y of shape (n,)."""
        return self._estimator._shape_coef(coef, self._output_shape)


def _as_arrays(history):
    """The history with an array for each list."""
    return {key: np.array(values) for key, values in history.items()}


def _learned(layer):
    """A fitted layer as users see it."""
    best = layer.rounds.best
    zeros = np.zeros(layer.maps.n_maps)
    biases, offsets = (
        zeros if array is None else array
        for array in (layer.maps.biases, layer.maps.offsets)
    )
    return Bunch(
        patch_transform_=best.transform,
        patch_agop_=layer.rounds.agop,
        patch_shape_=best.machine.patch_shape,
        filters=layer.maps.filters,
        biases=biases,
        offsets=offsets,
        filter_transform_=layer.filter_transform,
        alpha_=best.solution.alpha,
        best_round_=best.index,
        history_=_as_arrays(layer.rounds.history),
    )


class ConvRFMClassifier(ClassifierMixin, _ConvRFM):
    """Convolutional kernel classifier that learns its features.

    Kernel ridge regression on the classes with a convolutional neural tangent
    kernel. After each solve the patch average gradient outer product (AGOP) of the
    predictor becomes the metric of patches for the next one: ConvRFM.

    Parameters
    ----------
    image_shape : tuple of int, default=None
        Rows and columns of an image, ``(h, w)``, or with channels ``(h, w, c)``, in
        this order for either value of `channels`. None takes it from `X` where that has
        three or four dimensions; a flat row is a square image where its width is a
        perfect square from 16 on, else one row of pixels. Colour images in flat rows
        need it.
    channels : {"last", "first"}, default="last"
        How the pixels of a flat row are laid out, (h, w, c) or (c, h, w); the same
        for four-dimensional `X`.
    kernel : {"ntk", "nngp", "laplace", "gaussian"}, default="ntk"
        The convolutional neural tangent kernel, or the kernel of the network's
        Gaussian process. The former is the one of the paper and mostly the better. The
        other two are patch kernels, a profile of the distance of patches averaged over
        locations: see :func:`~skconvrfm.kernels.patch_kernel`.
    depth : int, default=3
        Number of convolutions of the infinitely wide network. Deeper kernels see
        wider parts of an image; the cost is linear. It does not apply to patch
        kernels, which have one layer; another value than the default is met with a
        warning there.
    patch_size : int or (int, int), default=3
        Rows and columns of a patch, clipped to the image.
    padding : {"valid", "same"}, default="valid"
        Whether maps shrink by the patch less one in each layer, or are padded with
        zeros.
    bias : float, default=0.3
        Standard deviation of the bias of every convolution, and of features' biases.
        With 0, as in the paper, the kernel is homogeneous, and on few features it
        cannot place a threshold; 0.3 serves standardised columns and images in [0, 1]
        (measured: see "The bias" in the guide). It does not apply to patch kernels.
    bandwidth : float or "auto", default="auto"
        The distance of patches at which a patch kernel has fallen to exp(-1) (Laplace)
        or exp(-1/2) (Gaussian). ``"auto"`` is the weighted median of distances under
        the patch transform, measured anew in every round.
    method : {"auto", "exact", "features"}, default="auto"
        ``"exact"`` solves in the kernel, at a cost of n². ``"features"`` draws filters
        in place of integrating over them: ridge regression on their pooled maps, with
        the same rounds, linear in n, and with its pool often the more accurate.
        ``"auto"`` is exact up to 3000 rows and 2e10 pairs of locations (of n² / 2 pairs
        of rows, times `depth`); with `verbose` it says what it took.
    pool_grid : "auto", None, int or (int, int), default="auto"
        Rows and columns of a grid of cells over which the last layer's map is averaged
        before the readout; it is clipped to the map, and (1, 1) is global. None keeps
        every location. The exact kernel compares all pairs of locations in a cell,
        which is for small problems. ``"auto"`` is None where the kernel is exact and
        (3, 3) for features.
    feature_layers : int, default=1
        Layers that learn a metric. 1 is ConvRFM. With more, up to `depth` where the
        kernel is exact, this is Deep ConvRFM: each layer passes what its filters make
        of the images to the next one. Every layer is a predictor, and `selection` keeps
        the best. A layer more costs several times the first, for its patches have
        `n_filters` channels.
    pool_between : int, default=2
        Width of the means between two layers of features.
    n_filters : int or "auto", default="auto"
        Filters of a layer. ``"auto"`` is 64 where the kernel is exact, which has them
        only between layers, and 512 for features, whose accuracy and cost grow with it.
    filters : {"patches", "gaussian"}, default="patches"
        What features begin from: training patches under the metric, drawn evenly over
        classes (or targets) and scaled to one length; or N(0, M), whose kernel tends to
        the exact one (pooled, of one layer, ``kernel="nngp"``).
    initial_metric : {"whiten", "identity"}, default="whiten"
        The metric of round 0 of features: the patch covariance, shrunk, to the power
        -1, with patches taken from their mean; or none.
    activation : {"relu", "identity"}, default="relu"
        What follows the filters. The published code has none, which is "identity".
    threshold : float, default=0.5
        What is taken off the responses of a filter of features before the activation,
        in their standard deviations. With ``"relu"``, sparser maps are more accurate
        (measured: see "The linear path" in the guide).
    antithetic : bool, default=False
        Whether half of the filters of features are the negatives of the other half.
    pool_power : float in (0, 1], default=0.5
        The power that the means over cells are raised to in features. The root makes a
        faint pattern count for more against a strong one, and was the more accurate on
        natural images, digits and articles, but not where cells have a few noisy
        locations (measured: see "The linear path" in the guide). 1 leaves the means as
        they are, which is what the exact pooled kernel integrates over.
    n_rounds : int, default=4
        Updates of the patch transform after the first fit. 0 is the fixed
        convolutional kernel. More rounds cost time and no accuracy, for `selection`
        keeps the best.
    agop_power : float, default=0.5
        The power of the patch AGOP that becomes the patch transform.
    agop_samples : "auto", int, float or None, default="auto"
        Images that carry the AGOP: a number, a fraction, or None for all. They are
        drawn evenly over classes (or targets), and in proportion to the weights.
        ``"auto"`` takes as many as make 20,000 patches, and at least 20; more did not
        raise the accuracy (measured: see "How many images" in the guide). With
        features, where they are cheap, it takes 200,000 patches.
    alpha : float or array-like of float, default=half decades from 1e-6 to 1e2
        The ridge, in units of the largest diagonal entry of the kernel; of several,
        `selection` chooses. One decomposition serves them all.
    selection : {"gcv", "loo", "holdout", "last"}, default="gcv"
        What chooses ridge, round and layer: generalised cross-validation, the default
        because it needs no second fit; the leave-one-out error; the error of a held-out
        fifth of the rows, drawn evenly over classes (or targets) and with copies of an
        image kept together, after which all rows are fitted anew; or the last round,
        with the ridge by GCV. By GCV and leave-one-out, a round or layer of features
        must be better than those before by two per cent, which is its optimism. Where
        the metric is large against the data, as in deeper layers, only ``"holdout"`` is
        honest (see :ref:`optimistic`).
    warm_start : bool, default=False
        Whether `fit` begins from the metric that is there, of a former fit or of
        `refine`, and with features from the same filters.
    class_weight : dict, "balanced" or None, default=None
        Importance of the classes, of which only the ratios count.
    device : str, default="auto"
        ``"auto"`` is CUDA where torch finds it, else the CPU.
    dtype : {"auto", "float32", "float64"}, default="auto"
        Precision of the kernel. ``"auto"`` is the smaller that holds the images
        exactly: float64 stays float64, uint8 is computed in float32. Ridge and
        eigenvalues are always float64.
    n_jobs : int, default=None
        Tasks that share tiles and blocks of images, through joblib. None is 1 unless in
        a :obj:`joblib.parallel_config` context, which may be that of a cluster; a
        single task uses the threads of torch.
    random_state : int, RandomState instance or None, default=None
        Seed of the draw of `agop_samples`. None is a seed as well: fits are
        repeatable by default.
    verbose : int, default=0
        With 1, one line a round.
    checkpoint : str, path-like or None, default=None
        A folder in which the fit is kept after every round. The same call, with the
        same data and parameters, goes on from there, with the result of a fit that was
        not interrupted; once it is finished, it returns it. One folder is for one fit
        (see :ref:`checkpoints`).
    checkpoint_on_error : {"raise", "restart"}, default="raise"
        What follows where the folder has the checkpoint of another fit, or a damaged
        one: an error that says which, or a fit from the beginning in its place.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The classes.
    temperature_ : float
        Temperature of the probabilities.
    method_ : {"exact", "features"}
        The method.
    X_fit_ : ndarray of shape (n_samples, n_features)
        The training rows of positive weight, in their own dtype; where the kernel is
        exact.
    dual_coef_ : ndarray of shape (n_samples, n_outputs)
        Coefficients of the kernel K as
        :func:`~skconvrfm.kernels.convolutional_kernel` returns it, not scaled: the
        decision function is ``K @ dual_coef_ + intercept_``.
    coef_ : ndarray of shape (n_features_out, n_outputs)
        With ``method="features"``: coefficients of the features, which are those of
        :class:`PatchAGOPTransformer`, in the order (row, column of the grid, filter).
    filters_ : ndarray of shape (n_filters, d)
        With ``method="features"``: the filters.
    biases_ : ndarray of shape (n_filters,)
        With ``method="features"``: what is added to their responses.
    offsets_ : ndarray of shape (n_filters,)
        With ``method="features"``: what is added to the means before they are raised to
        `pool_power`, a hundredth of the deviation of responses.
    pool_grid_ : tuple of int
        With ``method="features"``: rows and columns of the grid.
    filter_bank_ : FilterBank
        With ``method="features"``: the filters before they take a metric, for further
        rounds by `refine`, `partial_fit` and `warm_start`.
    stream_ : Stream
        After `partial_fit`: the sums over what it has seen, and a sample of the rows.
    intercept_ : ndarray of shape (n_outputs,)
        The intercept, which is not penalised.
    alpha_ : float
        The ridge chosen.
    best_round_ : int
        The round chosen.
    patch_transform_ : ndarray of shape (d, d)
        The patch transform T of that round, symmetric, for patches of d =
        c·rows·columns entries in the order (channel, row, column). Its Frobenius norm
        is sqrt(d) where rounds begin from the identity.
    patch_agop_ : ndarray of shape (d, d)
        The patch AGOP of the chosen predictor.
    layers_ : list of Bunch
        What each of the `feature_layers` has learned: ``patch_transform_``,
        ``patch_agop_``, ``patch_shape_``, ``best_round_``, ``alpha_`` and ``history_``
        as above and below; ``filters`` of shape (n_filters, d) and ``biases``, with
        which the layer passes its maps on; and ``filter_transform_`` of shape (d, d),
        the T whose T Tᵀ is their covariance: the learned one also where round 0 was
        kept.
    best_layer_ : int
        The layer chosen, which predicts; 0 is the one that sees the images. The
        attributes of the machine, its rounds and its metric are those of this layer.
    bandwidth_ : float
        The bandwidth, where `kernel` is a patch kernel.
    history_ : dict of ndarray
        One entry a round: ``round``, ``alpha``, ``gcv``, ``loo_loss``, ``loo_score``
        (the accuracy of left-out rows), ``spectrum`` (the eigenvalues of the metric
        T Tᵀ as shares of their sum, the largest first), ``seconds_kernel``,
        ``seconds_solve``, ``seconds_agop``; and ``holdout_loss`` with
        ``selection="holdout"``, where all of them are of the fit that chose.
    image_shape_ : tuple of int
        Rows, columns and channels of an image.
    patch_shape_ : tuple of int
        Rows and columns of a patch of the first layer.
    n_features_in_ : int
        Number of features of a row.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, where `X` had string names.

    See Also
    --------
    ConvRFMRegressor : The same for real targets.
    skconvrfm.kernels.convolutional_kernel : The kernel as a function.

    Notes
    -----
    An exact fit costs, a round, ``n² / 2`` pairs of images times locations times
    layers, an eigendecomposition of ``n³``, and the AGOP; see "What costs what" in the
    guide. With D features, a round costs n times the convolution and D², and an
    eigendecomposition of D³ (or of n³ where rows are fewer). Sample weights count rows:
    weight 2 is the row twice, also in the selection. Weights that sum to less than the
    number of rows are scaled to mean one.

    References
    ----------
    Beaglehole, Radhakrishnan, Pandit, Belkin, "Mechanism of feature learning in
    convolutional neural networks", arXiv:2309.00570, Algorithm 1.

    Examples
    --------
    >>> from skconvrfm import ConvRFMClassifier
    >>> from skconvrfm.datasets import load_digit_images
    >>> X, y = load_digit_images(return_X_y=True)
    >>> clf = ConvRFMClassifier(depth=2, n_rounds=1).fit(X[:200], y[:200])
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
        *,
        image_shape: ImageShape = None,
        channels: Channels = "last",
        kernel: Kernel = "ntk",
        depth: int = 3,
        patch_size: Pair = 3,
        padding: Padding = "valid",
        bias: float = 0.3,
        bandwidth: float | Literal["auto"] = "auto",
        method: Method = "auto",
        pool_grid: Pair | Literal["auto"] | None = "auto",
        feature_layers: int = 1,
        pool_between: int = 2,
        n_filters: int | Literal["auto"] = "auto",
        filters: Filters = "patches",
        initial_metric: Literal["identity", "whiten"] = "whiten",
        activation: Activation = "relu",
        threshold: float = 0.5,
        antithetic: bool = False,
        pool_power: float = 0.5,
        n_rounds: int = 4,
        agop_power: float = 0.5,
        agop_samples: float | Literal["auto"] | None = "auto",
        alpha: ArrayLike = DEFAULT_ALPHAS,
        selection: Selection = "gcv",
        warm_start: bool = False,
        class_weight: Mapping[Any, float] | Literal["balanced"] | None = None,
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
            pool_grid=pool_grid,
            feature_layers=feature_layers,
            pool_between=pool_between,
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
            warm_start=warm_start,
            device=device,
            dtype=dtype,
            n_jobs=n_jobs,
            random_state=random_state,
            verbose=verbose,
            checkpoint=checkpoint,
            checkpoint_on_error=checkpoint_on_error,
        )
        self.class_weight = class_weight

    @all_or_nothing
    @fit_method
    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Fit the machine, round by round, and keep the best round.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), (n_samples, h, w) or \
                (n_samples, h, w, c)
            Images, or rows of pixels, of any real dtype. Of a memmap, a dataset of h5py
            or zarr, or another array that is read by slices, features hold no more
            than blocks; the exact kernel reads it whole.
        y : array-like of shape (n_samples,)
            Classes.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights; a row of weight 2 counts as two rows, one of weight 0 not at all.

        Returns
        -------
        self : object
            The fitted estimator. If the fit fails or is interrupted, it is as it was.

        Raises
        ------
        ValueError
            If X, y or a parameter is not usable; the message says what to do.
        OSError
            If the checkpoint cannot be written or read.
        """
        return self._fit(X, y, sample_weight)

    @available_if(_has_features)
    @all_or_nothing
    @fit_method
    def partial_fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        classes: ArrayLike | None = None,
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Add images to those that were seen, with the filters and metric there are.

        The machine is a ridge regression on features, which sums over the images
        determine: the result is that of one fit to all images, in whatever order they
        came. The first call draws the filters from its images, which should be
        typical, unless `fit` has learned a metric before: that, and its filters, then
        stay, and the sums begin with the images of this call.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), (n_samples, h, w) or \
                (n_samples, h, w, c)
            Images, laid out alike in all calls. A call costs a decomposition of all
            features: give many images at a time.
        y : array-like of shape (n_samples,)
            Classes.
        classes : array-like of shape (n_classes,), default=None
            All classes, at the first call; None takes those of `y`.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights, see `fit`.

        Returns
        -------
        self : object
            The fitted estimator. If the call fails or is interrupted, it is as it was.

        Raises
        ------
        ValueError
            If X, y or a parameter is not usable; the message says what to do.

        Notes
        -----
        The ridge is chosen by GCV, or for ``selection="loo"`` by the leave-one-out
        error of a sample of the rows; probabilities are calibrated on that sample.
        """
        if self.class_weight == "balanced":
            raise ValueError(
                "class_weight='balanced' needs all of y, which partial_fit does not "
                "see; pass the weights as a dict."
            )
        known = self.classes_ if self._is_linear else None
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

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), (n_samples, h, w) or \
                (n_samples, h, w, c)
            Images, laid out as in `fit`.

        Returns
        -------
        scores : ndarray of shape (n_samples,) or (n_samples, n_classes)
            One score a class; for two classes, that of ``classes_[1]``.
        """
        raw = self._predict_raw(X)
        return raw[:, 0] if len(self.classes_) == 2 else raw

    def predict(self, X: ArrayLike) -> Array:
        """Predict the class of the largest score.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), (n_samples, h, w) or \
                (n_samples, h, w, c)
            Images, laid out as in `fit`.

        Returns
        -------
        y : ndarray of shape (n_samples,)
            Classes.
        """
        scores = self.decision_function(X)
        if scores.ndim == 1:
            return self.classes_[(scores > 0).astype(int)]
        return self.classes_[scores.argmax(axis=1)]

    def predict_proba(self, X: ArrayLike) -> Floats:
        """Predict probabilities: a softmax of the scores at one temperature.

        The temperature was fitted to the scores of held-out training rows, so that
        probabilities are calibrated; the order of the scores is kept.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), (n_samples, h, w) or \
                (n_samples, h, w, c)
            Images, laid out as in `fit`.

        Returns
        -------
        probabilities : ndarray of shape (n_samples, n_classes)
            Probabilities, in the order of ``classes_``.
        """
        scores = _class_scores(self.decision_function(X))
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
        weights = self._class_weighted(weights, y, codes, n_classes)
        if n_classes == 2:
            targets = 2.0 * codes[:, None] - 1
        else:
            targets = 2.0 * (codes[:, None] == np.arange(n_classes)) - 1
        return {"classes_": classes}, targets, weights

    def _class_weighted(self, weights, y, codes, n_classes):
        """The weights times those of the classes."""
        if self.class_weight is None:
            return weights
        if self.class_weight == "balanced":  # by weights, so that they count as rows
            weighted = weights / np.bincount(codes, weights, n_classes)[codes]
        else:
            weighted = weights * compute_sample_weight(self.class_weight, y)
        if not (weighted > 0).all():
            raise ValueError(
                f"class_weight={self.class_weight!r} must be positive for every class; "
                "drop the rows of a class that is to be left out."
            )
        return weighted

    def _strata(self, targets, rng):
        return targets.argmax(axis=1) if targets.shape[1] > 1 else targets[:, 0]

    def _score_targets(self, targets, prediction, weights):
        if targets.shape[1] == 1:
            return accuracy_score(targets > 0, prediction > 0, sample_weight=weights)
        return accuracy_score(
            targets.argmax(axis=1), prediction.argmax(axis=1), sample_weight=weights
        )

    def _shape_coef(self, coef, output_shape):
        return coef

    def _calibrate(self, prediction, targets, weights):
        return {"temperature_": _fit_temperature(prediction, targets, weights)}


def _class_scores(scores):
    """One column a class: a binary score counts for one class and against the other."""
    scores = np.reshape(scores, (len(scores), -1))
    return np.hstack([-scores, scores]) if scores.shape[1] == 1 else scores


def _fit_temperature(prediction, targets, weights):
    """The temperature that makes the softmax of held-out scores likeliest.

    Targets are smoothed by one more observation, of all classes in equal parts (in the
    manner of Platt 1999), so that separable scores do not ask for certainty. The
    likelihood is concave in the inverse temperature: its slope has one root.
    """
    scores, truth = _class_scores(prediction), _class_scores(targets) > 0
    n_classes = scores.shape[1]
    total = weights.sum()
    smoothed = (truth * total + 1 / n_classes) / (total + 1)

    def slope(inverse):
        excess = softmax(inverse * scores) - smoothed
        return weights @ (excess * scores).sum(axis=1)

    coldest, hottest = TEMPERATURE_RANGE
    if slope(1 / hottest) >= 0:
        return hottest
    if slope(1 / coldest) <= 0:
        return coldest
    return 1 / brentq(slope, 1 / hottest, 1 / coldest)


class ConvRFMRegressor(MultiOutputMixin, RegressorMixin, _ConvRFM):
    """Convolutional kernel regressor that learns its features.

    Kernel ridge regression with a convolutional neural tangent kernel. After each
    solve the patch average gradient outer product (AGOP) of the predictor becomes the
    metric of patches for the next one: ConvRFM.

    Parameters
    ----------
    image_shape : tuple of int, default=None
        Rows and columns of an image, ``(h, w)``, or with channels ``(h, w, c)``, in
        this order for either value of `channels`. None takes it from `X` where that has
        three or four dimensions; a flat row is a square image where its width is a
        perfect square from 16 on, else one row of pixels. Colour images in flat rows
        need it.
    channels : {"last", "first"}, default="last"
        How the pixels of a flat row are laid out, (h, w, c) or (c, h, w); the same
        for four-dimensional `X`.
    kernel : {"ntk", "nngp", "laplace", "gaussian"}, default="ntk"
        The convolutional neural tangent kernel, or the kernel of the network's
        Gaussian process. The former is the one of the paper and mostly the better. The
        other two are patch kernels, a profile of the distance of patches averaged over
        locations: see :func:`~skconvrfm.kernels.patch_kernel`.
    depth : int, default=3
        Number of convolutions of the infinitely wide network. Deeper kernels see
        wider parts of an image; the cost is linear. It does not apply to patch
        kernels, which have one layer; another value than the default is met with a
        warning there.
    patch_size : int or (int, int), default=3
        Rows and columns of a patch, clipped to the image.
    padding : {"valid", "same"}, default="valid"
        Whether maps shrink by the patch less one in each layer, or are padded with
        zeros.
    bias : float, default=0.3
        Standard deviation of the bias of every convolution, and of features' biases.
        With 0, as in the paper, the kernel is homogeneous, and on few features it
        cannot place a threshold; 0.3 serves standardised columns and images in [0, 1]
        (measured: see "The bias" in the guide). It does not apply to patch kernels.
    bandwidth : float or "auto", default="auto"
        The distance of patches at which a patch kernel has fallen to exp(-1) (Laplace)
        or exp(-1/2) (Gaussian). ``"auto"`` is the weighted median of distances under
        the patch transform, measured anew in every round.
    method : {"auto", "exact", "features"}, default="auto"
        ``"exact"`` solves in the kernel, at a cost of n². ``"features"`` draws filters
        in place of integrating over them: ridge regression on their pooled maps, with
        the same rounds, linear in n, and with its pool often the more accurate.
        ``"auto"`` is exact up to 3000 rows and 2e10 pairs of locations (of n² / 2 pairs
        of rows, times `depth`); with `verbose` it says what it took.
    pool_grid : "auto", None, int or (int, int), default="auto"
        Rows and columns of a grid of cells over which the last layer's map is averaged
        before the readout; it is clipped to the map, and (1, 1) is global. None keeps
        every location. The exact kernel compares all pairs of locations in a cell,
        which is for small problems. ``"auto"`` is None where the kernel is exact and
        (3, 3) for features.
    feature_layers : int, default=1
        Layers that learn a metric. 1 is ConvRFM. With more, up to `depth` where the
        kernel is exact, this is Deep ConvRFM: each layer passes what its filters make
        of the images to the next one. Every layer is a predictor, and `selection` keeps
        the best. A layer more costs several times the first, for its patches have
        `n_filters` channels.
    pool_between : int, default=2
        Width of the means between two layers of features.
    n_filters : int or "auto", default="auto"
        Filters of a layer. ``"auto"`` is 64 where the kernel is exact, which has them
        only between layers, and 512 for features, whose accuracy and cost grow with it.
    filters : {"patches", "gaussian"}, default="patches"
        What features begin from: training patches under the metric, drawn evenly over
        classes (or targets) and scaled to one length; or N(0, M), whose kernel tends to
        the exact one (pooled, of one layer, ``kernel="nngp"``).
    initial_metric : {"whiten", "identity"}, default="whiten"
        The metric of round 0 of features: the patch covariance, shrunk, to the power
        -1, with patches taken from their mean; or none.
    activation : {"relu", "identity"}, default="relu"
        What follows the filters. The published code has none, which is "identity".
    threshold : float, default=0.5
        What is taken off the responses of a filter of features before the activation,
        in their standard deviations. With ``"relu"``, sparser maps are more accurate
        (measured: see "The linear path" in the guide).
    antithetic : bool, default=False
        Whether half of the filters of features are the negatives of the other half.
    pool_power : float in (0, 1], default=0.5
        The power that the means over cells are raised to in features. The root makes a
        faint pattern count for more against a strong one, and was the more accurate on
        natural images, digits and articles, but not where cells have a few noisy
        locations (measured: see "The linear path" in the guide). 1 leaves the means as
        they are, which is what the exact pooled kernel integrates over.
    n_rounds : int, default=4
        Updates of the patch transform after the first fit. 0 is the fixed
        convolutional kernel. More rounds cost time and no accuracy, for `selection`
        keeps the best.
    agop_power : float, default=0.5
        The power of the patch AGOP that becomes the patch transform.
    agop_samples : "auto", int, float or None, default="auto"
        Images that carry the AGOP: a number, a fraction, or None for all. They are
        drawn evenly over classes (or targets), and in proportion to the weights.
        ``"auto"`` takes as many as make 20,000 patches, and at least 20; more did not
        raise the accuracy (measured: see "How many images" in the guide). With
        features, where they are cheap, it takes 200,000 patches.
    alpha : float or array-like of float, default=half decades from 1e-6 to 1e2
        The ridge, in units of the largest diagonal entry of the kernel; of several,
        `selection` chooses. One decomposition serves them all.
    selection : {"gcv", "loo", "holdout", "last"}, default="gcv"
        What chooses ridge, round and layer: generalised cross-validation, the default
        because it needs no second fit; the leave-one-out error; the error of a held-out
        fifth of the rows, drawn evenly over classes (or targets) and with copies of an
        image kept together, after which all rows are fitted anew; or the last round,
        with the ridge by GCV. By GCV and leave-one-out, a round or layer of features
        must be better than those before by two per cent, which is its optimism. Where
        the metric is large against the data, as in deeper layers, only ``"holdout"`` is
        honest (see :ref:`optimistic`).
    warm_start : bool, default=False
        Whether `fit` begins from the metric that is there, of a former fit or of
        `refine`, and with features from the same filters.
    device : str, default="auto"
        ``"auto"`` is CUDA where torch finds it, else the CPU.
    dtype : {"auto", "float32", "float64"}, default="auto"
        Precision of the kernel. ``"auto"`` is the smaller that holds the images
        exactly: float64 stays float64, uint8 is computed in float32. Ridge and
        eigenvalues are always float64.
    n_jobs : int, default=None
        Tasks that share tiles and blocks of images, through joblib. None is 1 unless in
        a :obj:`joblib.parallel_config` context, which may be that of a cluster; a
        single task uses the threads of torch.
    random_state : int, RandomState instance or None, default=None
        Seed of the draw of `agop_samples`. None is a seed as well: fits are
        repeatable by default.
    verbose : int, default=0
        With 1, one line a round.
    checkpoint : str, path-like or None, default=None
        A folder in which the fit is kept after every round. The same call, with the
        same data and parameters, goes on from there, with the result of a fit that was
        not interrupted; once it is finished, it returns it. One folder is for one fit
        (see :ref:`checkpoints`).
    checkpoint_on_error : {"raise", "restart"}, default="raise"
        What follows where the folder has the checkpoint of another fit, or a damaged
        one: an error that says which, or a fit from the beginning in its place.

    Attributes
    ----------
    method_ : {"exact", "features"}
        The method.
    X_fit_ : ndarray of shape (n_samples, n_features)
        The training rows of positive weight, in their own dtype; where the kernel is
        exact.
    dual_coef_ : ndarray of shape (n_samples, n_outputs) or (n_samples,)
        Coefficients of the kernel as :func:`~skconvrfm.kernels.convolutional_kernel`
        returns it, not scaled: the prediction is ``K @ dual_coef_ + intercept_``.
    coef_ : ndarray of shape (n_features_out, n_outputs) or (n_features_out,)
        With ``method="features"``: coefficients of the features, which are those of
        :class:`PatchAGOPTransformer`, in the order (row, column of the grid, filter).
    filters_ : ndarray of shape (n_filters, d)
        With ``method="features"``: the filters.
    biases_ : ndarray of shape (n_filters,)
        With ``method="features"``: what is added to their responses.
    offsets_ : ndarray of shape (n_filters,)
        With ``method="features"``: what is added to the means before they are raised to
        `pool_power`, a hundredth of the deviation of responses.
    pool_grid_ : tuple of int
        With ``method="features"``: rows and columns of the grid.
    filter_bank_ : FilterBank
        With ``method="features"``: the filters before they take a metric, for further
        rounds by `refine`, `partial_fit` and `warm_start`.
    stream_ : Stream
        After `partial_fit`: the sums over what it has seen, and a sample of the rows.
    intercept_ : float or ndarray of shape (n_outputs,)
        The intercept, which is not penalised.
    alpha_ : float
        The ridge chosen.
    best_round_ : int
        The round chosen.
    patch_transform_ : ndarray of shape (d, d)
        The patch transform T of that round, symmetric, for patches of d =
        c·rows·columns entries in the order (channel, row, column). Its Frobenius norm
        is sqrt(d) where rounds begin from the identity.
    patch_agop_ : ndarray of shape (d, d)
        The patch AGOP of the chosen predictor.
    layers_ : list of Bunch
        What each of the `feature_layers` has learned: ``patch_transform_``,
        ``patch_agop_``, ``patch_shape_``, ``best_round_``, ``alpha_`` and ``history_``
        as above and below; ``filters`` of shape (n_filters, d) and ``biases``, with
        which the layer passes its maps on; and ``filter_transform_`` of shape (d, d),
        the T whose T Tᵀ is their covariance: the learned one also where round 0 was
        kept.
    best_layer_ : int
        The layer chosen, which predicts; 0 is the one that sees the images. The
        attributes of the machine, its rounds and its metric are those of this layer.
    bandwidth_ : float
        The bandwidth, where `kernel` is a patch kernel.
    history_ : dict of ndarray
        One entry a round: ``round``, ``alpha``, ``gcv``, ``loo_loss``, ``loo_score``
        (R² of left-out rows), ``spectrum`` (the eigenvalues of the metric T Tᵀ as
        shares of their sum, the largest first), ``seconds_kernel``, ``seconds_solve``,
        ``seconds_agop``; and ``holdout_loss`` with ``selection="holdout"``, where all
        of them are of the fit that chose.
    image_shape_ : tuple of int
        Rows, columns and channels of an image.
    patch_shape_ : tuple of int
        Rows and columns of a patch of the first layer.
    n_features_in_ : int
        Number of features of a row.
    feature_names_in_ : ndarray of shape (`n_features_in_`,)
        Names of the features, where `X` had string names.

    See Also
    --------
    ConvRFMClassifier : The same for classes.
    skconvrfm.kernels.convolutional_kernel : The kernel as a function.

    Notes
    -----
    An exact fit costs, a round, ``n² / 2`` pairs of images times locations times
    layers, an eigendecomposition of ``n³``, and the AGOP; see "What costs what" in the
    guide. With D features, a round costs n times the convolution and D², and an
    eigendecomposition of D³ (or of n³ where rows are fewer). Sample weights count rows:
    weight 2 is the row twice, also in the selection. Weights that sum to less than the
    number of rows are scaled to mean one.

    With several outputs, the AGOP and the criteria add them up as they are: bring
    targets of different units to one scale first.

    References
    ----------
    Beaglehole, Radhakrishnan, Pandit, Belkin, "Mechanism of feature learning in
    convolutional neural networks", arXiv:2309.00570, Algorithm 1.

    Examples
    --------
    >>> import numpy as np
    >>> from skconvrfm import ConvRFMRegressor
    >>> rng = np.random.default_rng(0)
    >>> X = rng.normal(size=(80, 6, 6))
    >>> y = X[:, 2, 2] * X[:, 3, 3]
    >>> reg = ConvRFMRegressor(depth=2, n_rounds=1).fit(X, y)
    >>> reg.predict(X).shape
    (80,)
    """

    @all_or_nothing
    @fit_method
    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Fit the machine, round by round, and keep the best round.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), (n_samples, h, w) or \
                (n_samples, h, w, c)
            Images, or rows of pixels, of any real dtype. Of a memmap, a dataset of h5py
            or zarr, or another array that is read by slices, features hold no more
            than blocks; the exact kernel reads it whole.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Targets.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights; a row of weight 2 counts as two rows, one of weight 0 not at all.

        Returns
        -------
        self : object
            The fitted estimator. If the fit fails or is interrupted, it is as it was.

        Raises
        ------
        ValueError
            If X, y or a parameter is not usable; the message says what to do.
        OSError
            If the checkpoint cannot be written or read.
        """
        return self._fit(X, y, sample_weight)

    @available_if(_has_features)
    @all_or_nothing
    @fit_method
    def partial_fit(
        self,
        X: ArrayLike,
        y: ArrayLike,
        sample_weight: ArrayLike | None = None,
    ) -> Self:
        """Add images to those that were seen, with the filters and metric there are.

        The machine is a ridge regression on features, which sums over the images
        determine: the result is that of one fit to all images, in whatever order they
        came. The first call draws the filters from its images, which should be
        typical, unless `fit` has learned a metric before: that, and its filters, then
        stay, and the sums begin with the images of this call.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), (n_samples, h, w) or \
                (n_samples, h, w, c)
            Images, laid out alike in all calls. A call costs a decomposition of all
            features: give many images at a time.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Targets.
        sample_weight : array-like of shape (n_samples,), default=None
            Weights, see `fit`.

        Returns
        -------
        self : object
            The fitted estimator. If the call fails or is interrupted, it is as it was.

        Raises
        ------
        ValueError
            If X, y or a parameter is not usable; the message says what to do.

        Notes
        -----
        The ridge is chosen by GCV, or for ``selection="loo"`` by the leave-one-out
        error of a sample of the rows.
        """
        return self._partial_fit(X, y, sample_weight)

    def predict(self, X: ArrayLike) -> Floats:
        """Predict targets.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), (n_samples, h, w) or \
                (n_samples, h, w, c)
            Images, laid out as in `fit`.

        Returns
        -------
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

"""ConvRFM as scikit-learn estimators: encodings, predictions, and their forms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, overload

import numpy as np
from numpy.typing import ArrayLike
from scipy.sparse import issparse
from sklearn.base import ClassifierMixin, MultiOutputMixin, RegressorMixin
from sklearn.metrics import r2_score
from sklearn.utils import compute_sample_weight
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from sklearn.utils.validation import column_or_1d

from ._base import DEFAULT_ALPHAS, ConvRFM, Features, has_sums
from ._docs import COVARIANCE_ATTRIBUTES, STORE_COVARIANCE, documented
from ._input import all_or_nothing, as_numbers
from ._regressor import BaseRegressor
from ._sklearn_compat import StrOptions, fit_method
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
from .kernels.base import BaseKernel
from .learning.calibration import (
    class_scores,
    class_shares,
    fit_temperature,
    log_probabilities,
)
from .learning.fitted import check_positive

if TYPE_CHECKING:
    from typing_extensions import Self


@documented(
    on_classes=" on the classes",
    class_weight="""class_weight : dict, "balanced" or None, default=None
        Importance of the classes, of which only the ratios count.
    """,
    class_attributes="""classes_ : ndarray of shape (n_classes,)
        The classes; of label sets, the numbers of their columns.
    multilabel_ : bool
        True if `y` was an indicator matrix of label sets.
    temperature_ : float
        Temperature of the probabilities.
    """,
    targets="Classes, or an indicator matrix of label sets",
    outputs_of="`decision_function`",
    intercept="ndarray of shape (n_outputs,)",
    score="accuracy",
    other="ConvRFMRegressor : The same for real targets.",
    or_2d=" or (n_samples, n_classes)",
    **dict.fromkeys(("or_1d", "or_1d_dual", "more_notes"), ""),
    **dict.fromkeys(("store_covariance", "covariance_attributes"), ""),
)
class ConvRFMClassifier(ClassifierMixin, ConvRFM):
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
        **ConvRFM._parameter_constraints,
        "class_weight": [dict, StrOptions({"balanced"}), None],
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
            n_iter_no_change=n_iter_no_change,
            agop_power=agop_power,
            agop_samples=agop_samples,
            landmarks=landmarks,
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
    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike | None = None,
        sample_weight: Weights = None,
        groups: ArrayLike | None = None,
    ) -> Self:
        """Fit the machine, round by round, and keep the best round.

        %(rows)s
        %(weights)s
        %(groups)s
        %(returns)s
        """
        return self._fit(X, y, sample_weight, groups)

    @available_if(has_sums)
    @all_or_nothing
    @fit_method
    def partial_fit(
        self,
        X: ArrayLike,
        y: ArrayLike | None = None,
        classes: ArrayLike | None = None,
        sample_weight: Weights = None,
    ) -> Self:
        """Add images to those that were seen, with the present filters and metric.

        %(stream)s
        classes : array-like of shape (n_classes,), default=None
            All classes, at the first call; None takes those of `y`.
        %(weights)s
        %(returns)s
        """
        if self.class_weight == "balanced":
            raise ValueError(
                "class_weight='balanced' needs all of y, which partial_fit does not "
                "see; pass the weights as a dict."
            )
        known = self.classes_ if self._goes_on else None
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
            One score per class; for two classes, that of ``classes_[1]``; for label
            sets, one per label.
        """
        return self._shape_prediction(self._predict_raw(X))

    def predict(self, X: ArrayLike) -> Array:
        """Predict the class of the largest score, or the labels of positive scores.

        %(images)s
        y : ndarray of shape (n_samples,) or (n_samples, n_classes)
            Classes; for label sets, their indicator matrix.
        """
        scores = self.decision_function(X)
        if scores.ndim == 1 or self.multilabel_:
            codes = (scores > 0).astype(int)
        else:
            codes = scores.argmax(axis=1)
        return codes if self.multilabel_ else self.classes_[codes]

    def predict_proba(self, X: ArrayLike) -> Floats:
        """Predict probabilities: a softmax of the scores at one temperature.

        The temperature was fitted to the scores of left-out training rows, so that
        probabilities are calibrated; the order of the scores is kept.

        %(images)s
        probabilities : ndarray of shape (n_samples, n_classes)
            Probabilities, in the order of ``classes_``; for label sets, that of each
            label.
        """
        return np.exp(self.predict_log_proba(X))

    def predict_log_proba(self, X: ArrayLike) -> Floats:
        """Predict logarithms of probabilities, also of those that are rounded to 0.

        %(images)s
        log_probabilities : ndarray of shape (n_samples, n_classes)
            Logarithms of `predict_proba`.
        """
        scores = self.decision_function(X)
        return log_probabilities(scores / self.temperature_, self.multilabel_)

    def _check_y(self, y):
        if type_of_target(y, input_name="y") == "multilabel-indicator":
            return y.toarray() if issparse(y) else y
        y = column_or_1d(y, warn=True)
        check_classification_targets(y)
        return y

    def _encode(self, y, weights, classes=None):
        if y.ndim == 2:
            return self._encode_label_sets(y, weights, classes)
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
        encoding = {"classes_": classes, "multilabel_": False}
        return encoding, 2.0 * columns - 1, weights

    def _encode_label_sets(self, y, weights, classes):
        """Return the same as `_encode` for an indicator matrix of labels."""
        labels = np.arange(y.shape[1])
        if classes is not None and not np.array_equal(classes, labels):
            raise ValueError(
                f"classes={np.asarray(classes).tolist()}, but y marks {len(labels)} "
                "labels; leave classes out for an indicator matrix."
            )
        if self.class_weight is not None:
            raise ValueError(
                f"class_weight={self.class_weight!r} is for single classes, but y "
                "marks sets of labels; pass sample_weight."
            )
        if not np.isin(y, (0, 1)).all():
            raise ValueError(
                f"y has the values {np.unique(y).tolist()}, but an indicator matrix of "
                "labels has 0 and 1 only."
            )
        encoding = {"classes_": labels, "multilabel_": True}
        return encoding, 2.0 * y - 1, weights

    def _strata(self, targets, positions, rng):
        # Numbered by the content of their images, so that names change no draw.
        _, code = np.unique(targets, axis=0, return_inverse=True)
        least = np.full(code.max() + 1, np.inf)
        np.minimum.at(least, code.ravel(), positions)
        return least[code.ravel()]

    def _score_targets(self, targets, prediction, weights, multilabel_, **_):
        if multilabel_:  # all labels of a row
            hits = ((1 + np.where(prediction > 0, targets, -targets)) / 2).prod(axis=1)
        else:
            code = class_scores(prediction).argmax(axis=1)
            hits = np.take_along_axis(class_shares(targets), code[:, None], axis=1)
        return np.average(hits.ravel(), weights=weights)

    def _shape_coef(self, coef, output_shape):
        return coef

    def _shape_prediction(self, raw):
        return raw[:, 0] if raw.shape[1] == 1 else raw

    def _check_fitted(self):
        machine, n_classes = super()._check_fitted(), len(self.classes_)
        n_outputs = 1 if n_classes == 2 and not self.multilabel_ else n_classes
        is_row = np.ndim(self.classes_) == 1 and n_classes > 1
        if not isinstance(self.multilabel_, bool):
            raise ValueError(
                f"multilabel_={self.multilabel_!r} is neither True nor False; fit the "
                "estimator again."
            )
        if not is_row or len(machine[-1]) != n_outputs:
            raise ValueError(
                f"classes_ has {n_classes} classes, but the fitted coefficients are "
                f"of {len(machine[-1])} outputs; fit the estimator again."
            )
        check_positive("temperature_", self.temperature_)
        return machine

    def _calibrate(self, prediction, targets, weights, multilabel_, **_):
        if multilabel_:  # one temperature for all labels
            weights = np.repeat(weights, targets.shape[1])
            prediction, targets = prediction.reshape(-1, 1), targets.reshape(-1, 1)
        return {"temperature_": fit_temperature(prediction, targets, weights)}

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags


@documented(
    **dict.fromkeys(("on_classes", "class_weight", "class_attributes"), ""),
    store_covariance=STORE_COVARIANCE,
    covariance_attributes=COVARIANCE_ATTRIBUTES,
    targets="Targets",
    outputs_of="`predict`",
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
class ConvRFMRegressor(MultiOutputMixin, RegressorMixin, BaseRegressor):
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
    def fit(
        self,
        X: ArrayLike,
        y: ArrayLike | None = None,
        sample_weight: Weights = None,
        groups: ArrayLike | None = None,
    ) -> Self:
        """Fit the machine, round by round, and keep the best round.

        %(rows)s
        %(weights)s
        %(groups)s
        %(returns)s
        """
        return self._fit(X, y, sample_weight, groups)

    @available_if(has_sums)
    @all_or_nothing
    @fit_method
    def partial_fit(
        self,
        X: ArrayLike,
        y: ArrayLike | None = None,
        sample_weight: Weights = None,
    ) -> Self:
        """Add images to those that were seen, with the present filters and metric.

        %(stream)s
        %(weights)s
        %(returns)s
        """
        return self._partial_fit(X, y, sample_weight)

    @overload
    def predict(self, X: ArrayLike, return_std: Literal[False] = False) -> Floats: ...

    @overload
    def predict(
        self, X: ArrayLike, return_std: Literal[True]
    ) -> tuple[Floats, Floats]: ...

    def predict(
        self, X: ArrayLike, return_std: bool = False
    ) -> Floats | tuple[Floats, Floats]:
        """Predict targets, and the standard deviation of each.

        %(image_rows)s
        return_std : bool, default=False
            If True, also return standard deviations, see `store_covariance`.

        Returns
        -------
        y : ndarray of shape (n_samples,) or (n_samples, n_outputs)
            Predictions, float64.
        std : ndarray, of the shape of y
            Standard deviations of new targets, with the noise; only if `return_std`.

        Raises
        ------
        ValueError
            If `return_std` is True and the fit kept no covariance.

        Examples
        --------
        >>> from skconvrfm import ConvRFMRegressor
        >>> from skconvrfm.datasets import load_digit_images
        >>> X, y = load_digit_images(return_X_y=True)
        >>> reg = ConvRFMRegressor("gaussian")
        >>> reg = reg.fit(X[:100], y[:100])
        >>> y_new, std = reg.predict(X[100:150], return_std=True)
        >>> bool((std > reg.noise_variance_**0.5).all())
        True
        """
        if return_std:
            outputs, std = self._predict_with_std(X)
            return self._shape_prediction(outputs), self._shape_prediction(std)
        return self._shape_prediction(self._predict_raw(X))

    def _check_y(self, y):
        if issparse(y):
            raise TypeError("y is a sparse matrix; pass y.toarray().")
        try:
            return as_numbers(y, "y").astype(np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"Unknown label type: the targets of a regression must be real "
                f"numbers. {error}"
            ) from error

    def _encode(self, y, weights, classes=None):
        return {}, y.reshape(len(y), -1), weights

    def _strata(self, targets, positions, rng):
        return targets @ rng.standard_normal(targets.shape[1])

    def _score_targets(self, targets, prediction, weights, **_):
        if len(targets) == 1:  # of which R² is as of two copies; it is not defined
            return float(np.array_equal(targets, prediction))
        return r2_score(targets, prediction, sample_weight=weights)

    def _shape_coef(self, coef, output_shape):
        return coef.reshape(coef.shape[:-1] + output_shape)[()]

    def _shape_prediction(self, raw):
        return raw[:, 0] if np.ndim(self.intercept_) == 0 else raw

    def _calibrate(self, prediction, targets, weights, **_):
        return {}

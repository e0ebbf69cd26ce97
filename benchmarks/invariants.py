"""Invariants that every fit has, for ``python -m benchmarks.fuzz``.

Each says that another case, such as one with its rows in another order, gives the same
criteria and outputs, bit by bit or up to rounding. All fits have one ridge. Where
rounding decides which round or filters are kept, a comparison is undecided. What one
fit by itself has, finite outputs of all images, is in ``tests/test_properties.py``.
"""

import pickle
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial

import joblib
import numpy as np
from hypothesis import reject
from hypothesis import strategies as st
from sklearn import config_context
from sklearn.base import clone

from skconvrfm import ConvRFMClassifier, ConvRFMRegressor, PatchAGOPTransformer
from skconvrfm.kernels import Linear
from tests import strategies as some

N_NEW = 5  # images to predict
# Of `some`, what is so well conditioned that fits can be compared.
CONTENTS = "normal", "positive", "partly blank", "flat", "copies"
DTYPES = "f8", "f8", "f8", "f4", "f2", "u1", "i2", "bool"
WEIGHTS = "none", "counts", "zeros", "uniform"
LABELS = "two ints", "bools", "texts", "whole floats", "small ints"
TARGETS = "normal", "outputs", "column", "float32", "whole"
# Share of the largest value; kernels have roots of the rounding of numbers.
ROUNDING = {"float64": 1e-8, "float32": 1e-3}


class ViolationError(Exception):
    """An invariant does not hold."""


class UndecidedError(Exception):
    """Rounding decides which round or filters are kept, or a bandwidth."""


def fit(case):
    """Return the fitted estimator of a case."""
    return clone(case.model).fit(case.X, case.y, sample_weight=case.weights)


def stream(case, batches=(slice(None),)):
    """Return an estimator that saw all rows again, in batches, after a fit."""
    fitted = fit(case)
    for rows in batches:
        batch = case.take(rows)
        fitted.partial_fit(batch.X, batch.y, sample_weight=batch.weights)
    return fitted


def read(fitted, X):
    """Return the outputs of a fitted estimator for images, by name."""
    if isinstance(fitted, PatchAGOPTransformer):
        return {"transform": fitted.transform(X).reshape(len(X), -1)}
    is_classifier = isinstance(fitted, ConvRFMClassifier)
    names = ["decision_function", "predict_proba"] if is_classifier else ["predict"]
    return {name: getattr(fitted, name)(X) for name in names}


@dataclass
class Case:
    """An estimator with its data, and how it is fitted and read."""

    seed: int
    model: object  # not fitted
    X: np.ndarray  # (n, h, w, c)
    y: np.ndarray
    weights: np.ndarray | None
    X_new: np.ndarray
    fit: Callable = fit
    read: Callable = read
    context: Callable = nullcontext  # of fit and outputs

    @property
    def rng(self):
        """Source of what an invariant draws, the same at each use."""
        return np.random.default_rng(self.seed)

    @cached_property
    def fitted(self):
        """The fitted estimator."""
        with self.context():
            return self.fit(self)

    @cached_property
    def outputs(self):
        """Outputs for the new images, by name."""
        fitted = self.fitted
        with self.context():
            return self.read(fitted, self.X_new)

    @cached_property
    def noisy(self):
        """The case with other last digits of its images; copies stay copies."""
        signs = self.rng.choice([-4, -3, 3, 4], size=self.X.shape[1:])
        factor = 1 + signs.astype(self.precision) * np.finfo(self.precision).eps
        return self.but(X=self.X * factor, X_new=self.X_new * factor)

    @property
    def learner(self):
        """The classifier or regressor, also that of a transformer."""
        return getattr(self.model, "estimator", self.model)

    @property
    def learned(self):
        """The same, fitted."""
        return getattr(self.fitted, "estimator_", self.fitted)

    @property
    def precision(self):
        """The dtype in which kernel and features are computed."""
        found = np.result_type(self.X.dtype, np.float32)
        return np.dtype(found if self.learner.dtype == "auto" else self.learner.dtype)

    def but(self, params=None, **parts):
        """Return the case with other parameters of the learner, or other parts."""
        prefix = "" if self.learner is self.model else "estimator__"
        params = {prefix + name: value for name, value in (params or {}).items()}
        return replace(self, model=clone(self.model).set_params(**params), **parts)

    def take(self, rows):
        """Return the case with some of its rows, in this order."""
        weights = None if self.weights is None else self.weights[rows]
        return self.but(X=self.X[rows], y=self.y[rows], weights=weights)


@st.composite
def cases(draw):
    """Cases of the estimators and images of the tests that can be fitted."""
    pick = st.sampled_from
    sizes = N_NEW + 2, N_NEW + 16
    images = draw(some.images(sizes, some.small_shapes, DTYPES, CONTENTS))
    options = draw(some.estimators | some.linear_estimators)
    options["kernel"] = some.affordable(options["kernel"], images)
    options["alpha"] = draw(pick([0.1, 1.0]))
    images, seed = images.array(), images.seed
    X, X_new = images[:-N_NEW], images[-N_NEW:]
    weights = some.weights_of(draw(pick(WEIGHTS)), len(X), seed)
    kind = draw(pick(["regression", "classes", "balanced classes", "sets of labels"]))
    if kind == "regression":
        y = some.targets_of(draw(pick(TARGETS)), len(X), 1, seed)
        model = ConvRFMRegressor(**options)
    else:
        y = some.labels_of(draw(pick(LABELS)), len(X), seed)
        if kind == "sets of labels":
            y = np.random.default_rng(seed).integers(2, size=(len(X), 3))
        class_weight = "balanced" if kind == "balanced classes" else None
        model = ConvRFMClassifier(**options, class_weight=class_weight)
    case = Case(seed, model, X, y, weights, X_new)
    output = draw(pick([*3 * [None], "filters", "saliency", "features"]))
    if output is not None:
        case.model = PatchAGOPTransformer(model, output=output)
    elif hasattr(model, "partial_fit") and kind != "balanced classes":
        case.fit = draw(pick([fit, stream]))
    with some.only_documented_warnings():
        if some.result_or_documented_error(lambda: case.outputs) is None:
            reject()
    return case


def exactly(case, other):
    """Compare outputs bit by bit."""
    for name, expected in case.outputs.items():
        if not np.array_equal(other.outputs[name], expected):
            error = np.abs(other.outputs[name] - expected).max()
            raise ViolationError(f"{name} differs by {error:.2g}, in some bits")


def closely(case, other):
    """Compare criteria and outputs up to rounding, where the same was chosen."""
    three = case, other, case.noisy
    chosen, *others = map(choices, three)
    if not all(chosen.shape == found.shape for found in others):
        raise UndecidedError
    if not all(np.allclose(chosen, found, rtol=0.4) for found in others):
        raise UndecidedError
    is_regression = isinstance(case.learner, ConvRFMRegressor)
    for name in readings(case):
        expected, found, noisy = (readings(one)[name] for one in three)
        size = np.abs(expected).max() + (np.abs(case.y).max() if is_regression else 1)
        rounding = ROUNDING[case.precision.name] * size / case.learner.alpha**2
        limit = 1000 * np.abs(noisy - expected).max() + rounding
        error = np.abs(found - expected).max()
        if not error <= limit:
            raise ViolationError(f"{name} differs by {error:.2g}, not {limit:.2g}")


def readings(case):
    """Return outputs, and the criterion of the rounds up to that kept."""
    model = case.learned
    key = {"loo": "loo_loss", "holdout": "holdout_loss"}.get(model.selection, "gcv")
    key = key if key in model.history_ else "gcv"
    return {**case.outputs, "criterion": model.history_[key][: model.best_round_ + 1]}


def choices(case):
    """Return numbers that tell rounds, filters and bandwidth apart."""
    model = case.learned
    found = [model.best_round_, model.best_layer_]
    found.append(getattr(model.kernel_, "bandwidth_", 1.0))
    return np.concatenate([found, *(layer.unit_biases_ for layer in model.features_)])


def rows_permuted(case):
    return case.take(case.rng.permutation(len(case.y)))


def weights_repeated(case):
    """The case with a row of weight k as k rows."""
    if case.weights is not None and case.weights.dtype.kind == "i":
        rows = np.repeat(np.arange(len(case.y)), case.weights)
        return case.take(rows).but(weights=None)


def zero_weights_removed(case):
    if case.weights is not None and not case.weights.all():
        return case.take(np.flatnonzero(case.weights))


def one_by_one(case):
    def read_each(fitted, X):
        found = [case.read(fitted, X[i : i + 1]) for i in range(len(X))]
        return {key: np.concatenate([f[key] for f in found]) for key in found[0]}

    return case.but(fit=lambda _: case.fitted, read=read_each)


def n_jobs(case):
    # Processes take seconds to start.
    backend = "loky" if case.rng.random() < 0.02 else "threading"
    context = partial(joblib.parallel_config, backend=backend)
    return case.but({"n_jobs": 2}, context=context)


def working_memory(case):
    size = case.rng.choice([0.05, 0.2, 1, 8, 64])
    return case.but(context=partial(config_context, working_memory=size))


def other_precision(case):
    """The case in float64, for one in float32."""
    # Beside the bias of a kernel, float32 loses the squares of small values; and where
    # images are many bandwidths apart, their kernel.
    small = np.abs(case.X.astype(float)).max() < 0.05
    fixed = getattr(case.learner.kernel, "bandwidth", "auto") != "auto"
    if case.precision == np.float32 and not small and not fixed:
        return case.but({"dtype": "float64"})


def pickled(case):
    return case.but(fit=lambda _: pickle.loads(pickle.dumps(case.fitted)))


def streamed(case):
    """The case with sums over batches, for a linear machine of round 0."""
    if _is_linear_stream(case):
        weights = np.ones(len(case.y)) if case.weights is None else case.weights
        rows = case.rng.permutation(np.flatnonzero(weights))
        batches = np.array_split(rows, case.rng.integers(1, min(5, len(rows) + 1)))
        return case.but(fit=partial(stream, batches=batches))


def fitted_at_once(case):
    """The case of a stream as one fit, where that has one round and the same ridge."""
    one_round = case.learner.n_rounds == 0 and case.learner.selection != "holdout"
    if _is_linear_stream(case) and one_round:
        return case.but(fit=fit)


def _is_linear_stream(case):
    """Return True for sums that no landmarks of the first batch have a part in."""
    return case.fit is stream and isinstance(case.model.kernel, Linear)


# Each with its comparison.
INVARIANTS = {
    "clone refits": (lambda case: case.but(), exactly),
    "rows permuted": (rows_permuted, closely),
    "weight = repeats": (weights_repeated, closely),
    "zero weight = removed": (zero_weights_removed, closely),
    "one by one = batch": (one_by_one, closely),
    "n_jobs": (n_jobs, closely),
    "working_memory": (working_memory, closely),
    "float32 near float64": (other_precision, closely),
    "pickle": (pickled, exactly),
    "partial_fit in any order": (streamed, closely),
    "partial_fit = fit": (fitted_at_once, closely),
}

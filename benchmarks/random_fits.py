"""Random cases for the fuzz: an estimator, images, targets and weights, of a seed."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from sklearn.base import clone

from skconvrfm import ConvRFMClassifier, ConvRFMRegressor, PatchAGOPTransformer
from skconvrfm.compute.sampling import groups_of_images
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import (
    ConvNNGP,
    ConvNTK,
    Gaussian,
    Laplace,
    Linear,
    PatchGaussian,
    PatchLaplace,
)

N_NEW = 5  # images to predict
DTYPES = ("u1", "i2", "i4", "i8", "?", "f2", "f4", "bfloat16", "f8", "f8", "f8", "f8")
OUTPUTS = ("filters", "eigen", "saliency", "image", "features")


def pick(rng, options):
    """Return one of the options."""
    return options[rng.integers(len(options))]


# ------------------------------------------------------------------------ cases


def fit(case):
    """Return the fitted estimator of a case."""
    return clone(case.model).fit(case.X, case.y, **_weights(case), **_groups(case))


def stream(case, batches=(slice(None),)):
    """Return an estimator that saw all rows again, in batches, after a fit."""
    fitted = fit(case)
    for rows in batches:
        batch = case.take(rows)
        fitted.partial_fit(batch.X, batch.y, **_weights(batch))
    return fitted


def _weights(case):
    return {} if case.weights is None else {"sample_weight": case.weights}


def _groups(case):
    return {} if case.groups is None else {"groups": case.groups}


def read(fitted, X):
    """Return the outputs of a fitted estimator for images, by name."""
    if not isinstance(fitted, PatchAGOPTransformer):
        is_classifier = isinstance(fitted, ConvRFMClassifier)
        scores = ("decision_function", "predict_proba") if is_classifier else ()
        names = scores or ("predict",)
        found = {name: getattr(fitted, name)(X) for name in names}
        if hasattr(fitted, "covariance_"):
            found["std"] = fitted.predict(X, return_std=True)[1]
        return found
    found = fitted.transform(X)
    if fitted.output == "image" and fitted.channels_ == "first":
        found = found.transpose(0, 2, 3, 1)
    return {"transform": found.reshape(len(found), -1)}


def _can_stream(model):
    """Return True for a linear machine whose features can be decomposed in no time."""
    small = hasattr(model, "partial_fit") and model.features != "auto"
    return small and getattr(model, "class_weight", None) is None


@dataclass
class Case:
    """An estimator with its data, and how it is fitted and read."""

    seed: int
    model: object  # not fitted
    X: object  # (n, h, w, c), or in another form
    y: np.ndarray
    weights: np.ndarray | None
    X_new: object
    groups: np.ndarray | None = None
    fit: Callable = fit
    read: Callable = read
    context: Callable = nullcontext  # of fit and outputs

    @classmethod
    def of_seed(cls, seed):
        """Return the case of a seed, always the same."""
        rng = np.random.default_rng([seed, 0])
        case = cls(seed, *make_parts(rng))
        if rng.random() < 0.7 and _can_stream(case.model):
            case.fit = stream
        return case

    @property
    def rng(self):
        """Source of what an invariant draws, which begins anew at each use."""
        return np.random.default_rng([self.seed, 1])

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
        columns = {"weights": self.weights, "groups": self.groups}
        columns = {k: None if c is None else c[rows] for k, c in columns.items()}
        return self.but(X=self.X[rows], y=self.y[rows], **columns)

    def __str__(self):
        weights = "none" if self.weights is None else self.weights.dtype
        model = " ".join(repr(self.model).split())
        return f"{model}; X {self.X.shape} {self.X.dtype}, weights {weights}"


def make_parts(rng):
    """Return an estimator, images, targets, weights or None, and images to predict."""
    shape = random_shape(rng)
    n = int(pick(rng, [rng.integers(2, 8), rng.integers(8, 25), rng.integers(8, 25)]))
    images = random_images(rng, n + N_NEW, shape)
    X, X_new = images[:n], images[n:]
    model = random_estimator(rng, X.shape)
    y = random_targets(rng, model, X)
    weights = random_weights(rng, y)
    learner = getattr(model, "estimator", model)
    if learner.selection == "holdout":  # which needs some images to choose by
        _, image = np.unique(X.reshape(n, -1), axis=0, return_inverse=True)
        totals = np.bincount(image.ravel(), weights)
        if np.count_nonzero(totals) < 12 or 8 * totals.max() > totals.sum():
            learner.selection = "loo"
    return model, X, y, weights, X_new, random_groups(rng, X, weights, learner)


# ------------------------------------------------------------------------- data


def random_shape(rng):
    """Return rows, columns and channels: squares, rectangles, signals."""
    side, other = (int(size) for size in rng.integers(3, 9, size=2))
    rows, columns = pick(
        rng, [(side, side), (side, other), (side, other), (1, 2 * side)]
    )
    return rows, columns, pick(rng, (1, 1, 2, 3, 4))


def random_images(rng, n, shape):
    """Return images (n, h, w, c): also blank, flat, copied, of any dtype and scale."""
    images = rng.normal(size=(n, *shape))
    content = pick(rng, ("normal", "normal", "blank", "flat", "copies", "positive"))
    some = rng.random(n) < 0.4
    if content == "blank":
        images[some] = 0
    elif content == "flat":
        images[some] = rng.normal(size=(some.sum(), 1, 1, 1))
    elif content == "copies":
        images[some] = images[0]
    elif content == "positive":
        images = np.abs(images)
    dtype = pick(rng, DTYPES)
    if dtype == "?":
        return images > 0.5
    if np.dtype(dtype if dtype != "bfloat16" else "f4").kind in "iu":
        return (
            np.rint(20 * images).clip(0 if dtype == "u1" else -100, 100).astype(dtype)
        )
    if dtype == "bfloat16":  # float32 whose last 16 bits are zero
        bits = images.astype(np.float32).view(np.uint32) & np.uint32(0xFFFF0000)
        return bits.view(np.float32)
    scale = 1.0 if dtype == "f2" else pick(rng, (1.0, 1.0, 1.0, 1.0, 1e-4, 1e4))
    return (scale * images).astype(dtype)


def random_targets(rng, model, X):
    """Return classes, sets of labels, or real targets of one output or several."""
    learner = getattr(model, "estimator", model)
    n, signal = len(X), X.reshape(len(X), -1).astype(float)
    signal = signal @ rng.normal(size=signal.shape[1:])
    signal = (signal - signal.mean()) / (signal.std() or 1)
    if isinstance(learner, ConvRFMRegressor):
        n_outputs = pick(rng, (0, 0, 1, 3))
        noise = rng.normal(size=(n, n_outputs) if n_outputs else n)
        y = noise + (signal[:, None] if n_outputs else signal)
        return pick(rng, (1.0, 1.0, 1e3)) * y
    if learner.class_weight is None and rng.random() < 0.2:  # sets of labels
        return (rng.normal(size=(n, 3)) + signal[:, None] > 0).astype(int)
    n_classes = min(int(pick(rng, (2, 2, 3, 5))), n)
    codes = (np.argsort(np.argsort(signal + rng.normal(size=n))) * n_classes) // n
    names = pick(rng, (np.arange(5), np.array(list("cabed")), np.arange(5.0)))
    return (codes > 0) if rng.random() < 0.1 else names[codes]


def random_weights(rng, y):
    """Return weights of the rows, or None; rows of weight enough for a fit stay."""
    kind = pick(rng, ("none", "counts", "counts", "fractions", "zeros"))
    if kind == "none":
        return None
    if kind == "fractions":
        return rng.uniform(0.1, 3, size=len(y))
    weights = rng.integers(1, 4, size=len(y))
    if kind == "zeros":
        # Two rows of each class, or any two, keep a weight.
        first = np.unique(y, axis=0, return_index=True)[1][:5]
        removed = rng.random(len(y)) < 0.3
        removed[first] = removed[:2] = False
        weights[removed] = 0
    return pick(rng, (weights, weights.astype(float)))


def random_groups(rng, X, weights, learner):
    """Return groups of the rows, or None where copies or weights leave too few."""
    groups = rng.integers(pick(rng, (3, 6, len(X))), size=len(X))
    if rng.random() < 0.7 or learner.selection == "holdout":
        return None
    kept = np.ones(len(X), bool) if weights is None else np.asarray(weights) > 0
    _, image = np.unique(X[kept].reshape(kept.sum(), -1), axis=0, return_inverse=True)
    merged = groups_of_images(groups[kept], image.ravel())
    return groups if len(np.unique(merged)) > 2 else None


# ------------------------------------------------------------------- estimators


def random_estimator(rng, shape):
    """Return an estimator, not fitted, for images of shape (n, h, w, c)."""
    learner = random_learner(rng, shape)
    learns = not isinstance(learner.kernel, Gaussian | Laplace | Linear | str)
    if rng.random() > 0.2 or not (learns or learner.features is not None):
        return learner
    return PatchAGOPTransformer(
        learner,
        output=pick(rng, OUTPUTS[:-1] if learns else OUTPUTS),
        n_filters=int(rng.integers(1, 12)),
        n_components=int(rng.integers(1, 5)),
        activation=pick(rng, ("relu", "identity")),
        rectification=pick(rng, ("absolute", "halves")),
        pool=pick(rng, (None, 1, 2, (1, 3))),
    )


def random_learner(rng, shape):
    """Return a classifier or a regressor."""
    n, rows, columns, _ = shape
    kernel, features = random_machine(rng)
    if n * rows * columns > 400 and hasattr(kernel, "pool_grid"):
        kernel.pool_grid = None  # which costs pairs of locations
    selections = ("gcv", "gcv", "loo", "last", "holdout" if n >= 15 else "loo")
    options = {
        "alpha": pick(rng, [(1e-3, 1e-1, 10.0), (1e-2, 1e-1, 1.0), 0.1, *_EXTREMES]),
        "n_rounds": int(rng.integers(0, 3)),
        "n_iter_no_change": pick(rng, (1, None)),
        "agop_power": pick(rng, (0.5, 0.5, 1.0, 0.25)),
        "agop_samples": pick(rng, ("auto", "auto", None, 5, 0.5)),
        "landmarks": pick(rng, (None, None, max(2, n // 2))),
        "selection": pick(rng, selections),
        "dtype": pick(rng, ("auto", "auto", "float64", "float64", "float32")),
        "random_state": pick(rng, (None, int(rng.integers(100)))),
    }
    if rng.random() < 0.4:
        options["store_covariance"] = bool(rng.random() < 0.3)
        return ConvRFMRegressor(kernel, features, **options)
    class_weight = pick(rng, (None, None, "balanced"))
    return ConvRFMClassifier(kernel, features, class_weight=class_weight, **options)


_EXTREMES = [(1e-6, 1e-2, 100.0), (1e-8, 1e2)]


def random_machine(rng):
    """Return a kernel, and feature layers or None."""
    if rng.random() < 0.5:
        kernel = random_patch_kernel(rng, most=3)
        return kernel.set_params(scale=pick(rng, ("auto", "auto", 4.0))), None
    if rng.random() < 0.2:
        kernel = random_patch_kernel(rng, most=1).set_params(mirror=False)
        return kernel, [random_layer(rng, lower=True)]
    kernel = pick(rng, (random_radial(rng), Linear(), Linear()))
    if isinstance(kernel, Linear) and rng.random() < 0.1:
        return "linear", None
    layer = random_layer(rng).set_params(mirror=pick(rng, (False, False, True)))
    below = random_layer(rng, lower=True)
    if rng.random() < 0.05:  # of 512 filters
        return kernel, "auto"
    for one in (layer, below):
        one.candidates = int(pick(rng, (1, 1, 2, 3)))
        one.learn = bool(rng.random() < 0.8)
    below.skip = bool(rng.random() < 0.3)
    if rng.random() < 0.15:
        layer.pool = layer.normalize = "auto"
    return kernel, pick(rng, (None, layer, layer, [layer], [below, layer]))


def random_geometry(rng):
    """Return patch size and padding."""
    rows, columns = (int(size) for size in rng.integers(1, 4, size=2))
    size = pick(rng, (3, 2, (rows, columns)))
    return {"patch_size": size, "padding": pick(rng, ("valid", "same"))}


def random_patch_kernel(rng, most):
    """Return a kernel of patches, of a depth up to ``most``."""
    options = {
        "metric": pick(rng, ("identity", "identity", "whiten", "auto")),
        "pool_grid": pick(rng, (None, None, 1, 2)),
        "mirror": pick(rng, (False, False, True)),
        **random_geometry(rng),
    }
    kind = pick(rng, (ConvNTK, ConvNTK, ConvNNGP, PatchGaussian, PatchLaplace))
    if kind in (PatchGaussian, PatchLaplace):
        return kind(pick(rng, ("auto", "auto", 1.0)), **options)
    bias = pick(rng, (0.3, 0.0, 1.0))
    return kind(int(rng.integers(1, most + 1)), bias=bias, **options)


def random_radial(rng):
    """Return a kernel of distances of whole images or maps."""
    return pick(rng, (Gaussian, Laplace))(pick(rng, ("auto", "auto", 3.0)))


def random_layer(rng, lower=False):
    """Return a feature layer; a lower one leaves room for patches above it."""
    pools = [{"pool_grid": None}, {"pool_size": 2}]
    if not lower:
        pools += [{}, {"pool_grid": 1}, {"pool_grid": (2, 1)}]
    cells = pick(rng, pools)
    if cells != {"pool_grid": None}:
        cells = {**cells, "pool_overlap": pick(rng, (0.0, 0.0, 0.3, 1.0))}
    return ConvFeatures(
        int(pick(rng, (1, 4, 8))),
        filters=pick(rng, ("patches", "gaussian")),
        metric=pick(rng, ("identity", "whiten")),
        normalize=pick(rng, (None, None, 1.0, 0.1)),
        shrinkage=pick(rng, (0.1, 1.0)),
        agop_power=pick(rng, (None, None, 0.25)),
        bias=pick(rng, (0.3, 0.0)),
        activation=pick(rng, ("relu", "relu", "identity")),
        threshold=pick(rng, (0.5, 0.0, -1.0)),
        pool=pick(rng, ("root", "mean", "norm", "max", (2, 0.5), (1.5, 1))),
        **cells,
        **random_geometry(rng),
    )

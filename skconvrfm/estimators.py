"""ConvRFM as scikit-learn estimators: validation and encoding, no numerics."""

from contextlib import contextmanager
from numbers import Integral, Real

import numpy as np
from scipy.optimize import brentq
from sklearn.base import (
    BaseEstimator,
    ClassifierMixin,
    MultiOutputMixin,
    RegressorMixin,
    _fit_context,
)
from sklearn.metrics import accuracy_score, r2_score
from sklearn.preprocessing import LabelEncoder
from sklearn.utils import check_random_state, compute_sample_weight, gen_batches
from sklearn.utils._param_validation import Interval, RealNotInt, StrOptions
from sklearn.utils.extmath import softmax
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import (
    check_is_fitted,
    column_or_1d,
    validate_data,
)

from .callbacks import CallbackSupportMixin, RoundCallbacks
from .core.convolutional import KINDS
from .core.machine import KernelMachine
from .core.rounds import SELECTIONS, fit_rounds
from .core.sampling import systematic_sample
from .core.tiles import kernel_product
from .kernels import (
    KERNEL_CONSTRAINTS,
    as_numpy,
    check_weights,
    make_kernel,
    make_resources,
)

# Ridges in units of the largest diagonal entry of the kernel: half decades from
# nearly interpolating to the mean of a thousand rows.
DEFAULT_ALPHAS = tuple(
    float(f"{digit}e{exponent}") for exponent in range(-6, 2) for digit in (1, 3)
) + (100.0,)

# agop_samples="auto": the AGOP is an average over patches, and accuracy stops growing
# with them before this many; see "How many images" in the guide for the curve.
AUTO_AGOP_PATCHES = 20_000
AUTO_AGOP_IMAGES = 20

# Rows that are cast to float at once when they are projected for the draw.
PROJECTION_BATCH = 256

# Temperatures of the probabilities; scores of well separated classes are ±1.
TEMPERATURE_RANGE = (1e-2, 1e3)

# Widths from which rows of 3·k² columns look like colour images: 3·8·8.
_SMALLEST_COLOUR_SIDE = 8
# Widths from which a flat row of k² columns is taken for a square image.
_SMALLEST_SQUARE_SIDE = 4


class _BaseConvRFM(CallbackSupportMixin, BaseEstimator):
    """What both estimators share: the parameters, the fit, the raw prediction."""

    _parameter_constraints: dict = {
        "image_shape": [tuple, list, None],
        "channels": [StrOptions({"last", "first"})],
        "kernel": [StrOptions(set(KINDS))],
        **KERNEL_CONSTRAINTS,
        "n_rounds": [Interval(Integral, 0, None, closed="left")],
        "agop_power": [Interval(Real, 0, None, closed="neither")],
        "agop_samples": [
            StrOptions({"auto"}),
            Interval(Integral, 1, None, closed="left"),
            Interval(RealNotInt, 0, 1, closed="right"),
            None,
        ],
        "alpha": [Interval(Real, 0, None, closed="neither"), "array-like"],
        "selection": [StrOptions(set(SELECTIONS))],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        *,
        image_shape=None,
        channels="last",
        kernel="ntk",
        depth=3,
        patch_size=3,
        padding="valid",
        bias=0.3,
        n_rounds=4,
        agop_power=0.5,
        agop_samples="auto",
        alpha=DEFAULT_ALPHAS,
        selection="gcv",
        device="auto",
        dtype="auto",
        n_jobs=None,
        random_state=None,
        verbose=0,
    ):
        self.image_shape = image_shape
        self.channels = channels
        self.kernel = kernel
        self.depth = depth
        self.patch_size = patch_size
        self.padding = padding
        self.bias = bias
        self.n_rounds = n_rounds
        self.agop_power = agop_power
        self.agop_samples = agop_samples
        self.alpha = alpha
        self.selection = selection
        self.device = device
        self.dtype = dtype
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    def _fit(self, X, y, sample_weight):
        """Fit the rounds and keep the best; set attributes only when all is done."""
        X, y, image_shape = self._validate_fit(X, y)
        weights = check_weights(sample_weight, X)
        kept = np.flatnonzero(weights)
        X_fit, y_fit, weights = X[kept], y[kept], weights[kept]
        if len(kept) < 2:
            raise ValueError(
                "X has 1 sample with a positive weight; a fit needs at least 2."
            )
        # Weights count rows; where they do not even add up to the rows, only their
        # ratios can be meant, and they are read as having mean one.
        counts = weights / min(1.0, weights.mean())
        encoding, targets, weights = self._encode(y_fit, counts)

        resources = make_resources(self.device, self.dtype, self.n_jobs, X)
        images = _as_images(X_fit, image_shape, self.channels)
        kernel = self._make_kernel(image_shape)
        rows, row_weights = self._draw_agop_rows(X_fit, targets, weights, kernel)
        machine = KernelMachine(
            kernel=kernel,
            images=images,
            targets=targets,
            weights=weights,
            counts=counts,
            alphas=self._alphas(),
            agop_rows=rows,
            agop_weights=row_weights,
            resources=resources,
        )
        common = {
            "image_shape_": image_shape,
            "patch_shape_": kernel.layers[0].patch,
            "X_fit_": X_fit,
            **encoding,
        }
        callbacks = RoundCallbacks(self, self.n_rounds + 1, X, y, sample_weight)

        def attributes(best, history):
            return {
                **common,
                "dual_coef_": self._shape_coef(best.solution.dual_coef, y),
                "intercept_": self._shape_coef(best.solution.intercept, y),
                "alpha_": best.solution.alpha,
                "best_round_": best.index,
                "patch_transform_": best.transform,
                "history_": {key: np.array(values) for key, values in history.items()},
                **self._calibrate(best.solution.held_out_prediction, targets, weights),
            }

        def report(best, history):
            if self.verbose:
                print(self._describe_round(history))
            last = history["round"][-1] == self.n_rounds
            return callbacks.end_round(lambda: attributes(best, history), last)

        best, agop, history = fit_rounds(
            machine,
            patch_dim=kernel.patch_dim,
            n_rounds=self.n_rounds,
            agop_power=self.agop_power,
            selection=self.selection,
            score=lambda prediction: self._score_targets(targets, prediction, weights),
            report=report,
        )
        for name, value in attributes(best, history).items():
            setattr(self, name, value)
        self.patch_agop_ = agop
        callbacks.end_fit()
        return self

    def _validate_fit(self, X, y):
        """X flat, y, and the shape of an image."""
        X, shape = self._flatten(X)
        X, y = validate_data(
            self,
            X,
            as_numpy(y, "y"),
            dtype="numeric",
            multi_output=True,
            y_numeric=False,
            ensure_min_samples=2,
        )
        return X, self._check_y(y), self._resolve_image_shape(X.shape[1], shape)

    def _flatten(self, X):
        """Images as flat rows, and the shape (h, w, c) that they had, if any."""
        X = as_numpy(X, "X")
        if getattr(X, "ndim", None) is None and not hasattr(X, "dtypes"):
            X = _nested_images(X)
        ndim = getattr(X, "ndim", 2)
        if ndim not in (3, 4):
            return X, None
        X = np.asarray(X)
        shape = X.shape[1:] if ndim == 4 else (*X.shape[1:], 1)
        if ndim == 4 and self.channels == "first":
            shape = (*shape[1:], shape[0])
        return X.reshape(len(X), np.prod(shape, dtype=int)), shape

    def _resolve_image_shape(self, width, seen):
        """The shape (h, w, c) from image_shape, the array, or the width of a row."""
        if self.image_shape is not None:
            shape = tuple(self.image_shape)
            positive = all(isinstance(size, Integral) and size > 0 for size in shape)
            if len(shape) not in (2, 3) or not positive:
                raise ValueError(
                    f"image_shape={self.image_shape!r} is neither (rows, columns) nor "
                    "(rows, columns, channels) in positive integers."
                )
            shape = tuple(map(int, (*shape, 1)[:3]))
            if seen is not None and seen != shape:
                raise ValueError(
                    f"image_shape={self.image_shape!r} does not match X, whose images "
                    f"have shape {seen}; leave image_shape=None to take it from X."
                )
            if np.prod(shape) != width:
                raise ValueError(
                    f"image_shape={self.image_shape!r} has {np.prod(shape)} pixels, "
                    f"but X has {width} features a row; they must agree."
                )
            return shape
        if seen is not None:
            return seen
        side = round(np.sqrt(width))
        if side**2 == width and side >= _SMALLEST_SQUARE_SIDE:
            return (side, side, 1)
        side = round(np.sqrt(width / 3))
        if 3 * side**2 == width and side >= _SMALLEST_COLOUR_SIDE:
            raise ValueError(
                f"X has {width} features a row, which may be colour images: pass "
                f"image_shape=({side}, {side}, 3), or image_shape=(1, {width}) for "
                "rows that are not images."
            )
        return (1, width, 1)

    def _make_kernel(self, image_shape):
        return make_kernel(
            self.kernel,
            image_shape,
            self.patch_size,
            self.padding,
            self.depth,
            self.bias,
        )

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

    def _draw_agop_rows(self, X, targets, weights, kernel):
        """The rows whose images carry the AGOP, and their weights."""
        samples, total = self.agop_samples, weights.sum()
        if samples is None:
            return np.arange(len(X)), weights
        if samples == "auto":
            enough = AUTO_AGOP_PATCHES // np.prod(kernel.layers[0].locations)
            n_draws = max(AUTO_AGOP_IMAGES, enough)
        elif isinstance(samples, Integral):
            n_draws = samples
        else:
            n_draws = max(1, int(np.ceil(samples * total)))
        # None is a seed too: two fits of one estimator are equal, bit by bit.
        seed = 0 if self.random_state is None else self.random_state
        rng = check_random_state(seed)
        direction = rng.standard_normal(X.shape[1])
        offset = rng.uniform()
        # Batch by batch, so that integers are never cast as a whole.
        batches = gen_batches(len(X), PROJECTION_BATCH)
        positions = np.concatenate([X[batch] @ direction for batch in batches])
        return systematic_sample(
            self._strata(targets, rng), positions, weights, n_draws, offset
        )

    def _describe_round(self, history):
        """One line about the last round."""
        last = {key: values[-1] for key, values in history.items()}
        seconds = sum(last[key] for key in last if key.startswith("seconds"))
        return (
            f"[{type(self).__name__}] round {last['round']}/{self.n_rounds}  "
            f"alpha={last['alpha']:.0e}  gcv={last['gcv']:.4g}  "
            f"loo_loss={last['loo_loss']:.4g}  loo_score={last['loo_score']:.4f}  "
            f"{seconds:.1f}s"
        )

    def _predict_raw(self, X):
        """f(x) of every output, ndarray of shape (n, n_outputs)."""
        check_is_fitted(self)
        X, shape = self._flatten(X)
        if shape is not None and shape != self.image_shape_:
            raise ValueError(
                f"X has images of shape {shape}, but {type(self).__name__} was fitted "
                f"on images of shape {self.image_shape_}."
            )
        X = validate_data(self, X, dtype="numeric", reset=False)
        coef = self.dual_coef_.reshape(len(self.X_fit_), -1)
        prediction = kernel_product(
            self._make_kernel(self.image_shape_),
            _as_images(X, self.image_shape_, self.channels),
            _as_images(self.X_fit_, self.image_shape_, self.channels),
            self.patch_transform_ if self.best_round_ else None,
            coef,
            make_resources(self.device, self.dtype, self.n_jobs, self.X_fit_),
        )
        return prediction + np.reshape(self.intercept_, -1)

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = True
        tags.input_tags.three_d_array = True
        return tags


def _nested_images(X):
    """Lists of images as an array; anything else as it is."""
    try:
        array = np.asarray(X)
    except ValueError:  # ragged: validate_data has the better words
        return X
    return array if array.ndim in (3, 4) else X


def _as_images(X, image_shape, channels):
    """Flat rows as a view of shape (n, h, w, c)."""
    height, width, depth = image_shape
    if channels == "first":
        return X.reshape(-1, depth, height, width).transpose(0, 2, 3, 1)
    return X.reshape(-1, height, width, depth)


@contextmanager
def _unchanged_on_failure(estimator):
    """Put the fitted attributes back if the fit does not come to its end."""
    before = _fitted_attributes(estimator)
    try:
        yield
    except BaseException:
        for name in _fitted_attributes(estimator):
            delattr(estimator, name)
        vars(estimator).update(before)
        raise


def _fitted_attributes(estimator):
    """The fitted attributes of an estimator, by name."""
    return {
        name: value
        for name, value in vars(estimator).items()
        if name.endswith("_") and not name.startswith("_")
    }


class ConvRFMClassifier(ClassifierMixin, _BaseConvRFM):
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
    kernel : {"ntk", "nngp"}, default="ntk"
        The convolutional neural tangent kernel, or the kernel of the network's
        Gaussian process. The former is the one of the paper and mostly the better.
    depth : int, default=3
        Number of convolutions of the infinitely wide network. Deeper kernels see
        wider parts of an image; the cost is linear.
    patch_size : int or (int, int), default=3
        Rows and columns of a patch, clipped to the image.
    padding : {"valid", "same"}, default="valid"
        Whether maps shrink by the patch less one in each layer, or are padded with
        zeros.
    bias : float, default=0.3
        Standard deviation of the bias of every convolution. With 0, as in the paper,
        the kernel is homogeneous, and on few features it cannot place a threshold;
        0.3 serves standardised columns and images in [0, 1] (measured: see "The
        bias" in the guide).
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
        raise the accuracy (measured: see "How many images" in the guide).
    alpha : float or array-like of float, default=half decades from 1e-6 to 1e2
        The ridge, in units of the largest diagonal entry of the kernel; of several,
        `selection` chooses. One decomposition serves them all.
    selection : {"gcv", "loo", "last"}, default="gcv"
        What chooses ridge and round: generalised cross-validation, the default
        because it makes weights count as repeated rows; the leave-one-out error; or
        the last round, with the ridge by GCV. None needs a validation set.
    class_weight : dict, "balanced" or None, default=None
        Importance of the classes, of which only the ratios count.
    device : str, default="auto"
        ``"auto"`` is CUDA where torch finds it, else the CPU.
    dtype : {"auto", "float32", "float64"}, default="auto"
        Precision of the kernel. ``"auto"`` is the smaller that holds the images
        exactly: float64 stays float64, uint8 is computed in float32. Ridge and
        eigenvalues are always float64.
    n_jobs : int, default=None
        Tasks that share the kernel's tiles, through joblib. None is 1 unless in a
        :obj:`joblib.parallel_config` context; a single task uses the threads of torch.
    random_state : int, RandomState instance or None, default=None
        Seed of the draw of `agop_samples`. None is a seed as well: fits are
        repeatable by default.
    verbose : int, default=0
        With 1, one line a round.

    Attributes
    ----------
    classes_ : ndarray of shape (n_classes,)
        The classes.
    temperature_ : float
        Temperature of the probabilities.
    X_fit_ : ndarray of shape (n_samples, n_features)
        The training rows of positive weight, in their own dtype.
    dual_coef_ : ndarray of shape (n_samples, n_outputs)
        Coefficients of the kernel K as
        :func:`~skconvrfm.kernels.convolutional_kernel` returns it, not scaled: the
        decision function is ``K @ dual_coef_ + intercept_``.
    intercept_ : ndarray of shape (n_outputs,)
        The intercept, which is not penalised.
    alpha_ : float
        The ridge chosen.
    best_round_ : int
        The round chosen.
    patch_transform_ : ndarray of shape (d, d)
        The patch transform T of that round, of Frobenius norm sqrt(d), for patches of
        d = c·rows·columns entries in the order (channel, row, column).
    patch_agop_ : ndarray of shape (d, d)
        The patch AGOP of the chosen predictor.
    history_ : dict of ndarray
        One entry a round: ``round``, ``alpha``, ``gcv``, ``loo_loss``, ``loo_score``
        (the accuracy of left-out rows), ``seconds_kernel``, ``seconds_solve``,
        ``seconds_agop``.
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
    A fit costs, a round, ``n² / 2`` pairs of images times locations times layers, an
    eigendecomposition of ``n³``, and the AGOP; see "What costs what" in the guide.
    Sample weights count rows: weight 2 is the row twice, also in the selection.
    Weights that sum to less than the number of rows are scaled to mean one.

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
        **_BaseConvRFM._parameter_constraints,
        "class_weight": [dict, StrOptions({"balanced"}), None],
    }

    def __init__(
        self,
        *,
        image_shape=None,
        channels="last",
        kernel="ntk",
        depth=3,
        patch_size=3,
        padding="valid",
        bias=0.3,
        n_rounds=4,
        agop_power=0.5,
        agop_samples="auto",
        alpha=DEFAULT_ALPHAS,
        selection="gcv",
        class_weight=None,
        device="auto",
        dtype="auto",
        n_jobs=None,
        random_state=None,
        verbose=0,
    ):
        super().__init__(
            image_shape=image_shape,
            channels=channels,
            kernel=kernel,
            depth=depth,
            patch_size=patch_size,
            padding=padding,
            bias=bias,
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
        )
        self.class_weight = class_weight

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y, sample_weight=None):
        """Fit the machine, round by round, and keep the best round.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), (n_samples, h, w) or \
                (n_samples, h, w, c)
            Images, or rows of pixels, of any real dtype.
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
        """
        with _unchanged_on_failure(self):
            return self._fit(X, y, sample_weight)

    def decision_function(self, X):
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

    def predict(self, X):
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

    def predict_proba(self, X):
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

    def _encode(self, y, weights):
        encoder = LabelEncoder().fit(y)
        classes, codes = encoder.classes_, encoder.transform(y)
        n_classes = len(classes)
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
        """The weights times those of the classes, of which only the ratios count."""
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
        return weighted * (weights.sum() / weighted.sum())

    def _strata(self, targets, rng):
        return targets.argmax(axis=1) if targets.shape[1] > 1 else targets[:, 0]

    def _score_targets(self, targets, prediction, weights):
        if targets.shape[1] == 1:
            return accuracy_score(targets > 0, prediction > 0, sample_weight=weights)
        return accuracy_score(
            targets.argmax(axis=1), prediction.argmax(axis=1), sample_weight=weights
        )

    def _shape_coef(self, coef, y):
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


class ConvRFMRegressor(MultiOutputMixin, RegressorMixin, _BaseConvRFM):
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
    kernel : {"ntk", "nngp"}, default="ntk"
        The convolutional neural tangent kernel, or the kernel of the network's
        Gaussian process. The former is the one of the paper and mostly the better.
    depth : int, default=3
        Number of convolutions of the infinitely wide network. Deeper kernels see
        wider parts of an image; the cost is linear.
    patch_size : int or (int, int), default=3
        Rows and columns of a patch, clipped to the image.
    padding : {"valid", "same"}, default="valid"
        Whether maps shrink by the patch less one in each layer, or are padded with
        zeros.
    bias : float, default=0.3
        Standard deviation of the bias of every convolution. With 0, as in the paper,
        the kernel is homogeneous, and on few features it cannot place a threshold;
        0.3 serves standardised columns and images in [0, 1] (measured: see "The
        bias" in the guide).
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
        raise the accuracy (measured: see "How many images" in the guide).
    alpha : float or array-like of float, default=half decades from 1e-6 to 1e2
        The ridge, in units of the largest diagonal entry of the kernel; of several,
        `selection` chooses. One decomposition serves them all.
    selection : {"gcv", "loo", "last"}, default="gcv"
        What chooses ridge and round: generalised cross-validation, the default
        because it makes weights count as repeated rows; the leave-one-out error; or
        the last round, with the ridge by GCV. None needs a validation set.
    device : str, default="auto"
        ``"auto"`` is CUDA where torch finds it, else the CPU.
    dtype : {"auto", "float32", "float64"}, default="auto"
        Precision of the kernel. ``"auto"`` is the smaller that holds the images
        exactly: float64 stays float64, uint8 is computed in float32. Ridge and
        eigenvalues are always float64.
    n_jobs : int, default=None
        Tasks that share the kernel's tiles, through joblib. None is 1 unless in a
        :obj:`joblib.parallel_config` context; a single task uses the threads of torch.
    random_state : int, RandomState instance or None, default=None
        Seed of the draw of `agop_samples`. None is a seed as well: fits are
        repeatable by default.
    verbose : int, default=0
        With 1, one line a round.

    Attributes
    ----------
    X_fit_ : ndarray of shape (n_samples, n_features)
        The training rows of positive weight, in their own dtype.
    dual_coef_ : ndarray of shape (n_samples, n_outputs) or (n_samples,)
        Coefficients of the kernel as :func:`~skconvrfm.kernels.convolutional_kernel`
        returns it, not scaled: the prediction is ``K @ dual_coef_ + intercept_``.
    intercept_ : float or ndarray of shape (n_outputs,)
        The intercept, which is not penalised.
    alpha_ : float
        The ridge chosen.
    best_round_ : int
        The round chosen.
    patch_transform_ : ndarray of shape (d, d)
        The patch transform T of that round, of Frobenius norm sqrt(d), for patches of
        d = c·rows·columns entries in the order (channel, row, column).
    patch_agop_ : ndarray of shape (d, d)
        The patch AGOP of the chosen predictor.
    history_ : dict of ndarray
        One entry a round: ``round``, ``alpha``, ``gcv``, ``loo_loss``, ``loo_score``
        (R² of left-out rows), ``seconds_kernel``, ``seconds_solve``,
        ``seconds_agop``.
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
    A fit costs, a round, ``n² / 2`` pairs of images times locations times layers, an
    eigendecomposition of ``n³``, and the AGOP; see "What costs what" in the guide.
    Sample weights count rows: weight 2 is the row twice, also in the selection.
    Weights that sum to less than the number of rows are scaled to mean one.

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

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y, sample_weight=None):
        """Fit the machine, round by round, and keep the best round.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features), (n_samples, h, w) or \
                (n_samples, h, w, c)
            Images, or rows of pixels, of any real dtype.
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
        """
        with _unchanged_on_failure(self):
            return self._fit(X, y, sample_weight)

    def predict(self, X):
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
        return raw[:, 0] if np.ndim(self.dual_coef_) == 1 else raw

    def _check_y(self, y):
        try:
            return y.astype(np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"Unknown label type: y has dtype {y.dtype}, but the targets of a "
                "regression must be real numbers."
            ) from error

    def _encode(self, y, weights):
        return {}, y.reshape(len(y), -1), weights

    def _strata(self, targets, rng):
        return targets @ rng.standard_normal(targets.shape[1])

    def _score_targets(self, targets, prediction, weights):
        return r2_score(targets, prediction, sample_weight=weights)

    def _shape_coef(self, coef, y):
        """One column an output for y of shape (n, k), none for y of shape (n,)."""
        return coef.reshape(coef.shape[:-1] + y.shape[1:])[()]

    def _calibrate(self, prediction, targets, weights):
        return {}

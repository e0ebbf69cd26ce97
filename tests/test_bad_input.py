"""Unusable images, targets, weights and parameters: errors that say what to do."""

import re
import time

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.base import clone

from skconvrfm import ConvRFMClassifier, ConvRFMRegressor, PatchAGOPTransformer
from skconvrfm._input import as_numbers
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import ConvNTK, Gaussian, PatchLaplace, patch_agop

BOTH = pytest.mark.parametrize("Estimator", [ConvRFMClassifier, ConvRFMRegressor])
SMALL = {"kernel": ConvNTK(depth=1), "n_rounds": 1}
LINEAR = {"kernel": "linear", "features": ConvFeatures(8), "n_rounds": 1}
FIXED = {"kernel": ConvNTK(depth=1), "n_rounds": 0}
DOUBLE_POOL = ConvFeatures(8, pool_grid=2, pool_size=2)
TIMES = np.arange(12).astype("datetime64[D]")


@pytest.fixture
def images(rng):
    return rng.normal(size=(12, 4, 5))


@pytest.fixture
def labels():
    return np.arange(12) % 2


def flat(X, y):
    return X.reshape(12, -1), y


def same(X, y):
    return X, y


def weighted(weights):
    return lambda X, y: (X, y, np.asarray(weights))


def with_pixel(value):
    """Images of which one has a pixel of this value."""

    def change(X, y):
        X[3, 1, 1] = value
        return X, y

    return change


def targets(y):
    return lambda X, _: (X, y)


# Both estimators refuse to fit what a function makes of images and labels. See also
# test_common: rows of another width, prediction before a fit, text, objects.
REFUSED = [
    (flat, r"image_shape=\(.* X has 20 features", {"image_shape": (5, 5)}),
    (flat, r"image_shape=\(.* X has 20 features", {"image_shape": (4, 5, 3)}),
    (same, r"image_shape=\(5, 4\).*image_shape=None", {"image_shape": (5, 4)}),
    *(
        (flat, r"image_shape=\(.*\(rows, columns\)", {"image_shape": shape})
        for shape in [
            (20,),
            (1, 4, 5, 1),
            (4.0, 5.0),
            (-4, -5),
            (0, 20),
            ("4", "5"),
            (),
        ]
    ),
    (
        lambda X, y: (np.ones((12, 8 * 8 * 3)), y),
        r"192 features.*image_shape=\(8, 8, 3\)",
        {},
    ),
    (with_pixel(np.nan), "X contains NaN", {}),
    (with_pixel(np.inf), "X contains infinity", {}),
    (with_pixel(-np.inf), "X contains infinity", {}),
    (lambda X, y: (X * 1j, y), "Complex data not supported", {}),
    (lambda X, y: (flat(X, y)[0] * 1j, y), "Complex data not supported", {}),
    (lambda X, y: (X[:, 0, 0], y), "1D array", {}),
    (lambda X, y: (X[..., None, None], y), "dim", {}),
    (lambda X, y: (X[:0], y[:0]), r"0 sample\(s\)", {}),
    (lambda X, y: (X[:, :0], y), r"0 feature\(s\)", {}),
    (lambda X, y: (X[:1], [0]), "minimum of 2 is required", {}),
    (targets([0, 1]), "inconsistent numbers of samples", {}),
    (weighted(np.zeros(12)), "sample_weight is all zero.*positive", {}),
    (weighted(np.eye(12)[3]), "1 sample with a positive weight", {}),
    (weighted(-np.ones(12)), "(?i)negative.*sample_weight", {}),
    (weighted(np.full(12, 1e308)), r"sample_weight .* up to 1e\+308.*scale the", {}),
    (weighted([np.nan, *np.ones(11)]), "sample_weight contains", {}),
    (weighted([np.inf, *np.ones(11)]), "sample_weight contains", {}),
    (weighted(np.ones(11)), "sample_weight.shape", {}),
    *(
        (same, "(?s)alpha.*(positive|finite|numbers|Got)", {"alpha": alpha})
        for alpha in ([], [0.1, 0], [0.1, -1], [[0.1]], [np.nan], [np.inf], ["small"])
    ),
    (same, "(?s)alpha.*(positive|finite|numbers|Got)", {"alpha": np.inf}),
    (same, "device='gpu'.*'cpu' or 'cuda'", {"device": "gpu"}),
    (same, "device='meta'.*'cpu' or 'cuda'", {"device": "meta"}),
]
# Those of one of them.
CLASSES_REFUSED = [
    (targets(["cat"] * 12), "y has only one class, 'cat'.*two classes", {}),
    (lambda X, y: (X, y, y), "only one class, 1, .*positive weight", {}),
    (targets(np.linspace(0, 1, 12)), "Unknown label type", {}),
    (targets([[1, 2]] * 12), "has the values .1, 2., but an indicator matrix", {}),
    (
        targets([[0, 1]] * 12),
        "class_weight='balanced' is for",
        {"class_weight": "balanced"},
    ),
    (same, "class_weight={.*positive for every class", {"class_weight": {0: 0}}),
    (same, "class_weight={.*positive for every class", {"class_weight": {1: -1.0}}),
    (same, "'class_weight' parameter.*Got 'equal'", {"class_weight": "equal"}),
    (same, "pool_grid=2 and pool_size=2", {"features": DOUBLE_POOL}),
]
NO_NUMBERS = "y has dtype .* convert y|must be real numbers"
TARGETS_REFUSED = [
    *(
        (targets(y), NO_NUMBERS, {})
        for y in (
            TIMES,
            TIMES - TIMES[0],
            np.arange(12).astype(str),
            np.arange(12).astype(bytes),
            np.arange(12).astype(str).astype(object),
            list(TIMES.astype(object)),
            np.column_stack([TIMES, TIMES]),
        )
    ),
    (targets(np.array(["cat", "dog"] * 6)), "y has dtype|could not convert", {}),
    (targets([np.nan, *range(11)]), "contains NaN", {}),
    (targets([np.inf, *range(11)]), "contains infinity", {}),
    (targets(1e200 * np.arange(12)), "error of the fit.*scale the targets y", {}),
    (targets(1e200 * np.arange(12)), "error of the fit.*scale the targets", FIXED),
    (
        lambda X, y: (1e200 * X, y),
        r"dtype='float32' has no .* X, up to .*scale",
        {"dtype": "float32"},
    ),
    (
        lambda X, y: (1e200 * X, y),
        "covariance of patches overflows float64: X",
        LINEAR,
    ),
]


@BOTH
@pytest.mark.parametrize(("change", "match", "parameters"), REFUSED)
def test_unusable_data_are_refused(
    Estimator, images, labels, change, match, parameters
):
    with pytest.raises(ValueError, match=match):
        Estimator(**{**SMALL, **parameters}).fit(*change(images, labels))


@pytest.mark.parametrize(
    ("Estimator", "case"),
    [
        *((ConvRFMClassifier, case) for case in CLASSES_REFUSED),
        *((ConvRFMRegressor, case) for case in TARGETS_REFUSED),
    ],
)
def test_unusable_targets_are_refused(Estimator, images, labels, case):
    change, match, parameters = case
    with pytest.raises(ValueError, match=match):
        Estimator(**{**SMALL, **parameters}).fit(*change(images, labels))


@BOTH
def test_data_of_other_types_are_refused(Estimator, images, labels):
    meta = torch.zeros(12, device="meta")
    for X, y, match in [
        (torch.zeros((12, 4, 5), device="meta"), labels, "X is a tensor on meta"),
        (images, meta, "y is a tensor on meta"),
        (
            scipy.sparse.csr_array(images.reshape(12, -1)),
            labels,
            r"dense data is required. Use '.toarray\(\)'",
        ),
    ]:
        with pytest.raises(TypeError, match=match):
            Estimator(**SMALL).fit(X, y)


def test_sparse_targets_of_a_regression_are_refused(images):
    y = scipy.sparse.csr_matrix(np.eye(12))
    with pytest.raises(TypeError, match=r"y is a sparse matrix; pass y\.toarray"):
        ConvRFMRegressor(**SMALL).fit(images, y)


@BOTH
def test_cuda_is_refused_where_there_is_none(Estimator, images, labels, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device='cuda'.*device='auto' or 'cpu'"):
        Estimator(device="cuda").fit(images, labels)


@BOTH
def test_unusable_images_are_not_predicted(Estimator, images, labels):
    model = Estimator(**SMALL).fit(images, labels)
    for shape in [(2, 5, 4), (2, 4, 6), (2, 4, 5, 2), (2, 2, 5, 2)]:
        with pytest.raises(ValueError, match=r"X has images of shape .*\(4, 5, 1\)"):
            model.predict(np.zeros(shape))
    with pytest.raises(ValueError, match=r"0 sample\(s\)"):
        model.predict(images[:0])
    for value in (np.nan, np.inf):
        with pytest.raises(ValueError, match="X contains (NaN|infinity)"):
            model.predict(with_pixel(value)(images, labels)[0])


# Layouts and columns of images

READINGS = {"arrays": np.asarray, "tensors": torch.as_tensor, "lists": list}


@pytest.mark.parametrize("read", READINGS.values(), ids=READINGS)
@pytest.mark.parametrize(
    "estimator",
    [
        ConvRFMClassifier(**SMALL),
        ConvRFMClassifier(**LINEAR),
        ConvRFMRegressor(**SMALL),
        PatchAGOPTransformer(ConvRFMClassifier(**SMALL)),
    ],
    ids=["exact", "features", "regressor", "transformer"],
)
def test_images_laid_out_the_other_way_are_refused(rng, labels, estimator, read):
    first, last = rng.normal(size=(12, 3, 8, 9)), rng.normal(size=(12, 8, 9, 3))
    remedy = r"\(n, 3, 8, 9\).*channels='first', or image_shape=\(3, 8, 9\)"
    with pytest.raises(ValueError, match=remedy):
        estimator.fit(read(first), labels)
    learner = getattr(estimator, "estimator", estimator)
    learner = clone(learner).set_params(channels="first")
    with pytest.raises(ValueError, match=r"channels='last', or image_shape=\(9, 3, 8"):
        learner.fit(read(last), labels)
    learner.set_params(channels="last", image_shape=(3, 8, 9)).fit(read(first), labels)
    assert learner.image_shape_ == (3, 8, 9)


@pytest.mark.parametrize("shape", [(3, 4, 9), (5, 8, 9), (3, 8, 4), (2, 8, 9)])
def test_images_that_may_be_meant_as_they_are_are_taken(rng, labels, shape):
    model = ConvRFMClassifier(**FIXED).fit(rng.normal(size=(12, *shape)), labels)
    assert model.image_shape_ == shape


def test_kernels_warn_of_images_laid_out_the_other_way(rng):
    with pytest.warns(UserWarning, match=r"\(n, 3, 8, 9\).*transpose\(0, 2, 3, 1\)"):
        ConvNTK(depth=1)(rng.normal(size=(2, 3, 8, 9)))


COLUMNS = {
    "list": list,
    "tuple": tuple,
    "list of lists": lambda images: images.tolist(),
    "list of tensors": lambda images: list(torch.as_tensor(images)),
    "object array": lambda images: _object_column(images),
    "object column": lambda images: _object_column(images)[:, None],
    "series": lambda images: _frame(images)["image"],
    "frame": lambda images: _frame(images),
    "frame of lists": lambda images: _frame(images.tolist()),
}


def _object_column(images):
    column = np.empty(len(images), dtype=object)
    column[:] = list(images)
    return column


def _frame(images):
    return pytest.importorskip("pandas").DataFrame({"image": list(images)})


@BOTH
@pytest.mark.parametrize("column", COLUMNS.values(), ids=COLUMNS)
def test_images_one_by_one_are_stacked(Estimator, images, labels, column):
    expected = Estimator(**FIXED).fit(images, labels)
    model = Estimator(**FIXED).fit(column(images), labels)
    scores = model.predict(column(images))
    np.testing.assert_array_equal(scores, expected.predict(images))
    assert model.image_shape_ == (4, 5, 1)


@pytest.mark.parametrize(
    ("column", "remedy"),
    [
        (lambda X: [*X[:-1], X[0, :3]], r"\(4, 5\) and \(3, 5\) \(number 11\)"),
        (lambda X: [X[0], X[1][..., None], *X[2:]], r"\(4, 5, 1\) \(number 1\)"),
        (lambda X: _object_column([*X[:-1], X[0, :3]]), r"number 11.*one shape"),
        (lambda X: [*X[:-1].tolist(), [[1], [2, 3]]], r"X\[11\] has rows of different"),
        (lambda X: [{"image": image} for image in X], r"X\[0\] is a dict with the"),
        (lambda X: {"images": X}, "X is a dict with the keys .'images'.: pass"),
    ],
    ids=["sizes", "grey and colour", "objects", "rows", "dicts", "dict"],
)
def test_images_that_cannot_be_stacked_are_refused(images, labels, column, remedy):
    for method in (ConvRFMClassifier(**FIXED).fit, _fitted(images, labels).score):
        with pytest.raises((TypeError, ValueError), match=remedy):
            method(column(images), labels)


def _fitted(images, labels):
    return ConvRFMClassifier(**FIXED).fit(images, labels)


@pytest.mark.parametrize("kind", ["datetime64[D]", "timedelta64[s]", "U5", "S5"])
def test_dates_and_text_are_no_numbers(images, labels, kind):
    n = np.arange(images.size).astype(kind)
    X = n.reshape(images.shape)
    kernel = ConvNTK(depth=1)
    for name, call in (
        ("X", lambda: ConvRFMClassifier(**SMALL).fit(X, labels)),
        ("X", lambda: _fitted(images, labels).predict(X)),
        ("X", lambda: kernel(X)),
        ("sample_weight", lambda: ConvRFMClassifier().fit(images, labels, n[:12])),
        (
            "patch_transform",
            lambda: kernel(images, patch_transform=n[:81].reshape(9, 9)),
        ),
        ("dual_coef", lambda: patch_agop(kernel, images, n[:12])),
        ("alpha", lambda: ConvRFMClassifier(alpha=n[1:3]).fit(images, labels)),
    ):
        with pytest.raises(ValueError, match=f"{name}.*dtype|dtype='numeric'"):
            call()


# Parameters

INVALID = {
    "image_shape": ["28x28"],
    "channels": ["middle"],
    "kernel": ["rbf", ConvNTK],
    "features": ["conv", 3],
    "n_rounds": [-1],
    "n_iter_no_change": [0, 1.0],
    "agop_power": [0, np.nan, np.inf],
    "agop_samples": [0, 1.5, "all"],
    "landmarks": [1, 0.5],
    "alpha": [0, -1.0],
    "selection": ["cv"],
    "warm_start": ["yes"],
    "checkpoint": [3],
    "device": [3],
    "dtype": ["float16"],
    "n_jobs": [1.5],
    "random_state": ["seed"],
    "verbose": ["loud"],
    "kernel__depth": [0, 1.5],
    "kernel__patch_size": [0, 2.5],
    "kernel__padding": ["full"],
    "kernel__bias": [-0.1, np.nan, np.inf, 1e160],
    "kernel__metric": ["mahalanobis"],
    "kernel__pool_grid": [0],
    "kernel__scale": [0, "raw"],
    "features__n_filters": [0],
    "features__patch_size": [2.5],
    "features__padding": ["full"],
    "features__filters": ["drawn"],
    "features__metric": ["pca"],
    "features__bias": [-1.0],
    "features__activation": ["tanh"],
    "features__threshold": [np.nan],
    "features__pool": ["maximum"],
    "features__pool_grid": [0],
    "features__pool_size": [0],
    "features__pool_overlap": [1.5],
    "features__mirror": ["horizontal"],
    "features__scale": [-1.0, np.inf],
}


@BOTH
@pytest.mark.parametrize("name", INVALID)
def test_invalid_parameter_values_are_refused(Estimator, images, labels, name):
    owner, _, short = name.rpartition("__")
    kind = {"kernel": "ConvNTK", "features": "ConvFeatures"}.get(owner, "ConvRFM")
    for value in INVALID[name]:
        model = Estimator(ConvNTK(depth=1), ConvFeatures(8)).set_params(**{name: value})
        got = re.escape(f"Got {value!r}")
        match = f"(?s)'{short}' parameter of {kind}.*{got}"
        with pytest.raises(ValueError, match=match):
            model.fit(images, labels)


@pytest.mark.parametrize("kernel", [Gaussian, PatchLaplace])
@pytest.mark.parametrize("bandwidth", [0, -1.0, np.inf, np.nan, "median"])
def test_invalid_bandwidths_are_refused(images, labels, kernel, bandwidth):
    with pytest.raises(ValueError, match="(?s)'bandwidth' parameter.*Got"):
        ConvRFMClassifier(kernel(bandwidth)).fit(images, labels)


@BOTH
@pytest.mark.parametrize(
    "name", ["kernel__patch_size", "features__patch_size", "features__pool_grid"]
)
def test_sizes_that_are_no_pair_are_refused(Estimator, images, labels, name):
    model = Estimator(ConvNTK(depth=1), ConvFeatures(8))
    short = name.partition("__")[2]
    for value in [(3,), (3, 3, 3), (3, 0), (3, 2.0), [0, 1]]:
        with pytest.raises(ValueError, match=rf"{short}=.*\(rows, columns\)"):
            model.set_params(**{name: value}).fit(images, labels)


@pytest.mark.parametrize(
    "name", ["depth", "patch_size", "kernel__bandwidth", "features__depth", "method"]
)
def test_unknown_names_are_refused(name):
    model = ConvRFMClassifier(ConvNTK(), ConvFeatures())
    with pytest.raises(ValueError, match="Invalid parameter"):
        model.set_params(**{name: 2})


def test_parameters_of_a_named_kernel_need_an_object():
    match = r"'kernel__depth' cannot be set, because kernel='ntk'.*kernel=ConvNTK\(\)"
    with pytest.raises(ValueError, match=match):
        ConvRFMClassifier().set_params(kernel__depth=2)
    for features in (None, "auto", [ConvFeatures()]):
        model = ConvRFMClassifier(features=features)
        match = r"'features__n_filters' cannot be set.*features=ConvFeatures\(\)"
        with pytest.raises(ValueError, match=match):
            model.set_params(features__n_filters=2)
    # Together with the object that has them they can.
    model = ConvRFMClassifier().set_params(kernel=ConvNTK(), kernel__depth=2)
    assert model.kernel.depth == 2


# Overflow


@pytest.mark.skipif(
    np.dtype(np.longdouble).itemsize == 8, reason="long doubles are doubles here"
)
@BOTH
def test_long_doubles_need_an_explicit_dtype(Estimator, images, labels):
    wide = images.astype(np.longdouble)
    with pytest.raises(TypeError, match="dtype='auto'.*dtype='float64'"):
        Estimator(**SMALL).fit(wide, labels)
    Estimator(dtype="float64", **SMALL).fit(wide, labels)


@BOTH
@pytest.mark.parametrize(("dtype", "factor"), [("float32", 1e30), ("float64", 1e200)])
def test_images_too_large_to_square_are_refused(
    Estimator, images, labels, dtype, factor
):
    images = images.astype(dtype)
    large = images * np.asarray(factor, dtype)
    with pytest.raises(ValueError, match=rf"kernel overflows {dtype}: X .*scale"):
        Estimator(dtype=dtype, **SMALL).fit(large, labels)
    model = Estimator(dtype=dtype, **SMALL).fit(images, labels)
    with pytest.raises(ValueError, match=rf"kernel overflows {dtype}: X .*scale"):
        model.predict(large)


def test_depth_at_which_values_overflow_is_refused(images, labels):
    model = ConvRFMClassifier(ConvNTK(depth=60, padding="same"), n_rounds=0)
    with pytest.raises(ValueError, match="60 layers.*smaller depth"):
        model.fit(images.astype(np.float32), labels)
    model.fit(images, labels)


def test_coefficients_whose_agop_overflows_are_refused(images):
    with pytest.raises(ValueError, match="patch AGOP overflows float64: X .*scale"):
        patch_agop(ConvNTK(bias=0), images, np.full(12, 1e200))


# Not errors, though close


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_images_too_small_to_square_in_float32_are_learned(images, labels, dtype):
    options = {"kernel": ConvNTK(depth=1, bias=0), "dtype": dtype, "n_rounds": 1}
    small = (1e-15 * images).astype(np.float32)
    plain = ConvRFMRegressor(**options).fit(images, labels).predict(images)
    model = ConvRFMRegressor(**options).fit(small, labels)
    np.testing.assert_allclose(model.predict(small), plain, rtol=0, atol=1e-4)


@BOTH
@pytest.mark.parametrize("alpha", [1e-300, [1e-300, 1e-299]])
@pytest.mark.parametrize("options", [SMALL, LINEAR], ids=["kernel", "features"])
def test_vanishing_ridge_gives_finite_predictions(
    Estimator, images, labels, alpha, options
):
    images[6:] = images[:6]  # whose eigenvalues are zero
    model = Estimator(alpha=alpha, **options).fit(images, labels)
    assert np.isfinite(model.predict(images)).all()
    assert np.isfinite(model.history_["gcv"]).all()


@BOTH
@pytest.mark.parametrize("weight", [1e-320, 1e-300, 1e300])
def test_weights_of_any_size_give_finite_predictions(Estimator, images, labels, weight):
    plain = Estimator(**SMALL).fit(images, labels)
    model = Estimator(**SMALL).fit(images, labels, sample_weight=np.full(12, weight))
    assert np.isfinite(model.history_["gcv"]).all()
    assert np.isfinite(model.predict(images)).all()
    if weight < 1:  # read as ones
        np.testing.assert_allclose(model.dual_coef_, plain.dual_coef_, rtol=1e-3)


@BOTH
@pytest.mark.parametrize("selection", ["gcv", "loo"])
def test_few_or_equal_images_give_finite_predictions(
    Estimator, images, labels, selection
):
    model = Estimator(selection=selection, **SMALL)
    for X in (images[:2], images[:3], np.ones((12, 4, 4))):
        assert np.isfinite(model.fit(X, labels[: len(X)]).predict(X)).all()


def test_constant_targets_are_predicted(images):
    model = ConvRFMRegressor(**SMALL).fit(images, np.full(12, 7.0))
    np.testing.assert_allclose(model.predict(images), 7.0)
    assert all(np.isfinite(values).all() for values in model.history_.values())


def test_store_covariance_is_true_false_or_auto(images, labels):
    with pytest.raises(ValueError, match="'store_covariance' parameter.*Got 'yes'"):
        ConvRFMRegressor(store_covariance="yes").fit(images, labels)


def test_numbers_are_not_looked_at_one_by_one():
    numbers = np.zeros(2 * 10**7)
    start = time.process_time()
    as_numbers(numbers, "X")
    assert time.process_time() - start < 1  # a loop of Python takes some seconds

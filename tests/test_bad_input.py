"""Unusable images, targets, weights and parameters: errors that say what to do."""

import re
import time

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from skconvrfm import ConvRFMClassifier, ConvRFMRegressor, PatchAGOPTransformer
from skconvrfm._input import as_numbers
from skconvrfm.features import ConvFeatures
from skconvrfm.kernels import ConvNNGP, ConvNTK, Gaussian, PatchLaplace, patch_agop

BOTH = pytest.mark.parametrize("Estimator", [ConvRFMClassifier, ConvRFMRegressor])
SMALL = {"kernel": ConvNTK(depth=1), "n_rounds": 1}
LINEAR = {"kernel": "linear", "features": ConvFeatures(8), "n_rounds": 1}


@pytest.fixture
def images(rng):
    return rng.normal(size=(12, 4, 5))


@pytest.fixture
def labels():
    return np.arange(12) % 2


@BOTH
@pytest.mark.parametrize(
    "method", ["predict", "predict_proba", "decision_function", "score"]
)
def test_prediction_before_fit_is_refused(Estimator, method, images, labels):
    if not hasattr(Estimator, method):
        pytest.skip("regressors predict only")
    arguments = (images, labels) if method == "score" else (images,)
    with pytest.raises(NotFittedError, match="not fitted yet"):
        getattr(Estimator(), method)(*arguments)


@BOTH
def test_rows_of_another_width_are_refused(Estimator, images, labels):
    model = Estimator(**SMALL).fit(images.reshape(12, -1), labels)
    with pytest.raises(ValueError, match="X has 15 features.*expecting 20"):
        model.predict(np.zeros((2, 15)))


@BOTH
@pytest.mark.parametrize("shape", [(2, 5, 4), (2, 4, 6), (2, 4, 5, 2), (2, 2, 5, 2)])
def test_images_of_another_shape_are_refused(Estimator, images, labels, shape):
    model = Estimator(**SMALL).fit(images, labels)
    with pytest.raises(ValueError, match=r"X has images of shape .*\(4, 5, 1\)"):
        model.predict(np.zeros(shape))


@BOTH
@pytest.mark.parametrize("image_shape", [(5, 5), (4, 5, 3), (20, 2)])
def test_image_shape_of_another_number_of_pixels_is_refused(
    Estimator, images, labels, image_shape
):
    model = Estimator(image_shape=image_shape, **SMALL)
    with pytest.raises(ValueError, match=r"image_shape=\(.* X has 20 features"):
        model.fit(images.reshape(12, -1), labels)


@BOTH
def test_image_shape_unlike_that_of_the_images_is_refused(Estimator, images, labels):
    model = Estimator(image_shape=(5, 4), **SMALL)
    with pytest.raises(ValueError, match=r"image_shape=\(5, 4\).*image_shape=None"):
        model.fit(images, labels)


@pytest.mark.parametrize(
    "image_shape", [(20,), (1, 4, 5, 1), (4.0, 5.0), (-4, -5), (0, 20), ("4", "5"), ()]
)
def test_image_shape_that_is_no_shape_is_refused(images, labels, image_shape):
    model = ConvRFMClassifier(image_shape=image_shape, **SMALL)
    with pytest.raises(ValueError, match=r"image_shape=\(.*\(rows, columns\)"):
        model.fit(images.reshape(12, -1), labels)


@BOTH
def test_colour_rows_need_image_shape(Estimator, rng):
    X = rng.normal(size=(4, 8 * 8 * 3))
    with pytest.raises(ValueError, match=r"192 features.*image_shape=\(8, 8, 3\)"):
        Estimator(**SMALL).fit(X, [0, 1, 0, 1])


@BOTH
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_images_that_are_not_finite_are_refused(Estimator, images, labels, bad):
    model = Estimator(**SMALL).fit(images, labels)
    images[3, 1, 1] = bad
    with pytest.raises(ValueError, match="X contains (NaN|infinity)"):
        Estimator(**SMALL).fit(images, labels)
    with pytest.raises(ValueError, match="X contains (NaN|infinity)"):
        model.predict(images)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_targets_that_are_not_finite_are_refused(images, labels, bad):
    y = labels.astype(float)
    y[2] = bad
    with pytest.raises(ValueError, match="contains (NaN|infinity)"):
        ConvRFMRegressor(**SMALL).fit(images, y)


@BOTH
def test_complex_images_are_refused(Estimator, images, labels):
    with pytest.raises(ValueError, match="Complex data not supported"):
        Estimator(**SMALL).fit(images.reshape(12, -1) * 1j, labels)
    with pytest.raises(ValueError, match="Complex data not supported"):
        Estimator(**SMALL).fit(images * 1j, labels)


@BOTH
def test_text_images_are_refused(Estimator, labels):
    with pytest.raises(ValueError):
        Estimator(**SMALL).fit([["a", "b"]] * 12, labels)


READINGS = {
    "arrays": np.asarray,
    "tensors": torch.as_tensor,
    "lists": list,
}


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
    model = ConvRFMClassifier(**SMALL).fit(rng.normal(size=(12, *shape)), labels)
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
    expected = Estimator(**SMALL).fit(images, labels)
    model = Estimator(**SMALL).fit(column(images), labels)
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
    for method in (ConvRFMClassifier(**SMALL).fit, _fitted(images, labels).score):
        with pytest.raises((TypeError, ValueError), match=remedy):
            method(column(images), labels)


def _fitted(images, labels):
    return ConvRFMClassifier(**SMALL).fit(images, labels)


TIMES = np.arange(12).astype("datetime64[D]")


@pytest.mark.parametrize(
    "y",
    [
        TIMES,
        TIMES - TIMES[0],
        np.arange(12).astype(str),
        np.arange(12).astype(bytes),
        np.arange(12).astype(str).astype(object),
        list(TIMES.astype(object)),
        np.column_stack([TIMES, TIMES]),
    ],
    ids=["dates", "spans", "text", "bytes", "objects", "date objects", "two columns"],
)
def test_targets_that_are_no_numbers_are_refused(images, y):
    with pytest.raises(
        ValueError, match="y has dtype .* convert y|must be real numbers"
    ):
        ConvRFMRegressor(**SMALL).fit(images, y)


@pytest.mark.parametrize("kind", ["datetime64[D]", "timedelta64[s]", "U5", "S5"])
@pytest.mark.parametrize(
    ("name", "call"),
    [
        ("X", lambda X, y, n: ConvRFMClassifier(**SMALL).fit(n.reshape(X.shape), y)),
        ("X", lambda X, y, n: _fitted(X, y).predict(n.reshape(X.shape))),
        ("X", lambda X, y, n: ConvNTK()(n.reshape(X.shape))),
        ("sample_weight", lambda X, y, n: ConvRFMClassifier().fit(X, y, n[:12])),
        ("patch_transform", lambda X, y, n: _kernel(X, n[:81].reshape(9, 9))),
        ("dual_coef", lambda X, y, n: patch_agop(ConvNTK(depth=1), X, n[:12])),
        ("alpha", lambda X, y, n: ConvRFMClassifier(alpha=n[1:3]).fit(X, y)),
    ],
)
def test_dates_and_text_are_no_numbers(images, labels, name, call, kind):
    numbers = np.arange(images.size).astype(kind)
    with pytest.raises(ValueError, match=f"{name}.*dtype|dtype='numeric'"):
        call(images, labels, numbers)


def _kernel(images, transform):
    return ConvNTK(depth=1)(images, patch_transform=transform)


def test_sparse_targets_of_a_regression_are_refused(images):
    y = scipy.sparse.csr_matrix(np.eye(12))
    with pytest.raises(TypeError, match=r"y is a sparse matrix; pass y\.toarray"):
        ConvRFMRegressor(**SMALL).fit(images, y)


@pytest.mark.parametrize(
    ("parameters", "y", "remedy"),
    [
        ({}, [[1, 2]] * 12, "has the values .1, 2., but an indicator matrix"),
        ({"class_weight": "balanced"}, [[0, 1]] * 12, "class_weight='balanced' is for"),
    ],
)
def test_label_sets_that_are_not_understood_are_refused(images, parameters, y, remedy):
    with pytest.raises(ValueError, match=remedy):
        ConvRFMClassifier(**SMALL, **parameters).fit(images, y)


@BOTH
def test_images_of_one_or_five_dimensions_are_refused(Estimator, labels):
    with pytest.raises(ValueError, match="1D array"):
        Estimator(**SMALL).fit(np.zeros(12), labels)
    with pytest.raises(ValueError, match="dim"):
        Estimator(**SMALL).fit(np.zeros((12, 2, 2, 1, 1)), labels)


@BOTH
def test_images_and_targets_of_different_lengths_are_refused(Estimator, images):
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        Estimator(**SMALL).fit(images, [0, 1])


@BOTH
def test_single_row_is_refused(Estimator, images):
    with pytest.raises(ValueError, match="minimum of 2 is required"):
        Estimator(**SMALL).fit(images[:1], [0])


def test_single_class_is_refused(images):
    with pytest.raises(ValueError, match="y has only one class, 'cat'.*two classes"):
        ConvRFMClassifier(**SMALL).fit(images, ["cat"] * 12)


def test_single_class_of_positive_weight_is_refused(images, labels):
    with pytest.raises(ValueError, match="only one class, 1, .*positive weight"):
        ConvRFMClassifier(**SMALL).fit(images, labels, sample_weight=labels)


def test_real_numbers_are_no_classes(images, rng):
    with pytest.raises(ValueError, match="Unknown label type"):
        ConvRFMClassifier(**SMALL).fit(images, rng.normal(size=12))


def test_text_labels_are_no_real_targets(images):
    with pytest.raises(ValueError, match="y has dtype|could not convert"):
        ConvRFMRegressor(**SMALL).fit(images, np.array(["cat", "dog"] * 6))


# Weights


@BOTH
def test_weights_that_are_all_zero_are_refused(Estimator, images, labels):
    with pytest.raises(ValueError, match="sample_weight is all zero.*positive"):
        Estimator(**SMALL).fit(images, labels, sample_weight=np.zeros(12))


@BOTH
def test_weights_that_leave_one_row_are_refused(Estimator, images, labels):
    with pytest.raises(ValueError, match="1 sample with a positive weight"):
        Estimator(**SMALL).fit(images, labels, sample_weight=np.eye(12)[3])


@BOTH
def test_negative_weights_are_refused(Estimator, images, labels):
    with pytest.raises(ValueError, match="(?i)negative.*sample_weight"):
        Estimator(**SMALL).fit(images, labels, sample_weight=-np.ones(12))


@BOTH
def test_weights_whose_sum_overflows_are_refused(Estimator, images, labels):
    with pytest.raises(ValueError, match=r"sample_weight .* up to 1e\+308.*scale the"):
        Estimator(**SMALL).fit(images, labels, sample_weight=np.full(12, 1e308))


@BOTH
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused(Estimator, images, labels, bad):
    weights = np.where(np.arange(12) == 4, bad, 1)
    with pytest.raises(ValueError, match="sample_weight contains"):
        Estimator(**SMALL).fit(images, labels, sample_weight=weights)


@BOTH
def test_weights_of_another_length_are_refused(Estimator, images, labels):
    with pytest.raises(ValueError, match="sample_weight.shape"):
        Estimator(**SMALL).fit(images, labels, sample_weight=np.ones(11))


def test_store_covariance_is_true_false_or_auto(images, labels):
    with pytest.raises(ValueError, match="'store_covariance' parameter.*Got 'yes'"):
        ConvRFMRegressor(store_covariance="yes").fit(images, labels)


@pytest.mark.parametrize("class_weight", [{0: 0}, {1: -1.0}])
def test_class_weights_that_are_not_positive_are_refused(images, labels, class_weight):
    model = ConvRFMClassifier(class_weight=class_weight, **SMALL)
    with pytest.raises(ValueError, match="class_weight={.*positive for every class"):
        model.fit(images, labels)


# Parameters


@BOTH
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("image_shape", "28x28"),
        ("channels", "middle"),
        ("kernel", "rbf"),
        ("kernel", ConvNTK),
        ("features", "conv"),
        ("features", 3),
        ("n_rounds", -1),
        ("n_iter_no_change", 0),
        ("n_iter_no_change", 1.0),
        ("agop_power", 0),
        ("agop_power", np.nan),
        ("agop_power", np.inf),
        ("agop_samples", 0),
        ("agop_samples", 1.5),
        ("agop_samples", "all"),
        ("landmarks", 1),
        ("landmarks", 0.5),
        ("alpha", 0),
        ("alpha", -1.0),
        ("selection", "cv"),
        ("warm_start", "yes"),
        ("checkpoint", 3),
        ("device", 3),
        ("dtype", "float16"),
        ("n_jobs", 1.5),
        ("random_state", "seed"),
        ("verbose", "loud"),
    ],
)
def test_invalid_parameter_values_are_refused(Estimator, images, labels, name, value):
    model = Estimator(**{name: value})
    got = re.escape(f"Got {value!r}")
    with pytest.raises(ValueError, match=f"(?s)'{name}' parameter.*{got}"):
        model.fit(images, labels)


@BOTH
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("kernel__depth", 0),
        ("kernel__depth", 1.5),
        ("kernel__patch_size", 0),
        ("kernel__patch_size", 2.5),
        ("kernel__padding", "full"),
        ("kernel__bias", -0.1),
        ("kernel__bias", np.nan),
        ("kernel__bias", np.inf),
        ("kernel__bias", 1e160),
        ("kernel__metric", "mahalanobis"),
        ("kernel__pool_grid", 0),
        ("kernel__scale", 0),
        ("kernel__scale", "raw"),
        ("features__n_filters", 0),
        ("features__patch_size", 2.5),
        ("features__padding", "full"),
        ("features__filters", "drawn"),
        ("features__metric", "pca"),
        ("features__bias", -1.0),
        ("features__activation", "tanh"),
        ("features__threshold", np.nan),
        ("features__pool", "maximum"),
        ("features__pool_grid", 0),
        ("features__pool_size", 0),
        ("features__pool_overlap", 1.5),
        ("features__mirror", "horizontal"),
        ("features__scale", -1.0),
        ("features__scale", np.inf),
    ],
)
def test_invalid_nested_values_are_refused(Estimator, images, labels, name, value):
    model = Estimator(ConvNTK(depth=1), ConvFeatures(8)).set_params(**{name: value})
    short = name.partition("__")[2]
    got = re.escape(f"Got {value!r}")
    match = f"(?s)'{short}' parameter of Conv(NTK|Features).*{got}"
    with pytest.raises(ValueError, match=match):
        model.fit(images, labels)


@pytest.mark.parametrize("kernel", [Gaussian, PatchLaplace])
@pytest.mark.parametrize("bandwidth", [0, -1.0, np.inf, np.nan, "median"])
def test_invalid_bandwidths_are_refused(images, labels, kernel, bandwidth):
    with pytest.raises(ValueError, match="(?s)'bandwidth' parameter.*Got"):
        ConvRFMClassifier(kernel(bandwidth)).fit(images, labels)


def test_unknown_class_weight_is_refused(images, labels):
    with pytest.raises(ValueError, match="'class_weight' parameter.*Got 'equal'"):
        ConvRFMClassifier(class_weight="equal").fit(images, labels)


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


@BOTH
@pytest.mark.parametrize("value", [(3,), (3, 3, 3), (3, 0), (3, 2.0), [0, 1]])
@pytest.mark.parametrize(
    "name",
    ["kernel__patch_size", "features__patch_size", "features__pool_grid"],
)
def test_sizes_that_are_no_pair_are_refused(Estimator, images, labels, name, value):
    model = Estimator(ConvNTK(depth=1), ConvFeatures(8)).set_params(**{name: value})
    short = name.partition("__")[2]
    with pytest.raises(ValueError, match=rf"{short}=.*\(rows, columns\)"):
        model.fit(images, labels)


@pytest.mark.parametrize(
    "kernel", [ConvNTK(depth=1), ConvNNGP(depth=3), PatchLaplace()]
)
def test_patch_kernels_need_more_than_a_global_pool_below(images, labels, kernel):
    model = ConvRFMClassifier(kernel, ConvFeatures(8, patch_size=2, pool_grid=1))
    name = type(kernel).__name__
    match = rf"features\[0\].pool_grid=1 leaves one location.*kernel={name}"
    with pytest.raises(ValueError, match=match):
        model.fit(images, labels)


def test_feature_layers_need_more_than_a_global_pool_below(images, labels):
    layers = [ConvFeatures(8, pool_grid=1), ConvFeatures(8)]
    with pytest.raises(ValueError, match=r"features\[0\].pool_grid=1.*features\[1\]"):
        ConvRFMClassifier("linear", layers).fit(images, labels)


def test_depth_that_pooled_maps_cannot_hold_is_refused(images, labels):
    model = ConvRFMClassifier(ConvNTK(depth=3), ConvFeatures(8, patch_size=2))
    match = r"features\[0\].pool_grid=\(3, 3\).*ConvNTK \(depth=3, patch_size=3\)"
    with pytest.raises(ValueError, match=match):
        model.fit(images, labels)


def test_pool_grid_and_pool_size_exclude_each_other(images, labels):
    layer = ConvFeatures(8, pool_grid=2, pool_size=2)
    with pytest.raises(ValueError, match="pool_grid=2 and pool_size=2"):
        ConvRFMClassifier("linear", layer).fit(images, labels)


def test_feature_layers_that_are_none_are_refused(images, labels):
    with pytest.raises(ValueError, match=r"features\[1\]=3 is not a ConvFeatures"):
        ConvRFMClassifier("linear", [ConvFeatures(8), 3]).fit(images, labels)


@BOTH
@pytest.mark.parametrize(
    "alpha", [[], [0.1, 0], [0.1, -1], [[0.1]], [np.nan], [np.inf], ["small"], np.inf]
)
def test_alpha_that_is_not_positive_is_refused(Estimator, images, labels, alpha):
    with pytest.raises(ValueError, match="(?s)alpha.*(positive|finite|numbers|Got)"):
        Estimator(alpha=alpha, **SMALL).fit(images, labels)


@BOTH
@pytest.mark.parametrize("device", ["gpu", "meta"])
def test_unknown_device_is_refused(Estimator, images, labels, device):
    with pytest.raises(ValueError, match=f"device='{device}'.*'cpu' or 'cuda'"):
        Estimator(device=device).fit(images, labels)


@BOTH
def test_cuda_is_refused_where_there_is_none(Estimator, images, labels, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device='cuda'.*device='auto' or 'cpu'"):
        Estimator(device="cuda").fit(images, labels)


@BOTH
def test_tensors_outside_of_the_cpu_are_refused(Estimator, images, labels):
    with pytest.raises(TypeError, match="X is a tensor on meta"):
        Estimator().fit(torch.zeros((12, 4, 5), device="meta"), labels)
    with pytest.raises(TypeError, match="y is a tensor on meta"):
        Estimator().fit(images, torch.zeros(12, device="meta"))


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


def test_images_too_large_for_float32_are_refused(images, labels):
    with pytest.raises(ValueError, match=r"dtype='float32' has no .* X, up to .*scale"):
        ConvRFMRegressor(dtype="float32", **SMALL).fit(1e200 * images, labels)


def test_patches_whose_covariance_overflows_are_refused(images, labels):
    model = ConvRFMRegressor(**LINEAR)
    with pytest.raises(ValueError, match="covariance of patches overflows float64: X"):
        model.fit(1e200 * images, labels)


def test_coefficients_whose_agop_overflows_are_refused(images):
    with pytest.raises(ValueError, match="patch AGOP overflows float64: X .*scale"):
        patch_agop(ConvNTK(bias=0), images, np.full(12, 1e200))


@pytest.mark.parametrize("n_rounds", [0, 1])
def test_targets_too_large_to_square_are_refused(images, labels, n_rounds):
    with pytest.raises(ValueError, match="error of the fit.*scale the targets y"):
        ConvRFMRegressor(n_rounds=n_rounds).fit(images, labels * 1e200)


@BOTH
def test_empty_images_are_refused(Estimator, images, labels):
    model = Estimator(**SMALL).fit(images, labels)
    with pytest.raises(ValueError, match=r"0 sample\(s\)"):
        model.predict(images[:0])
    with pytest.raises(ValueError, match=r"0 sample\(s\)"):
        Estimator(**SMALL).fit(images[:0], labels[:0])
    with pytest.raises(ValueError, match=r"0 feature\(s\)"):
        Estimator(**SMALL).fit(images[:, :0], labels)


@BOTH
def test_sparse_rows_are_refused(Estimator, images, labels):
    rows = scipy.sparse.csr_array(images.reshape(12, -1))
    with pytest.raises(TypeError, match=r"dense data is required. Use '.toarray\(\)'"):
        Estimator(**SMALL).fit(rows, labels)


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
def test_equal_images_of_all_classes_give_finite_predictions(Estimator, labels):
    model = Estimator(**SMALL).fit(np.ones((12, 4, 4)), labels)
    assert np.isfinite(model.predict(np.ones((3, 4, 4)))).all()


@BOTH
@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("selection", ["gcv", "loo"])
def test_two_or_three_rows_give_finite_predictions(
    Estimator, images, labels, n, selection
):
    model = Estimator(selection=selection, **SMALL).fit(images[:n], labels[:n])
    assert np.isfinite(model.predict(images)).all()


def test_constant_targets_are_predicted(images):
    model = ConvRFMRegressor(**SMALL).fit(images, np.full(12, 7.0))
    np.testing.assert_allclose(model.predict(images), 7.0)
    assert all(np.isfinite(values).all() for values in model.history_.values())


def test_numbers_are_not_looked_at_one_by_one():
    numbers = np.zeros(2 * 10**7)
    start = time.process_time()
    as_numbers(numbers, "X")
    assert time.process_time() - start < 1  # a loop of Python takes some seconds

"""What cannot be used is refused, with what it is and what to do."""

import numpy as np
import pytest
import scipy.sparse
import torch
from sklearn.exceptions import NotFittedError

from skconvrfm import ConvRFMClassifier, ConvRFMRegressor
from skconvrfm.kernels import patch_agop

BOTH = pytest.mark.parametrize("Estimator", [ConvRFMClassifier, ConvRFMRegressor])
SMALL = {"depth": 1, "n_rounds": 1}


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
def test_prediction_before_a_fit(Estimator, method, images, labels):
    if not hasattr(Estimator, method):
        pytest.skip("regressors predict only")
    arguments = (images, labels) if method == "score" else (images,)
    with pytest.raises(NotFittedError, match="not fitted yet"):
        getattr(Estimator(), method)(*arguments)


@BOTH
def test_rows_of_another_width(Estimator, images, labels):
    model = Estimator(**SMALL).fit(images.reshape(12, -1), labels)
    with pytest.raises(ValueError, match="X has 15 features.*expecting 20"):
        model.predict(np.zeros((2, 15)))


@BOTH
@pytest.mark.parametrize("shape", [(2, 5, 4), (2, 4, 6), (2, 4, 5, 2), (2, 2, 5, 2)])
def test_images_of_another_shape(Estimator, images, labels, shape):
    model = Estimator(**SMALL).fit(images, labels)
    with pytest.raises(ValueError, match=r"X has images of shape .*\(4, 5, 1\)"):
        model.predict(np.zeros(shape))


@BOTH
@pytest.mark.parametrize("image_shape", [(5, 5), (4, 5, 3), (20, 2)])
def test_image_shape_of_other_pixels(Estimator, images, labels, image_shape):
    model = Estimator(image_shape=image_shape, **SMALL)
    with pytest.raises(ValueError, match=r"image_shape=\(.* X has 20 features"):
        model.fit(images.reshape(12, -1), labels)


@BOTH
def test_image_shape_that_is_not_that_of_the_images(Estimator, images, labels):
    model = Estimator(image_shape=(5, 4), **SMALL)
    with pytest.raises(ValueError, match=r"image_shape=\(5, 4\).*image_shape=None"):
        model.fit(images, labels)


@pytest.mark.parametrize(
    "image_shape", [(20,), (1, 4, 5, 1), (4.0, 5.0), (-4, -5), (0, 20), ("4", "5"), ()]
)
def test_image_shape_that_is_none(images, labels, image_shape):
    model = ConvRFMClassifier(image_shape=image_shape, **SMALL)
    with pytest.raises(ValueError, match=r"image_shape=\(.*\(rows, columns\)"):
        model.fit(images.reshape(12, -1), labels)


@BOTH
def test_colour_rows_without_a_shape(Estimator, rng):
    X = rng.normal(size=(4, 8 * 8 * 3))
    with pytest.raises(ValueError, match=r"192 features.*image_shape=\(8, 8, 3\)"):
        Estimator(**SMALL).fit(X, [0, 1, 0, 1])


@BOTH
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite(Estimator, images, labels, bad):
    model = Estimator(**SMALL).fit(images, labels)
    images[3, 1, 1] = bad
    with pytest.raises(ValueError, match="X contains (NaN|infinity)"):
        Estimator(**SMALL).fit(images, labels)
    with pytest.raises(ValueError, match="X contains (NaN|infinity)"):
        model.predict(images)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_targets_that_are_not_finite(images, labels, bad):
    y = labels.astype(float)
    y[2] = bad
    with pytest.raises(ValueError, match="contains (NaN|infinity)"):
        ConvRFMRegressor(**SMALL).fit(images, y)


@BOTH
def test_complex_images(Estimator, images, labels):
    with pytest.raises(ValueError, match="Complex data not supported"):
        Estimator(**SMALL).fit(images.reshape(12, -1) * 1j, labels)
    with pytest.raises(ValueError, match="Complex data not supported"):
        Estimator(**SMALL).fit(images * 1j, labels)


@BOTH
def test_texts_instead_of_numbers(Estimator, labels):
    with pytest.raises(ValueError):
        Estimator(**SMALL).fit([["a", "b"]] * 12, labels)


@BOTH
def test_arrays_of_one_or_five_dimensions(Estimator, labels):
    with pytest.raises(ValueError, match="1D array"):
        Estimator(**SMALL).fit(np.zeros(12), labels)
    with pytest.raises(ValueError, match="dim"):
        Estimator(**SMALL).fit(np.zeros((12, 2, 2, 1, 1)), labels)


@BOTH
def test_rows_that_do_not_match_the_targets(Estimator, images):
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        Estimator(**SMALL).fit(images, [0, 1])


@BOTH
def test_one_row(Estimator, images):
    with pytest.raises(ValueError, match="minimum of 2 is required"):
        Estimator(**SMALL).fit(images[:1], [0])


def test_one_class(images):
    with pytest.raises(ValueError, match="y has only one class, 'cat'.*two classes"):
        ConvRFMClassifier(**SMALL).fit(images, ["cat"] * 12)


def test_one_class_that_has_weight(images, labels):
    with pytest.raises(ValueError, match="only one class, 1, .*positive weight"):
        ConvRFMClassifier(**SMALL).fit(images, labels, sample_weight=labels)


def test_real_numbers_as_classes(images, rng):
    with pytest.raises(ValueError, match="Unknown label type"):
        ConvRFMClassifier(**SMALL).fit(images, rng.normal(size=12))


def test_classes_as_real_numbers(images):
    with pytest.raises(ValueError, match="y has dtype|could not convert"):
        ConvRFMRegressor(**SMALL).fit(images, np.array(["cat", "dog"] * 6))


# Weights


@BOTH
def test_weights_that_are_all_zero(Estimator, images, labels):
    with pytest.raises(ValueError, match="sample_weight is all zero.*positive"):
        Estimator(**SMALL).fit(images, labels, sample_weight=np.zeros(12))


@BOTH
def test_weights_that_leave_one_row(Estimator, images, labels):
    with pytest.raises(ValueError, match="1 sample with a positive weight"):
        Estimator(**SMALL).fit(images, labels, sample_weight=np.eye(12)[3])


@BOTH
def test_negative_weights(Estimator, images, labels):
    with pytest.raises(ValueError, match="(?i)negative.*sample_weight"):
        Estimator(**SMALL).fit(images, labels, sample_weight=-np.ones(12))


@BOTH
def test_weights_whose_sum_is_not_finite(Estimator, images, labels):
    with pytest.raises(ValueError, match=r"sample_weight .* up to 1e\+308.*scale the"):
        Estimator(**SMALL).fit(images, labels, sample_weight=np.full(12, 1e308))


@BOTH
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite(Estimator, images, labels, bad):
    weights = np.where(np.arange(12) == 4, bad, 1)
    with pytest.raises(ValueError, match="sample_weight contains"):
        Estimator(**SMALL).fit(images, labels, sample_weight=weights)


@BOTH
def test_weights_of_another_length(Estimator, images, labels):
    with pytest.raises(ValueError, match="sample_weight.shape"):
        Estimator(**SMALL).fit(images, labels, sample_weight=np.ones(11))


@pytest.mark.parametrize("class_weight", [{0: 0}, {1: -1.0}])
def test_class_weights_that_are_not_positive(images, labels, class_weight):
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
        ("depth", 0),
        ("depth", 1.5),
        ("patch_size", 0),
        ("patch_size", 2.5),
        ("padding", "full"),
        ("bias", -0.1),
        ("n_rounds", -1),
        ("agop_power", 0),
        ("agop_samples", 0),
        ("agop_samples", 1.5),
        ("agop_samples", "all"),
        ("alpha", 0),
        ("alpha", -1.0),
        ("selection", "cv"),
        ("device", 3),
        ("dtype", "float16"),
        ("n_jobs", 1.5),
        ("random_state", "seed"),
        ("verbose", "loud"),
    ],
)
def test_unknown_options(Estimator, images, labels, name, value):
    model = Estimator().set_params(**{name: value})
    with pytest.raises(ValueError, match=f"'{name}' parameter.*Got {value!r}"):
        model.fit(images, labels)


def test_an_unknown_class_weight(images, labels):
    with pytest.raises(ValueError, match="'class_weight' parameter.*Got 'equal'"):
        ConvRFMClassifier(class_weight="equal").fit(images, labels)


@BOTH
@pytest.mark.parametrize("patch_size", [(3,), (3, 3, 3), (3, 0), (3, 2.0), [0, 1]])
def test_patch_sizes_that_are_no_pair(Estimator, images, labels, patch_size):
    with pytest.raises(ValueError, match=r"patch_size=.*\(rows, columns\)"):
        Estimator(patch_size=patch_size).fit(images, labels)


@BOTH
@pytest.mark.parametrize(
    "alpha", [[], [0.1, 0], [0.1, -1], [[0.1]], [np.nan], [np.inf], ["small"], np.inf]
)
def test_ridges_that_are_not_positive_numbers(Estimator, images, labels, alpha):
    with pytest.raises(ValueError, match="(?s)alpha.*(positive|finite|numbers|Got)"):
        Estimator(alpha=alpha, **SMALL).fit(images, labels)


@BOTH
@pytest.mark.parametrize("bias", [np.nan, np.inf])
def test_a_bias_that_is_not_finite(Estimator, images, labels, bias):
    with pytest.raises(ValueError, match="bias"):
        Estimator(bias=bias, **SMALL).fit(images, labels)


@BOTH
@pytest.mark.parametrize("agop_power", [np.nan, np.inf])
def test_a_power_that_is_not_finite(Estimator, images, labels, agop_power):
    with pytest.raises(ValueError, match="agop_power"):
        Estimator(agop_power=agop_power, **SMALL).fit(images, labels)


@BOTH
@pytest.mark.parametrize("device", ["gpu", "meta"])
def test_an_unknown_device(Estimator, images, labels, device):
    with pytest.raises(ValueError, match=f"device='{device}'.*'cpu' or 'cuda'"):
        Estimator(device=device).fit(images, labels)


@BOTH
def test_cuda_where_there_is_none(Estimator, images, labels, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="device='cuda'.*device='auto' or 'cpu'"):
        Estimator(device="cuda").fit(images, labels)


@BOTH
def test_tensors_that_are_not_on_the_cpu(Estimator, images, labels):
    with pytest.raises(TypeError, match=r"X is a tensor on meta.*X\.cpu\(\)"):
        Estimator().fit(torch.zeros((12, 4, 5), device="meta"), labels)
    with pytest.raises(TypeError, match=r"y is a tensor on meta.*y\.cpu\(\)"):
        Estimator().fit(images, torch.zeros(12, device="meta"))


@pytest.mark.skipif(
    np.dtype(np.longdouble).itemsize == 8, reason="long doubles are doubles here"
)
@BOTH
def test_long_doubles_are_not_cut_short_in_silence(Estimator, images, labels):
    wide = images.astype(np.longdouble)
    with pytest.raises(TypeError, match="dtype='auto'.*dtype='float64'"):
        Estimator(**SMALL).fit(wide, labels)
    Estimator(dtype="float64", **SMALL).fit(wide, labels)


@BOTH
@pytest.mark.parametrize(("dtype", "factor"), [("float32", 1e30), ("float64", 1e200)])
def test_values_too_large_to_square(Estimator, images, labels, dtype, factor):
    images = images.astype(dtype)
    large = images * np.asarray(factor, dtype)
    with pytest.raises(ValueError, match=rf"kernel overflows {dtype}: X .*scale"):
        Estimator(dtype=dtype, **SMALL).fit(large, labels)
    model = Estimator(dtype=dtype, **SMALL).fit(images, labels)
    with pytest.raises(ValueError, match=rf"kernel overflows {dtype}: X .*scale"):
        model.predict(large)


def test_a_depth_at_which_values_grow_too_large(images, labels):
    model = ConvRFMClassifier(depth=60, padding="same", n_rounds=0)
    with pytest.raises(ValueError, match="60 layers.*smaller depth"):
        model.fit(images.astype(np.float32), labels)
    model.fit(images, labels)


def test_values_too_large_for_the_dtype_that_was_asked_for(images, labels):
    with pytest.raises(ValueError, match=r"dtype='float32' has no .* X, up to .*scale"):
        ConvRFMRegressor(dtype="float32", **SMALL).fit(1e200 * images, labels)


def test_patches_whose_covariance_is_too_large(images, labels):
    model = ConvRFMRegressor(method="features", **SMALL)
    with pytest.raises(ValueError, match="covariance of patches overflows float64: X"):
        model.fit(1e200 * images, labels)


def test_coefficients_too_large_for_an_agop(images):
    with pytest.raises(ValueError, match="patch AGOP overflows float64: X .*scale"):
        patch_agop(images, np.full(12, 1e200))


@pytest.mark.parametrize("n_rounds", [0, 1])
def test_targets_too_large_to_square(images, labels, n_rounds):
    with pytest.raises(ValueError, match="error of the fit.*scale the targets y"):
        ConvRFMRegressor(n_rounds=n_rounds).fit(images, labels * 1e200)


@BOTH
def test_a_bias_too_large_to_square(Estimator, images, labels):
    with pytest.raises(ValueError, match=r"bias=1e\+160 is too large; take at most"):
        Estimator(bias=1e160, **SMALL).fit(images, labels)


@BOTH
def test_no_rows_and_no_pixels(Estimator, images, labels):
    model = Estimator(**SMALL).fit(images, labels)
    with pytest.raises(ValueError, match=r"0 sample\(s\)"):
        model.predict(images[:0])
    with pytest.raises(ValueError, match=r"0 sample\(s\)"):
        Estimator(**SMALL).fit(images[:0], labels[:0])
    with pytest.raises(ValueError, match=r"0 feature\(s\)"):
        Estimator(**SMALL).fit(images[:, :0], labels)


@BOTH
def test_sparse_rows(Estimator, images, labels):
    rows = scipy.sparse.csr_array(images.reshape(12, -1))
    with pytest.raises(TypeError, match=r"dense data is required. Use '.toarray\(\)'"):
        Estimator(**SMALL).fit(rows, labels)


# Not errors, though close


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_values_too_small_to_square_in_float32(images, labels, dtype):
    options = {"bias": 0, "dtype": dtype, **SMALL}
    small = (1e-15 * images).astype(np.float32)
    plain = ConvRFMRegressor(**options).fit(images, labels).predict(images)
    model = ConvRFMRegressor(**options).fit(small, labels)
    np.testing.assert_allclose(model.predict(small), plain, rtol=0, atol=1e-4)


@BOTH
@pytest.mark.parametrize("alpha", [1e-300, [1e-300, 1e-299]])
@pytest.mark.parametrize("method", ["exact", "features"])
def test_a_ridge_that_is_rounding(Estimator, images, labels, alpha, method):
    images[6:] = images[:6]  # whose eigenvalues are zero
    model = Estimator(alpha=alpha, method=method, **SMALL).fit(images, labels)
    assert np.isfinite(model.predict(images)).all()
    assert np.isfinite(model.history_["gcv"]).all()


@BOTH
@pytest.mark.parametrize("weight", [1e-320, 1e-300, 1e300])
def test_weights_of_any_size(Estimator, images, labels, weight):
    plain = Estimator(**SMALL).fit(images, labels)
    model = Estimator(**SMALL).fit(images, labels, sample_weight=np.full(12, weight))
    assert np.isfinite(model.history_["gcv"]).all()
    assert np.isfinite(model.predict(images)).all()
    if weight < 1:  # read as ones
        np.testing.assert_allclose(model.dual_coef_, plain.dual_coef_, rtol=1e-3)


@BOTH
def test_equal_images_of_all_classes(Estimator, labels):
    model = Estimator(**SMALL).fit(np.ones((12, 4, 4)), labels)
    assert np.isfinite(model.predict(np.ones((3, 4, 4)))).all()


@BOTH
@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("selection", ["gcv", "loo"])
def test_two_or_three_rows(Estimator, images, labels, n, selection):
    model = Estimator(selection=selection, **SMALL).fit(images[:n], labels[:n])
    assert np.isfinite(model.predict(images)).all()


def test_constant_targets(images):
    model = ConvRFMRegressor(**SMALL).fit(images, np.full(12, 7.0))
    np.testing.assert_allclose(model.predict(images), 7.0)
    assert all(np.isfinite(values).all() for values in model.history_.values())

"""Properties of kernels, AGOPs and estimators for random images, targets and options.

Every example ends in a correct and finite result, or in one of `DOCUMENTED_ERRORS`; no
warning but `DOCUMENTED_WARNINGS` of `strategies` is given, and no input is written to.
"""

import math
import os
from contextlib import contextmanager

import numpy as np
import pytest
import sklearn
import strategies as some
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.base import clone
from strategies import Images, only_documented_warnings, result_or_documented_error

from skconvrfm import ConvRFMClassifier, ConvRFMRegressor, PatchAGOPTransformer
from skconvrfm.compute.native import build
from skconvrfm.features.pools import pool_exponents
from skconvrfm.kernels import ConvNNGP, ConvNTK, Linear, PatchLaplace, patch_agop
from skconvrfm.kernels.base import PatchKernel
from skconvrfm.kernels.profiles import LaplaceProfile

# The shares of the properties add up to ALL_EXAMPLES. SKCONVRFM_EXAMPLES, a number,
# asks for more of them than a quick run takes:
#   SKCONVRFM_EXAMPLES=50000 pytest -n0 --hypothesis-seed=0 tests/test_properties.py
ALL_EXAMPLES, QUICK_EXAMPLES = 2345, 300


def examples(count):
    """A share of all examples, for one property."""
    wanted = int(os.environ.get("SKCONVRFM_EXAMPLES", QUICK_EXAMPLES))
    return settings(max_examples=math.ceil(count * wanted / ALL_EXAMPLES))


@contextmanager
def place(tiles="array", memory=1024):
    """Array operations or compiled tiles, and so many MiB of memory."""
    before = os.environ.get(build.SWITCH)
    os.environ[build.SWITCH] = "1" if tiles == "compiled" else "0"
    try:
        with sklearn.config_context(working_memory=memory):
            yield
    finally:
        if before is None:
            del os.environ[build.SWITCH]
        else:
            os.environ[build.SWITCH] = before


@contextmanager
def unchanged(*arrays):
    """Fail where an input was written to."""
    arrays = [array for array in arrays if array is not None]
    before = [np.array(array).tobytes() for array in arrays]
    yield
    for array, bytes_before in zip(arrays, before, strict=True):
        assert np.array(array).tobytes() == bytes_before


@pytest.fixture(autouse=True)
def no_file_stays():
    yield
    some.Deleting.all()


def fixed_bandwidth(kernel, X):
    """Return the kernel with a bandwidth that does not depend on the other images."""
    if not kernel.unmeasured:
        return kernel
    size = float(1 + np.abs(X.astype(float)).max())
    return clone(kernel).set_params(bandwidth=size)


def has(kernel, name):
    return name in kernel.get_params()


def in_step(kernel, factor):
    """Return the kernel of images `factor` times as large, and the power of values."""
    kernel = clone(kernel)
    if has(kernel, "bias"):
        return kernel.set_params(bias=kernel.bias * factor), 2
    if isinstance(kernel, Linear):
        return kernel, 2
    if not kernel.unmeasured:
        kernel.set_params(bandwidth=kernel.bandwidth * factor)
    return kernel, 0


# Kernels


def kernel_error(dtype, kernel, images, transform=None):
    """Rounding of an entry of K, in units of the root of its two diagonal entries.

    arccos, and the distance of two patches, turn rounding into its root. The rounding
    of a distance counts in units of the squared lengths of the patches.
    """
    rounding = 64 * float(np.finfo(dtype).eps)
    if isinstance(kernel, Linear):
        return rounding
    if isinstance(kernel, ConvNTK):
        return 2 * np.sqrt(rounding) * kernel.depth
    if isinstance(kernel, ConvNNGP):
        return rounding * kernel.depth
    if kernel.unmeasured:
        return 1.0  # it may be as small as the least distance that is not rounding
    width = np.prod(images.shape[1:])
    if isinstance(kernel, PatchKernel):
        width = kernel.bind(images.shape[1:]).patch_dim
    squares = 4 * float(np.abs(images.astype(float)).max()) ** 2 * width
    squares *= 1 if transform is None else np.linalg.norm(transform, 2) ** 2
    exponent = rounding * squares / kernel.bandwidth**2
    exponent = np.sqrt(exponent) if isinstance(kernel, LaplaceProfile) else exponent
    return rounding + min(1.0, exponent)


def roots_of(K):
    """The roots of the diagonal, as far as the squares of patches have their digits."""
    limits = np.finfo(K.dtype)
    least = 1e6 * np.sqrt(float(limits.tiny) / float(limits.eps))
    return np.sqrt(np.diagonal(K).astype(float)).clip(min=least)


@examples(400)
@given(
    images=some.images(),
    kernel=some.kernels,
    dtype=some.precisions,
    where=some.places,
    transform=some.transforms,
)
def test_kernel_matrices_are_finite_symmetric_and_positive_semidefinite(
    images, kernel, dtype, where, transform
):
    X, kernel = images.array(), some.affordable(kernel, images)
    T = some.transform_of(transform, X, kernel)
    with unchanged(X, T), only_documented_warnings(), place(*where):
        K = result_or_documented_error(
            lambda: kernel(X, patch_transform=T, dtype=dtype)
        )
    if K is None:
        return
    assert K.shape == (len(X), len(X))
    assert np.isfinite(K).all()
    np.testing.assert_array_equal(K, K.T)
    error = kernel_error(K.dtype, kernel, X, T)
    roots = roots_of(K)
    correlations = K.astype(float) / roots[:, None] / roots
    assert np.linalg.eigvalsh(correlations)[0] >= -len(X) * error


@examples(300)
@given(
    images=some.images(sizes=(2, 8)),
    kernel=some.kernels,
    dtype=some.precisions,
    where=some.places,
    data=st.data(),
)
def test_kernel_entry_depends_on_its_two_images_alone(
    images, kernel, dtype, where, data
):
    X = images.array()
    kernel = fixed_bandwidth(some.affordable(kernel, images), X)
    order = np.array(data.draw(st.permutations(range(len(X)))))
    some_rows = order[: data.draw(st.integers(1, len(X)))]
    with only_documented_warnings(), place(*where):
        K = result_or_documented_error(lambda: kernel(X, dtype=dtype))
        if K is None:
            return
        moved = kernel(X[order], X[some_rows], dtype=dtype)
    error = kernel_error(K.dtype, kernel, X)
    roots = roots_of(K)
    difference = np.abs(moved.astype(float) - K[order][:, some_rows])
    assert (difference <= error * roots[order][:, None] * roots[some_rows]).all()


@examples(250)
@given(
    images=some.images(dtypes=["f8", ">f8"]),
    kernel=some.convolutional,
    exponents=st.lists(st.integers(-100, 100), min_size=8, max_size=8),
    where=some.places,
)
def test_convolutional_kernels_without_bias_are_homogeneous_in_each_image(
    images, kernel, exponents, where
):
    X = images.array()
    factors = 2.0 ** np.array(exponents[: len(X)])
    kernel = clone(some.affordable(kernel, images)).set_params(bias=0.0)
    with only_documented_warnings(), place(*where):
        K = kernel(X)
        scaled = kernel(X * factors[:, None, None, None])
    np.testing.assert_array_equal(scaled, K * factors[:, None] * factors)


@examples(250)
@given(
    images=some.images(dtypes=["f8", ">f8"]),
    kernel=some.kernels,
    exponent=st.integers(-100, 100),
    where=some.places,
    transform=some.transforms,
)
def test_kernels_scale_with_images_bias_and_bandwidth(
    images, kernel, exponent, where, transform
):
    X, factor = images.array(), 2.0**exponent
    kernel = some.affordable(kernel, images)
    T = some.transform_of(transform, X, kernel)
    scaled, power = in_step(kernel, factor)
    with only_documented_warnings(), place(*where):
        K = kernel(X, patch_transform=T)
        np.testing.assert_array_equal(
            scaled(X * factor, patch_transform=T), K * factor**power
        )


@examples(200)
@given(
    images=some.images(),
    kernel=some.kernels,
    dtype=some.precisions,
    where=some.places,
    layout=st.sampled_from(some.LAYOUTS),
    swapped=st.booleans(),
)
def test_kernels_do_not_depend_on_memory_layout_of_images(
    images, kernel, dtype, where, layout, swapped
):
    X, kernel = images.array(), some.affordable(kernel, images)
    other = some.laid_out(X, layout)
    other = other.astype(X.dtype.newbyteorder()) if swapped else other
    with unchanged(X, other), only_documented_warnings(), place(*where):
        K = result_or_documented_error(lambda: kernel(X, dtype=dtype))
        if K is None:
            return
        np.testing.assert_array_equal(kernel(other, dtype=dtype), K)
        np.testing.assert_array_equal(kernel(X.astype(float), dtype=K.dtype.name), K)


# The patch AGOP


def agop_terms(X, dual_coef, kernel, transform):
    """The square of what is added up in gradients, and may cancel."""
    bound = kernel.bind(X.shape[1:])
    area = np.prod(bound.patch_shape_)
    norm = 1 if transform is None else np.linalg.norm(transform, 2)
    length = norm * np.sqrt(bound.patch_dim) * np.abs(X.astype(float)).max()
    if has(kernel, "bias"):
        slope = norm * length * 3 * kernel.depth * area ** (kernel.depth - 1)
    else:
        h = kernel.bandwidth
        slope = norm / h * (1 + length / h)
    coef = np.abs(dual_coef.reshape(len(X), -1)).sum(0)
    return (coef**2).sum() * slope**2


def agop_error(X, kernel, dtype):
    """Rounding of an AGOP, in units of `agop_terms`."""
    double = dtype == "float64" or (dtype == "auto" and X.dtype == np.float64)
    if isinstance(kernel, PatchLaplace):  # whose slope divides by distances
        return 1e-2
    return 1e-9 if double else 1e-3


@examples(150)
@given(
    images=some.images(),
    kernel=some.patch_kernels,
    dtype=some.precisions,
    where=some.places,
    transform=some.transforms,
    outputs=st.sampled_from([(), (1,), (3,), (40,)]),
    coef_scale=some.scales,
    weights=some.weightings,
    data=st.data(),
)
def test_patch_agops_are_finite_symmetric_positive_and_independent_of_order(
    images, kernel, dtype, where, transform, outputs, coef_scale, weights, data
):
    X = images.array()
    n = len(X)
    order = np.array(data.draw(st.permutations(range(n))))
    rng = np.random.default_rng(images.seed)
    dual_coef = coef_scale * rng.normal(size=(n, *outputs))
    w = some.weights_of(weights, n, images.seed)
    kernel = fixed_bandwidth(some.affordable(kernel, images), X)
    T = some.transform_of(transform, X, kernel)

    def agop(rows):
        options = {"patch_transform": T, "dtype": dtype}
        options["sample_weight"] = None if w is None else w[rows]
        return patch_agop(kernel, X[rows], dual_coef[rows], **options)

    with unchanged(X, dual_coef, w, T), only_documented_warnings(), place(*where):
        G = result_or_documented_error(agop, np.arange(n))
        if G is None:
            return
        moved = agop(order)
    assert np.isfinite(G).all()
    np.testing.assert_array_equal(G, G.T)
    error = agop_error(X, kernel, dtype) * agop_terms(X, dual_coef, kernel, T)
    assert np.linalg.eigvalsh(G)[0] >= -error
    assert np.abs(moved - G).max() <= error


@examples(150)
@given(
    images=some.images(dtypes=["f8"]),
    kernel=some.patch_kernels,
    exponents=st.tuples(st.integers(-60, 60), st.integers(-60, 60)),
    where=some.places,
)
def test_patch_agops_scale_with_images_and_coefficients(
    images, kernel, exponents, where
):
    X, kernel = images.array(), some.affordable(kernel, images)
    factor, coef_factor = 2.0 ** np.array(exponents)
    dual_coef = np.random.default_rng(images.seed).normal(size=(len(X), 2))
    scaled, power = in_step(kernel, factor)
    with only_documented_warnings(), place(*where):
        G = result_or_documented_error(lambda: patch_agop(kernel, X, dual_coef))
        if G is None:
            return
        moved = patch_agop(scaled, X * factor, dual_coef * coef_factor)
    # Exponentials round by as much as their exponents are large; and next to zero, some
    # of what is added up is too small to be a number.
    expected = G * (factor ** (2 * power - 2) * coef_factor**2)
    nothing = 1e-290 + 1e-200 * np.abs(expected).max()
    np.testing.assert_allclose(moved, expected, rtol=1e-11, atol=nothing)


# Classifiers


def check_classifier(model, X, y):
    """Check the predictions of a fitted classifier."""
    scores = model.decision_function(X)
    probabilities = model.predict_proba(X)
    predicted = model.predict(X)
    n_classes = len(model.classes_)
    assert scores.shape == ((len(X),) if n_classes == 2 else (len(X), n_classes))
    assert probabilities.shape == (len(X), n_classes)
    assert np.isfinite(scores).all()
    assert np.isfinite(probabilities).all()
    assert (probabilities >= 0).all()
    np.testing.assert_allclose(probabilities.sum(1), 1, rtol=1e-9)
    assert np.isin(predicted, model.classes_).all()
    assert predicted.dtype == np.asarray(y).dtype
    check_fitted(model)


def check_fitted(model):
    """Check the attributes of a fitted estimator, its kernel and its layers."""
    for part in (model, model.kernel_, *model.features_):
        for name, value in vars(part).items():
            if name.endswith("_") and isinstance(value, np.ndarray | float):
                if np.asarray(value).dtype.kind == "f":
                    assert np.isfinite(value).all(), name
        for name, values in getattr(part, "history_", {}).items():
            assert np.isfinite(values).all(), name
    for layer in model.learned_layers_:
        for matrix in (layer.patch_transform_, layer.patch_agop_):
            np.testing.assert_allclose(
                matrix, matrix.T, rtol=0, atol=1e-9 * np.abs(matrix).max()
            )
        values = np.linalg.eigvalsh(layer.patch_transform_)
        assert values[0] >= -1e-12 * values[-1]


def affordable(options, images):
    """Return the options of an estimator that suit the size of the images."""
    return options | {"kernel": some.affordable(options["kernel"], images)}


def as_input(X, dimensions, channels):
    """Images as an estimator takes them, and the image_shape that it needs."""
    shape = X.shape[1:]
    if dimensions == 3 and shape[2] == 1:
        return X[..., 0], None
    if channels == "first":
        X = X.transpose(0, 3, 1, 2)
    return (X, None) if dimensions == 4 else (X.reshape(len(X), -1), shape)


inputs = st.tuples(st.sampled_from([2, 3, 4]), st.sampled_from(["first", "last"]))
fit_sizes = {"sizes": (2, 14)}


@examples(150)
@given(
    images=some.images(**fit_sizes),
    options=some.estimators,
    labels=st.sampled_from(sorted(some.LABELS)),
    weights=some.weightings,
    where=some.places,
    form=inputs,
    layout=st.sampled_from(some.LAYOUTS),
    class_weight=st.sampled_from([None, None, "balanced"]),
)
def test_classifiers_predict_classes_and_probabilities(
    images, options, labels, weights, where, form, layout, class_weight
):
    X, image_shape = as_input(images.array(), *form)
    X = some.laid_out(X, layout)
    y = some.labels_of(labels, len(X), images.seed)
    w = some.weights_of(weights, len(X), images.seed)
    model = ConvRFMClassifier(
        **affordable(options, images),
        image_shape=image_shape,
        channels=form[1],
        class_weight=class_weight,
    )
    with unchanged(X, y, w), only_documented_warnings(), place(*where):
        if result_or_documented_error(model.fit, X, y, w) is None:
            assert not hasattr(model, "classes_")
            return
        # Rows of weight 0 may be larger than what was fitted can be computed with.
        if result_or_documented_error(model.predict, X) is not None:
            check_classifier(model, X, y)


@examples(150)
@given(
    images=some.images(**fit_sizes),
    options=some.estimators,
    targets=st.sampled_from(sorted(some.TARGETS)),
    target_scale=some.scales,
    weights=some.weightings,
    where=some.places,
    form=inputs,
    layout=st.sampled_from(some.LAYOUTS),
)
def test_regressors_predict_finite_targets(
    images, options, targets, target_scale, weights, where, form, layout
):
    X, image_shape = as_input(images.array(), *form)
    X = some.laid_out(X, layout)
    y = some.targets_of(targets, len(X), target_scale, images.seed)
    w = some.weights_of(weights, len(X), images.seed)
    model = ConvRFMRegressor(
        **affordable(options, images), image_shape=image_shape, channels=form[1]
    )
    with unchanged(X, y, w), only_documented_warnings(), place(*where):
        if result_or_documented_error(model.fit, X, y, w) is None:
            assert not hasattr(model, "alpha_")
            return
        # Rows of weight 0 may be larger than what was fitted can be computed with.
        predicted = result_or_documented_error(model.predict, X)
    if predicted is None:
        return
    assert predicted.shape == np.shape(y)
    assert np.isfinite(predicted).all()
    check_fitted(model)


@examples(60)
@given(
    images=some.images(sizes=(4, 14), dtypes=["f4", "f8", "u1"]),
    options=some.estimators,
    other=some.images(sizes=(1, 4)),
    where=some.places,
)
def test_new_images_are_predicted(images, options, other, where):
    X = images.array()
    Z = Images(other.n, images.shape, other.content, other.dtype, other.scale).array()
    y = np.arange(len(X)) % 2
    model = ConvRFMClassifier(**affordable(options, images))
    with unchanged(X, Z), only_documented_warnings(), place(*where):
        if result_or_documented_error(model.fit, X, y) is None:
            return
        if result_or_documented_error(model.predict, Z) is not None:
            check_classifier(model, Z, y)


# Estimators under other images, targets and orders


def fixed(options):
    """Options with nothing to choose, so that rounding cannot choose."""
    rounds = min(options["n_rounds"], 1)
    return options | {"alpha": 0.1, "selection": "last", "n_rounds": rounds}


def options_in_step(options, factor):
    """Return the options for images `factor` times as large.

    Whitened patches have one size, whatever that of the images is. None where the
    kernel of a Deep ConvRFM sees maps of different sizes with one bias or bandwidth,
    or where a layer adds a number to the variances of patches.
    """
    kernel, features, scales = options["kernel"], [], [factor]
    is_patch_kernel = isinstance(kernel, PatchKernel)
    deep_metric = kernel.metric if is_patch_kernel else None
    for layer in options["features"] or ():
        if layer.normalize is not None:
            return None
        scale = 1.0 if "whiten" in (layer.metric, deep_metric) else scales[-1]
        features.append(clone(layer).set_params(bias=layer.bias * scale))
        p, q = pool_exponents(layer.pool)
        has_power = (layer.pool_size or layer.pool_grid) and layer.pool != "max"
        scales.append(scale ** (p * q if has_power else 1))
    if deep_metric != "whiten":
        if is_patch_kernel and len(set(scales)) > 1:
            if getattr(kernel, "bias", 0) or not getattr(kernel, "unmeasured", True):
                return None
        kernel, _ = in_step(kernel, scales[-1])
    return options | {"kernel": kernel, "features": features or None}


@examples(40)
@given(
    images=some.images(sizes=(3, 10), dtypes=["u1", "f8", "i2", "bool"]),
    options=some.estimators,
    where=some.places,
    weights=st.sampled_from(["none", "counts", "uniform"]),
    data=st.data(),
)
def test_fits_do_not_depend_on_the_order_of_images(
    images, options, where, weights, data
):
    X = images.array()
    order = np.array(data.draw(st.permutations(range(len(X)))))
    rng = np.random.default_rng(images.seed)
    y = rng.normal(size=(len(X), 2))
    w = some.weights_of(weights, len(X), images.seed)
    options = fixed(affordable(options, images)) | {"dtype": "float64"}
    options["n_rounds"] = 0  # an AGOP of flat images has no direction but rounding
    model = ConvRFMRegressor(**options)
    with only_documented_warnings(), place(*where):
        predicted = model.fit(X, y, w).predict(X)
        moved = model.fit(X[order], y[order], None if w is None else w[order])
        np.testing.assert_allclose(moved.predict(X), predicted, rtol=0, atol=1e-4)


@examples(40)
@given(
    images=some.images(sizes=(3, 8), dtypes=["f4", "f8"]),
    options=some.estimators,
    exponent=st.integers(-95, 95),
    where=some.places,
)
def test_fits_scale_with_images_and_bias(images, options, exponent, where):
    X = Images(images.n, images.shape, images.content, images.dtype, 1.0, images.seed)
    X, factor = X.array(), 2.0**exponent
    y = np.random.default_rng(images.seed).normal(size=len(X))
    options = fixed(affordable(options, images)) | {"dtype": "float64"}
    scaled = options_in_step(options, factor)
    assume(scaled is not None)
    with only_documented_warnings(), place(*where):
        plain = ConvRFMRegressor(**options).fit(X, y).predict(X)
        model = ConvRFMRegressor(**scaled).fit(X.astype(float) * factor, y)
        np.testing.assert_allclose(
            model.predict(X.astype(float) * factor), plain, rtol=0, atol=1e-5
        )


@examples(40)
@given(
    images=some.images(sizes=(3, 8)),
    options=some.estimators,
    exponent=st.integers(-95, 95),
    targets=st.sampled_from(["normal", "outputs", "column"]),
    where=some.places,
)
def test_predictions_scale_with_targets(images, options, exponent, targets, where):
    X, factor = images.array(), 2.0**exponent
    y = some.targets_of(targets, len(X), 1, images.seed)
    options = affordable(options, images)
    with only_documented_warnings(), place(*where):
        model = result_or_documented_error(ConvRFMRegressor(**options).fit, X, y)
        if model is None:
            return
        plain = model.predict(X)
        scaled = ConvRFMRegressor(**options).fit(X, y * factor).predict(X)
    np.testing.assert_allclose(scaled, plain * factor, rtol=0, atol=1e-9 * factor)


@examples(40)
@given(
    images=some.images(sizes=(3, 8)),
    options=some.estimators,
    layout=st.sampled_from(some.LAYOUTS),
    swapped=st.booleans(),
    form=inputs,
    where=some.places,
)
def test_fits_do_not_depend_on_memory_layout_of_images(
    images, options, layout, swapped, form, where
):
    X, image_shape = as_input(images.array(), *form)
    X = np.ascontiguousarray(X)
    other = some.laid_out(X, layout)
    other = other.astype(X.dtype.newbyteorder()) if swapped else other
    y = np.arange(len(X)) % 3 == 0
    model = ConvRFMClassifier(
        **affordable(options, images), image_shape=image_shape, channels=form[1]
    )
    with unchanged(X, other), only_documented_warnings(), place(*where):
        if result_or_documented_error(model.fit, X, y) is None:
            return
        expected = model.decision_function(X)
        np.testing.assert_array_equal(model.decision_function(other), expected)
        np.testing.assert_array_equal(
            model.fit(other, y).decision_function(X), expected
        )


@examples(40)
@given(
    images=some.images(sizes=(6, 20)),
    options=some.linear_estimators,
    labels=st.sampled_from(["two ints", "texts", "one rare", "all different"]),
    weights=some.weightings,
    where=some.places,
    cut=st.integers(2, 4),
)
def test_sums_of_parts_predict_classes_and_probabilities(
    images, options, labels, weights, where, cut
):
    X = images.array()
    y = some.labels_of(labels, len(X), images.seed)
    w = some.weights_of(weights, len(X), images.seed)
    model = ConvRFMClassifier(**options)
    parts = [slice(0, cut), slice(cut, None)]
    with unchanged(X, y, w), only_documented_warnings(), place(*where):
        for part in parts:
            w_part = None if w is None else w[part]
            if w_part is not None and not w_part.any():
                continue
            if (
                result_or_documented_error(
                    model.partial_fit, X[part], y[part], np.unique(y), w_part
                )
                is None
            ):
                return
        check_classifier(model, X, y)


@examples(5)
@given(
    images=some.images(
        sizes=(300, 330),
        shape=st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 2)),
    ),
    options=some.estimators,
)
def test_three_hundred_classes_are_predicted(images, options):
    X = images.array()
    y = np.arange(len(X)) % 300
    options = affordable(options, images) | {"n_rounds": 1}
    model = ConvRFMClassifier(**options)
    with unchanged(X, y), only_documented_warnings(), place():
        if result_or_documented_error(model.fit, X, y) is None:
            return
        assert len(model.classes_) == 300
        check_classifier(model, X, y)


# The transformer


@examples(80)
@given(
    images=some.images(**fit_sizes),
    options=some.estimators,
    output=st.sampled_from(["filters", "eigen", "saliency", "image", "features"]),
    rectification=st.sampled_from(["absolute", "halves"]),
    labels=st.sampled_from(sorted(some.LABELS)),
    where=some.places,
    form=inputs,
    layout=st.sampled_from(some.LAYOUTS),
    exponent=st.integers(-20, 20),
)
def test_transformed_images_are_finite_and_scale_with_images(
    images, options, output, rectification, labels, where, form, layout, exponent
):
    X, image_shape = as_input(images.array(), *form)
    X = some.laid_out(X, layout)
    y = some.labels_of(labels, len(X), images.seed)
    estimator = ConvRFMClassifier(
        **affordable(options, images), image_shape=image_shape, channels=form[1]
    )
    model = PatchAGOPTransformer(estimator, output=output, rectification=rectification)
    with unchanged(X, y), only_documented_warnings(), place(*where):
        if result_or_documented_error(model.fit, X, y) is None:
            return
        features = result_or_documented_error(model.transform, X)
        if features is None:
            return
        assert np.isfinite(features).all()
        if output == "image":
            assert features.shape == X.shape
        else:
            assert features.shape == (len(X), len(model.get_feature_names_out()))
        biased = output == "features"
        if biased or X.dtype != np.float64 or options["dtype"] == "float32":
            return
        factor = 2.0**exponent
        np.testing.assert_allclose(
            model.transform(X * factor), features * factor, rtol=1e-12, atol=0
        )
